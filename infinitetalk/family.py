"""Model families: all differences between published models that are data and not code.

Modules take a family, or the few facts that they need from it, as an argument. A new family is a new row of `FAMILIES`.
This module imports nothing heavy, so that a job can be validated before torch is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

#: Adapters that add lip movement to a base model: one for one speaker, one for several.
AdapterKind = Literal["single", "multi"]


@dataclass(frozen=True)
class Size:
    """A table of resolutions that jobs name, and the values tuned for it.

    Attributes:
        buckets: height/width of the source -> (height, width) of the video in pixels, in table order.
        shift: default shift of the noise schedule.
        teacache_polynomial: coefficients, highest power first, that turn a change of the time embedding into an
            expected change of the network's output; empty where none are known, so that TeaCache cannot be used.
        usual_resolution: (height, width) in pixels for which memory estimates are given.
    """

    buckets: Mapping[float, tuple[int, int]]
    shift: float
    teacache_polynomial: tuple[float, ...]
    usual_resolution: tuple[int, int]

    def bucket(self, ratio: float) -> tuple[int, int]:
        """(height, width) of the entry nearest to a source's height/width, the first one on a tie."""
        return self.buckets[min(self.buckets, key=lambda key: abs(key - ratio))]


@dataclass(frozen=True)
class Defaults:
    """Default values of a job.

    Attributes:
        size: name of a `Size`.
        frame_num: video frames of a chunk.
        max_frame_num: largest number of video frames, in several chunks.
        motion_frame: frames that a chunk takes over from the one before.
        crossfade_frame: largest number of these in which the video fades from one chunk to the next.
        num_inference_steps: sampling steps.
        text_guide_scale, audio_guide_scale: guidance.
        apg_momentum, apg_norm_threshold: adaptive projected guidance, if a job asks for it.
        teacache_threshold: TeaCache, if a job asks for it.
        color_correction_strength: 0 (off) … 1.
        negative_prompt: describes what the video should not show.
    """

    size: str
    frame_num: int
    max_frame_num: int
    motion_frame: int
    crossfade_frame: int
    num_inference_steps: int
    text_guide_scale: float
    audio_guide_scale: float
    apg_momentum: float
    apg_norm_threshold: float
    teacache_threshold: float
    color_correction_strength: float
    negative_prompt: str


@dataclass(frozen=True)
class Renoising:
    """How a few-step model is sampled: each step goes to the noiseless latents and back to the next, lower level.

    Attributes:
        timesteps: number of sampling steps -> the timesteps before the shift, decreasing, 1000 at the start; any other
            number of steps is spread evenly from 1000 to 1.
    """

    timesteps: Mapping[int, tuple[float, ...]]


@dataclass(frozen=True)
class ModelSizes:
    """A checkpoint's numbers of parameters, from its files' headers.

    Attributes:
        blocks: parameters of the linear layers in the transformer's blocks, which are quantised and streamed.
        num_blocks: number of the transformer's blocks.
        outer: the transformer's other parameters.
        dim: the transformer's width.
        text_encoder, image_encoder, vae: parameters of these networks.
        lora_bytes: size of the LoRAs that stay beside quantised weights.
    """

    blocks: int
    num_blocks: int
    outer: int
    dim: int
    text_encoder: int
    image_encoder: int
    vae: int
    lora_bytes: int = 0


