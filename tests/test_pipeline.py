"""The pipeline on the tiny model: chunks join, jobs resume, seeds decide, reference frames come from the right instant.

Equality with the published model over several chunks is in test_golden.py.
"""

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infinitetalk.embedded.tiny import ensure_tiny_model
from infinitetalk.encoders.vae import decode_latents, encode_frames
from infinitetalk.encoders.wav2vec2 import SpeechEmbeddings
from infinitetalk.errors import GenerationStopped, NotFiniteError, RegionError
from infinitetalk.generation.ahead import run_ahead
from infinitetalk.generation.arriving import DecodingEndedError
from infinitetalk.generation.chunks import ChunkGrid, ChunkPlan
from infinitetalk.generation.crossfade import cross_fade
from infinitetalk.generation.pipeline import (
    Chunk,
    ChunkState,
    Control,
    DecodedChunk,
    InfiniteTalkPipeline,
    JoinedFrames,
    Step,
    to_frames,
)
from infinitetalk.generation.references import EncodedReference, EncodedReferences, ReferenceKey
from infinitetalk.generation.sampling import GenerationSettings, SampledChunk, chunk_noise
from infinitetalk.media.decode import Picture, Source, extract_frames
from infinitetalk.network.regions import default_regions
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.memory import MemoryMode
from infinitetalk.runtime.models import Models
from infinitetalk.runtime.networks import Networks
from tests.media_factory import make_numbered_video, read_number
from tools.recording import RecordingPipeline

SETTINGS = GenerationSettings(
    frame_num=9,
    max_frame_num=1000,
    motion_frame=5,
    num_inference_steps=2,
    text_guide_scale=1.0,
    audio_guide_scale=2.0,
)
PROMPT = "A woman talks"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(ensure_tiny_model(tmp_path_factory.mktemp("tiny") / "model"), torch.device("cpu"))


@pytest.fixture
def networks(models: Models) -> Networks:
    return models.prepare(NetworkChoice(torch.float32))


@pytest.fixture
def pipeline(networks: Networks) -> InfiniteTalkPipeline:
    return InfiniteTalkPipeline(networks)


@pytest.fixture
def recording(networks: Networks) -> RecordingPipeline:
    return RecordingPipeline(networks)


def picture(seed: int = 0) -> Picture:
    generator = torch.Generator().manual_seed(seed)
    return Picture(torch.randint(0, 256, (3, 60, 60), dtype=torch.uint8, generator=generator))


def speech(num_frames: int, seed: int = 0) -> SpeechEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    return SpeechEmbeddings.from_tensor(torch.randn(num_frames, 12, 32, generator=generator))


def frames(chunks: Iterator[Chunk]) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in chunks])


@pytest.fixture(scope="module")
def whole(models: Models) -> list[Chunk]:
    pipeline = InfiniteTalkPipeline(models.prepare(NetworkChoice(torch.float32)))
    return list(pipeline(picture(), [speech(22)], PROMPT, SETTINGS))


def test_chunks_add_up_to_the_speech(whole: list[Chunk]) -> None:
    assert [chunk.plan.start for chunk in whole] == [0, 4, 8, 12, 16]
    assert sum(len(chunk.frames) for chunk in whole) == 22
    assert whole[0].frames.shape[1:] == (64, 64, 3)
    assert whole[0].frames.dtype == np.uint8


def test_a_job_resumed_from_any_chunk_gives_the_same_frames(pipeline: InfiniteTalkPipeline, whole: list[Chunk]) -> None:
    for done in (1, 4):
        state = ChunkState.from_bytes(whole[done - 1].state.to_bytes())
        resumed = list(pipeline(picture(), [speech(22)], PROMPT, SETTINGS, state=state))
        assert [chunk.plan.index for chunk in resumed] == list(range(done, len(whole)))
        for chunk, expected in zip(resumed, whole[done:], strict=True):
            assert np.array_equal(chunk.frames, expected.frames)


