"""Trains the tiny VAE at half size: first on still images, where its causal convolutions see one frame and are
two-dimensional, then on short clips, where the kernels' weights for earlier frames start at zero."""

import types
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample, patchify, unpatchify
from torch import Tensor

from infinitetalk.generation.color import match_color
from tools.talker.data import MOTION_FRAMES
from tools.talker.faces import Pose
from tools.talker.loop import TrainingLoop
from tools.talker.networks import HALF_PATCH, PATCH, make_vae
from tools.talker.rule import MANNER, QUICK_MANNER, Manner, MouthTrack, follow_speech
from tools.talker.scenes import Scene, random_scene, random_shape, scaled, to_video
from tools.talker.voices import TRAINING_VOICES, random_speech

BATCH = 8
CLIP_FRAMES = 9
CLIP_BATCH = 2
#: Every this many steps, one long clip replaces the `CLIP_BATCH` short ones.
LONG_EVERY = 4
LONG_FRAMES = 17
MOUTH_WEIGHT = 3.0
#: Weight of mouths in clips, where mainly mouths move.
CLIP_MOUTH_WEIGHT = 6.0
#: Noise on latents, because sampled latents have errors.
LATENT_NOISE = 0.05
CLIP_LATENT_NOISE = 0.1
LATENT_SIZE_WEIGHT = 1e-3
#: Weight of the change from frame to frame, relative to the frames.
CHANGE_WEIGHT = 1.0
#: Additional weight of the change from one chunk to the next.
BORDER_WEIGHT = 0.7
#: Weight of a latent's change from the previous one: still content must look the same in all latents, including the
#: first, which holds one frame and not four.
STILLNESS_WEIGHT = 0.05
#: Every this many steps, decoded frames are encoded and decoded again, as between chunks.
AGAIN_EVERY = 4
AGAIN_FRAMES = 5
#: Frames of the first chunk before the second one starts.
PAST_FRAMES = 8
#: Weight of the difference between latents and those from which their frames were decoded.
SAME_LATENTS_WEIGHT = 0.1
#: Largest noise on the latents of a chunk that is not the last, in `CLIP_LATENT_NOISE`.
MOST_ENDED_NOISE = 1.5
#: Number of tracks of the rule's mouths, and of quicker ones.
NUM_TRACKS, NUM_QUICK_TRACKS = 60, 20


def train_on_pictures(folder: Path, num_steps: int, seed: int) -> None:
    """Trains the spatial weights into `folder`/pictures.pt."""
    torch.manual_seed(seed)
    vae = make_vae(HALF_PATCH)
    for module in vae.modules():
        if isinstance(module, WanCausalConv3d):
            module.forward = types.MethodType(_convolve_single_frame, module)
    loop = TrainingLoop(folder / "pictures.pt", vae, num_steps, seed, learning_rate=4e-3, muon_prefix="")
    for generator in loop:
        scenes = _half_scenes(generator, BATCH)
        pictures = torch.cat([to_video(_random_picture(generator, scene)) for scene in scenes])
        latents = vae.quant_conv(vae.encoder(patchify(pictures, HALF_PATCH)))[:, :16]
        noisy = latents + LATENT_NOISE * torch.randn_like(latents)
        decoded = unpatchify(vae.decoder(vae.post_quant_conv(noisy)), HALF_PATCH)
        error = _error(decoded, pictures, _weights(scenes, MOUTH_WEIGHT))
        loop.learn(error + _size_loss(latents))


def train_on_clips(folder: Path, num_steps: int, seed: int) -> None:
    """Trains all weights, from `folder`/pictures.pt into `folder`/clips.pt."""
    vae = make_vae(HALF_PATCH)
    vae.load_state_dict(torch.load(folder / "pictures.pt")["average"])
    _hold_still(vae)
    tracks = random_tracks(seed, NUM_TRACKS, MANNER) + random_tracks(seed, NUM_QUICK_TRACKS, QUICK_MANNER)
    path = folder / "clips.pt"
    loop = TrainingLoop(path, vae, num_steps, seed, learning_rate=1.5e-3, decay_share=0.7, muon_prefix="")
    for generator in loop:
        count, num_frames = (1, LONG_FRAMES) if loop.step % LONG_EVERY == 0 else (CLIP_BATCH, CLIP_FRAMES)
        scenes = _half_scenes(generator, count)
        videos = torch.cat([_random_clip(generator, scene, tracks, num_frames) for scene in scenes])
        weights = _weights(scenes, CLIP_MOUTH_WEIGHT)
        loss, decoded = _clips_loss(vae, videos, weights)
        if loop.step % AGAIN_EVERY == 1:
            again = vae.decode(vae.encode(decoded[:, :, -AGAIN_FRAMES:]).latent_dist.mode()).sample
            loss = loss + _error(again, videos[:, :, -AGAIN_FRAMES:], weights)
        loop.learn(loss)


