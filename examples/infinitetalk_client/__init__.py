"""Sends a job to an endpoint, local or on Runpod, shows its progress and fetches the video.

    infinitetalk-client portrait.png voice.wav -o talk.mp4
    infinitetalk-client portrait.png --text "Hello there" --voice am_adam -o talk.mp4
    infinitetalk-client --payload two_speakers.json -o talk.mp4

`pip install ./examples` installs the command; `python examples/client.py` is the same without installing it.

The endpoint is that of `make serve` unless --endpoint or RUNPOD_ENDPOINT_ID names one on Runpod (key: RUNPOD_API_KEY).
Ctrl-C cancels the job. Needs requests and tqdm, and boto3 if files are too large for a request to Runpod.
"""

from __future__ import annotations

import argparse
import base64
import json
import mimetypes
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

LOCAL_URL = "http://127.0.0.1:8000/v2/local"
RUNPOD_URL = "https://api.runpod.ai/v2"
INLINE_BYTES = 7_000_000
"""Largest total size of a job's media sent in the request: Runpod accepts 10 MB, and base64 adds a third."""

BLOCK_BYTES = 1 << 20
PRESIGNED_S = 24 * 3600
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")

Progress = Callable[[dict[str, Any]], None]


class JobError(Exception):
    """A job failed. `code` is a code of the worker, or the endpoint's state of the job."""

    def __init__(self, code: str, message: str, retryable: bool = False) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.retryable = code, message, retryable


class InfiniteTalkClient:
    """A client of one endpoint.

        client = InfiniteTalkClient()
        picture, voice = client.media("portrait.png", "voice.wav")
        result = client.run({"prompt": "A woman talks", "cond_video": picture, "cond_audio": {"person1": voice},
                             "output_config": client.output_config})
        client.download(result, "talk.mp4")

    Args:
        url: the endpoint's address, up to and including its id.
        key: the API key.
        timeout_s: timeout of one request, in seconds.
        inline_bytes: largest total size of a job's media sent in the request; larger media are uploaded first.
    """

    def __init__(
        self, url: str = LOCAL_URL, key: str = "local", timeout_s: float = 60.0, inline_bytes: int = INLINE_BYTES
    ) -> None:
        self.url = url.rstrip("/")
        self._inline_bytes = inline_bytes
        self._timeout_s = timeout_s
        self._session = requests.Session()
        self._session.headers["Authorization"] = f"Bearer {key}"
        # GET is retried; a POST is not retried once it has been sent, because it might queue a job twice.
        statuses = (429, 500, 502, 503, 504)
        retry = Retry(total=8, connect=3, backoff_factor=0.5, status_forcelist=statuses, allowed_methods=("GET",))
        self._session.mount("https://", HTTPAdapter(max_retries=retry))
        self._session.mount("http://", HTTPAdapter(max_retries=retry))

    @property
    def is_local(self) -> bool:
        """Whether the endpoint is that of `make serve`, which also serves files."""
        return urlsplit(self.url).hostname in ("127.0.0.1", "localhost")

    @property
    def output_config(self) -> dict[str, str]:
        """An output configuration from which `download` can fetch: the local endpoint's files, or S3."""
        return {"store": "volume" if self.is_local else "s3"}

    def media(self, *sources: str | Path) -> list[str]:
        """Converts images, videos and audio into values that a job can refer to.

        Addresses stay unchanged. Files become data URIs if all of them fit into a request. Otherwise they are uploaded:
        to the local endpoint, or to the S3 store that S3_ENDPOINT, S3_BUCKET, S3_ACCESS_KEY and S3_SECRET_KEY name.

        Raises:
            OSError: a file cannot be read.
            KeyError: the store is needed, but a variable for it is not set.
        """
        files = [Path(source) for source in sources if not _is_address(source)]
        fits = sum(file.stat().st_size for file in files) <= self._inline_bytes
        carry = _data_uri if fits else self._put_file if self.is_local else _upload_to_s3
        return [str(source) if _is_address(source) else carry(Path(source)) for source in sources]

    def submit(self, job_input: dict[str, Any], **envelope: Any) -> str:
        """Queues a job and returns its id; `envelope` has the fields next to input: policy, webhook, s3Config.

        Raises:
            JobError: the endpoint refuses the job.
        """
        return str(self._call("POST", "run", json={"input": job_input, **envelope})["id"])

    def status(self, job_id: str) -> dict[str, Any]:
        """The endpoint's answer: id, status, error, and output, which is the progress at first and the result later.

        Raises:
            JobError: there is no such job.
        """
        return self._call("GET", f"status/{job_id}")

    def cancel(self, job_id: str) -> None:
        """Stops a job.

        Raises:
            JobError: there is no such job.
        """
        self._call("POST", f"cancel/{job_id}")

    def watch(self, job_id: str, poll_s: float = 1.0) -> Generator[dict[str, Any], None, dict[str, Any]]:
        """Yields a job's progress, {"stage", "pct", "eta_s", …}; the stage is "queued" until a worker takes the job.

        The generator's return value is the result.

        Raises:
            JobError: the job fails, is cancelled or times out.
        """
        while (answer := self.status(job_id))["status"] not in ENDED:
            if answer["status"] == "IN_QUEUE":
                yield {"stage": "queued", "pct": 0.0}
            elif isinstance(answer.get("output"), dict):
                yield answer["output"]
            time.sleep(poll_s)
        if answer["status"] != "COMPLETED":
            raise _job_error(answer)
        return dict(answer["output"])

    def run(
        self, job_input: dict[str, Any], on_progress: Progress = lambda _: None, poll_s: float = 1.0, **envelope: Any
    ) -> dict[str, Any]:
        """Queues a job and waits for its result. If the wait is interrupted, as by Ctrl-C, the job is cancelled.

        Args:
            on_progress: called with each value of `watch`.

        Raises:
            JobError: the job fails, is cancelled or times out.
        """
        job_id = self.submit(job_input, **envelope)
        progress = self.watch(job_id, poll_s)
        try:
            while True:
                on_progress(next(progress))
        except StopIteration as end:
            return dict(end.value)
        except JobError:
            raise
        except BaseException:
            self.cancel(job_id)
            raise

    def preview_address(self, progress: dict[str, Any]) -> str | None:
        """Address of the playlist of a job with `output_config.preview`; None until its progress has one."""
        if url := progress.get("preview_url"):
            return str(url)
        path = progress.get("preview_path")
        return self._file_url(path) if self.is_local and path else None

    def download(self, result: dict[str, Any], target: str | Path) -> Path:
        """Writes a result's video to a file.

        Raises:
            JobError: the result names a volume, which only the local endpoint serves.
            requests.RequestException: the video cannot be fetched.
        """
        video, target = result["video"], Path(target)
        if "data" in video:
            target.write_bytes(base64.b64decode(video["data"]))
            return target
        if "url" in video:
            # Without the session, which would send the endpoint's key to the store.
            response = requests.get(video["url"], stream=True, timeout=self._timeout_s)
        elif self.is_local:
            response = self._session.get(self._file_url(video["path"]), stream=True, timeout=self._timeout_s)
        else:
            raise JobError("E_DOWNLOAD", f"the video is on the endpoint's volume: {video['path']}")
        with response, target.open("wb") as file:
            response.raise_for_status()
            for block in response.iter_content(BLOCK_BYTES):
                file.write(block)
        return target

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        response = self._session.request(method, f"{self.url}/{path}", timeout=self._timeout_s, **options)
        if not response.ok:
            raise JobError(f"HTTP_{response.status_code}", response.text[:500])
        return dict(response.json())

    def _put_file(self, file: Path) -> str:
        url = self._file_url(f"uploads/{uuid.uuid4().hex}{file.suffix}")
        with file.open("rb") as data:
            response = self._session.put(url, data=data, timeout=self._timeout_s)
        response.raise_for_status()
        return str(response.json()["path"])

    def _file_url(self, path: str) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}/files/{path}"