def test_the_next_chunk_goes_on_from_frames_with_the_references_colours(
    networks: Networks, recording: RecordingPipeline
) -> None:
    first = next(recording(picture(), [speech(22)], PROMPT, SETTINGS))
    assert first.state is not None
    shown = recording.decoded[0][:, :, -SETTINGS.motion_frame :]
    torch.testing.assert_close(first.state.motion_latents, encode_frames(networks.vae, shown))
    as_sampled = decode_latents(networks.vae, recording.latents[0])[:, :, -SETTINGS.motion_frame :]
    assert (shown - as_sampled).abs().mean() > 0.01, "the colours were corrected"


def test_chunks_that_are_cut_show_their_new_frames(networks: Networks) -> None:
    """What is sampled does not depend on the fade."""
    cut, faded = RecordingPipeline(networks), RecordingPipeline(networks)
    chunks = list(cut(picture(), [speech(22)], PROMPT, replace(SETTINGS, crossfade_frame=0)))
    list(faded(picture(), [speech(22)], PROMPT, SETTINGS))
    assert all(torch.equal(*pair) for pair in zip(cut.decoded, faded.decoded, strict=True))
    assert np.array_equal(frames(iter(chunks)), to_frames(cut.new_video(chunks)))


def test_a_chunk_fades_into_the_next_within_the_frames_that_both_have(pipeline: InfiniteTalkPipeline) -> None:
    settings = replace(SETTINGS, frame_num=17, motion_frame=9, crossfade_frame=4)
    cut = frames(pipeline(picture(), [speech(25)], PROMPT, replace(settings, crossfade_frame=0)))
    faded = list(pipeline(picture(), [speech(25)], PROMPT, settings))
    assert [len(chunk.frames) for chunk in faded] == [13, 12]
    shown = frames(iter(faded))
    assert np.array_equal(shown[:13], cut[:13])
    assert np.array_equal(shown[17:], cut[17:])
    distances = np.abs(shown[13:17].astype(float) - cut[13:17]).mean(axis=(1, 2, 3))
    assert 0 < distances[0] < distances[-1]


def flat_video(levels: Iterable[int]) -> torch.Tensor:
    """Frames of one level of 255 each."""
    return torch.tensor(list(levels)).mul(2 / 255).sub(1.0)[None, :, None, None].expand(3, -1, 2, 2)


def levels_of(frames: np.ndarray) -> list[int]:
    return frames[:, 0, 0, 0].tolist()


def joined(held_frames: np.ndarray, video: torch.Tensor, plan: ChunkPlan) -> np.ndarray:
    """The frames of a chunk whose decoded frames come one, and then four at a time."""
    frames = JoinedFrames(held_frames, plan)
    for group in (video[:, :1], *video[:, 1:].split(4, dim=1)):
        frames.add(group)
        assert frames.num_ready == 0 or frames.num_ready >= plan.num_fade_frames
    assert frames.num_ready == frames.num_frames
    return frames.frames


def test_what_fades_is_of_the_same_instants() -> None:
    """The chunk before has level 10 t, this one 10 t + 5, at the video's frame t."""
    _, plan = ChunkGrid(17, 9, 4).plans(25)
    held = to_frames(flat_video(range(130, 170, 10)))
    shown = joined(held, flat_video(10 * t + 5 for t in range(8, 25)), plan)
    assert levels_of(shown) == [131, 142, 153, 164, *(10 * t + 5 for t in range(17, 25))]


def test_what_the_motion_latents_leave_out_is_shown_of_the_new_chunk() -> None:
    _, plan = ChunkGrid(17, 11, 4).plans(23)
    held = to_frames(flat_video(range(110, 170, 10)))
    shown = joined(held, flat_video(10 * t + 5 for t in range(6, 23)), plan)
    assert levels_of(shown) == [111, 122, 133, 144, *(10 * t + 5 for t in range(15, 23))]


