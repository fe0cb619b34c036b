"""`python -m infinitetalk.weights pack`: one folder with all that recipes need, wherever a worker finds it."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from infinitetalk.embedded.tiny import ensure_tiny_kokoro
from infinitetalk.errors import CheckpointError
from infinitetalk.recipes import RECIPES
from infinitetalk.runtime.check import check_checkpoint
from infinitetalk.weights import locate as locating
from infinitetalk.weights.__main__ import main
from infinitetalk.weights.files import open_file
from infinitetalk.weights.locate import locate, locate_all
from infinitetalk.weights.manifest import MANIFEST_FILE, read_manifest
from infinitetalk.weights.settings import WeightsSettings
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.settings import Settings
from tests import checkpoint_factory as factory
from tests.job_inputs import small_job
from tests.local_jobs import LocalWorker
from tests.test_worker_recipes import write_lora

FUSIONX = "Wan14BT2VFusioniX/FusionX_LoRa/Wan2.1_I2V_14B_FusionX_LoRA.safetensors"
NAMES = ("quality", "lora-8", "flashtalk")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in WeightsSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("VOLUME_DIR", str(tmp_path / "volume"))
    monkeypatch.setattr(locating, "CHECKOUT", tmp_path / "image")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Small checkpoints of both families in their published layouts, with a LoRA and voices."""
    folder = tmp_path_factory.mktemp("published")
    base, adapters = factory.save_served_infinitetalk(folder)
    (folder / "loras").mkdir()
    settings = Settings(
        infinitetalk_model="published",
        ckpt_dir=base,
        infinitetalk_dir=adapters,
        flashtalk_dir=factory.save_served_flashtalk(folder / "flashtalk"),
        wav2vec_dir=factory.save_speech_encoder(folder / "wav2vec2"),
        kokoro_dir=ensure_tiny_kokoro(folder / "tiny"),
        lora_dir=folder / "loras",
        volume_dir=folder,
    )
    write_lora(folder / "loras" / FUSIONX, Engine(settings))
    write_lora(folder / "loras" / "another.safetensors", Engine(settings))
    return settings


