"""`python -m infinitetalk.weights pack`: one folder with all that recipes need, wherever a worker finds it."""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from pydantic import ValidationError
from structlog.testing import capture_logs

from infinitetalk.embedded.tiny import ensure_tiny_kokoro
from infinitetalk.errors import CheckpointError
from infinitetalk.recipes import RECIPES
from infinitetalk.runtime.check import check_checkpoint
from infinitetalk.runtime.lora import lora_names
from infinitetalk.weights import locate as locating
from infinitetalk.weights import push as pushing
from infinitetalk.weights.__main__ import main
from infinitetalk.weights.files import open_file
from infinitetalk.weights.hub_kernels import HUB_KERNELS, Fetched, find_kernel
from infinitetalk.weights.locate import kernels_folders, locate, locate_all
from infinitetalk.weights.manifest import MANIFEST_FILE, Manifest, PackedFile, check_sizes, damage, read_manifest
from infinitetalk.weights.pack import share
from infinitetalk.weights.push import push
from infinitetalk.weights.settings import WeightsSettings
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.settings import Settings
from tests import checkpoint_factory as factory
from tests.job_inputs import small_job
from tests.local_jobs import LocalWorker
from tests.serving import serving
from tests.test_hub_kernels import COMMIT, OWN
from tests.test_hub_kernels import save as save_kernel
from tests.test_worker_recipes import write_lora

FUSIONX = "Wan14BT2VFusioniX/FusionX_LoRa/Wan2.1_I2V_14B_FusionX_LoRA.safetensors"
NAMES = ("quality", "lora-8", "flashtalk")
BUILD = f"kernels/sage_hub/{COMMIT}/build/{OWN}"


@pytest.fixture(autouse=True)
def no_other_place(no_weights_settings: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(locating, "CHECKOUT", tmp_path / "image")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Small checkpoints of both families in their published layouts, with a LoRA and voices."""
    folder = tmp_path_factory.mktemp("published")
    base, adapters = factory.save_served_infinitetalk(folder)
    (folder / "loras").mkdir()
    kernels = save_kernel(folder / "kernels")
    # What was fetched in part, and what Python makes of code.
    for name in (".unfinished", "__pycache__"):
        (kernels / "sage_hub" / name).mkdir()
        (kernels / "sage_hub" / name / "inner.py").write_text("broken")
    settings = Settings(
        infinitetalk_model="published",
        ckpt_dir=base,
        infinitetalk_dir=adapters,
        flashtalk_dir=factory.save_served_flashtalk(folder / "flashtalk"),
        wav2vec_dir=factory.save_speech_encoder(folder / "wav2vec2"),
        kokoro_dir=ensure_tiny_kokoro(folder / "tiny"),
        lora_dir=folder / "loras",
        kernels_dir=kernels,
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
    """A pack of three recipes, a kernel from the Hub, and of what trials have found."""
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
    assert engine.checkpoint.files().findings == folder / "findings"
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
        BUILD,
        "findings",
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
    assert manifest.licences["SageAttention/sage-attention"].endswith("/kernels/SageAttention/sage-attention")
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
    assert "  code that a worker runs: kernels/, findings/\n" in output
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
    findings = published.volume_dir / "infinitetalk" / "kernels"
    assert f"kernel choices and compiled blocks: {findings} is not there, left out" in capsys.readouterr().out
    names = sorted(folder.name for folder in out.iterdir() if folder.is_dir())
    assert names == ["flashtalk", "kernels", "kokoro", "wav2vec2"]
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


def test_without_weights_packing_names_those_of_the_chosen_recipes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", "--recipes", "flashtalk", "--out", str(tmp_path / "out")]) == 1
    assert "SoulX-FlashTalk-14B needs" in capsys.readouterr().err


def test_where_files_cannot_be_linked_both_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / "first", tmp_path / "second"]
    for file in files:
        file.write_bytes(b"equal")

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no hard links here")

    with monkeypatch.context() as without_links:
        without_links.setattr(os, "link", refuse)
        assert not share(files[1], files[0])
    assert files[1].read_bytes() == b"equal" and not files[1].samefile(files[0])
    assert share(files[1], files[0])
    assert files[1].samefile(files[0]) and len(list(tmp_path.iterdir())) == 2


# What a pack may do to a worker.


def make_small(folder: Path, files: dict[str, bytes]) -> Path:
    """A folder with these files, and a manifest that lists them: a pack without weights."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    listed = tuple(
        PackedFile(path=name, bytes=len(content), sha256=sha256(content).hexdigest()) for name, content in files.items()
    )
    manifest = Manifest(made_by="a test", recipes=("quality",), quant="bf16", licences={}, files=listed)
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json())
    return folder


CODE = {f"{BUILD}/__init__.py": b"", "findings/gpu-x.json": b"{}", "loras/a.safetensors": b"a"}