@dataclass(frozen=True)
class Repository:
    """A repository and its required files.

    Attributes:
        repo_id: its name on Hugging Face.
        setting: the setting for its folder.
        patterns: patterns of the required files.
    """

    repo_id: str
    setting: str
    patterns: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name without its owner: the name of its folder."""
        return self.repo_id.rpartition("/")[2]


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: its name in settings and tables.
        model_name: name of its published checkpoint in results and logs.
        sizes: tables of resolutions by name.
        defaults: default values of a job.
        renoising: how the model is sampled, if it was distilled to few steps; None: by Euler's method.
        patch_size: latents that become one token: frames, rows, columns.
        vae_scale_factor_temporal: video frames per latent frame, except the first, which holds one; also the number of
            mask channels that mark the given frames for the network.
        vae_scale_factor_spatial: pixels per latent, in each direction.
        latent_channels: channels of the VAE's latents.
        audio_window: rows of speech embeddings that each video frame reads, an odd number.
        audio_layers: number of audio encoder layers with outputs in a row.
        model_sizes: numbers of parameters of the published checkpoint.
        evaluated_parameters: number of the transformer's parameters that are multiplied with every token.
        adapters: adapters beside the base model.
        repositories: the downloadable repositories, by name.
        base_repositories: names of those that hold the base model; a worker needs one, by default the first.
        adapter_repository: name of the one that holds the adapters; None: they are among the base model's tensors.
    """

    name: str
    model_name: str
    sizes: Mapping[str, Size]
    defaults: Defaults
    renoising: Renoising | None
    patch_size: tuple[int, int, int]
    vae_scale_factor_temporal: int
    vae_scale_factor_spatial: int
    latent_channels: int
    audio_window: int
    audio_layers: int
    model_sizes: ModelSizes
    evaluated_parameters: float
    adapters: tuple[AdapterKind, ...]
    repositories: Mapping[str, Repository]
    base_repositories: tuple[str, ...]
    adapter_repository: str | None

    @property
    def default_repositories(self) -> tuple[str, ...]:
        """Names of the repositories that a worker needs."""
        adapter = () if self.adapter_repository is None else (self.adapter_repository,)
        return (self.base_repositories[0], *adapter, "wav2vec2")

    @property
    def settings(self) -> frozenset[str]:
        """Settings for the folders of its repositories."""
        return frozenset(repository.setting for repository in self.repositories.values())

    def size(self, name: str) -> Size:
        """The table of resolutions of this name.

        Raises:
            ValueError: there is none.
        """
        if name not in self.sizes:
            raise ValueError(f"size is {name!r}; use one of {', '.join(self.sizes)}")
        return self.sizes[name]

    def nearest_size(self, height: int, width: int) -> str:
        """Name of the table whose values suit a resolution that is in none: the one whose resolution of the same shape
        has the nearest number of pixels, by ratio; the first on a tie."""

        def distance(name: str) -> float:
            bucket_height, bucket_width = self.sizes[name].bucket(height / width)
            return abs(math.log(height * width / (bucket_height * bucket_width)))

        return min(self.sizes, key=distance)

    @property
    def side_multiple(self) -> int:
        """The sides of a video are multiples of this number of pixels, the side of a token."""
        return self.vae_scale_factor_spatial * self.patch_size[1]

    def num_tokens(self, num_frames: int, height: int, width: int) -> int:
        """Number of video tokens of a chunk of `num_frames` frames of `height` by `width` pixels."""
        latent_frames = (num_frames - 1) // self.vae_scale_factor_temporal + 1
        columns = width // (self.vae_scale_factor_spatial * self.patch_size[2])
        return latent_frames // self.patch_size[0] * (height // self.side_multiple) * columns

    def evaluation_flop(self, num_tokens: int) -> float:
        """Floating-point operations of one evaluation of the published network: its linear layers and self-attention.

        2 · parameters · tokens + 4 · tokens² · width · layers; see docs/deploy.md.
        """
        attention = 4.0 * num_tokens**2 * self.model_sizes.dim * self.model_sizes.num_blocks
        return 2.0 * self.evaluated_parameters * num_tokens + attention


_WAN_FILES = ("config.json", "diffusion_pytorch_model*", "models_*.pth", "Wan2.1_VAE.pth", "google/umt5-xxl/*")

