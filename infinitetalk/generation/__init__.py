"""From a picture, speech and a prompt to frames: chunks, the sampling loop, guidance, colours, fades."""
