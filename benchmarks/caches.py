"""Savings and errors of TeaCache and of diffusers' first-block cache.

`python -m benchmarks.caches [FOLDER]`: a checkpoint in the tiny model's layout, by default the tiny model itself. One
chunk is sampled without a cache, then with each cache at several thresholds. The error is that of the final latents,
||x - x₀|| / ||x₀||, without the pinned motion latents. The first-block cache computes the first block of every
evaluation, and the other blocks only if its output has changed; its savings are counted in skipped blocks.
"""

import argparse
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import FirstBlockCacheConfig
from torch import Tensor

from benchmarks.measure import as_table, machine
from infinitetalk.embedded.tiny import DEFAULT_FOLDER, ensure_tiny_model
from infinitetalk.encoders.wav2vec2 import SpeechEmbeddings
from infinitetalk.generation.pipeline import Chunk
from infinitetalk.generation.sampling import GenerationSettings
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.models import Models
from tools.recording import RecordingPipeline

#: Factor on the weights of the time projection.
TIME_FACTOR = 0.03
SETTINGS = GenerationSettings(frame_num=17, max_frame_num=17, num_inference_steps=40, color_correction_strength=0.0)
TEACACHE_THRESHOLDS = (0.1, 0.2, 0.5, 1.0, 2.0)
FIRST_BLOCK_THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass
class Portrait:
    """A soft image, always the same."""

    height: int = 640
    width: int = 640

    def frame_at(self, seconds: float) -> Tensor:
        """uint8 (3, height, width)."""
        coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
        soft = torch.nn.functional.interpolate(coarse, (self.height, self.width), mode="bicubic").clamp(0, 1)
        return (soft[0] * 255).to(torch.uint8)


def sample(pipeline: RecordingPipeline, settings: GenerationSettings) -> tuple[Chunk, Tensor]:
    """Samples one chunk; returns it and its final latents."""
    generator = torch.Generator().manual_seed(1)
    speech = SpeechEmbeddings.from_tensor(torch.randn(settings.frame_num, 12, 32, generator=generator))
    (chunk,) = pipeline(Portrait(), [speech], "A woman talks", settings)
    return chunk, pipeline.latents.pop()


def count_blocks(transformer: InfiniteTalkTransformer3DModel) -> list[int]:
    """A list to which each block adds its number whenever it is computed."""
    computed: list[int] = []
    for index, block in enumerate(transformer.blocks):
        block.attn1.register_forward_pre_hook(lambda *_, index=index: computed.append(index))
    return computed


@torch.no_grad()
def slow_down_time(transformer: InfiniteTalkTransformer3DModel) -> None:
    """Makes the projected time embedding change from step to step about as little as the published network's.

    TeaCache's polynomials are fitted to that network; a random network's embedding changes so much that TeaCache never
    skips.
    """
    transformer.condition_embedder.time_proj.weight.mul_(TIME_FACTOR)


def relative_error(latents: Tensor, exact: Tensor) -> float:
    """||x - x₀|| / ||x₀||, without the first latent frame, which is given."""
    return ((latents - exact)[:, :, 1:].norm() / exact[:, :, 1:].norm()).item()


def measure(folder: Path) -> list[tuple[str, ...]]:
    """The table's rows: cache, threshold, evaluations saved, error."""
    networks = Models(ensure_tiny_model(folder), torch.device("cpu")).prepare(NetworkChoice(torch.float32))
    slow_down_time(networks.transformer)
    pipeline = RecordingPipeline(networks)
    chunk, exact = sample(pipeline, SETTINGS)
    evaluations = chunk.evaluations
    rows = [("none", "–", "0%", "0")]
    for threshold in TEACACHE_THRESHOLDS:
        chunk, latents = sample(pipeline, replace(SETTINGS, teacache_threshold=threshold))
        saved = chunk.evaluations_skipped / evaluations
        rows.append(("TeaCache", f"{threshold:g}", f"{saved:.0%}", f"{relative_error(latents, exact):.2g}"))
    computed = count_blocks(networks.transformer)
    for threshold in FIRST_BLOCK_THRESHOLDS:
        computed.clear()
        networks.transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
        _, latents = sample(pipeline, SETTINGS)
        networks.transformer.disable_cache()
        saved = 1 - len(computed) / (len(networks.transformer.blocks) * evaluations)
        rows.append(("first block", f"{threshold:g}", f"{saved:.0%}", f"{relative_error(latents, exact):.2g}"))
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.caches", description="Compare caches.")
    parser.add_argument("folder", type=Path, nargs="?", default=DEFAULT_FOLDER)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print(f"{machine()}\n\n{as_table(measure(options.folder), ('cache', 'threshold', 'evaluations saved', 'error'))}")


if __name__ == "__main__":
    main()