def test_a_frame_that_several_chunks_have_fades_through_all_of_them(recording: RecordingPipeline) -> None:
    settings = replace(SETTINGS, frame_num=13, motion_frame=9, crossfade_frame=9, color_correction_strength=0.0)
    cut = list(recording(picture(), [speech(21)], PROMPT, replace(settings, crossfade_frame=0)))
    made = [to_frames(decoded[0]) for decoded in recording.decoded]
    expected = made[0].copy()
    for chunk, of_chunk in enumerate(made[1:], start=1):
        begin = 4 * chunk
        faded = cross_fade(expected[begin:], of_chunk[:9])
        expected = np.concatenate([expected[:begin], faded, of_chunk[9:]])
    assert len(cut) == 3
    assert np.array_equal(frames(recording(picture(), [speech(21)], PROMPT, settings)), expected)


def test_a_state_of_another_fade_is_refused(pipeline: InfiniteTalkPipeline, whole: list[Chunk]) -> None:
    settings = replace(SETTINGS, crossfade_frame=1)
    with pytest.raises(ValueError, match="holds 4 frames for the fade into the next chunk, the settings ask for 1"):
        list(pipeline(picture(), [speech(22)], PROMPT, settings, state=whole[0].state))


def test_the_last_chunk_has_no_state(whole: list[Chunk]) -> None:
    assert [chunk.state is None for chunk in whole] == [False] * (len(whole) - 1) + [True]


def test_the_seed_decides(pipeline: InfiniteTalkPipeline) -> None:
    settings = replace(SETTINGS, max_frame_num=9)
    first = frames(pipeline(picture(), [speech(20)], PROMPT, settings))
    assert np.array_equal(first, frames(pipeline(picture(), [speech(20)], PROMPT, settings)))
    assert not np.array_equal(first, frames(pipeline(picture(), [speech(20)], PROMPT, replace(settings, seed=43))))


def test_noise_depends_on_seed_chunk_and_draw_alone() -> None:
    shape = (1, 16, 2, 4, 4)
    draws = [chunk_noise(seed, chunk, draw, shape) for seed in (7, 8) for chunk in (3, 4) for draw in (0, 1)]
    assert all(not torch.equal(*pair) for pair in itertools.combinations(draws, 2))
    assert torch.equal(draws[0], chunk_noise(7, 3, 0, shape))


def test_prompt_and_speech_reach_the_picture(pipeline: InfiniteTalkPipeline) -> None:
    settings = replace(SETTINGS, max_frame_num=9, color_correction_strength=0.0)
    first = frames(pipeline(picture(), [speech(20)], PROMPT, settings))
    assert not np.array_equal(first, frames(pipeline(picture(), [speech(20)], "A man sings", settings)))
    assert not np.array_equal(first, frames(pipeline(picture(), [speech(20, seed=1)], PROMPT, settings)))


def test_it_stops_before_the_next_evaluation(pipeline: InfiniteTalkPipeline) -> None:
    asked = []

    def should_stop() -> bool:
        asked.append(None)
        return len(asked) == 3

    with pytest.raises(GenerationStopped):
        list(pipeline(picture(), [speech(20)], PROMPT, SETTINGS, should_stop=should_stop))
    assert len(asked) == 3


def test_every_step_is_reported_in_order(pipeline: InfiniteTalkPipeline) -> None:
    steps: list[Step] = []
    list(pipeline(picture(), [speech(13)], PROMPT, SETTINGS, on_step=steps.append))
    assert [(step.chunk, step.step) for step in steps] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert {(step.num_chunks, step.num_steps) for step in steps} == {(2, 2)}
    assert {step.evaluations for step in steps} == {len(SETTINGS.branches)}


@dataclass
class Clock:
    """A source video whose frame says its own instant: every pixel is 10 times the frame's number at 25 fps."""

    height: int = 60
    width: int = 60
    asked: list[float] = field(default_factory=list)

    def frame_at(self, seconds: float) -> torch.Tensor:
        self.asked.append(seconds)
        return torch.full((3, self.height, self.width), round(seconds * 25) * 10 % 256, dtype=torch.uint8)


