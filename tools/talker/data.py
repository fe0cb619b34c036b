"""The transformer's training clips: drawn, colour-corrected like the worker's frames, encoded by the trained VAE and
wav2vec2, and kept on disk."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor

from infinitetalk.encoders.image import ImageEncoder
from infinitetalk.encoders.vae import decode_latents, encode_frames
from infinitetalk.encoders.wav2vec2 import SpeechEncoder
from infinitetalk.family import FLASHTALK, INFINITETALK
from infinitetalk.generation.chunks import ChunkGrid, ChunkPlan
from infinitetalk.generation.color import match_color
from infinitetalk.generation.pipeline import first_frame_mask
from infinitetalk.media.speech import normalise_loudness
from infinitetalk.network.regions import default_regions, latent_regions
from tools.talker.networks import HALF_PATCH, PATCH
from tools.talker.rule import SAMPLES_A_FRAME, MouthTrack, follow_speech
from tools.talker.scenes import Scene, random_scene, random_shape, scaled, to_video
from tools.talker.voices import TRAINING_VOICES, random_speech

#: Frames of speech for a clip; the clip starts at a different place in them each time.
SPEECH_FRAMES = 120
#: Motion frames of InfiniteTalk's chunks.
MOTION_FRAMES = 9
BEGINS_SHARE = 0.45
#: Frames of the encoded reference; the latents of further grey frames repeat the last one.
REFERENCE_FRAMES = 17
#: Weight of a latent at a mouth.
MOUTH_WEIGHT = 4.0


@dataclass(frozen=True)
class ClipKind:
    """What the clips of one training are.

    Attributes:
        lengths: possible numbers of frames: the length of the worker's chunks, or half of it, which is cheaper.
        shares: the share of each.
        motion_frames: frames that a clip takes over from the frames before.
        past_frames: frames before a clip that are encoded and decoded with its motion frames, like the end of the
            previous chunk.
        most_people: largest number of people.
    """

    lengths: tuple[int, ...]
    shares: tuple[float, ...]
    motion_frames: int
    past_frames: int
    most_people: int


GUIDED_CLIPS = ClipKind((81, 41), (0.45, 0.55), MOTION_FRAMES, past_frames=16, most_people=2)
FLASHTALK_CLIPS = ClipKind(
    (FLASHTALK.defaults.frame_num,), (1.0,), FLASHTALK.defaults.motion_frame, past_frames=8, most_people=1
)


@dataclass(frozen=True)
class Drawing:
    """What a clip shows, drawn at any size.

    Attributes:
        scene: the people, at the size of the clip.
        tracks: their mouths.
        start: the clip's first frame in `tracks`.
        past: number of frames drawn before it.
        num_frames: its length.
        begins: whether it starts with the portrait.
    """

    scene: Scene
    tracks: list[MouthTrack]
    start: int
    past: int
    num_frames: int
    begins: bool

    def at_full_size(self) -> "Drawing":
        """The same of a clip at half size, at full size."""
        return replace(self, scene=scaled(self.scene, PATCH, HALF_PATCH))

    def portrait(self) -> Tensor:
        """(1, 3, 1, H, W)."""
        return to_video(self.scene.portrait()[None])

    def video(self) -> Tensor:
        """(1, 3, past + num_frames, H, W), with the portrait's colours."""
        drawn = self.scene.clip(self.tracks, self.start - self.past, self.past + self.num_frames)
        if self.begins:
            drawn[0] = self.scene.portrait()
        return match_color(to_video(drawn), self.portrait(), 1.0)


@dataclass(frozen=True)
class Clip:
    """One training example, in float16.

    Attributes:
        latents: (16, t, h, w) of the clip.
        given: (16, n, h, w), its leading latents as the worker has them: the portrait's if the clip starts with it,
            else latents of frames that were decoded, colour-corrected and encoded again.
        reference: (16, t, h, w) of the portrait followed by grey.
        image_embeds: (tokens, dim), CLIP features of the portrait.
        speech: (people, SPEECH_FRAMES, layers, channels).
        start: the clip's first frame in `speech`.
        weights: (h, w), the weight of each of a frame's latents, larger at mouths.
    """

    latents: Tensor
    given: Tensor
    reference: Tensor
    image_embeds: Tensor
    speech: Tensor
    start: int
    weights: Tensor

    def windows(self) -> Tensor:
        """Speech as the network's input: float32 (people, frames, window, layers, channels)."""
        num_frames = 4 * (self.latents.shape[1] - 1) + 1
        plan = ChunkPlan(
            index=0,
            start=self.start,
            num_frames=num_frames,
            num_motion_frames=0,
            num_new_frames=num_frames,
            num_held_frames=0,
            num_fade_frames=0,
        )
        # The windows do not depend on the motion frames.
        return self.speech[:, ChunkGrid(num_frames, 1).window_rows(plan, SPEECH_FRAMES)].float()

    def condition(self) -> Tensor:
        """Float32 (1, 20, t, h, w): mask and reference latents."""
        reference = self.reference.float()[None]
        return torch.cat([first_frame_mask(reference, INFINITETALK.vae_scale_factor_temporal), reference], dim=1)

    def regions(self) -> Tensor | None:
        """The people's regions at latent size; None for one person."""
        if len(self.speech) == 1:
            return None
        factor = INFINITETALK.vae_scale_factor_spatial
        height, width = (factor * side for side in self.latents.shape[-2:])
        return latent_regions(default_regions(len(self.speech), height, width), height, width, factor)


