"""InfiniteTalk: turns an image or a video, speech and a prompt into a video of a person speaking.

This package exports the names that a program needs. Each is imported from its module on first use, so that importing
this package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infinitetalk.embedded.tiny import talker_paths
    from infinitetalk.generation.pipeline import InfiniteTalkPipeline
    from infinitetalk.generation.sampling import GenerationSettings
    from infinitetalk.media.decode import Picture, read_waveform
    from infinitetalk.media.speech import normalise_loudness
    from infinitetalk.runtime.choice import NetworkChoice
    from infinitetalk.runtime.models import Models

__version__ = "0.1.0"

__all__ = [
    "GenerationSettings",
    "InfiniteTalkPipeline",
    "Models",
    "NetworkChoice",
    "Picture",
    "normalise_loudness",
    "read_waveform",
    "talker_paths",
]

_MODULES = {
    "GenerationSettings": "generation.sampling",
    "InfiniteTalkPipeline": "generation.pipeline",
    "Models": "runtime.models",
    "NetworkChoice": "runtime.choice",
    "Picture": "media.decode",
    "normalise_loudness": "media.speech",
    "read_waveform": "media.decode",
    "talker_paths": "embedded.tiny",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
