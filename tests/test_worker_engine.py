"""The engine: networks are in the state that a job asks for, whatever the worker has done before."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infinitetalk.embedded.tiny import TALKER_FOLDER
from infinitetalk.family import INFINITETALK
from infinitetalk.media.decode import MediaInfo
from infinitetalk.runtime.kernels.registry import Kernels
from infinitetalk.runtime.memory import GIB, DoesNotFitError, MemoryMode, Workload
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.engine.checkpoint import (
    PublishedCheckpoint,
    RandomCheckpoint,
    TalkerCheckpoint,
    find_checkpoints,
)
from infinitetalk.worker.engine.conditions import workload_of
from infinitetalk.worker.engine.placement import Devices, MemoryBudget, ModeChooser
from infinitetalk.worker.settings import ALLOCATION, Settings, default_environment
from schemas import SingleJob
from tests import checkpoint_factory as factory
from tests.job_inputs import small_job

PICTURE = MediaInfo("image", height=640, width=640, duration_s=0.0, has_audio=False)
SMALL = Workload(num_frames=81, height=640, width=640)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A small checkpoint in the published layout, with quantised text encoders."""
    folder = tmp_path_factory.mktemp("published")
    quantised = folder / "quant_models"
    tensors = factory.text_encoder_tensors()
    for kind in ("fp8", "int8"):
        factory.save_quanto(quantised / f"t5_{kind}.safetensors", quantised / f"t5_map_{kind}.json", tensors, kind)
    return Settings(
        infinitetalk_model="published",
        ckpt_dir=factory.save_original_base(folder / "base"),
        infinitetalk_dir=factory.save_adapters(folder / "adapters"),
        wav2vec_dir=TALKER_FOLDER / "wav2vec2",
        quant_dir=quantised,
        volume_dir=folder,
    )


def job(**changes: object) -> SingleJob:
    return SingleJob.model_validate(small_job(**changes))


def test_a_job_with_teacache_counts_what_each_branch_keeps() -> None:
    branches = [
        workload_of(job(**changes), PICTURE, INFINITETALK, 1.0, 1).cached_branches
        for changes in (
            {},
            {"use_teacache": True, "sample_text_guide_scale": 5.0, "sample_audio_guide_scale": 4.0},
            {"use_teacache": True, "sample_text_guide_scale": 1.0, "sample_audio_guide_scale": 4.0},
            {"use_teacache": True, "sample_text_guide_scale": 1.0, "sample_audio_guide_scale": 1.0},
        )
    ]
    assert branches == [0, 3, 2, 1]


def started(settings: Settings, free_gib: float) -> Engine:
    """An engine that has loaded its networks as on a GPU of so much memory, with the published model's sizes."""
    engine = Engine(settings, lambda *_: MemoryBudget(int(free_gib * GIB), INFINITETALK.model_sizes))
    engine.start()
    engine.finish_loading()
    return engine


def test_the_same_job_has_the_same_prompt_embeddings_in_workers_that_were_started_in_other_modes(
    published: Settings,
) -> None:
    roomy, small = started(published, 79), started(published, 40)
    # What they have served before must not matter either.
    small.prepare(job(quant="int8"), PICTURE)
    found = {}
    for quant in ("int8", None, "int8"):
        for engine in (roomy, small):
            networks = engine.prepare(job(quant=quant), PICTURE)
            embeddings = networks.prompt_encoder("A man sings.").clone()
            found.setdefault((engine, quant), []).append((embeddings, engine.arithmetic(networks.choice)))
    in_int8 = [*found[roomy, "int8"], *found[small, "int8"]]
    for embeddings, arithmetic in in_int8:
        assert torch.equal(embeddings, in_int8[0][0])
        assert arithmetic == in_int8[0][1]
    # Left to themselves, one takes 16 bits and the other fp8: numbers differ, and what is recorded of them tells.
    (wide, wide_arithmetic), (narrow, narrow_arithmetic) = found[roomy, None][0], found[small, None][0]
    assert not torch.equal(wide, narrow)
    assert (wide_arithmetic.precision, narrow_arithmetic.precision) == ("float32", "fp8")
    assert wide_arithmetic != narrow_arithmetic
    assert not torch.equal(wide, in_int8[0][0])


