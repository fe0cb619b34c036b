"""One job at an endpoint: sent, followed until its end or until the limits, asked for again after an interruption."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from infinitetalk_client import EndpointError, InfiniteTalkClient

POLL_S = 0.5
REQUEST_TIMEOUT_S = 15.0
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
GONE, BUSY, BROKEN = 404, 429, 500
"""Statuses: there is no such job; too many requests; from here on the endpoint itself has failed."""

Show = Callable[[str, float], None]
"""Shows a job's stage and its per cent."""


class OverLimitError(Exception):
    """The hour's limits are reached; the job is cancelled."""


class LostError(Exception):
    """The endpoint has not answered for some time; the job may go on."""


def client_of(url: str, key: str) -> InfiniteTalkClient:
    """A client of the endpoint at this address. It asks once: the follower asks again, and looks at the limits."""
    return InfiniteTalkClient(url, key, timeout_s=REQUEST_TIMEOUT_S, retries=0)


class Follower:
    """Sends jobs and follows them.

    Args:
        client: of the endpoint.
        patience_s: seconds for which an endpoint may be silent.
        store: where results go: a store of the job's output_config.
        tend: called again and again while a job runs; keeps a worker of our own alive.
    """

    def __init__(
        self, client: InfiniteTalkClient, patience_s: float, store: str, tend: Callable[[], None] = lambda: None
    ) -> None:
        self.client = client
        self._patience_s = patience_s
        self._store = store
        self._tend = tend
        #: The job that was sent and is not known to have ended.
        self._running: str | None = None

    def send(self, job_input: dict[str, Any], **envelope: Any) -> str:
        """Queues a job; returns its id. An endpoint that has too many requests is asked again.

        Raises:
            EndpointError, MediaError: the endpoint refuses it.
            LostError: the endpoint does not answer, or fails. Whether it has the job is unknown.
        """
        given = job_input | {"output_config": {"store": self._store, "prefix": "infinitetalk/first-hour"}}
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                self._running = self.client.submit(given, **envelope)
                return self._running
            except EndpointError as error:
                if error.status != BUSY or time.monotonic() > deadline:
                    raise self._told(error, _is_passing(error)) from error
            time.sleep(POLL_S)

    def knows(self, job_id: str, left_s: Callable[[], float]) -> bool:
        """Whether the endpoint still has a job of this id, in whatever state but a cancelled one.

        Raises:
            OverLimitError, LostError, EndpointError: as `follow`.
        """
        try:
            return bool(self._status(job_id, left_s)["status"] != "CANCELLED")
        except EndpointError as error:
            if error.status == GONE:
                return False
            raise

    def follow(
        self,
        job_id: str,
        left_s: Callable[[], float],
        show: Show = lambda stage, pct: None,
        until: Callable[[dict[str, Any]], bool] = lambda answer: False,
    ) -> dict[str, Any]:
        """Waits for a job's end; returns the endpoint's last answer.

        Args:
            left_s: seconds that the limits leave.
            until: ends the wait before the job's end, by an answer of /status.

        Raises:
            OverLimitError, LostError: as they say.
            EndpointError: there is no such job.
        """
        while (answer := self._status(job_id, left_s))["status"] not in ENDED and not until(answer):
            progress = answer.get("output") if answer["status"] == "IN_PROGRESS" else None
            if isinstance(progress, dict):
                show(str(progress.get("stage", "")), float(progress.get("pct", 0.0)))
            else:
                show("queued", 0.0)
            self._wait(job_id, left_s)
        return answer

    def cancel(self, job_id: str) -> str:
        """Cancels a job; returns its state.

        Raises:
            LostError: the endpoint does not answer, or refuses.
        """
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                state = self.client.cancel(job_id)
            except EndpointError as error:
                if not _is_passing(error) or time.monotonic() > deadline:
                    raise self._told(error, True) from error
            else:
                self._running = None
                return state
            time.sleep(POLL_S)

    def cancel_running(self) -> None:
        """Cancels the job that runs, if one does, so that it costs no more.

        Raises:
            LostError: as `cancel`.
        """
        if self._running is not None:
            self.cancel(self._running)

    def _status(self, job_id: str, left_s: Callable[[], float]) -> dict[str, Any]:
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                answer = self.client.status(job_id)
            except EndpointError as error:
                if not _is_passing(error) or time.monotonic() > deadline:
                    raise self._told(error, _is_passing(error)) from error
            else:
                self._running = None if answer["status"] in ENDED else job_id
                return answer
            self._wait(job_id, left_s)

    def _wait(self, job_id: str, left_s: Callable[[], float]) -> None:
        """A pause before a job is asked for again; at the limits it is cancelled."""
        if left_s() <= 0:
            self.cancel(job_id)
            raise OverLimitError
        self._tend()
        time.sleep(POLL_S)

    def _told(self, error: EndpointError, is_lost: bool) -> LostError | EndpointError:
        """The error without the endpoint's address, which is nobody's business in a report."""
        text, parts = str(error), urlsplit(self.client.url)
        for part in (self.client.url, parts.netloc, parts.path):
            text = text.replace(part, "the endpoint") if part.strip("/") else text
        return LostError(text) if is_lost else EndpointError(text, error.status)


def _is_passing(error: EndpointError) -> bool:
    """Whether the endpoint may answer if it is asked again."""
    return error.status is None or error.status == BUSY or error.status >= BROKEN
