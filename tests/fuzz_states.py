"""Kept states that somebody has forged, and jobs that two workers hold at once.

What must hold: a job whose state was forged ends as it does without any state, and what a worker has told of a finished
job stays true whatever another one that holds the same job does then.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from hypothesis import strategies as st

from infinitetalk.errors import GenerationStopped
from infinitetalk.worker.engine import Engine
from schemas import Stage
from tests.campaign import LIMIT_S, WHOLE_LIMIT_S, Campaign
from tests.hostile import blank_png, movie
from tests.job_inputs import small_job, speech_uri
from tests.local_jobs import LocalWorker

JOB_ID, OTHER_ID = "forged", "another"
STREAMING = {"mode": "streaming", "cond_audio": {"person1": speech_uri(0.36)}}
"""Two chunks, 9 frames."""

NUM_FRAMES = 9
STATE_LIMIT_S = LIMIT_S + 10
FOLDER = ".resume"

Kept = dict[str, bytes]
"""Files below a volume, by their paths."""


def streaming_job(job_id: str, **changes: Any) -> dict[str, Any]:
    """A job of two chunks."""
    return {"id": job_id, "input": small_job(**STREAMING | changes)}


def frames_of(file: Path) -> np.ndarray:
    """A video decoded: uint8 (T, H, W, 3)."""
    with av.open(str(file), format="mp4") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def kept_files(volume: Path, everything: bool) -> Kept:
    """What is kept of jobs; with `everything` also what they have stored."""
    files = [file for file in volume.rglob("*") if file.is_file() and (everything or FOLDER in file.parts)]
    return {file.relative_to(volume).as_posix(): file.read_bytes() for file in files}


def put_files(files: Kept, volume: Path) -> None:
    """Puts them, and nothing else, on a volume."""
    shutil.rmtree(volume)
    volume.mkdir()
    for name, data in files.items():
        (volume / name).parent.mkdir(parents=True, exist_ok=True)
        (volume / name).write_bytes(data)


# Forgeries

FOREIGN = {
    "a script": f"ffconcat version 1.0\nfile '/etc/passwd'\nfile 'part-{0:05d}.mp4'\n".encode(),
    "a picture": blank_png(4000, 4000),
    "a playlist": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/x.ts\n#EXT-X-ENDLIST\n",
    "a video of another shape": movie(),
    "nothing": b"",
    "noise": hashlib.shake_128(b"noise").digest(3000),
    "a pickle": b"\x80\x04cposix\nsystem\n(S'true'\ntR.",
}
TEXTS = {
    "nested": b"[" * 100_000,
    "nested and closed": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "a list": b"[]",
    "null": b"null",
    "long": b'{"format": ' + b"9" * 5_000_000 + b"}",
    "large": b'{"x": "' + b"x" * 30_000_000 + b'"}',
    "not UTF-8": b'{"x": "\xff\xfe"}',
    "empty": b"",
}
ALIKE = "another value of the same kind"
KINDS = ("pipe", "link", "link to itself", "folder", "link out")


@dataclass(frozen=True)
class Forgery:
    """One thing done to what is kept of a job.

    Attributes:
        what: is done.
        file: which file, as a share of all.
        place: in it, as a share of its length.
        value: to put there: a name of `FOREIGN`, `TEXTS` or `KINDS`, a byte, a value of JSON, or `ALIKE`.
        is_vouched_for: whether hashes and sizes in the state are made to fit.
    """

    what: str
    file: float
    place: float
    value: Any
    is_vouched_for: bool


@dataclass(frozen=True)
class Forged:
    """What a job finds.

    Attributes:
        template: whose state it is made of: "begun" or "ended", of the job itself or of another one.
        forgeries: that are done to it, in order.
    """

    template: str
    forgeries: tuple[Forgery, ...]


TEMPLATES = ("begun", "begun", "ended", "begun by another", "ended by another")


def forgeries() -> st.SearchStrategy[Forged]:
    """Forged states; a state that is left alone is not among them, but that of another job is."""
    shares = st.floats(0, 1, exclude_max=True)
    values: dict[str, st.SearchStrategy[Any]] = {
        "flip": st.integers(1, 255),
        "cut": st.none(),
        "grow": st.sampled_from([1, 1000, 20_000_000]),
        "remove": st.none(),
        "swap": st.none(),
        "foreign": st.sampled_from(sorted(FOREIGN)),
        "state": st.sampled_from(sorted(TEXTS)),
        "kind": st.sampled_from(KINDS),
        "field": st.just(ALIKE)
        | st.just(ALIKE)
        | st.none()
        | st.integers(-(2**70), 2**70)
        | st.text(max_size=20)
        | st.sampled_from(["../../../etc/passwd", JOB_ID, OTHER_ID, [], {}, True, 10**400, "http://127.0.0.1/"]),
    }
    one = st.sampled_from([*values, "field", "field", "foreign", "foreign"]).flatmap(
        lambda what: st.builds(Forgery, st.just(what), shares, shares, values[what], st.booleans())
    )
    some = st.lists(one, min_size=1, max_size=3).map(tuple)
    none = st.just(())
    own = st.builds(Forged, st.sampled_from(TEMPLATES), some)
    others = st.builds(Forged, st.sampled_from([name for name in TEMPLATES if "another" in name]), none)
    return st.one_of(own, own, own, others)


class Forger:
    """Runs a job that finds forged states.

    Makes its templates first: the state of the job and of another one, each in its midst and at its end.
    """

    def __init__(self, campaign: Campaign) -> None:
        self.campaign = campaign
        self.worker = campaign.worker
        self.job = streaming_job(JOB_ID)
        self.templates: dict[str, Kept] = {}
        with campaign.watching("the templates", 6 * WHOLE_LIMIT_S):
            for job, whose in ((self.job, ""), (streaming_job(OTHER_ID, base_seed=7), " by another")):
                self.templates[f"begun{whose}"] = renamed(self._template(job, is_whole=False))
                self.templates[f"ended{whose}"] = renamed(self._template(job, is_whole=True))
            put_files({}, self.worker.volume)
            self.expected = self.worker.run(self.job)
            self.frames = frames_of(self._video)
            # It is a template only if the job goes on from it.
            put_files(self.templates["begun"], self.worker.volume)
            self.worker.run(self.job)
            sampled = [event.details for event in self.worker.events if event.details]
            assert next(details["chunk"] for details in sampled if "chunk" in details) == 2
            put_files(self.templates["ended"], self.worker.volume)
            self.worker.run(self.job)
            assert Stage.SAMPLING not in self.worker.stages

    def run(self, forged: Forged) -> None:
        """The job with the forged state; notes what is wrong with its result."""
        volume, findings = self.worker.volume, self.campaign.findings
        put_files(with_forgeries(self.templates[forged.template], forged.forgeries, self.templates), volume)
        for forgery in forged.forgeries:
            if forgery.what == "kind":
                make_odd(chosen(sorted(kept_files(volume, everything=False)), forgery.file), forgery.value, volume)
        with self.campaign.watching(forged, STATE_LIMIT_S), pipes_end(volume, STATE_LIMIT_S + 1):
            try:
                result = self.worker.run(self.job)
            except Exception as error:
                findings.note("an exception in the place of a result", repr(error), forged)
                return
        self.campaign.check_result(result, forged)
        if result["status"] != "success":
            findings.note("a forged state fails its job", str(result["error"]), forged)
            return
        for name in ("job_id", "warnings", "params", "model"):
            if result[name] != self.expected[name]:
                findings.note("a forged state decides the result", f"{name}: {result[name]}", forged)
        told, expected = result["video"], self.expected["video"]
        if {name: told[name] for name in told if name != "bytes"} != {
            name: expected[name] for name in expected if name != "bytes"
        }:
            findings.note("a forged state decides the result", f"video: {told}", forged)
        if wrong := untrue(result, volume):
            findings.note("a result is not true", wrong, forged)
        elif not np.array_equal(frames_of(self._video), self.frames):
            findings.note("a forged state decides the frames", "they are not those of the job", forged)

    @property
    def _video(self) -> Path:
        return self.worker.volume / "infinitetalk/jobs" / f"{JOB_ID}.mp4"

    def _template(self, job: dict[str, Any], is_whole: bool) -> Kept:
        put_files({}, self.worker.volume)
        try:
            self.worker.run(job, lambda: not is_whole and self._has_begun_second_chunk(), keep=True)
        except GenerationStopped:
            assert not is_whole
        return kept_files(self.worker.volume, everything=is_whole)

    def _has_begun_second_chunk(self) -> bool:
        return any(event.details.get("chunk") == 2 for event in self.worker.events)


def renamed(files: Kept) -> Kept:
    """Another job's files under the job's name."""
    return {name.replace(OTHER_ID, JOB_ID): data for name, data in files.items()}


def chosen(names: list[str], share: float) -> str:
    """One of some names."""
    return names[int(share * len(names))]


def with_forgeries(files: Kept, forgeries: tuple[Forgery, ...], templates: dict[str, Kept]) -> Kept:
    """What is kept after all of that has been done to it."""
    files = dict(files)
    for forgery in forgeries:
        names = sorted(name for name in files if FOLDER in name)
        states = [name for name in names if name.endswith(".json")]
        parts = [name for name in names if not name.endswith(".json")]
        if not states or not parts:
            break
        name = chosen(names, forgery.file)
        data = files[name]
        place = int(forgery.place * max(len(data), 1))
        match forgery.what:
            case "flip":
                changed = data[:place] + bytes([data[place] ^ forgery.value]) + data[place + 1 :] if data else b"x"
                set_file(files, name, changed, states[0], forgery.is_vouched_for)
            case "cut":
                set_file(files, name, data[:place], states[0], forgery.is_vouched_for)
            case "grow":
                set_file(files, name, data + bytes(forgery.value), states[0], forgery.is_vouched_for)
            case "remove":
                del files[name]
            case "swap":
                others = [file for kept in templates.values() for file in kept.items() if FOLDER in file[0]]
                _, other = others[int(forgery.place * len(others))]
                set_file(files, name, other, states[0], forgery.is_vouched_for)
            case "foreign":
                set_file(files, chosen(parts, forgery.file), FOREIGN[forgery.value], states[0], forgery.is_vouched_for)
            case "state":
                files[states[0]] = TEXTS[forgery.value]
            case "field":
                files[states[0]] = with_field(files[states[0]], forgery)
    return files


def set_file(files: Kept, name: str, data: bytes, state: str, is_vouched_for: bool) -> None:
    """Replaces a file; where it is vouched for, the state says the new one's hash and length."""
    old, files[name] = files[name], data
    if is_vouched_for and name != state:
        hashes = [hashlib.sha256(content).hexdigest().encode() for content in (old, data)]
        text = files[state].replace(*hashes)
        for begin in (b'"num_bytes":', b'\\"num_bytes\\":'):
            text = text.replace(begin + str(len(old)).encode(), begin + str(len(data)).encode())
        files[state] = text