def make(published: Settings, out: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Packs; the settings are for this command only."""
    with monkeypatch.context() as environment:
        for name in WeightsSettings.model_fields:
            if (folder := getattr(published, name)) is not None:
                environment.setenv(name.upper(), str(folder))
        return main(["pack", "--out", str(out), *arguments])


@pytest.fixture(scope="module")
def pack(published: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of three recipes and of kernels that were chosen."""
    out = tmp_path_factory.mktemp("pack") / "three recipes"
    kernels = tmp_path_factory.mktemp("kernels")
    (kernels / "gpu-0123456789ab.json").write_text("{}")
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert make(published, out, monkeypatch, "--recipes", *NAMES, "--findings", str(kernels)) == 0
    return out


def on_the_volume(pack: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "volume" / "weights" / "pack"
    folder.parent.mkdir(parents=True)
    folder.symlink_to(pack)
    return folder


def in_the_image(pack: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "image" / "weights" / "pack"
    folder.parent.mkdir(parents=True)
    folder.symlink_to(pack)
    return folder


def as_cached_model(pack: Path, tmp_path: Path) -> Path:
    """As the hub's library lays a repository out: links from a snapshot to files that are named by their content."""
    repository = tmp_path / "volume" / "huggingface-cache" / "hub" / "models--someone--pack"
    snapshot = repository / "snapshots" / ("a" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "blobs").mkdir()
    for file in read_manifest(pack).files:
        blob = repository / "blobs" / file.sha256
        if not blob.exists():
            shutil.copyfile(pack / file.path, blob)
        link = snapshot / file.path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    shutil.copyfile(pack / MANIFEST_FILE, snapshot / MANIFEST_FILE)
    return snapshot


PLACES = (on_the_volume, in_the_image, as_cached_model)


@pytest.mark.parametrize("put", PLACES)
def test_a_pack_is_found_without_a_setting(put: Callable[[Path, Path], Path], pack: Path, tmp_path: Path) -> None:
    folder = put(pack, tmp_path)
    located = locate_all(WeightsSettings())
    assert {name: paths.base for name, paths in located.checkpoints.items()} == {
        "infinitetalk": folder / "infinitetalk",
        "flashtalk": folder / "flashtalk",
    }
    assert all(finding.problem is None for paths in located.checkpoints.values() for finding in check_checkpoint(paths))


def test_a_worker_makes_videos_by_the_recipes_of_its_cached_model(pack: Path, tmp_path: Path) -> None:
    folder = as_cached_model(pack, tmp_path)
    settings = Settings(
        infinitetalk_model="published", volume_dir=tmp_path / "volume", output_dir=tmp_path, webhook_get_job="set"
    )
    engine = Engine(settings)
    engine.check_weights()
    assert {name for name, recipe in RECIPES.items() if engine.lacks(recipe) is None} == {*NAMES, "flashtalk-12"}
    assert engine.checkpoint.find_kokoro() == folder / "kokoro"
    assert engine.checkpoint.files().kernels == folder / "kernels"
    engine.start()
    engine.finish_loading()
    worker = LocalWorker(settings, engine, tmp_path)
    results = {}
    for name in NAMES:
        job = small_job(recipe=name, sample_steps=1)
        if name == "flashtalk":
            for field in ("sample_steps", "sample_text_guide_scale", "sample_audio_guide_scale"):
                job.pop(field)
        results[name] = worker.run({"id": name, "input": job})
    assert [result.get("error") for result in results.values()] == [None] * 3
    assert results["flashtalk"]["model"] == "small-flashtalk" and results["quality"]["model"] == "small-wan"
    assert results["lora-8"]["params"]["loras"] == [{"name": FUSIONX, "scale": 1.0}]


def test_the_manifest_lists_files_in_the_order_of_use_with_sizes_recipes_and_licences(pack: Path) -> None:
    manifest = read_manifest(pack)
    assert (manifest.recipes, manifest.quant) == (NAMES, "bf16")
    paths = [file.path for file in manifest.files]
    assert len(set(paths)) == len(paths)
    folders = list(dict.fromkeys(path.rsplit("/", 1)[0] for path in paths))
    assert folders == [
        "kernels",
        "wav2vec2",
        "infinitetalk",
        *(f"infinitetalk/{part}" for part in ("text_encoder", "tokenizer", "image_encoder", "vae", "transformer")),
        *(f"infinitetalk/infinitetalk/{kind}" for kind in ("multi", "single")),
        "flashtalk",
        *(f"flashtalk/{part}" for part in ("text_encoder", "tokenizer", "image_encoder", "vae", "transformer")),
        f"loras/{FUSIONX.rsplit('/', 1)[0]}",
        "kokoro",
        "kokoro/voices",
    ]
    assert all((pack / file.path).stat().st_size == file.bytes for file in manifest.files)
    assert manifest.licences["Wan-AI/Wan2.1-I2V-14B-480P"] == "Apache-2.0"
    assert manifest.licences["TencentGameMate/chinese-wav2vec2-base"] == "MIT"
    assert manifest.licences["Soul-AILab/SoulX-FlashTalk-14B"].startswith("not known to this project")
    # What both models share is on the disk once.
    encoders = [pack / family / "text_encoder" / "model.safetensors" for family in ("infinitetalk", "flashtalk")]
    assert encoders[0].samefile(encoders[1])


def test_check_names_the_file_of_a_flipped_byte(pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(pack, copy)
    assert main(["check", str(copy)]) == 0
    output = capsys.readouterr().out
    assert "recipes quality, lora-8, flashtalk; bf16" in output
    assert "ok       lora-8" in output and "missing  recipe lora-4" in output
    for name in ("flashtalk/vae/diffusion_pytorch_model.safetensors", "wav2vec2/pytorch_model.bin"):
        file = copy / name
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        assert main(["check", str(copy)]) == 1
        damaged = [line for line in capsys.readouterr().out.splitlines() if line.startswith("DAMAGED")]
        assert f"DAMAGED  {name} differs from its SHA-256" in damaged
    (copy / "loras" / "strange.safetensors").write_bytes(b"x")
    main(["check", str(copy)])
    assert "DAMAGED  loras/strange.safetensors is not in the manifest" in capsys.readouterr().out


def test_a_worker_refuses_a_pack_that_is_not_whole_and_names_the_file(pack: Path, tmp_path: Path) -> None:
    folder = as_cached_model(pack, tmp_path)
    weights = folder / "infinitetalk" / "transformer" / "diffusion_pytorch_model.safetensors"
    size = weights.stat().st_size
    with weights.resolve().open("r+b") as file:
        file.truncate(size - 1)
    with pytest.raises(CheckpointError, match=rf"infinitetalk/transformer/.* has {size - 1} bytes instead of {size}"):
        locate(WeightsSettings())


def test_a_pack_in_fp8_is_smaller_and_holds_the_chosen_recipes_only(
    published: Settings, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "volume" / "weights" / "small"
    assert make(published, out, monkeypatch, "--recipes", "flashtalk", "--quant", "fp8") == 0
    assert "kernel choices and compiled blocks: not there, left out" in capsys.readouterr().out
    assert sorted(folder.name for folder in out.iterdir() if folder.is_dir()) == ["flashtalk", "kokoro", "wav2vec2"]
    weights = Path("flashtalk") / "transformer" / "diffusion_pytorch_model.safetensors"
    header = open_file(out / weights).headers["blocks.0.attn1.to_q.weight"]
    assert header.dtype == torch.float8_e4m3fn
    assert (out / weights).stat().st_size < (pack / weights).stat().st_size
    assert main(["check"]) == 0
    output = capsys.readouterr().out
    assert "ok       flashtalk-12" in output and "missing  recipe quality needs" in output


def test_a_recipe_without_its_weights_is_not_packed(
    published: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(published, tmp_path / "out", monkeypatch, "--recipes", "quality", "lora-4") == 1
    assert 'recipe lora-4 needs a LoRA with "lightx2v" in its name' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Upload.


@contextmanager
def serve_uploads() -> Iterator[tuple[str, dict[str, bytes], list[list[str]]]]:
    """A stand-in for the hub that takes commits; yields its address, the repository's files, and the files of each
    commit."""
    files: dict[str, bytes] = {"left-over.safetensors": b"of an older pack"}
    commits: list[list[str]] = []

    class Hub(BaseHTTPRequestHandler):
        def _answer(self, answer: object) -> None:
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            if "/tree/" in self.path:
                self._answer([{"type": "file", "path": name, "size": 1, "oid": "0"} for name in files])
            else:
                siblings = [{"rfilename": name} for name in files]
                self._answer({"id": "o/n", "sha": "b" * 40, "siblings": siblings})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/repos/create":
                assert json.loads(body)["name"] == "pack"
                self._answer({"url": f"http://{self.headers['Host']}/someone/pack"})
            elif "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                self._answer({"files": modes})
            else:
                lines = [json.loads(line) for line in body.splitlines()]
                commits.append([line["value"]["path"] for line in lines if line["key"] != "header"])
                for line in lines:
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                    elif line["key"] == "deletedFile":
                        del files[line["value"]["path"]]
                self._answer(
                    {"commitUrl": f"http://{self.headers['Host']}/someone/pack/commit/x", "commitOid": "c" * 40}
                )

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", files, commits
    finally:
        server.shutdown()
        server.server_close()


def test_push_uploads_the_files_and_then_the_manifest(pack: Path) -> None:
    with serve_uploads() as (address, files, commits):
        finished = subprocess.run(
            [sys.executable, "-m", "infinitetalk.weights", "pack", "--out", pack, "--push", "someone/pack"],
            env={
                **os.environ,
                "HF_ENDPOINT": address,
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1",
                "HF_TOKEN": "t",
            },
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=False,
        )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == f"{address}/someone/pack"
    manifest = read_manifest(pack)
    assert set(files) == {file.path for file in manifest.files} | {MANIFEST_FILE}
    assert all(files[file.path] == (pack / file.path).read_bytes() for file in manifest.files)
    assert commits[-1] == [MANIFEST_FILE]
    assert MANIFEST_FILE not in commits[0] and "left-over.safetensors" in commits[0]
