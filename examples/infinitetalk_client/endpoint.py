"""The client of one endpoint, local or on Runpod."""

from __future__ import annotations

import base64
import json
import os
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from infinitetalk_client.errors import (
    EndpointError,
    FetchError,
    InfiniteTalkError,
    JobError,
    MediaError,
    may_have_been_sent,
    sentence,
)
from infinitetalk_client.uploads import data_uri, file_of, is_address, upload_to_s3

LOCAL_URL = "http://127.0.0.1:8000/v2/local"
LOCAL_KEY = "local"
RUNPOD_URL = "https://api.runpod.ai/v2"
MEGABYTE = 1_000_000
REQUEST_BYTES = 10 * MEGABYTE
"""Largest request that Runpod takes."""

INLINE_BYTES = 7 * MEGABYTE
"""Largest total size of a job's media sent in the request: base64 adds a third."""

BLOCK_BYTES = 1 << 20
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")

RECIPES = ("quality", "lora-8", "lora-4", "flashtalk", "flashtalk-12")
"""The worker's named ways to make a video; a worker has those whose weights it has."""

NO_RESULT = {
    "CANCELLED": "the job was cancelled",
    "TIMED_OUT": "the job took longer than its time limit, policy.executionTimeout",
}
"""What a state means for which the endpoint gives no reason."""

HINTS = {
    401: "; is the key right (RUNPOD_API_KEY, --key)?",
    403: "; may this key use this endpoint?",
    404: "; is the endpoint's address right, up to and including its id: {url}?",
    429: "; it has too many requests: wait a little",
}
"""What to check, by the status of the endpoint's answer."""

Progress = Callable[[dict[str, Any]], None]