def with_field(text: bytes, forgery: Forgery) -> bytes:
    """A state with another value in one of its fields, also where it is JSON within JSON."""
    try:
        state = json.loads(text)
    except (ValueError, RecursionError):
        return text
    places = fields_of(state)
    if not places:
        return text
    *parents, key = places[int(forgery.place * len(places))]
    holder = state
    for name in parents:
        holder = holder[name]
    if isinstance(holder[key], str) and holder[key].startswith("{"):
        inner = Forgery("field", forgery.file, forgery.file, forgery.value, forgery.is_vouched_for)
        holder[key] = with_field(holder[key].encode(), inner).decode()
    else:
        holder[key] = alike(holder[key]) if forgery.value == ALIKE else forgery.value
    return json.dumps(state).encode()


def alike(value: Any) -> Any:
    """Another value of the same kind, which a state may well have."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str() if value.startswith("http") or not value:
            return "http://127.0.0.1/x.mp4"
        case str():
            return value[:-1] + ("0" if value[-1] != "0" else "1")
        case list():
            return [*value, *(value[:1] or ["Forged."])]
        case None:
            return "http://127.0.0.1/x.mp4"
        case _:
            return {}


def fields_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all fields and items in a value of JSON."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in entries for place in ((*path, key), *fields_of(inner, (*path, key)))]


def make_odd(name: str, kind: str, volume: Path) -> None:
    """Puts something that is no plain file in a file's place."""
    file = volume / name
    file.unlink()
    match kind:
        case "pipe":
            os.mkfifo(file)
        case "link":
            file.symlink_to("/etc/passwd")
        case "link to itself":
            file.symlink_to(file.name)
        case "link out":
            file.symlink_to("../../../../../../nowhere")
        case "folder":
            file.mkdir()
            (file / "x").write_bytes(b"x")


