"""Videos and thumbnails carry signed Content Credentials where the operator gives a certificate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import c2pa
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from PIL import Image
from pydantic import SecretStr

from infinitetalk.errors import CredentialsError, EncodeError
from infinitetalk.media.credentials import ContentCredentials
from infinitetalk.media.provenance import TRAINED_ALGORITHMIC_MEDIA, Mark
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.signing import content_credentials
from tests.certificates import Pair, make_pair
from tests.job_inputs import small_job
from tests.local_jobs import LocalWorker
from tests.test_provenance import boxes, check_said, joined, parts, xmp_of_mp4

__all__ = ["parts"]

CHECKOUT = Path(__file__).parents[1]
MARK = Mark("InfiniteTalk worker", "0.1.0+3f2a9c417b08", "tiny-talker")
C2PA_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
MEDIA_TYPES = {".mp4": "video/mp4", ".jpg": "image/jpeg"}


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair()


def read_back(file: Path) -> tuple[str, dict[str, Any]]:
    """What a reader says of a file's signature, and the manifest."""
    with file.open("rb") as stream, c2pa.Reader(MEDIA_TYPES[file.suffix], stream) as reader:
        told = json.loads(reader.json())
        return str(reader.get_validation_state()), told["manifests"][told["active_manifest"]]


def check_manifest(manifest: dict[str, Any], mark: Mark) -> None:
    (actions,) = [found for found in manifest["assertions"] if found["label"].startswith("c2pa.actions")]
    (action,) = actions["data"]["actions"]
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", TRAINED_ALGORITHMIC_MEDIA)
    assert action["softwareAgent"] == {"name": mark.software, "version": mark.version}
    assert action["parameters"] == {"model": mark.model}
    assert mark.sentence == action["description"]
    generator = manifest["claim_generator_info"][0]
    assert (generator["name"], generator["version"]) == (mark.software, mark.version)


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux()]


