"""FlashTalk's weights: told from other folders by their tensors, found, checked, converted and loaded."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from infinitetalk.errors import CheckpointError
from infinitetalk.family import FLASHTALK, INFINITETALK
from infinitetalk.recipes import RECIPES, missing
from infinitetalk.runtime.check import check_checkpoint
from infinitetalk.runtime.memory import model_sizes
from infinitetalk.weights.__main__ import main
from infinitetalk.weights.convert import convert
from infinitetalk.weights.files import open_file
from infinitetalk.weights.layouts import CheckpointPaths
from infinitetalk.weights.locate import MissingWeightsError, locate, locate_all
from infinitetalk.weights.settings import WeightsSettings
from tests import checkpoint_factory as factory

FLASHTALK_FOLDER = "SoulX-FlashTalk-14B"
#: Folders of a volume's weights/, as `download` makes them.
WAN_FOLDERS = ("Wan2.1-I2V-14B-480P", "InfiniteTalk")

pytestmark = pytest.mark.usefixtures("no_weights_settings")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of both models, in this one."""
    folder = tmp_path_factory.mktemp("weights")
    factory.save_flashtalk(folder / FLASHTALK_FOLDER)
    factory.save_original_base(folder / WAN_FOLDERS[0])
    factory.save_adapters(folder / WAN_FOLDERS[1])
    factory.save_speech_encoder(folder / "chinese-wav2vec2-base")
    return folder


@pytest.fixture
def volume(weights: Path, tmp_path: Path) -> Path:
    """The weights on a volume, from which tests remove links."""
    (tmp_path / "volume" / "weights").mkdir(parents=True)
    for folder in weights.iterdir():
        (tmp_path / "volume" / "weights" / folder.name).symlink_to(folder)
    return tmp_path / "volume"


def remove(volume: Path, *names: str) -> None:
    for name in names:
        (volume / "weights" / name).unlink()


def flashtalk(base: Path) -> CheckpointPaths:
    return CheckpointPaths(base, {}, base, family=FLASHTALK)


# What is loaded.


