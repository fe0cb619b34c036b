"""LoRA files by every name and setting that diffusers converts: our weights are those that diffusers and peft merge."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanImageToVideoPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_wan_lora_to_diffusers
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from infinitetalk.errors import CheckpointError
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime.lora import LoraStack, ScaledLora
from infinitetalk.weights.lora_files import ALPHA_UNKNOWN, CONFIG_VARIANTS, read_lora
from tests import checkpoint_factory as factory

CPU = torch.device("cpu")
Tensors = dict[str, Tensor]

SHAPES = {name: tuple(parameter.shape) for name, parameter in factory.plain_transformer().named_parameters()}
RENAMED = {original: ours for original, ours, _ in factory._transformer_names()}

#: Every linear layer of the base model by its original name: that of its weight, and rows and columns.
LAYERS = {
    original.removesuffix(".weight"): SHAPES[ours]
    for original, ours in RENAMED.items()
    if original.endswith(".weight") and len(SHAPES[ours]) == 2
}
BLOCK_LAYERS = {name: shape for name, shape in LAYERS.items() if name.startswith("blocks.")}


def random(name: str, *shape: int) -> Tensor:
    return factory.formula_weight(name, shape) * 0.3


def halves(layers: dict[str, tuple[int, ...]], down: str, up: str, rank: int = 4) -> Tensors:
    """A product for each layer."""
    stored = {}
    for name, (rows, columns) in layers.items():
        stored[f"{name}.{down}.weight"] = random(f"{name}.down", rank, columns)
        stored[f"{name}.{up}.weight"] = random(f"{name}.up", rows, rank)
    return stored


def alphas(layers: dict[str, tuple[int, ...]]) -> Tensors:
    return {f"{name}.alpha": torch.tensor(float(number % 5 + 1)) for number, name in enumerate(layers)}


def biases(layers: dict[str, tuple[int, ...]], ending: str = "diff_b") -> Tensors:
    return {f"{name}.{ending}": random(f"{name}.bias", rows) for name, (rows, _) in layers.items()}


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def underscored(tensors: Tensors) -> Tensors:
    """musubi's names."""
    renamed = {}
    for name, tensor in tensors.items():
        module, dot, ending = name.partition(".lora_") if ".lora_" in name else name.rpartition(".")
        renamed[f"lora_unet_{module.replace('.', '_')}{dot}{ending}"] = tensor
    return renamed


def diffusers_layers(tensors: Tensors) -> Tensors:
    """Names of layers as diffusers has them; endings stay."""
    renamed = {}
    for name, tensor in tensors.items():
        module = max((layer for layer in LAYERS if name.startswith(f"{layer}.")), key=len)
        ours = RENAMED[f"{module}.weight"].removesuffix(".weight")
        renamed[ours + name.removeprefix(module)] = tensor
    return renamed


def old_attention_processors() -> Tensors:
    """Of diffusers before peft."""
    stored = {}
    for name in ("to_q", "to_k", "to_v", "to_out"):
        for half, shape in (("down", (4, factory.DIM)), ("up", (factory.DIM, 4))):
            stored[f"blocks.0.attn1.processor.{name}_lora.{half}.weight"] = random(f"{name}.{half}", *shape)
    return stored


