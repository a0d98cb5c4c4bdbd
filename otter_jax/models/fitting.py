"""Says how a picture becomes the square of pixels that an encoder reads.

Weights are read with it, and pictures fitted by it (`data.fitting`).
"""

from typing import Literal, NamedTuple


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
