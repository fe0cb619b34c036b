"""The parts of a chunk, each as the worker runs it."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from benchmarks.rehearsal.log import Log
from benchmarks.rehearsal.networks import (
    TEXT_TOKENS,
    evaluation_inputs,
    make_audio_encoder,
    make_image_encoder,
    make_text_encoder,
    make_transformer,
    make_vae,
    on_fake_device,
    quantise_blocks,
)
from benchmarks.rehearsal.stage import Stage
from infinitetalk.encoders.vae import decode_latents, encode_frames
from infinitetalk.encoders.wav2vec2 import SpeechEmbeddings
from infinitetalk.family import INFINITETALK
from infinitetalk.generation import pipeline
from infinitetalk.generation.color import match_color_
from infinitetalk.media.speech import SAMPLING_RATE
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime.memory import Workload, set_tiling
from infinitetalk.weights.loading import Quantisation

#: Chunks of the family's usual resolutions, and of the largest that was measured.
SMALL, LARGE = (
    Workload(INFINITETALK.defaults.frame_num, *size.usual_resolution) for size in INFINITETALK.sizes.values()
)
SHORT = Workload(33, 640, 640)
#: Enough for what each frame takes.
FEW_FRAMES = 9
SQUARE = Workload(INFINITETALK.defaults.frame_num, 960, 960)


def label(workload: Workload) -> str:
    """In tables: width x height x frames."""
    return f"{workload.width}x{workload.height}x{workload.num_frames}"


def evaluation(
    stage: Stage,
    workload: Workload,
    speakers: int = 1,
    transformer: InfiniteTalkTransformer3DModel | None = None,
    with_nag: bool = False,
) -> Log:
    """One evaluation of the transformer, by default of the published one."""
    network = stage.transformer if transformer is None else transformer
    size = workload.height, workload.width, workload.num_frames
    given = evaluation_inputs(stage.mode, *size, speakers, with_nag=with_nag)
    return stage.record(lambda: network(**given, return_dict=False))


def weight_only_evaluation(
    stage: Stage, workload: Workload, quantisation: Quantisation, num_layers: int | None = None
) -> Log:
    """One evaluation of a transformer whose weights have 8 bits and are widened at each use, by all or some blocks."""
    transformer = make_transformer(stage.mode, num_layers)
    quantise_blocks(transformer, stage.mode, quantisation)
    return evaluation(stage, workload, transformer=transformer)


def _vae(stage: Stage, in_tiles: bool, dtype: torch.dtype, is_lean: bool) -> AutoencoderKLWan:
    vae = stage.vae if dtype == torch.float32 and is_lean else make_vae(stage.mode, dtype, is_lean)
    assert isinstance(vae, AutoencoderKLWan)
    set_tiling(vae, in_tiles)
    return vae


def vae_decode(
    stage: Stage,
    workload: Workload,
    in_tiles: bool = False,
    dtype: torch.dtype = torch.float32,
    is_lean: bool = True,
) -> Log:
    """Latents of a chunk to its frames, by lean layers or those of diffusers."""
    factor = INFINITETALK.vae_scale_factor_spatial
    latent_frames = (workload.num_frames - 1) // INFINITETALK.vae_scale_factor_temporal + 1
    shape = (1, INFINITETALK.latent_channels, latent_frames, workload.height // factor, workload.width // factor)
    with on_fake_device(stage.mode):
        latents = torch.empty(shape)
    vae = _vae(stage, in_tiles, dtype, is_lean)
    return stage.record(lambda: decode_latents(vae, latents))


def vae_encode(
    stage: Stage,
    workload: Workload,
    in_tiles: bool = False,
    dtype: torch.dtype = torch.float32,
    is_lean: bool = True,
) -> Log:
    """A reference frame followed by grey ones to latents, by lean layers or those of diffusers."""
    frames = _frames(stage, workload)
    vae = _vae(stage, in_tiles, dtype, is_lean)
    return stage.record(lambda: encode_frames(vae, frames))


def colours(stage: Stage, workload: Workload) -> Log:
    """A chunk's frames get the source's colours."""
    frames = _frames(stage, workload)
    return stage.record(lambda: match_color_(frames, frames[:, :, :1], 1.0))


def frames_out(stage: Stage, workload: Workload) -> Log:
    """A chunk's frames become bytes in the CPU's memory."""
    frames = _frames(stage, workload)
    return stage.record(lambda: fake_to_frames(frames[0]))


def _frames(stage: Stage, workload: Workload) -> Tensor:
    with on_fake_device(stage.mode):
        return torch.empty(1, 3, workload.num_frames, workload.height, workload.width)


def fake_to_frames(video: Tensor) -> np.ndarray:
    """`pipeline.to_frames` of a fake tensor, which has no numbers to give: zeros come back."""
    shape = (*video.shape[1:], 3)
    with patch.object(Tensor, "numpy", lambda self: np.zeros(shape, np.uint8)):
        return pipeline.to_frames(video)


def text_encoder(stage: Stage) -> Log:
    """One prompt."""
    encoder = make_text_encoder(stage.mode)
    with on_fake_device(stage.mode):
        tokens, mask = torch.ones(2, 1, TEXT_TOKENS, dtype=torch.long).unbind()
    return stage.record(lambda: encoder(tokens, mask).last_hidden_state)


def image_encoder(stage: Stage) -> Log:
    """One reference frame."""
    encoder = make_image_encoder(stage.mode)
    with on_fake_device(stage.mode):
        frame = torch.empty(1, 3, SMALL.height, SMALL.width)
    return stage.record(lambda: encoder(frame))


def audio_encoder(stage: Stage, seconds: int = 10) -> Log:
    """Speech of so many seconds."""
    encoder = make_audio_encoder(stage.mode)
    samples = np.zeros(seconds * SAMPLING_RATE, np.float32)
    with on_fake_device(stage.mode):
        waveform = torch.empty(len(samples))

    def write_layer(embeddings: SpeechEmbeddings, layer: int, hidden_states: Tensor) -> None:
        hidden_states.detach().to("cpu", torch.float32)

    with (
        patch.object(SpeechEmbeddings, "write_layer", write_layer),
        patch.object(encoder, "normalise", lambda samples: waveform),
    ):
        return stage.record(lambda: encoder(samples))


EVALUATION, DECODE, ENCODE = "one evaluation", "VAE decode", "VAE encode of the reference"
COLOURS, FRAMES, TEXT, IMAGE = "colours", "frames to bytes", "text encoder, a prompt", "image encoder, a frame"
AUDIO = "audio encoder, 10 s of speech"
CHUNK_PARTS: dict[str, Callable[[Stage, Workload], Log]] = {
    EVALUATION: evaluation,
    DECODE: vae_decode,
    ENCODE: vae_encode,
    COLOURS: colours,
    FRAMES: frames_out,
}
"""The parts of a chunk whose seconds depend on its size."""

JOB_PARTS: dict[str, Callable[[Stage], Log]] = {TEXT: text_encoder, IMAGE: image_encoder, AUDIO: audio_encoder}
"""The parts that a job has once."""
