"""Each example payload runs as it stands through POST /run of `make serve`, sent by the example client.

Steps and frames are reduced; inputs, speakers, modes and stores are the payload's own.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import infinitetalk_client as client_module
import pytest
import requests
from infinitetalk_client import InfiniteTalkClient, command

from infinitetalk.recipes import RECIPES
from schemas import BatchResult, Success, parse_input
from tests.openapi_contract import answer_schema, request_schema

CHECKOUT = Path(__file__).parents[1]
PAYLOADS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in CHECKOUT.glob("examples/*.json")}
#: One payload per recipe; `test_worker_recipes.py` runs them, on a worker that has their weights.
RECIPE_EXAMPLES = {f"recipe_{name.replace('-', '_')}": name for name in RECIPES}
EXAMPLES = {
    "single_image",
    "single_video",
    "own_size",
    "dub_strength",
    "negative_prompt",
    "two_speakers",
    "faces",
    "two_speakers_add",
    "script",
    "song",
    "timeline",
    "tts_single",
    "tts_two",
    "long_streaming",
    "batch",
    "dub",
}
START_TIMEOUT_S = 60


class CheckedClient(InfiniteTalkClient):
    """A client that holds each request and each answer against the OpenAPI document."""

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        name, _, job_id = path.partition("/")
        documented = f"/{name}/{{id}}" if job_id else f"/{name}"
        if "data" in options:
            request_schema(documented).validate(json.loads(options["data"]))
        answer = super()._call(method, path, **options)
        answer_schema(documented, 200).validate(answer)
        return answer


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InfiniteTalkClient]:
    """A client of `make serve`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("serve")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")}
    environment |= {"OUTPUT_DIR": str(folder / "outputs"), "INFINITETALK_MODEL": "tiny", "PROGRESS_INTERVAL_S": "0"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "tools.local_endpoint", "--port", str(port)],
            cwd=CHECKOUT,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        with socket.socket() as connection:
            while connection.connect_ex(("127.0.0.1", port)) and server.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield CheckedClient(f"http://127.0.0.1:{port}/v2/local")
    finally:
        server.terminate()
        server.wait(START_TIMEOUT_S)
        print((folder / "log").read_text()[-10_000:])


def reduced(job_input: dict[str, Any]) -> dict[str, Any]:
    """The same job with two steps, chunks of 17 frames, and two chunks at most."""
    if "batch" in job_input:
        return job_input | {"batch": [reduced(item) for item in job_input["batch"]]}
    return job_input | {"sample_steps": 2, "frame_num": 17, "max_frame_num": 21}


def num_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        assert container.streams.audio
        return sum(1 for _ in container.decode(video=0))


def test_the_examples_are_all_there_and_valid():
    assert set(PAYLOADS) == EXAMPLES | set(RECIPE_EXAMPLES)
    assert {name: PAYLOADS[name]["input"]["recipe"] for name in RECIPE_EXAMPLES} == RECIPE_EXAMPLES
    for payload in PAYLOADS.values():
        parse_input(payload["input"])


def test_times_of_the_long_example_are_milliseconds():
    assert PAYLOADS["long_streaming"]["policy"] == {"executionTimeout": 1_800_000, "ttl": 86_400_000}


@pytest.mark.parametrize("name", sorted(EXAMPLES - {"batch"}))
def test_an_example_becomes_a_video(name, client, tmp_path):
    payload = dict(PAYLOADS[name])
    del payload["id"]
    job_input = reduced(payload.pop("input"))
    stages = []
    result = client.run(job_input, lambda progress: stages.append(progress["stage"]), poll_s=0.1, **payload)
    success = Success.model_validate(result, strict=False)
    frames = num_frames(client.download(result, tmp_path / "talk.mp4"))
    assert success.video.num_frames == frames
    assert frames == (21 if job_input["mode"] == "streaming" else 17)
    # Polling may miss a short stage.
    assert {"sampling", "decode"} & set(stages)


def test_the_batch_example_becomes_a_video_for_each_item(client, tmp_path):
    result = client.run(reduced(PAYLOADS["batch"]["input"]), poll_s=0.1)
    BatchResult.model_validate(result, strict=False)
    assert result["status"] == "success"
    assert [item["item_id"] for item in result["items"]] == ["first", "second"]
    for item in result["items"]:
        assert num_frames(client.download(item, tmp_path / item["item_id"])) == 17


