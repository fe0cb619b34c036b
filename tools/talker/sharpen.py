"""Trains the decoder for twice the height and width, on the latents of the trained VAE.

The encoder stays as it is, so the latents do, and with them the transformer. The decoder learns to draw the edges that
those latents describe: first on clips, then on what it meets in the worker, sampled latents and chunk after chunk.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor

from infinitetalk.encoders.vae import latent_statistics
from infinitetalk.generation.color import match_color
from infinitetalk.generation.guidance import GuidanceScales, PlainGuidance
from infinitetalk.generation.sampling import EulerStepper, pin_motion
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from tools.talker.data import Clip, Drawing
from tools.talker.loop import TrainingLoop
from tools.talker.networks import HALF_PATCH, double_vae, make_transformer, make_vae
from tools.talker.rule import MANNER, QUICK_MANNER
from tools.talker.scenes import Scene, random_shape
from tools.talker.train_transformer import SHIFT, predict_velocity
from tools.talker.train_vae import corrected_clip, noise_like, random_scenes, random_tracks

#: The error of decoded videos (B, 3, T, H, W) against drawn ones, with each pixel's weight (B, 1, 1, H, W).
DrawingError = Callable[[Tensor, Tensor, Tensor], Tensor]

CLIP_FRAMES, CLIP_BATCH = 9, 2
#: Steps after which the learning rate of the training on clips is zero; the one on chunks takes over before.
CLIP_PLAN_STEPS = 1000
#: Weight of pixels at mouths and eyes: in the training on clips and in that on chunks, when these are sharp already.
CLIP_FEATURE_WEIGHT, CHUNK_FEATURE_WEIGHT = 5.0, 3.0
#: Weight of the change from frame to frame, and of the one from pixel to pixel, relative to the pixels.
CHANGE_WEIGHT = 0.7
EDGE_WEIGHT = 1.0
SHARPNESS_WEIGHT = 0.7
SQUARE = 8
#: Frames of the clips of sampled latents and of a chunk; frames of a chunk before the next one's last `LONG_FRAMES`.
LONG_FRAMES, PAST_FRAMES = 17, 8
#: Motion frames of the guided talker's chunks and of FlashTalk's.
MOTION_FRAMES = (9, 5)
#: Largest noise on the latents of a chunk that is not the last, in that of clips.
MOST_ENDED_NOISE = 1.5
#: Weight of the difference between motion latents and those that their frames come from.
SAME_LATENTS_WEIGHT = 0.1
#: Sampling of latents, as in `make quality`, and the steps of it that it starts with.
NUM_SAMPLING_STEPS, AUDIO_SCALE = 8, 2.0
FIRST_STEPS = (3, 4, 5)
NUM_TRACKS, NUM_QUICK_TRACKS = 40, 15


def sharpen_on_clips(folder: Path, num_steps: int, seed: int) -> None:
    """Trains the decoder, from the VAE in `folder`/chunks.pt into `folder`/sharp_clips.pt."""
    vae = _start(folder)
    tracks = random_tracks(seed, NUM_TRACKS, MANNER) + random_tracks(seed, NUM_QUICK_TRACKS, QUICK_MANNER)
    path = folder / "sharp_clips.pt"
    loop = TrainingLoop(
        path,
        vae,
        num_steps,
        seed,
        learning_rate=2e-3,
        decay_share=0.8,
        muon_prefix="decoder.",
        planned_steps=CLIP_PLAN_STEPS,
    )
    for generator in loop:
        scenes = random_scenes(generator, random_shape(generator), CLIP_BATCH)
        videos = torch.cat([corrected_clip(generator, scene, tracks, CLIP_FRAMES)[1] for scene in scenes])
        with torch.no_grad():
            latents = vae.encode(videos).latent_dist.mode()
        decoded = vae.decode(latents + float(generator.random()) * noise_like(latents)).sample
        loop.learn(aligned_error(decoded, videos, feature_weights(scenes, CLIP_FEATURE_WEIGHT)))


def sharpen_on_chunks(folder: Path, scenes: list[tuple[Clip, Drawing]], num_steps: int, seed: int) -> None:
    """Trains the decoder further, from `folder`/sharp_clips.pt into `folder`/sharp_chunks.pt, on what it meets in the
    worker: latents that the transformer in `folder`/silence.pt has sampled, and videos in two chunks."""
    _train_in_worker(folder, "sharp_clips", "sharp_chunks", scenes, num_steps, seed, aligned_error)


def sharpen_edges(folder: Path, scenes: list[tuple[Clip, Drawing]], num_steps: int, seed: int) -> None:
    """Trains the decoder further, from `folder`/sharp_chunks.pt into `folder`/sharp.pt, to draw edges as sharp as they
    are, even where the latents do not say exactly where they are."""
    _train_in_worker(folder, "sharp_chunks", "sharp", scenes, num_steps, seed, crisp_error)


def _train_in_worker(
    folder: Path,
    begin: str,
    end: str,
    scenes: list[tuple[Clip, Drawing]],
    num_steps: int,
    seed: int,
    error: DrawingError,
) -> None:
    """Trains from `folder`/`begin`.pt into `folder`/`end`.pt. Even steps: one of the clips, with latents that the
    transformer has sampled. Odd steps: a video in two chunks, of which the second starts with the motion latents of the
    first."""
    vae = _with_frozen_encoder(make_vae())
    vae.load_state_dict(torch.load(folder / f"{begin}.pt")["average"])
    vae.register_to_config(**json.loads((folder / "latents.json").read_text()))
    transformer = make_transformer().eval().requires_grad_(False)
    transformer.load_state_dict(torch.load(folder / "silence.pt")["average"])
    tracks = random_tracks(seed, NUM_TRACKS, MANNER)
    path = folder / f"{end}.pt"
    loop = TrainingLoop(path, vae, num_steps, seed, learning_rate=1e-3, decay_share=1.0, muon_prefix="decoder.")
    for generator in loop:
        if loop.step % 2 == 0:
            clip, drawing = scenes[generator.integers(len(scenes))]
            loop.learn(_sampled_loss(vae, transformer, clip, drawing, generator, error))
        else:
            scene = random_scenes(generator, random_shape(generator), 1)[0]
            portrait, video = corrected_clip(generator, scene, tracks, PAST_FRAMES + LONG_FRAMES)
            motion_frames = int(generator.choice(MOTION_FRAMES))
            weights = feature_weights([scene], CHUNK_FEATURE_WEIGHT)
            loop.learn(_chunks_loss(vae, portrait, video, motion_frames, weights, error))


def _sampled_loss(
    vae: AutoencoderKLWan,
    transformer: InfiniteTalkTransformer3DModel,
    clip: Clip,
    drawing: Drawing,
    generator: np.random.Generator,
    error: DrawingError,
) -> Tensor:
    """The loss of a clip's first frames, decoded from latents that the transformer has sampled."""
    step = int(generator.choice(FIRST_STEPS))
    latents = sample_from(transformer, clip, step)[:, :, : (LONG_FRAMES - 1) // 4 + 1]
    drawing = replace(drawing.at_full_size(), num_frames=LONG_FRAMES)
    video = drawing.video()[:, :, drawing.past :]
    mean, deviation = latent_statistics(vae)
    decoded = vae.decode(latents * deviation + mean).sample
    return error(decoded, video, feature_weights([drawing.scene], CHUNK_FEATURE_WEIGHT))


@torch.no_grad()
def sample_from(transformer: InfiniteTalkTransformer3DModel, clip: Clip, first_step: int) -> Tensor:
    """A clip's latents, (1, 16, t, h, w), with noise, and sampled from there on as in `make quality`: what speech does
    not tell, a head's sway and blinks, stays as in the clip, so that the clip's frames are the truth."""
    stepper = EulerStepper(NUM_SAMPLING_STEPS, SHIFT)
    guidance = PlainGuidance(GuidanceScales(text=1.0, audio=AUDIO_SCALE))
    given, windows = clip.given.float()[None], clip.windows()
    noise_level = float(stepper.sigmas[first_step])
    clean = clip.latents.float()[None]
    latents = (1 - noise_level) * clean + noise_level * torch.randn_like(clean)
    for step in range(first_step, NUM_SAMPLING_STEPS):
        latents = pin_motion(latents, given)
        noise_level = float(stepper.sigmas[step])
        velocities = {
            branch: predict_velocity(transformer, clip, latents, noise_level, windows * branch.has_audio, None)
            for branch in guidance.branches
        }
        latents = stepper.step(step, guidance(velocities), latents, _no_noise)
    return pin_motion(latents, given)


def _no_noise(draw: int) -> Tensor:
    raise AssertionError(f"Euler's method draws no noise, but asked for draw {draw}")


def _chunks_loss(
    vae: AutoencoderKLWan, portrait: Tensor, video: Tensor, motion_frames: int, weights: Tensor, error: DrawingError
) -> Tensor:
    """The loss of a video (1, 3, PAST_FRAMES + LONG_FRAMES, H, W) in two chunks: the first one's last frames must
    encode to the latents that they come from, and the second one must go on from them."""
    with torch.no_grad():
        ended = vae.encode(video[:, :, :LONG_FRAMES]).latent_dist.mode()
        upcoming = vae.encode(video[:, :, LONG_FRAMES - motion_frames :]).latent_dist.mode()
    num_given = (motion_frames - 1) // 4 + 1
    noisy = ended + MOST_ENDED_NOISE * float(torch.rand(())) * noise_like(ended)
    drawn = vae.decode(noisy).sample
    # The correction itself has no gradient: the decoder learns through the frames before it.
    shown = drawn + (match_color(drawn.detach(), portrait, 1.0) - drawn.detach())
    motion = vae.encode(shown[:, :, -motion_frames:]).latent_dist.mode()
    same = (motion[:, :, 1:] - ended[:, :, 1 - num_given :]).abs().mean()
    following = upcoming[:, :, num_given:]
    decoded = vae.decode(torch.cat([motion, following + noise_like(following)], dim=2)).sample
    overlap = video[:, :, LONG_FRAMES - motion_frames : LONG_FRAMES]
    again = error(decoded[:, :, :motion_frames], overlap, weights)
    joined = torch.cat([shown[:, :, -1:], decoded[:, :, motion_frames:]], dim=2)
    join = error(joined, video[:, :, LONG_FRAMES - 1 :], weights)
    first = error(shown, video[:, :, :LONG_FRAMES], weights)
    return first + again + join + SAME_LATENTS_WEIGHT * same


def _start(folder: Path) -> AutoencoderKLWan:
    half = make_vae(HALF_PATCH)
    half.load_state_dict(torch.load(folder / "chunks.pt")["average"])
    return _with_frozen_encoder(double_vae(half))


def _with_frozen_encoder(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)
    return vae


def feature_weights(scenes: list[Scene], weight: float) -> Tensor:
    """The weight of each pixel, `weight` at mouths and eyes: (B, 1, 1, H, W)."""
    return torch.stack([scene.feature_weights(weight) for scene in scenes])[:, None, None]


def aligned_error(decoded: Tensor, videos: Tensor, weights: Tensor) -> Tensor:
    """The mean absolute error of videos (B, 3, T, H, W), of their edges, and of the change from frame to frame."""
    difference, weights = decoded - videos, weights / weights.mean()
    rows = (difference.diff(dim=3).abs() * weights[:, :, :, 1:]).mean()
    columns = (difference.diff(dim=4).abs() * weights[..., 1:]).mean()
    return _pixel_error(difference, weights) + EDGE_WEIGHT * (rows + columns)


def crisp_error(decoded: Tensor, videos: Tensor, weights: Tensor) -> Tensor:
    """The same, but of edges only how sharp they are within squares of `SQUARE` pixels.

    An edge that is drawn a pixel off is an error twice in `aligned_error`, so where its place is uncertain, a soft edge
    costs less. The energy of an edge, the sum of the squared steps, falls if it is soft, wherever it is.
    """
    weights = weights / weights.mean()
    sharpness = (_edge_energy(decoded) - _edge_energy(videos)).abs() * F.avg_pool3d(weights, (1, SQUARE, SQUARE))
    return _pixel_error(decoded - videos, weights) + SHARPNESS_WEIGHT * sharpness.mean()


def _pixel_error(difference: Tensor, weights: Tensor) -> Tensor:
    change = (difference.diff(dim=2).abs() * weights).mean()
    return (difference.abs() * weights).mean() + CHANGE_WEIGHT * change


def _edge_energy(videos: Tensor) -> Tensor:
    """(B, 3, T, H / SQUARE, W / SQUARE): the root of the mean squared steps from pixel to pixel in each square."""
    rows = F.pad(videos.diff(dim=3).square(), (0, 0, 0, 1))
    columns = F.pad(videos.diff(dim=4).square(), (0, 1))
    return (F.avg_pool3d(rows + columns, (1, SQUARE, SQUARE)) + 1e-4).sqrt()
