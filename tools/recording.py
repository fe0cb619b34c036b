"""The pipeline with a memory: for tests and benchmarks that look at what lies between its stages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from infinitetalk.generation.pipeline import Chunk, InfiniteTalkPipeline, Reference, Video
from infinitetalk.generation.sampling import SampledChunk
from infinitetalk.runtime.networks import Networks


class RecordingPipeline(InfiniteTalkPipeline):
    """Keeps what its stages make, in the order of the chunks.

    Attributes:
        references: float latents (1, 16, t, h, w) of each reference frame followed by grey, as often as one is encoded.
        latents: (1, 16, t, h, w) of each chunk, as handed to the VAE.
        decoded: float (1, 3, num_frames, height, width) in [-1, 1], each chunk with the source's colours.
    """

    def __init__(self, networks: Networks) -> None:
        super().__init__(networks)
        self.references: list[Tensor] = []
        self.latents: list[Tensor] = []
        self.decoded: list[Tensor] = []

    def encode_reference(self, frame: Tensor, height: int, width: int, num_frames: int) -> Reference:
        """As the pipeline does."""
        reference = super().encode_reference(frame, height, width, num_frames)
        self.references.append(reference.latents)
        return reference

    def decode(self, video: Video, sampled: SampledChunk) -> Tensor:
        """As the pipeline does."""
        decoded = super().decode(video, sampled)
        self.latents.append(sampled.latents)
        self.decoded.append(decoded)
        return decoded

    def new_video(self, chunks: Sequence[Chunk]) -> Tensor:
        """The frames that the recorded chunks add to the video, cut: float (3, num_frames, height, width)."""
        return torch.cat(
            [
                decoded[0, :, chunk.plan.num_motion_frames :][:, : chunk.plan.num_new_frames]
                for decoded, chunk in zip(self.decoded, chunks, strict=True)
            ],
            dim=1,
        )
