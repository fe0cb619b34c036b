"""What the fuzz holds jobs to is seen where it is broken; and its network is one from which nothing leaves."""

import hashlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import structlog
from hypothesis import find

from infinitetalk.worker.engine import Engine
from infinitetalk.worker.queue.runner import Runner
from tests.campaign import LOG_SECRET, SECRET, Campaign
from tests.fuzz_states import ALIKE, FOLDER, Forgery, set_file, with_field, with_forgeries
from tests.hostile_network import DRIP_S, REBINDING, SITE, Behaviour, HostileNetwork, behaviours


@pytest.fixture
def network() -> Iterator[HostileNetwork]:
    with HostileNetwork() as network:
        yield network


@pytest.fixture
def campaign(tiny_engine: Engine, tmp_path: Path) -> Iterator[Campaign]:
    with Campaign(tiny_engine, tmp_path) as campaign:
        yield campaign


def test_what_is_public_ends_at_the_site_and_what_is_not_is_a_breach(network: HostileNetwork) -> None:
    assert requests.get(f"http://{SITE}/x", timeout=5).content.startswith(b"\x89PNG")
    assert list(network.take_breaches()) == []
    # The host is the site's for one parser and the loopback address for the other.
    for address in (f"http://{network.trap}\\@{SITE}/", "http://10.0.0.1/", "http://[::1]/", "http://168.63.129.16/"):
        with pytest.raises(requests.ConnectionError):
            requests.get(address, timeout=5)
        assert len(list(network.take_breaches())) == 1, address
    with pytest.raises(requests.ConnectionError):
        requests.get("http://9.9.9.10/", timeout=5)
    assert list(network.take_breaches()) == []
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("example.com", 80)


def test_a_name_that_changes_its_address_is_seen(network: HostileNetwork) -> None:
    assert requests.get(f"http://{REBINDING}/", timeout=5).ok
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://{REBINDING}/", timeout=5)
    assert len(list(network.take_breaches())) == 1


def test_another_process_that_connects_is_seen(network: HostileNetwork) -> None:
    host, _, port = network.trap.partition(":")
    connect = f"import socket; socket.create_connection(('{host}', {port})).recv(1)"
    subprocess.run([sys.executable, "-c", connect], check=True, timeout=30)
    assert list(network.take_breaches()) == ["the trap, from another process"]


def test_a_servers_name_says_how_it_behaves(network: HostileNetwork) -> None:
    slow = find(behaviours(1), lambda behaviour: behaviour.pace == "drip")
    assert Behaviour.from_host(f"{slow.label}.{SITE}:80") == slow != Behaviour()
    begin = time.monotonic()
    with requests.get(f"http://{slow.label}.{SITE}/", timeout=5, stream=True) as answer:
        assert b"".join(next(answer.iter_content(1)) for _ in range(5)) == b"\x89PNG\r"
    assert time.monotonic() - begin > 4 * DRIP_S
    for name, value, status in (("status", "503 Busy", 503), ("redirect", "/", 200)):
        behaviour = Behaviour(**{name: value})
        assert requests.get(f"http://{behaviour.label}.{SITE}/", timeout=5).status_code == status


def test_a_store_is_bad_in_the_request_that_its_name_says(network: HostileNetwork) -> None:
    address = f"http://store.{Behaviour(method='GET', status='404 Not').label}.{SITE}/bucket/key"
    assert requests.put(address, data=b"content", timeout=5).status_code == 200
    assert requests.head(address, timeout=5).headers["Content-Length"] == "7"
    assert requests.get(address, timeout=5).status_code == 404
    assert network.site.objects == {address.removeprefix("http://"): b"content"}


def answering(result: Any) -> Any:
    """A worker that answers every job alike, and logs it."""

    async def run(runner: Runner, job: dict[str, Any]) -> Any:
        structlog.get_logger().info("job.taken", details={"said": job.get("said")})
        time.sleep(job.get("seconds", 0))
        if "connects" in job:
            with pytest.raises(OSError, match="refused"):
                socket.create_connection(("127.0.0.1", 1))
        if isinstance(result, Exception):
            raise result
        return result

    return run


FAILURE = {
    "job_id": "x",
    "status": "error",
    "error": {"code": "E_UPLOAD", "message": "no", "retryable": True, "at_stage": "upload"},
}


@pytest.mark.parametrize(
    ("job", "result", "check"),
    [
        ({}, FAILURE, None),
        ({}, RuntimeError("x"), "an exception in the place of a result"),
        ({}, {"status": "error"}, "is no result of the interface"),
        ({}, FAILURE | {"job_id": float("nan")}, "is no result of the interface"),
        ({}, FAILURE | {"job_id": SECRET}, "a secret is in the answer"),
        ({}, FAILURE | {"job_id": LOG_SECRET}, None),
        ({"said": LOG_SECRET}, FAILURE, "a secret is in the log"),
        ({"said": "x " * 60_000}, FAILURE, "a line of the log is as long as its job"),
        ({"seconds": 0.6}, FAILURE, "outlasts its limits"),
        ({"connects": True}, FAILURE, "connects to what is not public"),
    ],
)
def test_what_is_broken_is_found(
    job: dict[str, Any], result: Any, check: str | None, campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "__call__", answering(result))
    campaign.run({"id": "x"} | job, limit_s=0.5)
    # A worker that cuts its lines keeps what is asked for here.
    found = set(campaign.findings.counts)
    assert found == ({check} if check else set()) or (check or "").startswith("a line of the log")
    if found:
        with pytest.raises(AssertionError, match=str(check)):
            campaign.check()


def test_a_forgery_is_vouched_for_where_it_is_said_to_be() -> None:
    named = b'{"sha256":"%s"}' % hashlib.sha256(b"x").hexdigest().encode()
    begun = {f"a/{FOLDER}/job/state.json": named, f"a/{FOLDER}/job/part.mp4": b"x"}
    state, part = begun
    for is_vouched_for in (True, False):
        files = dict(begun)
        set_file(files, part, b"y", state, is_vouched_for)
        assert files[part] == b"y"
        assert (files[state] == begun[state]) is not is_vouched_for
    removed = with_forgeries(begun, (Forgery("remove", 0.0, 0.0, None, False),), {})
    assert list(removed) == [state]
    nested = b'{"state": "{\\"seed\\": 1}"}'
    assert with_field(nested, Forgery("field", 0.0, 0.0, 2, False)) == b'{"state": "{\\"seed\\": 2}"}'
    alike = with_field(nested, Forgery("field", 0.0, 0.0, ALIKE, False))
    assert alike == b'{"state": "{\\"seed\\": 2}"}'
