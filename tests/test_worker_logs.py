"""Logs: what of a job is logged, what is taken out of lines, and that writing them neither waits nor fails."""

import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest

from infinitetalk.worker.logs import loggable
from infinitetalk.worker.streams import LONGEST_LINE, LogStream, LogWriter, redacted
from tests.hostile import nested
from tests.job_inputs import small_job, speech_uri


def keep(line: str) -> str:
    return line


def test_an_input_is_logged_by_what_is_known_to_hold_no_secret():
    logged = loggable(
        {
            "prompt": "hush",
            "cond_video": "https://user:hush@example.com/hush/face.png?X-Amz-Signature=hush",
            "cond_audio": {"person1": speech_uri(0.3), "person2": None, "hush": "hush"},
            "bbox": {"person1": [0, 0.5, 10, 20], "person2": ["hush"]},
            "size": "infinitetalk-480",
            "nag": {"scale": 11, "tau": "hush", "hush": "hush"},
            "mode": "hush",
            "frame_num": 81,
            "base_seed": 10**100,
            "loras": [{"name": "hush"}],
            "tts_audio": {"text": "hush", "human1_voice": "hush", "key": "hush"},
            "output_config": {
                "store": "put",
                "prefix": "hush",
                "video_url": "https://a.com/hush",
                "accessSecret": "hush",
            },
            "s3Config": {"accessSecret": "hush"},
            "hush": {"headers": {"Authorization": "hush"}},
        }
    )
    assert "hush" not in json.dumps(logged)
    assert logged["cond_video"] == "https://example.com/…"
    assert logged["cond_audio"][0].startswith("<data URI of")
    assert logged["bbox"] == [[0, 0.5, 10, 20], "<list>"]
    assert (logged["size"], logged["mode"], logged["frame_num"]) == ("infinitetalk-480", "<4 characters>", 81)
    assert logged["output_config"]["store"] == "put"
    assert logged["unknown_fields"] == 2
    assert logged["nag"] == {"scale": 11, "tau": "<4 characters>", "unknown_fields": 1}
    assert loggable({"size": {"width": 832, "height": 480}})["size"] == {"width": 832, "height": 480}
    batch = loggable({"batch": [small_job(), "hush"]})["batch"]
    assert (batch[0]["sample_steps"], batch[1]) == (2, "<str>")


@pytest.mark.parametrize(
    "job_input", [None, "hush", [], 5, nested(900), {"batch": nested(900)}, {"prompt": nested(900)}]
)
def test_an_input_of_another_shape_is_logged_shortly(job_input: Any):
    assert len(json.dumps(loggable(job_input))) < 100


def test_an_input_of_megabytes_is_logged_at_once():
    begin = time.monotonic()
    huge = {"batch": ["a?" * 1_000_000] * 50_000, "prompt": "a?" * 5_000_000, "cond_video": "http://" * 1_000_000}
    assert len(redacted(json.dumps(loggable(huge)), [])) < 1000
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("GET https://u:hush@example.com/hush/f.png?sig=hush failed", "GET https://example.com/… failed"),
        ("see https://a.blob.core.windows.net/c/x?sv=1&sig=hush%3D", "see https://a.blob.core.windows.net/…"),
        ("Max retries exceeded with url: /hush/t?x=1 (Caused by", "Max retries exceeded with url: /… (Caused by"),
        ("put c/x?sv=1&sig=hush now", "put c/x?*** now"),
        ("why? no secret", "why? no secret"),
        ("http://127.0.0.1:8000 serves", "http://127.0.0.1:8000 serves"),
        ('{"message": "https://example.com/hush"}', '{"message": "https://example.com/…"}'),
        (f"key hush-hush and {'QUJD' * 100}", "key *** and <400 characters>"),
    ],
)
def test_a_line_shows_no_secret(line: str, shown: str):
    assert redacted(line, ["hush-hush"]) == shown


def test_a_secret_is_known_in_every_spelling():
    program = r"""
import sys, time, structlog
from urllib.parse import quote
from infinitetalk.worker.logs import configure_logs
from infinitetalk.worker.settings import Settings
settings = Settings()
configure_logs(settings)
secret = settings.s3_secret_key.get_secret_value()
log = structlog.get_logger()
log.error("said", details={"text": secret, "address": quote(secret, safe=""), "literal": repr(secret)})
try:
    raise ValueError(secret, {"key": secret})
except ValueError:
    log.error("raised", exc_info=True)
print(secret, file=sys.stderr)
sys.stderr.flush()
time.sleep(0.5)
"""
    environment = os.environ | {"S3_SECRET_KEY": "hush\"\\wörd/+'hush"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    assert "hush" not in done.stderr
    assert "rd/+" not in done.stderr
    said, raised, *_ = map(json.loads, done.stderr.splitlines()[:2])
    assert said["details"] == {"text": "***", "address": "***", "literal": "'***'"}
    assert "ValueError: ('***', {'key': '***'})" in raised["exception"]


def test_what_a_server_sends_is_not_quoted_in_the_log():
    program = """
import logging, sys, time
logging.basicConfig(level=logging.INFO, stream=sys.__stderr__)
from infinitetalk.worker.logs import configure_logs
from infinitetalk.worker.settings import Settings
configure_logs(Settings())
logging.getLogger("urllib3.connectionpool").warning("Failed to parse headers: unparsed data: 'hush'")
logging.getLogger("urllib3.connectionpool").error("heard")
sys.stderr.flush()
time.sleep(0.5)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "hush" not in done.stderr
    assert "heard" in done.stderr


@pytest.mark.parametrize("piece", ["a?", "A" * 199 + " ", "://", "http://", "@", "with url: /", "?key"])
def test_redacting_takes_time_in_proportion_to_the_line(piece: str):
    begin = time.monotonic()
    redacted(piece * (LONGEST_LINE // len(piece)), [])
    assert time.monotonic() - begin < 0.5


def test_a_full_disk_costs_lines_and_says_how_many(tmp_path):
    writer = LogWriter()
    full = os.open("/dev/full", os.O_WRONLY)
    broken = LogStream(full, writer, keep)
    print("lost", file=broken, flush=True)
    print("lost too", file=broken, flush=True)
    with (tmp_path / "log").open("wb") as file:
        stream = LogStream(file.fileno(), writer, keep)
        print("written", file=stream, flush=True)
        print("without an end", end="", file=stream, flush=True)
        print("x" * (LONGEST_LINE + 1), file=stream, flush=True)
    os.close(full)
    _, note, written, rest = (tmp_path / "log").read_text().split("\n", 3)
    assert json.loads(note) == {"level": "warning", "event": "log.lost", "details": {"lines": 2}}
    assert (written, rest) == ("written", f"without an end{'x' * LONGEST_LINE}…\n")


def test_a_pipe_that_nobody_reads_is_waited_for_once_and_goes_on_when_it_is_read():
    reader, pipe = os.pipe()
    stream = LogStream(pipe, LogWriter(), keep)
    begin = time.monotonic()
    for _ in range(1000):
        print("x" * 1000, file=stream, flush=True)
    assert time.monotonic() - begin < 2
    read = 0
    while read < 1000 * 1001:
        read += len(os.read(reader, 65536))
    print("on again", file=stream, flush=True)
    assert os.read(reader, 100) == b"on again\n"
    os.close(reader)
    os.close(pipe)