def test_the_readmes_python_makes_a_video(client, tmp_path):
    shutil.copytree(CHECKOUT / "examples", tmp_path / "examples")
    (program,) = re.findall(r"```python\n(.*?)```", (tmp_path / "examples/README.md").read_text(), re.DOTALL)
    replacements = {
        '"output_config": client.output_config,': f'"output_config": client.output_config, **{reduced({})},',
        "RUNPOD_URL}/": f"'{client.url.removesuffix('local')}'}}",
    }
    for words, replacement in replacements.items():
        assert program.count(words) == 1
        program = program.replace(words, replacement)
    environment = os.environ | {"RUNPOD_ENDPOINT_ID": "local", "RUNPOD_API_KEY": "local"}
    command = [sys.executable, "-c", program]
    subprocess.run(command, cwd=tmp_path / "examples", env=environment, check=True, timeout=300)
    assert num_frames(tmp_path / "examples/talk.mp4") == 17


def test_the_hubs_own_test_passes(client):
    (test,) = json.loads((CHECKOUT / ".runpod/tests.json").read_text(encoding="utf-8"))["tests"]
    assert client.run(test["input"], poll_s=0.1)["video"]["data"]


def test_the_command_line_turns_a_picture_and_a_voice_into_a_video(client, tmp_path, capsys):
    picture, voice = (str(CHECKOUT / "examples/media" / name) for name in ("portrait.jpg", "speech.wav"))
    output = tmp_path / "talk.mp4"
    changes = [f"--set={name}={value}" for name, value in reduced({}).items()]
    assert client_module.main([picture, voice, "-o", str(output), "--url", client.url, "--key", "local", *changes]) == 0
    assert num_frames(output) == 21
    captured = capsys.readouterr()
    assert captured.out == f"{output}\n"
    assert "100% |" in captured.err


def test_the_command_line_tells_what_a_job_would_do(client, tmp_path, capsys):
    picture, voice = (str(CHECKOUT / "examples/media" / name) for name in ("portrait.jpg", "speech.wav"))
    where = ["-o", str(tmp_path / "talk.mp4"), "--url", client.url, "--key", "local"]
    assert client_module.main([picture, voice, *where, "--set=dry_run=true", "--set=mode=clip"]) == 0
    assert "81 frames of 64x64, 3.24 s; 1 chunks, 120 evaluations by tiny-" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_command_line_changes_prompt_and_picture_along_the_video(client, tmp_path, capsys):
    picture, other, voice = (
        str(CHECKOUT / "examples/media" / name) for name in ("portrait.jpg", "drawn_portrait.png", "speech.wav")
    )
    where = ["-o", str(tmp_path / "talk.mp4"), "--url", client.url, "--key", "local"]
    changes = [
        "--prompt-at",
        "2.5",
        "She laughs",
        "--prompt-at",
        "1",
        "She sings",
        "--picture-at",
        "2",
        other,
        "--gate",
    ]
    assert client_module.main([picture, voice, *where, *changes, "--gate", "--set=dry_run=true"]) == 0
    captured = capsys.readouterr()
    assert [line for line in captured.out.splitlines() if "picture" in line] == [
        "  from 0 s, chunk 1: prompt 1, picture 1",
        "  from 2.88 s, chunk 2: prompt 3, picture 2",
    ]
    assert "warning: prompt.1, from 1 s on, has no effect: no chunk begins from then to 2.5 s" in captured.err


def test_the_command_line_says_who_is_where_who_begins_when_and_what_stays_of_a_film(tmp_path):
    film, *voices = (str(CHECKOUT / "examples/media" / name) for name in ("talk.mp4", "speech.wav", "speech2.wav"))
    where = ["-o", str(tmp_path / "talk.mp4"), "--url", "http://example.invalid/v2/endpoint"]
    dubbing = ["--dub=face", "--strength=0.6", "--mix=-12", "--faces", "--begins", "person2", "2.5"]
    options = command.arguments([film, *voices, *where, *dubbing])
    job, _ = command.job_from(options, InfiniteTalkClient(options.url))
    parse_input(job)
    assert job["dub"] == {"keep": "face", "strength": 0.6}
    assert (job["audio_mix"], job["regions"]) == ({"source": -12.0}, "faces")
    assert job["cond_audio"]["person2"]["from_s"] == 2.5
    options = command.arguments([film, voices[0], *where, "--strength=0.3"])
    job, _ = command.job_from(options, InfiniteTalkClient(options.url))
    assert job["dub"] == {"keep": "none", "strength": 0.3}


def test_the_command_line_tells_the_price_by_each_recipe(client, tmp_path, capsys):
    picture, voice = (str(CHECKOUT / "examples/media" / name) for name in ("portrait.jpg", "speech.wav"))
    where = ["-o", str(tmp_path / "talk.mp4"), "--url", client.url, "--key", "local"]
    assert client_module.main([picture, voice, *where, "--prices", "--recipe=quality", "--set=max_frame_num=81"]) == 0
    # Seconds are told once the endpoint has made a chunk, which an earlier test may have asked for.
    first, *lines = re.sub(r", about \d+ s", "", capsys.readouterr().out).splitlines()
    assert "120 evaluations" in first
    assert "  recipe quality: 120 evaluations" in lines
    assert not list(tmp_path.iterdir())


