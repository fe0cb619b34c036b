"""`dub.strength`: sampling starts from a film's own frames, so that its motion stays, and makes fewer steps."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.dub_strength import make_film, measure
from infinitetalk.embedded.tiny import ensure_tiny_model
from infinitetalk.encoders.vae import encode_frames
from infinitetalk.encoders.wav2vec2 import SpeechEmbeddings
from infinitetalk.errors import GenerationStopped
from infinitetalk.family import FLASHTALK, INFINITETALK
from infinitetalk.generation.chunks import ChunkPlan
from infinitetalk.generation.pipeline import ChunkState, InfiniteTalkPipeline, Step
from infinitetalk.generation.sampling import GenerationSettings, chunk_noise, first_latents, make_sampler
from infinitetalk.media.decode import MediaInfo, Picture, even_frames, extract_frames
from infinitetalk.media.sizes import resize_and_crop
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.models import Models
from infinitetalk.runtime.networks import Networks
from infinitetalk.worker.engine.footage import FootageReader
from infinitetalk.worker.engine.scenes import Scene
from infinitetalk.worker.traffic.fetch import Media
from schemas import Plan, Success
from tests.job_inputs import data_uri, scenes_bytes, small_job, speech_uri
from tests.local_jobs import LocalWorker
from tests.media_factory import HEIGHT, WIDTH, make_numbered_video, read_number

SETTINGS = GenerationSettings(
    frame_num=9,
    max_frame_num=1000,
    motion_frame=5,
    num_inference_steps=4,
    text_guide_scale=1.0,
    audio_guide_scale=1.0,
)
FILM, _ = make_film(num_frames=13, side=60)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    models = Models(ensure_tiny_model(tmp_path_factory.mktemp("tiny") / "model"), torch.device("cpu"))
    return models.prepare(NetworkChoice(torch.float32))


def footage(plan: ChunkPlan) -> Iterator[Tensor]:
    """The film's frames of a chunk, the last one repeated."""
    for index in range(plan.start, plan.start + plan.num_frames):
        yield torch.from_numpy(FILM[min(index, len(FILM) - 1)]).permute(2, 0, 1)


def generate(networks: Networks, strength: float, state: ChunkState | None = None, **options) -> list:
    settings = GenerationSettings(**(vars(SETTINGS) | {"strength": strength}))
    speech = SpeechEmbeddings.from_tensor(torch.randn(13, 12, 32, generator=torch.Generator().manual_seed(0)))
    source = Picture(torch.from_numpy(FILM[0]).permute(2, 0, 1))
    pipeline = InfiniteTalkPipeline(networks)
    return list(pipeline(source, [speech], "A woman talks", settings, state=state, **options))


@pytest.mark.parametrize(
    ("steps", "strength", "made"), [(40, 1.0, 40), (40, 0.3, 12), (8, 0.3, 2), (5, 0.5, 3), (4, 0.01, 1), (1, 0.5, 1)]
)
@pytest.mark.parametrize("family", [INFINITETALK, FLASHTALK])
def test_the_steps_are_the_last_ones_of_the_schedule(family, steps, strength, made) -> None:
    settings = GenerationSettings(num_inference_steps=steps, strength=strength)
    whole = make_sampler(GenerationSettings(num_inference_steps=steps), family).stepper
    stepper = make_sampler(settings, family).stepper
    assert settings.num_steps == made
    assert torch.equal(stepper.timesteps, whole.timesteps[steps - made :])
    assert torch.equal(stepper.sigmas, whole.sigmas[steps - made :])


def test_sampling_starts_from_the_film_with_the_first_steps_noise(networks: Networks) -> None:
    noise, source = chunk_noise(1, 0, 0, (1, 16, 3, 4, 4)), chunk_noise(2, 0, 0, (1, 16, 3, 4, 4))
    begun = first_latents(noise, torch.tensor([600.0, 300.0]), source)
    torch.testing.assert_close(begun, 0.4 * source + 0.6 * noise)
    assert first_latents(noise, torch.tensor([1000.0]), None) is noise


def test_the_films_own_frames_of_the_chunk_are_encoded(networks: Networks) -> None:
    pipeline = InfiniteTalkPipeline(networks)
    speech = SpeechEmbeddings.from_tensor(torch.zeros(13, 12, 32))
    source = Picture(torch.from_numpy(FILM[0]).permute(2, 0, 1))
    conditions = pipeline.embed_prompts(source, [speech], "x", SETTINGS, footage=footage)
    video = pipeline.set_up(conditions, SETTINGS)
    frames = [resize_and_crop(frame, video.height, video.width) for frame in footage(video.plans[1])]
    pixels = torch.stack(frames, dim=1)[None] / 127.5 - 1.0
    expected = encode_frames(networks.vae, pixels)
    assert expected.shape[2] == 3
    torch.testing.assert_close(pipeline.encode_footage(video, video.plans[1]), expected)


def test_strength_one_is_as_without_and_reads_no_footage(networks: Networks) -> None:
    def refuse(plan: ChunkPlan) -> Iterator[Tensor]:
        raise AssertionError("footage was read")

    found, plain = generate(networks, 1.0, footage=refuse), generate(networks, 1.0)
    assert all(np.array_equal(one.frames, other.frames) for one, other in zip(found, plain, strict=True))


