"""The networks of one checkpoint: each is loaded when it is first needed, and put into the state that a job needs."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Generic, TypeVar

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from infinitetalk.encoders.image import ImageEncoder
from infinitetalk.encoders.row_split import LeadingVae, VaePass, take_part
from infinitetalk.encoders.text import PromptEncoder
from infinitetalk.encoders.vae import Vae
from infinitetalk.encoders.wav2vec2 import SpeechEncoder
from infinitetalk.errors import CheckpointError
from infinitetalk.network.parallel import Lead, LeadingTransformer, check_heads
from infinitetalk.network.protocols import Denoiser
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.followers import TIMEOUT_S, Followed, Followers
from infinitetalk.runtime.kernels.registry import put_in_force, suitable
from infinitetalk.runtime.lora import LoraStack
from infinitetalk.runtime.memory import (
    is_streamed,
    release_cached_memory,
    set_tiling,
    stop_streaming,
    stream_blocks,
    stream_layers,
)
from infinitetalk.runtime.networks import Networks
from infinitetalk.weights.files import read_json
from infinitetalk.weights.layouts import DESCRIPTION_FILE, AdapterKind, CheckpointPaths, transformer_parts
from infinitetalk.weights.loading import Quantisation, parameter_shapes
from infinitetalk.weights.networks import (
    check_adapter,
    empty_transformer,
    load_audio_encoder,
    load_image_encoder,
    load_text_encoder,
    load_tokenizer,
    load_transformer_parameters,
    load_vae,
    text_encoder_form,
)
from infinitetalk.weights.sources import TensorSource

T = TypeVar("T")


class Lazy(Generic[T]):
    """A value made once, by the first thread that asks for it; the other threads wait."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: list[T] = []

    def get(self) -> T:
        """The value. If making it raises, the next call tries again."""
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]

    def forget(self) -> None:
        """Drops the value; the next call of `get` makes it again."""
        with self._lock:
            self._made.clear()


@dataclass
class LoadedTransformer:
    """A transformer in memory, and its state.

    Attributes:
        network: the transformer.
        sources: the sources of its parameters, by name.
        loras: the LoRAs on it.
        dtype, quantisation: form of its weights.
        adapter: its adapter; None while one is being loaded.
        is_placed: whether its weights are placed as `resident_parameters` says.
        resident_parameters: number of parameters of its blocks that stay on the device; None: all.
        attention, products, blocks: names of the kernels in force; None before any has been put in force.
    """

    network: InfiniteTalkTransformer3DModel
    sources: dict[str, TensorSource]
    loras: LoraStack
    dtype: torch.dtype
    quantisation: Quantisation | None
    adapter: AdapterKind | None
    is_placed: bool = False
    resident_parameters: int | None = None
    attention: str | None = None
    products: str | None = None
    blocks: str | None = None

    def has_weights_of(self, choice: NetworkChoice) -> bool:
        """Whether a choice can use the loaded base model."""
        return (self.dtype, self.quantisation) == (choice.dtype, choice.memory.quantisation)