FILES: dict[str, Callable[[], Tensors]] = {
    "original, lora_A": lambda: prefixed(halves(LAYERS, "lora_A", "lora_B"), "diffusion_model."),
    "original, lora_down": lambda: prefixed(halves(LAYERS, "lora_down", "lora_up"), "diffusion_model."),
    "original, biases": lambda: prefixed(halves(LAYERS, "lora_A", "lora_B") | biases(LAYERS), "diffusion_model."),
    "original, alphas": lambda: prefixed(
        halves(BLOCK_LAYERS, "lora_down", "lora_up") | alphas(BLOCK_LAYERS), "diffusion_model."
    ),
    "original, head.diff": lambda: prefixed(
        halves(BLOCK_LAYERS, "lora_down", "lora_up", rank=8)
        | biases(BLOCK_LAYERS)
        | {"head.head.diff": random("head", *LAYERS["head.head"]), "head.head.diff_b": random("head.bias", 64)},
        "diffusion_model.",
    ),
    "original, T2V": lambda: prefixed(
        halves({name: shape for name, shape in BLOCK_LAYERS.items() if "_img" not in name}, "lora_A", "lora_B"),
        "diffusion_model.",
    ),
    "musubi": lambda: underscored(halves(BLOCK_LAYERS, "lora_down", "lora_up") | alphas(BLOCK_LAYERS)),
    "diffusers": lambda: prefixed(diffusers_layers(halves(LAYERS, "lora_A", "lora_B")), "transformer."),
    "diffusers, lora.down": lambda: prefixed(diffusers_layers(halves(LAYERS, "lora.down", "lora.up")), "transformer."),
    "diffusers, biases": lambda: prefixed(
        diffusers_layers(halves(LAYERS, "lora_A", "lora_B") | biases(LAYERS, "lora_B.bias")), "transformer."
    ),
    "diffusers, mixed ranks": lambda: prefixed(
        diffusers_layers(
            halves(BLOCK_LAYERS, "lora_A", "lora_B") | halves({"head.head": LAYERS["head.head"]}, "lora_A", "lora_B", 7)
        ),
        "transformer.",
    ),
    "diffusers, attention processors": lambda: prefixed(old_attention_processors(), "transformer."),
}


def merged_by_diffusers(path: Path) -> Tensors:
    """Every parameter once diffusers and peft have laid a file on the network."""
    transformer = factory.plain_transformer()
    state_dict, metadata = WanImageToVideoPipeline.lora_state_dict(str(path), return_lora_metadata=True)
    state_dict = WanImageToVideoPipeline._maybe_expand_t2v_lora_for_i2v(transformer, state_dict)
    WanImageToVideoPipeline.load_lora_into_transformer(state_dict, transformer, metadata=metadata)
    transformer.fuse_lora()
    return {
        name.replace(".base_layer.", "."): parameter.detach()
        for name, parameter in transformer.named_parameters()
        if ".lora_" not in name
    }


def merged_by_us(path: Path) -> InfiniteTalkTransformer3DModel:
    transformer = factory.plain_transformer()
    stack = LoraStack(transformer, lambda name: factory.plain_transformer().get_parameter(name))
    stack.apply([ScaledLora(path, 1.0)], CPU)
    return transformer


def assert_merged_as_by_diffusers(path: Path) -> None:
    expected, ours = merged_by_diffusers(path), dict(merged_by_us(path).named_parameters())
    assert expected.keys() == ours.keys()
    base = dict(factory.plain_transformer().named_parameters())
    assert any(not torch.equal(expected[name], base[name]) for name in base)
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter.data, expected[name], atol=2e-5, rtol=2e-5, msg=name)


@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
def test_every_format_that_diffusers_converts_gives_the_same_weights(
    make: Callable[[], Tensors], tmp_path: Path
) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(make(), path, metadata={"format": "pt"})
    assert_merged_as_by_diffusers(path)


def test_the_walk_holds_every_layer_that_diffusers_converts() -> None:
    """Whatever diffusers makes of a file with all layers, ours has a place for."""
    converted = _convert_non_diffusers_wan_lora_to_diffusers(
        prefixed(halves(LAYERS, "lora_A", "lora_B") | biases(LAYERS), "diffusion_model.")
    )
    layers = {name.removeprefix("transformer.").partition(".lora_")[0] for name in converted}
    linear = {name for name, module in factory.plain_transformer().named_modules() if isinstance(module, nn.Linear)}
    assert layers == {name for name in linear if not name.startswith("audio_proj") and "audio_cross_attn" not in name}


def train_adapter(**config: Any) -> InfiniteTalkTransformer3DModel:
    """A network with an adapter of peft's whose numbers are not zero."""
    transformer = factory.plain_transformer()
    transformer.add_adapter(
        LoraConfig(**{"r": 8, "init_lora_weights": False, "target_modules": ["to_q", "to_v"]} | config)
    )
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if ".lora_" in name:
                parameter.copy_(random(name.replace(".default", ""), *parameter.shape))
    return transformer


