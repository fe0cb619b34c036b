"""The tiny talker: drawn heads whose mouths follow synthetic speech, and the small InfiniteTalk trained on them."""