def test_settings_name_the_checkpoint(published: Settings, tmp_path: Path) -> None:
    kinds = {"published": PublishedCheckpoint, "talker": TalkerCheckpoint, "tiny": RandomCheckpoint}
    for model, kind in kinds.items():
        settings = published.model_copy(update={"infinitetalk_model": model, "tiny_dir": tmp_path / "tiny"})
        checkpoint = find_checkpoints(settings).of(INFINITETALK)
        assert type(checkpoint) is kind
        assert checkpoint.is_published == (model == "published")
        checkpoint.check()
        checkpoint.check_memory(16 * GIB)
        assert checkpoint.files().base.is_dir()
    with pytest.raises(DoesNotFitError):
        PublishedCheckpoint(find_checkpoints(published).of(INFINITETALK).files()).check_memory(GIB)


def test_a_job_that_ran_out_of_memory_is_placed_in_a_mode_that_takes_less() -> None:
    chooser = ModeChooser(MemoryBudget(79 * GIB, INFINITETALK.model_sizes), INFINITETALK)
    taken = chooser.choose(job(), SMALL)
    assert taken == chooser.choose_at_start(1) == MemoryMode()
    lesson = chooser.learn(job(), SMALL, taken, torch.bfloat16)
    assert lesson.retryable
    assert chooser.choose(job(), SMALL) == replace(taken, stream_text_encoder=True)
    assert "this worker will run it in the mode bf16, text encoder streamed" in str(lesson)


def test_where_no_mode_fits_a_job_is_told_what_would() -> None:
    chooser = ModeChooser(MemoryBudget(1 * GIB, INFINITETALK.model_sizes), INFINITETALK)
    with pytest.raises(DoesNotFitError, match="GPU with more memory"):
        chooser.choose(job(), SMALL)
    roomier = ModeChooser(MemoryBudget(30 * GIB, INFINITETALK.model_sizes), INFINITETALK)
    with pytest.raises(DoesNotFitError, match="offload_model false"):
        ModeChooser(MemoryBudget(20 * GIB, INFINITETALK.model_sizes), INFINITETALK).choose(
            job(offload_model=False), SMALL
        )
    assert roomier.choose(job(offload_model=False), SMALL).resident_parameters is None


def test_where_memory_is_not_counted_a_job_gets_what_it_asks_for() -> None:
    chooser = ModeChooser(None, INFINITETALK)
    assert chooser.choose_at_start(1) == MemoryMode()
    asked = job(quant="int8", num_persistent_param_in_dit=5, offload_model=True)
    assert chooser.choose(asked, SMALL) == MemoryMode("int8", 5, stream_text_encoder=True)
    assert chooser.learn(asked, SMALL, MemoryMode(), torch.float32) is None


def test_activations_are_quantised_only_where_there_is_memory_for_it() -> None:
    """In eager mode that takes twice an evaluation's memory, which the VAE in tiles does not need either."""
    mode = MemoryMode("fp8", stream_text_encoder=True, vae_tiling=True)
    fast = Kernels(attention="sage", products="fp8_rows")
    workload = Workload(num_frames=81, height=704, width=1280)
    for free, expected in ((33 * GIB, replace(fast, products="widened")), (44 * GIB, fast)):
        chooser = ModeChooser(MemoryBudget(free, INFINITETALK.model_sizes), INFINITETALK)
        assert chooser.affordable(fast, mode, workload) == expected
        assert chooser.affordable(Kernels(), mode, workload) == Kernels()
    assert ModeChooser(None, INFINITETALK).affordable(fast, mode, workload) == fast


def test_devices_of_a_group_are_numbered() -> None:
    group = Devices(torch.device("cuda", 0), 3)
    assert group.others == [torch.device("cuda", 1), torch.device("cuda", 2)]
    assert group.dtype == torch.bfloat16
    # Each GPU has one process, whichever is the first.
    assert Devices(torch.device("cuda", 1), 2).others == [torch.device("cuda", 0)]
    assert Devices(torch.device("cpu"), 2).others == [torch.device("cpu")]


def test_torch_is_told_how_to_take_memory_in_words_that_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ALLOCATION, "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    default_environment()
    (settings,) = (os.environ[name] for name in ALLOCATION)
    library = (Path(torch.__file__).parent / "lib" / "libc10.so").read_bytes()
    for setting in settings.split(","):
        assert setting.partition(":")[0].encode() + b"\0" in library
    # What an operator says, by either name, counts.
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:64")
    default_environment()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:64"
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    default_environment()
    assert "PYTORCH_ALLOC_CONF" not in os.environ
