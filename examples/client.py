"""Sends a job to an endpoint, local or on Runpod, shows its progress and fetches the video.

    python examples/client.py portrait.png voice.wav -o talk.mp4
    python examples/client.py portrait.png --text "Hello there" --voice am_adam -o talk.mp4
    python examples/client.py --payload examples/two_speakers.json -o talk.mp4

The code is the package `infinitetalk_client` beside this file.
"""

import sys

from infinitetalk_client import main

if __name__ == "__main__":
    sys.exit(main())
