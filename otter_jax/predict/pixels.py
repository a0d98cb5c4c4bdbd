"""Makes RGB pixels of a picture, in whatever form a caller has it."""

import os
import pathlib
import re

import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import UInt8

from otter_jax.data import images
from otter_jax.errors import UserError
from otter_jax.files import read_bytes

Picture = str | os.PathLike | bytes | PIL.Image.Image | np.ndarray
FORMS = "a path, the bytes of a file, a PIL image, or a uint8 array of height x width (x 1, 3 or 4)"


def pixels_of(picture: Picture, *, exif: str = "apply") -> UInt8[np.ndarray, "H W 3"]:
    """Returns the pixels of a picture as RGB, decoded as `data.images.decode` does.

    An array is grey, RGB or RGBA, 0..255; transparency becomes white. `exif` "apply" turns files
    and PIL images upright by their EXIF orientation. Raises UserError, which names the picture, if
    it cannot be read, or is nothing that can be a picture.
    """
    try:
        match picture:
            case str() | os.PathLike():
                return images.decode(_content(picture), exif=exif)
            case bytes() | bytearray() | memoryview():
                return images.decode(bytes(picture), exif=exif)
            case PIL.Image.Image():
                turns = exif == "apply" or picture.format == "AVIF"  # as `decode` reads its file
                upright = PIL.ImageOps.exif_transpose(picture) if turns else picture
                return np.asarray(images.rgb(upright))
            case np.ndarray():
                return _of_array(picture)
    except images.UnreadableImage as error:
        raise UserError(f"{named(picture)} cannot be read: {error}.") from error
    except OSError as error:  # of a PIL image whose file ends early
        why = error.strerror or error
        raise UserError(f"{named(picture)} cannot be read: {why}.") from error
    raise UserError(f"A {type(picture).__name__} is no picture: give {FORMS}.")


def named(picture: Picture) -> str:
    """Returns what a message calls a picture: its path, or what is known of it."""
    match picture:
        case str() | os.PathLike():
            return os.fspath(picture)
        case PIL.Image.Image():
            return f"The PIL image ({picture.mode}, {picture.width} x {picture.height})"
        case np.ndarray():
            return f"The array ({picture.dtype}, {' x '.join(map(str, picture.shape))})"
        case _:
            return f"The picture of {len(picture):,} bytes"


def _content(path: str | os.PathLike) -> bytes:
    """Returns the bytes of a file."""
    if re.match(r"[a-z]{2,}://", os.fspath(path)):
        raise UserError(f"{path} is an address: fetch the picture, and give its path or its bytes.")
    return read_bytes(pathlib.Path(path).expanduser())


def _of_array(pixels: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    """Returns an array as RGB. Raises UserError for other shapes and types than pictures have."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if pixels.ndim not in (2, 3) or channels not in (1, 3, 4) or not pixels.size:
        remedy = FORMS
        if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4):
            remedy = "the channels last, array.transpose(1, 2, 0)"
        raise UserError(f"{named(pixels)} is no picture: give {remedy}.")
    if pixels.dtype != np.uint8:
        remedy = "give uint8, 0..255"
        if pixels.dtype == bool or np.issubdtype(pixels.dtype, np.floating):
            remedy += ", such as (array * 255).round().astype(np.uint8) of one in 0..1"
        raise UserError(f"{named(pixels)} is no picture, since its range is not known: {remedy}.")
    if channels == 3:
        return pixels
    mode = pixels[..., 0] if pixels.ndim == 3 and channels == 1 else pixels
    return np.asarray(images.rgb(PIL.Image.fromarray(mode)))