@pytest.mark.parametrize(
    "make_key",
    [
        lambda: ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate,
        lambda: rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-384", "Ed25519", "RSA"],
)
def test_every_kind_of_key_that_the_standard_knows_signs(make_key: Callable[[], Any], tmp_path: Path) -> None:
    given = make_pair(make_key())
    credentials = ContentCredentials(given.certificates, given.key)
    assert credentials.signer == "CN=Signer,O=Example Studio"
    Image.new("RGB", (16, 16)).save(tmp_path / "picture.jpg")
    credentials.sign(tmp_path / "picture.jpg", "image/jpeg", MARK)
    state, manifest = read_back(tmp_path / "picture.jpg")
    assert state == "Valid"
    check_manifest(manifest, MARK)


def test_a_signed_video_says_who_made_it_and_keeps_all_that_it_had(parts: list[Path], pair: Pair) -> None:
    video = joined(parts, MARK)
    before, packets_before = video.read_bytes(), packets(video)
    ContentCredentials(pair.certificates, pair.key).sign(video, "video/mp4", MARK)
    state, manifest = read_back(video)
    assert state == "Valid"
    check_manifest(manifest, MARK)
    assert manifest["signature_info"]["common_name"] == "Signer"
    # Index before frames, XMP last, and every packet as it was.
    data = video.read_bytes()
    assert [kind for kind, _ in boxes(data)] == ["ftyp", "uuid", *(kind for kind, _ in boxes(before)[1:])]
    assert boxes(data)[1][1].startswith(C2PA_BOX)
    assert packets(video) == packets_before
    check_said(xmp_of_mp4(video) or "", MARK)
    assert list(video.parent.glob("*.signed")) == []


def test_a_changed_frame_breaks_the_signature(parts: list[Path], pair: Pair) -> None:
    video = joined(parts, MARK)
    ContentCredentials(pair.certificates, pair.key).sign(video, "video/mp4", MARK)
    data = bytearray(video.read_bytes())
    data[data.index(b"mdat") + 100] ^= 1
    video.write_bytes(data)
    assert read_back(video)[0] == "Invalid"


def test_a_file_that_cannot_be_signed_is_an_error_and_stays(pair: Pair, tmp_path: Path) -> None:
    file = tmp_path / "video.mp4"
    file.write_bytes(b"no video")
    with pytest.raises(EncodeError, match="Content Credentials could not be written"):
        ContentCredentials(pair.certificates, pair.key).sign(file, "video/mp4", MARK)
    assert file.read_bytes() == b"no video"
    assert list(tmp_path.iterdir()) == [file]


def with_password(given: Pair) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")).decode()


REFUSED: dict[str, tuple[Callable[[Pair], dict[str, Any]], str]] = {
    "key missing": (lambda pair: {"c2pa_certificate": pair.certificates}, "go together"),
    "marks turned off": (
        lambda pair: {"c2pa_certificate": pair.certificates, "c2pa_private_key": pair.key, "provenance": False},
        "PROVENANCE is false, but C2PA_CERTIFICATE is set",
    ),
    "no such file": (
        lambda pair: {"c2pa_certificate": "/nowhere/chain.pem", "c2pa_private_key": pair.key},
        "C2PA_CERTIFICATE is neither PEM",
    ),
    "no certificate": (
        lambda pair: {"c2pa_certificate": pair.key, "c2pa_private_key": pair.key},
        "C2PA_CERTIFICATE has no certificate in PEM",
    ),
    "half of a key": (
        lambda pair: {"c2pa_certificate": pair.certificates, "c2pa_private_key": pair.key[:90]},
        "C2PA_PRIVATE_KEY is not a private key",
    ),
    "key with a password": (
        lambda pair: {"c2pa_certificate": pair.certificates, "c2pa_private_key": with_password(pair)},
        "without a password",
    ),
    "another's key": (
        lambda pair: {"c2pa_certificate": pair.certificates, "c2pa_private_key": make_pair().key},
        "not the key of the certificate of CN=Signer,O=Example Studio",
    ),
    "expired": (
        lambda pair: settings_of(make_pair(days_ago=60)),
        "not today: set one that is",
    ),
    "self-signed": (
        lambda pair: settings_of(make_pair(is_self_signed=True)),
        "must be an end entity's, not self-signed",
    ),
}


def settings_of(pair: Pair) -> dict[str, Any]:
    return {"c2pa_certificate": pair.certificates, "c2pa_private_key": pair.key}


@pytest.mark.parametrize(("settings", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_sign_is_refused_in_words_that_hold_nothing_of_the_key(
    settings: Callable[[Pair], dict[str, Any]], words: str, pair: Pair
) -> None:
    given = settings(pair)
    with pytest.raises(CredentialsError) as refused:
        content_credentials(Settings(**given))
    told = str(refused.value)
    assert words in told
    secret = [line for line in str(given.get("c2pa_private_key", "")).splitlines() if "---" not in line]
    assert not any(line in told for line in secret)


def test_a_kind_of_key_that_the_standard_does_not_know_is_refused() -> None:
    given = make_pair(ec.generate_private_key(ec.SECP256K1()))
    with pytest.raises(CredentialsError, match="of a kind that C2PA does not know"):
        ContentCredentials(given.certificates, given.key)


def test_a_certificate_is_given_by_itself_on_one_line_or_by_its_file(pair: Pair, tmp_path: Path) -> None:
    file = tmp_path / "chain.pem"
    file.write_text(pair.certificates)
    for given in (pair.certificates, pair.certificates.replace("\n", "\\n"), str(file)):
        credentials = content_credentials(Settings(c2pa_certificate=given, c2pa_private_key=pair.key))
        assert credentials is not None and credentials.certificates == pair.certificates
        assert "PRIVATE" not in repr(credentials)
    assert content_credentials(Settings()) is None


def test_a_worker_with_a_certificate_that_cannot_sign_ends_at_once_and_says_why(pair: Pair) -> None:
    other = make_pair()
    environment = {"C2PA_CERTIFICATE": pair.certificates, "C2PA_PRIVATE_KEY": other.key, "INFINITETALK_MODEL": "tiny"}
    command = [sys.executable, "handler.py", "--test_input", json.dumps({"id": "x", "input": small_job()})]
    ended = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode != 0
    assert "CredentialsError: C2PA_PRIVATE_KEY is not the key of the certificate of CN=Signer" in ended.stderr
    assert not any(line in ended.stdout + ended.stderr for line in other.key.splitlines() if "---" not in line)


def test_what_a_job_makes_is_signed_also_where_another_worker_goes_on(local_worker: LocalWorker, pair: Pair) -> None:
    job = {"id": "job-1", "input": small_job(frame_num=5, output_config={"store": "volume"})}
    plain = local_worker.run(job | {"id": "plain"})
    signing = {"c2pa_certificate": pair.certificates, "c2pa_private_key": SecretStr(pair.key)}
    local_worker.settings = local_worker.settings.model_copy(update=signing)
    result = local_worker.run(job, keep=True)
    folder = local_worker.volume / "infinitetalk/jobs"
    mark = Mark("InfiniteTalk worker", result["worker"], "tiny-random")
    for file in (folder / "job-1.mp4", folder / "job-1.jpg"):
        state, manifest = read_back(file)
        assert state == "Valid"
        check_manifest(manifest, mark)
    assert packets(folder / "job-1.mp4") == packets(folder / "plain.mp4")
    assert result["video"]["bytes"] == (folder / "job-1.mp4").stat().st_size > plain["video"]["bytes"]
    assert np.array_equal(Image.open(folder / "job-1.jpg"), Image.open(folder / "plain.jpg"))
    record = json.loads((folder / "job-1.json").read_text())
    assert record["signed_by"] == "CN=Signer,O=Example Studio"
    assert json.loads((folder / "plain.json").read_text())["signed_by"] is None
    # Only the finished files are signed, so what is kept for another worker is as ever: it finishes the same frames.
    before = packets(folder / "job-1.mp4")
    (folder / "job-1.mp4").unlink()
    local_worker.run(job)
    assert packets(folder / "job-1.mp4") == before
    assert read_back(folder / "job-1.mp4")[0] == read_back(folder / "job-1.jpg")[0] == "Valid"