def test_a_job_resumed_at_a_strength_gives_the_same_frames_and_steps_are_told(networks: Networks) -> None:
    told: list[Step] = []
    whole = generate(networks, 0.5, footage=footage, on_step=told.append)
    assert [(step.chunk, step.step, step.num_steps) for step in told] == [(1, 1, 2), (1, 2, 2), (2, 1, 2), (2, 2, 2)]
    state = ChunkState.from_bytes(whole[0].state.to_bytes())
    (resumed,) = generate(networks, 0.5, state, footage=footage)
    assert np.array_equal(resumed.frames, whole[1].frames)
    assert not np.array_equal(whole[0].frames, generate(networks, 1.0)[0].frames)


def test_a_strength_without_footage_is_an_error(networks: Networks) -> None:
    with pytest.raises(ValueError, match=r"strength is 0\.5; below 1, footage must be given"):
        generate(networks, 0.5)


@pytest.mark.parametrize(("start", "numbers"), [(0, [0, 1, 2, 3, 4]), (8, [8, 9, 9, 9, 9]), (20, [9, 9, 9, 9, 9])])
def test_footage_goes_on_with_the_last_frame_where_the_film_has_ended(tmp_path: Path, start, numbers) -> None:
    make_numbered_video(tmp_path / "film.mp4", range(10), "25")
    source = Media(tmp_path / "film.mp4", MediaInfo("video", 64, 64, 0.4, False))
    plan = ChunkPlan(0, start, 5, 0, 5, 0, 0)
    with FootageReader(source, None, (HEIGHT, WIDTH), [start], 5, lambda: False) as footage:
        frames = list(footage.chunk(Scene(0, 30), plan))
    assert [read_number(frame.permute(1, 2, 0).numpy()) for frame in frames] == numbers


@pytest.mark.parametrize("first_chunk", [0, 1, 2])
def test_footage_is_decoded_once_and_a_resumed_job_reads_the_same_frames(
    first_chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two scenes: the second begins where the last chunk of the first has not ended."""
    make_numbered_video(tmp_path / "film.mp4", range(30), "30")
    source = Media(tmp_path / "film.mp4", MediaInfo("video", HEIGHT, WIDTH, 1.0, False))
    (tmp_path / "whole").mkdir()
    whole = extract_frames(source.path, tmp_path / "whole", 1, 13)
    read: list[tuple[int, int]] = []

    def reading(path: Path, start: int, count: int, should_stop):
        read.append((start, count))
        return even_frames(path, start, count, should_stop)

    monkeypatch.setattr("infinitetalk.worker.engine.footage.even_frames", reading)
    chunks = [(Scene(0, 7), 0), (Scene(0, 7), 4), (Scene(7, 6), 0)]
    starts = [0, 4, 7]
    with FootageReader(source, None, (HEIGHT, WIDTH), starts, 6, lambda: False) as footage:
        for scene, start in chunks[first_chunk:]:
            frames = list(footage.chunk(scene, ChunkPlan(0, start, 6, 0, 6, 0, 0)))
            numbers = range(scene.start + start, scene.start + start + 6)
            assert all(torch.equal(frame, whole.frame_at(n / 25)) for frame, n in zip(frames, numbers, strict=True))
    assert read == [(starts[first_chunk], 13 - starts[first_chunk])]


def test_a_cancelled_job_reads_no_further_footage(tmp_path: Path) -> None:
    make_numbered_video(tmp_path / "film.mp4", range(30), "25")
    source = Media(tmp_path / "film.mp4", MediaInfo("video", HEIGHT, WIDTH, 1.0, False))
    frames: list[Tensor] = []
    with (
        pytest.raises(GenerationStopped),
        FootageReader(source, None, (HEIGHT, WIDTH), [0], 20, lambda: len(frames) == 3) as footage,
    ):
        for frame in footage.chunk(Scene(0, 30), ChunkPlan(0, 0, 20, 0, 20, 0, 0)):
            frames.append(frame)
    assert len(frames) == 3


def test_a_plan_says_the_evaluations_and_the_job_makes_them(local_worker: LocalWorker) -> None:
    changes = {
        "cond_video": data_uri(scenes_bytes([6]), "video/mp4"),
        "cond_audio": {"person1": speech_uri(0.4)},
        "mode": "streaming",
        "sample_steps": 5,
        "dub": {"strength": 0.4, "keep": "none"},
    }
    plan = Plan.model_validate(
        local_worker.run({"id": "job-1", "input": small_job(**changes, dry_run=True)}), strict=False
    )
    result = Success.model_validate(local_worker.run({"id": "job-1", "input": small_job(**changes)}), strict=False)
    assert plan.evaluations == result.evaluations == plan.num_chunks * 2 * 2
    assert result.params["dub"]["strength"] == 0.4
    # A recipe keeps the strength, and makes its share of the recipe's own steps.
    assert {cost.recipe: cost.evaluations for cost in plan.recipes}["quality"] == plan.num_chunks * 2 * 2


def test_a_picture_is_refused(local_worker: LocalWorker) -> None:
    error = local_worker.run({"id": "job-1", "input": small_job(dub={"strength": 0.5, "keep": "none"})})["error"]
    assert error["code"] == "E_INPUT_VALIDATION"
    assert "dub.strength 0.5 needs a video as cond_video: an image has no motion to keep" in error["message"]


def test_the_films_motion_stays_the_more_the_lower_the_strength(tmp_path: Path) -> None:
    """A short form of `python -m benchmarks.dub_strength`."""
    low, high = measure(tmp_path, (0.2, 1.0), (1.0,), num_frames=21)
    assert low.correlation > 0.6
    assert low.correlation > high.correlation + 0.3
    assert (low.planned, low.evaluations) == (4, 4)
