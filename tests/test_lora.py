"""LoRAs: every tensor of a file counts, sums are exact, and nothing is left behind."""

import gc
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from infinitetalk.errors import CheckpointError
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.lora import Delta, LoraStack, ScaledLora, find_lora, find_loras, lora_names
from infinitetalk.runtime.models import Models
from infinitetalk.weights.layouts import CheckpointPaths
from tests import checkpoint_factory as factory

CPU = torch.device("cpu")
DIM, FFN = factory.DIM, factory.FFN_DIM

#: Layers of a T2V model, by original and diffusers' names, with rows and columns.
T2V_LAYERS = {
    **{
        f"{original}_attn.{layer}": (f"{ours}.{name}", DIM, DIM)
        for original, ours in (("self", "attn1"), ("cross", "attn2"))
        for layer, name in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))
    },
    "ffn.0": ("ffn.net.0.proj", FFN, DIM),
    "ffn.2": ("ffn.net.2", DIM, FFN),
}
I2V_LAYERS = T2V_LAYERS | {
    "cross_attn.k_img": ("attn2.add_k_proj", DIM, DIM),
    "cross_attn.v_img": ("attn2.add_v_proj", DIM, DIM),
}


def random(name: str, *shape: int) -> Tensor:
    return factory.formula_weight(name, shape) * 0.3


def lightx2v(rank: int, i2v: bool, layers: int = factory.LAYERS) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A lightx2v file (rank, T2V or I2V), and the difference that it stands for, by our parameters' names."""
    stored, differences = {}, {}
    for index in range(layers):
        for layer, (ours, rows, columns) in (I2V_LAYERS if i2v else T2V_LAYERS).items():
            name = f"diffusion_model.blocks.{index}.{layer}"
            down, up = random(f"{name}.down{rank}", rank, columns), random(f"{name}.up{rank}", rows, rank)
            bias = random(f"{name}.diff_b.bias", rows)
            stored |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            stored |= {f"{name}.alpha": torch.tensor(rank / 2), f"{name}.diff_b": bias}
            differences[f"blocks.{index}.{ours}.weight"] = 0.5 * up @ down
            differences[f"blocks.{index}.{ours}.bias"] = bias
    return stored, differences


