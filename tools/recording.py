"""A pipeline that records intermediate results, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from infinitetalk.generation.pipeline import Chunk, InfiniteTalkPipeline, Reference
from infinitetalk.generation.sampling import SampledChunk
from infinitetalk.runtime.networks import Networks


class RecordingPipeline(InfiniteTalkPipeline):
    """Records the results of its stages, in the order of the chunks.

    Attributes:
        references: float latents (1, 16, t, h, w) of each encoded reference frame followed by grey.
        latents: (1, 16, t, h, w) of each chunk, as handed to the VAE.
        decoded: float (1, 3, num_frames, height, width) in [-1, 1], each chunk; with the source's colours once it is
            finished.
    """

    def __init__(self, networks: Networks) -> None:
        super().__init__(networks)
        self.references: list[Tensor] = []
        self.latents: list[Tensor] = []
        self.decoded: list[Tensor] = []

    def encode_reference(self, frame: Tensor, height: int, width: int, num_frames: int) -> Reference:
        """Like the pipeline's; records the result."""
        reference = super().encode_reference(frame, height, width, num_frames)
        self.references.append(reference.latents)
        return reference

    def decode(self, sampled: SampledChunk) -> Tensor:
        """Like the pipeline's; records the result."""
        decoded = super().decode(sampled)
        self.latents.append(sampled.latents)
        self.decoded.append(decoded)
        return decoded

    def new_video(self, chunks: Sequence[Chunk]) -> Tensor:
        """The new frames of the recorded chunks, without fades: float (3, num_frames, height, width)."""
        return torch.cat(
            [
                decoded[0, :, chunk.plan.num_motion_frames :][:, : chunk.plan.num_new_frames]
                for decoded, chunk in zip(self.decoded, chunks, strict=True)
            ],
            dim=1,
        )
