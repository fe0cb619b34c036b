"""Trains the tiny VAE: first on still pictures, where its causal convolutions see one frame and are two-dimensional,
then on short clips, where each kernel's earlier frames begin at zero."""

import types
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample, patchify, unpatchify
from torch import Tensor

from examples.tiny.faces import Pose, draw, mouth_boxes, poses, random_background, random_face
from examples.tiny.loop import TrainingLoop
from examples.tiny.networks import make_vae
from examples.tiny.rule import QUICK_MANNER, MouthTrack, follow_speech
from examples.tiny.voices import TRAINING_VOICES, Synthesiser, random_speech

#: (height, width, people) of what is drawn, with the share of each.
SHAPES: tuple[tuple[int, int, int], ...] = ((64, 64, 1), (48, 96, 2))
SHAPE_SHARES = (0.65, 0.35)
BATCH = 8
CLIP_FRAMES = 9
CLIP_BATCH = 2
MOUTH_WEIGHT = 3.0
LATENT_NOISE = 0.05
#: Side in pixels of the squares around mouths, how many at once, and every how many steps whole pictures come instead.
CROP = 32
CROP_BATCH = 4
WHOLE_EVERY = 5
#: How much the change from frame to frame counts beside the frames.
CHANGE_WEIGHT = 1.0


def train_on_pictures(folder: Path, num_steps: int, seed: int) -> None:
    """The spatial weights, into `folder`/pictures.pt."""
    torch.manual_seed(seed)
    vae = make_vae()
    for module in vae.modules():
        if isinstance(module, WanCausalConv3d):
            module.forward = types.MethodType(_convolve_single_frame, module)
    loop = TrainingLoop(folder / "pictures.pt", vae, num_steps, learning_rate=4e-3)
    for step in loop:
        generator = np.random.default_rng([seed, 1, step])
        height, width, people = SHAPES[generator.choice(len(SHAPES), p=SHAPE_SHARES)]
        pictures = torch.stack([_to_tensor(_random_picture(generator, height, width, people)) for _ in range(BATCH)])
        latents = vae.quant_conv(vae.encoder(patchify(pictures, 2)))[:, :16]
        noisy = latents + LATENT_NOISE * torch.randn_like(latents)
        decoded = unpatchify(vae.decoder(vae.post_quant_conv(noisy)), 2)
        loop.learn(_loss(decoded, pictures, _weights(people, height, width), latents), step)


def train_on_clips(folder: Path, num_steps: int, seed: int) -> None:
    """All weights, from `folder`/pictures.pt into `folder`/clips.pt."""
    torch.manual_seed(seed)
    vae = make_vae()
    vae.load_state_dict(torch.load(folder / "pictures.pt")["average"])
    _hold_still(vae)
    synthesiser, generator = Synthesiser(), np.random.default_rng([seed, 2])
    tracks = [_quick_track(synthesiser, generator) for _ in range(40)]
    loop = TrainingLoop(folder / "clips.pt", vae, num_steps, learning_rate=1.5e-3)
    for step in loop:
        generator = np.random.default_rng([seed, 3, step])
        height, width, people = SHAPES[generator.choice(len(SHAPES), p=SHAPE_SHARES)]
        clips = [_random_clip(generator, tracks, height, width, people) for _ in range(CLIP_BATCH)]
        videos = torch.stack([_to_tensor(clip) for clip in clips])
        latents = vae.encode(videos).latent_dist.mode()
        decoded = vae.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample
        loop.learn(_loss(decoded, videos, _weights(people, height, width), latents), step)


