"""Sends a job to an endpoint, local or on Runpod, shows its progress and fetches the video.

    infinitetalk-client portrait.png voice.wav -o talk.mp4
    infinitetalk-client portrait.png --text "Hello there" --voice am_adam -o talk.mp4
    infinitetalk-client portrait.png voice.wav --prices
    infinitetalk-client portrait.png voice.wav --recipe flashtalk -o talk.mp4
    infinitetalk-client --payload two_speakers.json -o talk.mp4
    infinitetalk-client --job ID -o talk.mp4

`pip install ./examples` installs the command; `python examples/client.py` is the same without installing it. In Python,
`InfiniteTalkClient` does the same; whatever goes wrong is an `InfiniteTalkError`, whose text is a sentence.

The endpoint is that of `make serve` unless --endpoint or RUNPOD_ENDPOINT_ID names one on Runpod (key: RUNPOD_API_KEY).
Ctrl-C asks whether the job is cancelled or left; without a terminal, it cancels. SIGTERM leaves the job. Needs requests
and tqdm, and boto3 (`pip install './examples[s3]'`) if files are too large for a request to Runpod.
"""

from infinitetalk_client.command import main
from infinitetalk_client.endpoint import (
    INLINE_BYTES,
    LOCAL_KEY,
    LOCAL_URL,
    RECIPES,
    RUNPOD_URL,
    InfiniteTalkClient,
)
from infinitetalk_client.errors import EndpointError, FetchError, InfiniteTalkError, JobError, MediaError
from infinitetalk_client.shown import ProgressBar, plan_lines, recipe_line

__all__ = [
    "INLINE_BYTES",
    "LOCAL_KEY",
    "LOCAL_URL",
    "RECIPES",
    "RUNPOD_URL",
    "EndpointError",
    "FetchError",
    "InfiniteTalkClient",
    "InfiniteTalkError",
    "JobError",
    "MediaError",
    "ProgressBar",
    "main",
    "plan_lines",
    "recipe_line",
]
