"""The networks of one checkpoint, each loaded when it is first needed."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Generic, TypeVar

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from infinitetalk.errors import CheckpointError
from infinitetalk.family import INFINITETALK, Family
from infinitetalk.followers import Followers
from infinitetalk.image import ImageEncoder
from infinitetalk.lora import Lora, LoraStack, find_lora
from infinitetalk.lora_files import files_of
from infinitetalk.memory import (
    MemoryPlan,
    is_streamed,
    release_cached_memory,
    set_tiling,
    stop_streaming,
    stream_blocks,
    stream_layers,
)
from infinitetalk.network.protocols import Denoiser
from infinitetalk.parallel import LeadingTransformer, check_heads
from infinitetalk.text import PromptEncoder
from infinitetalk.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.wav2vec2 import SpeechEncoder
from infinitetalk.weights.files import read_json
from infinitetalk.weights.fingerprint import contents_of
from infinitetalk.weights.layouts import AdapterKind, CheckpointPaths, adapter_kind, transformer_parts
from infinitetalk.weights.loading import Quantisation, parameter_shapes
from infinitetalk.weights.networks import (
    check_adapter,
    empty_transformer,
    load_image_encoder,
    load_speech_encoder,
    load_text_encoder,
    load_tokenizer,
    load_transformer_parameters,
    load_vae,
    text_encoder_form,
)
from infinitetalk.weights.sources import TensorSource

DESCRIPTION_FILE = "infinitetalk.json"
#: Everything on the device, weights in 16 bits.
DEFAULT_PLAN = MemoryPlan()

T = TypeVar("T")


class Lazy(Generic[T]):
    """A value made when it is first asked for, once, by whichever thread asks first; the others wait for it."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: list[T] = []

    @property
    def is_made(self) -> bool:
        """Whether the value is there."""
        return bool(self._made)

    def get(self) -> T:
        """The value. Where making it raises, the next call tries again."""
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]

    def drop(self) -> None:
        """Forgets the value; the next call makes it anew."""
        with self._lock:
            self._made.clear()


def _lazy(value: T | Lazy[T]) -> Lazy[T]:
    return value if isinstance(value, Lazy) else Lazy(lambda: value)


@dataclass(frozen=True)
class TransformerChoice:
    """What a transformer is to be.

    Attributes:
        adapter: for one or for several speakers.
        loras: files and scales.
        memory: the mode.
    """

    adapter: AdapterKind
    loras: tuple[Lora, ...]
    memory: MemoryPlan


