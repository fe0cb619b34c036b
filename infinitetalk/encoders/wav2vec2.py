"""Speech embeddings: wav2vec2 turns a waveform into one row for each video frame.

Memory use hardly grows with the length of the speech: convolutions and feed-forward layers run in pieces, and each
layer's output goes to a temporary file, from which the rows of each video chunk are read.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2GroupNormConvLayer

from infinitetalk.encoders.vae import without_tf32
from infinitetalk.media.speech import SAMPLING_RATE, VIDEO_FPS

#: Outputs of the last convolution computed at a time; one is 20 ms of speech. At the published width a temporary of the
#: first layer is then over 32 MB, and glibc returns it to the system at once.
_PIECE_POSITIONS = 256
#: Rows computed at a time in a feed-forward layer.
_FEED_FORWARD_ROWS = 256


class SpeechEmbeddings:
    """Speech embeddings (num_frames, num_layers, hidden_size) of one speaker, float32, kept in a temporary file.

    The file has no name and is deleted with the object.
    """

    def __init__(self, num_frames: int, num_layers: int, hidden_size: int) -> None:
        self.shape = (num_frames, num_layers, hidden_size)
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as the object
        self._file.truncate(4 * num_frames * num_layers * hidden_size)

    @classmethod
    def from_tensor(cls, embeddings: Tensor) -> "SpeechEmbeddings":
        """Keep a float tensor (num_frames, num_layers, hidden_size)."""
        num_frames, num_layers, hidden_size = embeddings.shape
        kept = cls(num_frames, num_layers, hidden_size)
        for layer in range(num_layers):
            kept.write_layer(layer, embeddings[:, layer])
        return kept

    def __len__(self) -> int:
        """Number of rows, one for each video frame."""
        return self.shape[0]

    def write_layer(self, layer: int, hidden_states: Tensor) -> None:
        """Set one layer's rows, (num_frames, hidden_size)."""
        rows = hidden_states.detach().to("cpu", torch.float32).contiguous().numpy()
        self._map()[layer] = rows

    def rows(self, indices: Tensor) -> Tensor:
        """Rows of frames `indices`, an integer tensor of any shape; the result has shape (*indices, layers, hidden)."""
        wanted, places = torch.unique(indices, return_inverse=True)
        gathered = torch.from_numpy(self._map()[:, wanted.cpu().numpy()]).transpose(0, 1)
        return gathered[places.cpu()]

    def _map(self) -> np.memmap:
        num_frames, num_layers, hidden_size = self.shape
        # Mapped again each time: the pages of a permanent mapping would count as resident memory.
        return np.memmap(self._file, dtype=np.float32, mode="r+", shape=(num_layers, num_frames, hidden_size))