INFINITETALK = Family(
    name="infinitetalk",
    model_name="InfiniteTalk-14B",
    sizes={
        "infinitetalk-480": Size(
            buckets={
                0.26: (320, 1216),
                0.38: (384, 1024),
                0.50: (448, 896),
                0.67: (512, 768),
                0.82: (576, 704),
                1.00: (640, 640),
                1.22: (704, 576),
                1.50: (768, 512),
                1.86: (832, 448),
                2.00: (896, 448),
                2.50: (960, 384),
                2.83: (1088, 384),
                3.60: (1152, 320),
                3.80: (1216, 320),
                4.00: (1280, 320),
            },
            shift=7.0,
            teacache_polynomial=(2.57151496e05, -3.54229917e04, 1.40286849e03, -1.35890334e01, 1.32517977e-01),
            usual_resolution=(640, 640),
        ),
        "infinitetalk-720": Size(
            buckets={
                0.22: (448, 2048),
                0.29: (512, 1792),
                0.36: (576, 1600),
                0.45: (640, 1408),
                0.55: (704, 1280),
                0.63: (768, 1216),
                0.76: (832, 1088),
                0.88: (896, 1024),
                1.00: (960, 960),
                1.14: (1024, 896),
                1.31: (1088, 832),
                1.50: (1152, 768),
                1.58: (1216, 768),
                1.82: (1280, 704),
                1.91: (1344, 704),
                2.20: (1408, 640),
                2.30: (1472, 640),
                2.67: (1536, 576),
                2.89: (1664, 576),
                3.62: (1856, 512),
                3.75: (1920, 512),
            },
            shift=11.0,
            teacache_polynomial=(8.10705460e03, 2.13393892e03, -3.72934672e02, 1.66203073e01, -4.17769401e-02),
            usual_resolution=(704, 1280),
        ),
    },
    defaults=Defaults(
        size="infinitetalk-480",
        frame_num=81,
        max_frame_num=1000,
        motion_frame=9,
        crossfade_frame=4,
        num_inference_steps=40,
        text_guide_scale=5.0,
        audio_guide_scale=4.0,
        apg_momentum=-0.75,
        apg_norm_threshold=55.0,
        teacache_threshold=0.2,
        color_correction_strength=1.0,
        negative_prompt=(
            "bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, "
            "overall gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, "
            "poorly drawn hands, poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, "
            "still picture, messy background, three legs, many people in the background, walking backwards"
        ),
    ),
    renoising=None,
    patch_size=(1, 2, 2),
    vae_scale_factor_temporal=4,
    vae_scale_factor_spatial=8,
    latent_channels=16,
    audio_window=5,
    audio_layers=12,
    model_sizes=ModelSizes(
        blocks=18_559_795_200,
        num_blocks=40,
        outer=322_251_584,
        dim=5120,
        text_encoder=5_680_910_336,
        image_encoder=630_766_080,
        vae=126_892_531,
    ),
    evaluated_parameters=14.05e9,
    adapters=("single", "multi"),
    repositories={
        "base-480": Repository(
            "Wan-AI/Wan2.1-I2V-14B-480P",
            "CKPT_DIR",
            _WAN_FILES,
        ),
        "base-720": Repository(
            "Wan-AI/Wan2.1-I2V-14B-720P",
            "CKPT_DIR",
            _WAN_FILES,
        ),
        "adapter": Repository(
            "MeiGen-AI/InfiniteTalk",
            "INFINITETALK_DIR",
            ("single/infinitetalk.safetensors", "multi/infinitetalk.safetensors"),
        ),
        "int8": Repository("MeiGen-AI/InfiniteTalk", "QUANT_DIR", ("quant_models/*int8*",)),
        "fp8": Repository("MeiGen-AI/InfiniteTalk", "QUANT_DIR", ("quant_models/*fp8*",)),
        "wav2vec2": Repository(
            "TencentGameMate/chinese-wav2vec2-base",
            "WAV2VEC_DIR",
            ("config.json", "preprocessor_config.json", "pytorch_model.bin"),
        ),
        "kokoro": Repository("hexgrad/Kokoro-82M", "KOKORO_DIR", ("config.json", "kokoro-v1_0.pth", "voices/*.pt")),
    },
    base_repositories=("base-480", "base-720"),
    adapter_repository="adapter",
)

#: InfiniteTalk's network, distilled to few steps without guidance, for one speaker. The sizes are InfiniteTalk's too.
FLASHTALK = replace(
    INFINITETALK,
    name="flashtalk",
    model_name="SoulX-FlashTalk-14B",
    sizes={name: replace(size, shift=5.0, teacache_polynomial=()) for name, size in INFINITETALK.sizes.items()},
    defaults=replace(
        INFINITETALK.defaults,
        frame_num=33,
        motion_frame=5,
        num_inference_steps=4,
        text_guide_scale=1.0,
        audio_guide_scale=1.0,
        color_correction_strength=1.0,
    ),
    renoising=Renoising(timesteps={2: (1000.0, 500.0), 4: (1000.0, 750.0, 500.0, 250.0)}),
    adapters=("single",),
    repositories={
        "flashtalk": Repository("Soul-AILab/SoulX-FlashTalk-14B", "FLASHTALK_DIR", _WAN_FILES),
        "wav2vec2": INFINITETALK.repositories["wav2vec2"],
        "kokoro": INFINITETALK.repositories["kokoro"],
    },
    base_repositories=("flashtalk",),
    adapter_repository=None,
)

FAMILIES = {family.name: family for family in (INFINITETALK, FLASHTALK)}

#: The downloadable repositories of all families, by name.
REPOSITORIES = {name: repository for family in FAMILIES.values() for name, repository in family.repositories.items()}


def how_to_get(who: str, wanted: Mapping[str, tuple[str, str]]) -> str:
    """A message about weights that somebody lacks.

    Args:
        who: who needs them.
        wanted: names of downloads -> a name for people, and the setting for the folder.
    """
    titles, settings = zip(*wanted.values(), strict=True)
    return (
        f"{who} needs {', '.join(titles)}: fetch {'it' if len(wanted) == 1 else 'them'} by "
        f"`python -m infinitetalk.weights download {' '.join(wanted)}`, or set {', '.join(dict.fromkeys(settings))}"
    )
