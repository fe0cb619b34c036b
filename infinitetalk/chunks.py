"""Which video frames each chunk covers, and which rows of the speech embeddings each of its frames reads."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

AUDIO_WINDOW = 5
#: Rows beyond the missing ones that the reversed tail adds.
TAIL_MARGIN = 3


@dataclass(frozen=True)
class ChunkPlan:
    """One chunk.

    Attributes:
        index: from 0.
        start: first video frame, in frames of the whole video.
        num_frames: frames generated.
        num_motion_frames: leading frames that the chunk before has made already; 0 for the first.
        num_new_frames: frames that this chunk adds to the video; 0 only where a later speaker's speech ends chunks
            before the first one's.
        num_held_frames: the last of the motion frames, which wait for this chunk to be shown.
        num_fade_frames: the first of those, in which the video fades to this chunk; after them it shows this chunk.
        extends_tail: whether embeddings that end at or before this chunk's end go on with their reversed tail.
    """

    index: int
    start: int
    num_frames: int
    num_motion_frames: int
    num_new_frames: int
    num_held_frames: int
    num_fade_frames: int
    extends_tail: bool


def plan_chunks(
    num_rows: Sequence[int], frame_num: int, max_frame_num: int, motion_frame: int, crossfade_frame: int = 0
) -> list[ChunkPlan]:
    """Cover the speech, or `max_frame_num` frames of it, with chunks of `frame_num` frames.

    Each chunk starts `frame_num - motion_frame` frames after the one before. The chunk that reaches the end of the
    first speaker's speech or `max_frame_num` is the last. When speech had to be extended there, the video also ends
    with the last speaker's speech (the published code asks for speech longer than one chunk).

    Args:
        num_rows: rows of each speaker's embeddings, one a video frame.
        frame_num: frames of a chunk, 4n + 1.
        max_frame_num: frames of the video at most; `frame_num` for a single chunk.
        motion_frame: frames a chunk takes over from the one before, fewer than `frame_num` where there are several.
        crossfade_frame: of these at most so many in which the video fades from one chunk to the next: the last ones
            that the next chunk was given (`fade_length`). 0 cuts after the motion frames.

    Raises:
        ValueError: several chunks, none of which would add a frame.
    """
    step = frame_num - motion_frame
    num_chunks = count_chunks(min(max_frame_num, num_rows[0]), frame_num, motion_frame)
    last_end = frame_num + (num_chunks - 1) * step
    num_frames = min(max_frame_num, last_end)
    if any(last_end >= rows for rows in num_rows):
        num_frames = min(num_frames, num_rows[-1])
    fade = fade_length(motion_frame, crossfade_frame)
    held = fade + motion_frame - given_frames(motion_frame) if fade else 0
    plans = []
    for index in range(num_chunks):
        made = motion_frame if index else 0
        start = index * step
        new_frames = min(frame_num - made, max(0, num_frames - start - made))
        fades = index > 0 and new_frames > 0
        plans.append(
            ChunkPlan(
                index=index,
                start=start,
                num_frames=frame_num,
                num_motion_frames=made,
                num_new_frames=new_frames,
                num_held_frames=held if fades else 0,
                num_fade_frames=fade if fades else 0,
                extends_tail=index == num_chunks - 1,
            )
        )
    return plans


def given_frames(motion_frame: int) -> int:
    """How many of `motion_frame` frames the motion latents hold: the VAE leaves out what is over 4n + 1."""
    return (motion_frame - 1) // 4 * 4 + 1


def fade_length(motion_frame: int, crossfade_frame: int) -> int:
    """Frames in which one chunk fades into the next: no more than the next one was given."""
    return min(crossfade_frame, given_frames(motion_frame))


def count_chunks(num_frames: int, frame_num: int, motion_frame: int) -> int:
    """Chunks that cover `num_frames` video frames, at least one.

    Raises:
        ValueError: several chunks, none of which would add a frame.
    """
    if num_frames <= frame_num:
        return 1
    if motion_frame >= frame_num:
        raise ValueError(f"motion_frame is {motion_frame}; several chunks need fewer than frame_num, {frame_num}")
    return 1 + math.ceil((num_frames - frame_num) / (frame_num - motion_frame))


def usable_rows(max_frame_num: int, frame_num: int, motion_frame: int) -> int:
    """Rows of speech that a video of at most `max_frame_num` frames reads: to the end of its last chunk's windows.

    Longer speech can be cut to this without changing which rows any frame reads.
    """
    num_chunks = count_chunks(max_frame_num, frame_num, motion_frame)
    return frame_num + (num_chunks - 1) * (frame_num - motion_frame) + AUDIO_WINDOW // 2


def window_rows(plan: ChunkPlan, num_rows: int) -> Tensor:
    """Rows of one speaker's embeddings that each frame of a chunk reads: frame f reads f-2 … f+2.

    Rows before the first and after the last are clamped. In the last chunk, embeddings that end at or before its end
    go on with their own last (missing + 3) rows, reversed.

    Returns:
        int64 (num_frames, AUDIO_WINDOW), values in [0, num_rows).
    """
    end = plan.start + plan.num_frames
    missing = end - num_rows
    order = torch.arange(num_rows)
    if plan.extends_tail and missing >= 0:
        order = torch.cat([order, order[-(missing + TAIL_MARGIN) :].flip(0)])
    centres = torch.arange(plan.start, end)
    offsets = torch.arange(AUDIO_WINDOW) - AUDIO_WINDOW // 2
    return order[(centres[:, None] + offsets).clamp(0, len(order) - 1)]