class TransformerLoader:
    """Loads the transformer of a checkpoint and keeps it: one base model, with the last choice's adapter and LoRAs."""

    def __init__(self, paths: CheckpointPaths, device: torch.device) -> None:
        self._paths, self._device = paths, device
        self._loaded: LoadedTransformer | None = None
        self._lock = threading.Lock()

    def load(self, choice: NetworkChoice) -> InfiniteTalkTransformer3DModel:
        """The transformer in the state that a choice describes.

        Raises:
            CheckpointError: it cannot be loaded, or a kernel cannot be used here or with this choice.
        """
        check_suits(choice)
        with self._lock:
            if self._loaded is not None and not self._loaded.has_weights_of(choice):
                # Release the old one first: both would not fit.
                self._loaded = None
                release_cached_memory()
            if self._loaded is None:
                self._loaded = self._read(choice)
            loaded = self._loaded
            if loaded.adapter != choice.adapter:
                self._read_adapter(loaded, choice)
            if loaded.products != choice.kernels.products:
                # Streamed weights have copies, which take over how the weights are multiplied.
                stop_streaming(loaded.network)
                loaded.is_placed = False
                put_in_force(choice.kernels.products, loaded.network, self._paths.kernels)
                loaded.products, loaded.blocks = choice.kernels.products, None
            if not loaded.is_placed or loaded.resident_parameters != choice.memory.resident_parameters:
                self._place(loaded, choice.memory.resident_parameters)
            loaded.loras.apply(choice.loras, self._device)
            if loaded.attention != choice.kernels.attention:
                put_in_force(choice.kernels.attention, loaded.network, self._paths.kernels)
                loaded.attention, loaded.blocks = choice.kernels.attention, None
            # Last: what is compiled has the other kernels in it.
            if loaded.blocks != choice.kernels.blocks:
                put_in_force(choice.kernels.blocks, loaded.network, self._paths.kernels)
                loaded.blocks = choice.kernels.blocks
            return loaded.network

    def release(self) -> None:
        """Drops the transformer; it is read again when it is next asked for."""
        with self._lock:
            self._loaded = None

    def _read(self, choice: NetworkChoice) -> LoadedTransformer:
        base, adapter = transformer_parts(self._paths, choice.adapter, choice.memory.quantisation)
        sources = {**base.sources, **adapter.sources}
        network = empty_transformer(self._paths, base, adapter)
        self._read_parameters(network, sources, choice)
        loras = LoraStack(network, partial(read_base, sources, self._device))
        return LoadedTransformer(network, sources, loras, choice.dtype, choice.memory.quantisation, choice.adapter)

    def _read_adapter(self, loaded: LoadedTransformer, choice: NetworkChoice) -> None:
        _, adapter = transformer_parts(self._paths, choice.adapter, choice.memory.quantisation)
        check_adapter(parameter_shapes(loaded.network), adapter)
        loaded.loras.remove()
        stop_streaming(loaded.network)
        # No adapter until it is complete: if loading fails, the next job loads its adapter again.
        loaded.adapter, loaded.is_placed = None, False
        self._read_parameters(loaded.network, adapter.sources, choice)
        loaded.sources |= adapter.sources
        loaded.adapter = choice.adapter

    def _read_parameters(
        self, network: InfiniteTalkTransformer3DModel, sources: Mapping[str, TensorSource], choice: NetworkChoice
    ) -> None:
        # Streamed weights stay on the CPU, but a GPU converts and quantises them in a fraction of the time.
        home = torch.device("cpu") if choice.memory.streams_blocks else self._device
        load_transformer_parameters(network, sources, self._device, choice.dtype, choice.memory.quantisation, home)

    def _place(self, loaded: LoadedTransformer, resident_parameters: int | None) -> None:
        """Puts the weights on the device, or on the CPU for streaming."""
        loaded.is_placed = False
        stop_streaming(loaded.network)
        if resident_parameters is None:
            loaded.network.to(self._device)
        else:
            stream_blocks(loaded.network, resident_parameters, self._device)
        loaded.is_placed, loaded.resident_parameters = True, resident_parameters

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the transformer's parameters, from the files' headers.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        parts = transformer_parts(self._paths, "single", None)
        return {name: source.shape for part in parts for name, source in part.sources.items()}


def check_suits(choice: NetworkChoice, num_devices: int = 1) -> None:
    """Checks that a choice's kernels go with the rest of it, on so many devices.

    Raises:
        CheckpointError: one does not.
    """
    _, reasons = suitable(choice.kernels, choice.setup(num_devices))
    for name, reason in reasons.items():
        raise CheckpointError(f"the kernel {name!r} cannot be used here: {reason}; choose another kernel")


def read_base(sources: Mapping[str, TensorSource], device: torch.device, name: str) -> Tensor:
    """An unquantised parameter as it is without LoRAs."""
    return sources[name].load(device, torch.float32)


