"""The command line: one job from its files to its video, and back to it if the line to the endpoint breaks."""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from infinitetalk_client.endpoint import LOCAL_KEY, LOCAL_URL, RECIPES, RUNPOD_URL, InfiniteTalkClient, check_target
from infinitetalk_client.errors import FetchError, InfiniteTalkError, JobError, MediaError
from infinitetalk_client.shown import ProgressBar, plan_lines

DEFAULT_PROMPT = "A person talks to the camera"
FAILED, INTERRUPTED, TERMINATED = 1, 130, 143
"""Exit statuses: it failed, Ctrl-C ended it, SIGTERM ended it."""

QUESTION = "Ctrl-C: (c)ancel the job, (l)eave it running at the endpoint, or Enter to go on waiting? "


class Terminated(BaseException):
    """SIGTERM has come."""


class Errand:
    """One run of the command: a job that is sent, or one that was sent before, until its videos are here.

    Args:
        options: the command line's.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._job_id: str | None = options.job
        self._is_sending = False

    def run(self) -> int:
        """Does it; returns the exit status.

        Raises:
            InfiniteTalkError: no result can be had.
            KeyboardInterrupt: Ctrl-C, and the job is left; or there is none yet.
            Terminated: SIGTERM.
        """
        client = InfiniteTalkClient(self._options.url, self._options.key)
        if self._options.cancel:
            return self._cancel(client)
        if self._job_id is None:
            self._job_id = self._send(client)
            tell(f"job {self._job_id}: if this ends early, come back with: {self._command()}")
        result = self._follow(client)
        return INTERRUPTED if result is None else self._take(client, result)

    def last_words(self) -> str:
        """What becomes of the job if the command ends now."""
        if self._job_id is not None:
            return (
                f"job {self._job_id} is left to the endpoint. Come back with: {self._command()}\n"
                f"Cancel it with: {self._command('--cancel')}"
            )
        return (
            "interrupted while the job was being sent: the endpoint may have queued it, its id is unknown"
            if self._is_sending
            else "nothing was sent"
        )

    def _send(self, client: InfiniteTalkClient) -> str:
        job_input, envelope = job_from(self._options, client)
        if not self._options.prices:
            for item in job_input.get("batch", [job_input]):
                check_target(item_path(self._options.output, item.get("id") if "batch" in job_input else None))
        self._is_sending = True
        return client.submit(job_input, **envelope)

    def _follow(self, client: InfiniteTalkClient) -> dict[str, Any] | None:
        """The job's result; None if Ctrl-C cancels the job."""
        assert self._job_id is not None
        while True:
            try:
                with ProgressBar() as bar:
                    result = client.wait(self._job_id, bar)
                    bar({"stage": "completed", "pct": 100.0, "eta_s": 0.0})
                return result
            except KeyboardInterrupt:
                # At the end of the input, as for a second Ctrl-C, nobody decides: the job is left.
                match ask() if sys.stdin.isatty() else "c":
                    case "c":
                        self._cancel(client)
                        return None
                    case "l" | None:
                        raise

    def _cancel(self, client: InfiniteTalkClient) -> int:
        assert self._job_id is not None
        state = client.cancel(self._job_id)
        if state == "CANCELLED":
            tell(f"job {self._job_id} is cancelled")
            return 0
        tell(f"job {self._job_id} had ended before: it is {state}")
        return FAILED

    def _take(self, client: InfiniteTalkClient, result: dict[str, Any]) -> int:
        """Tells what the result says, and fetches its videos; returns the exit status."""
        for warning in result.get("warnings", []):
            tell(f"warning: {warning}")
        status = 0
        for item in result.get("items", [result]):
            item_id = item.get("item_id")
            for warning in item.get("warnings", []) if item_id else []:
                tell(f"{item_id}: warning: {warning}")
            match item["status"]:
                case "success":
                    try:
                        print(client.download(item, item_path(self._options.output, item_id)))
                    except FetchError as error:
                        place = f"It is at {error.place}" if error.place else "It is in the job's result"
                        tell(f"error: the video is made, but not here: {error}\n{place}")
                        tell(f"Fetch it again with: {self._command()}")
                        status = FAILED
                case "planned":
                    print(*plan_lines(item), sep="\n")
                case _:
                    tell(f"{item_id}: {item['error']['message']}")
                    status = FAILED
        return status

    def _command(self, *more: str) -> str:
        """The command that comes back to the job; the key is not in it."""
        options = self._options
        where = [] if options.url == LOCAL_URL else ["--url", options.url]
        output = [] if more else ["-o", str(options.output)]
        return shlex.join([*program(), "--job", str(self._job_id), *where, *output, *more])


def tell(text: str) -> None:
    """Says something to the person, beside the output."""
    print(text, file=sys.stderr, flush=True)