def train_on_mouths(folder: Path, num_steps: int, seed: int) -> None:
    """How mouths move within the four frames of a latent, on squares around them: `folder`/clips.pt to mouths.pt."""
    torch.manual_seed(seed)
    vae = make_vae()
    vae.load_state_dict(torch.load(folder / "clips.pt")["average"])
    synthesiser, generator = Synthesiser(), np.random.default_rng([seed, 8])
    tracks = [follow_speech(random_speech(synthesiser, generator, TRAINING_VOICES, 80_000)) for _ in range(40)]
    loop = TrainingLoop(folder / "mouths.pt", vae, num_steps, learning_rate=1.2e-3)
    for step in loop:
        generator = np.random.default_rng([seed, 9, step])
        height, width, people = SHAPES[generator.choice(len(SHAPES), p=SHAPE_SHARES)]
        is_whole = step % WHOLE_EVERY == 0
        count = 1 if is_whole else CROP_BATCH
        videos = torch.stack([_to_tensor(_random_clip(generator, tracks, height, width, people)) for _ in range(count)])
        weights = _weights(people, height, width)
        if not is_whole:
            left, top, right, bottom = mouth_boxes(people, height, width)[-1]
            row, column = (round(((low + high) / 2 - CROP / 2) / 8) * 8 for low, high in ((top, bottom), (left, right)))
            videos = videos[..., row : row + CROP, column : column + CROP]
            weights = weights[row : row + CROP, column : column + CROP]
        latents = vae.encode(videos).latent_dist.mode()
        decoded = vae.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample
        change = ((decoded.diff(dim=2) - videos.diff(dim=2)).abs() * weights / weights.mean()).mean()
        loop.learn(_loss(decoded, videos, weights, latents) + CHANGE_WEIGHT * change, step)


def _quick_track(synthesiser: Synthesiser, generator: np.random.Generator) -> MouthTrack:
    return follow_speech(random_speech(synthesiser, generator, TRAINING_VOICES, 80_000), QUICK_MANNER)


def _convolve_single_frame(self: WanCausalConv3d, frame: Tensor, cache_x: None = None) -> Tensor:
    """What a causal convolution does to the first frame: all but the last slice of its kernel sees nothing."""
    padding = self.kernel_size[-1] // 2
    return F.conv2d(frame[:, :, 0], self.weight[:, :, -1], self.bias, padding=padding)[:, :, None]


@torch.no_grad()
def _hold_still(vae: AutoencoderKLWan) -> None:
    """Starts from the network of single frames: kernels look at the present, and four frames are one repeated."""
    for module in vae.modules():
        if isinstance(module, WanCausalConv3d):
            module.weight[:, :, :-1] = 0.0
    for module in vae.modules():
        if isinstance(module, WanResample) and hasattr(module, "time_conv"):
            convolution = module.time_conv
            channels = convolution.in_channels
            convolution.weight.zero_()
            convolution.bias.zero_()
            for half in convolution.weight.split(channels):
                half[:, :, -1, 0, 0] = torch.eye(channels)


def _weights(people: int, height: int, width: int) -> Tensor:
    """How much each pixel counts: (height, width), more where mouths are."""
    weights = torch.ones(height, width)
    for left, top, right, bottom in mouth_boxes(people, height, width):
        half = (right - left) // 2
        weights[top:bottom, left - half : right + half] = MOUTH_WEIGHT
    return weights


def _loss(decoded: Tensor, pictures: Tensor, weights: Tensor, latents: Tensor) -> Tensor:
    """Mean absolute error by weight, and a bound on the latents' size."""
    error = ((decoded - pictures).abs() * weights / weights.mean()).mean()
    return error + 1e-3 * (latents.square().mean() - 1.0).relu()


def _random_picture(generator: np.random.Generator, height: int, width: int, people: int) -> np.ndarray:
    cast = [
        (
            random_face(generator),
            Pose(
                opening=float(generator.random() ** 1.5),
                width=float(generator.random()),
                shift=float(generator.uniform(-0.02, 0.02)),
                eyes_closed=bool(generator.random() < 0.08),
            ),
        )
        for _ in range(people)
    ]
    return draw(cast, random_background(generator), height, width)[None]


def _random_clip(
    generator: np.random.Generator, tracks: list[MouthTrack], height: int, width: int, people: int
) -> np.ndarray:
    cast = []
    for _ in range(people):
        track = tracks[generator.integers(len(tracks))]
        part = slice(start := generator.integers(len(track.opening) - CLIP_FRAMES), start + CLIP_FRAMES)
        face = random_face(generator)
        cast.append((face, poses(face, MouthTrack(track.opening[part], track.width[part]))))
    background = random_background(generator)
    frames = [draw([(face, p[i]) for face, p in cast], background, height, width) for i in range(CLIP_FRAMES)]
    return np.stack(frames)


def _to_tensor(frames: np.ndarray) -> Tensor:
    """uint8 (T, height, width, 3) to float (3, T, height, width) in [-1, 1]."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2) / 127.5 - 1.0