def fusionx() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A FusionX file: I2V, no alpha, with deltas of norms, biases and the input layer."""
    stored, differences = {}, {}
    for index in range(factory.LAYERS):
        for layer, (ours, rows, columns) in I2V_LAYERS.items():
            name = f"diffusion_model.blocks.{index}.{layer}"
            down, up = random(f"{name}.A", 8, columns), random(f"{name}.B", rows, 8)
            stored |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            differences[f"blocks.{index}.{ours}.weight"] = up @ down
        for original, ours in {
            "norm3.diff": "norm2.weight",
            "norm3.diff_b": "norm2.bias",
            "self_attn.norm_q.diff": "attn1.norm_q.weight",
            "cross_attn.norm_k_img.diff": "attn2.norm_added_k.weight",
        }.items():
            stored[f"diffusion_model.blocks.{index}.{original}"] = random(f"{original}{index}.bias", DIM)
            differences[f"blocks.{index}.{ours}"] = stored[f"diffusion_model.blocks.{index}.{original}"]
    stored["diffusion_model.patch_embedding.diff"] = random("patch", DIM, 36, 1, 2, 2)
    stored["diffusion_model.head.head.diff_b"] = random("head.bias", 64)
    differences["patch_embedding.weight"] = stored["diffusion_model.patch_embedding.diff"]
    differences["proj_out.bias"] = stored["diffusion_model.head.head.diff_b"]
    return stored, differences


def save(path: Path, stored: dict[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, path)
    return path


def plain_base() -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in factory.plain_transformer().named_parameters()}


def stack_on(transformer: InfiniteTalkTransformer3DModel) -> LoraStack:
    return LoraStack(transformer, plain_base().__getitem__)


def assert_fused(transformer: InfiniteTalkTransformer3DModel, *terms: tuple[float, dict[str, Tensor]]) -> None:
    """Every parameter is base + Σ scale · delta."""
    for name, parameter in plain_base().items():
        expected = parameter + sum(scale * differences.get(name, torch.zeros(())) for scale, differences in terms)
        torch.testing.assert_close(transformer.get_parameter(name).data, expected, atol=1e-5, rtol=1e-5, msg=name)


def test_mixed_loras_add_their_scaled_deltas_and_go_without_trace(tmp_path: Path) -> None:
    files, differences = {}, {}
    for name, (stored, difference) in {
        "fusionx": fusionx(),
        "t2v_rank32": lightx2v(32, i2v=False),
        "i2v_rank64": lightx2v(64, i2v=True),
    }.items():
        files[name], differences[name] = save(tmp_path / f"{name}.safetensors", stored), difference
    transformer = factory.plain_transformer()
    stack = stack_on(transformer)
    stack.apply(
        [
            ScaledLora(files["fusionx"], 1.0),
            ScaledLora(files["t2v_rank32"], -0.5),
            ScaledLora(files["i2v_rank64"], 0.7),
        ],
        CPU,
    )
    assert_fused(
        transformer, (1.0, differences["fusionx"]), (-0.5, differences["t2v_rank32"]), (0.7, differences["i2v_rank64"])
    )
    stack.apply([ScaledLora(files["t2v_rank32"], 1.0)], CPU)
    assert_fused(transformer, (1.0, differences["t2v_rank32"]))
    stack.remove()
    for name, parameter in plain_base().items():
        assert torch.equal(transformer.get_parameter(name), parameter), name


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("lora_down", "lora_A").replace("lora_up", "lora_B"),
        lambda name: name.removeprefix("diffusion_model."),
        lambda name: "lora_unet_" + name.removeprefix("diffusion_model.").replace(".", "_", 3),
    ],
    ids=["lora_A and lora_B", "no prefix", "musubi"],
)
def test_every_spelling_of_names_means_the_same(tmp_path: Path, rename: Callable[[str], str]) -> None:
    stored, differences = lightx2v(32, i2v=True)
    stored = {name: tensor for name, tensor in stored.items() if not name.endswith("diff_b")}
    differences = {name: tensor for name, tensor in differences.items() if name.endswith("weight")}
    transformer = factory.plain_transformer()
    file = save(tmp_path / "lora.safetensors", {rename(name): tensor for name, tensor in stored.items()})
    stack_on(transformer).apply([ScaledLora(file, 1.0)], CPU)
    assert_fused(transformer, (1.0, differences))


def test_diffusers_names_and_partial_files_are_served(tmp_path: Path) -> None:
    down, up = random("down", 4, DIM), random("up", DIM, 4)
    name = "blocks.1.attn2.add_k_proj"
    file = save(
        tmp_path / "lora.safetensors",
        {f"transformer.{name}.lora_A.default.weight": down, f"transformer.{name}.lora_B.default.weight": up},
    )
    transformer = factory.plain_transformer()
    stack_on(transformer).apply([ScaledLora(file, 2.0)], CPU)
    assert_fused(transformer, (2.0, {f"{name}.weight": up @ down}))


def test_the_input_layer_of_a_t2v_lora_changes_the_noise_channels(tmp_path: Path) -> None:
    difference = random("patch", DIM, 16, 1, 2, 2)
    file = save(tmp_path / "lora.safetensors", {"diffusion_model.patch_embedding.diff": difference})
    transformer = factory.plain_transformer()
    stack_on(transformer).apply([ScaledLora(file, 1.0)], CPU)
    padded = torch.cat([difference, torch.zeros(DIM, 20, 1, 2, 2)], dim=1)
    assert_fused(transformer, (1.0, {"patch_embedding.weight": padded}))


PAIR = {
    "diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.ones(4, DIM),
    "diffusion_model.blocks.0.self_attn.q.lora_up.weight": torch.ones(DIM, 4),
}


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"te.layer.lora_down.weight": torch.ones(1), "te.layer.lora_up.weight": torch.ones(1)}, "matches no layer"),
        (PAIR | {"diffusion_model.blocks.7.ffn.0.diff_b": torch.ones(4)}, r"blocks.7.ffn.0.diff_b, which matches no"),
        (PAIR | {"diffusion_model.head.tail.diff_b": torch.ones(4)}, r"head.tail.diff_b, which matches no layer"),
        (
            PAIR | {"diffusion_model.blocks.0.ffn.0.oft": torch.ones(4)},
            r"blocks.0.ffn.0.oft, which is not a known part of a L",
        ),
        (PAIR | {"diffusion_model.blocks.0.ffn.0.lora_up.weight": torch.ones(FFN, 4)}, "without its other half"),
        (PAIR | {"diffusion_model.blocks.0.ffn.0.alpha": torch.ones(())}, r"ffn.0.alpha without its other half"),
        (PAIR | {"diffusion_model.blocks.0.norm3.diff": torch.ones(3)}, r"norm3.diff is for a layer of the shape \[3"),
        (
            PAIR | {"diffusion_model.blocks.0.self_attn.q.lora_up.weight": torch.ones(DIM, 5)},
            r"self_attn.q.lora_down.weight is for a layer of the shape",
        ),
        (
            PAIR | {name.replace("lora_down", "lora_A"): PAIR[name].clone() for name in PAIR},
            r"lora_(A|down).weight for the same l",
        ),
        ({}, "matches no layer"),
    ],
)
def test_a_file_that_does_not_fit_names_the_tensor_and_changes_nothing(
    tmp_path: Path, stored: dict[str, Tensor], message: str
) -> None:
    transformer = factory.plain_transformer()
    stack = stack_on(transformer)
    file = save(tmp_path / "wrong.safetensors", stored)
    with pytest.raises(CheckpointError, match=message) as caught:
        stack.apply([ScaledLora(file, 1.0)], CPU)
    assert "wrong.safetensors" in str(caught.value)
    assert_fused(transformer)


def test_a_lora_that_is_broken_off_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = factory.plain_transformer()
    stack = stack_on(transformer)
    file = save(tmp_path / "lora.safetensors", lightx2v(4, i2v=True)[0])
    computed = []

    def run_out(delta: Delta, device: torch.device) -> Tensor:
        if len(computed) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        computed.append(delta)
        return torch.ones(delta.shape)

    monkeypatch.setattr(Delta, "compute", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        stack.apply([ScaledLora(file, 1.0)], CPU)
    stack.apply([], CPU)
    assert len(computed) == 3
    assert_fused(transformer)


def test_quantised_weights_keep_the_lora_beside_them(tmp_path: Path) -> None:
    base = factory.save_original_base(tmp_path / "base")
    adapters = factory.save_adapters(tmp_path / "adapters")
    paths = CheckpointPaths(base, factory.adapter_files(adapters), adapters)
    stored, differences = fusionx()
    file = save(tmp_path / "fusionx.safetensors", stored)
    for quantisation in ("fp8", "int8"):
        transformer = factory.load_transformer(paths, quantisation=quantisation)
        without = factory.evaluate(transformer)
        dequantised = {
            name: parameter.dequantize() if hasattr(parameter, "qdata") else parameter.clone()
            for name, parameter in transformer.named_parameters()
        }
        stack = LoraStack(transformer, dequantised.__getitem__)
        stack.apply([ScaledLora(file, 0.8)], CPU)
        plain = factory.plain_transformer()
        with torch.no_grad():
            for name, parameter in plain.named_parameters():
                parameter.copy_(dequantised[name] + 0.8 * differences.get(name, torch.zeros(())))
        torch.testing.assert_close(factory.evaluate(transformer), factory.evaluate(plain), atol=1e-3, rtol=1e-3)
        stack.remove()
        torch.testing.assert_close(factory.evaluate(transformer), without, atol=0, rtol=0)


def test_the_same_lora_for_every_job_takes_no_more_memory_and_leaves_by_itself(tmp_path: Path) -> None:
    base = factory.save_original_base(tmp_path / "base")
    adapters = factory.save_adapters(tmp_path / "adapters")
    loras = tmp_path / "loras"
    loras.mkdir()
    stored, differences = lightx2v(64, i2v=True)
    save(loras / "lightx2v.safetensors", stored)
    paths = CheckpointPaths(base, factory.adapter_files(adapters), adapters, loras=(loras,))
    models = Models(paths, CPU)

    def transformer(*wanted: tuple[str, float]) -> InfiniteTalkTransformer3DModel:
        return models.transformer(NetworkChoice(torch.float32, loras=find_loras([loras], wanted)))

    style = ("lightx2v.safetensors", 1.0)
    first = factory.evaluate(transformer(style))
    assert_fused(transformer(style), (1.0, differences))
    gc.collect()
    tensors = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(50):
        transformer(style)
    gc.collect()
    assert sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()) <= tensors
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 20_000
    assert torch.equal(factory.evaluate(transformer(style)), first)
    assert_fused(transformer())


def test_loras_are_found_below_their_folder_only(tmp_path: Path) -> None:
    (tmp_path / "loras" / "fast").mkdir(parents=True)
    save(tmp_path / "secret.safetensors", PAIR)
    file = save(tmp_path / "loras" / "fast" / "x.safetensors", PAIR)
    assert find_lora([tmp_path / "loras"], "fast/x.safetensors") == file
    for name in ("../secret.safetensors", "y.safetensors", "fast", str(tmp_path / "secret.safetensors")):
        with pytest.raises(CheckpointError, match=r"there are: fast/x.safetensors"):
            find_lora([tmp_path / "loras"], name)
    with pytest.raises(CheckpointError, match="set LORA_DIR"):
        find_lora([], "x")


def test_of_two_folders_with_a_lora_of_one_name_the_first_counts(tmp_path: Path) -> None:
    folders = [tmp_path / "pack", tmp_path / "mine"]
    for folder, name in ((folders[0], "both"), (folders[1], "both"), (folders[1], "own")):
        folder.mkdir(exist_ok=True)
        save(folder / f"{name}.safetensors", PAIR)
    assert lora_names(folders) == ["both.safetensors", "own.safetensors"]
    assert find_lora(folders, "both.safetensors") == folders[0] / "both.safetensors"
    assert find_lora(folders, "own.safetensors") == folders[1] / "own.safetensors"