class TransformerLoader:
    """The transformer of a checkpoint: one base model, and the adapter that the job in hand needs."""

    def __init__(self, paths: CheckpointPaths, device: torch.device, dtype: torch.dtype, memory: MemoryPlan) -> None:
        self._paths, self._device, self._dtype = paths, device, dtype
        self._memory = memory
        self._loaded_memory = memory
        self._adapter: AdapterKind = "single"
        self._loras: tuple[Lora, ...] = ()
        self._loaded = Lazy(self._load)
        self._loaded_adapter: AdapterKind | None = "single"
        self._sources: dict[str, TensorSource] = {}
        self._stack: LoraStack | None = None
        self._lock = threading.Lock()

    def use_memory(self, memory: MemoryPlan) -> None:
        """Chooses the mode; where weights have to be quantised otherwise, they are read anew."""
        self._memory = memory

    def use_loras(self, loras: Sequence[tuple[str, float]]) -> None:
        """Chooses the LoRAs, files below LORA_DIR with their scales.

        Raises:
            CheckpointError: there is no file of a name, or it is damaged.
        """
        found = [(find_lora(self._paths.loras, name), scale) for name, scale in loras]
        self._loras = tuple(Lora(path, scale, contents_of(files_of(path))) for path, scale in found)

    def use_adapter(self, kind: AdapterKind) -> None:
        """Chooses the adapter; it is loaded when the transformer is next asked for."""
        self._adapter = kind

    @property
    def choice(self) -> TransformerChoice:
        """All that has been chosen."""
        return TransformerChoice(self._adapter, self._loras, self._memory)

    def load(self, choice: TransformerChoice) -> InfiniteTalkTransformer3DModel:
        """The transformer of a choice.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        self._adapter, self._loras, self._memory = choice.adapter, choice.loras, choice.memory
        return self._get()

    def get(self) -> Denoiser:
        """The transformer with what has been chosen.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        return self._get()

    def _get(self) -> InfiniteTalkTransformer3DModel:
        """This process's own transformer.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        with self._lock:
            if self._loaded_memory.quantisation != self._memory.quantisation:
                # Both together would not fit: the old one goes before the new one comes.
                self._stack = None
                self._loaded.drop()
                release_cached_memory()
            transformer = self._loaded.get()
            assert self._stack is not None
            if self._loaded_adapter != self._adapter:
                self._load_adapter(transformer, self._adapter)
            if self._loaded_memory.persistent_parameters != self._memory.persistent_parameters:
                self._place(transformer)
            self._stack.apply(self._loras, self._device)
            return transformer

    def _load(self) -> InfiniteTalkTransformer3DModel:
        self._loaded_adapter, self._loaded_memory = self._adapter, self._memory
        base, adapter = transformer_parts(self._paths, self._adapter, self._memory.quantisation)
        self._sources = {**base.sources, **adapter.sources}
        transformer = empty_transformer(self._paths, base, adapter)
        self._load_parameters(transformer, self._sources)
        self._stack = LoraStack(transformer, self._read_base)
        self._place(transformer)
        return transformer

    def _load_adapter(self, transformer: InfiniteTalkTransformer3DModel, kind: AdapterKind) -> None:
        _, adapter = transformer_parts(self._paths, kind, self._loaded_memory.quantisation)
        check_adapter(parameter_shapes(transformer), adapter)
        assert self._stack is not None
        self._stack.remove()
        stop_streaming(transformer)
        # Until it is whole, it is none: whatever ends this, the next job loads its own.
        self._loaded_adapter = None
        self._load_parameters(transformer, adapter.sources)
        self._sources |= adapter.sources
        self._loaded_adapter = kind
        self._place(transformer)

    def _place(self, transformer: InfiniteTalkTransformer3DModel) -> None:
        """Puts the weights where the mode wants them."""
        stop_streaming(transformer)
        if self._memory.persistent_parameters is None:
            transformer.to(self._device)
        else:
            stream_blocks(transformer, self._memory.persistent_parameters, self._device)
        self._loaded_memory = self._memory

    def _load_parameters(
        self, transformer: InfiniteTalkTransformer3DModel, sources: Mapping[str, TensorSource]
    ) -> None:
        streamed = self._memory.persistent_parameters is not None
        device = torch.device("cpu") if streamed else self._device
        load_transformer_parameters(transformer, sources, device, self._dtype, self._loaded_memory.quantisation)

    def _read_base(self, name: str) -> Tensor:
        """A parameter of plain numbers as it is without LoRAs."""
        return self._sources[name].load(self._device, torch.float32)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the transformer's parameters, from the files' headers.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        parts = transformer_parts(self._paths, "single", None)
        return {name: source.shape for part in parts for name, source in part.sources.items()}


class GroupTransformerLoader(TransformerLoader):
    """As `TransformerLoader`, for several devices that make each evaluation together.

    Args:
        devices: of the other processes, which are started when the transformer is first asked for, and anew when one of
            them has been lost.
    """

    def __init__(
        self,
        paths: CheckpointPaths,
        device: torch.device,
        dtype: torch.dtype,
        memory: MemoryPlan,
        devices: Sequence[torch.device],
    ) -> None:
        super().__init__(paths, device, dtype, memory)
        self._size = len(devices) + 1
        self._followers = Followers(device, devices, partial(make_loader, paths, dtype, memory))
        self._told: TransformerChoice | None = None
        self._leading: LeadingTransformer | None = None
        self._group_lock = threading.Lock()

    def get(self) -> LeadingTransformer:
        """The transformer with what has been chosen, in every process.

        Raises:
            CheckpointError: it cannot be loaded, or has too few heads for the group.
            ParallelError: a process ends or does not answer though it has just been started.
        """
        with self._group_lock:
            if not self._followers.are_there or (self._leading is not None and self._leading.is_lost):
                self._followers.end()
                self._followers.start()
                self._told, self._leading = None, None
            is_told = self._told == self.choice
            if not is_told:
                self._told = None
                self._followers.command(self.choice)
            transformer = self._get()
            check_heads(transformer.config.num_attention_heads, self._size)
            group = self._followers.wait()
            self._told = self.choice
            if self._leading is None or not is_told:
                self._leading = LeadingTransformer(transformer, group, self._followers.connections)
            return self._leading


def make_loader(
    paths: CheckpointPaths, dtype: torch.dtype, memory: MemoryPlan, device: torch.device
) -> Callable[[TransformerChoice], InfiniteTalkTransformer3DModel]:
    """What a follower loads its transformer with."""
    return TransformerLoader(paths, device, dtype, memory).load


class PromptEncoderLoader:
    """The prompt encoder of a checkpoint, in the form that the mode in hand asks for: files may hold it quantised.

    Attributes:
        tokenizer: the encoder's, which can be had without it.
    """

    def __init__(self, paths: CheckpointPaths, device: torch.device, dtype: torch.dtype) -> None:
        self._paths, self._device, self._dtype = paths, device, dtype
        self._memory = DEFAULT_PLAN
        self.tokenizer = Lazy(lambda: load_tokenizer(paths.base))
        self._loaded = Lazy(self._load)
        self._loaded_quantisation: Quantisation | None = None
        self._lock = threading.Lock()

    @property
    def is_made(self) -> bool:
        """Whether it is loaded."""
        return self._loaded.is_made

    def get(self, memory: MemoryPlan) -> PromptEncoder:
        """The encoder as a worker that has known no other mode would have it.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        with self._lock:
            self._memory = memory
            if self._loaded.is_made and self._is_another_form(memory.quantisation):
                self._loaded.drop()
                # The encoder and its memory of prompts hold each other.
                release_cached_memory()
            encoder = self._loaded.get()
            self._loaded_quantisation = memory.quantisation
            return encoder

    def _is_another_form(self, quantisation: Quantisation | None) -> bool:
        if quantisation == self._loaded_quantisation:
            return False
        forms = (text_encoder_form(self._paths, each) for each in (quantisation, self._loaded_quantisation))
        return next(forms) != next(forms)

    def _load(self) -> PromptEncoder:
        place = torch.device("cpu") if self._memory.stream_text_encoder else self._device
        text_encoder = load_text_encoder(self._paths, place, self._dtype, self._memory.quantisation)
        return PromptEncoder(self.tokenizer.get(), text_encoder)