class pipes_end:
    """Lets whoever still reads a pipe on a volume after some seconds find its end, so that a hang ends as a finding."""

    def __init__(self, volume: Path, after_s: float) -> None:
        self._volume = volume
        self._timer = threading.Timer(after_s, self._end)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _end(self) -> None:
        for file in self._volume.rglob("*"):
            if file.is_fifo():
                os.close(os.open(file, os.O_RDWR | os.O_NONBLOCK))


# Two holders


@dataclass(frozen=True)
class Holding:
    """A job that two workers hold at once.

    Attributes:
        changes: to the job.
        delay_s: after which the second one begins.
        stopped: which of the two is stopped, when it comes to a stage; None: neither.
        stage: that one.
    """

    changes: dict[str, Any]
    delay_s: float
    stopped: int | None
    stage: Stage


def holdings() -> st.SearchStrategy[Holding]:
    """Jobs, some with a preview or a batch, and when the second worker comes."""
    previews = st.sampled_from([{"store": "volume"}, {"store": "volume", "preview": True}])
    changes = st.fixed_dictionaries(
        {"output_config": previews, "base_seed": st.sampled_from([-1, -1, 42])},
        optional={"sample_steps": st.integers(1, 6)},
    )
    stages = st.sampled_from([Stage.EMBEDDING, Stage.SAMPLING, Stage.DECODE, Stage.MUX, Stage.UPLOAD, Stage.COMPLETED])
    return st.builds(Holding, changes, st.floats(0, 1.5), st.sampled_from([None, None, 0, 1]), stages)