class GroupTransformerLoader:
    """Like `TransformerLoader`, for several devices that share each evaluation.

    Args:
        devices: devices of the other processes. These start when the transformer is first asked for, and restart when
            one of them is lost.
    """

    def __init__(self, paths: CheckpointPaths, device: torch.device, devices: Sequence[torch.device]) -> None:
        self._own = TransformerLoader(paths, device)
        self._size = len(devices) + 1
        self._followers = Followers(device, devices, partial(make_loader, paths))
        self._loaded: tuple[NetworkChoice, LeadingTransformer] | None = None
        self._lock = threading.Lock()

    def load(self, choice: NetworkChoice) -> LeadingTransformer:
        """The transformer in the state that a choice describes, in every process.

        Raises:
            CheckpointError: it cannot be loaded, has too few heads for the group, or a kernel cannot be used here.
            ParallelError: a process has just been started, but ends or does not answer.
        """
        check_suits(choice, self._size)
        with self._lock:
            is_lost = self._loaded is not None and self._loaded[1].lead.is_lost
            if not self._followers.are_there or is_lost:
                self._followers.end()
                self._followers.start()
                self._loaded = None
            if self._loaded is not None and self._loaded[0] == choice:
                return self._loaded[1]
            self._loaded = None
            self._followers.command(choice)
            try:
                transformer = self._own.load(choice)
                check_heads(transformer.config.num_attention_heads, self._size)
            finally:
                group = self._followers.wait()
            lead = Lead(group, self._followers.connections, self._followers.has_lost, TIMEOUT_S)
            leading = LeadingTransformer(transformer, lead, choice.memory.shares_evaluations)
            self._loaded = (choice, leading)
            return leading

    def release(self) -> None:
        """Drops the transformer and ends the other processes: they start again when it is next asked for."""
        with self._lock:
            self._loaded = None
            self._followers.end()
            self._own.release()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `TransformerLoader.shapes`."""
        return self._own.shapes


def make_loader(paths: CheckpointPaths, device: torch.device) -> Callable[[NetworkChoice], Followed]:
    """The function that loads a follower's networks."""
    transformer, vae = TransformerLoader(paths, device), VaeLoader(paths, device)
    return lambda choice: Followed(transformer.load(choice), {VaePass: partial(take_part, vae.load(choice))})


@dataclass
class LoadedPromptEncoder:
    """A prompt encoder in memory, and the dtype and quantisation of the last request for it."""

    encoder: PromptEncoder
    dtype: torch.dtype
    quantisation: Quantisation | None