class Models:
    """Every network that a video needs, on one device, each loaded when it is first asked for.

    Attributes:
        name: of the checkpoint, as results and logs give it.
        size_scale: factor on the published resolutions, 1 for the published model.
        device: where the networks run.
        memory: the mode they run in.
        family: of the checkpoint.
    """

    def __init__(
        self,
        name: str,
        size_scale: float,
        transformer: InfiniteTalkTransformer3DModel | TransformerLoader,
        vae: AutoencoderKLWan | Lazy[AutoencoderKLWan],
        prompt_encoder: PromptEncoder | PromptEncoderLoader,
        image_encoder: ImageEncoder | Lazy[ImageEncoder],
        speech_encoder: SpeechEncoder | Lazy[SpeechEncoder],
        device: torch.device,
        memory: MemoryPlan = DEFAULT_PLAN,
        family: Family = INFINITETALK,
    ) -> None:
        self.name = name
        self.family = family
        self.memory = memory
        self.size_scale = size_scale
        self.device = device
        self._transformer = transformer
        self._vae = _lazy(vae)
        self._prompt_encoder = prompt_encoder
        self._image_encoder = _lazy(image_encoder)
        self._speech_encoder = _lazy(speech_encoder)

    @property
    def transformer(self) -> Denoiser:
        """The network, with the adapter last chosen."""
        return self._transformer.get() if isinstance(self._transformer, TransformerLoader) else self._transformer

    @property
    def vae(self) -> AutoencoderKLWan:
        """Frames to latents and back."""
        vae = self._vae.get()
        set_tiling(vae, self.memory.vae_tiling)
        return vae

    @property
    def prompt_encoder(self) -> PromptEncoder:
        """Prompts to embeddings."""
        if isinstance(self._prompt_encoder, PromptEncoder):
            prompt_encoder = self._prompt_encoder
        else:
            prompt_encoder = self._prompt_encoder.get(self.memory)
        text_encoder = prompt_encoder.text_encoder
        if self.memory.stream_text_encoder and not is_streamed(text_encoder):
            stream_layers(text_encoder, self.device)
        elif not self.memory.stream_text_encoder and is_streamed(text_encoder):
            stop_streaming(text_encoder)
            text_encoder.to(self.device)
        return prompt_encoder

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Prompts to tokens; the encoder need not be loaded for it."""
        encoder = self._prompt_encoder
        return encoder.tokenizer if isinstance(encoder, PromptEncoder) else encoder.tokenizer.get()

    @property
    def image_encoder(self) -> ImageEncoder:
        """A reference frame to features."""
        return self._image_encoder.get()

    @property
    def speech_encoder(self) -> SpeechEncoder:
        """Speech to embeddings."""
        return self._speech_encoder.get()

    def use_adapter(self, num_speakers: int) -> None:
        """Chooses the adapter for this many speakers; the base model stays. Returns at once: an adapter that is not
        there yet is loaded when the transformer is next asked for."""
        if isinstance(self._transformer, TransformerLoader):
            self._transformer.use_adapter(adapter_kind(num_speakers))

    def use_memory(self, memory: MemoryPlan) -> None:
        """Chooses the mode that networks are in when they are next asked for."""
        self.memory = memory
        if isinstance(self._transformer, TransformerLoader):
            self._transformer.use_memory(memory)

    def use_loras(self, loras: Sequence[tuple[str, float]]) -> None:
        """Chooses the LoRAs, by name and scale, that the transformer has when it is next asked for.

        Raises:
            CheckpointError: there is no file of a name.
        """
        if isinstance(self._transformer, TransformerLoader):
            self._transformer.use_loras(loras)

    @property
    def transformer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the transformer's parameters, which need not be loaded for it.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        transformer = self._transformer
        return transformer.shapes if isinstance(transformer, TransformerLoader) else parameter_shapes(transformer)

    def preload(self) -> None:
        """Loads every network, in the order in which a job needs them.

        Another thread may use those that are there; it waits only for the one it asks for.

        Raises:
            CheckpointError: a file is missing or damaged, or does not fit.
        """
        for name in ("speech_encoder", "prompt_encoder", "image_encoder", "vae", "transformer"):
            getattr(self, name)


def load_models(
    paths: CheckpointPaths,
    device: torch.device,
    dtype: torch.dtype,
    memory: MemoryPlan = DEFAULT_PLAN,
    other_devices: Sequence[torch.device] = (),
) -> Models:
    """A checkpoint's networks, none of which is loaded yet.

    Args:
        dtype: of the transformer and the text encoder; norms, modulation and time embedding stay float32, as do VAE,
            image encoder and speech encoder.
        memory: the mode. A quantisation is of the weights of the transformer's blocks, and of the text encoder's where
            the checkpoint has them quantised.
        other_devices: which make each evaluation of the transformer together with `device`, a process for each.

    Raises:
        CheckpointError: the base model or its description is not there.
    """
    if not paths.base.is_dir():
        raise CheckpointError(f"there is no folder {paths.base.name}; put the base model there or set its path")
    description_file = paths.base / DESCRIPTION_FILE
    description = read_json(description_file) if description_file.exists() else {}

    transformer = TransformerLoader(paths, device, dtype, memory)
    if other_devices:
        transformer = GroupTransformerLoader(paths, device, dtype, memory, other_devices)
    return Models(
        name=description.get("name", paths.family.model_name),
        size_scale=description.get("size_scale", 1.0),
        transformer=transformer,
        vae=Lazy(lambda: load_vae(paths.base, device)),
        prompt_encoder=PromptEncoderLoader(paths, device, dtype),
        image_encoder=Lazy(lambda: ImageEncoder(load_image_encoder(paths.base, device))),
        speech_encoder=Lazy(lambda: SpeechEncoder(*load_speech_encoder(paths.wav2vec2, device))),
        device=device,
        memory=memory,
        family=paths.family,
    )
