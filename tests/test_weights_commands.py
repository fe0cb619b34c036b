"""`python -m infinitetalk.weights`: what it says, writes and fetches; and where weights are looked for."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import CLIPVisionModel, UMT5EncoderModel, Wav2Vec2FeatureExtractor

from infinitetalk.embedded.tiny import _speech_encoder
from infinitetalk.errors import CheckpointError
from infinitetalk.recipes import RECIPES, missing
from infinitetalk.runtime.check import check_checkpoint
from infinitetalk.runtime.lora import lora_names
from infinitetalk.weights.__main__ import NAMES, main
from infinitetalk.weights.convert import Entry, convert, write_safetensors
from infinitetalk.weights.files import open_file
from infinitetalk.weights.locate import locate
from infinitetalk.weights.settings import WeightsSettings
from tests import checkpoint_factory as factory
from tests.hub_server import fetching, serve_hub

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("no_weights_settings")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as people have them after following the published instructions."""
    folder = tmp_path_factory.mktemp("weights")
    factory.save_original_base(folder / "Wan2.1-I2V-14B-480P")
    factory.save_adapters(folder / "InfiniteTalk")
    speech = folder / "chinese-wav2vec2-base"
    speech.mkdir()
    factory.save_pickled_wav2vec2(speech, _speech_encoder())
    Wav2Vec2FeatureExtractor(sampling_rate=16000).save_pretrained(speech)
    return folder


@pytest.fixture
def settings(weights: Path, monkeypatch: pytest.MonkeyPatch) -> WeightsSettings:
    monkeypatch.setenv("CKPT_DIR", str(weights / "Wan2.1-I2V-14B-480P"))
    monkeypatch.setenv("INFINITETALK_DIR", str(weights / "InfiniteTalk"))
    monkeypatch.setenv("WAV2VEC_DIR", str(weights / "chinese-wav2vec2-base"))
    return WeightsSettings()


# check.


