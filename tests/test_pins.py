"""Pins are looked up and written, or nothing is; against registries on the loopback address."""

import hashlib
import http.server
import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.serving import serving
from tools.pins import ACTION, IMAGE, WHEEL, PinError, Services, pin_files, with_pins

CHECKOUT = Path(__file__).parents[1]
INDEX = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []})
DIGEST = hashlib.sha256(INDEX.encode()).hexdigest()
WHEEL_FILE = b"PK\x03\x04 a wheel"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLD_COMMIT = "f" * 40


class Site(http.server.BaseHTTPRequestHandler):
    """A registry, its tokens, a wheel and GitHub's API, by path."""

    answers: ClassVar[dict[str, bytes]] = {}
    seen: ClassVar[dict[str, str | None]] = {}

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        Site.seen[path] = self.headers.get("Authorization")
        body = Site.answers.get(path)
        self.send_response(404 if body is None else 200)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@pytest.fixture
def site() -> Iterator[str]:
    """The site's address."""
    Site.seen.clear()
    Site.answers = {
        "/token": b'{"token": "for everyone"}',
        "/v2/nvidia/cuda/manifests/13.0.2-base-ubuntu24.04": INDEX.encode(),
        "/v2/docker/dockerfile/manifests/1.10": INDEX.encode(),
        "/model-3.8.0-py3-none-any.whl": WHEEL_FILE,
        "/repos/actions/checkout/commits/v4": COMMIT.encode(),
        "/repos/actions/cache/commits/v4.2": COMMIT.encode(),
    }
    with serving(Site) as server:
        yield f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def checkout(site: str, tmp_path: Path) -> Path:
    """A Dockerfile and two workflows, one action of which has a pin already."""
    (tmp_path / ".github/workflows").mkdir(parents=True)
    (tmp_path / "Dockerfile").write_text(
        "# syntax=docker/dockerfile:1.10\nARG BASE_IMAGE=nvidia/cuda:13.0.2-base-ubuntu24.04\nFROM ${BASE_IMAGE}\n"
        f"ARG SPACY_MODEL={site}/model-3.8.0-py3-none-any.whl\n"
    )
    (tmp_path / ".github/workflows/a.yml").write_text("      - uses: actions/checkout@v4\n        with:\n")
    (tmp_path / ".github/workflows/b.yml").write_text(
        f"      - uses: actions/checkout@{OLD_COMMIT} # v4\n        uses: actions/cache/restore@v4.2\n"
    )
    return tmp_path


def services(site: str) -> Services:
    return Services(hub=site, hub_tokens=site, github=site, github_token="of GitHub")


def contents(checkout: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in checkout.rglob("*") if file.is_file()}


def test_what_has_no_pin_gets_one_and_what_has_keeps_it(site: str, checkout: Path) -> None:
    changed = pin_files(checkout, services(site))
    assert [file.name for file in changed] == ["Dockerfile", "a.yml", "b.yml"]
    wheel_sha256 = hashlib.sha256(WHEEL_FILE).hexdigest()
    assert contents(checkout) == {
        "Dockerfile": f"# syntax=docker/dockerfile:1.10@sha256:{DIGEST}\n"
        f"ARG BASE_IMAGE=nvidia/cuda:13.0.2-base-ubuntu24.04@sha256:{DIGEST}\nFROM ${{BASE_IMAGE}}\n"
        f"ARG SPACY_MODEL={site}/model-3.8.0-py3-none-any.whl#sha256={wheel_sha256}\n",
        "a.yml": f"      - uses: actions/checkout@{COMMIT} # v4\n        with:\n",
        "b.yml": f"      - uses: actions/checkout@{OLD_COMMIT} # v4\n"
        f"        uses: actions/cache/restore@{COMMIT} # v4.2\n",
    }
    Site.answers.clear()
    assert pin_files(checkout, services(site)) == []


def test_pins_are_renewed_when_asked(site: str, checkout: Path) -> None:
    pin_files(checkout, services(site))
    renewed = INDEX.replace("[]", "[1]").encode()
    Site.answers["/v2/nvidia/cuda/manifests/13.0.2-base-ubuntu24.04"] = renewed
    assert [file.name for file in pin_files(checkout, services(site), renew=True)] == ["Dockerfile", "b.yml"]
    assert f"ubuntu24.04@sha256:{hashlib.sha256(renewed).hexdigest()}\n" in contents(checkout)["Dockerfile"]
    assert OLD_COMMIT not in contents(checkout)["b.yml"]


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/token", None),
        ("/token", b"<html>"),
        ("/v2/nvidia/cuda/manifests/13.0.2-base-ubuntu24.04", None),
        ("/v2/nvidia/cuda/manifests/13.0.2-base-ubuntu24.04", b"<html>"),
        ("/v2/nvidia/cuda/manifests/13.0.2-base-ubuntu24.04", b'{"errors": []}'),
        ("/model-3.8.0-py3-none-any.whl", None),
        ("/model-3.8.0-py3-none-any.whl", b"<html>"),
        ("/repos/actions/cache/commits/v4.2", None),
        ("/repos/actions/cache/commits/v4.2", b'{"sha": "0123"}'),
    ],
)
def test_what_cannot_be_looked_up_is_named_and_nothing_is_written(
    path: str, answer: bytes | None, site: str, checkout: Path
) -> None:
    before = contents(checkout)
    if answer is None:
        del Site.answers[path]
    else:
        Site.answers[path] = answer
    with pytest.raises(PinError, match=r"nvidia/cuda|docker/dockerfile|/token|model-3\.8\.0|actions/cache"):
        pin_files(checkout, services(site))
    assert contents(checkout) == before


def test_a_service_that_is_not_there_is_named(checkout: Path) -> None:
    with pytest.raises(PinError, match=r"127\.0\.0\.1:9"):
        pin_files(checkout, services("http://127.0.0.1:9"))


def test_githubs_token_goes_to_github_alone(site: str, checkout: Path) -> None:
    pin_files(checkout, services(site))
    assert Site.seen["/repos/actions/checkout/commits/v4"] == "Bearer of GitHub"
    assert Site.seen["/v2/nvidia/cuda/manifests/13.0.2-base-ubuntu24.04"] == "Bearer for everyone"
    assert Site.seen["/model-3.8.0-py3-none-any.whl"] is None is Site.seen["/token"]


def test_the_projects_own_files_are_understood_whole() -> None:
    """Whatever they fetch by name has a place for its pin."""
    dockerfile = (CHECKOUT / "Dockerfile").read_text(encoding="utf-8")
    assert [found["name"].partition(":")[0] for found in IMAGE.finditer(dockerfile)] == [
        "docker/dockerfile",
        "nvidia/cuda",
    ]
    assert len(WHEEL.findall(dockerfile)) == 1
    for file in CHECKOUT.glob(".github/workflows/*.yml"):
        text = file.read_text(encoding="utf-8")
        assert len(ACTION.findall(text)) == text.count("uses:") > 0
    everything_pinned = IMAGE.sub(rf"\g<before>\g<name>@sha256:{DIGEST}", dockerfile)
    everything_pinned = WHEEL.sub(rf"\g<before>\g<name>#sha256={DIGEST}", everything_pinned)
    assert with_pins(everything_pinned, Services(hub="", hub_tokens="", github="")) == everything_pinned
