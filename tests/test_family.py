"""A model family is a value: another one is added here, and makes a video without a change to the library."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from infinitetalk.embedded.tiny import ensure_tiny_model
from infinitetalk.encoders.wav2vec2 import SpeechEmbeddings
from infinitetalk.family import FAMILIES, FLASHTALK, INFINITETALK, Family, Size
from infinitetalk.generation.pipeline import ChunkState, InfiniteTalkPipeline
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


@pytest.fixture(scope="module")
def flashtalk(paths: CheckpointPaths) -> Networks:
    """FlashTalk's family with the tiny model's networks, which are of the same kind."""
    return Models(replace(paths, family=FLASHTALK), CPU).prepare(NetworkChoice(torch.float32))


def flashtalk_settings(**changes: object) -> GenerationSettings:
    """The family's default values."""
    defaults = FLASHTALK.defaults
    settings = GenerationSettings(
        size=defaults.size,
        frame_num=defaults.frame_num,
        max_frame_num=defaults.max_frame_num,
        motion_frame=defaults.motion_frame,
        crossfade_frame=defaults.crossfade_frame,
        num_inference_steps=defaults.num_inference_steps,
        shift=FLASHTALK.size(defaults.size).shift,
        text_guide_scale=defaults.text_guide_scale,
        audio_guide_scale=defaults.audio_guide_scale,
        color_correction_strength=defaults.color_correction_strength,
    )
    return replace(settings, **changes)


def flashtalk_inputs(num_frames: int) -> tuple[Picture, SpeechEmbeddings]:
    generator = torch.Generator().manual_seed(0)
    picture = Picture(torch.randint(0, 256, (3, 60, 60), dtype=torch.uint8, generator=generator))
    return picture, SpeechEmbeddings.from_tensor(torch.randn(num_frames, 12, 32, generator=generator))


def test_flashtalks_values_are_its_published_ones() -> None:
    settings = flashtalk_settings()
    assert (settings.frame_num, settings.motion_frame, settings.num_inference_steps) == (33, 5, 4)
    assert (settings.shift, settings.text_guide_scale, settings.audio_guide_scale) == (5.0, 1.0, 1.0)
    assert settings.color_correction_strength == 1.0
    assert {size.shift for size in FLASHTALK.sizes.values()} == {5.0}
    assert {name: size.buckets for name, size in FLASHTALK.sizes.items()} == {
        name: size.buckets for name, size in INFINITETALK.sizes.items()
    }
    assert FLASHTALK.adapters == ("single",)
    # A minute at 640x640: 54 chunks of 4 evaluations of 14,400 tokens.
    assert (settings.grid(FLASHTALK).num_chunks(1500), FLASHTALK.num_tokens(33, 640, 640)) == (54, 14_400)


def test_flashtalk_takes_one_evaluation_a_step_shows_every_frame_and_resumes_with_the_same_frames(
    flashtalk: Networks,
) -> None:
    picture, voice = flashtalk_inputs(21)
    settings = flashtalk_settings(frame_num=17, num_inference_steps=2)
    pipeline = InfiniteTalkPipeline(flashtalk)
    evaluated = []
    handle = flashtalk.transformer.register_forward_pre_hook(lambda *_: evaluated.append(None))
    first, second = pipeline(picture, [voice], "A woman talks", settings)
    handle.remove()
    assert len(evaluated) == first.evaluations + second.evaluations == 4
    assert len(first.frames) + len(second.frames) == 21
    assert first.state is not None
    assert first.state.motion_latents.shape[2] == 2
    state = ChunkState.from_bytes(first.state.to_bytes())
    (resumed,) = pipeline(picture, [voice], "A woman talks", settings, state=state)
    assert np.array_equal(resumed.frames, second.frames)


def test_several_speakers_are_refused_where_a_family_knows_one(flashtalk: Networks) -> None:
    picture, voice = flashtalk_inputs(13)
    with pytest.raises(ValueError, match="there are 2 speakers; SoulX-FlashTalk-14B knows only one"):
        list(InfiniteTalkPipeline(flashtalk)(picture, [voice, voice], "They talk", flashtalk_settings()))


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
    names, _ = SingleJob.model_json_schema()["properties"]["size"]["oneOf"]
    assert names["enum"] == list(INFINITETALK.sizes)


@pytest.mark.parametrize("name", INFINITETALK.sizes)
def test_a_tables_own_resolution_is_nearest_to_that_table(name: str) -> None:
    for height, width in INFINITETALK.sizes[name].buckets.values():
        assert INFINITETALK.nearest_size(height, width) == name


@pytest.mark.parametrize(
    ("height", "width", "name"),
    [
        (480, 832, "infinitetalk-480"),
        (128, 128, "infinitetalk-480"),
        (720, 1280, "infinitetalk-720"),
        (1088, 1920, "infinitetalk-720"),
        (2048, 128, "infinitetalk-480"),
    ],
)
def test_any_other_resolution_goes_by_the_table_with_the_nearest_number_of_pixels(height, width, name) -> None:
    assert INFINITETALK.nearest_size(height, width) == name


def test_families_and_schemas_need_no_torch() -> None:
    code = "import sys; import infinitetalk.family, schemas; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
