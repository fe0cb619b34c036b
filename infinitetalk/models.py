"""The networks of one checkpoint, and loading them from its folders."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoTokenizer, CLIPVisionModel, UMT5EncoderModel, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from infinitetalk.errors import CheckpointError
from infinitetalk.image import ImageEncoder
from infinitetalk.text import PromptEncoder
from infinitetalk.transformer import ADAPTER_PATTERNS, InfiniteTalkTransformer3DModel
from infinitetalk.wav2vec2 import SpeechEncoder

PUBLISHED_NAME = "InfiniteTalk-14B"
DESCRIPTION_FILE = "infinitetalk.json"


@dataclass(frozen=True)
class CheckpointPaths:
    """Where a checkpoint's parts are.

    Attributes:
        base: Wan 2.1 I2V in the Diffusers layout: transformer/, vae/, text_encoder/, tokenizer/, image_encoder/.
        adapter_single, adapter_multi: InfiniteTalk's safetensors files for one and for several speakers.
        wav2vec2: the speech encoder's folder.
    """

    base: Path
    adapter_single: Path
    adapter_multi: Path
    wav2vec2: Path

    def adapter(self, num_speakers: int) -> Path:
        """The adapter that serves this many speakers."""
        return self.adapter_single if num_speakers == 1 else self.adapter_multi


class Models:
    """Every network that a video needs, on one device.

    Attributes:
        name: of the checkpoint, as results and logs give it.
        size_scale: factor on the published resolutions, 1 for the published model.
        transformer, vae, prompt_encoder, image_encoder, speech_encoder: the networks.
        device: where they run.
    """

    def __init__(
        self,
        name: str,
        size_scale: float,
        transformer: InfiniteTalkTransformer3DModel,
        vae: AutoencoderKLWan,
        prompt_encoder: PromptEncoder,
        image_encoder: ImageEncoder,
        speech_encoder: SpeechEncoder,
        device: torch.device,
        paths: CheckpointPaths | None = None,
    ) -> None:
        self.name = name
        self.size_scale = size_scale
        self.transformer = transformer
        self.vae = vae
        self.prompt_encoder = prompt_encoder
        self.image_encoder = image_encoder
        self.speech_encoder = speech_encoder
        self.device = device
        self._paths = paths
        self._adapter = None if paths is None else paths.adapter_single

    def use_adapter(self, num_speakers: int) -> None:
        """Give the transformer the adapter for this many speakers, if it has the other one; the base model stays.

        Raises:
            CheckpointError: the adapter cannot be loaded.
        """
        if self._paths is None:
            return
        wanted = self._paths.adapter(num_speakers)
        if wanted != self._adapter:
            assign_tensors(self.transformer, read_tensors(wanted), wanted.name, adapter=True)
            self._adapter = wanted


def load_models(paths: CheckpointPaths, device: torch.device, dtype: torch.dtype) -> Models:
    """Load a checkpoint, with the adapter for one speaker.

    Args:
        dtype: of the transformer and the text encoder; norms, modulation and time embedding stay float32, as do VAE,
            image encoder and speech encoder.

    Raises:
        CheckpointError: a file is missing or damaged, or does not fit.
    """
    for path in (paths.base, paths.adapter_single, paths.wav2vec2):
        if not path.exists():
            raise CheckpointError(f"{path} does not exist; put the checkpoint there or set its path")
    description_file = paths.base / DESCRIPTION_FILE
    description = json.loads(description_file.read_text()) if description_file.exists() else {}
    try:
        vae = AutoencoderKLWan.from_pretrained(paths.base / "vae")
        tokenizer = AutoTokenizer.from_pretrained(paths.base / "tokenizer")
        text_encoder = UMT5EncoderModel.from_pretrained(paths.base / "text_encoder", dtype=dtype)
        image_encoder = CLIPVisionModel.from_pretrained(paths.base / "image_encoder")
        wav2vec2 = Wav2Vec2Model.from_pretrained(paths.wav2vec2, attn_implementation="sdpa")
        feature_extractor = Wav2Vec2FeatureExtractor.from_pretrained(paths.wav2vec2)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint in {paths.base} cannot be loaded: {error}") from error
    return Models(
        name=description.get("name", PUBLISHED_NAME),
        size_scale=description.get("size_scale", 1.0),
        transformer=load_transformer(paths.base / "transformer", paths.adapter_single, dtype).to(device),
        vae=vae.to(device).eval(),
        prompt_encoder=PromptEncoder(tokenizer, text_encoder.to(device)),  # type: ignore[arg-type]
        image_encoder=ImageEncoder(image_encoder.to(device)),  # type: ignore[arg-type]
        speech_encoder=SpeechEncoder(wav2vec2.to(device), feature_extractor),  # type: ignore[arg-type]
        device=device,
        paths=paths,
    )


def load_transformer(base: Path, adapter: Path, dtype: torch.dtype) -> InfiniteTalkTransformer3DModel:
    """The transformer of a Diffusers folder with an adapter file; the adapter's sizes are read from its tensors.

    Raises:
        CheckpointError: a tensor is missing, left over or misshapen.
    """
    base_tensors: dict[str, Tensor] = {}
    for file in sorted(base.glob("*.safetensors")):
        base_tensors |= read_tensors(file)
    adapter_tensors = read_tensors(adapter)
    config = InfiniteTalkTransformer3DModel.load_config(base) | adapter_config(adapter_tensors)
    with init_empty_weights():
        transformer = InfiniteTalkTransformer3DModel.from_config(config)
    assign_tensors(transformer, base_tensors, base.name, adapter=False, dtype=dtype)
    assign_tensors(transformer, adapter_tensors, adapter.name, adapter=True, dtype=dtype)
    return transformer.eval()


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def adapter_config(adapter: dict[str, Tensor]) -> dict[str, int]:
    """Sizes of an adapter, for the transformer's constructor, from its tensors' shapes.

    Raises:
        CheckpointError: a tensor that tells them is missing.
    """
    try:
        intermediate_dim, first_dim = adapter["audio_proj.proj1.weight"].shape
        tokens_dim = adapter["audio_proj.proj3.weight"].shape[0]
        output_dim = adapter["audio_proj.norm.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"the adapter has no tensor {error}; it is not an InfiniteTalk adapter") from error
    audio_window, audio_layers = 5, 12
    return {
        "audio_window": audio_window,
        "audio_layers": audio_layers,
        "audio_channels": first_dim // (audio_window * audio_layers),
        "audio_intermediate_dim": intermediate_dim,
        "audio_output_dim": output_dim,
        "audio_context_tokens": tokens_dim // output_dim,
    }


def assign_tensors(
    transformer: InfiniteTalkTransformer3DModel,
    tensors: dict[str, Tensor],
    origin: str,
    *,
    adapter: bool,
    dtype: torch.dtype | None = None,
) -> None:
    """Give the transformer's base (or adapter) parameters these tensors, every one of them and no other.

    Args:
        origin: the file or folder, for messages.
        dtype: of parameters that need no float32; None keeps each parameter's dtype.

    Raises:
        CheckpointError: a tensor is missing, left over or misshapen.
    """
    parameters = {
        name: parameter
        for name, parameter in transformer.named_parameters()
        if any(pattern in name for pattern in ADAPTER_PATTERNS) == adapter
    }
    for name in sorted(parameters.keys() ^ tensors.keys()):
        problem = "has no tensor" if name in parameters else "has a tensor that the model does not know,"
        raise CheckpointError(f"{origin} {problem} {name}")
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise CheckpointError(
                f"{origin}: {name} has shape {list(tensors[name].shape)}, the model {list(parameter.shape)}"
            )
    state_dict = {
        name: tensor.to(
            parameters[name].device if dtype is None else tensor.device, parameter_dtype(transformer, name, dtype)
        )
        for name, tensor in tensors.items()
    }
    transformer.load_state_dict(state_dict, strict=False, assign=True)


def parameter_dtype(transformer: InfiniteTalkTransformer3DModel, name: str, dtype: torch.dtype | None) -> torch.dtype:
    """`dtype`, or float32 for what the published model keeps in it; without `dtype`, the parameter's own."""
    if dtype is None:
        return transformer.get_parameter(name).dtype
    keeps_float32 = any(pattern in name.split(".") for pattern in transformer._keep_in_fp32_modules)
    return torch.float32 if keeps_float32 else dtype
