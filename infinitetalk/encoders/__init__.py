"""Networks that turn prompts, images, speech and frames into embeddings and latents."""
