"""InfiniteTalk: a picture or a video, speech and a prompt become a video of a person speaking."""
