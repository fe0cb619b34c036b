"""A worker with two checkpoints: each job has its own weights, and memory holds what fits."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import psutil
import pytest
import structlog
import torch

from infinitetalk.errors import CheckpointError
from infinitetalk.family import FLASHTALK, INFINITETALK, Family
from infinitetalk.generation.pipeline import Finisher
from infinitetalk.media.decode import Picture, probe
from infinitetalk.recipes import RECIPES
from infinitetalk.runtime.memory import GIB, DoesNotFitError, MemoryMode, Workload
from infinitetalk.weights.convert import convert
from infinitetalk.weights.layouts import CheckpointPaths
from infinitetalk.weights.locate import MissingWeightsError
from infinitetalk.worker.engine import Engine, Scene, VideoRequest, plan_scenes
from infinitetalk.worker.engine.placement import MemoryBudget, ModeChooser, model_sizes
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.traffic.fetch import Media
from schemas import SingleJob
from tests import checkpoint_factory as factory
from tests.job_inputs import picture_bytes, small_job, speech_uri
from tests.local_jobs import LocalWorker

FAMILIES = (INFINITETALK, FLASHTALK)
#: Of the videos.
NUM_FRAMES = 9
#: Of the published model.
SIZES = INFINITETALK.model_sizes


def job_of(family: Family) -> SingleJob:
    """A job of one chunk, by FlashTalk's recipe or by none."""
    job = SingleJob.model_validate(small_job(sample_audio_guide_scale=1.0, frame_num=NUM_FRAMES))
    return job.by_recipe(RECIPES["flashtalk"]) if family is FLASHTALK else job