def _is_address(source: str | Path) -> bool:
    return str(source).startswith(("http://", "https://", "data:"))


def _data_uri(file: Path) -> str:
    mime = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return f"data:{mime};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _upload_to_s3(file: Path) -> str:
    import boto3
    from botocore.config import Config

    endpoint = os.environ["S3_ENDPOINT"]
    store = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=os.environ["S3_ACCESS_KEY"],
        aws_secret_access_key=os.environ["S3_SECRET_KEY"],
        region_name=os.environ.get("S3_REGION") or _region_of(endpoint),
        # Not every store supports the older signature or the newer checksums.
        config=Config(
            signature_version="s3v4",
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    place = {"Bucket": os.environ["S3_BUCKET"], "Key": f"infinitetalk/inputs/{uuid.uuid4().hex}{file.suffix}"}
    store.upload_file(str(file), *place.values())
    return str(store.generate_presigned_url("get_object", Params=place, ExpiresIn=PRESIGNED_S))


def _region_of(endpoint: str) -> str:
    """The region in the host name of a store; an address signed for another region is refused."""
    host = urlsplit(endpoint).hostname or ""
    found = re.search(r"(?:^|\.)s3[.-]([a-z0-9-]+)\.[^.]+\.", host) or re.search(
        r"([^.]+)\.digitaloceanspaces\.com$", host
    )
    return found[1] if found else "us-east-1"


def _job_error(answer: dict[str, Any]) -> JobError:
    """Reads an error: Runpod returns a worker's error as an object or as JSON text, its own errors as plain text."""
    error: Any = answer.get("error", "")
    if isinstance(error, str):
        try:
            error = json.loads(error)
        except ValueError:
            error = {"message": error or "the job has ended without a result"}
    return JobError(
        error.get("code", answer["status"]), error.get("message", str(error)), error.get("retryable", False)
    )


class ProgressBar:
    """Shows a job's progress in one line: stage, per cent, seconds left."""

    def __init__(self) -> None:
        self._bar = tqdm(total=100, bar_format="{desc} {percentage:3.0f}% |{bar:40}|", file=sys.stderr)

    def __call__(self, progress: dict[str, Any]) -> None:
        """Shows a progress message."""
        eta_s = progress.get("eta_s")
        left = f"{eta_s:.0f} s left" if eta_s else ""
        self._bar.set_description_str(f"{progress['stage']:<10} {left:>11}", refresh=False)
        self._bar.update(progress["pct"] - self._bar.n)
        self._bar.refresh()

    def close(self) -> None:
        """Ends the line and leaves it on the screen."""
        self._bar.close()


def job_from(options: argparse.Namespace, client: InfiniteTalkClient) -> tuple[dict[str, Any], dict[str, Any]]:
    """A job's input and envelope, from the command line or a payload file."""
    if options.payload:
        envelope = json.loads(options.payload.read_text(encoding="utf-8"))
        envelope.pop("id", None)
        job_input = envelope.pop("input")
    else:
        envelope = {}
        picture, *voices = client.media(options.picture, *options.voices)
        job_input: dict[str, Any] = {"prompt": options.prompt, "cond_video": picture, "mode": "streaming"}
        if options.text:
            names = {f"human{number}_voice": name for number, name in enumerate(options.voice, 1)}
            job_input["tts_audio"] = {"text": options.text, **names}
        else:
            job_input["cond_audio"] = {f"person{number}": voice for number, voice in enumerate(voices, 1)}
    for assignment in options.set:
        name, _, value = assignment.partition("=")
        job_input[name] = _json_or_text(value)
    job_input.setdefault("output_config", client.output_config)
    return job_input, envelope


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _plan_line(plan: dict[str, Any]) -> str:
    """Summary of a dry run, in one line."""
    name = f"{plan['item_id']}: " if "item_id" in plan else ""
    seconds = f", about {plan['estimate_s']:.0f} s" if "estimate_s" in plan else ""
    dollars = f", ${plan['estimate_usd']:.2f}" if "estimate_usd" in plan else ""
    return (
        f"{name}{plan['num_frames']} frames of {plan['width']}x{plan['height']}, {plan['duration_s']:g} s; "
        f"{plan['num_chunks']} chunks, {plan['evaluations']} evaluations by {plan['model']}{seconds}{dollars}"
    )


def _item_path(output: Path, result: dict[str, Any]) -> Path:
    """The output path; for an item of a batch, talk-ITEM.mp4 in the same folder."""
    return output.with_stem(f"{output.stem}-{result['item_id']}") if "item_id" in result else output


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description="Makes a talking video from an image and a voice.")
    parser.add_argument("picture", nargs="?", help="image or video: file or address")
    parser.add_argument("voices", nargs="*", help="speech of each speaker: file or address")
    parser.add_argument("-o", "--output", type=Path, default=Path("talk.mp4"), help="(%(default)s)")
    parser.add_argument("--prompt", default="A person talks to the camera", help="what the image shows (%(default)s)")
    parser.add_argument("--text", help="text to speak, instead of speech files")
    parser.add_argument("--voice", action="append", help="voice for --text, once per speaker (am_adam)")
    parser.add_argument("--payload", type=Path, help="a job as JSON, instead of all of the above")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any field of the input")
    parser.add_argument("--endpoint", default=os.environ.get("RUNPOD_ENDPOINT_ID"), help="id of an endpoint on Runpod")
    parser.add_argument("--url", help=f"address of an endpoint ({LOCAL_URL})")
    parser.add_argument("--key", default=os.environ.get("RUNPOD_API_KEY", "local"), help="RUNPOD_API_KEY, else local")
    options = parser.parse_args(argv)
    options.voice = options.voice or ["am_adam"]
    if not options.payload and (not options.picture or bool(options.voices) == bool(options.text)):
        parser.error("give an image with either voices or --text, or a --payload")
    options.url = options.url or (f"{RUNPOD_URL}/{options.endpoint}" if options.endpoint else LOCAL_URL)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one job; the exit status is 1 if it fails and 130 if Ctrl-C cancels it."""
    options = arguments(argv)
    client = InfiniteTalkClient(options.url, options.key)
    bar = ProgressBar()
    try:
        job_input, envelope = job_from(options, client)
        try:
            result = client.run(job_input, bar, **envelope)
        except requests.ConnectionError:
            hint = "; is `make serve` running?" if options.url == LOCAL_URL else ""
            raise requests.ConnectionError(f"{options.url} does not answer{hint}") from None
        bar({"stage": "completed", "pct": 100.0, "eta_s": 0.0})
        bar.close()
        for warning in result.get("warnings", []):
            print(f"warning: {warning}", file=sys.stderr)
        for item in result.get("items", [result]):
            for warning in item.get("warnings", []) if "item_id" in item else []:
                print(f"{item['item_id']}: warning: {warning}", file=sys.stderr)
            match item["status"]:
                case "success":
                    print(client.download(item, _item_path(options.output, item)))
                case "planned":
                    print(_plan_line(item))
                case _:
                    print(f"{item['item_id']}: {item['error']['message']}", file=sys.stderr)
    except KeyboardInterrupt:
        bar.close()
        print("cancelled", file=sys.stderr)
        return 130
    except (JobError, requests.RequestException, OSError, KeyError) as error:
        bar.close()
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