CONFIGS: dict[str, dict[str, Any]] = {
    "alpha": {"lora_alpha": 32},
    "rslora": {"lora_alpha": 6, "use_rslora": True},
    "patterns": {
        "lora_alpha": 16,
        "alpha_pattern": {r"blocks\.1\.attn1\.to_q": 3, "attn2.to_v": 40},
        "rank_pattern": {"attn1.to_v": 2},
    },
    "biases": {"lora_alpha": 12, "lora_bias": True},
    "every linear layer": {"lora_alpha": 4, "target_modules": "all-linear"},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_file_saved_by_diffusers_is_scaled_as_peft_scales_it(config: dict[str, Any], tmp_path: Path) -> None:
    """diffusers keeps alpha in the metadata alone."""
    from diffusers.training_utils import _collate_lora_metadata
    from peft.utils import get_peft_model_state_dict

    if config.get("target_modules") == "all-linear":
        config = config | {"target_modules": [RENAMED[f"{name}.weight"].removesuffix(".weight") for name in LAYERS]}
    transformer = train_adapter(**config)
    WanImageToVideoPipeline.save_lora_weights(
        tmp_path, get_peft_model_state_dict(transformer), **_collate_lora_metadata({"transformer": transformer})
    )
    path = tmp_path / "pytorch_lora_weights.safetensors"
    assert_merged_as_by_diffusers(path)
    transformer.fuse_lora()
    ours = merged_by_us(path)
    for name in ("blocks.0.attn1.to_q", "blocks.1.attn1.to_q", "blocks.0.attn1.to_v", "blocks.1.attn2.to_v"):
        merged = transformer.get_submodule(name).base_layer.weight
        torch.testing.assert_close(ours.get_parameter(f"{name}.weight").data, merged.data, atol=2e-5, rtol=2e-5)


def scaling_in(path: Path) -> float:
    """The factor on a file's only product."""
    (deltas,) = read_lora(path, SHAPES).deltas.values()
    (delta,) = deltas
    return delta.scaling


NAME = "blocks.0.self_attn.q"
PAIR = halves({NAME: LAYERS[NAME]}, "lora_A", "lora_B", rank=8)


def test_peft_keeps_alpha_in_a_file_beside_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    save_file(prefixed(PAIR, "base_model.model."), path)
    assert read_lora(path, SHAPES).warnings == (ALPHA_UNKNOWN.format(name="adapter_model.safetensors"),)
    LoraConfig(r=8, lora_alpha=32, target_modules=["q"]).save_pretrained(tmp_path)
    assert scaling_in(path) == 4.0
    assert read_lora(path, SHAPES).warnings == ()


@pytest.mark.parametrize(
    ("metadata", "scaling"),
    [
        ({}, 1.0),
        ({"lora_alpha": "32"}, 4.0),
        ({"alpha": "4.0"}, 0.5),
        ({"lora_alpha": "8", "use_rslora": "True"}, 8**0.5),
        ({"lora_alpha": "8", "alpha_pattern": '{"self_attn.q": 2}'}, 0.25),
        ({"lora_config": json.dumps({"r": 8, "lora_alpha": 16, "init_lora_weights": True})}, 2.0),
        ({LORA_ADAPTER_METADATA_KEY: json.dumps({"r": 8, "lora_alpha": 16}), "lora_alpha": "16"}, 2.0),
        ({LORA_ADAPTER_METADATA_KEY: json.dumps({"r": 8, "lora_alpha": 16}), "alpha": "8"}, None),
        ({"ss_network_alpha": "1", "ss_network_dim": "8"}, 1.0),
    ],
    ids=[
        "nothing",
        "lora_alpha",
        "alpha",
        "rslora",
        "pattern",
        "finetrainers",
        "twice",
        "contradiction",
        "kohya's leftover",
    ],
)
def test_settings_in_the_metadata_are_heeded(metadata: dict[str, str], scaling: float | None, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(prefixed(PAIR, "diffusion_model."), path, metadata=metadata)
    if scaling is None:
        with pytest.raises(CheckpointError, match="contradict"):
            read_lora(path, SHAPES)
    else:
        assert scaling_in(path) == pytest.approx(scaling)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({LORA_ADAPTER_METADATA_KEY: "{"}, "is not JSON"),
        ({LORA_ADAPTER_METADATA_KEY: "[" * 100_000}, "is not JSON"),
        ({LORA_ADAPTER_METADATA_KEY: "[]"}, "not a JSON object"),
        ({LORA_ADAPTER_METADATA_KEY: '{"transformer.lora_alpha": "much"}'}, "lora_alpha is 'much'"),
        ({LORA_ADAPTER_METADATA_KEY: '{"transformer.lora_alpha": NaN}'}, "not a finite number"),
        ({LORA_ADAPTER_METADATA_KEY: '{"lora_alpha": 8, "r": 4}'}, "has the rank 8, and the file's settings say 4"),
        ({LORA_ADAPTER_METADATA_KEY: '{"lora_alpha": 8, "alpha_pattern": {"(": 4}}'}, "cannot be read"),
        ({LORA_ADAPTER_METADATA_KEY: '{"lora_alpha": 8, "alpha_pattern": [4]}'}, "alpha_pattern"),
        ({LORA_ADAPTER_METADATA_KEY: '{"use_rslora": true}'}, "use_rslora but not lora_alpha"),
        ({LORA_ADAPTER_METADATA_KEY: '{"use_rslora": "yes"}'}, "neither true nor false"),
        ({LORA_ADAPTER_METADATA_KEY: '{"transformer.use_dora": true}'}, "is a DoRA"),
        (
            {LORA_ADAPTER_METADATA_KEY: '{"init_lora_weights": "pissa_niter_4"}'},
            "pissa_niter_4, which changes the base",
        ),
        ({"lora_alpha": "much"}, "lora_alpha is 'much'"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(metadata: dict[str, str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(prefixed(PAIR, "diffusion_model."), path, metadata=metadata)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_lora(path, SHAPES)
    assert "lora.safetensors" in str(caught.value)


def test_alphas_in_tensors_and_metadata_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    tensors = prefixed(PAIR | {f"{NAME}.alpha": torch.tensor(16.0)}, "diffusion_model.")
    save_file(tensors, path, metadata={"lora_alpha": "16"})
    assert scaling_in(path) == 2.0
    save_file(tensors, path, metadata={"lora_alpha": "8"})
    with pytest.raises(CheckpointError, match=r"self_attn.q.alpha is 16, and the file's settings make it 8"):
        read_lora(path, SHAPES)


def test_every_variant_that_peft_knows_is_refused() -> None:
    variants = {field.name for field in dataclasses.fields(LoraConfig) if field.metadata.get("is_lora_variant")}
    assert variants <= CONFIG_VARIANTS.keys()
    assert CONFIG_VARIANTS.keys() <= {field.name for field in dataclasses.fields(LoraConfig)}


def test_lightx2vs_full_layout_changes_modulation_norms_and_head(tmp_path: Path) -> None:
    """Its extractor writes lora_down, lora_up, diff (weights), diff_b (biases) and diff_m (modulation)."""
    pair = halves(BLOCK_LAYERS, "lora_down", "lora_up")
    whole = {
        "blocks.0.diff_m": "blocks.0.scale_shift_table",
        "blocks.1.diff_m": "blocks.1.scale_shift_table",
        "head.diff_m": "scale_shift_table",
        "head.head.diff": "proj_out.weight",
        "head.head.diff_b": "proj_out.bias",
        "blocks.0.norm3.diff": "blocks.0.norm2.weight",
        "blocks.0.norm3.diff_b": "blocks.0.norm2.bias",
        "blocks.1.self_attn.norm_k.diff": "blocks.1.attn1.norm_k.weight",
        "blocks.1.cross_attn.norm_k_img.diff": "blocks.1.attn2.norm_added_k.weight",
        "blocks.0.self_attn.q.diff_b": "blocks.0.attn1.to_q.bias",
        "patch_embedding.diff": "patch_embedding.weight",
        "img_emb.proj.0.diff": "condition_embedder.image_embedder.norm1.weight",
        "img_emb.proj.4.diff_b": "condition_embedder.image_embedder.norm2.bias",
        "time_projection.1.diff_b": "condition_embedder.time_proj.bias",
    }
    stored = {name: random(name, *SHAPES[ours]) for name, ours in whole.items()}
    path = tmp_path / "lightx2v.safetensors"
    save_file(prefixed(pair | stored, "diffusion_model."), path)
    merged, base = merged_by_us(path), factory.plain_transformer()
    for name, ours in whole.items():
        expected = base.get_parameter(ours) + stored[name]
        torch.testing.assert_close(merged.get_parameter(ours).data, expected.data, msg=name)
    for name, shape in BLOCK_LAYERS.items():
        ours = RENAMED[f"{name}.weight"]
        expected = base.get_parameter(ours) + pair[f"{name}.lora_up.weight"] @ pair[f"{name}.lora_down.weight"]
        assert expected.shape == shape
        torch.testing.assert_close(merged.get_parameter(ours).data, expected.data, atol=1e-5, rtol=1e-5, msg=name)


DOWN, UP = f"{NAME}.lora_A.weight", f"{NAME}.lora_B.weight"
FLAT = "blocks_0_self_attn_q"


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (f"lora_unet__{FLAT}.lora_down.weight", f"lora_unet__{FLAT}.lora_up.weight"),
        (f"lora_unet_{FLAT}.lora_down.weight", f"lora_unet_{FLAT}.lora_up.weight"),
        (f"lycoris_{FLAT}.lora_down.weight", f"lycoris_{FLAT}.lora_up.weight"),
        (
            "lora_transformer_blocks_0_attn1_to_q.lora_down.weight",
            "lora_transformer_blocks_0_attn1_to_q.lora_up.weight",
        ),
        (f"pipe.dit.{DOWN}", f"pipe.dit.{UP}"),
        (f"base_model.model.diffusion_model.{DOWN}", f"base_model.model.diffusion_model.{UP}"),
        (f"model.diffusion_model.{DOWN}", f"model.diffusion_model.{UP}"),
        (f"{NAME}.lora_A.my_style.weight", f"{NAME}.lora_B.my_style.weight"),
        (f"{NAME}.lora.down.weight", f"{NAME}.lora.up.weight"),
        (f"{NAME}.lora_linear_layer.down.weight", f"{NAME}.lora_linear_layer.up.weight"),
        (f"{NAME}.lora_A", f"{NAME}.lora_B"),
        ("transformer.blocks.0.attn1.to_q.lora_A.weight", "transformer.blocks.0.attn1.to_q.lora_B.weight"),
    ],
)
def test_every_plain_name_is_served(down: str, up: str, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({down: PAIR[DOWN], up: PAIR[UP]}, path)
    expected = factory.plain_transformer().get_parameter("blocks.0.attn1.to_q.weight") + PAIR[UP] @ PAIR[DOWN]
    merged = merged_by_us(path).get_parameter("blocks.0.attn1.to_q.weight")
    torch.testing.assert_close(merged.data, expected.data, atol=1e-5, rtol=1e-5)


def test_a_bias_beside_the_second_matrix_is_scaled_with_it(tmp_path: Path) -> None:
    path = tmp_path / "lora.SAFETENSORS"
    bias = random("b.bias", factory.DIM)
    save_file(PAIR | {f"{NAME}.lora_B.bias": bias, f"{NAME}.alpha": torch.tensor(4.0)}, path)
    expected = factory.plain_transformer().get_parameter("blocks.0.attn1.to_q.bias") + 0.5 * bias
    torch.testing.assert_close(merged_by_us(path).get_parameter("blocks.0.attn1.to_q.bias").data, expected.data)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        (f"{NAME}.dora_scale", "a DoRA"),
        (f"{NAME}.lora_magnitude_vector", "a DoRA"),
        (f"{NAME}.hada_w1_a", "a LoHa"),
        (f"{NAME}.lokr_w1", "a LoKr"),
        (f"{NAME}.lora_mid.weight", "a LoCon of three"),
        (f"{NAME}.oft_blocks", "an OFT"),
    ],
)
def test_other_methods_are_refused_by_name(name: str, method: str, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(PAIR | {name: torch.ones(4)}, path)
    with pytest.raises(CheckpointError, match=f"lora.safetensors is {method}.*{name}.*plain LoRA"):
        read_lora(path, SHAPES)
