"""Locations of the speakers: their region masks, the reference attention map, and each token's position for L-RoPE.

Source: MultiTalk (arXiv 2505.22647) and the published model. More than two speakers are spread evenly, as in LightX2V;
no checkpoint was trained for that.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor

from infinitetalk.errors import RegionError
from infinitetalk.media.sizes import resize_and_crop_mask

#: Positions in L-RoPE: the length of each speaker's range, the start of the last range, the background's position.
RANGE_LENGTH = 4.0
LAST_RANGE_START = 20.0
BACKGROUND_POSITION = 12.0
#: Share of its size by which a default region is shrunk on every side.
FACE_SCALE = 0.05
#: Number of video tokens whose attention to the reference frame is in memory at a time.
QUERY_SLICE = 8192


def default_regions(num_speakers: int, height: int, width: int, face_scale: float = FACE_SCALE) -> Tensor:
    """Equal columns from left to right, each shrunk by `face_scale` on every side; one speaker has the whole image.

    Returns:
        bool (num_speakers, height, width).
    """
    regions = torch.zeros(num_speakers, height, width, dtype=torch.bool)
    if num_speakers == 1:
        return ~regions
    column = width // num_speakers
    rows = slice(int(height * face_scale), int(height * (1 - face_scale)))
    for speaker in range(num_speakers):
        left = speaker * column
        regions[speaker, rows, int(column * face_scale + left) : int(column * (1 - face_scale) + left)] = True
    return regions


def box_regions(boxes: Sequence[Sequence[float]], height: int, width: int, order: str = "xy") -> Tensor:
    """One box per speaker, clipped to the image.

    Args:
        boxes: [x_min, y_min, x_max, y_max] each, in pixels of the source; [y_min, x_min, y_max, x_max] for order "yx",
            the order of the published code.

    Returns:
        bool (speakers, height, width).

    Raises:
        RegionError: a box covers no pixel of the image.
    """
    regions = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for number, (region, box) in enumerate(zip(regions, boxes, strict=True), start=1):
        x_min, y_min, x_max, y_max = (box[1], box[0], box[3], box[2]) if order == "yx" else box
        region[max(int(y_min), 0) : max(int(y_max), 0), max(int(x_min), 0) : max(int(x_max), 0)] = True
        if not region.any():
            corners = "y_min, x_min, y_max, x_max" if order == "yx" else "x_min, y_min, x_max, y_max"
            raise RegionError(
                f"the box of person{number}, {list(box)}, covers no pixel of the {width}x{height} image; "
                f"give [{corners}] in its pixels"
            )
    return regions


def check_boxes(boxes: Sequence[Sequence[float]], height: int, width: int, order: str = "xy") -> None:
    """Refuse boxes that reach beyond the image; `box_regions` would clip them, as the published code does.

    Args:
        boxes, order: as for `box_regions`.

    Raises:
        RegionError: a box has a corner outside the image.
    """
    limits = (height, width) * 2 if order == "yx" else (width, height) * 2
    for number, box in enumerate(boxes, start=1):
        if any(not 0 <= value <= limit for value, limit in zip(box, limits, strict=True)):
            raise RegionError(
                f"the box of person{number}, {list(box)}, reaches beyond the {width}x{height} image; "
                f'its corners must lie within it, in pixels, in the order "{order}"'
            )


def latent_regions(regions: Tensor, height: int, width: int, vae_scale_factor_spatial: int) -> Tensor:
    """Resample regions to the latent grid and add the background, the pixels without a speaker.

    With one speaker, both speaker and background cover everything, as in the published model.

    Args:
        regions: bool (speakers, source_height, source_width).
        height, width: size of the generated video, in pixels.
        vae_scale_factor_spatial: pixels per latent, in each direction.

    Returns:
        bool (speakers + 1, height / vae_scale_factor_spatial, width / vae_scale_factor_spatial), the background last.
    """
    background = torch.ones_like(regions[:1]) if len(regions) == 1 else ~regions.any(dim=0, keepdim=True)
    masks = resize_and_crop_mask(torch.cat([regions, background]).float(), height, width)
    size = (height // vae_scale_factor_spatial, width // vae_scale_factor_spatial)
    return F.interpolate(masks[None], size=size, mode="nearest")[0] > 0


def token_regions(regions: Tensor, height: int, width: int) -> Tensor:
    """Resample latent regions (speakers + 1, h, w) to the token grid: bool (speakers + 1, height · width).

    Raises:
        RegionError: a speaker's region holds no token. (A background without tokens is allowed.)
    """
    masks = F.interpolate(regions[None].float(), size=(height, width), mode="nearest")[0] > 0
    for speaker, mask in enumerate(masks[:-1], start=1):
        if not mask.any():
            raise RegionError(
                f"the region of person{speaker} is too small: it vanishes on the model's grid of {width}x{height}; "
                "enlarge it, or move it into the part of the image that is not cropped"
            )
    # No view: compiled blocks would have a graph for each shape of what it is a view of.
    return masks.flatten(1).clone()


def speaker_range_starts(num_speakers: int, device: torch.device | None = None) -> Tensor:
    """Start of each speaker's range of positions: 0 and 20 for two, evenly spread between these for more."""
    return torch.linspace(0.0, LAST_RANGE_START, num_speakers, device=device)