def test_check_names_code_that_the_manifest_does_not_list(tmp_path: Path) -> None:
    pack = make_small(tmp_path / "pack", CODE)
    assert damage(pack, read_manifest(pack)) == []
    strangers = (f"{BUILD}/evil.py", f"{BUILD}/__pycache__/__init__.pyc", "findings/.x", "findings/h100-x.compiled")
    for name in strangers:
        (pack / name).parent.mkdir(exist_ok=True)
        (pack / name).write_bytes(b"evil")
    (tmp_path / "elsewhere").mkdir()
    (pack / BUILD / "linked").symlink_to(tmp_path / "elsewhere")
    expected = sorted((*strangers, f"{BUILD}/linked"))
    assert damage(pack, read_manifest(pack)) == [f"{name} is not in the manifest" for name in expected]


@pytest.mark.parametrize(("name", "reason"), [("evil.py", "is not in the manifest"), ("inner.py", "differs from its")])
def test_a_packs_kernels_are_left_out_if_a_file_is_not_as_listed(name: str, reason: str, tmp_path: Path) -> None:
    pack = make_small(
        tmp_path / "volume" / "weights" / "pack", {f"{BUILD}/__init__.py": b"", f"{BUILD}/inner.py": b"0"}
    )
    assert kernels_folders(WeightsSettings()) == (pack / "kernels",)
    (pack / BUILD / name).write_bytes(b"1")
    with capture_logs() as lines:
        assert kernels_folders(WeightsSettings()) == ()
    (line,) = lines
    assert line["event"] == "pack.left_out" and line["details"]["what"] == str(pack / "kernels")
    assert line["details"]["reason"].startswith(f"{BUILD}/{name} {reason}")


def test_a_packs_compiled_blocks_are_left_out_if_one_is_not_listed(pack: Path, tmp_path: Path) -> None:
    folder = as_cached_model(pack, tmp_path)
    assert locate(WeightsSettings()).findings == folder / "findings"
    (folder / "findings" / "gpu-x.compiled").write_bytes(b"evil")
    with capture_logs() as lines:
        assert locate(WeightsSettings()).findings is None
    assert lines[0]["details"]["reason"] == "findings/gpu-x.compiled is not in the manifest"


def test_packs_of_which_nothing_is_needed_stop_no_worker_whatever_their_state(
    published: Settings, tmp_path: Path
) -> None:
    weights = tmp_path / "volume" / "weights"
    damaged = make_small(weights / "damaged", {**CODE, "flashtalk/x": b"x", "kokoro/x": b"x"})
    for name in (f"{BUILD}/__init__.py", "flashtalk/x"):
        (damaged / name).write_bytes(b"other")
    newer = make_small(weights / "newer", CODE)
    (newer / MANIFEST_FILE).write_text('{"format": 2}')
    settings = published.model_copy(update={"volume_dir": tmp_path / "volume", "lora_dir": None, "kernels_dir": None})
    with capture_logs() as lines:
        located = locate_all(settings)
        assert kernels_folders(settings) == ()
    assert {paths.loras for paths in located.checkpoints.values()} == {()}
    left_out = {line["details"]["what"] for line in lines if line["event"] == "pack.left_out"}
    assert left_out == {str(pack / name) for pack in (damaged, newer) for name in ("kernels", "loras")}
    with capture_logs() as lines:
        located = locate_all(settings.model_copy(update={"flashtalk_dir": None, "lora_dir": tmp_path}))
    assert (set(located.checkpoints), set(located.absent)) == ({"infinitetalk"}, {"flashtalk"})
    assert [line["details"]["what"] for line in lines] == ["flashtalk"]
    with capture_logs() as lines:
        Engine(settings.model_copy(update={"infinitetalk_model": "talker", "kernels": "published"}))
    assert [line for line in lines if line["event"] == "pack.left_out"] == []


def test_loras_and_kernels_of_all_packs_and_folders_are_there_together(published: Settings, tmp_path: Path) -> None:
    weights = tmp_path / "volume" / "weights"
    other = BUILD.replace("sage_hub", "flash_3_hub")
    first = make_small(weights / "pack-1", {"loras/lora-4.safetensors": b"4", f"{BUILD}/__init__.py": b""})
    make_small(weights / "pack-2", {"loras/lora-8.safetensors": b"8", f"{other}/__init__.py": b""})
    (weights / "loras").mkdir()
    (weights / "loras" / "mine.safetensors").write_bytes(b"m")
    save_kernel(weights / "kernels", "c" * 40)
    settings = published.model_copy(update={"volume_dir": tmp_path / "volume", "lora_dir": None, "kernels_dir": None})
    names = lora_names(locate(settings).loras)
    assert names == ["lora-4.safetensors", "lora-8.safetensors", "mine.safetensors"]
    folders = kernels_folders(settings)
    assert find_kernel(folders, HUB_KERNELS["sage_hub"]) == Fetched(HUB_KERNELS["sage_hub"], COMMIT, first / BUILD)
    assert isinstance(find_kernel(folders, HUB_KERNELS["flash_3_hub"]), Fetched)


