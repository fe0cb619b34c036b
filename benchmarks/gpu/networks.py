"""Networks of the published sizes with random weights, and small ones that test the benchmark itself."""

import math
from dataclasses import dataclass, field

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from benchmarks.evaluation import EvaluationSize, halves, make_inputs
from benchmarks.gpu.rows import device
from infinitetalk.encoders.wan_layers import make_lean
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel


@dataclass(frozen=True)
class Shape:
    """The measured sizes; the defaults are the published ones.

    Attributes:
        config: arguments of the transformer's constructor.
        sizes: latent (frames, height, width) by name.
        side: side of the square matrices for the rate of a product.
        vae: arguments of the VAE's constructor.
        image_encoder: arguments of CLIP's configuration.
    """

    config: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int, int]] = field(
        default_factory=lambda: {
            "640x640, 81 frames": (21, 80, 80),
            "640x640, 33 frames": (9, 80, 80),
            "960x960, 81 frames": (21, 120, 120),
        }
    )
    side: int = 8192
    vae: dict[str, int] = field(default_factory=dict)
    image_encoder: dict[str, int] = field(
        default_factory=lambda: {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "patch_size": 14,
        }
    )

    @property
    def chunk(self) -> tuple[int, int, int]:
        """The size of most rows: a chunk with the published defaults."""
        return next(iter(self.sizes.values()))


PUBLISHED = Shape()
SMALL = Shape(
    config={"num_attention_heads": 2, "num_layers": 2, "ffn_dim": 512, "added_kv_proj_dim": 256},
    sizes={"640x640, 81 frames": (3, 8, 8), "640x640, 33 frames": (2, 8, 8), "960x960, 81 frames": (3, 8, 12)},
    side=256,
    vae={"base_dim": 8, "num_res_blocks": 1},
    image_encoder={
        "hidden_size": 1280,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 14,
    },
)


def shape_of(small: bool) -> Shape:
    """The published sizes, or those that test the benchmark."""
    return SMALL if small else PUBLISHED


def working_dtype() -> torch.dtype:
    """The transformer's dtype: bfloat16 on a GPU."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def make_transformer(shape: Shape, num_layers: int | None = None) -> InfiniteTalkTransformer3DModel:
    """A transformer of random weights on the device; each is created in its final dtype, never all in float32."""
    config = dict(shape.config) if num_layers is None else {**shape.config, "num_layers": num_layers}
    with torch.device("meta"):
        transformer = InfiniteTalkTransformer3DModel(**config).eval().requires_grad_(False)
    wide = tuple(transformer._keep_in_fp32_modules)
    torch.manual_seed(0)
    for name, parameter in list(transformer.named_parameters()):
        dtype = torch.float32 if any(part in name for part in wide) else working_dtype()
        owner, _, leaf = name.rpartition(".")
        value = torch.empty(parameter.shape, device=device(), dtype=dtype)
        if "norm" in name and leaf == "weight":
            value.fill_(1.0)
        elif value.ndim < 2:
            value.zero_()
        else:
            value.normal_(std=1.0 / math.sqrt(value[0].numel()))
        setattr(transformer.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    # The rotary embedding's tables are buffers, which have no numbers on the meta device.
    config_now = transformer.config
    transformer.rope = type(transformer.rope)(
        config_now.attention_head_dim, config_now.patch_size, config_now.rope_max_seq_len
    ).to(device())
    return transformer


def make_vae(shape: Shape) -> AutoencoderKLWan:
    """The VAE with random weights, float32, on the device."""
    vae = make_plain_vae(shape)
    make_lean(vae)
    return vae


def make_plain_vae(shape: Shape) -> AutoencoderKLWan:
    """The same with the layers that diffusers gives it."""
    torch.manual_seed(0)
    with torch.device(device()):
        return AutoencoderKLWan(**shape.vae).eval().requires_grad_(False)


def make_image_encoder(shape: Shape) -> CLIPVisionModel:
    """CLIP's vision tower with random weights, float32, on the device."""
    torch.manual_seed(0)
    with torch.device(device()):
        return CLIPVisionModel(CLIPVisionConfig(**shape.image_encoder)).eval().requires_grad_(False)


def inputs(size: tuple[int, int, int], dtype: torch.dtype, speakers: int = 1) -> dict[str, Tensor]:
    """Random inputs of `forward` for latents of (frames, height, width)."""
    evaluation = evaluation_size(size)
    given = {
        name: value.to(device(), torch.float32 if name == "timestep" else dtype)
        for name, value in make_inputs(evaluation, speakers).items()
    }
    if speakers > 1:
        given["regions"] = halves(evaluation).to(device())
    return given


def evaluation_size(size: tuple[int, int, int]) -> EvaluationSize:
    """The `EvaluationSize` for latents of (frames, height, width)."""
    frames, height, width = size
    return EvaluationSize(latent_frames=frames, height=height, width=width)


def evaluation_operations(transformer: InfiniteTalkTransformer3DModel, tokens: int) -> int:
    """Necessary operations of one evaluation: products with the blocks' weights, self-attention.

    Weights that process only text, image and speech are left out: they add less than 1 %.
    """
    elsewhere = ("attn2.to_k", "attn2.to_v", "attn2.add_k", "attn2.add_v", "kv_linear")
    products = sum(
        module.weight.numel()
        for name, module in transformer.blocks.named_modules()
        if isinstance(module, nn.Linear) and not any(part in name for part in elsewhere)
    )
    config = transformer.config
    dim = config.num_attention_heads * config.attention_head_dim
    return 2 * products * tokens + 4 * tokens**2 * dim * config.num_layers