def test_check_says_what_is_there_its_size_and_the_modes(
    settings: WeightsSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = time.monotonic()
    assert main(["check"]) == 0
    assert time.monotonic() - begin < 5
    output = capsys.readouterr().out
    for part in ("transformer, adapter 'single'", "text encoder", "tokenizer", "VAE", "speech encoder"):
        assert f"ok       {part}: 0." in output
    assert "GiB  infinitetalk-720  fp8, text encoder streamed" in output


def test_check_names_what_is_missing_and_fails(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    factory.save_original_base(base)
    (base / "Wan2.1_VAE.pth").unlink()
    (base / "diffusion_pytorch_model-00003-of-00007.safetensors").write_bytes(b"")
    for name, folder in {"CKPT_DIR": base, "INFINITETALK_DIR": weights / "InfiniteTalk", "WAV2VEC_DIR": base}.items():
        monkeypatch.setenv(name, str(folder))
    assert main(["check"]) == 1
    output = capsys.readouterr().out
    assert "MISSING  VAE: there is no file Wan2.1_VAE.pth in the folder base" in output
    assert (
        "MISSING  transformer, adapter 'single': diffusion_pytorch_model-00003-of-00007.safetensors is trunc" in output
    )
    assert "missing  transformer, adapter 'multi'" in output
    assert "MISSING  speech encoder: there is no file pytorch_model.bin" in output
    assert "ok       text encoder" in output


def test_check_covers_quantised_files_and_text_to_speech(settings: WeightsSettings, tmp_path: Path) -> None:
    tensors = {**factory.base_tensors(), **factory.adapter_tensors()}
    quantised = tmp_path / "quant_models"
    file = quantised / "infinitetalk_single_fp8.safetensors"
    factory.save_quanto(file, file.with_suffix(".json"), tensors, "fp8")
    found = locate(settings)
    paths = replace(found, quantised=quantised, kokoro=tmp_path)
    findings = {finding.part: finding for finding in check_checkpoint(paths)}
    assert findings["transformer in fp8, adapter 'single'"].problem is None
    assert "voices" in (findings["text to speech"].problem or "")
    assert not findings["text to speech"].needed


# convert.


def test_convert_writes_a_diffusers_folder_in_the_order_of_use(settings: WeightsSettings, tmp_path: Path) -> None:
    original = locate(settings)
    parts: list[str] = []
    converted = convert(original, tmp_path / "converted", on_part=parts.append)
    assert parts[0] == "text encoder" and parts[-1] == "adapter multi"
    assert not list((tmp_path / "converted").rglob("*.pth"))
    for kind in ("single", "multi"):
        loaded, plain = (factory.load_transformer(paths, kind, torch.bfloat16) for paths in (converted, original))
        for name, parameter in plain.named_parameters():
            assert torch.equal(loaded.get_parameter(name), parameter), name
    file = open_file(converted.base / "transformer" / "diffusion_pytorch_model.safetensors")
    names = list(file.headers)
    assert names[0].startswith("patch_embedding.") and names[-1].startswith("proj_out.")
    blocks = [int(name.split(".")[1]) for name in names if name.startswith("blocks.")]
    assert blocks == sorted(blocks)
    assert file.headers["blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16
    assert file.headers["blocks.0.norm2.weight"].dtype == torch.float32
    # Other programs read it too.
    WanTransformer3DModel.from_pretrained(converted.base / "transformer")
    AutoencoderKLWan.from_pretrained(converted.base / "vae")
    UMT5EncoderModel.from_pretrained(converted.base / "text_encoder")
    CLIPVisionModel.from_pretrained(converted.base / "image_encoder")


def test_convert_to_fp8_equals_quantising_while_loading(settings: WeightsSettings, tmp_path: Path) -> None:
    original = locate(settings)
    converted = convert(original, tmp_path / "converted", fp8=True)
    loaded, plain = (factory.load_transformer(paths, quantisation="fp8") for paths in (converted, original))
    torch.testing.assert_close(factory.evaluate(loaded), factory.evaluate(plain), atol=2e-2, rtol=2e-2)
    weight = "blocks.1.ffn.net.2.weight"
    assert torch.equal(loaded.get_parameter(weight).dequantize(), plain.get_parameter(weight).dequantize())
    sizes = [
        sum(header.num_bytes for name, header in open_file(file).headers.items() if name.startswith("blocks."))
        for file in (
            converted.base / "transformer" / "diffusion_pytorch_model.safetensors",
            convert(original, tmp_path / "wide").base / "transformer" / "diffusion_pytorch_model.safetensors",
        )
    ]
    assert sizes[0] < 0.6 * sizes[1]


def test_convert_keeps_out_of_folders_that_hold_something(
    settings: WeightsSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").touch()
    assert main(["convert", str(tmp_path)]) == 1
    assert "is not empty; give another" in capsys.readouterr().err


def test_a_file_that_is_not_whole_does_not_appear(tmp_path: Path) -> None:
    def fail() -> torch.Tensor:
        raise CheckpointError("damaged")

    with pytest.raises(CheckpointError):
        write_safetensors(tmp_path / "x.safetensors", [Entry("weight", torch.float32, (2,), fail)])
    assert not (tmp_path / "x.safetensors").exists()


# Where weights are.


def test_weights_are_found_on_the_volume_and_in_the_hosts_cache(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = tmp_path / "volume"
    with pytest.raises(CheckpointError, match=r"download base-480 adapter wav2vec2`, or set CKPT_DIR, INFINITETALK_D"):
        locate(WeightsSettings())
    (volume / "weights").mkdir(parents=True)
    for name in ("InfiniteTalk", "chinese-wav2vec2-base"):
        (volume / "weights" / name).symlink_to(weights / name)
    repository = volume / "huggingface-cache" / "hub" / "models--Wan-AI--Wan2.1-I2V-14B-480P"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / ("a" * 40)).symlink_to(weights / "Wan2.1-I2V-14B-480P")
    paths = locate(WeightsSettings())
    assert paths.base == repository / "snapshots" / ("a" * 40)
    assert paths.adapters["multi"] == volume / "weights" / "InfiniteTalk" / "multi" / "infinitetalk.safetensors"
    assert all(finding.problem is None for finding in check_checkpoint(paths))

    monkeypatch.setenv("CKPT_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(CheckpointError, match=r"CKPT_DIR names .*elsewhere, which is not a folder"):
        locate(WeightsSettings())


# download.


def download(address: str, folder: Path, *names: str) -> str:
    """What the command prints that fetches from the hub at this address."""
    finished = fetching(address, folder, *names)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_download_fetches_the_files_needed_and_no_others(tmp_path: Path) -> None:
    files = {
        "README.md": b"no",
        "single/infinitetalk.safetensors": b"single",
        "multi/infinitetalk.safetensors": b"multi",
        "quant_models/infinitetalk_single_int8.safetensors": b"int8",
        "quant_models/infinitetalk_single_fp8.safetensors": b"fp8",
        "comfyui/infinitetalk_single.safetensors": b"no",
    }
    with serve_hub(files) as (address, fetched):
        output = download(address, tmp_path, "adapter", "int8")
        assert sorted(fetched) == [
            "multi/infinitetalk.safetensors",
            "quant_models/infinitetalk_single_int8.safetensors",
            "single/infinitetalk.safetensors",
        ]
        assert (tmp_path / "InfiniteTalk" / "single" / "infinitetalk.safetensors").read_bytes() == b"single"
        assert f"INFINITETALK_DIR={tmp_path / 'InfiniteTalk'}" in output
        assert f"QUANT_DIR={tmp_path / 'InfiniteTalk' / 'quant_models'}" in output
        fetched.clear()
        download(address, tmp_path, "adapter")
        assert fetched == []


def test_flashtalk_and_loras_are_downloaded_to_where_the_worker_looks(tmp_path: Path) -> None:
    fusionx, lightx2v = (RECIPES[name].loras[0].repository for name in ("lora-8", "lora-4"))
    files = {"config.json": b"{}", "diffusion_pytorch_model-00001-of-00002.safetensors": b"x", "assets/demo.mp4": b"no"}
    files |= dict.fromkeys((*fusionx.patterns, *lightx2v.patterns), b"x")
    with serve_hub(files) as (address, fetched):
        output = download(address, tmp_path, "flashtalk", "lora-8", "lightx2v").splitlines()
        assert sorted(fetched) == sorted(set(files) - {"assets/demo.mp4"})
    assert output == [
        f"FLASHTALK_DIR={tmp_path / 'SoulX-FlashTalk-14B'}",
        f"LORA_DIR={tmp_path / 'loras'}",
        f"LORA_DIR={tmp_path / 'loras'}",
    ]
    assert (tmp_path / "SoulX-FlashTalk-14B" / "config.json").read_bytes() == b"{}"
    loras = lora_names([tmp_path / "loras"])
    assert loras == sorted(f"{each.name}/{each.patterns[0]}" for each in (fusionx, lightx2v))
    assert missing(RECIPES["lora-8"], {}, loras) is None
    assert missing(RECIPES["lora-4"], {}, loras) is None


def test_download_names_repositories_by_what_they_are_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["download", "everything"])
    assert f"there is no everything; there are {', '.join(NAMES)}" in capsys.readouterr().err
