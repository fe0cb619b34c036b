"""Results to the queue, until it has them.

The SDK offers a result once where the connection drops or the queue answers 408 or 429, and three times where it
answers 5xx; the job then stays IN_PROGRESS for ever. It has no setting for that, so its function is replaced.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from aiohttp_retry import ExponentialRetry, RetryClient
from runpod.serverless.modules import rp_http, rp_job

from infinitetalk.worker.logs import job_logger

ATTEMPTS = 1000
"""More than any time allows."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
REQUEST_TIMEOUT_S = 60.0
TRANSIENT_STATUSES = {408, 425, 429}
"""Beside all of 5xx."""

AfterDelivery = Callable[[dict[str, Any], bool], Awaitable[None]]


def install(timeout_s: float, after_delivery: AfterDelivery) -> None:
    """Lets the SDK deliver results by `deliver`.

    Args:
        timeout_s: seconds after which a result is given up.
        after_delivery: awaited with each job, and whether the queue has its result.
    """

    async def send_result(session: aiohttp.ClientSession, result: Any, job: Any, is_stream: bool = False) -> None:
        is_delivered = False
        try:
            is_delivered = await deliver(session, result, job, timeout_s)
        finally:
            await after_delivery(job, is_delivered)

    rp_job.send_result = send_result


async def deliver(session: aiohttp.ClientSession, result: Any, job: dict[str, Any], timeout_s: float) -> bool:
    """Offers a job's result, always the same bytes, until the queue takes it; returns whether it did.

    An answer of 4xx that is not transient is final: the queue does not want the result, of a job that was deleted say.

    Args:
        session: the SDK's.
        result: what the SDK made of the handler's result: `output`, `error`, `stopPod`.
        timeout_s: seconds after which it gives up.
    """
    logger = job_logger(job["id"])
    url = rp_http.JOB_DONE_URL.replace("$ID", job["id"]) + "&isStream=false"
    headers = {"charset": "utf-8", "Content-Type": "application/x-www-form-urlencoded", "X-Request-ID": job["id"]}
    options = ExponentialRetry(
        attempts=ATTEMPTS,
        start_timeout=FIRST_PAUSE_S,
        max_timeout=LONGEST_PAUSE_S,
        statuses=TRANSIENT_STATUSES,
        exceptions={aiohttp.ClientError, TimeoutError},
    )
    begin = time.monotonic()
    try:
        async with (
            asyncio.timeout(timeout_s),
            RetryClient(client_session=session, retry_options=options).post(
                url,
                data=json.dumps(result, ensure_ascii=False).encode(),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
            ) as response,
        ):
            status = response.status
    except TimeoutError:
        logger.error("result.undelivered", details={"reason": f"not taken within {timeout_s:g} s"})
        return False
    if status >= 400:
        logger.error("result.undelivered", details={"status": status})
        return False
    logger.info("result.delivered", lat_ms=round((time.monotonic() - begin) * 1000))
    return True