@pytest.mark.parametrize("shards", [1, 3], ids=["single", "sharded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_flashtalks_folder_gives_what_the_plainest_loading_gives(
    tmp_path: Path, shards: int, dtype: torch.dtype
) -> None:
    factory.save_original_transformer(tmp_path / "flashtalk", factory.flashtalk_tensors(), dtype, shards)
    loaded = factory.load_transformer(flashtalk(tmp_path / "flashtalk"))
    tensors = {name: tensor.to(dtype).float() for name, tensor in factory.flashtalk_tensors().items()}
    plain = factory.plain_transformer(tensors)
    for name, parameter in plain.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name
    torch.testing.assert_close(factory.evaluate(loaded), factory.evaluate(plain), atol=1e-5, rtol=1e-5)


def test_a_wan_folder_in_flashtalks_place_and_the_reverse_are_refused(weights: Path) -> None:
    wan, infinitetalk = (weights / name for name in WAN_FOLDERS)
    with pytest.raises(CheckpointError, match=r"Wan2.1-I2V-14B-480P holds no adapter among .*which CKPT_DIR is for"):
        factory.load_transformer(flashtalk(wan))
    reverse = CheckpointPaths(weights / FLASHTALK_FOLDER, factory.adapter_files(infinitetalk), weights)
    with pytest.raises(
        CheckpointError, match=r"SoulX-FlashTalk-14B holds an adapter .*set FLASHTALK_DIR to this folder"
    ):
        factory.load_transformer(reverse)
    for paths in (flashtalk(wan), reverse):
        finding = next(
            finding for finding in check_checkpoint(paths) if finding.part == "transformer, adapter 'single'"
        )
        assert finding.needed and finding.problem is not None


def test_flashtalks_one_adapter_serves_no_several_speakers(weights: Path) -> None:
    with pytest.raises(CheckpointError, match="SoulX-FlashTalk-14B has an adapter for one speaker only"):
        factory.load_transformer(flashtalk(weights / FLASHTALK_FOLDER), "multi")


def test_infinitetalks_quantised_files_stay_out_of_flashtalks_place(
    volume: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {**factory.base_tensors(), **factory.adapter_tensors()}
    quantised = tmp_path / "quant_models"
    file = quantised / "infinitetalk_single_int8.safetensors"
    factory.save_quanto(file, file.with_suffix(".json"), tensors, "int8")
    save_file(tensors, tmp_path / "infinitetalk.safetensors")
    monkeypatch.setenv("QUANT_DIR", str(quantised))
    monkeypatch.setenv("TRANSFORMER_FILE", str(tmp_path / "infinitetalk.safetensors"))
    settings = WeightsSettings()
    assert locate(settings).quantised_transformer("single", "int8") == file
    assert locate(settings).transformer == tmp_path / "infinitetalk.safetensors"
    found = locate(settings, FLASHTALK)
    plain = factory.plain_transformer(factory.flashtalk_tensors())
    # Even where the folder is given to it.
    for paths in (found, replace(found, quantised=quantised)):
        bias = factory.load_transformer(paths, quantisation="int8").get_parameter("blocks.0.attn1.to_q.bias")
        assert torch.equal(bias, plain.get_parameter("blocks.0.attn1.to_q.bias"))


# Where it is found.


def test_flashtalk_is_found_beside_infinitetalk_or_alone(volume: Path) -> None:
    located = locate_all(WeightsSettings())
    assert list(located.checkpoints) == ["infinitetalk", "flashtalk"]
    assert located.absent == {}
    paths = located.checkpoints["flashtalk"]
    assert (paths.base, paths.adapters) == (volume / "weights" / FLASHTALK_FOLDER, {})
    assert all(finding.problem is None for finding in check_checkpoint(paths))
    remove(volume, *WAN_FOLDERS)
    located = locate_all(WeightsSettings())
    assert list(located.checkpoints) == ["flashtalk"]
    assert located.absent == {"infinitetalk": ("base-480", "adapter")}


def test_flashtalk_is_found_by_its_setting_and_as_the_hosts_cached_model(
    volume: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(volume, FLASHTALK_FOLDER)
    assert list(locate_all(WeightsSettings()).checkpoints) == ["infinitetalk"]
    repository = volume / "huggingface-cache" / "hub" / f"models--Soul-AILab--{FLASHTALK_FOLDER}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / ("a" * 40)).symlink_to(weights / FLASHTALK_FOLDER)
    assert locate(WeightsSettings(), FLASHTALK).base == repository / "snapshots" / ("a" * 40)
    monkeypatch.setenv("FLASHTALK_DIR", str(weights / FLASHTALK_FOLDER))
    assert locate(WeightsSettings(), FLASHTALK).base == weights / FLASHTALK_FOLDER
    monkeypatch.setenv("FLASHTALK_DIR", str(weights / "elsewhere"))
    with pytest.raises(CheckpointError, match=r"FLASHTALK_DIR names .*elsewhere, which is not a folder"):
        locate_all(WeightsSettings())


def test_a_base_model_that_is_set_needs_its_other_weights_and_one_that_was_found_is_left_out(
    volume: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(volume, "InfiniteTalk")
    assert locate_all(WeightsSettings()).absent == {"infinitetalk": ("adapter",)}
    monkeypatch.setenv("CKPT_DIR", str(weights / WAN_FOLDERS[0]))
    with pytest.raises(
        MissingWeightsError, match=r"InfiniteTalk-14B needs InfiniteTalk: .*download adapter`, or set I"
    ):
        locate_all(WeightsSettings())


def test_without_complete_weights_the_rest_of_what_is_there_is_asked_for(volume: Path) -> None:
    remove(volume, "chinese-wav2vec2-base", *WAN_FOLDERS)
    message = r"SoulX-FlashTalk-14B needs chinese-wav2vec2-base: fetch it by .*download wav2vec2`, or set WAV2VEC_DIR"
    with pytest.raises(MissingWeightsError, match=message):
        locate_all(WeightsSettings())
    remove(volume, FLASHTALK_FOLDER)
    with pytest.raises(MissingWeightsError, match=r"InfiniteTalk-14B needs .*download base-480 adapter wav2vec2`"):
        locate_all(WeightsSettings())


def test_loras_are_found_on_the_volume(volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(WeightsSettings()).loras == ()
    (volume / "weights" / "loras").mkdir()
    assert {paths.loras for paths in locate_all(WeightsSettings()).checkpoints.values()} == {
        (volume / "weights" / "loras",)
    }
    monkeypatch.setenv("LORA_DIR", str(tmp_path))
    assert locate(WeightsSettings()).loras == (tmp_path,)


# What recipes lack.


def test_a_recipe_says_what_to_fetch() -> None:
    absent = {"flashtalk": ("flashtalk", "wav2vec2")}
    assert missing(RECIPES["quality"], absent, []) is None
    assert missing(RECIPES["flashtalk"], {}, []) is None
    assert missing(RECIPES["flashtalk-12"], absent, ["x"]) == (
        "recipe flashtalk-12 needs SoulX-FlashTalk-14B, chinese-wav2vec2-base: fetch them by "
        "`python -m infinitetalk.weights download flashtalk wav2vec2`, or set FLASHTALK_DIR, WAV2VEC_DIR"
    )
    assert missing(RECIPES["lora-4"], {}, ["style.safetensors"]) == (
        'recipe lora-4 needs a LoRA with "lightx2v" in its name: fetch it by '
        "`python -m infinitetalk.weights download lightx2v`, or set LORA_DIR"
    )
    assert missing(RECIPES["lora-4"], {}, ["style.safetensors", "fast/LightX2V_rank32.safetensors"]) is None
    both = missing(RECIPES["lora-8"], {"infinitetalk": ("adapter",)}, [])
    assert both is not None and "download adapter fusionx`, or set INFINITETALK_DIR, LORA_DIR" in both


# The commands.


def test_check_covers_both_models_and_says_which_recipes_run(volume: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (volume / "weights" / "loras").mkdir()
    save_file({"x": torch.zeros(1)}, volume / "weights" / "loras" / "FusionX.safetensors")
    assert main(["check"]) == 0
    output = capsys.readouterr().out
    assert "InfiniteTalk-14B:\n" in output and "SoulX-FlashTalk-14B:\n" in output
    assert output.count("ok       transformer, adapter 'single'") == 2
    assert output.count("ok       transformer, adapter 'multi'") == 1
    assert "LoRAs: FusionX.safetensors" in output
    for name in ("quality", "lora-8", "flashtalk"):
        assert f"ok       {name}\n" in output
    assert 'missing  recipe lora-4 needs a LoRA with "lightx2v"' in output
    remove(volume, FLASHTALK_FOLDER)
    assert main(["check"]) == 0
    assert "missing  recipe flashtalk needs SoulX-FlashTalk-14B: fetch it by" in capsys.readouterr().out


@pytest.mark.parametrize("shards", [1, 3], ids=["single", "sharded"])
def test_flashtalk_converts_to_one_folder_that_is_told_and_loaded_like_the_published_one(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shards: int
) -> None:
    original = factory.save_flashtalk(tmp_path / "flashtalk", torch.bfloat16, shards)
    remove(volume, FLASHTALK_FOLDER, *WAN_FOLDERS)
    monkeypatch.setenv("FLASHTALK_DIR", str(original))
    assert main(["convert", str(tmp_path / "converted")]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["transformer", f"FLASHTALK_DIR={tmp_path / 'converted'}"]
    converted, published = (
        factory.load_transformer(flashtalk(base), dtype=torch.bfloat16) for base in (tmp_path / "converted", original)
    )
    for name, parameter in published.named_parameters():
        assert torch.equal(converted.get_parameter(name), parameter), name
    names = list(open_file(tmp_path / "converted/transformer/diffusion_pytorch_model.safetensors").headers)
    blocks = [int(name.split(".")[1]) for name in names if name.startswith("blocks.")]
    assert blocks == sorted(blocks)
    assert "blocks.0.audio_cross_attn.q_linear.weight" in names
    monkeypatch.setenv("FLASHTALK_DIR", str(tmp_path / "converted"))
    located = locate_all(WeightsSettings())
    assert all(finding.problem is None for finding in check_checkpoint(located.checkpoints["flashtalk"]))
    assert model_sizes(located.checkpoints["flashtalk"]) == model_sizes(flashtalk(original))


def test_flashtalk_converted_to_fp8_equals_quantising_while_loading(weights: Path, tmp_path: Path) -> None:
    original = flashtalk(weights / FLASHTALK_FOLDER)
    converted = convert(original, tmp_path / "converted", fp8=True)
    assert converted.adapters == {}
    assert not (tmp_path / "converted" / "infinitetalk").exists()
    loaded, plain = (factory.load_transformer(paths, quantisation="fp8") for paths in (converted, original))
    for weight in ("blocks.1.ffn.net.2.weight", "blocks.1.audio_cross_attn.proj.weight"):
        assert torch.equal(loaded.get_parameter(weight).dequantize(), plain.get_parameter(weight).dequantize())
    torch.testing.assert_close(factory.evaluate(loaded), factory.evaluate(plain), atol=2e-2, rtol=2e-2)


def test_infinitetalk_converts_without_the_adapter_for_several_speakers(weights: Path, tmp_path: Path) -> None:
    adapters = factory.adapter_files(weights / "InfiniteTalk") | {"multi": tmp_path / "multi" / "missing.safetensors"}
    original = CheckpointPaths(weights / WAN_FOLDERS[0], adapters, weights / "chinese-wav2vec2-base")
    converted = convert(original, tmp_path / "converted")
    assert list(converted.adapters) == ["single"]
    loaded, plain = (factory.load_transformer(paths, dtype=torch.bfloat16) for paths in (converted, original))
    for name, parameter in plain.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name


def test_convert_asks_which_of_two_models_it_is_for(
    volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(tmp_path / "x")]) == 1
    assert "there are infinitetalk and flashtalk; choose one by --family" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "x"), "--family", "flashtalk"]) == 0
    assert f"FLASHTALK_DIR={tmp_path / 'x'}" in capsys.readouterr().out
    remove(volume, "InfiniteTalk")
    assert main(["convert", str(tmp_path / "y"), "--family", "infinitetalk"]) == 1
    assert "there is no infinitetalk; there is flashtalk" in capsys.readouterr().err


def test_families_name_the_repositories_they_need() -> None:
    assert INFINITETALK.default_repositories == ("base-480", "adapter", "wav2vec2")
    assert FLASHTALK.default_repositories == ("flashtalk", "wav2vec2")