def test_check_takes_nothing_from_outside_the_pack(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(pack, copy)
    (tmp_path / "image" / "weights").mkdir(parents=True)
    (copy / "wav2vec2").rename(tmp_path / "image" / "weights" / "chinese-wav2vec2-base")
    manifest = read_manifest(copy)
    files = tuple(file for file in manifest.files if not file.path.startswith("wav2vec2/"))
    (copy / MANIFEST_FILE).write_text(manifest.model_copy(update={"files": files}).model_dump_json())
    assert main(["check", str(copy)]) == 1
    assert "needs chinese-wav2vec2-base" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a\\b", "", ".", "./a", "a//b"])
def test_a_manifest_names_no_file_outside_its_pack(path: str) -> None:
    with pytest.raises(ValidationError, match="is no path below a pack"):
        PackedFile(path=path, bytes=0, sha256="")


def test_a_link_out_of_a_pack_is_damage(tmp_path: Path) -> None:
    pack = make_small(tmp_path / "pack", {"kokoro/a": b"a", "kokoro/b": b"b"})
    (pack / "kokoro" / "b").rename(tmp_path / "b")
    (pack / "kokoro" / "b").symlink_to(tmp_path / "b")
    assert damage(pack, read_manifest(pack)) == ["kokoro/b is a link out of the pack"]
    with pytest.raises(CheckpointError, match="the pack pack is damaged: kokoro/b is a link out of the pack"):
        check_sizes(pack, read_manifest(pack))


def test_a_stray_folder_in_the_cache_is_no_repository(tmp_path: Path) -> None:
    (tmp_path / "volume" / "huggingface-cache" / "hub" / "models--a--b--c").mkdir(parents=True)
    assert kernels_folders(WeightsSettings()) == ()


# Upload.


@contextmanager
def serve_uploads(*held: str) -> Iterator[tuple[str, dict[str, bytes], list[list[str]]]]:
    """A stand-in for the hub that takes commits; yields its address, the repository's files, of which some are there
    before, and the files of each commit."""
    files: dict[str, bytes] = dict.fromkeys(held, b"older")
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
                self._answer({"id": "o/n", "sha": "b" * 40, "private": True, "siblings": siblings})

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

    with serving(Hub) as server:
        yield f"http://127.0.0.1:{server.server_port}", files, commits


def test_push_uploads_what_is_listed_and_then_the_manifest(tmp_path: Path) -> None:
    pack = make_small(tmp_path / "pack", {**CODE, "kokoro/[a]*": b"brackets"})
    for stray in ("notes.txt", "kokoro/.token", f"{BUILD}/evil.py"):
        (pack / stray).write_text("not in the manifest")
    with serve_uploads(".gitattributes", "left-over.safetensors", MANIFEST_FILE) as (address, files, commits):
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
    assert finished.stdout.splitlines()[-2:] == ["the repository is private", f"{address}/someone/pack"]
    manifest = read_manifest(pack)
    assert set(files) - {".gitattributes"} == {file.path for file in manifest.files} | {MANIFEST_FILE}
    assert all(files[file.path] == (pack / file.path).read_bytes() for file in manifest.files)
    assert commits[-1] == [MANIFEST_FILE]
    assert files[MANIFEST_FILE] == (pack / MANIFEST_FILE).read_bytes() and "left-over.safetensors" in commits[0]


def test_push_replaces_packs_and_what_is_left_of_an_upload_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = make_small(tmp_path / "pack", CODE)
    with serve_uploads(".gitattributes", "model.safetensors") as (address, files, commits):
        monkeypatch.setattr(pushing, "HfApi", partial(HfApi, endpoint=address, token="t"))
        with pytest.raises(CheckpointError, match=r"holds files that are no pack, such as model\.safetensors, and"):
            push(pack, "someone/pack")
        assert commits == [] and set(files) == {".gitattributes", "model.safetensors"}
    with serve_uploads(*CODE) as (address, files, _):
        monkeypatch.setattr(pushing, "HfApi", partial(HfApi, endpoint=address, token="t"))
        push(pack, "someone/pack")
        assert set(files) == {*CODE, MANIFEST_FILE}


def test_a_hub_that_cannot_be_reached_is_named_with_the_way_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = make_small(tmp_path / "pack", CODE)
    monkeypatch.setattr(pushing, "HfApi", partial(HfApi, endpoint="http://127.0.0.1:9", token="t"))
    with pytest.raises(CheckpointError, match=r"did not take the pack; .* it goes on where it stopped"):
        push(pack, "someone/pack")


@pytest.mark.parametrize("arguments", [("--quant", "bf16"), ("--findings", "somewhere")])
def test_what_is_for_a_new_pack_is_refused_when_one_is_uploaded(
    arguments: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = make_small(tmp_path / "pack", CODE)
    assert main(["pack", "--out", str(pack), "--push", "someone/pack", *arguments]) == 1
    assert "--quant and --findings are for a new pack" in capsys.readouterr().err
