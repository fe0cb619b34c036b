"""Encoding frames to a finished MP4 with sound: against the reference's two encodes, and memory by video length."""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import soundfile
import torch
from torch import Tensor

from benchmarks.growth import peaks_of
from benchmarks.measure import Comparison, Goal, Measurement, compare, peak_memory_bytes
from benchmarks.reference import UNSET, import_reference, reference_folder
from infinitetalk.generation.pipeline import to_frames
from infinitetalk.media.decode import Picture
from infinitetalk.media.encode import EncodedSound, PartEncoder, join_parts
from infinitetalk.media.sandbox import ffmpeg_path
from infinitetalk.media.speech import SAMPLING_RATE, VIDEO_FPS

CHECKOUT = Path(__file__).parents[1]
NUM_FRAMES, SIDE = 250, 640
FRAMES_OF_PART = 72
MEMORY_FRAMES = (250, 1000)


def make_part(first: int, num_frames: int) -> Tensor:
    """Frames (3, num_frames, 640, 640) in [-1, 1] of a swaying portrait, with some grain."""
    portrait = Picture.open(CHECKOUT / "examples" / "media" / "portrait.jpg").pixels[None].float() / 127.5 - 1.0
    portrait = torch.nn.functional.interpolate(portrait, size=(SIDE + 32, SIDE + 32), mode="bilinear")[0]
    frames = []
    for number in range(first, first + num_frames):
        left, top = (int(16 + 15 * f(number / 12)) for f in (np.sin, np.cos))
        grain = 0.01 * torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(number))
        frames.append((portrait[:, top : top + SIDE, left : left + SIDE] + grain).clamp(-1, 1))
    return torch.stack(frames, dim=1)


def make_parts(num_frames: int) -> Iterator[Tensor]:
    """A video in parts, like the pipeline's."""
    for first in range(0, num_frames, FRAMES_OF_PART):
        yield make_part(first, min(FRAMES_OF_PART, num_frames - first))


def encode(parts: Iterator[Tensor], waveform: np.ndarray, folder: Path) -> None:
    """Encodes the pipeline's video to a file, like the worker."""
    paths = []
    for index, video in enumerate(parts):
        paths.append(folder / f"part{index}.mp4")
        encoder = PartEncoder(paths[-1], SIDE, SIDE)
        encoder.write(to_frames(video))
        encoder.close()
    join_parts(paths, EncodedSound(waveform), folder / "video.mp4")


def against_reference(folder: Path, repeats: int) -> Comparison:
    """The reference's time from video to file, against ours."""
    module = import_reference("wan.utils.multitalk_utils")
    parts = list(make_parts(NUM_FRAMES))
    video, waveform = torch.cat(parts, dim=1), speech(NUM_FRAMES)
    soundfile.write(folder / "speech.wav", waveform, SAMPLING_RATE)

    def run_theirs() -> None:
        module.save_video_ffmpeg(video, str(folder / "theirs"), [str(folder / "speech.wav")], fps=VIDEO_FPS)
        (folder / "theirs.mp4").unlink()

    with (
        patch.object(module, "subprocess", SimpleNamespace(run=_run_quietly)),
        patch.object(module, "tqdm", lambda frames, desc: frames),
    ):
        return compare(run_theirs, lambda: encode(iter(parts), waveform, folder), repeats)


def _run_quietly(command: list[str], check: bool) -> None:
    subprocess.run([ffmpeg_path(), "-loglevel", "error", "-y", *command[1:]], check=check)


def peak_memory_mb(num_frames: int) -> float:
    """Peak resident memory of this process, in MB, after encoding a video of this length."""
    with tempfile.TemporaryDirectory() as folder:
        encode(make_parts(num_frames), speech(num_frames), Path(folder))
    return peak_memory_bytes() / 1e6


def speech(num_frames: int) -> np.ndarray:
    """Noise with the length of `num_frames` frames, float32 (samples,)."""
    noise = np.random.default_rng(0).standard_normal(num_frames * SAMPLING_RATE // VIDEO_FPS)
    return (0.1 * noise).astype(np.float32)


def measure_encoding(repeats: int) -> list[Measurement]:
    """The table's rows about encoding."""
    what, ratio, how = f"{NUM_FRAMES} frames {SIDE}×{SIDE} to finished MP4", None, UNSET
    if reference_folder():
        with tempfile.TemporaryDirectory() as folder:
            comparison = against_reference(Path(folder), repeats)
        ratio, how = comparison.ratio, str(comparison)
    short, long = peaks_of(peak_memory_mb, MEMORY_FRAMES)
    return [
        Measurement(what, "the reference's two encodes", Goal(2, at_least=True, unit="× faster"), ratio, how),
        Measurement(
            f"memory of {MEMORY_FRAMES[1]:,} frames to MP4",
            f"of {MEMORY_FRAMES[0]} frames",
            Goal(1.05),
            long / short,
            f"{long:.0f} MB / {short:.0f} MB",
        ),
    ]
