"""Files: reading what users send, speech from text, and writing videos."""
