"""The pictures, films and voices that the hour's jobs are made of; each with its origin."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path

from benchmarks.first_hour_record import Medium
from tools.espeak import SAMPLING_RATE, Utterance, say

EXAMPLES = Path(__file__).parents[2] / "examples" / "media"
SEED = 23
OWN = "made by this repository; Apache-2.0"
NASA = "NASA photograph of the astronaut Eileen Collins, NASA Great Images database; public domain"
NAVY = "photograph of the computer scientist Grace Hopper by the U.S. Navy, NH 96919; public domain"

#: Sentences with pauses, of known text: the first is long enough for every figure of docs/measures.md.
SENTENCES = {
    "person1": (
        "Good morning. I am not a real person, but I would like to tell you something. Every word that you hear was "
        "typed before, and my mouth should open when the vowels are loud. Now I am quiet for a moment. And here I go "
        "on: papa, mama, bobby. Watch my lips, they must close for each of them. Thank you very much for listening."
    ),
    "person2": (
        "That is true for me as well. When somebody else is speaking, I keep my mouth shut. Then it is my turn, and "
        "I tell you about the weather: it may be sunny, but it may also rain. Both are fine with me."
    ),
}
VOICES = {
    "person1": Utterance(SENTENCES["person1"], "en-us+f3", 150, 60),
    "person2": Utterance(SENTENCES["person2"], "en-us+m3", 150, 40),
}

#: For the embedded model, which knows drawn faces only; for all others.
DRAWN = {"single": "drawn_portrait.png", "pair": "drawn_pair.png", "video": "drawn_video.mp4"}
PHOTOGRAPHED = {"single": "portrait.jpg", "pair": "two_people.jpg", "video": "talk.mp4"}

ORIGINS = {
    "drawn_portrait.png": ("one drawn person", OWN),
    "drawn_pair.png": ("two drawn people", OWN),
    "drawn_video.mp4": ("a drawn person, while the camera moves", OWN),
    "portrait.jpg": ("head and shoulders", NASA),
    "two_people.jpg": ("the portrait, and that of Grace Hopper", f"{NASA}; {NAVY}"),
    "talk.mp4": ("a camera that moves over the portrait", NASA),
}


@dataclass(frozen=True)
class Media:
    """The files of one hour.

    Attributes:
        single, pair, video: pictures of one person and of two, and a film of one.
        voices: speaker → WAV.
    """

    single: Path
    pair: Path
    video: Path
    voices: dict[str, Path]

    @property
    def described(self) -> list[Medium]:
        """Each file, with its origin."""
        shown = [self.single, self.pair, self.video]
        pictures = [
            Medium(name=path.name, content=ORIGINS[path.name][0], origin=ORIGINS[path.name][1]) for path in shown
        ]
        spoken = [
            Medium(
                name=path.name,
                content=f"“{SENTENCES[speaker]}”, its beginning if the video is shorter",
                origin=f"spoken by espeak-ng, voice {VOICES[speaker].voice}; {OWN}",
            )
            for speaker, path in self.voices.items()
        ]
        return [*pictures, *spoken]


def prepare(folder: Path, is_drawn: bool, video_s: float) -> Media:
    """Speaks the sentences into a folder, cut to so many seconds, and chooses the pictures.

    Args:
        is_drawn: whether the model knows drawn faces only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chosen = DRAWN if is_drawn else PHOTOGRAPHED
    spoken = say(list(VOICES.values()), SEED)
    voices = {}
    for speaker, samples in zip(VOICES, spoken, strict=True):
        voices[speaker] = folder / f"{speaker}.wav"
        with wave.open(str(voices[speaker]), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLING_RATE)
            file.writeframes(samples[: 2 * round(video_s * SAMPLING_RATE)])
    single, pair, video = (EXAMPLES / chosen[what] for what in ("single", "pair", "video"))
    return Media(single, pair, video, voices)