class SpeechEncoder:
    """wav2vec2; the features of its convolutions are resampled to one row for each video frame.

    `model` is any `Wav2Vec2Model` (group norm or layer norm, layers normalised after or before); its
    `feature_extractor` normalises waveforms to zero mean and unit variance.
    """

    def __init__(self, model: Wav2Vec2Model, feature_extractor: Wav2Vec2FeatureExtractor) -> None:
        self.model = model.eval()
        self.feature_extractor = feature_extractor

    @torch.no_grad()
    @without_tf32()
    def __call__(self, waveform: np.ndarray) -> SpeechEmbeddings:
        """Embeddings of a mono 16 kHz waveform (samples,): (F, layers, hidden), F = samples * 25 // 16000.

        The layers are the outputs of the encoder's layers, without its input; the last one is the encoder's output.
        Convolutions compute in plain float32, as in the published code, which runs them on a CPU. Raises `ValueError`
        for a waveform shorter than one video frame.
        """
        num_frames = len(waveform) * VIDEO_FPS // SAMPLING_RATE
        if num_frames == 0:
            raise ValueError(f"the speech has {len(waveform)} samples; give at least {SAMPLING_RATE // VIDEO_FPS}")
        features = resample_features(self.convolve(self.normalise(waveform)), num_frames)
        embeddings = SpeechEmbeddings(num_frames, len(self.model.encoder.layers), self.model.config.hidden_size)
        self._encode(features, embeddings)
        return embeddings

    def normalise(self, waveform: np.ndarray) -> Tensor:
        """A waveform (samples,) as the network's input: zero mean and unit variance, float (samples,)."""
        extracted = self.feature_extractor(waveform, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        return extracted.input_values[0].to(self.model.device, self.model.dtype)

    @torch.no_grad()
    def convolve(self, waveform: Tensor) -> Tensor:
        """Convolutional features (positions, channels) of a normalised waveform (samples,), one every 20 ms.

        They are computed in overlapping pieces, so that each position reads the same samples as in one piece. The
        statistics of a group norm cover all time and need a separate pass.
        """
        config = self.model.config
        first, *rest = self.model.feature_extractor.conv_layers
        if config.feat_extract_norm == "group":
            first = partial(_normalised_layer, first, *self._first_layer_statistics(waveform))
        # Allocated first: small pieces between large temporaries would fragment the heap.
        num_positions = _num_positions(len(waveform), config.conv_kernel, config.conv_stride)
        features = waveform.new_empty(num_positions, config.conv_dim[-1])
        pieces = _pieces(waveform, config.conv_kernel, config.conv_stride, _PIECE_POSITIONS)
        for rows, hidden_states in zip(features.split(_PIECE_POSITIONS), pieces, strict=True):
            for layer in (first, *rest):
                hidden_states = layer(hidden_states)
            rows.copy_(hidden_states[0].T)
        return features

    def _first_layer_statistics(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (channels,) over all time of the first convolution's output for a waveform (samples,)."""
        config = self.model.config
        convolution = self.model.feature_extractor.conv_layers[0].conv
        positions = _PIECE_POSITIONS * math.prod(config.conv_stride[1:])
        count = 0
        total = total_of_squares = torch.zeros(config.conv_dim[0], dtype=torch.float64, device=waveform.device)
        for piece in _pieces(waveform, config.conv_kernel[:1], config.conv_stride[:1], positions):
            outputs = convolution(piece)[0]
            count += outputs.shape[1]
            total = total + outputs.sum(1, dtype=torch.float64)
            total_of_squares = total_of_squares + outputs.square().sum(1, dtype=torch.float64)
        mean = total / count
        return mean.to(waveform.dtype), (total_of_squares / count - mean.square()).clamp(min=0.0).to(waveform.dtype)

    def _encode(self, features: Tensor, embeddings: SpeechEmbeddings) -> None:
        """Run the transformer over features (F, channels) and write each layer's output to `embeddings` at once."""
        hidden_states, _ = self.model.feature_projection(features[None])
        *inner_layers, last_layer = self.model.encoder.layers
        with ExitStack() as stack:
            for index, layer in enumerate(inner_layers):
                hook = layer.register_forward_hook(partial(_keep_output, embeddings, index))
                stack.callback(hook.remove)
            for layer in (*inner_layers, last_layer):
                stack.enter_context(_in_slices(layer.feed_forward))
            output = self.model.encoder(hidden_states).last_hidden_state
        # Models that normalise before each layer end with one more normalisation, which is part of the last output.
        embeddings.write_layer(len(inner_layers), output[0])


def resample_features(features: Tensor, num_frames: int) -> Tensor:
    """Linear interpolation along time of features (positions, channels) to (num_frames, channels), ends aligned."""
    resampled = torch.nn.functional.interpolate(features.T[None], size=num_frames, mode="linear", align_corners=True)
    return resampled[0].T


def _num_positions(num_samples: int, kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Number of outputs of convolutions without padding for `num_samples` samples."""
    return (num_samples - _reach(kernels, strides)) // math.prod(strides) + 1


def _reach(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Number of samples that one output of these convolutions reads."""
    return 1 + sum((kernel - 1) * math.prod(strides[:index]) for index, kernel in enumerate(kernels))


def _pieces(waveform: Tensor, kernels: Sequence[int], strides: Sequence[int], positions: int) -> Iterator[Tensor]:
    """Cut a waveform (samples,) into pieces (1, 1, samples) for `positions` outputs each, fewer for the last.

    `kernels` and `strides` are those of the convolutions, without padding, that the pieces will pass through.
    """
    stride = math.prod(strides)
    num_positions = _num_positions(len(waveform), kernels, strides)
    for start in range(0, num_positions, positions):
        end = min(start + positions, num_positions)
        yield waveform[None, None, start * stride : (end - 1) * stride + _reach(kernels, strides)]


def _normalised_layer(
    layer: Wav2Vec2GroupNormConvLayer, mean: Tensor, variance: Tensor, hidden_states: Tensor
) -> Tensor:
    """A convolution layer with a group norm of one channel per group, computed with given statistics (channels,)."""
    norm = layer.layer_norm
    normalised = nn.functional.batch_norm(
        layer.conv(hidden_states), mean, variance, norm.weight, norm.bias, training=False, eps=norm.eps
    )
    return layer.activation(normalised)


def _keep_output(embeddings: SpeechEmbeddings, index: int, layer: nn.Module, args: Any, output: Tensor) -> None:
    embeddings.write_layer(index, output[0])


@contextmanager
def _in_slices(feed_forward: nn.Module) -> Iterator[None]:
    """Let a feed-forward layer process (1, rows, hidden) in slices of rows: inside, it is four times as wide."""
    whole = feed_forward.forward

    def sliced(hidden_states: Tensor) -> Tensor:
        return torch.cat([whole(part) for part in hidden_states.split(_FEED_FORWARD_ROWS, dim=1)], dim=1)

    feed_forward.forward = sliced
    try:
        yield
    finally:
        feed_forward.forward = whole
