"""A model family is a value: another one is added here, and makes a video without a change to the library."""

import subprocess
import sys
import typing
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from infinitetalk.embedded.tiny import ensure_tiny_model
from infinitetalk.encoders.wav2vec2 import SpeechEmbeddings
from infinitetalk.family import FAMILIES, INFINITETALK, Family, Size
from infinitetalk.generation.pipeline import InfiniteTalkPipeline
from infinitetalk.generation.sampling import GenerationSettings
from infinitetalk.media.decode import Picture
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.memory import Workload
from infinitetalk.runtime.models import Models
from infinitetalk.runtime.networks import Networks
from infinitetalk.weights.layouts import CheckpointPaths
from schemas import SingleJob

#: Another patch, another compression of space, other latents, another window and other resolutions. (The VAE of
#: diffusers compresses four frames whatever its layers are.)
OTHER = replace(
    INFINITETALK,
    name="other",
    sizes={
        "other-tiny": Size(
            buckets={0.5: (32, 64), 1.0: (64, 64), 2.0: (64, 32)},
            shift=3.0,
            teacache_polynomial=(0.0,),
            usual_resolution=(64, 64),
        )
    },
    defaults=replace(INFINITETALK.defaults, size="other-tiny", negative_prompt="noise"),
    patch_size=(1, 4, 4),
    vae_scale_factor_spatial=4,
    latent_channels=8,
    audio_window=7,
)
HEADS, HEAD_DIM = 2, 32
CPU = torch.device("cpu")


def make_transformer(family: Family) -> InfiniteTalkTransformer3DModel:
    torch.manual_seed(0)
    channels = family.latent_channels
    return InfiniteTalkTransformer3DModel(
        patch_size=family.patch_size,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=2 * channels + family.vae_scale_factor_temporal,
        out_channels=channels,
        text_dim=64,
        freq_dim=16,
        ffn_dim=48,
        num_layers=2,
        image_dim=32,
        added_kv_proj_dim=HEADS * HEAD_DIM,
        audio_window=family.audio_window,
        audio_layers=family.audio_layers,
        audio_channels=32,
        audio_intermediate_dim=16,
        audio_output_dim=16,
        audio_context_tokens=4,
        vae_scale_factor_temporal=family.vae_scale_factor_temporal,
    ).eval()


def make_vae(family: Family) -> AutoencoderKLWan:
    """Two halvings of the picture, where the published one has three."""
    torch.manual_seed(0)
    channels = family.latent_channels
    return AutoencoderKLWan(
        base_dim=8,
        z_dim=channels,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
        scale_factor_temporal=family.vae_scale_factor_temporal,
        scale_factor_spatial=family.vae_scale_factor_spatial,
    ).eval()


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> CheckpointPaths:
    return ensure_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def networks(paths: CheckpointPaths) -> Networks:
    """The family's own transformer and VAE, beside the tiny model's encoders."""
    tiny = Models(paths, CPU).prepare(NetworkChoice(torch.float32))
    return replace(tiny, family=OTHER, size_scale=1.0, transformer=make_transformer(OTHER), vae=make_vae(OTHER))


@pytest.mark.parametrize("num_speakers", [1, 2])
def test_a_family_of_other_sizes_makes_a_video_of_several_chunks(networks: Networks, num_speakers: int) -> None:
    generator = torch.Generator().manual_seed(0)
    picture = Picture(torch.randint(0, 256, (3, 30, 60), dtype=torch.uint8, generator=generator))
    voices = [
        SpeechEmbeddings.from_tensor(torch.randn(13, OTHER.audio_layers, 32, generator=generator))
        for _ in range(num_speakers)
    ]
    settings = GenerationSettings(
        size="other-tiny", frame_num=9, max_frame_num=100, motion_frame=5, crossfade_frame=2, num_inference_steps=2
    )
    tokens = []
    handle = networks.transformer.blocks[0].register_forward_pre_hook(
        lambda _, arguments: tokens.append(arguments[0].shape[1])
    )
    chunks = list(InfiniteTalkPipeline(networks)(picture, voices, "A woman talks", settings))
    handle.remove()
    assert [chunk.plan.start for chunk in chunks] == [0, 4]
    assert np.concatenate([chunk.frames for chunk in chunks]).shape == (13, 32, 64, 3)
    assert set(tokens) == {OTHER.num_tokens(9, 32, 64)} == {Workload(9, 32, 64, OTHER).num_tokens} == {24}
    assert chunks[0].state is not None
    assert chunks[0].state.motion_latents.shape == (1, 8, 2, 8, 16)


def test_a_size_of_another_family_is_refused(networks: Networks) -> None:
    picture = Picture(torch.zeros(3, 30, 60, dtype=torch.uint8))
    voice = SpeechEmbeddings.from_tensor(torch.zeros(13, OTHER.audio_layers, 32))
    with pytest.raises(ValueError, match=r"infinitetalk-480.*use one of other-tiny"):
        list(InfiniteTalkPipeline(networks)(picture, [voice], "A woman talks", GenerationSettings()))


def test_a_checkpoints_family_says_what_its_files_do_not(paths: CheckpointPaths) -> None:
    """The tiny model's 5 rows of 12 layers of 32 channels are as many numbers as 5 rows of 6 layers of 64."""
    family = replace(INFINITETALK, audio_layers=6)
    networks = Models(replace(paths, family=family), CPU).prepare(NetworkChoice(torch.float32))
    assert networks.family is family
    config = networks.transformer.config
    assert (config.audio_window, config.audio_layers, config.audio_channels) == (5, 6, 64)


def test_families_are_known_by_their_names_and_have_what_their_defaults_name() -> None:
    for name, family in FAMILIES.items():
        assert family.name == name
        assert family.defaults.size in family.sizes
        assert set(family.default_repositories) <= family.repositories.keys()


def test_a_job_may_name_the_sizes_of_its_family() -> None:
    assert typing.get_args(SingleJob.model_fields["size"].annotation) == tuple(INFINITETALK.sizes)


def test_families_and_schemas_need_no_torch() -> None:
    code = "import sys; import infinitetalk.family, schemas; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
