"""Developers' tools, which the image does not have: a local endpoint, generated files, pins, the talker's training."""
