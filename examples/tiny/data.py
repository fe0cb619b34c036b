"""The clips that the transformer learns from: drawn, encoded by the trained VAE and wav2vec2, and kept on disk."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from examples.tiny.faces import Face, Pose, draw, poses, random_background, random_face
from examples.tiny.rule import SAMPLES_A_FRAME, MouthTrack, follow_speech
from examples.tiny.voices import TRAINING_VOICES, Synthesiser, random_speech
from infinitetalk.chunks import ChunkPlan, window_rows
from infinitetalk.image import ImageEncoder
from infinitetalk.pipeline import first_frame_mask
from infinitetalk.regions import default_regions, latent_regions
from infinitetalk.speech import normalise_loudness
from infinitetalk.vae import encode_frames
from infinitetalk.wav2vec2 import SpeechEncoder

CHUNK_FRAMES = 81
#: Frames of speech that a clip has; where it begins in them differs.
SPEECH_FRAMES = 100
#: Of the reference frame, only the first latent frames are encoded; grey that follows grey stays as the last of them.
REFERENCE_FRAMES = 17
MOTION_LATENTS = 3
#: Height, width and people of the clips, with the share of each.
SHAPES: tuple[tuple[int, int, int], ...] = ((64, 64, 1), (48, 96, 2), (80, 48, 1))
SHAPE_SHARES = (0.55, 0.4, 0.05)


@dataclass(frozen=True)
class Clip:
    """What one training example holds, in float16.

    Attributes:
        latents: (16, t, h, w) of the clip.
        reference: (16, t, h, w) of the portrait followed by grey.
        image_embeds: (tokens, dim), CLIP features of the portrait.
        speech: (people, SPEECH_FRAMES, layers, channels).
        start: the clip's first frame in `speech`.
        num_motion_latents: leading latent frames that are given: 1 where the clip begins with its portrait.
    """

    latents: Tensor
    reference: Tensor
    image_embeds: Tensor
    speech: Tensor
    start: int
    num_motion_latents: int

    def windows(self) -> Tensor:
        """Speech as the network takes it: float32 (people, CHUNK_FRAMES, window, layers, channels)."""
        plan = ChunkPlan(0, self.start, CHUNK_FRAMES, 0, CHUNK_FRAMES, extends_tail=False)
        return self.speech[:, window_rows(plan, SPEECH_FRAMES)].float()

    def condition(self) -> Tensor:
        """Float32 (1, 20, t, h, w): mask and reference latents."""
        reference = self.reference.float()[None]
        return torch.cat([first_frame_mask(reference), reference], dim=1)

    def regions(self) -> Tensor | None:
        """Where the people are, at latent size; None for one."""
        if len(self.speech) == 1:
            return None
        height, width = (8 * side for side in self.latents.shape[-2:])
        return latent_regions(default_regions(len(self.speech), height, width), height, width)


class ClipMaker:
    """Makes clip number n of a seed."""

    def __init__(self, vae: AutoencoderKLWan, speech_encoder: SpeechEncoder, image_encoder: ImageEncoder) -> None:
        self.vae, self.speech_encoder, self.image_encoder = vae, speech_encoder, image_encoder
        self.synthesiser = Synthesiser()

    @torch.no_grad()
    def make(self, seed: int, number: int) -> Clip:
        """The clip, the same for the same seed and number."""
        generator = np.random.default_rng([seed, 6, number])
        height, width, people = SHAPES[generator.choice(len(SHAPES), p=SHAPE_SHARES)]
        waveforms = self._speech(generator, people)
        begins = bool(generator.random() < 0.55)
        start = 0 if begins else int(generator.integers(1, SPEECH_FRAMES - CHUNK_FRAMES))
        faces = [random_face(generator) for _ in range(people)]
        background = random_background(generator)
        tracks = [follow_speech(waveform) for waveform in waveforms]
        portrait = draw([(face, Pose()) for face in faces], background, height, width)
        frames = draw_clip(faces, tracks, background, height, width, start)[:CHUNK_FRAMES]
        if begins:
            frames[0] = portrait
        rows = [self.speech_encoder(normalise_loudness(waveform)) for waveform in waveforms]
        pixels = to_video(portrait[None])
        grey = pixels.new_zeros(1, 3, REFERENCE_FRAMES - 1, height, width)
        reference = encode_frames(self.vae, torch.cat([pixels, grey], dim=2))[0]
        latents = encode_frames(self.vae, to_video(frames))[0]
        missing = latents.shape[1] - reference.shape[1]
        return Clip(
            latents=latents.half(),
            reference=torch.cat([reference, reference[:, -1:].expand(-1, missing, -1, -1)], dim=1).half(),
            image_embeds=self.image_encoder(pixels[:, :, 0])[0].half(),
            speech=torch.stack([row.rows(torch.arange(SPEECH_FRAMES)) for row in rows]).half(),
            start=start,
            num_motion_latents=1 if begins else MOTION_LATENTS,
        )

    def _speech(self, generator: np.random.Generator, people: int) -> list[np.ndarray]:
        samples = SPEECH_FRAMES * SAMPLES_A_FRAME
        waveforms = [random_speech(self.synthesiser, generator, TRAINING_VOICES, samples) for _ in range(people)]
        kind = generator.random()
        cut = int(generator.uniform(0.3, 0.7) * samples)
        if people == 1 and kind < 0.04:
            waveforms[0][:] = 0.0
        elif people == 1 and kind < 0.12:
            waveforms[0][:cut] = 0.0
        elif people == 2 and kind < 0.2:
            waveforms[int(generator.integers(2))][:] = 0.0
        elif people == 2 and kind < 0.35:
            first = int(generator.integers(2))
            waveforms[first][cut:] = 0.0
            waveforms[1 - first][:cut] = 0.0
        return waveforms


def draw_clip(
    faces: list[Face],
    tracks: list[MouthTrack],
    background: tuple[int, int, int],
    height: int,
    width: int,
    start: int = 0,
) -> np.ndarray:
    """People who speak, from frame `start` of their tracks: uint8 (frames, height, width, 3)."""
    people = [(face, poses(face, track)) for face, track in zip(faces, tracks, strict=True)]
    num_frames = len(tracks[0].opening)
    return np.stack(
        [draw([(face, pose[i]) for face, pose in people], background, height, width) for i in range(start, num_frames)]
    )


def to_video(frames: np.ndarray) -> Tensor:
    """uint8 (T, height, width, 3) to float (1, 3, T, height, width) in [-1, 1]."""
    return (torch.from_numpy(frames).permute(3, 0, 1, 2) / 127.5 - 1.0)[None]


def load_clips(folder: Path) -> list[Clip]:
    """The clips kept in a folder, in order."""
    return [Clip(**torch.load(path)) for path in sorted(folder.glob("*.pt"))]