class InfiniteTalkClient:
    """A client of one endpoint.

        client = InfiniteTalkClient()
        picture, voice = client.media("portrait.png", "voice.wav")
        result = client.run({"prompt": "A woman talks", "cond_video": picture, "cond_audio": {"person1": voice},
                             "output_config": client.output_config})
        client.download(result, "talk.mp4")

    `run` is `submit` and `wait`; a job that was submitted can be awaited by any client, with its id.

    Args:
        url: the endpoint's address, up to and including its id.
        key: the API key.
        timeout_s: timeout of one request, in seconds.
        inline_bytes: largest total size of a job's media sent in the request; larger media are uploaded first.
        retries: how often a question (GET) is asked again if the endpoint is busy, fails or does not answer.

    Raises:
        EndpointError: the key has a character that no key has.
    """

    def __init__(
        self,
        url: str = LOCAL_URL,
        key: str = LOCAL_KEY,
        timeout_s: float = 60.0,
        inline_bytes: int = INLINE_BYTES,
        retries: int = 8,
    ) -> None:
        if odd := next((letter for letter in key if not "!" <= letter <= "~"), None):
            raise EndpointError(f"the key has a character that no key has, {odd!r}: copy it again")
        self.url = url.rstrip("/")
        self._inline_bytes = inline_bytes
        self._timeout_s = timeout_s
        self._session = requests.Session()
        self._session.headers["Authorization"] = f"Bearer {key}"
        # GET is retried; a POST is not retried once it has been sent, because it might queue a job twice.
        statuses = (429, 500, 502, 503, 504)
        retry = Retry(
            total=retries,
            connect=min(retries, 3),
            backoff_factor=0.5,
            status_forcelist=statuses,
            allowed_methods=("GET",),
            raise_on_status=False,
        )
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
            MediaError: a file cannot be read; or it must be uploaded, and the store is not named or does not take it.
            EndpointError: the local endpoint does not take a file.
        """
        files = {source: file_of(source) for source in sources if not is_address(source)}
        fits = sum(file.stat().st_size for file in files.values()) <= self._inline_bytes
        carry = data_uri if fits else self._put_file if self.is_local else upload_to_s3
        return [carry(files[source]) if source in files else str(source) for source in sources]

    def submit(self, job_input: dict[str, Any], **envelope: Any) -> str:
        """Queues a job and returns its id.

        Args:
            envelope: the fields next to input: policy, webhook, s3Config.

        Raises:
            MediaError: the request is larger than Runpod takes, or has a number that JSON has not; nothing was sent.
            EndpointError: the endpoint refuses the job or does not answer.
        """
        try:
            body = json.dumps({"input": job_input, **envelope}, allow_nan=False).encode()
        except ValueError:
            raise MediaError("a number of the job is infinite or not a number: JSON has none such") from None
        if len(body) > REQUEST_BYTES:
            raise MediaError(
                f"the request has {len(body) / MEGABYTE:.1f} MB, and at most {REQUEST_BYTES // MEGABYTE} MB are taken: "
                "give large media as addresses"
            )
        headers = {"Content-Type": "application/json"}
        try:
            return str(self._call("POST", "run", data=body, headers=headers)["id"])
        except EndpointError as error:
            if isinstance(error.__cause__, requests.RequestException) and may_have_been_sent(error.__cause__):
                raise EndpointError(f"{error}; the job may have been queued all the same, its id is unknown") from None
            raise

    def status(self, job_id: str) -> dict[str, Any]:
        """The endpoint's answer: id, status, error, and output, which is the progress at first and the result later.

        Raises:
            EndpointError: there is no such job (its `status` is 404), or the endpoint does not answer.
        """
        try:
            return self._call("GET", f"status/{quote(job_id, safe='')}")
        except EndpointError as error:
            raise self._about(job_id, error) from None

    def cancel(self, job_id: str) -> str:
        """Stops a job; returns its state, CANCELLED unless it had already ended.

        Raises:
            EndpointError: there is no such job (its `status` is 404), or the endpoint does not answer.
        """
        try:
            return str(self._call("POST", f"cancel/{quote(job_id, safe='')}")["status"])
        except EndpointError as error:
            raise self._about(job_id, error) from None

    def watch(self, job_id: str, poll_s: float = 1.0) -> Generator[dict[str, Any], None, dict[str, Any]]:
        """Yields a job's progress, {"stage", "pct", "eta_s", …}; the stage is "queued" until a worker takes the job.

        The generator's return value is the result.

        Raises:
            JobError: the job fails, is cancelled or times out.
            EndpointError: there is no such job, or the endpoint stops answering; the job may go on.
        """
        while (answer := self.status(job_id))["status"] not in ENDED:
            if answer["status"] == "IN_QUEUE":
                yield {"stage": "queued", "pct": 0.0}
            elif isinstance(answer.get("output"), dict):
                yield answer["output"]
            time.sleep(poll_s)
        if answer["status"] != "COMPLETED":
            raise job_error(answer)
        return dict(answer["output"])

    def wait(self, job_id: str, on_progress: Progress = lambda _: None, poll_s: float = 1.0) -> dict[str, Any]:
        """Waits for the result of a job that runs or has ended. If the wait is interrupted, the job goes on.

        Args:
            on_progress: called with each value of `watch`.

        Raises:
            JobError, EndpointError: like `watch`.
        """
        progress = self.watch(job_id, poll_s)
        while True:
            try:
                message = next(progress)
            except StopIteration as end:
                return dict(end.value)
            on_progress(message)

    def run(
        self,
        job_input: dict[str, Any],
        on_progress: Progress = lambda _: None,
        poll_s: float = 1.0,
        on_queued: Callable[[str], None] = lambda _: None,
        **envelope: Any,
    ) -> dict[str, Any]:
        """Queues a job and waits for its result. If the wait is interrupted, as by Ctrl-C, the job is cancelled.

        Args:
            on_progress: called with each value of `watch`.
            on_queued: called with the job's id, as soon as it is known.
            envelope: like `submit`.

        Raises:
            MediaError: like `submit`.
            JobError: the job fails, is cancelled or times out.
            EndpointError: the endpoint refuses the job, or stops answering; a job that was queued then goes on.
        """
        job_id = self.submit(job_input, **envelope)
        try:
            on_queued(job_id)
            return self.wait(job_id, on_progress, poll_s)
        except InfiniteTalkError:
            raise
        except BaseException as reason:
            try:
                self.cancel(job_id)
            except EndpointError as error:
                reason.add_note(f"job {job_id} could not be cancelled: {error}")
            raise

    def preview_address(self, progress: dict[str, Any]) -> str | None:
        """Address of the playlist of a job with `output_config.preview`; None until its progress has one."""
        if url := progress.get("preview_url"):
            return str(url)
        path = progress.get("preview_path")
        return self._file_url(path) if self.is_local and path else None

    def place(self, result: dict[str, Any]) -> str | None:
        """Where a result's video is: its address, or its path on the endpoint's volume; None if it is in the result.

        Raises:
            FetchError: the result has no video, like that of a dry run.
        """
        video = result.get("video")
        if not video:
            raise FetchError(f"the result has no video: its status is {result.get('status')}")
        if "url" in video:
            return str(video["url"])
        if "path" in video:
            return self._file_url(video["path"]) if self.is_local else str(video["path"])
        return None

    def download(self, result: dict[str, Any], target: str | Path) -> Path:
        """Writes a result's video to a file. A file of that name stays as it was until the video is complete.

        Raises:
            FetchError: the video cannot be fetched or written, or is on a volume, which only the local endpoint serves.
        """
        place, video, target = self.place(result), result["video"], Path(target)
        with _complete(target, place) as file:
            if place is None:
                file.write(base64.b64decode(video["data"]))
            elif "url" not in video and not self.is_local:
                raise FetchError(
                    f"the endpoint's volume has the video, at {place}: read it there, or use the store s3", place
                )
            else:
                self._read_into(file, place, with_key="path" in video)
        return target

    def _read_into(self, file: BinaryIO, url: str, with_key: bool) -> None:
        # Another's store must not get the endpoint's key.
        session = self._session if with_key else requests.Session()
        try:
            with session.get(url, stream=True, timeout=self._timeout_s) as response:
                if not response.ok:
                    hint = "; its address may have expired" if response.status_code == 403 else ""
                    raise FetchError(f"the store answers {response.status_code} {response.reason}{hint}", url)
                for block in response.iter_content(BLOCK_BYTES):
                    file.write(block)
        except requests.RequestException as error:
            raise FetchError(sentence(error, _host(url), self._timeout_s), url) from error

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer = self._send(method, f"{self.url}/{path}", **options)
        try:
            content = answer.json()
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise EndpointError(f"{self.url} answers with something else than JSON: is it an endpoint?", 200)
        return content

    def _send(self, method: str, url: str, **options: Any) -> requests.Response:
        try:
            response = self._session.request(method, url, timeout=self._timeout_s, **options)
        except requests.RequestException as error:
            hint = "; is `make serve` running?" if self.url == LOCAL_URL else ""
            raise EndpointError(sentence(error, self.url, self._timeout_s) + hint) from error
        if not response.ok:
            hint = HINTS.get(response.status_code, "").format(url=self.url)
            raise EndpointError(f"the endpoint answers {_refusal(response)}{hint}", response.status_code)
        return response

    def _about(self, job_id: str, error: EndpointError) -> EndpointError:
        """An error of a request about a job."""
        if error.status == 404:
            return EndpointError(
                f"{self.url} has no job {job_id}: its id is wrong, or its result is no longer kept (Runpod keeps it "
                "for 30 minutes)",
                404,
            )
        return EndpointError(f"{error}; job {job_id} may go on", error.status)

    def _put_file(self, file: Path) -> str:
        url = self._file_url(f"uploads/{uuid.uuid4().hex}{file.suffix}")
        with file.open("rb") as data:
            return str(self._send("PUT", url, data=data).json()["path"])

    def _file_url(self, path: str) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}/files/{path}"


def check_target(target: Path) -> None:
    """Checks that a file of this name can be written, and leaves none behind.

    Raises:
        FetchError: it cannot.
    """
    try:
        if target.exists() and not target.is_file():
            raise FetchError(f"{target} is no file that can be replaced")
        if target.exists() and not os.access(target, os.W_OK):
            raise FetchError(f"{target} may not be written by this user")
        if not target.parent.is_dir():
            raise FetchError(f"the folder {target.parent} does not exist")
        if not _part(target).exists():
            _part(target).touch()
            _part(target).unlink()
    except OSError as error:
        raise FetchError(f"{target} cannot be written: {error.strerror}") from None


@contextmanager
def _complete(target: Path, place: str | None) -> Iterator[BinaryIO]:
    """A file that gets the target's name once it is complete; nothing is left of it otherwise."""
    part = _part(target)
    try:
        file = part.open("wb")
    except OSError as error:
        raise FetchError(f"{target} cannot be written: {error.strerror}", place) from None
    try:
        with file:
            yield file
        part.replace(target)
    except OSError as error:
        raise FetchError(f"{target} cannot be written: {error.strerror}", place) from None
    finally:
        part.unlink(missing_ok=True)


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _host(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _refusal(response: requests.Response) -> str:
    """A refusal's status and, if the answer has one, its reason in words."""
    try:
        told = response.json()
    except ValueError:
        told = None
    reason = told.get("error") or told.get("message") if isinstance(told, dict) else None
    return f"{response.status_code} {response.reason}" + (f": {reason}" if reason else "")


def job_error(answer: dict[str, Any]) -> JobError:
    """Why a job has no result, by the endpoint's answer about it.

    Runpod returns a worker's error as an object or as JSON text, its own errors as plain text.
    """
    error: Any = answer.get("error", "")
    if isinstance(error, str):
        with suppress(ValueError):
            error = json.loads(error)
    if not isinstance(error, dict):
        error = {"message": error or NO_RESULT.get(answer["status"], "the job has ended without a result")}
    return JobError(
        error.get("code", answer["status"]), error.get("message", str(error)), error.get("retryable", False)
    )
