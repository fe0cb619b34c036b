"""Decoding and encoding of a chunk by precision and memory format: seconds, memory, and error."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from benchmarks.gpu.networks import Shape, make_plain_vae, make_vae, shape_of
from benchmarks.gpu.rows import Figure, Group, Row, allocated_gib, device, memory_figure, relative_error, release, timed
from infinitetalk.encoders.vae import decode_latents, encode_frames, without_tf32
from infinitetalk.runtime.memory import VAE_PIXEL_BYTES


@dataclass
class Vae:
    """The VAE, a chunk's latents, and the frames decoded from them without TF32.

    Attributes:
        expected: these frames on the CPU, once decoded.
    """

    shape: Shape
    vae: AutoencoderKLWan
    latents: Tensor
    expected: Tensor | None = None


def prepare(small: bool) -> Vae:
    """The published VAE."""
    shape = shape_of(small)
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(1, 16, *shape.chunk, generator=generator)
    # In real latents, neighbours are similar.
    soft = torch.nn.functional.avg_pool3d(latents, (1, 5, 5), stride=1, padding=(0, 2, 2)) * 4
    return Vae(shape, make_vae(shape), soft.to(device()))


def decoding(state: Vae, what: str, repeats: int = 1) -> Iterator[Figure]:
    """Decode the chunk with the VAE in its current state."""
    release()
    before = allocated_gib()
    took = timed(lambda: decode_latents(state.vae, state.latents), repeats)
    frames = decode_latents(state.vae, state.latents).cpu()
    error = ""
    if state.expected is None:
        state.expected = frames
    else:
        levels = (frames - state.expected).abs() * 127.5
        error = (
            f"relative error {relative_error(frames, state.expected):.2e}, "
            f"mean {levels.mean():.3f} and most {levels.max():.1f} levels of 255"
        )
    yield Figure(f"decoding of a chunk, {what}", took, "s", error)
    pixels = state.latents.shape[-1] * state.latents.shape[-2] * 64
    estimate = (VAE_PIXEL_BYTES + 12 * frames.shape[2]) * pixels / 2**30
    yield memory_figure(f"decoding of a chunk, {what}: memory beside weights", before, f"estimated {estimate:.2f}")


def float32(state: Vae) -> Iterator[Figure]:
    """Without TF32, the basis of the errors, and with TF32, torch's default."""
    with without_tf32():
        yield from decoding(state, "float32 without TF32")
    yield from decoding(state, "float32 with TF32", repeats=2)


def encoding(state: Vae) -> Iterator[Figure]:
    """A reference frame followed by grey, and the motion frames."""
    height, width = (8 * side for side in state.latents.shape[-2:])
    frames = torch.zeros(1, 3, 4 * (state.latents.shape[2] - 1) + 1, height, width, device=device())
    frames[:, :, 0] = torch.linspace(-1, 1, width, device=device())
    yield Figure("encoding of a reference for a chunk", timed(lambda: encode_frames(state.vae, frames), 1))
    yield Figure("encoding of 9 motion frames", timed(lambda: encode_frames(state.vae, frames[:, :, :9]), 1))


def tiles(state: Vae) -> Iterator[Figure]:
    """Decoding tile by tile."""
    state.vae.enable_tiling()
    yield from decoding(state, "float32 with TF32, in tiles")
    state.vae.disable_tiling()


def of_diffusers(state: Vae) -> Iterator[Figure]:
    """Decoding by the layers that diffusers gives the VAE: channels outermost, norms of five kernels."""
    lean, state.vae = state.vae, make_plain_vae(state.shape)
    yield from decoding(state, "float32 with TF32, diffusers' layers")
    state.vae = lean


def bfloat16(state: Vae) -> Iterator[Figure]:
    """Decoding in bf16. Must be the last row: the VAE stays in bf16."""
    state.vae.to(torch.bfloat16)
    yield from decoding(state, "bf16", repeats=2)
    yield from encoding(state)


GROUP = Group(
    "vae",
    prepare,
    (
        Row("float32", float32),
        Row("encoding", encoding),
        Row("tiles", tiles),
        Row("diffusers' layers", of_diffusers),
        Row("bf16", bfloat16),
    ),
)
