"""The tiny talker: drawn heads with mouths that follow synthetic speech, and the small InfiniteTalk trained on them."""
