"""Pins what the image and the workflows fetch by name: container images, a wheel, actions.

    make pins                       looks up missing pins, and writes them
    python -m tools.pins --renew    looks up all pins again

An image is pinned by the digest of its manifest, the wheel by its SHA-256, an action by its commit. If one cannot be
looked up, none is written. Packages are pinned elsewhere: requirements.lock has their hashes.

Needs only Python's standard library, because the release workflow runs it before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

CHECKOUT = Path(__file__).parents[1]
TIMEOUT_S = 60

MANIFEST_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)

IMAGE = re.compile(
    r"^(?P<before># syntax=|ARG BASE_IMAGE=)(?P<name>[\w./-]+:[\w.-]+)(?:@sha256:(?P<pin>[0-9a-f]{64}))?$", re.M
)
WHEEL = re.compile(
    r"^(?P<before>ARG SPACY_MODEL=)(?P<name>https?://\S+?\.whl)(?:#sha256=(?P<pin>[0-9a-f]{64}))?$", re.M
)
ACTION = re.compile(
    r"^(?P<before> *(?:- )?uses: )(?P<name>[\w.-]+/[\w./-]+)@(?:(?P<pin>[0-9a-f]{40}) # )?(?P<version>[\w.-]+)$", re.M
)
"""Patterns of the names to pin: `name` is looked up, `pin` is present if it is pinned already."""


class PinError(Exception):
    """Something cannot be looked up; the message names it."""


@dataclass(frozen=True)
class Services:
    """Addresses of the services, without a slash at the end.

    Attributes:
        hub: Docker Hub's registry.
        hub_tokens: the service that gives every reader a token for it.
        github: GitHub's API.
        github_token: allows more requests per hour.
    """

    hub: str = "https://registry-1.docker.io"
    hub_tokens: str = "https://auth.docker.io"
    github: str = "https://api.github.com"
    github_token: str | None = None


def fetch(url: str, headers: Mapping[str, str]) -> bytes:
    """The body of an address's answer.

    Raises:
        PinError: there is no answer, or an error.
    """
    try:
        with urlopen(Request(url, headers=dict(headers)), timeout=TIMEOUT_S) as response:
            return response.read()
    except (OSError, HTTPException) as error:
        raise PinError(f"{url}: {error}") from error


def image_digest(image: str, services: Services) -> str:
    """SHA-256 of the manifest of an image on Docker Hub, `name:tag`; it covers all platforms if there are several."""
    name, _, tag = image.partition(":")
    query = f"service=registry.docker.io&scope=repository:{name}:pull"
    try:
        token = json.loads(fetch(f"{services.hub_tokens}/token?{query}", {}))["token"]
        headers = {"Authorization": f"Bearer {token}", "Accept": ", ".join(MANIFEST_TYPES)}
        manifest = fetch(f"{services.hub}/v2/{name}/manifests/{tag}", headers)
        is_manifest = json.loads(manifest)["schemaVersion"] == 2
    except (ValueError, LookupError, TypeError) as error:
        raise PinError(f"{image}: the answer is not from a registry") from error
    if not is_manifest:
        raise PinError(f"{image}: the registry's answer is not a manifest")
    return hashlib.sha256(manifest).hexdigest()


def wheel_digest(url: str) -> str:
    """SHA-256 of a wheel."""
    wheel = fetch(url, {})
    if not wheel.startswith(b"PK\x03\x04"):
        raise PinError(f"{url}: the answer is not a wheel")
    return hashlib.sha256(wheel).hexdigest()


def action_commit(action: str, version: str, services: Services) -> str:
    """The commit of a tag in an action's repository."""
    repository = "/".join(action.split("/")[:2])
    headers = {"Accept": "application/vnd.github.sha"}
    if services.github_token is not None:
        headers["Authorization"] = f"Bearer {services.github_token}"
    answer = fetch(f"{services.github}/repos/{repository}/commits/{version}", headers)
    if not re.fullmatch(rb"[0-9a-f]{40}", answer):
        raise PinError(f"{action}@{version}: the answer is not a commit")
    return answer.decode()


def with_pins(text: str, services: Services, renew: bool = False) -> str:
    """A Dockerfile or a workflow with all pins.

    Args:
        renew: whether to look up existing pins again.

    Raises:
        PinError: something cannot be looked up.
    """

    def is_kept(found: re.Match[str]) -> bool:
        return found["pin"] is not None and not renew

    def pin_image(found: re.Match[str]) -> str:
        digest = found["pin"] if is_kept(found) else image_digest(found["name"], services)
        return f"{found['before']}{found['name']}@sha256:{digest}"

    def pin_wheel(found: re.Match[str]) -> str:
        digest = found["pin"] if is_kept(found) else wheel_digest(found["name"])
        return f"{found['before']}{found['name']}#sha256={digest}"

    def pin_action(found: re.Match[str]) -> str:
        commit = found["pin"] if is_kept(found) else action_commit(found["name"], found["version"], services)
        return f"{found['before']}{found['name']}@{commit} # {found['version']}"

    for pattern, pin in ((IMAGE, pin_image), (WHEEL, pin_wheel), (ACTION, pin_action)):
        text = pattern.sub(pin, text)
    return text


def pin_files(checkout: Path, services: Services, renew: bool = False) -> list[Path]:
    """Writes pins into a checkout's Dockerfile and workflows; returns the changed files.

    Raises:
        PinError: something cannot be looked up; nothing has been written.
    """
    files = [checkout / "Dockerfile", *sorted(checkout.glob(".github/workflows/*.yml"))]
    before = {file: file.read_text(encoding="utf-8") for file in files}
    after = {file: with_pins(text, services, renew) for file, text in before.items()}
    changed = [file for file in files if after[file] != before[file]]
    for file in changed:
        file.write_text(after[file], encoding="utf-8")
    return changed


def main() -> None:
    """Writes the pins and prints the changed files."""
    parser = argparse.ArgumentParser(description="Pins images, the wheel and actions by what they hold.")
    parser.add_argument("--renew", action="store_true", help="look up what has a pin, too")
    services = Services(github_token=os.environ.get("GITHUB_TOKEN"))
    try:
        changed = pin_files(CHECKOUT, services, parser.parse_args().renew)
    except PinError as error:
        sys.exit(str(error))
    print("\n".join(f"pins written: {file.relative_to(CHECKOUT)}" for file in changed) or "all was pinned already")


if __name__ == "__main__":
    main()
