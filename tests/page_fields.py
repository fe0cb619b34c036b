"""What the page's fields hold in tests."""

from pathlib import Path
from typing import Any

MEDIA = Path(__file__).parents[1] / "examples/media"

FIELDS: dict[str, Any] = {
    "source": str(MEDIA / "portrait.jpg"),
    "voice1": None,
    "voice2": None,
    "text": "",
    "speaker1": "am_adam",
    "speaker2": "",
    "prompt": "A person talks",
    "recipe": "",
    "regions": "halves",
    "box1": "",
    "box2": "",
    "audio_type": "para",
    "script": "",
    "begin1": 0,
    "begin2": 0,
    "gate": False,
    "later_prompts": "",
    "later_pictures": None,
    "later_times": "",
    "keep": "none",
    "strength": 1.0,
    "margin": "0.5",
    "feather": "",
    "fps": "",
    "mix": False,
    "mix_db": -12,
    "scene_seg": False,
    "size": "infinitetalk-480",
    "width": 832,
    "height": 480,
    "mode": "clip",
    "frame_num": 9,
    "max_frame_num": 9,
    "motion_frame": 5,
    "crossfade_frame": 4,
    "sample_steps": 1,
    "sample_text_guide_scale": 1.0,
    "sample_audio_guide_scale": 1.0,
    "color_correction_strength": 1.0,
    "base_seed": 42,
    "negative_prompt": "",
    "nag": False,
    "nag_scale": 11.0,
    "use_teacache": False,
    "use_apg": False,
}
"""The fields of the page, by their names in it."""

ONE_VOICE = {"voice1": str(MEDIA / "speech.wav")}
TWO_VOICES = ONE_VOICE | {"voice2": str(MEDIA / "speech2.wav")}
OWN_BOXES = {"regions": "boxes", "box1": "10, 20, 200, 300", "box2": "220, 20, 400, 300"}
TWO_PEOPLE = OWN_BOXES | {"source": str(MEDIA / "two_speakers.jpg")}
FILM = {"source": str(MEDIA / "talk.mp4")}
