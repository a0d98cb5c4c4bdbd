"""Fits pictures to the square of pixels that an encoder reads, in its own way of doing so."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from otter_jax.data import images
from otter_jax.data.images import Pixels

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class Fitting(NamedTuple):
    """Says how pictures are resized and cropped; the defaults are this project's own way.

    Attributes:
      size: side of the square, in pixels.
      resize: what the shorter side, the longer side or both become before the crop, in pixels.
      mode: which of these; with "longest" the square is filled up with black.
      interpolation: with antialiasing.
      halves: where half a pixel is to the left of the crop: to the even number, as in torchvision,
        or down, as in transformers.
    """

    size: int
    resize: int
    mode: Literal["shortest", "longest", "squash"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    halves: Literal["even", "down"] = "even"

    def __call__(self, pixels: Pixels) -> UInt8[np.ndarray, "S S 3"]:
        """Returns the square that a picture becomes."""
        if self[2:] == ("shortest", "bicubic", "even"):
            return images.center_crop(pixels, self.resize, self.size)
        height, width = self._shape(pixels.shape[:2])
        whole = Image.fromarray(pixels).resize((width, height), FILTERS[self.interpolation])
        # A crop that reaches beyond a picture is black there.
        top, left = (self._begin(side - self.size) for side in (height, width))
        return np.array(whole.crop((left, top, left + self.size, top + self.size)))

    def _shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Returns height and width before the crop."""
        height, width = shape
        if self.mode == "squash":
            return self.resize, self.resize
        if self.mode == "longest":
            ratio = max(shape) / self.resize
            return max(1, round(height / ratio)), max(1, round(width / ratio))
        long = int(self.resize * max(shape) / min(shape))
        return (self.resize, long) if height <= width else (long, self.resize)

    def _begin(self, surplus: int) -> int:
        """Returns where the crop begins, or less than 0 where the picture is smaller."""
        if surplus < 0:
            return -(-surplus // 2)
        return surplus // 2 if self.halves == "down" else round(surplus / 2)
