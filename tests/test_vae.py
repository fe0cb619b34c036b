"""Frames to latents and back."""

import copy

import pytest
import torch
from diffusers import AutoencoderKLWan

from infinitetalk.encoders.vae import decode_in_groups, decode_latents, encode_frames
from infinitetalk.encoders.wan_layers import ChannelNorm, Upsample, make_lean


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=4, num_res_blocks=1).eval()


@pytest.mark.parametrize(("num_frames", "num_latents"), [(1, 1), (4, 1), (5, 2), (9, 3), (11, 3)])
def test_spare_frames_change_nothing(vae: AutoencoderKLWan, num_frames: int, num_latents: int) -> None:
    frames = torch.rand(1, 3, num_frames, 16, 24) * 2 - 1
    latents = encode_frames(vae, frames)
    assert latents.shape == (1, 16, num_latents, 2, 3)
    assert torch.equal(latents, encode_frames(vae, frames[:, :, : 4 * num_latents - 3]))


def test_latents_are_those_of_the_vae_normalised_per_channel(vae: AutoencoderKLWan) -> None:
    frames = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    with torch.no_grad():
        mode = vae.encode(frames).latent_dist.mode()
    channel = 7
    expected = (mode[:, channel] - vae.config.latents_mean[channel]) / vae.config.latents_std[channel]
    torch.testing.assert_close(encode_frames(vae, frames)[:, channel], expected, atol=1e-6, rtol=1e-5)


def test_decoding_inverts_the_normalisation_and_clamps(vae: AutoencoderKLWan) -> None:
    latents = torch.randn(1, 16, 3, 2, 2) * 20
    frames = decode_latents(vae, latents)
    assert frames.shape == (1, 3, 9, 16, 16)
    scale, shift = torch.tensor(vae.config.latents_std), torch.tensor(vae.config.latents_mean)
    with torch.no_grad():
        raw = vae.decode(latents * scale.view(1, 16, 1, 1, 1) + shift.view(1, 16, 1, 1, 1)).sample
    torch.testing.assert_close(frames, raw.clamp(-1, 1), atol=1e-5, rtol=1e-5)


def moved_norms(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Its norms' weights are not all one."""
    moved = copy.deepcopy(vae)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in moved.named_parameters():
        if name.endswith("gamma"):
            parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    return moved


@pytest.mark.parametrize("num_frames", [1, 5, 13])
def test_lean_layers_compute_what_diffusers_compute(vae: AutoencoderKLWan, num_frames: int) -> None:
    published = moved_norms(vae)
    lean = copy.deepcopy(published)
    make_lean(lean)
    frames = torch.rand(1, 3, num_frames, 24, 16) * 2 - 1
    latents = encode_frames(published, frames)
    torch.testing.assert_close(encode_frames(lean, frames), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decode_latents(lean, latents), decode_latents(published, latents), atol=1e-5, rtol=1e-5)


def test_lean_layers_in_tiles_compute_what_diffusers_compute(vae: AutoencoderKLWan) -> None:
    published = moved_norms(vae)
    lean = copy.deepcopy(published)
    make_lean(lean)
    latents = torch.randn(1, 16, 2, 12, 6)
    for each in (published, lean):
        each.enable_tiling(64, 32, 32, 32)
    torch.testing.assert_close(decode_latents(lean, latents), decode_latents(published, latents), atol=1e-5, rtol=1e-5)


def test_lean_layers_round_no_more_than_diffusers_in_bf16(vae: AutoencoderKLWan) -> None:
    published = moved_norms(vae)
    latents = torch.randn(1, 16, 3, 4, 4)
    exact = decode_latents(published, latents)
    published.to(torch.bfloat16)
    lean = copy.deepcopy(published)
    make_lean(lean)
    ours, theirs = ((decode_latents(each, latents) - exact).norm() for each in (lean, published))
    assert ours < 1.2 * theirs


def test_lean_layers_leave_channels_innermost(vae: AutoencoderKLWan) -> None:
    """As the weights of convolutions have them, whose results follow their weights on a GPU."""
    lean = copy.deepcopy(vae)
    make_lean(lean)
    for module in lean.modules():
        if isinstance(module, torch.nn.Conv3d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(module, torch.nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
    norm, (upsample, *_) = lean.decoder.norm_out, (m for m in lean.modules() if isinstance(m, Upsample))
    assert isinstance(norm, ChannelNorm)
    normed = norm(torch.randn(1, 4, 3, 5, 6).contiguous(memory_format=torch.channels_last_3d))
    assert normed.is_contiguous(memory_format=torch.channels_last_3d)
    assert upsample(torch.randn(2, 4, 5, 6)).is_contiguous(memory_format=torch.channels_last)


def test_a_norm_of_nothing_is_nothing() -> None:
    pixels = torch.zeros(1, 4, 1, 2, 2)
    assert torch.equal(ChannelNorm(4, images=False)(pixels), pixels)


@pytest.mark.parametrize("in_patches", [False, True])
def test_frames_that_come_in_groups_are_those_that_come_at_once(vae: AutoencoderKLWan, in_patches: bool) -> None:
    if in_patches:
        vae = AutoencoderKLWan(
            base_dim=4, num_res_blocks=1, in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16
        )
    latents = torch.randn(1, 16, 3, 4, 6)
    groups: list[torch.Tensor] = []
    decode_in_groups(vae, latents, groups.append)
    assert [group.shape[2] for group in groups] == [1, 4, 4]
    assert torch.equal(torch.cat(groups, dim=2), decode_latents(vae, latents))


def test_the_number_of_threads_is_restored(vae: AutoencoderKLWan) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        encode_frames(vae, torch.zeros(1, 3, 1, 16, 16))
        assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError):
            encode_frames(vae, torch.zeros(1, 5, 1, 16, 16))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
