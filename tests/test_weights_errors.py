"""A checkpoint that does not fit is an error that names the file and the tensor; nothing in a file is executed."""

import json
import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file

from infinitetalk.errors import CheckpointError
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.weights.files import open_file
from infinitetalk.weights.layouts import TEXT_ENCODER_FILE, CheckpointPaths, find_adapter
from infinitetalk.weights.loading import parameter_shapes
from infinitetalk.weights.names import transformer_names, vae_names
from infinitetalk.weights.networks import load_text_encoder
from tests import checkpoint_factory as factory
from tests.checkpoint_factory import Tensors

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parents[2] / "shared" / "golden"


@pytest.fixture
def paths(tmp_path: Path) -> CheckpointPaths:
    base, adapters = tmp_path / "base", tmp_path / "adapters"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(factory.TRANSFORMER_CONFIG))
    save_file(factory.base_tensors(), base / "diffusion_pytorch_model.safetensors")
    factory.save_adapters(adapters)
    return CheckpointPaths(base, factory.adapter_files(adapters), tmp_path)


def load(paths: CheckpointPaths) -> InfiniteTalkTransformer3DModel:
    return factory.load_transformer(paths)


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def with_tensor(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("blocks.1.ffn.2.bias"), r"diffusion_pytorch_model.safetensors lacks .*blocks.1.ffn.net.2.bias"),
        (
            with_tensor("blocks.0.ffn.4.bias", 3),
            r"diffusion_pytorch_model.safetensors holds the tensor blocks.0.ffn.4.bias, for which the network has no",
        ),
        (
            with_tensor("blocks.1.self_attn.q.weight", 128, 64),
            r"diffusion_pytorch_model.safetensors: tensor blocks.1.self_attn.q.weight has the shape \[128, 64\]; .*128",
        ),
        (
            with_tensor("blocks.0.norm_x.weight", 128),
            r"the folder base holds an adapter among the base model's tensors",
        ),
    ],
    ids=["missing", "left over", "misshapen", "part of an adapter"],
)
def test_a_base_model_that_does_not_fit_names_file_and_tensor(
    paths: CheckpointPaths, change: Callable[[Tensors], Tensors], message: str
) -> None:
    save_file(change(factory.base_tensors()), paths.base / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load(paths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("blocks.1.norm_x.bias"), r"infinitetalk.safetensors lacks the tensor blocks.1.norm_x.bias"),
        (without("audio_proj.proj3.weight"), r"infinitetalk.safetensors lacks the tensor audio_proj.proj3.weight"),
        (with_tensor("patch_embedding.weight", 3), r"infinitetalk.safetensors.*patch_embedding.weight|patch_embedding"),
        (
            with_tensor("blocks.0.audio_cross_attn.proj.bias", 64),
            r"infinitetalk.safetensors: tensor blocks.0.audio_cross_attn.proj.bias has the shape \[64\]",
        ),
    ],
    ids=["missing", "missing size", "a base tensor too", "misshapen"],
)
def test_an_adapter_that_does_not_fit_names_file_and_tensor(
    paths: CheckpointPaths, change: Callable[[Tensors], Tensors], message: str
) -> None:
    save_file(change(factory.adapter_tensors()), paths.adapters["single"])
    with pytest.raises(CheckpointError, match=message):
        load(paths)


def test_a_shard_that_is_missing_truncated_or_not_as_indexed_is_named(paths: CheckpointPaths) -> None:
    (paths.base / "diffusion_pytorch_model.safetensors").unlink()
    factory.save_original_shards(paths.base, factory.base_tensors())
    load(paths)
    shard = paths.base / "diffusion_pytorch_model-00004-of-00007.safetensors"
    content = shard.read_bytes()

    shard.write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match=r"00004-of-00007.safetensors is truncated: tensor .* is cut off"):
        load(paths)
    shard.write_bytes(content[:1000])
    with pytest.raises(CheckpointError, match=r"00004-of-00007.safetensors is truncated or not a safetensors file"):
        load(paths)
    shard.write_bytes(content + b"more")
    with pytest.raises(CheckpointError, match=r"00004-of-00007.safetensors has \d+ bytes where"):
        load(paths)
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"no file diffusion_pytorch_model-00004-of-00007.safetensors"):
        load(paths)
    save_file({"patch_embedding.bias": torch.zeros(1)}, shard)
    with pytest.raises(CheckpointError, match=r"00004-of-00007.safetensors lacks the tensor"):
        load(paths)


def test_a_truncated_pickle_and_a_truncated_gguf_are_named(paths: CheckpointPaths) -> None:
    torch.save(factory.text_encoder_tensors(), paths.base / TEXT_ENCODER_FILE)
    load_text_encoder(paths, CPU, torch.float32)
    content = (paths.base / TEXT_ENCODER_FILE).read_bytes()
    (paths.base / TEXT_ENCODER_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=rf"{TEXT_ENCODER_FILE} is truncated"):
        load_text_encoder(paths, CPU, torch.float32)

    gguf = paths.base / "wan.gguf"
    factory.save_gguf(gguf, {"patch_embedding.bias": torch.zeros(128)}, four_bits=False)
    gguf.write_bytes(gguf.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"wan.gguf is truncated"):
        open_file(gguf)


