"""One job at an endpoint: sent, followed until its end or until the limits, asked for again after an interruption."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from infinitetalk_client import EndpointError, InfiniteTalkClient

POLL_S = 0.5
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
GONE = 404

Show = Callable[[str, float], None]
"""Shows a job's stage and its per cent."""


class OverLimitError(Exception):
    """The hour's limits are reached; the job is cancelled."""


class LostError(Exception):
    """The endpoint has not answered for some time; the job may go on."""


def client_of(url: str, key: str) -> InfiniteTalkClient:
    """A client of the endpoint at this address."""
    return InfiniteTalkClient(url, key)


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

    def send(self, job_input: dict[str, Any], **envelope: Any) -> str:
        """Queues a job; returns its id.

        Raises:
            EndpointError, MediaError: the endpoint refuses it.
            LostError: the endpoint does not answer.
        """
        given = job_input | {"output_config": {"store": self._store, "prefix": "infinitetalk/first-hour"}}
        try:
            return self.client.submit(given, **envelope)
        except EndpointError as error:
            raise self._told(error, error.status is None) from error

    def _told(self, error: EndpointError, is_lost: bool) -> LostError | EndpointError:
        """The error without the endpoint's address, which is nobody's business in a report."""
        text = str(error).replace(self.client.url, "the endpoint")
        return LostError(text) if is_lost else EndpointError(text, error.status)

    def knows(self, job_id: str) -> bool:
        """Whether the endpoint still has a job of this id, in whatever state but a cancelled one."""
        try:
            return bool(self._status(job_id)["status"] != "CANCELLED")
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
        while (answer := self._status(job_id))["status"] not in ENDED and not until(answer):
            progress = answer.get("output") if answer["status"] == "IN_PROGRESS" else None
            if isinstance(progress, dict):
                show(str(progress.get("stage", "")), float(progress.get("pct", 0.0)))
            else:
                show("queued", 0.0)
            if left_s() <= 0:
                self.cancel(job_id)
                raise OverLimitError
            self._tend()
            time.sleep(POLL_S)
        return answer

    def cancel(self, job_id: str) -> str:
        """Cancels a job; returns its state.

        Raises:
            LostError: the endpoint does not answer.
        """
        try:
            return self.client.cancel(job_id)
        except EndpointError as error:
            raise self._told(error, True) from error

    def _status(self, job_id: str) -> dict[str, Any]:
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return self.client.status(job_id)
            except EndpointError as error:
                is_answer = error.status is not None and error.status < 500
                if is_answer or time.monotonic() > deadline:
                    raise self._told(error, not is_answer) from error
            self._tend()
            time.sleep(POLL_S)
