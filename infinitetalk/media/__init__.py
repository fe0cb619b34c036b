"""Media files: reading user input, speech from text, and writing videos."""