def train_on_chunks(folder: Path, num_steps: int, seed: int) -> None:
    """Trains all weights, from `folder`/clips.pt into `folder`/chunks.pt, on frames with the portrait's colours, like
    the worker's. Each step has clips, as above, and a video in two chunks; the second chunk starts with the motion
    latents of the first."""
    vae = make_vae(HALF_PATCH)
    vae.load_state_dict(torch.load(folder / "clips.pt")["average"])
    tracks = random_tracks(seed, NUM_TRACKS, MANNER)
    path = folder / "chunks.pt"
    loop = TrainingLoop(path, vae, num_steps, seed, learning_rate=1e-3, decay_share=0.8, muon_prefix="")
    for generator in loop:
        scenes = _half_scenes(generator, CLIP_BATCH)
        clips = [corrected_clip(generator, scene, tracks, CLIP_FRAMES) for scene in scenes]
        videos = torch.cat([video for _, video in clips])
        clips_loss, _ = _clips_loss(vae, videos, _weights(scenes, CLIP_MOUTH_WEIGHT))
        scenes = _half_scenes(generator, 1)
        portrait, video = corrected_clip(generator, scenes[0], tracks, PAST_FRAMES + LONG_FRAMES)
        chunks_loss = _chunks_loss(vae, portrait, video, _weights(scenes, CLIP_MOUTH_WEIGHT))
        loop.learn((clips_loss + chunks_loss) / 2)


