"""Conditioning latents: how often and when they are encoded."""

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import Goal, Measurement
from infinitetalk.embedded.tiny import ensure_tiny_model
from infinitetalk.encoders.wav2vec2 import SpeechEmbeddings
from infinitetalk.generation.ahead import run_ahead
from infinitetalk.generation.pipeline import Chunk, InfiniteTalkPipeline, Reference
from infinitetalk.generation.sampling import GenerationSettings
from infinitetalk.media.encode import PartEncoder
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.models import Models

NUM_CHUNKS = 4
SETTINGS = GenerationSettings(
    frame_num=17, max_frame_num=41, motion_frame=9, num_inference_steps=1, text_guide_scale=1.0, audio_guide_scale=1.0
)


@dataclass
class Clip:
    """A source with frames that are all different, or all the same."""

    is_video: bool
    height: int = 640
    width: int = 640

    def __post_init__(self) -> None:
        self._picture = torch.zeros(3, self.height, self.width, dtype=torch.uint8)

    def frame_at(self, seconds: float) -> Tensor:
        """uint8 (3, height, width)."""
        return self._picture + round(25 * seconds) if self.is_video else self._picture


class Watched(InfiniteTalkPipeline):
    """A pipeline that records when each conditioning began."""

    def __init__(self, pipeline: InfiniteTalkPipeline) -> None:
        super().__init__(pipeline.networks)
        self.begun: list[float] = []

    def encode_reference(self, frame: Tensor, height: int, width: int, num_frames: int) -> Reference:
        """Like the pipeline's; records the time."""
        self.begun.append(time.monotonic())
        return super().encode_reference(frame, height, width, num_frames)


def encode(chunk: Chunk, folder: Path) -> None:
    """Encodes a chunk to its part of the file."""
    encoder = PartEncoder(folder / f"part{chunk.plan.index}.mp4", *chunk.frames.shape[1:3])
    encoder.write(chunk.frames)
    encoder.close()


def generate(pipeline: Watched, source: Clip, folder: Path) -> list[float]:
    """Runs a job of `NUM_CHUNKS` chunks; returns when each chunk was encoded."""
    speech = SpeechEmbeddings.from_tensor(torch.zeros(SETTINGS.max_frame_num, 12, 32))
    encoded = []

    def start(should_stop: Callable[[], bool]) -> Iterator[Chunk]:
        return pipeline(source, [speech], "A woman talks", SETTINGS, should_stop=should_stop)

    with ThreadPoolExecutor(max_workers=1) as thread, closing(run_ahead(start, thread)) as chunks:
        for chunk in chunks:
            encode(chunk, folder)
            encoded.append(time.monotonic())
    return encoded


def measure_conditioning() -> list[Measurement]:
    """The table's rows about conditioning latents."""
    networks = Models(ensure_tiny_model(), torch.device("cpu")).prepare(NetworkChoice(torch.float32))
    of_picture, of_video = Watched(InfiniteTalkPipeline(networks)), Watched(InfiniteTalkPipeline(networks))
    with tempfile.TemporaryDirectory() as folder:
        generate(of_picture, Clip(is_video=False), Path(folder))
        encoded = generate(of_video, Clip(is_video=True), Path(folder))
    in_time = [begun < done for begun, done in zip(of_video.begun[1:], encoded, strict=False)]
    return [
        Measurement(
            "conditioning latents of a picture",
            f"once in each of {NUM_CHUNKS} chunks",
            Goal(1, unit=" encoding"),
            len(of_picture.begun),
            "encodings in a job",
        ),
        Measurement(
            "conditioning latents of a video",
            "the chunk before still being encoded",
            Goal(100, at_least=True, unit=" %"),
            100 * sum(in_time) / len(in_time),
            f"of {len(in_time)} chunks begun by then; {len(of_video.begun)} encodings in {NUM_CHUNKS} chunks",
        ),
    ]