def audio_token_positions(num_speakers: int, context_tokens: int, device: torch.device | None = None) -> Tensor:
    """Positions of a frame's audio tokens, the centres of their speakers' ranges: (num_speakers · context_tokens,)."""
    return (speaker_range_starts(num_speakers, device) + RANGE_LENGTH / 2).repeat_interleave(context_tokens)


def reference_attention_map(query: Tensor, key: Tensor, regions: Tensor) -> Tensor:
    """Attention of each video token to each region of the first latent frame.

    It is the softmax over the S keys of frame 0, averaged over each region's keys and over the heads. The average over
    a region equals an attention with the region's indicator as values, so the softmax matrix is never in memory: beside
    the result, only one attention output of at most `QUERY_SLICE` tokens is.

    Args:
        query: (1, tokens, heads, head_dim), after RMS norm and 3-D rotary embedding.
        key: (1, S, heads, head_dim), of latent frame 0, after the same.
        regions: bool (speakers + 1, S), speakers + 1 ≤ head_dim.

    Returns:
        float32 (speakers + 1, tokens). A region without tokens has value 0.
    """
    if torch.compiler.is_compiling():
        # The number of slices grows with the video: compiled, each number would be another graph.
        return _map_beside_compiler(query, key, regions)
    return _sliced_map(query, key, regions)


def _sliced_map(query: Tensor, key: Tensor, regions: Tensor) -> Tensor:
    weights = regions / regions.sum(dim=1, keepdim=True).clamp(min=1)
    value = F.pad(weights.T, (0, key.shape[-1] - len(regions))).to(key.dtype)[None, :, None].expand_as(key)
    # Always exact, whatever kernel the other attentions use: an 8-bit kernel would round the indicators.
    exact = AttentionBackendName.NATIVE
    slices = [
        dispatch_attention_fn(part, key, value, backend=exact)[..., : len(regions)].float().mean(dim=2)
        for part in query.split(QUERY_SLICE, dim=1)
    ]
    return torch.cat(slices, dim=1)[0].T


@torch.library.custom_op("infinitetalk::reference_attention_map", mutates_args=())
def _map_beside_compiler(query: Tensor, key: Tensor, regions: Tensor) -> Tensor:
    """The map as one operation, which the compiler calls and does not look into."""
    return _sliced_map(query, key, regions).contiguous()


@_map_beside_compiler.register_fake
def _(query: Tensor, key: Tensor, regions: Tensor) -> Tensor:
    return query.new_empty((regions.shape[0], query.shape[1]), dtype=torch.float32)


Extrema = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Turns the smallest and largest values of some tokens into those of all tokens."""


def token_positions(attention_map: Tensor, extrema: Extrema | None = None) -> Tensor:
    """The position of every video token for L-RoPE.

    A token belongs to the region with the largest value. A speaker's token is placed within that speaker's range by its
    value, rescaled between the smallest and largest of that speaker's map; background tokens share one position.

    Args:
        attention_map: float32 (speakers + 1, tokens).
        extrema: needed if these are not all tokens.

    Returns:
        float32 (tokens,).
    """
    speakers = attention_map[:-1]
    smallest, largest = speakers.amin(dim=1, keepdim=True), speakers.amax(dim=1, keepdim=True)
    if extrema is not None:
        smallest, largest = extrema(smallest, largest)
    starts = speaker_range_starts(len(speakers), attention_map.device)[:, None]
    places = starts + RANGE_LENGTH * (speakers - smallest) / (largest - smallest + 1e-8)
    places = torch.cat([places, torch.full_like(places[:1], BACKGROUND_POSITION)])
    return places.gather(0, attention_map.argmax(dim=0, keepdim=True))[0]
