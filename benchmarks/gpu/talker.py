"""The embedded talker on the GPU: the whole path with trained weights, against the CPU."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.gpu.rows import Figure, Group, Row, device, relative_error, timed
from infinitetalk.embedded.tiny import talker_paths
from infinitetalk.encoders.wav2vec2 import SpeechEmbeddings
from infinitetalk.generation.pipeline import Chunk
from infinitetalk.generation.sampling import GenerationSettings
from infinitetalk.media.speech import SAMPLING_RATE
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.kernels.registry import PUBLISHED, Kernels
from infinitetalk.runtime.memory import MemoryMode
from infinitetalk.runtime.models import Models
from tools.recording import RecordingPipeline

PORTRAIT = Path(__file__).parents[2] / "examples" / "media" / "drawn_portrait.png"
SETTINGS = GenerationSettings(
    frame_num=33, max_frame_num=57, num_inference_steps=8, shift=7.0, text_guide_scale=1.0, audio_guide_scale=2.0
)


@dataclass(frozen=True)
class Portrait:
    """The drawn portrait."""

    frame: Tensor

    @property
    def height(self) -> int:
        """In pixels."""
        return self.frame.shape[1]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.frame.shape[2]

    def frame_at(self, seconds: float) -> Tensor:
        """uint8 (3, height, width)."""
        return self.frame


@dataclass
class Talker:
    """A portrait, a sound, and the CPU's chunks for them in float32."""

    source: Portrait
    waveform: np.ndarray
    speech: SpeechEmbeddings
    expected: list[tuple[Chunk, Tensor]]
    settings: GenerationSettings

    def generate(
        self, place: torch.device, dtype: torch.dtype, memory: MemoryMode, kernels: Kernels = PUBLISHED
    ) -> list[tuple[Chunk, Tensor]]:
        """Generates the chunks on a device; returns each with its final latents."""
        networks = Models(talker_paths(), place).prepare(NetworkChoice(dtype, memory, kernels=kernels))
        pipeline = RecordingPipeline(networks)
        chunks = list(pipeline(self.source, [self.speech], "A woman talks", self.settings))
        return list(zip(chunks, pipeline.latents, strict=True))


def prepare(small: bool) -> Talker:
    """Generates the CPU's chunks in float32; the sound is a chirp with rising and falling loudness."""
    torch.set_num_threads(4)
    pixels = torch.from_numpy(np.asarray(Image.open(PORTRAIT).convert("RGB")).copy()).permute(2, 0, 1)
    seconds = np.arange(3 * SAMPLING_RATE) / SAMPLING_RATE
    waveform = (0.2 * np.sin(2 * np.pi * 180 * seconds) * (np.sin(2 * np.pi * 2 * seconds) > 0)).astype(np.float32)
    settings = replace(SETTINGS, num_inference_steps=2) if small else SETTINGS
    speech = Models(talker_paths(), torch.device("cpu")).audio_encoder(waveform)
    talker = Talker(Portrait(pixels), waveform, speech, [], settings)
    talker.expected = talker.generate(torch.device("cpu"), torch.float32, MemoryMode())
    return talker


def speech_encoder(state: Talker) -> Iterator[Figure]:
    """wav2vec2 as it runs on the device."""
    encoder = Models(talker_paths(), device()).audio_encoder
    found = encoder(state.waveform)
    rows = [embeddings.rows(torch.arange(len(embeddings))) for embeddings in (found, state.speech)]
    yield Figure("talker: speech embeddings against the CPU's", relative_error(*rows), "relative error")
    yield Figure("talker: embedding 3 s of speech", timed(lambda: encoder(state.waveform)))


def compared(
    state: Talker, what: str, dtype: torch.dtype, memory: MemoryMode, kernels: Kernels = PUBLISHED
) -> Iterator[Figure]:
    """Final latents and frames, against the CPU's in float32."""
    chunks = state.generate(device(), dtype, memory, kernels)
    latents, frames = [], []
    for (found, found_latents), (expected, expected_latents) in zip(chunks, state.expected, strict=True):
        latents.append(relative_error(found_latents.cpu(), expected_latents))
        frames.append(np.abs(found.frames.astype(int) - expected.frames.astype(int)))
    levels = np.concatenate(frames)
    detail = (
        f"latents of each chunk {', '.join(f'{error:.1e}' for error in latents)}; "
        f"frames: mean {levels.mean():.3f}, most {levels.max()} levels of 255"
    )
    yield Figure(f"talker, {what}, against float32 on the CPU", latents[-1], "relative error", detail)


def precisions(state: Talker) -> Iterator[Figure]:
    """float32, bf16, and the modes of quantised and streamed weights."""
    narrow = torch.bfloat16
    yield from compared(state, "float32", torch.float32, MemoryMode())
    yield from compared(state, "bf16", narrow, MemoryMode())
    yield from compared(state, "fp8 weights", narrow, MemoryMode(quantisation="fp8"))
    yield from compared(state, "int8 weights", narrow, MemoryMode(quantisation="int8"))
    streamed = MemoryMode(resident_parameters=0, stream_text_encoder=True)
    yield from compared(state, "bf16, blocks and text encoder streamed", narrow, streamed)
    yield from compared(state, "fp8 weights, blocks streamed", narrow, replace(streamed, quantisation="fp8"))
    yield from compared(state, "bf16, VAE in tiles", narrow, MemoryMode(vae_tiling=True))


def kernels(state: Talker) -> Iterator[Figure]:
    """Kernels that round more than the published ones."""
    narrow = torch.bfloat16
    yield from compared(state, "bf16, VAE in bf16", narrow, MemoryMode(), Kernels(vae="vae_bf16"))
    fp8 = MemoryMode(quantisation="fp8")
    yield from compared(state, "fp8 weights and activations", narrow, fp8, Kernels(products="fp8_rows"))
    if device().type == "cuda":
        yield from compared(state, "bf16, sage attention", narrow, MemoryMode(), Kernels(attention="sage"))


GROUP = Group(
    "talker", prepare, (Row("precisions", precisions), Row("kernels", kernels), Row("speech", speech_encoder))
)