class PromptEncoderLoader:
    """Loads the prompt encoder of a checkpoint and keeps it; files may hold its network quantised."""

    def __init__(self, paths: CheckpointPaths, device: torch.device) -> None:
        self._paths, self._device = paths, device
        self._tokenizer = Lazy(lambda: load_tokenizer(paths.base))
        self._loaded: LoadedPromptEncoder | None = None
        self._lock = threading.Lock()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The encoder's tokenizer; it does not need the network.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        return self._tokenizer.get()

    def load(self, choice: NetworkChoice) -> PromptEncoder:
        """The encoder in the state that a choice describes.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        with self._lock:
            if self._loaded is not None and not self._serves(self._loaded, choice):
                self._loaded = None
                # The encoder and its cache of prompts reference each other.
                release_cached_memory()
            if self._loaded is None:
                self._loaded = self._read(choice)
            self._loaded.quantisation = choice.memory.quantisation
            self._place(self._loaded.encoder, choice.memory.stream_text_encoder)
            return self._loaded.encoder

    def release(self) -> None:
        """Drops the encoder; it is read again when it is next asked for."""
        with self._lock:
            self._loaded = None

    def _serves(self, loaded: LoadedPromptEncoder, choice: NetworkChoice) -> bool:
        """Whether a choice can use the loaded weights."""
        if loaded.dtype != choice.dtype:
            return False
        quantisation = choice.memory.quantisation
        if loaded.quantisation == quantisation:
            return True
        return text_encoder_form(self._paths, loaded.quantisation) == text_encoder_form(self._paths, quantisation)

    def _read(self, choice: NetworkChoice) -> LoadedPromptEncoder:
        home = torch.device("cpu") if choice.memory.stream_text_encoder else self._device
        quantisation = choice.memory.quantisation
        text_encoder = load_text_encoder(self._paths, self._device, choice.dtype, quantisation, home)
        return LoadedPromptEncoder(PromptEncoder(self.tokenizer, text_encoder), choice.dtype, quantisation)

    def _place(self, encoder: PromptEncoder, streams: bool) -> None:
        text_encoder = encoder.text_encoder
        if streams and not is_streamed(text_encoder):
            stream_layers(text_encoder, self._device)
        elif not streams and is_streamed(text_encoder):
            stop_streaming(text_encoder)
            text_encoder.to(self._device)


class VaeLoader:
    """Loads the VAE of a checkpoint and keeps it, with the kernel of the last choice."""

    def __init__(self, paths: CheckpointPaths, device: torch.device) -> None:
        self._paths, self._device = paths, device
        self._loaded: tuple[str, AutoencoderKLWan] | None = None
        self._lock = threading.Lock()

    def load(self, choice: NetworkChoice) -> AutoencoderKLWan:
        """The VAE in the state that a choice describes.

        Raises:
            CheckpointError: it cannot be loaded, or its kernel cannot be used here.
        """
        with self._lock:
            kernel = choice.kernels.vae
            # A kernel may have rounded the weights, so another one starts from the file.
            if self._loaded is None or self._loaded[0] != kernel:
                self._loaded = None
                vae = load_vae(self._paths.base, self._device)
                put_in_force(kernel, vae)
                self._loaded = kernel, vae
            _, vae = self._loaded
            set_tiling(vae, choice.memory.vae_tiling)
            return vae

    def release(self) -> None:
        """Drops the VAE; it is read again when it is next asked for."""
        with self._lock:
            self._loaded = None


class Models:
    """The networks of one checkpoint, each loaded when it is first asked for.

    Args:
        paths: where the checkpoint's files are.
        device: where the networks run.
        other_devices: devices that share each evaluation of the transformer with `device`, one process for each.

    Attributes:
        name: name of the checkpoint in results and logs.
        size_scale: factor on the published resolutions, 1 for the published model.
        device: where the networks run.

    Raises:
        CheckpointError: the base model is not there, or its description is damaged.
    """

    def __init__(
        self, paths: CheckpointPaths, device: torch.device, other_devices: Sequence[torch.device] = ()
    ) -> None:
        if not paths.base.is_dir():
            raise CheckpointError(f"there is no folder {paths.base.name}; put the base model there or set its path")
        description_file = paths.base / DESCRIPTION_FILE
        description = read_json(description_file) if description_file.exists() else {}
        self.name: str = description.get("name", paths.family.model_name)
        self.family = paths.family
        self.size_scale: float = description.get("size_scale", 1.0)
        self.device = device
        self._transformer = (
            GroupTransformerLoader(paths, device, other_devices) if other_devices else TransformerLoader(paths, device)
        )
        self._prompt_encoder = PromptEncoderLoader(paths, device)
        self._vae = VaeLoader(paths, device)
        self._image_encoder = Lazy(lambda: ImageEncoder(load_image_encoder(paths.base, device)))
        self._audio_encoder = Lazy(lambda: SpeechEncoder(*load_audio_encoder(paths.wav2vec2, device)))

    def prepare(self, choice: NetworkChoice) -> Networks:
        """The networks in the state that a choice describes; missing ones are loaded.

        They are loaded in the order in which a job needs them. Another thread may use loaded ones meanwhile, and waits
        only for the one that it asks for. The networks of an earlier preparation lose their state.

        Raises:
            CheckpointError: a file is missing or damaged, or does not fit.
            ParallelError: a process of another device has just been started, but ends or does not answer.
        """
        audio_encoder, prompt_encoder = self.audio_encoder, self.prompt_encoder(choice)
        image_encoder, own_vae = self.image_encoder, self.vae(choice)
        transformer = self.transformer(choice)
        vae: Vae = LeadingVae(own_vae, transformer.lead) if isinstance(transformer, LeadingTransformer) else own_vae
        return Networks(
            audio_encoder=audio_encoder,
            prompt_encoder=prompt_encoder,
            image_encoder=image_encoder,
            vae=vae,
            transformer=transformer,
            choice=choice,
            device=self.device,
            family=self.family,
            size_scale=self.size_scale,
        )

    def release(self) -> None:
        """Frees the networks, which nothing else may hold; each is loaded again when it is next asked for.

        With several devices, the other processes end too.
        """
        self._transformer.release()
        self._prompt_encoder.release()
        self._vae.release()
        self._image_encoder.forget()
        self._audio_encoder.forget()
        release_cached_memory()

    def transformer(self, choice: NetworkChoice) -> Denoiser:
        """The transformer alone, as from `prepare`, with the same errors."""
        return self._transformer.load(choice)

    def prompt_encoder(self, choice: NetworkChoice) -> PromptEncoder:
        """The prompt encoder alone, as from `prepare`, with the same errors."""
        return self._prompt_encoder.load(choice)

    def vae(self, choice: NetworkChoice) -> AutoencoderKLWan:
        """The VAE alone, as from `prepare`, with the same errors."""
        return self._vae.load(choice)

    @property
    def image_encoder(self) -> ImageEncoder:
        """Encodes reference frames; the same for every choice."""
        return self._image_encoder.get()

    @property
    def audio_encoder(self) -> SpeechEncoder:
        """Encodes speech; the same for every choice."""
        return self._audio_encoder.get()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Turns prompts into tokens; it does not need the text encoder."""
        return self._prompt_encoder.tokenizer

    @property
    def transformer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the transformer's parameters, without loading them.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        return self._transformer.shapes
