"""Networks that turn prompts, pictures, speech and frames into embeddings and latents."""