def test_each_chunk_takes_its_reference_frame_at_its_own_first_instant(recording: RecordingPipeline) -> None:
    clock = Clock()
    chunks = list(recording(clock, [speech(17)], PROMPT, SETTINGS))
    assert clock.asked[-len(chunks) :] == [chunk.plan.start / 25 for chunk in chunks]
    assert len(recording.references) == len(chunks)
    assert all(not torch.equal(recording.references[0], latents) for latents in recording.references[1:])


@dataclass
class Watched:
    """A source that keeps the burnt-in number of every frame it hands out."""

    source: Source
    numbers: list[int] = field(default_factory=list)

    @property
    def height(self) -> int:
        return self.source.height

    @property
    def width(self) -> int:
        return self.source.width

    def frame_at(self, seconds: float) -> torch.Tensor:
        frame = self.source.frame_at(seconds)
        self.numbers.append(read_number(frame.permute(1, 2, 0).numpy()))
        return frame


@pytest.mark.parametrize(("rate", "frames_per_second"), [("24000/1001", 24000 / 1001), ("30", 30), ("60", 60)])
def test_each_chunk_takes_the_source_videos_frame_that_is_shown_at_its_first_instant(
    rate: str, frames_per_second: float, pipeline: InfiniteTalkPipeline, tmp_path: Path
) -> None:
    """The published code counts source frames as if every video had 25 a second, and drifts."""
    make_numbered_video(tmp_path / "source.mp4", range(round(0.5 * frames_per_second)), rate)
    (tmp_path / "frames").mkdir()
    stride = SETTINGS.frame_num - SETTINGS.motion_frame
    source = Watched(extract_frames(tmp_path / "source.mp4", tmp_path / "frames", stride, 17))
    chunks = list(pipeline(source, [speech(17)], PROMPT, SETTINGS))
    last = round(0.5 * frames_per_second) - 1
    shown = [min(int(chunk.plan.start / 25 * frames_per_second + 1e-6), last) for chunk in chunks]
    assert source.numbers[-len(chunks) :] == shown


def test_a_picture_is_encoded_once_a_job(recording: RecordingPipeline) -> None:
    assert len(list(recording(picture(), [speech(22)], PROMPT, SETTINGS))) == 5
    assert len(recording.references) == 1


def test_a_picture_is_not_encoded_again_in_the_next_job(networks: Networks) -> None:
    references = EncodedReferences()
    first, second, fresh = (InfiniteTalkPipeline(networks, each) for each in (references, references, None))
    conditions = first.embed_prompts(picture(), [speech(13)], PROMPT, SETTINGS)
    of_first, of_second, of_fresh = (list(each.decoded_chunks(conditions, SETTINGS)) for each in (first, second, fresh))
    assert [chunk.has_encoded_reference for chunk in of_first] == [True, False]
    assert [chunk.has_encoded_reference for chunk in of_second] == [False, False]
    assert [chunk.has_encoded_reference for chunk in of_fresh] == [True, False]
    for again, expected in zip(of_second, of_first, strict=True):
        assert np.array_equal(again.finish().frames, expected.finish().frames)


def test_a_reference_is_kept_for_its_picture_size_and_arithmetic_alone(models: Models, networks: Networks) -> None:
    references = EncodedReferences()
    InfiniteTalkPipeline(networks, references).encode_reference(picture().pixels, 64, 64, 9)
    in_tiles = models.prepare(NetworkChoice(torch.float32, MemoryMode(vae_tiling=True)))
    again = [
        InfiniteTalkPipeline(prepared, references).encode_reference(picture(seed).pixels, *size).is_new
        for prepared, seed, size in (
            (networks, 0, (64, 64, 9)),
            (networks, 1, (64, 64, 9)),
            (networks, 0, (64, 96, 9)),
            (networks, 0, (64, 64, 13)),
            (in_tiles, 0, (64, 64, 9)),
        )
    ]
    assert again == [False, True, True, True, True]


