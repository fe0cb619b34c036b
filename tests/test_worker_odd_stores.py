"""Stores of a job's own that answer what no store should: the job gets its video or a coded failure that tells why."""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.job_inputs import small_job
from tests.local_jobs import LocalWorker
from tests.odd_store import DATE, Answer, Oddity, odd_store

PROBE = ".check-"

pytestmark = pytest.mark.usefixtures("open_network")


def always(method: str, answer: Answer, part: str = "") -> Oddity:
    """`answer` to each request of a method for a key that holds `part`."""
    return lambda asked, key, headers: answer if asked == method and part in key else None


def first(count: int, method: str, answer: Answer, part: str) -> Oddity:
    """`answer` to the first requests of a method for a key that holds `part`."""
    left = [count]

    def oddity(asked: str, key: str, headers: Mapping[str, str]) -> Answer | None:
        if asked != method or part not in key or not left[0]:
            return None
        left[0] -= 1
        return answer

    return oddity


def run(worker: LocalWorker, oddity: Oddity, **config: str) -> tuple[dict[str, Any], dict[str, int]]:
    """A job's result, and the sizes of the stored objects that are not the saved state."""
    with odd_store(oddity) as store:
        job = small_job(output_config={"store": "s3"}, sample_steps=1)
        result = worker.run({"id": "job-1", "input": job, "s3Config": store.s3_config | config})
        return result, {key: len(data) for key, (data, _) in store.objects.items() if ".resume" not in key}


def head(**changes: str) -> Answer:
    return 200, {"ETag": '"tag"', "Last-Modified": DATE, "Content-Length": "3"} | changes, b""


@pytest.mark.parametrize(
    "oddity",
    [
        always("HEAD", head(**{"Last-Modified": "soon"})),
        always("HEAD", head(**{"Last-Modified": ""})),
        always("HEAD", head(**{"Last-Modified": "Fri, 27 Nov 99999 08:00:00 GMT"})),
        always("HEAD", head(**{"Content-Length": "three"})),
        always("HEAD", head(**{"x-amz-mp-parts-count": "some"})),
        always("PUT", (200, {"ETag": '"tag"', "x-amz-object-size": "large"}, b"")),
    ],
    ids=["date", "no date", "far date", "length", "parts", "size"],
)
def test_an_answer_without_a_meaning_is_the_stores_failure(oddity: Oddity, local_worker: LocalWorker) -> None:
    result, _ = run(local_worker, oddity)
    assert (result["error"]["code"], result["error"]["retryable"]) == ("E_UPLOAD", True)
    assert result["error"]["message"].endswith("the store's answer cannot be read")


@pytest.mark.parametrize("region", ["-", "-a", "a-"])
def test_a_region_that_is_none_is_nobodys_crash(region: str, local_worker: LocalWorker) -> None:
    refusal = f"<Error><Code>AuthorizationHeaderMalformed</Code><Region>{region}</Region></Error>".encode()
    result, _ = run(local_worker, always("GET", (400, {}, refusal), PROBE))
    assert result["error"]["code"] == "E_UPLOAD"
    result, _ = run(local_worker, always("GET", (400, {}, b"")), region=region)
    assert result["error"]["code"] == "E_INPUT_VALIDATION"
    assert "s3Config.region" in result["error"]["message"]


@pytest.mark.parametrize("oddity", [first(2, "GET", (404, {}, b""), PROBE), first(2, "GET", (404, {}, b""), ".mp4")])
def test_a_store_that_shows_an_object_a_moment_later_serves(oddity: Oddity, local_worker: LocalWorker) -> None:
    result, stored = run(local_worker, oddity)
    assert result["status"] == "success"
    assert stored["/bucket/infinitetalk/jobs/job-1.mp4"] == result["video"]["bytes"]


def test_a_store_that_never_shows_what_it_takes_is_told_so(local_worker: LocalWorker) -> None:
    result, _ = run(local_worker, always("GET", (404, {}, b""), PROBE))
    assert (result["error"]["code"], result["error"]["retryable"]) == ("E_UPLOAD", True)
    assert "takes objects, but does not show them" in result["error"]["message"]


def test_an_address_that_leads_to_another_page_does_not_serve(local_worker: LocalWorker) -> None:
    result, _ = run(local_worker, always("GET", (302, {"Location": "https://example.com/login"}, b"")))
    assert result["error"]["code"] == "E_UPLOAD"
    assert "answers their address with status 302" in result["error"]["message"]


@pytest.mark.parametrize("code", ["NotImplemented", "InvalidArgument", "InvalidRequest"])
def test_a_store_that_refuses_conditions_gets_the_video_without(code: str, local_worker: LocalWorker) -> None:
    def oddity(method: str, key: str, headers: Mapping[str, str]) -> Answer | None:
        return (400, {}, f"<Error><Code>{code}</Code></Error>".encode()) if "If-None-Match" in headers else None

    result, stored = run(local_worker, oddity)
    assert result["status"] == "success"
    assert {key.rpartition(".")[2] for key in stored} == {"mp4", "jpg", "json"}


def test_a_clock_that_is_wrong_is_not_the_clients_mistake(local_worker: LocalWorker) -> None:
    result, _ = run(local_worker, always("PUT", (403, {}, b"<Error><Code>RequestTimeTooSkewed</Code></Error>")))
    assert (result["error"]["code"], result["error"]["retryable"]) == ("E_UPLOAD", True)
    assert "clocks" in result["error"]["message"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"endpointUrl": "http://127.0.0.1:1/path?x=y"}, "s3Config.endpointUrl"),
        ({"endpointUrl": "http://127.0.0.1:1/#x"}, "s3Config.endpointUrl"),
        ({"accessId": "a\nb"}, "s3Config.accessId"),
        ({"accessId": " "}, "s3Config.accessId"),
        ({"accessSecret": "\n"}, "s3Config.accessSecret"),
    ],
)
def test_settings_of_a_store_that_cannot_be_sent_are_refused(
    config: dict[str, str], words: str, local_worker: LocalWorker
) -> None:
    result, _ = run(local_worker, always("GET", (400, {}, b"")), **config)
    assert (result["error"]["code"], result["error"]["retryable"]) == ("E_INPUT_VALIDATION", False)
    assert words in result["error"]["message"]


def test_white_space_around_credentials_is_not_sent(local_worker: LocalWorker) -> None:
    seen = []

    def listen(method: str, key: str, headers: Mapping[str, str]) -> Answer | None:
        seen.append(headers["Authorization"])
        return None

    result, _ = run(local_worker, listen, accessId=" id\n", accessSecret="secret\n")
    assert result["status"] == "success"
    assert "Credential=id/" in seen[0]
