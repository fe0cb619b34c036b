"""Frames to latents and back."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from infinitetalk.encoders.vae import decode_latents, encode_frames


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
