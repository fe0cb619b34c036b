"""Sizes of the video: choosing the resolution for a source, and resizing images and masks to it."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from infinitetalk.family import Family


def choose_bucket(
    family: Family, size: str, source_height: int, source_width: int, scale: float = 1.0
) -> tuple[int, int]:
    """(height, width) in pixels of the video for a source of `source_height` x `source_width` pixels.

    It is the bucket of `size` with the key nearest to height/width, the first one on a tie; `scale` shrinks it for
    small models (`scale_resolution`).

    Raises:
        ValueError: the family has no size of this name.
    """
    return scale_resolution(family, family.size(size).bucket(source_height / source_width), scale)


def scale_resolution(family: Family, resolution: tuple[int, int], scale: float) -> tuple[int, int]:
    """A resolution (height, width) for a model of another scale: each side is multiplied by `scale` and rounded to a
    multiple of the family's `side_multiple`, at least one."""
    height, width = resolution
    return _scale_side(height, scale, family.side_multiple), _scale_side(width, scale, family.side_multiple)


def choose_resolution(
    family: Family,
    size: str,
    resolution: tuple[int, int] | None,
    source_height: int,
    source_width: int,
    scale: float = 1.0,
) -> tuple[int, int]:
    """(height, width) in pixels of the video: the given resolution, or else the bucket of `size` for a source; both for
    a model of this scale.

    Raises:
        ValueError: the family has no size of this name.
    """
    if resolution is None:
        return choose_bucket(family, size, source_height, source_width, scale)
    return scale_resolution(family, resolution, scale)


def cropped_share(source_height: int, source_width: int, height: int, width: int) -> float:
    """The share of a source's pixels that `resize_and_crop` cuts off, 0…1."""
    covering_height, covering_width = _covering_size(source_height, source_width, height, width)
    return 1 - height * width / (covering_height * covering_width)


def bucket_of_part(family: Family, size: str, height: int, width: int, scale: float = 1.0) -> tuple[int, int]:
    """The bucket for a part of a source of about `height` x `width` pixels; the part is then cut out in the bucket's
    own shape, and gets this bucket by `choose_bucket`.

    A small model's buckets are rounded, so that the one of a bucket's own shape may be the next one.
    """
    bucket = choose_bucket(family, size, height, width, scale)
    while (own := choose_bucket(family, size, *bucket, scale)) != bucket:
        bucket = own
    return bucket


def resize_and_crop(picture: Tensor, height: int, width: int) -> Tensor:
    """Scale an image to cover `height` x `width` pixels and cut out the centre.

    `picture` is uint8 (3, source height, source width), the result uint8 (3, height, width). It uses Pillow's bilinear
    filter, which averages when shrinking.
    """
    covering_height, covering_width = _covering_size(picture.shape[-2], picture.shape[-1], height, width)
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().cpu().numpy())
    image = image.resize((covering_width, covering_height), Image.Resampling.BILINEAR)
    return _crop_centre(torch.from_numpy(np.array(image)).permute(2, 0, 1), height, width)


def resize_and_crop_mask(masks: Tensor, height: int, width: int) -> Tensor:
    """Resize and crop masks like `resize_and_crop`, by nearest neighbour.

    `masks` is (masks, source height, source width) of any dtype, the result (masks, height, width) of the same dtype.
    """
    size = _covering_size(masks.shape[-2], masks.shape[-1], height, width)
    resized = torch.nn.functional.interpolate(masks[None].float(), size=size, mode="nearest")[0].to(masks.dtype)
    return _crop_centre(resized, height, width)


def _scale_side(side: int, scale: float, multiple: int) -> int:
    return max(multiple, round(side * scale / multiple) * multiple)


def _covering_size(source_height: int, source_width: int, height: int, width: int) -> tuple[int, int]:
    scale = max(height / source_height, width / source_width)
    return math.ceil(scale * source_height), math.ceil(scale * source_width)


def _crop_centre(pictures: Tensor, height: int, width: int) -> Tensor:
    # round() rounds half of an odd excess to the even neighbour, as the published code does.
    top = round((pictures.shape[-2] - height) / 2)
    left = round((pictures.shape[-1] - width) / 2)
    return pictures[..., top : top + height, left : left + width].contiguous()