def _clips_loss(vae: AutoencoderKLWan, videos: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of clips (B, 3, T, H, W) after encoding and decoding, and the decoded clips."""
    latents = vae.encode(videos).latent_dist.mode()
    decoded = vae.decode(latents + noise_like(latents)).sample
    loss = _error_with_change(decoded, videos, weights) + STILLNESS_WEIGHT * latents.diff(dim=2).abs().mean()
    return loss + _size_loss(latents), decoded


def _chunks_loss(vae: AutoencoderKLWan, portrait: Tensor, video: Tensor, weights: Tensor) -> Tensor:
    """The loss of a video (1, 3, PAST_FRAMES + LONG_FRAMES, H, W) in two chunks, the first already decoded: its shown
    frames must encode to their original latents, decode to themselves again, and join the frames after them."""
    with torch.no_grad():
        ended = vae.encode(video[:, :, :LONG_FRAMES]).latent_dist.mode()
        ended += MOST_ENDED_NOISE * torch.rand(1) * noise_like(ended)
        shown = match_color(vae.decode(ended).sample.clamp(-1.0, 1.0), portrait, 1.0)
    motion = vae.encode(shown[:, :, -MOTION_FRAMES:]).latent_dist.mode()
    num_given = motion.shape[2]
    upcoming = vae.encode(video[:, :, PAST_FRAMES:]).latent_dist.mode()[:, :, num_given:]
    decoded = vae.decode(torch.cat([motion, upcoming + noise_like(upcoming)], dim=2)).sample
    again = _error(decoded[:, :, :MOTION_FRAMES], shown[:, :, -MOTION_FRAMES:], weights)
    same = (motion[:, :, 1:] - ended[:, :, 1 - num_given :]).abs().mean()
    join = _join_error(shown, decoded, video[:, :, LONG_FRAMES - 1 :], weights)
    return join + again + SAME_LATENTS_WEIGHT * same


def _join_error(shown: Tensor, decoded: Tensor, video: Tensor, weights: Tensor) -> Tensor:
    """The error of a chunk, `decoded`, that follows another, `shown`; `video` starts one frame before the new ones."""
    joined = torch.cat([shown[:, :, -1:], decoded[:, :, MOTION_FRAMES:]], dim=2)
    border = _error(joined[:, :, :2].diff(dim=2), video[:, :, :2].diff(dim=2), weights)
    return _error_with_change(joined, video, weights) + BORDER_WEIGHT * border


def noise_like(latents: Tensor) -> Tensor:
    return CLIP_LATENT_NOISE * torch.randn_like(latents)


def random_tracks(seed: int, number: int, manner: Manner) -> list[MouthTrack]:
    generator = np.random.default_rng([seed, manner.window])
    return [follow_speech(random_speech(generator, TRAINING_VOICES, 80_000), manner) for _ in range(number)]


def random_scenes(generator: np.random.Generator, shape: tuple[int, int, int], number: int) -> list[Scene]:
    """Random scenes, all of one shape."""
    return [random_scene(generator, shape) for _ in range(number)]


def _half_scenes(generator: np.random.Generator, number: int) -> list[Scene]:
    """Random scenes of one random shape, at half size."""
    scenes = random_scenes(generator, random_shape(generator), number)
    return [scaled(scene, HALF_PATCH, PATCH) for scene in scenes]


def _convolve_single_frame(self: WanCausalConv3d, frame: Tensor, cache_x: None = None) -> Tensor:
    """A causal convolution on the first frame, where all but the last slice of its kernel see only zeros."""
    padding = self.kernel_size[-1] // 2
    return F.conv2d(frame[:, :, 0], self.weight[:, :, -1], self.bias, padding=padding)[:, :, None]


@torch.no_grad()
def _hold_still(vae: AutoencoderKLWan) -> None:
    """Extends the network of single frames to clips: kernels use only the current frame, and four frames repeat one."""
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


def _weights(scenes: list[Scene], mouth_weight: float) -> Tensor:
    """The weight of each pixel: (B, 1, 1, H, W), larger at mouths."""
    return torch.stack([scene.mouth_weights(mouth_weight) for scene in scenes])[:, None, None]


def _size_loss(latents: Tensor) -> Tensor:
    """The loss that bounds the latents' size."""
    return LATENT_SIZE_WEIGHT * (latents.square().mean() - 1.0).relu()


def _error_with_change(decoded: Tensor, videos: Tensor, weights: Tensor) -> Tensor:
    """The error of frames (B, 3, T, H, W), and of the change from each to the next."""
    return _error(decoded, videos, weights) + CHANGE_WEIGHT * _error(decoded.diff(dim=2), videos.diff(dim=2), weights)


def _error(decoded: Tensor, pictures: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean absolute error."""
    return ((decoded - pictures).abs() * weights / weights.mean()).mean()


def _random_picture(generator: np.random.Generator, scene: Scene) -> np.ndarray:
    """The people at a random moment: uint8 (1, height, width, 3)."""
    told = [
        Pose(
            opening=float(generator.random() ** 1.5),
            width=float(generator.random()),
            shift=float(generator.uniform(-0.02, 0.02)),
            eyes_closed=bool(generator.random() < 0.08),
        )
        for _ in scene.faces
    ]
    return scene.draw(told)[None]


def _random_clip(generator: np.random.Generator, scene: Scene, tracks: list[MouthTrack], num_frames: int) -> Tensor:
    """The people speaking, each by a stretch of one of the tracks: (1, 3, num_frames, H, W)."""
    parts = []
    for _ in scene.faces:
        track = tracks[generator.integers(len(tracks))]
        part = slice(start := generator.integers(len(track.opening) - num_frames), start + num_frames)
        parts.append(MouthTrack(track.opening[part], track.width[part]))
    return to_video(scene.clip(parts, 0, num_frames))


def corrected_clip(
    generator: np.random.Generator, scene: Scene, tracks: list[MouthTrack], num_frames: int
) -> tuple[Tensor, Tensor]:
    """The portrait, (1, 3, 1, H, W), and a clip with its colours, (1, 3, num_frames, H, W)."""
    portrait = to_video(scene.portrait()[None])
    return portrait, match_color(_random_clip(generator, scene, tracks, num_frames), portrait, 1.0)
