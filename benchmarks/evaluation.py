"""One evaluation of the transformer: against its bare matrix products, against the reference, and with two speakers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.measure import Comparison, Goal, Measurement, compare
from benchmarks.reference import UNSET, build_reference, reference_folder, reference_inputs
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel

#: The published network's proportions.
HEAD_DIM = 128
FFN_RATIO = 13824 / 5120


@dataclass(frozen=True)
class EvaluationSize:
    """Sizes of a network and its input.

    Attributes:
        dim: width, a multiple of 128, the published width of a head.
        num_layers: number of blocks.
        latent_frames, height, width: size of the latents; a token is 1×2×2 of them.
    """

    dim: int = 512
    num_layers: int = 8
    latent_frames: int = 5
    height: int = 48
    width: int = 68

    @property
    def tokens(self) -> int:
        """Number of video tokens."""
        return self.latent_frames * self.height * self.width // 4

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens, width {self.dim}, {self.num_layers} blocks"


def make_transformer(size: EvaluationSize) -> InfiniteTalkTransformer3DModel:
    """Our network with random weights; text, image and speech have their published widths."""
    torch.manual_seed(0)
    return InfiniteTalkTransformer3DModel(
        num_attention_heads=size.dim // HEAD_DIM,
        attention_head_dim=HEAD_DIM,
        ffn_dim=HEAD_DIM * round(size.dim * FFN_RATIO / HEAD_DIM),
        num_layers=size.num_layers,
        added_kv_proj_dim=size.dim,
    ).eval()


def make_inputs(size: EvaluationSize, speakers: int = 1) -> dict[str, Tensor]:
    """Random inputs of `forward`, without regions."""
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "hidden_states": (1, 36, size.latent_frames, size.height, size.width),
        "encoder_hidden_states": (1, 512, 4096),
        "encoder_hidden_states_image": (1, 257, 1280),
        "encoder_hidden_states_audio": (speakers, 4 * size.latent_frames - 3, 5, 12, 768),
    }
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**tensors, "timestep": torch.tensor([500.0])}


def halves(size: EvaluationSize) -> Tensor:
    """Regions of two speakers side by side, and no background: bool (3, height, width)."""
    regions = torch.zeros(3, size.height, size.width, dtype=torch.bool)
    regions[0, :, : size.width // 2], regions[1, :, size.width // 2 :] = True, True
    return regions


@dataclass
class Products(TorchFunctionMode):
    """Records every matrix product and attention that is computed inside its context.

    Attributes:
        calls: functions that recompute each alone, on other numbers of the same shapes, without bias.
    """

    calls: list[Callable[[], Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        if function is F.linear:
            self._record_product(arguments[0].flatten(0, -2).shape, arguments[1].shape)
        elif function is F.scaled_dot_product_attention:
            query, key, value = (torch.randn(tensor.shape) for tensor in (*arguments, *keywords.values())[:3])
            self.calls.append(lambda: F.scaled_dot_product_attention(query, key, value))
        result = function(*arguments, **keywords)
        if function is torch.conv3d:
            # Patches do not overlap, so this is a product of (tokens, patch elements) and the weight.
            self._record_product((result[0, 0].numel(), arguments[1][0].numel()), arguments[1].flatten(1).shape)
        return result

    def run(self) -> None:
        """Computes all of them, one after another."""
        for call in self.calls:
            call()

    def _record_product(self, left: tuple[int, ...], right: tuple[int, ...]) -> None:
        left, right = torch.randn(left), torch.randn(right)
        self.calls.append(lambda: F.linear(left, right))


@torch.no_grad()
def against_products(size: EvaluationSize, repeats: int) -> Comparison:
    """Compares one evaluation with one speaker and its products and attentions alone."""
    transformer, given = make_transformer(size), make_inputs(size)
    with Products() as products:
        transformer(**given)
    return compare(lambda: transformer(**given), products.run, repeats)


@torch.no_grad()
def against_reference(size: EvaluationSize, repeats: int) -> Comparison:
    """Compares the reference's evaluation and ours, for the same weights and inputs.

    Raises:
        AssertionError: the results differ.
    """
    transformer, given = make_transformer(size), make_inputs(size)
    reference, reference_given = build_reference(transformer), reference_inputs(given, None)
    ours, theirs = transformer(**given).sample, reference(**reference_given)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)
    return compare(lambda: reference(**reference_given), lambda: transformer(**given), repeats)


@torch.no_grad()
def two_speakers(size: EvaluationSize, repeats: int) -> Comparison:
    """Compares an evaluation with two speakers and one with one speaker."""
    transformer = make_transformer(size)
    one, two, regions = make_inputs(size), make_inputs(size, speakers=2), halves(size)
    return compare(lambda: transformer(**two, regions=regions), lambda: transformer(**one), repeats)


def measure_evaluation(size: EvaluationSize, repeats: int) -> list[Measurement]:
    """The table's rows about one evaluation."""
    bare = against_products(size, repeats)
    rows = [
        Measurement(
            "one evaluation, one speaker, float32",
            "its bare products and attention",
            Goal(1.15),
            bare.ratio,
            f"{size}: {bare}",
        )
    ]
    reference = against_reference(size, repeats) if reference_folder() else None
    rows.append(
        Measurement(
            "one evaluation, one speaker, float32",
            "the reference, same weights",
            Goal(1.3, at_least=True, unit="× faster"),
            None if reference is None else reference.ratio,
            UNSET if reference is None else f"{size}: {reference}",
        )
    )
    both = two_speakers(size, repeats)
    rows.append(Measurement("two speakers", "one speaker", Goal(1.25), both.ratio, f"{size}: {both}"))
    return rows