def test_the_command_line_says_where_nothing_answers(capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v2/local"
        assert client_module.main(["https://a/b.png", "https://a/b.wav", "--url", url]) == 1
    assert capsys.readouterr().err == f"error: {url} does not answer\n"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["a.png"], "give an image with either voices or --text, or a --payload"),
        (["a.png", "b.wav", "--payload", "c.json"], "--payload has the whole job: change its fields with --set"),
        (["a.png", "b.wav", "--voice", "af_heart"], "--voice names the voice of --text, which is missing"),
        (["a.png", "b.wav", "--prompt-at", "soon", "She laughs"], "--prompt-at takes seconds first, not soon"),
        (["--payload", "c.json", "--gate"], "--payload has the whole job: change its fields with --set"),
        (["--payload", "c.json", "--dub", "face"], "--payload has the whole job: change its fields with --set"),
        (
            ["a.png", "b.wav", "--begins", "person2", "1"],
            "--begins takes a speaker with a voice (person1), not person2",
        ),
        (["a.png", "b.wav", "--begins", "person1", "soon"], "--begins takes seconds after person1, not soon"),
        (["a.png", "b.wav", "--set", "sample_steps"], "--set takes NAME=VALUE, not sample_steps"),
        (["a.png", "b.wav", "-o", "absent/talk.mp4"], "--output: the folder absent does not exist"),
        (["a.png", "b.wav", "-o", "folder"], "--output: folder is no file that can be replaced"),
        (["a.png", "b.wav", "-o", "/dev/null"], "--output: /dev/null is no file that can be replaced"),
        (["a.png", "b.wav", "-o", "x" * 300], f"--output: {'x' * 300} cannot be written: File name too long"),
        (["a.png", "b.wav", "-o", "/proc/talk.mp4"], "--output: /proc/talk.mp4 cannot be written: "),
        (
            ["a.png", "b.wav", "--job", "x"],
            "--job is about a job that was sent before: leave out what would make a new",
        ),
        (["a.png", "b.wav", "--cancel"], "--cancel needs the job's id: --job ID --cancel"),
        (["a.png", "b.wav", "--url", "127.0.0.1:8000"], "--url begins with http:// or https://"),
        (
            ["a.png", "b.wav", "--endpoint", "x"],
            "an endpoint on Runpod needs its key: set RUNPOD_API_KEY, or give --key",
        ),
    ],
)
def test_the_command_line_refuses_a_mistake_before_anything_is_sent(given, told, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    monkeypatch.delenv("RUNPOD_ENDPOINT_ID", raising=False)
    with pytest.raises(SystemExit):
        client_module.main(given)
    assert f"error: {told}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


@pytest.mark.parametrize("text", ["# no JSON", "[]", '{"prompt": "x"}', '{"input": {"batch": [1]}}'])
def test_the_command_line_names_a_payload_that_is_no_job(text, capsys, tmp_path):
    payload = tmp_path / "payload.json"
    payload.write_text(text)
    assert client_module.main(["--payload", str(payload), "-o", str(tmp_path / "talk.mp4")]) == 1
    assert capsys.readouterr().err == f'error: {payload} is not JSON of a job: {{"input": {{…}}}}\n'


def test_the_command_line_tells_a_failure(client, tmp_path, capsys):
    unreachable = ["https://127.0.0.1/a.png", "https://127.0.0.1/a.wav"]
    code = client_module.main([*unreachable, "-o", str(tmp_path / "x.mp4"), "--url", client.url, "--key", "local"])
    assert code == 1
    assert "error: E_DOWNLOAD_FAILED" in capsys.readouterr().err


def test_ctrl_c_without_a_terminal_cancels_the_job(client, tmp_path):
    payload = tmp_path / "long.json"
    payload.write_text(json.dumps({"input": PAYLOADS["single_image"]["input"] | {"sample_steps": 200}}))
    process = subprocess.Popen(
        [
            sys.executable,
            str(CHECKOUT / "examples/client.py"),
            "--payload",
            str(payload),
            "--url",
            client.url,
            "--key",
            "local",
            "-o",
            str(tmp_path / "talk.mp4"),
        ],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # Tests that run in the background of a shell inherit a Ctrl-C that is ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    seen = b""
    while b"sampling" not in seen:
        block = process.stderr.read1()
        assert block, seen
        seen += block
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    health = requests.get(f"{client.url}/health", headers={"Authorization": "Bearer local"}, timeout=5).json()
    assert (health["jobs"]["inProgress"], health["jobs"]["inQueue"]) == (0, 0)