class Malicious:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_would_execute_code_is_refused(tmp_path: Path, archive: bool) -> None:
    content = {"weight": torch.zeros(1), "payload": Malicious(tmp_path / "executed")}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=archive, pickle_module=pickle)
    with pytest.raises(CheckpointError, match=r"evil.pth .* holds more than tensors"):
        open_file(tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()


def test_a_model_that_is_not_i2v_is_refused(paths: CheckpointPaths) -> None:
    (paths.base / "config.json").write_text(json.dumps(factory.TRANSFORMER_CONFIG | {"model_type": "t2v"}))
    with pytest.raises(CheckpointError, match=r"model_type 't2v'; InfiniteTalk needs Wan 2.1 I2V"):
        load(paths)


def test_two_adapters_in_one_folder_are_not_guessed_between(paths: CheckpointPaths) -> None:
    save_file({"x": torch.zeros(1)}, paths.adapters["single"].with_name("other.safetensors"))
    with pytest.raises(CheckpointError, match=r"leave one adapter"):
        find_adapter(paths.adapters["single"].parents[1], "single")


@pytest.mark.parametrize(
    ("module", "kinds", "message"),
    [
        ("blocks.0.ffn.0", {"weights": "none", "activations": "none"}, r"does not list blocks.0.ffn.0 as quantised"),
        ("blocks.9.ffn.0", {"weights": "qint8", "activations": "none"}, r"lists blocks.9.ffn.0 as quantised"),
        ("blocks.0.ffn.0", {"weights": "qint8", "activations": "qint8"}, r"only weights in int8 or fp8 are served"),
        ("blocks.0.ffn.0", {"weights": "qint4", "activations": "none"}, r"only weights in int8 or fp8 are served"),
    ],
)
def test_a_map_of_another_quantised_file_is_refused(
    paths: CheckpointPaths, module: str, kinds: dict[str, str], message: str
) -> None:
    quantised = paths.base / "quant_models"
    map_path = quantised / "infinitetalk_single_int8.json"
    tensors = {**factory.base_tensors(), **factory.adapter_tensors()}
    factory.save_quanto(map_path.with_suffix(".safetensors"), map_path, tensors, "int8")
    map_path.write_text(json.dumps(json.loads(map_path.read_text()) | {module: kinds}))
    paths = replace(paths, adapters={}, quantised=quantised)
    with pytest.raises(CheckpointError, match=message):
        factory.load_transformer(paths, quantisation="int8")


def test_a_quantised_weight_without_its_scale_is_named(paths: CheckpointPaths) -> None:
    quantised = paths.base / "quant_models"
    file = quantised / "infinitetalk_single_int8.safetensors"
    tensors = {**factory.base_tensors(), **factory.adapter_tensors()}
    factory.save_quanto(file, file.with_suffix(".json"), tensors, "int8")
    opened = open_file(file)
    stored = {name: opened.read(name).clone() for name in opened.headers}
    del stored["blocks.1.self_attn.o.weight._scale"]
    save_file(stored, file)
    paths = replace(paths, adapters={}, quantised=quantised)
    with pytest.raises(CheckpointError, match=r"infinitetalk_single_int8.safetensors lacks .*attn1.to_out.0.weight._s"):
        factory.load_transformer(paths, quantisation="int8")


# The real sizes.


def test_every_tensor_of_the_14b_model_finds_its_place_within_seconds() -> None:
    if not GOLDEN.exists():
        pytest.skip("the manifest of the 14B model is not at ../shared/golden")
    begin = time.monotonic()
    manifest = json.loads((GOLDEN / "manifest_dit_14b.json").read_text())
    with torch.device("meta"):
        transformer = InfiniteTalkTransformer3DModel()
    places = transformer_names({name: name for name in manifest["keys"]})
    shapes = {place: tuple(manifest["keys"][name][0]) for place, name in places.items()}
    assert len(places) == len(manifest["keys"]) == 1303 + 330
    assert shapes == parameter_shapes(transformer)
    adapter = [name for name, (_, part) in manifest["keys"].items() if part == "adapter"]
    assert [places[name] for name in adapter] == adapter
    assert time.monotonic() - begin < 10


def test_every_tensor_of_the_real_vae_finds_its_place() -> None:
    if not GOLDEN.exists():
        pytest.skip("the manifest of the VAE is not at ../shared/golden")
    manifest = json.loads((GOLDEN / "manifest_vae_full.json").read_text())
    with torch.device("meta"):
        vae = AutoencoderKLWan()
    places = vae_names({name: name for name in manifest["keys"]})
    shapes = {place: tuple(manifest["keys"][name]) for place, name in places.items()}
    assert shapes == parameter_shapes(vae)
