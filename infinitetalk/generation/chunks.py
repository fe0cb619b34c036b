"""The video frames that each chunk covers, and the rows of the speech embeddings that each of its frames reads."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from infinitetalk.family import INFINITETALK, Family

#: Number of rows that the reversed tail adds beyond the missing ones.
TAIL_MARGIN = 3


@dataclass(frozen=True)
class ChunkPlan:
    """One chunk.

    Attributes:
        index: from 0.
        start: index of its first frame in the whole video.
        num_frames: number of generated frames.
        num_motion_frames: number of leading frames that the previous chunk has already generated; 0 for the first.
        num_new_frames: number of frames that this chunk adds to the video.
        num_held_frames: number of trailing motion frames that are shown with this chunk and not with the previous one.
        num_fade_frames: number of leading held frames in which the video fades to this chunk; after them it shows only
            this chunk.
    """

    index: int
    start: int
    num_frames: int
    num_motion_frames: int
    num_new_frames: int
    num_held_frames: int
    num_fade_frames: int


@dataclass(frozen=True)
class ChunkGrid:
    """The division of a video into chunks.

    Each chunk starts `stride` frames after the one before. The chunk that reaches the video's end is the last.

    Attributes:
        frame_num: frames of a chunk, 4n + 1.
        motion_frame: frames that a chunk takes over from the one before; less than `frame_num` if there are several
            chunks.
        crossfade_frame: largest number of motion frames in which the video fades from one chunk to the next
            (`fade_length`); 0 cuts after the motion frames.
        family: determines the video frames of a latent frame and the rows of speech that a frame reads.
    """

    frame_num: int
    motion_frame: int
    crossfade_frame: int = 0
    family: Family = INFINITETALK

    @property
    def stride(self) -> int:
        """Frames from the start of one chunk to the start of the next."""
        return self.frame_num - self.motion_frame

    @property
    def num_given_frames(self) -> int:
        """Number of motion frames in the motion latents: the VAE drops frames beyond the last 4n + 1."""
        factor = self.family.vae_scale_factor_temporal
        return (self.motion_frame - 1) // factor * factor + 1

    @property
    def fade_length(self) -> int:
        """Frames in which one chunk fades into the next: at most those in the next one's motion latents."""
        return min(self.crossfade_frame, self.num_given_frames)

    @property
    def num_held_frames(self) -> int:
        """Motion frames that are shown with the next chunk: those from the start of the fade; 0 without a fade."""
        return self.fade_length + self.motion_frame - self.num_given_frames if self.fade_length else 0

    def num_chunks(self, num_frames: int) -> int:
        """Number of chunks that cover `num_frames` video frames, at least one.

        Raises:
            ValueError: several chunks are needed, but a further chunk would add no frame.
        """
        if num_frames <= self.frame_num:
            return 1
        if self.stride <= 0:
            raise ValueError(
                f"motion_frame is {self.motion_frame}; several chunks need fewer than frame_num, {self.frame_num}"
            )
        return 1 + math.ceil((num_frames - self.frame_num) / self.stride)

    def reference_stride(self, num_frames: int) -> int:
        """Distance of the reference frames in a video of `num_frames` frames; a single chunk uses only the first."""
        return self.stride if self.num_chunks(num_frames) > 1 else self.frame_num

    def usable_rows(self, num_frames: int) -> int:
        """Number of rows of speech that a video of at most `num_frames` frames reads, with its last chunk's windows.

        Longer speech can be cut to this length without changing the rows that any frame reads.
        """
        return self.frame_num + (self.num_chunks(num_frames) - 1) * self.stride + self.family.audio_window // 2

    def plans(self, num_frames: int) -> list[ChunkPlan]:
        """The chunks of a video of `num_frames` frames.

        Raises:
            ValueError: several chunks are needed, but a further chunk would add no frame.
        """
        return [self._plan(index, num_frames) for index in range(self.num_chunks(num_frames))]

    def _plan(self, index: int, num_frames: int) -> ChunkPlan:
        is_first = index == 0
        start = index * self.stride
        num_motion_frames = 0 if is_first else self.motion_frame
        return ChunkPlan(
            index=index,
            start=start,
            num_frames=self.frame_num,
            num_motion_frames=num_motion_frames,
            num_new_frames=min(self.frame_num, num_frames - start) - num_motion_frames,
            num_held_frames=0 if is_first else self.num_held_frames,
            num_fade_frames=0 if is_first else self.fade_length,
        )

    def window_rows(self, plan: ChunkPlan, num_rows: int) -> Tensor:
        """Rows of one speaker's embeddings that each frame of a chunk reads: with a window of 5, frame f reads f±2.

        Rows before the first and after the last are clamped. Embeddings that end at or before the end of the chunk
        (which is then the last) continue with their own last (missing + 3) rows, reversed.

        Returns:
            int64 (num_frames, audio_window), values in [0, num_rows).
        """
        end = plan.start + plan.num_frames
        missing = end - num_rows
        order = torch.arange(num_rows)
        if missing >= 0:
            order = torch.cat([order, order[-(missing + TAIL_MARGIN) :].flip(0)])
        centres = torch.arange(plan.start, end)
        window = self.family.audio_window
        offsets = torch.arange(window) - window // 2
        return order[(centres[:, None] + offsets).clamp(0, len(order) - 1)]
