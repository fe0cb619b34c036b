"""InfiniteTalk: a picture or a video, speech and a prompt become a video of a person speaking.

The names that a program needs are here, imported from their modules when they are first asked for: importing this
package alone takes no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infinitetalk.media import Picture, read_waveform
    from infinitetalk.models import Models
    from infinitetalk.pipeline import InfiniteTalkPipeline
    from infinitetalk.runtime.choice import NetworkChoice
    from infinitetalk.sampling import GenerationSettings
    from infinitetalk.speech import normalise_loudness
    from infinitetalk.tiny import talker_paths

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
    "GenerationSettings": "sampling",
    "InfiniteTalkPipeline": "pipeline",
    "Models": "models",
    "NetworkChoice": "runtime.choice",
    "Picture": "media",
    "normalise_loudness": "speech",
    "read_waveform": "media",
    "talker_paths": "tiny",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