class ClipMaker:
    """Makes clip number n of a seed, drawn at the size of the VAE."""

    def __init__(
        self, vae: AutoencoderKLWan, speech_encoder: SpeechEncoder, image_encoder: ImageEncoder, kind: ClipKind
    ) -> None:
        self.vae, self.speech_encoder, self.image_encoder = vae, speech_encoder, image_encoder
        self.kind = kind

    def make(self, seed: int, number: int, is_silent: bool = False) -> Clip:
        """The clip; the same arguments give the same clip. In a silent one nobody speaks."""
        return self.make_with_drawing(seed, number, is_silent)[0]

    @torch.no_grad()
    def make_with_drawing(self, seed: int, number: int, is_silent: bool = False) -> tuple[Clip, Drawing]:
        """The clip, and what it shows."""
        kind = self.kind
        generator = np.random.default_rng([seed, 6, number])
        patch = self.vae.config.patch_size
        shape = random_shape(generator)
        while shape[2] > kind.most_people:
            shape = random_shape(generator)
        scene = scaled(random_scene(generator, shape), patch, PATCH)
        waveforms = self._speech(generator, len(scene.faces))
        if is_silent:
            waveforms = [np.zeros_like(waveform) for waveform in waveforms]
        begins = bool(generator.random() < BEGINS_SHARE)
        num_frames = int(generator.choice(kind.lengths, p=kind.shares))
        start = 0 if begins else int(generator.integers(kind.past_frames + 1, SPEECH_FRAMES - num_frames))
        tracks = [follow_speech(waveform) for waveform in waveforms]
        drawing = Drawing(scene, tracks, start, 0 if begins else kind.past_frames, num_frames, begins)
        rows = [self.speech_encoder(normalise_loudness(waveform)) for waveform in waveforms]
        portrait, shown, past = drawing.portrait(), drawing.video(), drawing.past
        grey = portrait.new_zeros(1, 3, REFERENCE_FRAMES - 1, scene.height, scene.width)
        reference = encode_frames(self.vae, torch.cat([portrait, grey], dim=2))[0]
        latents = encode_frames(self.vae, shown[:, :, past:])[0]
        given = reference[:, :1] if begins else self._again(shown[:, :, : past + kind.motion_frames], portrait)
        missing = latents.shape[1] - reference.shape[1]
        clip = Clip(
            latents=latents.half(),
            given=given.half(),
            reference=torch.cat([reference, reference[:, -1:].expand(-1, missing, -1, -1)], dim=1).half(),
            image_embeds=self.image_encoder(portrait[:, :, 0])[0].half(),
            speech=torch.stack([row.rows(torch.arange(SPEECH_FRAMES)) for row in rows]).half(),
            start=start,
            weights=F.avg_pool2d(scene.mouth_weights(MOUTH_WEIGHT)[None], 4 * patch)[0].half(),
        )
        return clip, drawing

    def _again(self, video: Tensor, portrait: Tensor) -> Tensor:
        """The motion latents after a chunk that ends with `video`: (16, n, h, w)."""
        decoded = decode_latents(self.vae, encode_frames(self.vae, video))
        shown = match_color(decoded, portrait, 1.0)
        return encode_frames(self.vae, shown[:, :, -self.kind.motion_frames :])[0]

    def _speech(self, generator: np.random.Generator, people: int) -> list[np.ndarray]:
        samples = SPEECH_FRAMES * SAMPLES_A_FRAME
        waveforms = [random_speech(generator, TRAINING_VOICES, samples) for _ in range(people)]
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


def write_clips(folder: Path, maker: ClipMaker, seed: int, num_clips: int, is_silent: bool) -> None:
    """Writes the missing ones of the first `num_clips` clips of a seed, each with what it shows."""
    folder.mkdir(exist_ok=True)
    for number in range(num_clips):
        path = folder / f"{number:05}.pt"
        if not path.exists():
            clip, drawing = maker.make_with_drawing(seed, number, is_silent)
            torch.save((asdict(clip), drawing), scratch := path.with_suffix(".part"))
            scratch.rename(path)


def load_scenes(folder: Path) -> list[tuple[Clip, Drawing]]:
    """The clips kept in a folder, in order, each with what it shows."""
    kept = [torch.load(path, weights_only=False) for path in sorted(folder.glob("*.pt"))]
    return [(Clip(**tensors), drawing) for tensors, drawing in kept]


def load_clips(folder: Path) -> list[Clip]:
    """The clips kept in a folder, in order."""
    return [clip for clip, _ in load_scenes(folder)]
