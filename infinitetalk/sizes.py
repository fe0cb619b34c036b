"""Sizes of the video: resolution buckets, and bringing pictures and masks to the chosen one."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

#: For each published size: height/width of the source -> (height, width) of the video in pixels, in table order.
BUCKETS: dict[str, dict[float, tuple[int, int]]] = {
    "infinitetalk-480": {
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
    "infinitetalk-720": {
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
}

#: Sides are multiples of this many pixels: the VAE's 8 times the transformer's patch of 2.
SIDE_MULTIPLE = 16


def choose_bucket(size: str, source_height: int, source_width: int, scale: float = 1.0) -> tuple[int, int]:
    """(height, width) in pixels of the video for a source picture of `source_height` x `source_width` pixels.

    The bucket of `size` whose key is nearest to height/width, the first one on a tie. `scale` shrinks it for small
    models: each side times `scale`, rounded to a multiple of 16 and at least 16.

    Raises `ValueError` for a size that has no table.
    """
    if size not in BUCKETS:
        raise ValueError(f"size is {size!r}; use one of {', '.join(BUCKETS)}")
    buckets = BUCKETS[size]
    nearest = min(buckets, key=lambda ratio: abs(ratio - source_height / source_width))
    height, width = buckets[nearest]
    return _scale_side(height, scale), _scale_side(width, scale)


def resize_and_crop(picture: Tensor, height: int, width: int) -> Tensor:
    """Scale a picture to cover `height` x `width` pixels and cut out the centre.

    `picture` is uint8 (3, source height, source width), the result uint8 (3, height, width). Pillow's bilinear filter,
    which averages when it shrinks.
    """
    covering_height, covering_width = _covering_size(picture.shape[-2], picture.shape[-1], height, width)
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().cpu().numpy())
    image = image.resize((covering_width, covering_height), Image.Resampling.BILINEAR)
    return _crop_centre(torch.from_numpy(np.array(image)).permute(2, 0, 1), height, width)


def resize_and_crop_mask(masks: Tensor, height: int, width: int) -> Tensor:
    """Bring masks to the same crop as `resize_and_crop` does a picture, by nearest neighbour.

    `masks` is (masks, source height, source width) of any dtype, the result (masks, height, width) of the same one.
    """
    size = _covering_size(masks.shape[-2], masks.shape[-1], height, width)
    resized = torch.nn.functional.interpolate(masks[None].float(), size=size, mode="nearest")[0].to(masks.dtype)
    return _crop_centre(resized, height, width)


def _scale_side(side: int, scale: float) -> int:
    return max(SIDE_MULTIPLE, round(side * scale / SIDE_MULTIPLE) * SIDE_MULTIPLE)


def _covering_size(source_height: int, source_width: int, height: int, width: int) -> tuple[int, int]:
    scale = max(height / source_height, width / source_width)
    return math.ceil(scale * source_height), math.ceil(scale * source_width)


def _crop_centre(pictures: Tensor, height: int, width: int) -> Tensor:
    # round() takes an odd excess's half to the even neighbour, as the published code does.
    top = round((pictures.shape[-2] - height) / 2)
    left = round((pictures.shape[-1] - width) / 2)
    return pictures[..., top : top + height, left : left + width].contiguous()