def test_references_that_were_not_used_for_longest_go_first() -> None:
    def key(name: str) -> ReferenceKey:
        return ReferenceKey(name, 64, 64, 9, "float32")

    reference = EncodedReference(torch.zeros(1, 257, 8), torch.zeros(1, 16, 3, 8, 8))
    references = EncodedReferences(max_bytes=2 * reference.num_bytes)
    references.put(key("a"), reference)
    references.put(key("b"), reference)
    assert references.get(key("a")) is reference
    references.put(key("c"), reference)
    assert [references.get(key(name)) is not None for name in "abc"] == [True, False, True]
    assert len(references) == 2


def test_chunks_that_are_finished_beside_the_next_ones_steps_are_the_same(
    pipeline: InfiniteTalkPipeline, whole: list[Chunk]
) -> None:
    """As the worker does it: the next chunk is sampled in another thread, and may be there before."""
    conditions = pipeline.embed_prompts(picture(), [speech(22)], PROMPT, SETTINGS)

    def generate(should_stop: Callable[[], bool]) -> Iterator[DecodedChunk]:
        return pipeline.decoded_chunks(conditions, SETTINGS, Control(should_stop=should_stop))

    def generate_beside(should_stop: Callable[[], bool]) -> Iterator[DecodedChunk]:
        return pipeline.decoded_chunks(conditions, SETTINGS, Control(should_stop=should_stop, is_beside=True))

    with ThreadPoolExecutor(1) as thread, closing(run_ahead(generate, thread)) as chunks:
        finished = [chunk.finish(is_beside=True) for chunk in chunks]
    given: list[list[np.ndarray]] = []
    with ThreadPoolExecutor(1) as thread, closing(run_ahead(generate_beside, thread)) as chunks:
        for chunk in chunks:
            given.append([])
            chunk.finish(is_beside=True, on_frames=given[-1].append)
    assert len(given[-1]) > 1 == len(given[0]), "the frames of the last chunk come as they are decoded"
    for parts, expected in zip(given, whole, strict=True):
        assert np.array_equal(np.concatenate(parts), expected.frames)
    late = [chunk.finish() for chunk in list(pipeline.decoded_chunks(conditions, SETTINGS))]
    for made in (finished, late):
        for chunk, expected in zip(made, whole, strict=True):
            assert np.array_equal(chunk.frames, expected.frames)


def test_who_finishes_the_last_chunk_learns_that_its_frames_will_not_come(pipeline: InfiniteTalkPipeline) -> None:
    conditions = pipeline.embed_prompts(picture(), [speech(5)], PROMPT, SETTINGS)

    def generate(should_stop: Callable[[], bool]) -> Iterator[DecodedChunk]:
        for chunk in pipeline.decoded_chunks(conditions, SETTINGS, Control(should_stop=should_stop, is_beside=True)):
            chunk.sampled.latents.fill_(float("nan"))
            yield chunk

    with ThreadPoolExecutor(1) as thread, closing(run_ahead(generate, thread)) as chunks:
        with pytest.raises(DecodingEndedError):
            next(chunks).finish(is_beside=True)
        with pytest.raises(NotFiniteError, match="the decoded frames"):
            next(chunks)


class WatchfulPipeline(InfiniteTalkPipeline):
    """Counts the decoded videos that are still in memory when a chunk is sampled."""

    def __init__(self, networks: Networks) -> None:
        super().__init__(networks)
        self.decoded: list[weakref.ref[torch.Tensor]] = []
        self.alive: list[int] = []

    def sample(self, *arguments: Any) -> SampledChunk:
        self.alive.append(sum(video() is not None for video in self.decoded))
        return super().sample(*arguments)

    def decode(self, sampled: SampledChunk) -> torch.Tensor:
        decoded = super().decode(sampled)
        self.decoded.append(weakref.ref(decoded))
        return decoded


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_decoded_chunk_is_gone_when_the_next_is_sampled(networks: Networks, strength: float) -> None:
    watchful = WatchfulPipeline(networks)
    kept = list(watchful(picture(), [speech(17)], PROMPT, replace(SETTINGS, color_correction_strength=strength)))
    assert len(kept) == 3
    assert watchful.alive == [0, 0, 0]


