"""How the media of examples/ and the pictures of the documents were made."""