def ask() -> str | None:
    """The first letter of the answer to `QUESTION`: "" for Enter, None at the end of the input."""
    print(f"\n{QUESTION}", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    return answer.strip().lower()[:1] if answer else None


def program() -> list[str]:
    """How this program was called."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return ["python", "-m", "infinitetalk_client"]
    return ["python", str(path)] if path.suffix == ".py" else [path.name]


def item_path(output: Path, item_id: str | None) -> Path:
    """The output path; for an item of a batch, talk-ITEM.mp4 in the same folder.

    Raises:
        FetchError: the item's id cannot be part of a file's name.
    """
    if item_id is None:
        return output
    if not isinstance(item_id, str) or "/" in item_id or "\\" in item_id:
        raise FetchError(f"the item's id {item_id!r} cannot be part of a file's name")
    return output.with_stem(f"{output.stem}-{item_id}")


def job_from(options: argparse.Namespace, client: InfiniteTalkClient) -> tuple[dict[str, Any], dict[str, Any]]:
    """A job's input and envelope, from the command line or a payload file.

    Raises:
        MediaError: a file cannot be read, the payload is not a job, or large files have no store.
        EndpointError: the local endpoint does not take a file.
    """
    if options.payload:
        envelope = payload_of(options.payload)
        job_input = envelope.pop("input")
    else:
        envelope = {}
        later = [file for _, file in options.picture_at]
        picture, *media = client.media(options.picture, *later, *options.voices)
        pictures, voices = media[: len(later)], media[len(later) :]
        job_input = {
            "prompt": along(options.prompt, "prompt", options.prompt_at),
            "cond_video": along(
                picture, "media", [(time, given) for (time, _), given in zip(options.picture_at, pictures, strict=True)]
            ),
            "mode": "streaming",
        }
        if options.text:
            names = {f"human{number}_voice": name for number, name in enumerate(options.voice, 1)}
            job_input["tts_audio"] = {"text": options.text, **names}
        else:
            job_input["cond_audio"] = {
                speaker: {"media": voice, "from_s": options.begins[speaker]} if speaker in options.begins else voice
                for speaker, voice in ((f"person{number}", voice) for number, voice in enumerate(voices, 1))
            }
        if options.gate:
            job_input["speech"] = {"gate": "auto"}
        if options.faces:
            job_input["regions"] = "faces"
        if options.dub or options.strength is not None:
            # A strength alone moves the whole frame, as without dub.
            job_input["dub"] = {"keep": options.dub or "none"}
        if options.strength is not None:
            job_input["dub"]["strength"] = options.strength
        if options.mix is not None:
            job_input["audio_mix"] = {"source": options.mix}
    if options.recipe:
        job_input["recipe"] = options.recipe
    if options.prices:
        for job in job_input.get("batch", [job_input]):
            job["dry_run"] = True
    for assignment in options.set:
        name, _, value = assignment.partition("=")
        job_input[name] = _json_or_text(value)
    job_input.setdefault("output_config", client.output_config)
    return job_input, envelope


def along(first: str, field: str, later: Sequence[tuple[float, str]]) -> str | list[dict[str, Any]]:
    """A field's value: what is in force from the start, and what is from later times on, in their order."""
    if not later:
        return first
    return [{"from_s": time, field: value} for time, value in [(0.0, first), *sorted(later)]]


def number(text: str) -> float:
    """A number that JSON has.

    Raises:
        ValueError: it is none, or infinite or not a number.
    """
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def timed(
    values: Sequence[Sequence[str]] | None, option: str, parser: argparse.ArgumentParser
) -> list[tuple[float, str]]:
    """Pairs of a time in seconds and a value, from an option that takes both; a time that is none ends the program."""
    found = []
    for seconds, value in values or []:
        try:
            found.append((number(seconds), value))
        except ValueError:
            parser.error(f"{option} takes seconds first, not {seconds}")
    return found


def beginnings(options: argparse.Namespace, parser: argparse.ArgumentParser) -> dict[str, float]:
    """The seconds at which speakers begin, by name; a speaker without a voice ends the program."""
    speakers = [f"person{number}" for number in range(1, len(options.voices) + 1)]
    found = {}
    for speaker, seconds in options.begins or []:
        if speaker not in speakers:
            named = ", ".join(speakers) or "there is none"
            parser.error(f"--begins takes a speaker with a voice ({named}), not {speaker}")
        try:
            found[speaker] = number(seconds)
        except ValueError:
            parser.error(f"--begins takes seconds after {speaker}, not {seconds}")
    return found


def payload_of(file: Path) -> dict[str, Any]:
    """The payload in a file, without an id, since the endpoint gives one.

    Raises:
        MediaError: the file cannot be read, or is not JSON of a job.
    """
    try:
        payload = _json_or_text(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise MediaError(f"{file} cannot be read: {getattr(error, 'strerror', error)}") from None
    job_input = payload.get("input") if isinstance(payload, dict) else None
    items = job_input.get("batch", []) if isinstance(job_input, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise MediaError(f'{file} is not JSON of a job: {{"input": {{…}}}}')
    payload.pop("id", None)
    return dict(payload)


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line, and tries the output path; a mistake ends the program with its description."""
    parser = argparse.ArgumentParser(
        description="Makes a talking video from an image and a voice. The video is as long as the speech (mode "
        "streaming), at most 40 seconds unless --set max_frame_num=… says more, at 25 frames per second."
    )
    parser.add_argument("picture", nargs="?", help="image or video: file or address")
    parser.add_argument("voices", nargs="*", help="speech of each speaker: file or address")
    parser.add_argument("-o", "--output", type=Path, default=Path("talk.mp4"), help="(%(default)s)")
    parser.add_argument("--prompt", help=f"what the image shows ({DEFAULT_PROMPT})")
    parser.add_argument(
        "--prompt-at", nargs=2, action="append", metavar=("SECONDS", "PROMPT"), help="another prompt from then on"
    )
    parser.add_argument(
        "--picture-at", nargs=2, action="append", metavar=("SECONDS", "PICTURE"), help="another image from then on"
    )
    parser.add_argument("--gate", action="store_true", help="mouths rest where the sound is music or noise")
    parser.add_argument(
        "--begins",
        nargs=2,
        action="append",
        metavar=("SPEAKER", "SECONDS"),
        help="that voice begins later",
    )
    parser.add_argument("--faces", action="store_true", help="the speakers are the faces in the image, left to right")
    parser.add_argument("--dub", choices=("face", "all"), help="what stays of the video: all but the faces, or regions")
    parser.add_argument("--strength", type=number, help="how much of the video is made anew, above 0 to 1")
    parser.add_argument("--mix", type=number, metavar="DB", help="gain of the video's own sound under the speech")
    parser.add_argument("--text", help="text to speak, instead of speech files")
    parser.add_argument("--voice", action="append", help="voice for --text, once per speaker (am_adam)")
    parser.add_argument("--payload", type=Path, help="a job as JSON, instead of all of the above")
    parser.add_argument("--job", metavar="ID", help="wait for a job that was sent before, and fetch its video")
    parser.add_argument("--cancel", action="store_true", help="with --job: cancel it")
    parser.add_argument("--recipe", help=f"how to make it: {', '.join(RECIPES)}; else as the endpoint does")
    parser.add_argument("--prices", action="store_true", help="make nothing, say what each recipe would cost")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any field of the input")
    parser.add_argument("--endpoint", default=os.environ.get("RUNPOD_ENDPOINT_ID"), help="id of an endpoint on Runpod")
    parser.add_argument("--url", help=f"address of an endpoint ({LOCAL_URL})")
    parser.add_argument("--key", default=os.environ.get("RUNPOD_API_KEY"), help=f"RUNPOD_API_KEY, else {LOCAL_KEY}")
    options = parser.parse_args(argv)
    makes_one = options.picture or options.prompt or options.text or options.voice
    makes_one = makes_one or options.prompt_at or options.picture_at or options.gate or options.begins or options.faces
    makes_one = makes_one or options.dub or options.strength is not None or options.mix is not None
    options.prompt_at = timed(options.prompt_at, "--prompt-at", parser)
    options.picture_at = timed(options.picture_at, "--picture-at", parser)
    options.begins = beginnings(options, parser)
    if options.job and (makes_one or options.payload or options.recipe or options.prices or options.set):
        parser.error("--job is about a job that was sent before: leave out what would make a new one")
    if options.cancel and not options.job:
        parser.error("--cancel needs the job's id: --job ID --cancel")
    if options.payload and makes_one:
        parser.error("--payload has the whole job: change its fields with --set, and leave out the rest")
    has_source = options.picture and bool(options.voices) != bool(options.text)
    if not options.payload and not options.job and not has_source:
        parser.error("give an image with either voices or --text, or a --payload")
    if options.voice and not options.text:
        parser.error("--voice names the voice of --text, which is missing")
    if unnamed := [assignment for assignment in options.set if "=" not in assignment]:
        parser.error(f"--set takes NAME=VALUE, not {unnamed[0]}")
    options.prompt = options.prompt or DEFAULT_PROMPT
    options.voice = options.voice or ["am_adam"]
    options.url = options.url or (f"{RUNPOD_URL}/{options.endpoint}" if options.endpoint else LOCAL_URL)
    if not options.url.startswith(("http://", "https://")):
        parser.error(f"--url begins with http:// or https://, e.g. {LOCAL_URL}; not {options.url}")
    if options.url.startswith(RUNPOD_URL) and not options.key:
        parser.error("an endpoint on Runpod needs its key: set RUNPOD_API_KEY, or give --key")
    options.key = options.key or LOCAL_KEY
    if not options.prices and not options.cancel:
        try:
            check_target(options.output)
        except FetchError as error:
            parser.error(f"--output: {error}")
    return options


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM raises `Terminated` inside the block."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command, in the main thread; returns its exit status.

    It is 0 if all videos are here, 1 if not, 130 if Ctrl-C ended it and 143 if SIGTERM did.
    """
    options = arguments(argv)
    errand = Errand(options)
    try:
        with sigterm_raises():
            return errand.run()
    except KeyboardInterrupt:
        tell(f"\n{errand.last_words()}")
        return INTERRUPTED
    except Terminated:
        tell(f"\n{errand.last_words()}")
        return TERMINATED
    except JobError as error:
        tell(f"error: {error}" + ("; the same job may succeed if it is sent again" if error.retryable else ""))
        return FAILED
    except InfiniteTalkError as error:
        tell(f"error: {error}")
        return FAILED