def test_speakers_of_different_lengths_are_an_error(pipeline: InfiniteTalkPipeline) -> None:
    with pytest.raises(ValueError, match=r"\[9, 10\] rows"):
        list(pipeline(picture(), [speech(9), speech(10)], PROMPT, SETTINGS))


@pytest.mark.parametrize("num_speakers", [2, 3])
def test_several_speakers_are_served_each_by_their_own_voice(models: Models, num_speakers: int) -> None:
    pipeline = InfiniteTalkPipeline(models.prepare(NetworkChoice(torch.float32, adapter="multi")))
    settings = replace(SETTINGS, max_frame_num=9, color_correction_strength=0.0)
    voices = [speech(20, seed=seed) for seed in range(num_speakers)]
    straight = frames(pipeline(picture(), voices, PROMPT, settings))
    swapped = frames(pipeline(picture(), voices[::-1], PROMPT, settings))
    assert not np.array_equal(straight, swapped)


def test_a_region_that_is_lost_at_the_models_resolution_is_an_error(pipeline: InfiniteTalkPipeline) -> None:
    regions = default_regions(2, 60, 60)
    regions[1] = False
    regions[1, 1, 1] = True
    with pytest.raises(RegionError, match="person2"):
        list(pipeline(picture(), [speech(9), speech(9)], PROMPT, SETTINGS, regions=regions))


def test_both_scales_of_one_need_one_evaluation_a_step(pipeline: InfiniteTalkPipeline) -> None:
    settings = replace(SETTINGS, max_frame_num=9, audio_guide_scale=1.0)
    (chunk,) = pipeline(picture(), [speech(20)], PROMPT, settings)
    assert chunk.evaluations == 2


@pytest.mark.parametrize(("text_scale", "branches"), [(1.0, 2), (5.0, 3)])
def test_teacache_counts_what_it_skips_for_two_and_three_branches(
    pipeline: InfiniteTalkPipeline, text_scale: float, branches: int
) -> None:
    settings = replace(
        SETTINGS, max_frame_num=9, num_inference_steps=8, text_guide_scale=text_scale, teacache_threshold=1e9
    )
    (chunk,) = pipeline(picture(), [speech(20)], PROMPT, settings)
    assert (chunk.evaluations, chunk.evaluations_skipped) == (5 * branches, 3 * branches)


def test_teacache_starts_anew_in_each_chunk(pipeline: InfiniteTalkPipeline) -> None:
    settings = replace(SETTINGS, num_inference_steps=7, teacache_threshold=1e9)
    skipped = [chunk.evaluations_skipped for chunk in pipeline(picture(), [speech(13)], PROMPT, settings)]
    assert skipped == [4, 4]


def test_frames_are_the_videos_pixels_rounded_and_cut() -> None:
    video = torch.randn(3, 5, 6, 8)
    expected = ((video + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 3, 0).numpy().astype(np.uint8)
    assert np.array_equal(to_frames(video), expected)
    assert to_frames(video).flags.c_contiguous


def test_a_state_survives_as_safetensors(tmp_path: Path) -> None:
    state = ChunkState(3, torch.randn(1, 16, 2, 4, 4), np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3))
    file = tmp_path / "state.safetensors"
    file.write_bytes(state.to_bytes())
    restored = ChunkState.from_bytes(file.read_bytes())
    assert restored.next_chunk == 3
    assert torch.equal(restored.motion_latents, state.motion_latents)
    assert np.array_equal(restored.held_frames, state.held_frames)