class TwoHolders:
    """Two workers, each with an engine of its own, on one volume, as where a worker is taken for lost and is not."""

    def __init__(self, campaign: Campaign) -> None:
        self.campaign = campaign
        self.settings = campaign.settings
        second = Engine(self.settings)
        second.start()
        second.finish_loading()
        self.engines = (campaign.engine, second)

    def run(self, holding: Holding) -> None:
        """Both run the job; notes what is wrong when both have ended."""
        volume, findings = self.campaign.worker.volume, self.campaign.findings
        put_files({}, volume)
        job = streaming_job("held", **holding.changes)
        results: list[dict[str, Any] | None] = [None, None]

        def hold(number: int) -> None:
            worker = LocalWorker(self.settings, self.engines[number], volume)
            should_stop: Callable[[], bool] = lambda: number == holding.stopped and holding.stage in worker.stages  # noqa: E731
            time.sleep(holding.delay_s * number)
            try:
                results[number] = worker.run(job, should_stop, keep=False)
            except GenerationStopped:
                self.campaign.outcomes["stopped"] += 1
            except Exception as error:
                findings.note("an exception in the place of a result", repr(error), holding)

        with self.campaign.watching(holding, WHOLE_LIMIT_S):
            threads = [threading.Thread(target=hold, args=(number,)) for number in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for number, result in enumerate(results):
            if result is None:
                if number != holding.stopped:
                    findings.note("a holder that was not stopped has no result", f"number {number}", holding)
                continue
            self.campaign.check_result(result, holding)
            if result["status"] != "success":
                findings.note("a holder fails because of the other", str(result["error"]), holding)
            elif wrong := untrue(result, volume):
                findings.note("what a holder has told is not true", wrong, holding)
        playlists = list((volume / "infinitetalk/jobs/held.preview").glob("*-index.m3u8"))
        if any(results) and holding.changes["output_config"].get("preview"):
            if not playlists:
                findings.note("a finished job's preview is gone", "", holding)
            for playlist in playlists:
                lines = [line for line in playlist.read_text().splitlines() if line and not line.startswith("#")]
                if missing := [line for line in lines if not (playlist.parent / line).is_file()]:
                    findings.note("a finished job's preview has no segments", str(missing), holding)
        left = [file for file in kept_files(volume, everything=True) if file.endswith(".part")]
        if left:
            findings.note("unfinished files stay", str(left), holding)


def untrue(result: dict[str, Any], volume: Path) -> str:
    """What a success on a volume tells and is not so; nothing where all is."""
    told = result["video"]
    for place in ("path", "thumbnail_path", "metadata_path"):
        if not (volume / told[place]).is_file():
            return f"{place}: there is no file"
    video = volume / told["path"]
    if video.stat().st_size != told["bytes"]:
        return f"bytes: {told['bytes']}, not {video.stat().st_size}"
    try:
        frames = frames_of(video)
    except Exception as error:
        return f"the video cannot be decoded: {error!r}"
    if frames.shape[:3] != (told["num_frames"], told["height"], told["width"]) or len(frames) != NUM_FRAMES:
        return f"the video's shape is {frames.shape}"
    metadata = json.loads((volume / told["metadata_path"]).read_text())
    if metadata["params"]["base_seed"] != result["params"]["base_seed"]:
        return f"the seed: {result['params']['base_seed']}, not {metadata['params']['base_seed']}"
    return ""
