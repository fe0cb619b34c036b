"""What developers run and the image does not have: a local endpoint, generated files, pins, the talker's training."""