class Worker:
    """Makes videos, one after the other.

    Attributes:
        engine: its engine; networks are loaded.
    """

    def __init__(self, settings: Settings, folder: Path, gib: float | None = None) -> None:
        """`gib`: memory of a GPU that the worker believes to have, with the published model's sizes."""
        budget = None if gib is None else MemoryBudget(int(gib * GIB), SIZES)
        self.engine = Engine(settings, lambda *_: budget)
        self.engine.start()
        self.engine.finish_loading()
        folder.mkdir(exist_ok=True)
        self._folder = folder
        picture = folder / "picture.png"
        picture.write_bytes(picture_bytes())
        self._source = Media(picture, probe(picture), Picture.open(picture))

    def make(self, family: Family) -> np.ndarray:
        """The frames of a video, uint8 (T, H, W, 3)."""
        job = job_of(family)
        track = 0.1 * np.sin(np.arange(round(NUM_FRAMES / 25 * 16_000)) / 8).astype(np.float32)
        speech = self.engine.embed(job, [track])
        networks = self.engine.prepare(job, self._source.info)
        request = VideoRequest(job, 1, self._source, speech, None, self._folder, networks, [Scene(0, len(speech[0]))])
        (chunk,) = self.engine.generate(request, lambda: False, lambda _: None)
        return chunk.finish().frames

    def prepare(self, family: Family) -> None:
        self.engine.prepare(job_of(family), self._source.info)


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    """Folders for the temporary files of workers."""
    return (tmp_path / f"worker-{number}" for number in count())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(infinitetalk_model="tiny", tiny_dir=tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Small checkpoints of both families in their published layouts."""
    folder = tmp_path_factory.mktemp("published")
    base, adapters = factory.save_served_infinitetalk(folder)
    return Settings(
        infinitetalk_model="published",
        ckpt_dir=base,
        infinitetalk_dir=adapters,
        flashtalk_dir=factory.save_served_flashtalk(folder / "flashtalk"),
        wav2vec_dir=factory.save_speech_encoder(folder / "wav2vec2"),
        volume_dir=folder,
    )


def alone(published: Settings, family: Family) -> Settings:
    """With the weights of one family."""
    others = ("flashtalk_dir",) if family is INFINITETALK else ("ckpt_dir", "infinitetalk_dir")
    return published.model_copy(update=dict.fromkeys(others))


# Frames.


def test_alternating_jobs_have_the_frames_of_a_fresh_worker_each(published: Settings, folders: Iterator[Path]) -> None:
    fresh = {"infinitetalk": Worker(published, next(folders)).make(INFINITETALK)}
    own = published.model_copy(update={"default_recipe": "flashtalk"})
    fresh["flashtalk"] = Worker(own, next(folders)).make(FLASHTALK)
    assert fresh["infinitetalk"].shape == fresh["flashtalk"].shape == (NUM_FRAMES, 64, 64, 3)
    assert not np.array_equal(fresh["infinitetalk"], fresh["flashtalk"])
    worker = Worker(published, next(folders))
    names = [worker.engine.model_name_for(job_of(family)) for family in FAMILIES]
    assert len(set(names)) == 2
    assert len({worker.engine.weights_for(job_of(family)) for family in FAMILIES}) == 2
    for family in (FLASHTALK, INFINITETALK, FLASHTALK, INFINITETALK):
        assert np.array_equal(worker.make(family), fresh[family.name])


def test_flashtalk_is_served_from_every_form_of_its_folder(
    published: Settings, tmp_path: Path, folders: Iterator[Path]
) -> None:
    settings = alone(published, FLASHTALK)

    def frames(folder: Path) -> np.ndarray:
        worker = Worker(settings.model_copy(update={"flashtalk_dir": folder}), next(folders))
        worker.engine.check_weights()
        return worker.make(FLASHTALK)

    assert settings.flashtalk_dir is not None and settings.wav2vec_dir is not None
    sharded = frames(settings.flashtalk_dir)
    assert np.array_equal(frames(factory.save_served_flashtalk(tmp_path / "single", shards=1)), sharded)
    bfloat16 = factory.save_served_flashtalk(tmp_path / "bfloat16", torch.bfloat16)
    paths = CheckpointPaths(bfloat16, {}, settings.wav2vec_dir, family=FLASHTALK)
    for name in ("converted", "fp8"):
        convert(paths, tmp_path / name, fp8=name == "fp8")
        factory.describe_as_small(tmp_path / name)
    assert np.array_equal(frames(tmp_path / "converted"), frames(bfloat16))
    rounded = frames(tmp_path / "fp8")
    assert rounded.shape == sharded.shape and rounded.std() > 0


# Memory.


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_memory_stays_flat_over_twenty_switches(published: Settings, folders: Iterator[Path]) -> None:
    worker, process = Worker(published, next(folders)), psutil.Process()
    for family in (FLASHTALK, INFINITETALK):
        worker.make(family)
    for family in (FLASHTALK, INFINITETALK):
        worker.prepare(family)
    tensors, resident = live_tensors(), process.memory_info().rss
    for _ in range(10):
        worker.prepare(FLASHTALK)
        worker.prepare(INFINITETALK)
    assert live_tensors() <= tensors
    assert process.memory_info().rss - resident < 20e6


def freed(worker: Worker, *families: Family) -> list[str]:
    """Names of the models that are freed while networks for such jobs are prepared."""
    with structlog.testing.capture_logs() as logs:
        for family in families:
            worker.prepare(family)
    return [line["details"]["model"] for line in logs if line["event"] == "model.freed"]


def test_networks_of_both_stay_where_the_gpu_has_room_and_else_the_others_are_freed(
    published: Settings, folders: Iterator[Path]
) -> None:
    roomy = Worker(published, next(folders), gib=120)
    assert freed(roomy, FLASHTALK, INFINITETALK, FLASHTALK) == []
    small = Worker(published, next(folders), gib=79)
    assert freed(small, FLASHTALK, FLASHTALK, INFINITETALK) == ["small-wan", "small-flashtalk"]
    # A CPU's memory is not counted: one at a time.
    assert freed(Worker(published, next(folders)), FLASHTALK, INFINITETALK) == ["small-wan", "small-flashtalk"]


def test_weights_that_stream_from_the_hosts_memory_are_alone_in_it() -> None:
    workload = Workload(33, 640, 640, FLASHTALK)
    choosers = [ModeChooser(MemoryBudget(150 * GIB, SIZES), family) for family in FAMILIES]
    streaming = MemoryMode("fp8", 0, stream_text_encoder=True)
    for modes, fits in (
        ((MemoryMode(), MemoryMode()), True),
        ((streaming, MemoryMode()), False),
        ((MemoryMode(), streaming), False),
    ):
        assert choosers[1].has_room_beside(modes[0], workload, choosers[0], modes[1]) == fits
    narrow = ModeChooser(MemoryBudget(90 * GIB, SIZES), FLASHTALK)
    assert not narrow.has_room_beside(MemoryMode(), workload, choosers[0], MemoryMode())


def test_a_job_that_runs_out_of_memory_beside_another_model_is_told_to_come_again(
    published: Settings, folders: Iterator[Path]
) -> None:
    worker = Worker(published, next(folders), gib=120)
    worker.prepare(FLASHTALK)
    job = job_of(INFINITETALK)
    source = worker._source
    speech = worker.engine.embed(job, [np.zeros(16_000, dtype=np.float32)])
    networks = worker.engine.prepare(job, source.info)
    scenes = plan_scenes(job, source, len(speech[0]), lambda: False)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    handle = networks.transformer.register_forward_pre_hook(fail)
    request = VideoRequest(job, 1, source, speech, None, source.path.parent, networks, scenes)
    with pytest.raises(DoesNotFitError, match="too little memory for two models: send the job again") as raised:
        list(worker.engine.generate(request, lambda: False, lambda _: None))
    assert raised.value.retryable
    handle.remove()
    # From now on, one at a time.
    assert freed(worker, INFINITETALK, FLASHTALK) == ["small-wan"]


def test_a_job_whose_chunks_cannot_be_finished_for_lack_of_memory_is_the_last_in_its_mode(
    published: Settings, folders: Iterator[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(alone(published, FLASHTALK), next(folders), gib=120)
    job = job_of(FLASHTALK)
    source = worker._source
    speech = worker.engine.embed(job, [np.zeros(16_000, dtype=np.float32)])
    networks = worker.engine.prepare(job, source.info)
    scenes = plan_scenes(job, source, len(speech[0]), lambda: False)
    request = VideoRequest(job, 1, source, speech, None, source.path.parent, networks, scenes)
    chunk = next(worker.engine.generate(request, lambda: False, lambda _: None))

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Finisher, "finish", fail)
    with pytest.raises(DoesNotFitError, match="will run it in the mode float32, text encoder streamed") as raised:
        worker.engine.finish(request, chunk, lambda frames: None)
    assert raised.value.retryable
    before, after = networks.choice.memory, worker.engine.prepare(job, source.info).choice.memory
    assert after == replace(before, stream_text_encoder=True)


# What is there.


def test_a_worker_of_flashtalk_alone_serves_its_recipes_only(published: Settings, folders: Iterator[Path]) -> None:
    worker = Worker(alone(published, FLASHTALK), next(folders))
    worker.engine.check_weights()
    worker.engine.check_memory()
    assert worker.engine.lacks(RECIPES["flashtalk"]) is None
    assert worker.engine.lacks(RECIPES["quality"]) == (
        "recipe quality needs Wan2.1-I2V-14B-480P, InfiniteTalk: fetch them by "
        "`python -m infinitetalk.weights download base-480 adapter`, or set CKPT_DIR, INFINITETALK_DIR"
    )
    assert worker.make(FLASHTALK).shape == (NUM_FRAMES, 64, 64, 3)
    with pytest.raises(MissingWeightsError, match=r"InfiniteTalk-14B needs .*download base-480 adapter"):
        worker.prepare(INFINITETALK)


def test_a_worker_of_infinitetalk_alone_says_how_to_get_flashtalk(published: Settings) -> None:
    engine = Engine(alone(published, INFINITETALK))
    assert engine.lacks(RECIPES["quality"]) is None
    message = engine.lacks(RECIPES["flashtalk"])
    assert message is not None and "needs SoulX-FlashTalk-14B: fetch it by" in message
    assert engine.lacks(RECIPES["lora-8"]) is not None


def test_settings_of_flashtalk_alone_mean_the_published_model(tmp_path: Path) -> None:
    assert Settings(flashtalk_dir=tmp_path).model == "published"


def test_a_second_checkpoint_that_is_damaged_fails_its_own_jobs_only(
    published: Settings, tmp_path: Path, folders: Iterator[Path]
) -> None:
    damaged = factory.save_served_flashtalk(tmp_path / "damaged")
    file = damaged / "diffusion_pytorch_model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    worker = Worker(published.model_copy(update={"flashtalk_dir": damaged}), next(folders))
    with structlog.testing.capture_logs() as logs:
        worker.engine.check_weights()
    (line,) = [line for line in logs if line["event"] == "checkpoint.unfit"]
    assert line["details"]["family"] == "flashtalk" and file.name in line["details"]["reason"]
    with pytest.raises(CheckpointError, match=file.name):
        worker.make(FLASHTALK)
    assert worker.make(INFINITETALK).shape == (NUM_FRAMES, 64, 64, 3)
    assert not worker.engine.health.is_broken


def test_a_dry_run_says_which_recipe_it_leaves_out_since_its_checkpoint_is_damaged(
    published: Settings, tmp_path: Path
) -> None:
    damaged = factory.save_served_flashtalk(tmp_path / "damaged")
    file = damaged / "diffusion_pytorch_model-00002-of-00003.safetensors"
    file.write_bytes(b"no weights")
    settings = published.model_copy(update={"flashtalk_dir": damaged, "output_dir": tmp_path})
    # As on a GPU, where a checkpoint's size is read from its files.
    engine = Engine(settings, lambda _, paths: MemoryBudget(79 * GIB, model_sizes(paths)))
    engine.start()
    plan = LocalWorker(settings, engine, tmp_path).run({"id": "job-1", "input": small_job(dry_run=True)})
    assert plan["status"] == "planned"
    assert "quality" in [cost["recipe"] for cost in plan["recipes"]]
    left_out = [warning for warning in plan["warnings"] if "recipes leaves out" in warning]
    assert [warning.partition(":")[0] for warning in left_out] == [
        'recipes leaves out "flashtalk"',
        'recipes leaves out "flashtalk-12"',
    ]
    assert all(file.name in warning for warning in left_out)


def unguided(**changes: object) -> dict[str, object]:
    """A payload that leaves steps and guidance to the recipe."""
    payload = small_job(cond_audio={"person1": speech_uri(0.2)}, **changes)
    for field in ("sample_steps", "sample_text_guide_scale", "sample_audio_guide_scale"):
        payload.pop(field)
    return payload


def test_jobs_choose_their_model_by_recipe(tmp_path: Path, tiny: Settings) -> None:
    """The whole job, from payload to result."""
    settings = tiny.model_copy(update={"output_dir": tmp_path, "volume_dir": tmp_path, "webhook_get_job": "set"})
    engine = Engine(settings)
    engine.start()
    engine.finish_loading()
    worker = LocalWorker(settings, engine, tmp_path)
    payloads = [unguided(recipe="flashtalk"), unguided() | {"sample_steps": 2}, unguided(recipe="flashtalk")]
    results = [worker.run({"id": f"job-{number}", "input": payload}) for number, payload in enumerate(payloads)]
    assert [result["model"] for result in results] == ["tiny-random-flashtalk", "tiny-random", "tiny-random-flashtalk"]
    assert [result["evaluations"] for result in results] == [4, 6, 4]


def test_the_handler_serves_flashtalk_from_its_published_folder(published: Settings, tmp_path: Path) -> None:
    names = ("ckpt_dir", "infinitetalk_dir", "flashtalk_dir", "wav2vec_dir")
    environment = {name.upper(): str(getattr(published, name)) for name in names}
    finished = subprocess.run(
        [
            sys.executable,
            "handler.py",
            "--test_input",
            json.dumps({"id": "job-1", "input": unguided(recipe="flashtalk")}),
        ],
        env={**os.environ, **environment, "OUTPUT_DIR": str(tmp_path), "VOLUME_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert '"model": "small-flashtalk"' in finished.stdout
