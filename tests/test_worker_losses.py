"""What a job is told of its input's losses, LoRAs that do not fit, and results that are none."""

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from infinitetalk.embedded.tiny import ensure_tiny_model
from infinitetalk.runtime.models import Models
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.job.advice import (
    LONGEST_VIDEO,
    cut_speech,
    flat_chunks,
    mixed_arithmetic,
    unused_fields,
)
from infinitetalk.worker.settings import Settings
from schemas import BatchItem, S3Config, SingleJob, Stage
from tests.job_inputs import (
    SAMPLING_RATE,
    data_uri,
    picture_uri,
    small_job,
    speech_bytes,
    speech_uri,
)
from tests.local_jobs import LocalWorker
from tools.frames import read_frames

NAME = "diffusion_model.blocks.0.self_attn.q"
TWO = {"person1": speech_uri(0.2), "person2": speech_uri(0.2, 220)}


@pytest.fixture(scope="module")
def lora_engine(tiny_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An engine with a folder of LoRAs."""
    # transformers loads one model at a time in a process.
    tiny_engine.finish_loading()
    engine = Engine(Settings(infinitetalk_model="tiny", lora_dir=tmp_path_factory.mktemp("loras")))
    engine.start()
    return engine


@pytest.fixture
def worker(lora_engine: Engine, tmp_path: Path) -> Iterator[LocalWorker]:
    """A worker with LoRAs and a volume of its own."""
    settings = Settings(output_dir=tmp_path, volume_dir=tmp_path, webhook_get_job="set", infinitetalk_model="tiny")
    return LocalWorker(settings, lora_engine, tmp_path)


def lora_folder(worker: LocalWorker) -> Path:
    (folder,) = worker.engine.checkpoint.lora_folders
    return folder


def save(worker: LocalWorker, name: str, tensors: dict[str, Tensor], **metadata: str) -> list[dict[str, Any]]:
    """A LoRA in the worker's folder; returns the job's field."""
    save_file(tensors, lora_folder(worker) / name, metadata=metadata or None)
    return [{"name": name}]


def shapes_of(worker: LocalWorker) -> dict[str, tuple[int, ...]]:
    return Models(worker.engine.checkpoint.files(), torch.device("cpu")).transformer_shapes


def pair(worker: LocalWorker) -> dict[str, Tensor]:
    rows, columns = shapes_of(worker)["blocks.0.attn1.to_q.weight"]
    generator = torch.Generator().manual_seed(1)
    return {
        f"{NAME}.lora_A.weight": torch.randn(8, columns, generator=generator) / 8,
        f"{NAME}.lora_B.weight": torch.randn(rows, 8, generator=generator) / 8,
    }


def frames_of(worker: LocalWorker, **changes: Any) -> np.ndarray:
    result = worker.run({"id": "job-1", "input": small_job(**changes)})
    assert result["status"] == "success", result
    return read_frames(worker.volume / result["video"]["path"])


def error_of(worker: LocalWorker, **changes: Any) -> dict[str, Any]:
    return worker.run({"id": "job-1", "input": small_job(**changes)})["error"]


def warnings_of(worker: LocalWorker, **changes: Any) -> list[str]:
    """Those of a job, which its dry run gives too."""
    result = worker.run({"id": "job-1", "input": small_job(**changes)})
    assert result["status"] == "success", result
    plan = worker.run({"id": "job-2", "input": small_job(**changes, dry_run=True)})
    assert plan["warnings"] == result["warnings"]
    return result["warnings"]


# LoRAs and numbers that are none.


def test_a_lora_of_numbers_that_are_none_ends_its_job_after_the_first_step_and_leaves_the_next_alone(worker):
    before = frames_of(worker)
    damaged = {name: torch.full_like(tensor, torch.nan) for name, tensor in pair(worker).items()}
    loras = save(worker, "nan.safetensors", damaged)
    error = error_of(worker, loras=loras, sample_steps=4)
    assert (error["code"], error["at_stage"]) == ("E_GENERATION_RUNTIME", "sampling")
    assert "after step 1" in error["message"]
    assert "nan.safetensors" in error["message"]
    assert error["retryable"] is False
    steps = [event for event in worker.events if event.stage == Stage.SAMPLING and event.details]
    assert steps == []
    assert list(worker.volume.rglob("*.mp4")) == [worker.volume / "infinitetalk/jobs/job-1.mp4"]
    assert np.array_equal(frames_of(worker), before)


def test_a_lora_of_finite_numbers_that_overflow_ends_its_job_and_is_named(worker):
    large = {"diffusion_model.head.head.diff_b": 3e38 * torch.ones(64)}
    error = error_of(worker, loras=save(worker, "large.safetensors", large))
    assert (error["code"], error["retryable"]) == ("E_GENERATION_RUNTIME", False)
    assert "leave out the LoRAs one by one (large.safetensors)" in error["message"]


def test_weights_that_overflow_without_a_lora_may_be_another_workers_chance(tiny_engine: Engine, tmp_path: Path):
    # transformers loads one model at a time in a process.
    tiny_engine.finish_loading()
    settings = Settings(output_dir=tmp_path, volume_dir=tmp_path, infinitetalk_model="tiny", tiny_dir=tmp_path / "tiny")
    (weights,) = ensure_tiny_model(tmp_path / "tiny").base.glob("transformer/*.safetensors")
    tensors = load_file(weights)
    # Finite themselves: the steps of the sampling overflow.
    tensors["proj_out.bias"].fill_(3e38)
    save_file(tensors, weights)
    engine = Engine(settings)
    engine.start()
    error = error_of(LocalWorker(settings, engine, tmp_path))
    assert (error["code"], error["at_stage"], error["retryable"]) == ("E_GENERATION_RUNTIME", "sampling", True)
    assert "after step" in error["message"]
    assert "lower sample_text_guide_scale and sample_audio_guide_scale where they are high" in error["message"]
    assert "the worker's operator has to check its weights" in error["message"]
    assert "LoRA" not in error["message"]
    assert list(tmp_path.rglob("*.mp4")) == []


def test_alpha_in_the_metadata_is_applied(worker):
    tensors = pair(worker)
    strong = frames_of(worker, loras=save(worker, "alpha.safetensors", tensors, lora_alpha="32"))
    plain = save(worker, "plain.safetensors", tensors)
    assert np.array_equal(strong, frames_of(worker, loras=[plain[0] | {"scale": 4.0}]))
    assert not np.array_equal(strong, frames_of(worker, loras=plain))


def test_lightx2vs_modulation_is_applied(worker):
    before = frames_of(worker)
    shape = shapes_of(worker)["blocks.0.scale_shift_table"]
    tensors = pair(worker) | {"diffusion_model.blocks.0.diff_m": torch.ones(shape)}
    assert not np.array_equal(frames_of(worker, loras=save(worker, "lightx2v.safetensors", tensors)), before)


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_lora_that_cannot_be_laid_on_the_model_is_refused_before_anything_is_fetched(dry_run, worker):
    loras = save(worker, "dora.safetensors", pair(worker) | {f"{NAME}.dora_scale": torch.ones(4)})
    error = error_of(worker, loras=loras, dry_run=dry_run, cond_video="no/such/picture.png")
    assert (error["code"], error["at_stage"]) == ("E_INPUT_VALIDATION", "validation")
    assert error["message"].startswith("loras: dora.safetensors is a DoRA")
    assert Stage.DOWNLOAD not in worker.stages


FOUR_BYTES = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"a.lora_A.weight": 1},
        {"a.lora_A.weight": FOUR_BYTES | {"dtype": ["F32"]}},
        {"a.lora_A.weight": FOUR_BYTES | {"shape": [2]}},
        {"a.lora_A.weight": FOUR_BYTES | {"shape": [-1]}},
        {"a.lora_A.weight": FOUR_BYTES | {"shape": None}},
        {"a.lora_A.weight": FOUR_BYTES | {"data_offsets": [4]}},
        {"a.lora_A.weight": FOUR_BYTES | {"data_offsets": ["0", "4"]}},
        {"a.lora_A.weight": FOUR_BYTES | {"data_offsets": [4, 0]}},
        {"a.lora_A.weight": FOUR_BYTES | {"data_offsets": [-4, 0]}},
        {"a.lora_A.weight": {"dtype": "F32"}},
        {"a" * 100_000: FOUR_BYTES},
    ],
    ids=lambda header: str(header)[:60],
)
def test_a_lora_with_a_damaged_header_is_no_failure_of_the_worker(header, worker):
    text = json.dumps(header).encode()
    (lora_folder(worker) / "damaged.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    error = error_of(worker, loras=[{"name": "damaged.safetensors"}], dry_run=True)
    assert (error["code"], error["retryable"]) == ("E_INPUT_VALIDATION", False)
    assert error["message"].startswith("loras: damaged.safetensors")
    assert len(error["message"]) < 500


def test_the_length_that_another_kind_of_file_claims_for_a_header_is_not_read(worker):
    """The first bytes of a GGUF file are a header of 14 GB."""
    with (lora_folder(worker) / "renamed.safetensors").open("wb") as file:
        file.write(b"GGUF\3\0\0\0")
        file.truncate(20_000_000_000)
    error = error_of(worker, loras=[{"name": "renamed.safetensors"}], dry_run=True)
    assert error["message"].startswith("loras: renamed.safetensors is truncated or not a safetensors file")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora_alpha": 10**400}, "not a finite number"),
        ({"lora_alpha": 4, "alpha_pattern": {f"layer{number}": 4 for number in range(200_000)}}, "200000 patterns"),
        ({"lora_alpha": 4, "alpha_pattern": {"(([a-z]|[a-z0-9._])+)+!": 4}}, "too complicated"),
        ({"lora_alpha": 4, "alpha_pattern": {".*.*.*.*!": 4}}, "too complicated"),
        ({"lora_alpha": 4, "alpha_pattern": {"(" * 5000: 4}}, "too complicated"),
    ],
    ids=["huge", "many", "exponential", "polynomial", "long"],
)
def test_settings_of_a_lora_cost_little_and_are_no_failure_of_the_worker(settings, words, worker):
    loras = save(worker, "odd.safetensors", pair(worker), lora_config=json.dumps(settings))
    error = error_of(worker, loras=loras, dry_run=True)
    assert (error["code"], error["retryable"]) == ("E_INPUT_VALIDATION", False)
    assert error["message"].startswith("loras: odd.safetensors")
    assert words in error["message"]
    assert len(error["message"]) < 500


def test_a_lora_whose_alpha_is_not_known_is_warned_of(worker):
    tensors = {name.replace("diffusion_model.", "base_model.model."): tensor for name, tensor in pair(worker).items()}
    (warning,) = warnings_of(worker, loras=save(worker, "peft.safetensors", tensors))
    assert "adapter_config.json" in warning


def video_from_black(num_black: int, num_frames: int) -> bytes:
    """An MP4 of 25 fps: black at first, then a gradient."""
    rows, columns = np.mgrid[:64, :64]
    gradient = np.stack([rows * 4, columns * 4, np.full_like(rows, 90)], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, width=64, height=64, pix_fmt="yuv420p")
        for number in range(num_frames):
            pixels = np.zeros_like(gradient) if number < num_black else gradient
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def test_a_chunk_of_one_colour_is_warned_of_where_the_source_is_not(worker):
    """All frames are brought to the colours of the source's first, which is black; the second chunk's source is not."""
    changes = {
        "mode": "streaming",
        "cond_audio": {"person1": speech_uri(0.36)},
        "cond_video": data_uri(video_from_black(3, 12), "video/mp4"),
    }
    result = worker.run({"id": "job-1", "input": small_job(**changes)})
    (warning,) = result["warnings"]
    assert warning.startswith("chunk 2 of 2: nothing but one colour, unlike the source")
    uncorrected = worker.run({"id": "job-1", "input": small_job(**changes, color_correction_strength=0.0)})
    assert uncorrected["warnings"] == []
    assert flat_chunks([False, True, True]) == [warning.replace("chunk 2 of 2", "chunks 2, 3 of 3")]


def test_a_lora_that_is_replaced_under_its_name_is_read_anew(worker):
    tensors = pair(worker)
    other = {name: 2 * tensor for name, tensor in tensors.items()}
    first = frames_of(worker, loras=save(worker, "replaced.safetensors", tensors))
    second = frames_of(worker, loras=save(worker, "replaced.safetensors", other))
    assert not np.array_equal(first, second)
    assert np.array_equal(second, frames_of(worker, loras=save(worker, "another.safetensors", other)))


def wav_uri(waveform: np.ndarray) -> str:
    file = io.BytesIO()
    soundfile.write(file, waveform, SAMPLING_RATE, format="WAV", subtype="FLOAT")
    return data_uri(file.getvalue(), "audio/wav")


def test_sound_in_any_unit_gives_the_same_video(worker):
    waveform, _ = soundfile.read(io.BytesIO(speech_bytes(0.2)), dtype="float32")
    expected = frames_of(worker, cond_audio={"person1": wav_uri(waveform)})
    loud = frames_of(worker, cond_audio={"person1": wav_uri(waveform * np.float32(1e38))})
    assert np.abs(loud.astype(int) - expected).max() <= 2


# Losses.


def test_speech_that_is_cut_is_told_with_both_lengths_and_the_setting(worker):
    (clip,) = warnings_of(worker, cond_audio={"person1": speech_uri(1.2)}, frame_num=9)
    assert (
        clip
        == 'the speech is cut from 1.2 s to 0.36 s by frame_num 9 in mode "clip"; mode "streaming" takes longer speech'
    )
    changes = {"mode": "streaming", "max_frame_num": 9, "audio_type": "add"}
    (streaming,) = warnings_of(worker, **changes, cond_audio={"person1": speech_uri(1.2), "person2": speech_uri(0.8)})
    assert streaming == "the speech is cut from 2 s to 0.36 s by max_frame_num 9; 50 would hold all of it"
    assert warnings_of(worker, cond_audio={"person1": speech_uri(0.36)}, frame_num=9) == []


def test_a_text_that_is_cut_is_told_by_a_guess():
    job = SingleJob.model_validate(
        small_job(mode="streaming", cond_audio=None, tts_audio={"text": "x" * 900, "human1_voice": "am_adam"})
    )
    (warning,) = cut_speech(job, 60.0, is_estimate=True)
    assert warning == "the speech is cut from about 60 s to 40 s by max_frame_num 1000; 1800 would hold all of it"
    (warning,) = cut_speech(job, 4000.0, is_estimate=False)
    assert f"at most {LONGEST_VIDEO}" in warning


def test_a_prompt_longer_than_the_model_reads_is_told(worker):
    (warning,) = warnings_of(worker, prompt="word " * 900)
    assert warning.startswith("prompt has ")
    assert warning.endswith("tokens; the model reads the first 512")


JOB = {"loras": [], "cond_audio": {"person1": "a"}, "cond_video": "v", "prompt": "p"}
TEXT = {"text": "(s1) Hello.", "human1_voice": "am_adam", "human2_voice": "af_heart"}

#: For each field that may be without effect: what is set, and the words.
UNUSED: dict[str, tuple[dict[str, Any], str]] = {
    "audio_type": ({"audio_type": "add"}, "audio_type has no effect with one voice"),
    "audio_type, silent": (
        {"audio_type": "add", "cond_audio": {"person1": "a", "person2": None}},
        "audio_type has no effect with one voice",
    ),
    "audio_type, text": (
        {"audio_type": "add", "cond_audio": None, "tts_audio": {"text": "Hi.", "human1_voice": "am_adam"}},
        "audio_type has no effect with tts_audio",
    ),
    "speech": (
        {"speech": {"gate": "auto"}, "cond_audio": None, "tts_audio": {"text": "Hi.", "human1_voice": "am_adam"}},
        "speech has no effect with tts_audio",
    ),
    "tts_audio": ({"cond_audio": None, "tts_audio": TEXT}, "tts_audio.human2_voice has no effect"),
    "bbox": ({"bbox": {"person1": [0, 0, 9, 9]}}, "bbox has no effect with one speaker"),
    "mask": ({"mask": {"person1": "m"}}, "mask has no effect with one speaker"),
    "bbox_order": ({"bbox_order": "yx"}, "bbox_order has no effect without a bbox"),
    "regions": ({"regions": "faces"}, "regions has no effect with one speaker"),
    "regions, boxes": (
        {"regions": "faces", "cond_audio": TWO, "bbox": {"person1": [0, 0, 9, 9], "person2": [9, 0, 18, 9]}},
        "regions has no effect with bbox or mask",
    ),
    "dub": ({"dub": {"keep": "none"}}, 'dub has no effect with keep "none" and strength 1'),
    "output": ({"output": {"fps": "source"}}, "output has no effect on an image's frame times"),
    "scene_seg": ({"scene_seg": True}, "scene_seg has no effect with an image"),
    "max_frame_num": ({"max_frame_num": 500}, 'max_frame_num has no effect in mode "clip"'),
    "motion_frame": ({"motion_frame": 5}, "motion_frame has no effect in a video of one chunk"),
    "crossfade_frame": ({"crossfade_frame": 0}, "crossfade_frame has no effect in a video of one chunk"),
    "sample_shift": ({"sample_shift": 3.0, "sample_steps": 1}, "sample_shift has no effect with one step"),
    "negative_prompt": (
        {"negative_prompt": "ugly", "sample_text_guide_scale": 1.0},
        "negative_prompt has no effect with sample_text_guide_scale 1 without nag",
    ),
    "dub, strength": (
        {"dub": {"strength": 0.9}, "sample_steps": 4},
        "dub.strength 0.9 has no effect with sample_steps 4: it leaves out less than half a step",
    ),
    "nag": ({"nag": {}}, "nag has no effect with sample_text_guide_scale 5: guidance uses the negative prompt"),
    "nag, scale 1": ({"nag": {"scale": 1}, "sample_text_guide_scale": 1.0}, "nag has no effect with scale 1"),
    "use_teacache": ({"use_teacache": True, "sample_steps": 5}, "use_teacache has no effect with 5 steps or fewer"),
    "teacache_thresh": ({"teacache_thresh": 0.3}, "teacache_thresh has no effect without use_teacache"),
    "use_apg": (
        {"use_apg": True, "sample_text_guide_scale": 1.0, "sample_audio_guide_scale": 1.0},
        "use_apg has no effect with both guidance scales 1",
    ),
    "apg_momentum": ({"apg_momentum": 0.5}, "apg_momentum has no effect without use_apg"),
    "apg_norm_threshold": ({"apg_norm_threshold": 5.0}, "apg_norm_threshold has no effect without use_apg"),
    "loras": ({"loras": [{"name": "x", "scale": 0}]}, "LoRA x has no effect with scale 0"),
    "output_config": (
        {"output_config": {"store": "inline", "prefix": "mine"}},
        'output_config.prefix has no effect with store "inline"',
    ),
}
#: Fields that always have an effect, or whose values say themselves that there is to be none.
USED = {
    "prompt", "cond_video", "cond_audio", "dry_run", "size", "mode", "frame_num", "sample_steps", "id",
    "sample_text_guide_scale", "sample_audio_guide_scale", "color_correction_strength", "base_seed",
    "num_persistent_param_in_dit", "offload_model", "quant", "recipe", "script", "audio_mix",
}  # fmt: skip


def test_of_each_field_it_is_known_whether_it_can_be_without_effect() -> None:
    listed = {name.partition(",")[0] for name in UNUSED}
    assert listed | USED == set(BatchItem.model_fields)
    assert not listed & USED


@pytest.mark.parametrize(("changes", "words"), UNUSED.values(), ids=UNUSED)
def test_a_field_without_effect_is_told(changes: dict[str, Any], words: str) -> None:
    warnings = unused_fields(SingleJob.model_validate(JOB | changes), True, 1, None)
    assert [words in warning for warning in warnings] == [True]


@pytest.mark.parametrize(
    "changes",
    [
        {name: field.default for name, field in SingleJob.model_fields.items() if not field.is_required()} | JOB,
        {"negative_prompt": "ugly"},
        {"negative_prompt": "ugly", "sample_text_guide_scale": 0.0},
        {"use_teacache": True, "teacache_thresh": 0.3},
        {"use_apg": True, "apg_momentum": 0.5, "apg_norm_threshold": 5.0},
        {"audio_type": "add", "cond_audio": {"person1": "a", "person2": "b"}},
        {"bbox": {"person1": [0, 0, 9, 9], "person2": [9, 0, 18, 9]}, "bbox_order": "yx", "cond_audio": TWO},
        {"sample_shift": 3.0},
        {"negative_prompt": "ugly", "sample_text_guide_scale": 1.0, "nag": {}},
    ],
)
def test_defaults_and_fields_with_effect_are_not_told(changes: dict[str, Any]) -> None:
    assert unused_fields(SingleJob.model_validate(JOB | changes), True, 1, None) == []


def test_fields_of_a_kept_film_have_no_effect_where_none_is_kept() -> None:
    dub = {"keep": "none", "strength": 0.5, "margin": 1, "feather": 8}
    warnings = unused_fields(SingleJob.model_validate(JOB | {"sample_steps": 40, "dub": dub}), False, 1, None)
    assert warnings == [f'dub.{field} has no effect with dub.keep "none"' for field in ("feather", "margin")]


def test_fields_of_several_chunks_have_an_effect_in_several_chunks() -> None:
    job = SingleJob.model_validate(
        JOB | {"mode": "streaming", "motion_frame": 5, "crossfade_frame": 3, "max_frame_num": 99}
    )
    assert unused_fields(job, True, 2, None) == []
    longer = job.model_validate(JOB | {"mode": "streaming", "motion_frame": 6, "crossfade_frame": 9})
    (warning,) = unused_fields(longer, True, 2, None)
    assert warning.startswith("crossfade_frame 9 is 5 here")


def test_a_store_of_ones_own_that_is_not_used_is_told() -> None:
    job = SingleJob.model_validate(JOB | {"output_config": {"store": "volume"}})
    config = S3Config(endpointUrl="https://s3.example", accessId="x", accessSecret="y", bucketName="bucket")
    assert unused_fields(job, True, 1, config) == ['s3Config has no effect with store "volume"']


def test_a_job_is_told_of_fields_without_effect(worker):
    warnings = warnings_of(worker, max_frame_num=50, teacache_thresh=0.5, negative_prompt="ugly")
    assert warnings == [
        'max_frame_num has no effect in mode "clip"',
        "negative_prompt has no effect with sample_text_guide_scale 1 without nag",
        "teacache_thresh has no effect without use_teacache",
    ]


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"bbox": {"person1": [0, 0, 64, 64], "person2": [0, 0, 64, 64]}}, "person1 and person2 have the same region"),
        ({"bbox": {"person1": [0, 0, 40, 64], "person2": [24, 0, 64, 64]}}, "person1 and person2 overlap by 40%"),
        ({"bbox": {"person1": [0, 0, 32, 64], "person2": [32, 0, 64, 64]}}, None),
        (
            {"mask": {"person1": picture_uri(white=slice(0, 64)), "person2": picture_uri(white=slice(0, 64))}},
            "person1 and person2 have the same region",
        ),
        (
            {"mask": {"person1": picture_uri(white=slice(0, 64)), "person2": picture_uri(white=slice(32, 64))}},
            "person1 and person2 overlap by 100%",
        ),
        ({"mask": {"person1": picture_uri(white=slice(0, 32)), "person2": picture_uri(white=slice(32, 64))}}, None),
    ],
    ids=["same boxes", "boxes overlap", "boxes touch", "same masks", "mask within another", "masks touch"],
)
def test_regions_that_two_speakers_share_are_told(places: dict[str, Any], words: str | None, worker) -> None:
    warnings = warnings_of(worker, **places, cond_audio=TWO)
    assert [words in warning for warning in warnings] == ([] if words is None else [True])


@pytest.mark.parametrize("num_own", [1, 2])
def test_a_batchs_store_that_no_item_uses_is_told(num_own: int, worker) -> None:
    own = {"output_config": {"store": "volume"}}
    items = [small_job(dry_run=True) | {"id": "a"}, small_job(dry_run=True) | {"id": "b"}]
    for item in items[num_own:]:
        del item["output_config"]
    result = worker.run({"id": "job-1", "input": {"batch": items} | own})
    assert ["every item has its own" in warning for warning in result.get("warnings", [])] == [True] * (num_own - 1)


def test_chunks_of_several_workers_are_told_apart_where_those_compute_differently():
    assert mixed_arithmetic([]) == mixed_arithmetic(["int8"] * 3) == []
    (warning,) = mixed_arithmetic(["bf16", "int8", "int8", "bf16"])
    expected = "chunk 1 was made in bf16, chunks 2 to 3 were made in int8, the rest in bf16: another worker"
    assert warning.startswith(expected)
