"""What others write costs time in proportion to its length, from validation to the log line.

Each case compares the CPU time of 1 MB with that of 10 MB, by way of smaller sizes, so that what is quadratic fails
before it takes a day.
"""

import asyncio
import gc
import http.client
import importlib
import inspect
import io
import json
import pkgutil
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import botocore.parsers
import pytest
import structlog
from botocore.session import get_session

import infinitetalk
import schemas
from infinitetalk.media.decode import _parse_packets
from infinitetalk.media.tts import MAX_PHONEMES, split_phonemes
from infinitetalk.worker import logs
from infinitetalk.worker.logs import loggable, shorten
from infinitetalk.worker.queue.runner import Runner
from infinitetalk.worker.streams import redacted
from tests.job_inputs import small_job
from tests.local_jobs import LocalWorker, ready

SIZES = (100_000, 1_000_000, 10_000_000)
MOST = 12.0
"""Times as long for ten times the text."""

UNMEASURABLE_S = 0.05
"""What takes less is not compared: other work on the machine counts for more."""

TEXTS = {
    "letters": "A",
    "spaces after base64": "A" * 64 + " " * 4096,
    "runs too short to be base64": "A" * 199 + " ",
    "queries in queries": "a?",
    "queries with secrets": "a?x&key=1",
    "addresses": "://a",
    "passwords": "://a:b@",
    "combining letters": "\u0300\u0316",
    "escapes": "%41",
    "turns": "(s1)",
    "folders": "voices/",
    "quotes": '"\\',
    "pauses": ". a",
    "names in a decoder's log": "[a @ 0x1] ",
    "lines of a decoder's log": "\n[info]  Stream #0:1",
}


