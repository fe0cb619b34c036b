"""Receives Runpod's webhooks and fetches the videos: a pattern for a server of your own.

    WEBHOOK_SECRET=… RUNPOD_ENDPOINT_ID=… RUNPOD_API_KEY=… python examples/webhook.py --folder videos

prints the address that a job names as its `webhook`, beside `input`. Without RUNPOD_ENDPOINT_ID it serves jobs of
`make serve`. Runpod posts a job's end at most three times, until the answer is 200, and signs nothing. So this receiver
- takes only posts to an address with a secret in it, and of what is posted only the job's id;
- answers at once, and then asks the endpoint itself, with the key, what has become of the job;
- does nothing when it is told of a job again whose video is there, or is being fetched.
"""

from __future__ import annotations

import argparse
import errno
import hmac
import json
import os
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from infinitetalk_client import LOCAL_KEY, LOCAL_URL, RUNPOD_URL, InfiniteTalkClient, InfiniteTalkError

LARGEST_BODY = 11_000_000
"""Of a result that holds its video, Runpod sends 10 MB."""

JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
SILENCE_S = 10.0
"""Seconds after which a sender that says nothing more is given up."""


class Receiver(ThreadingHTTPServer):
    """Fetches the videos of finished jobs into a folder, as ID.mp4.

    Args:
        address: host and port to listen at.
        secret: the last part of the webhook's path.
    """

    def __init__(self, address: tuple[str, int], client: InfiniteTalkClient, folder: Path, secret: str) -> None:
        # Before the port is taken: where it cannot be, `server_close` is called.
        self.secret = secret
        self._client, self._folder = client, folder
        self._fetching: set[str] = set()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=4)
        super().__init__(address, Post)

    @property
    def path(self) -> str:
        """The path of the webhook."""
        return f"/infinitetalk/{self.secret}"

    def take(self, job_id: str) -> None:
        """Has a job's video fetched, unless it is there or on its way."""
        with self._lock:
            if job_id in self._fetching or self._target(job_id).exists():
                return
            self._fetching.add(job_id)
        self._pool.submit(self._fetch, job_id)

    def server_close(self) -> None:
        """Ends, once what is on its way is here."""
        super().server_close()
        self._pool.shutdown()

    def _target(self, job_id: str) -> Path:
        return self._folder / f"{job_id}.mp4"

    def _fetch(self, job_id: str) -> None:
        try:
            # Not the posted result, which anybody could have sent: the endpoint's own.
            print(self._client.download(self._client.wait(job_id), self._target(job_id)), flush=True)
        except InfiniteTalkError as error:
            print(f"job {job_id}: {error}", file=sys.stderr, flush=True)
        finally:
            with self._lock:
                self._fetching.discard(job_id)


class Post(BaseHTTPRequestHandler):
    """One request to the receiver."""

    server: Receiver
    timeout = SILENCE_S

    def do_POST(self) -> None:
        """Takes a webhook and answers at once."""
        if not hmac.compare_digest(self.path.encode(), self.server.path.encode()):
            self._answer(HTTPStatus.NOT_FOUND)
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LARGEST_BODY:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        try:
            job_id = json.loads(self.rfile.read(int(length)))["id"]
        except (ValueError, KeyError, TypeError):
            job_id = None
        if not isinstance(job_id, str) or not JOB_ID.fullmatch(job_id):
            self._answer(HTTPStatus.BAD_REQUEST)
            return
        self.server.take(job_id)
        self._answer(HTTPStatus.OK)

    def log_message(self, format: str, *values: object) -> None:
        """Logs nothing: the path has the secret."""

    def _answer(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


def main() -> None:
    """Receives until it is interrupted."""
    parser = argparse.ArgumentParser(description="Receives webhooks of an endpoint and fetches the videos.")
    parser.add_argument("--folder", type=Path, default=Path(), help="for the videos (the current one)")
    parser.add_argument("--url", help=f"address of an endpoint ({LOCAL_URL}, or RUNPOD_ENDPOINT_ID's)")
    parser.add_argument("--port", type=int, default=8800, help="(%(default)s)")
    options = parser.parse_args()
    endpoint, secret = os.environ.get("RUNPOD_ENDPOINT_ID"), os.environ.get("WEBHOOK_SECRET", "")
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,}", secret):
        parser.error("set WEBHOOK_SECRET to at least 16 letters and digits that nobody can guess")
    url = options.url or (f"{RUNPOD_URL}/{endpoint}" if endpoint else LOCAL_URL)
    client = InfiniteTalkClient(url, os.environ.get("RUNPOD_API_KEY", LOCAL_KEY))
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        receiver = Receiver(("127.0.0.1", options.port), client, options.folder, secret)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        sys.exit(f"port {options.port} is taken: choose another one with --port")
    with receiver:
        # From outside, by way of a server or tunnel with https.
        print(f"webhook: http://127.0.0.1:{receiver.server_port}/infinitetalk/$WEBHOOK_SECRET", flush=True)
        try:
            receiver.serve_forever()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
