"""Random and mutated jobs through the worker: always a result or a coded error, never another exception.

A short form is in the tests; `make fuzz` runs the long one:

    python -m tests.fuzz_jobs [JOBS [WHOLE_JOBS]]

JOBS go through validation, fetching and decoding and stop before the model; WHOLE_JOBS go through the model too, which
is the tiny one.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from infinitetalk.errors import GenerationStopped
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.settings import Settings
from schemas import BatchResult, Failure, Stage, Success
from tests.hostile import BAD_SOURCES, HOSTILE_VALUES, encoded, job_with, movie, picture, sound
from tests.job_inputs import data_uri, picture_bytes, small_job, speech_bytes
from tests.local_jobs import LocalWorker

LONG_JOBS, LONG_WHOLE_JOBS = 20_000, 100
JOBS_OF_A_PART = 500
"""Of the long form: it tells how far it is."""

RUN_SETTINGS = {
    "deadline": None,
    "database": None,
    "phases": [Phase.explicit, Phase.generate, Phase.target, Phase.shrink],
    "suppress_health_check": list(HealthCheck),
}

JOB = small_job()
SPOKEN_JOB = small_job(cond_audio=None, tts_audio={"text": "Hello.", "human1_voice": "am_adam"})
BATCH = {
    "batch": [{name: value for name, value in JOB.items() if name != "output_config"} | {"id": "a"}],
    "output_config": {"store": "volume"},
}
STORE = {"endpointUrl": "http://127.0.0.1:9", "accessId": "id", "accessSecret": "secret", "bucketName": "bucket"}

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.text(st.characters(), max_size=40)
    # Copies, for a drawn value may be mutated further.
    | st.sampled_from(list(BAD_SOURCES.values())).map(copy.deepcopy)
    | st.sampled_from(["\ud800", "http://127.0.0.1/", "data:image/png;base64,", "examples/media/speech.wav", "a" * 200])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
"""Anything that JSON can carry, and some that it cannot."""


def places_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all fields and items in a value of JSON."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in entries for place in ((*path, key), *places_in(inner, (*path, key)))]


@st.composite
def mutated(draw: Any, bases: st.SearchStrategy[dict[str, Any]], max_mutations: int = 3) -> dict[str, Any]:
    """A job's input with some of its fields replaced, removed, renamed or added."""
    job = copy.deepcopy(draw(bases))
    for _ in range(draw(st.integers(1, max_mutations))):
        if not (places := places_in(job)):
            break
        *parents, key = draw(st.sampled_from(places))
        parent = job
        for name in parents:
            parent = parent[name]
        match draw(st.sampled_from(["replace", "replace", "remove", "rename", "add"])):
            case "replace":
                parent[key] = draw(values)
            case "remove":
                del parent[key]
            case "rename" if isinstance(parent, dict):
                parent[draw(st.text(max_size=20))] = parent.pop(key)
            case "add" if isinstance(parent, dict):
                parent[draw(st.sampled_from([*JOB, "tts_audio", "bbox", "mask", "loras", "person2"]))] = draw(values)
    return job


