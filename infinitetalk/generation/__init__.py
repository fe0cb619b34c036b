"""Generates frames from an image, speech and a prompt: chunks, the sampling loop, guidance, colours, fades."""
