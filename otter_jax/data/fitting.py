"""Fits pictures to the square of pixels that an encoder reads, in its own way of doing so."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from otter_jax.data import images
from otter_jax.data.images import Pixels
from otter_jax.models.fitting import Fitting

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def fit(pixels: Pixels, fitting: Fitting) -> UInt8[np.ndarray, "S S 3"]:
    """Returns the square that a picture becomes."""
    size = fitting.size
    if fitting == Fitting(size, fitting.resize):
        return images.center_crop(pixels, fitting.resize, size)
    height, width = _shape(pixels.shape[:2], fitting)
    whole = Image.fromarray(pixels).resize((width, height), FILTERS[fitting.interpolation])
    # A crop that reaches beyond a picture is black there.
    top, left = (_begin(side - size, fitting.halves) for side in (height, width))
    return np.array(whole.crop((left, top, left + size, top + size)))


def _shape(shape: tuple[int, ...], fitting: Fitting) -> tuple[int, int]:
    """Returns height and width before the crop."""
    height, width = shape
    if fitting.mode == "squash":
        return fitting.resize, fitting.resize
    if fitting.mode == "longest":
        ratio = max(shape) / fitting.resize
        return max(1, round(height / ratio)), max(1, round(width / ratio))
    return images.resized(shape, fitting.resize)


def _begin(surplus: int, halves: str) -> int:
    """Returns where the crop begins, or less than 0 where the picture is smaller."""
    if surplus < 0:
        return -(-surplus // 2)
    return surplus // 2 if halves == "down" else round(surplus / 2)