def text_of(unit: str, size: int, end: str = "!") -> str:
    """A text of a size that ends in what a pattern may stumble over."""
    return (unit * (size // len(unit) + 1))[: size - len(end)] + end


def assert_linear(work: Callable[[Any], object], make: Callable[[int], Any]) -> None:
    """The CPU time of ten times the text is at most `MOST` times that of the text.

    Other work on the machine slows either of them down, so the two are measured together, several times if need be.
    """
    before = UNMEASURABLE_S
    for size in SIZES:
        material = make(size)
        seconds = _seconds_of(work, material)
        if seconds > MOST * before:
            tenth = make(size // 10)
            pairs = [(_seconds_of(work, tenth), _seconds_of(work, material)) for _ in range(5)]
            before, seconds = min(
                ((max(less, UNMEASURABLE_S), more) for less, more in pairs), key=lambda pair: pair[1] / pair[0]
            )
        assert seconds <= MOST * before, f"{size}: {seconds:.2f} s, and {before:.3f} s for a tenth"
        before = max(seconds, UNMEASURABLE_S)


def _seconds_of(work: Callable[[Any], object], material: Any) -> float:
    # The collector looks at whatever else the tests have made, torch's modules above all.
    gc.disable()
    begin = time.process_time()
    try:
        work(material)
        return time.process_time() - begin
    finally:
        gc.enable()


def uses_of_patterns() -> dict[str, tuple[Callable[[Any], object], bool]]:
    """Every pattern that a module of the project keeps, in each way that the module uses it, and whether it takes bytes
    for text."""
    uses: dict[str, tuple[Callable[[Any], object], bool]] = {}
    for package in (infinitetalk, schemas):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if info.name.endswith("__main__"):
                continue
            module = importlib.import_module(info.name)
            for name, pattern in vars(module).items():
                if isinstance(pattern, re.Pattern):
                    for method in set(re.findall(rf"\b{name}\.(\w+)\(", inspect.getsource(module))):
                        takes_bytes = isinstance(pattern.pattern, bytes)
                        work = getattr(pattern, method)
                        work = partial(work, b"" if takes_bytes else "") if method == "sub" else work
                        uses[f"{info.name}.{name}.{method}"] = work, takes_bytes
    return uses


@pytest.mark.parametrize(("name", "use"), uses_of_patterns().items())
def test_a_pattern_takes_linear_time(name: str, use: tuple[Callable[[Any], object], bool]):
    work, takes_bytes = use
    for unit in TEXTS.values():
        if takes_bytes:
            assert_linear(work, lambda size, unit=unit: text_of(unit, size).encode()[:size])
        else:
            assert_linear(work, lambda size, unit=unit: text_of(unit, size))


JOBS: dict[str, tuple[Callable[[str], dict[str, Any]], tuple[str, ...]]] = {
    "media": (
        lambda text: {"input": small_job(cond_video=text, cond_audio={"person1": text})},
        ("letters", "spaces after base64", "folders", "combining letters"),
    ),
    "a data URI": (
        lambda text: {"input": small_job(cond_video=f"data:image/png;base64,{text}")},
        ("spaces after base64", "letters", "combining letters"),
    ),
    "an address": (
        lambda text: {"input": small_job(cond_video=f"http://{text}")},
        ("combining letters", "passwords", "escapes"),
    ),
    "texts": (
        lambda text: {
            "input": small_job(
                prompt=text,
                negative_prompt=text,
                size=text,
                cond_audio=None,
                tts_audio={"text": text, "human1_voice": text},
                loras=[{"name": text}],
                output_config={"store": "s3", "prefix": text, "video_url": text},
            )
        },
        ("turns", "queries in queries"),
    ),
    "names of fields": (
        lambda text: {"input": small_job(cond_audio={text: 5}, mask={text: text}, **{text: text})},
        ("queries in queries", "combining letters"),
    ),
    "a list of texts": (
        lambda text: {
            "input": small_job(
                loras=[text[begin : begin + 150] for begin in range(0, len(text), 150)],
                cond_audio={f"person{begin}": text[begin : begin + 150] for begin in range(0, len(text), 150)},
            )
        },
        ("queries in queries", "passwords"),
    ),
    "a batch of nothing": (lambda text: {"input": {"batch": [{} for _ in range(len(text) // 3)]}}, ("letters",)),
    "boxes": (
        lambda text: {"input": small_job(bbox={str(number): [] for number in range(len(text) // 40)})},
        ("letters",),
    ),
    "a store": (
        lambda text: {
            "input": small_job(output_config={"store": "s3"}),
            "s3Config": {"endpointUrl": text, "accessId": text, "accessSecret": text, "bucketName": text},
        },
        ("addresses", "queries with secrets"),
    ),
    "another input": (lambda text: {"input": [text] * 3}, ("queries in queries",)),
    "a policy": (lambda text: {"input": small_job(size="?"), "policy": {text: text}}, ("letters",)),
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, (_, texts) in JOBS.items() for text in texts])
def test_a_job_is_refused_in_linear_time(kind: str, text: str, local_worker: LocalWorker, capfd, monkeypatch):
    make, _ = JOBS[kind]
    for name in ("stdout", "stderr"):
        # The worker puts its own in their place, over the same file descriptors.
        monkeypatch.setattr(sys, name, getattr(sys, name))
    logs.configure_logs(local_worker.settings)
    runner = Runner(local_worker.settings, ready(local_worker.settings, local_worker.engine))

    def run(job: dict[str, Any]) -> None:
        result = asyncio.run(runner(job))
        assert result["error"]["code"] == "E_INPUT_VALIDATION" or kind == "an address"
        assert len(json.dumps(result)) < 3000

    try:
        assert_linear(run, lambda size: {"id": "job-1", **make(text_of(TEXTS[text], size))})
        sys.stderr.flush()
    finally:
        structlog.reset_defaults()
    lines = capfd.readouterr().err.splitlines()
    assert lines and max(len(line) for line in lines) <= logs.MAX_LINE_CHARACTERS


@pytest.mark.parametrize("unit", TEXTS.values(), ids=TEXTS)
def test_a_log_line_takes_linear_time(unit: str):
    def log(text: str) -> None:
        line = json.dumps({"event": "x", "exception": text, "details": loggable({"a": [text], text: text})})
        assert len(shorten(None, "info", redacted(line, ["secret"]))) <= logs.MAX_LINE_CHARACTERS

    # JSON writes some letters as six: the line is as long as that.
    written = len(json.dumps(unit)) - 2
    assert_linear(log, lambda size: text_of(unit, size * len(unit) // written))


def test_phonemes_are_split_in_linear_time():
    for unit in ("a", ". a", ".", " ", "." + "a" * MAX_PHONEMES):
        assert_linear(split_phonemes, lambda size, unit=unit: text_of(unit, size))
        assert "".join(split_phonemes(text_of(unit, 3000))).replace(" ", "") == text_of(unit, 3000).replace(" ", "")


def test_what_the_decoder_says_of_packets_is_read_in_linear_time():
    head = b"#tb 0: 1/25\n#media_type 0: video\n#codec_id 0: h264\n#dimensions 0: 64x48\n#sar 0: 1/1\n"

    def make(size: int) -> bytes:
        return head + b"".join(b"0, %d, %d, 1, 100, 0x0\n" % (number, number) for number in range(size // 25))

    assert_linear(lambda text: _parse_packets(io.BytesIO(text)), make)


ANSWERS = {
    "one long message": lambda size: "<Error><Code>x</Code><Message>" + "m" * size + "</Message></Error>",
    "many elements": lambda size: "<Error>" + "<a>b</a>" * (size // 8) + "</Error>",
    "an address without end": lambda size: "<Error><Endpoint>" + "http://a?" * (size // 9) + "</Endpoint></Error>",
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_stores_answer_is_parsed_in_linear_time(kind: str):
    model = get_session().get_service_model("s3").operation_model("PutObject")
    parser = botocore.parsers.create_parser("rest-xml")

    def parse(body: bytes) -> None:
        parser.parse({"status_code": 400, "headers": {}, "body": body}, model.output_shape)

    assert_linear(parse, lambda size: ANSWERS[kind](size).encode())


def test_the_headers_of_an_answer_are_read_in_linear_time():
    # A hundred lines of 64 KB are all that http.client takes: 6 MB.
    for unit in (b"a", b" ", b",", b";=", b"\t\x85"):
        assert_linear(
            lambda text: http.client.parse_headers(io.BytesIO(text)),
            lambda size, unit=unit: (
                (b"X: " + unit * (min(size, 6_000_000) // 100 // len(unit)) + b"\r\n") * 99 + b"\r\n"
            ),
        )
