"""Sends results to the queue until it has them.

The SDK sends a result only once if the connection drops or the queue answers 408 or 429, and three times if it answers
5xx. It counts a redirect, even one to a login page, as success. The job then stays IN_PROGRESS for ever. The SDK has no
setting for this, so its function is replaced.
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
"""More attempts than fit into any time limit, so that only the time limit ends them."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
REQUEST_TIMEOUT_S = 60.0
TRANSIENT_STATUSES = {408, 425, 429}
REFUSED_KEY_STATUSES = {401, 403, 407}
REFUSED_KEY_PATIENCE_S = 120.0
"""Seconds during which a refused key may be renewed."""

AfterDelivery = Callable[[dict[str, Any], bool], Awaitable[None]]


def install(timeout_s: float, after_delivery: AfterDelivery) -> None:
    """Makes the SDK deliver results by `deliver`.

    Args:
        timeout_s: seconds after which delivery is given up.
        after_delivery: is awaited with each job and whether the queue has its result.
    """

    async def send_result(session: aiohttp.ClientSession, result: Any, job: Any, is_stream: bool = False) -> None:
        is_delivered = False
        try:
            is_delivered = await deliver(session, result, job, timeout_s)
        finally:
            await after_delivery(job, is_delivered)

    rp_job.send_result = send_result


async def deliver(session: aiohttp.ClientSession, result: Any, job: dict[str, Any], timeout_s: float) -> bool:
    """Sends a job's result, always the same bytes, until the queue takes it; returns whether it did.

    Only a 2xx answer means success, and not if it is an HTML page, which comes from a proxy or a login. A 4xx answer
    that is not transient is final: the queue does not want the result, for instance because the job was deleted.

    Args:
        session: the SDK's session.
        result: the SDK's form of the handler's result: `output`, `error`, `stopPod`.
        timeout_s: seconds after which it gives up.
    """
    logger = job_logger(job["id"])
    url = rp_http.JOB_DONE_URL.replace("$ID", job["id"]) + "&isStream=false"
    headers = {"charset": "utf-8", "Content-Type": "application/x-www-form-urlencoded", "X-Request-ID": job["id"]}
    begin = time.monotonic()

    async def is_answer(response: aiohttp.ClientResponse) -> bool:
        if response.status in REFUSED_KEY_STATUSES:
            return time.monotonic() - begin > REFUSED_KEY_PATIENCE_S
        return is_taken(response) or 400 <= response.status < 500

    options = ExponentialRetry(
        attempts=ATTEMPTS,
        start_timeout=FIRST_PAUSE_S,
        max_timeout=LONGEST_PAUSE_S,
        statuses=TRANSIENT_STATUSES,
        exceptions={aiohttp.ClientError, TimeoutError},
        evaluate_response_callback=is_answer,
    )
    try:
        async with (
            asyncio.timeout(timeout_s),
            RetryClient(client_session=session, retry_options=options).post(
                url,
                data=json.dumps(result, ensure_ascii=False).encode(),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
                allow_redirects=False,
            ) as response,
        ):
            status, is_delivered = response.status, is_taken(response)
    except TimeoutError:
        logger.error("result.undelivered", details={"reason": f"not taken within {timeout_s:g} s"})
        return False
    if not is_delivered:
        logger.error("result.undelivered", details={"status": status})
        return False
    logger.info("result.delivered", lat_ms=round((time.monotonic() - begin) * 1000))
    return True


def is_taken(response: aiohttp.ClientResponse) -> bool:
    """Whether an answer says that the queue has taken the result."""
    return 200 <= response.status < 300 and response.content_type != "text/html"
