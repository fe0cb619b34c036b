"""The scripts that made the media of examples/ and the images of the documents."""