@st.composite
def damaged_media(draw: Any, originals: list[bytes]) -> str:
    """A file with bytes overwritten, cut out, doubled or cut off, as a data URI."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 4))):
        begin = draw(st.integers(0, max(len(content) - 1, 0)))
        # Headers are where it hurts.
        begin = begin % 64 if draw(st.booleans()) else begin
        length = draw(st.integers(1, 64))
        match draw(st.sampled_from(["overwrite", "cut out", "double", "cut off"])):
            case "overwrite":
                content[begin : begin + length] = draw(st.binary(min_size=1, max_size=length))
            case "cut out":
                del content[begin : begin + length]
            case "double":
                content[begin:begin] = content[begin : begin + length]
            case "cut off":
                del content[begin + length :]
    return data_uri(bytes(content), "application/octet-stream")


def pictures() -> list[bytes]:
    """Small pictures and videos to damage."""
    kinds = [picture(kind=kind, size=(32, 32)) for kind in ("JPEG", "WEBP", "GIF", "BMP", "TIFF")]
    return [picture_bytes(32, 32), *kinds, movie(), encoded("-an -c:v libvpx-vp9 -deadline realtime", "webm")]


def voices() -> list[bytes]:
    """Short sounds to damage."""
    return [speech_bytes(0.3), sound("FLAC"), sound("OGG", "VORBIS"), encoded("-vn -c:a libmp3lame", "mp3"), movie()]


def envelope(job_input: Any, **more: Any) -> dict[str, Any]:
    """A job as the queue hands it over."""
    return {"id": "fuzz", "input": job_input} | more


def any_jobs() -> st.SearchStrategy[dict[str, Any]]:
    """Jobs that are wrong in some way, most of them."""
    bases = st.sampled_from([JOB, JOB, SPOKEN_JOB, BATCH])
    with_media = st.builds(
        lambda source, voice: JOB | {"cond_video": source, "cond_audio": {"person1": voice}},
        damaged_media(pictures()),
        damaged_media(voices()),
    )

    # Names are looked up, which is slow where there is no name server.
    hostile_jobs = [job_with(hostile) for hostile in HOSTILE_VALUES if ".in" not in hostile.name]

    def further(job: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
        return job | {"input": job["input"] | more} if isinstance(job["input"], dict) else job

    some_fields = st.dictionaries(st.sampled_from(list(JOB)), values, max_size=2)
    with_store = st.builds(
        lambda store: envelope(JOB | {"output_config": None}, s3Config=store), mutated(st.just(STORE))
    )
    kinds = {
        st.builds(further, st.sampled_from(hostile_jobs), some_fields): 4,
        st.builds(envelope, mutated(bases)): 12,
        st.builds(envelope, values): 1,
        st.builds(lambda job_id: {"id": job_id, "input": JOB | {"frame_num": 4}}, values): 1,
        with_store: 1,
        st.builds(envelope, with_media): 1,
    }
    return st.one_of([kind for kind, weight in kinds.items() for _ in range(weight)])


def whole_jobs() -> st.SearchStrategy[dict[str, Any]]:
    """Jobs that are right, most of them, and small."""
    speakers = st.integers(1, 3).flatmap(
        lambda count: st.fixed_dictionaries(
            {f"person{number}": damaged_media(voices()[:2]) for number in range(1, count + 1)}
        )
    )
    fields = {
        "cond_video": st.just(JOB["cond_video"]) | damaged_media(pictures()),
        "cond_audio": st.just(JOB["cond_audio"]) | speakers,
        "prompt": st.text(min_size=1, max_size=40),
        "frame_num": st.sampled_from([5, 9]),
        "motion_frame": st.integers(1, 8),
        "crossfade_frame": st.integers(0, 9),
        "max_frame_num": st.integers(1, 18),
        "mode": st.sampled_from(["clip", "streaming"]),
        "size": st.just("infinitetalk-480"),
        "sample_steps": st.integers(1, 2),
        "sample_shift": st.none() | st.floats(0.01, 100),
        "sample_text_guide_scale": st.floats(0, 50),
        "sample_audio_guide_scale": st.floats(0, 50),
        "negative_prompt": st.none() | st.text(max_size=40),
        "color_correction_strength": st.floats(0, 1),
        "use_teacache": st.booleans(),
        "teacache_thresh": st.floats(0, 10, exclude_min=True),
        "use_apg": st.booleans(),
        "apg_momentum": st.floats(-1, 1),
        "apg_norm_threshold": st.floats(0, 10_000, exclude_min=True),
        "base_seed": st.integers(-1, 2**53 - 1),
        "scene_seg": st.booleans(),
        "audio_type": st.sampled_from(["para", "add"]),
        "bbox": st.none() | st.just({"person1": [0, 0, 20, 20]}),
        "output_config": st.sampled_from([{"store": "volume"}, {"store": "inline"}]),
    }
    right = st.fixed_dictionaries({}, optional=fields).map(lambda changes: JOB | changes)
    items = st.lists(right, min_size=1, max_size=2).map(
        lambda jobs: {"batch": [job | {"id": f"item-{number}"} for number, job in enumerate(jobs)]}
    )
    return st.builds(
        envelope, st.one_of(right, right, right, items, mutated(right, 1), mutated(st.just(SPOKEN_JOB), 1))
    )


@dataclass
class Fuzz:
    """Runs jobs and counts their outcomes."""

    worker: LocalWorker
    outcomes: Counter[str] = field(default_factory=Counter)

    def run(self, job: dict[str, Any], last_stage: Stage | None) -> None:
        """One job; stopped once it enters `last_stage`.

        Raises:
            AssertionError: it ended with neither a result nor a coded error.
        """
        should_stop: Callable[[], bool] = lambda: last_stage in self.worker.stages  # noqa: E731
        with capture_logs() as logs:
            try:
                result = self.worker.run(job, should_stop)
            except GenerationStopped:
                self.outcomes["accepted"] += 1
                return
        unexpected = [entry["exc_info"] for entry in logs if entry.get("exc_info")]
        assert not unexpected, repr(unexpected[0])
        text = json.dumps(result, allow_nan=False)
        assert str(self.worker.volume) not in text and "Traceback" not in text
        json.dumps(result, ensure_ascii=False).encode()
        self.outcomes[outcome_of(result)] += 1


def outcome_of(result: dict[str, Any]) -> str:
    """A result's status or code.

    Raises:
        ValidationError: it is no result of the interface.
    """
    if "items" in result:
        return f"batch: {BatchResult.model_validate(result, strict=False).status}"
    if result["status"] == "success":
        return Success.model_validate(result, strict=False).status
    return Failure.model_validate(result, strict=False).error.code


def fuzz_to_the_model(worker: LocalWorker, num_jobs: int) -> Counter[str]:
    """Runs random jobs up to the model; returns how many ended how.

    Raises:
        AssertionError: one ended with neither a result nor a coded error; Hypothesis prints the smallest such job.
    """
    campaign = Fuzz(worker)

    @settings(max_examples=num_jobs, **RUN_SETTINGS)
    @given(any_jobs())
    def run(job: dict[str, Any]) -> None:
        campaign.run(job, Stage.EMBEDDING)

    run()
    return campaign.outcomes


def fuzz_whole(worker: LocalWorker, num_jobs: int) -> Counter[str]:
    """As `fuzz_to_the_model`, with jobs most of which are right, to their ends."""
    campaign = Fuzz(worker)

    @settings(max_examples=num_jobs, **RUN_SETTINGS)
    @given(whole_jobs())
    def run(job: dict[str, Any]) -> None:
        campaign.run(job, None)

    run()
    return campaign.outcomes


def main(num_jobs: int = LONG_JOBS, num_whole_jobs: int = LONG_WHOLE_JOBS) -> None:
    """Runs the long form and prints counts and times."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        volume = Path(folder)
        options = Settings(
            output_dir=volume, volume_dir=volume, webhook_get_job="set", infinitetalk_model="tiny", download_attempts=1
        )
        engine = Engine(options)
        engine.start()
        worker = LocalWorker(options, engine, volume)
        for fuzz, count in ((fuzz_whole, num_whole_jobs), (fuzz_to_the_model, num_jobs)):
            begin = time.monotonic()
            outcomes: Counter[str] = Counter()
            while (missing := count - outcomes.total()) > 0:
                outcomes += fuzz(worker, min(missing, JOBS_OF_A_PART))
                seconds = time.monotonic() - begin
                counts = {str(outcome): number for outcome, number in outcomes.most_common()}
                print(f"{fuzz.__name__}: {outcomes.total()} jobs in {seconds:.0f} s: {counts}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
