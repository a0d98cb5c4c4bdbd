"""Bytes to pixels: what torchvision's Resize and crops do to a PIL image, without torch."""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image

MAX_PIXELS = 89_478_485  # of a decoded or a resized image; Pillow begins to warn at the same number
# What image-caption collections hold. The list keeps Pillow from trying its rarer plug-ins
# (PostScript, to name one) on bytes from the web.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
ENCODERS = {"jpeg": "JPEG", "webp": "WEBP"}  # what resized images are stored as


class UnreadableImage(ValueError):
    """The bytes are no image, a broken one, or one too large to be meant."""


def decode(data: bytes) -> Image.Image:
    """The picture as RGB, 8 bits a channel.

    Transparency is laid on white; grey, palette, CMYK and 16-bit pictures are converted; of an
    animation it is the first frame. The EXIF orientation is not applied, as torchvision does not.

    Raises:
      UnreadableImage: not an image, truncated, or more than MAX_PIXELS; the last is known from the
        header, before any pixel is decoded.
    """
    with _unreadable():
        return _rgb(_open(data))


def shrink(data: bytes, size: int, *, format: str, quality: int) -> tuple[tuple[int, int], bytes]:
    """Width and height of an image, and the image with its shorter side at most `size` pixels.

    One that is longer is resized (bicubic, antialiased) and encoded again in `format`, a key of
    ENCODERS, at `quality`, 1 to 100; all others come back as the same bytes, once it is sure that
    they can be decoded. `size` 0 resizes none. A JPEG is decoded at an eighth, quarter or half of
    its size where that is twice `size` and more: six times as fast, and hardly to be seen.

    Raises UnreadableImage as `decode` does.
    """
    with _unreadable():
        img = _open(data)
        shape = img.size
        if not size or min(shape) <= size:
            _rgb(img)
            return shape, data
        img.draft(img.mode, (2 * size, 2 * size))
        small = _rgb(img).resize(_resized(shape, size), Image.Resampling.BICUBIC)
        encoded = io.BytesIO()
        small.save(encoded, ENCODERS[format], quality=quality)
        return shape, encoded.getvalue()


def resize(img: Image.Image, size: int) -> Image.Image:
    """The image with its shorter side at `size` pixels, bicubic with antialiasing.

    The longer side is int(size * long / short). Raises UnreadableImage when that would be more
    than MAX_PIXELS in all: a hairline of a picture becomes gigabytes otherwise.
    """
    shape = _resized(img.size, size)
    return img if img.size == shape else img.resize(shape, Image.Resampling.BICUBIC)


def center_crop(img: Image.Image, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """The middle `size` x `size` pixels; halves are rounded to even, as torchvision does."""
    return _crop(img, round((img.height - size) / 2), round((img.width - size) / 2), size)


def random_crop(
    img: Image.Image, size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "S S 3"]:
    """A uniformly chosen window of `size` x `size` pixels."""
    top = int(rng.integers(img.height - size + 1))
    left = int(rng.integers(img.width - size + 1))
    return _crop(img, top, left, size)


def _crop(img: Image.Image, top: int, left: int, size: int) -> UInt8[np.ndarray, "S S 3"]:
    assert min(img.size) >= size, f"a {size} px window in an image of {img.size} px"
    return np.array(img.crop((left, top, left + size, top + size)))


def _resized(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height once the shorter of them is `size`."""
    short, long = sorted(shape)
    long = int(size * long / short)
    if size * long > MAX_PIXELS:
        raise UnreadableImage(f"{shape[0]} x {shape[1]} pixels are too thin to be resized")
    return (size, long) if shape[0] <= shape[1] else (long, size)


@contextlib.contextmanager
def _unreadable() -> Iterator[None]:
    try:
        yield
    except UnreadableImage:
        raise
    except Exception as error:  # on broken bytes Pillow's decoders raise nearly every type there is
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def _open(data: bytes) -> Image.Image:
    img = Image.open(io.BytesIO(data), formats=FORMATS)
    if img.width * img.height > MAX_PIXELS:
        raise UnreadableImage(f"{img.width} x {img.height} pixels are more than {MAX_PIXELS:,}")
    return img


def _rgb(img: Image.Image) -> Image.Image:
    img.load()
    if img.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips it at 255
        return Image.fromarray((np.asarray(img) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if not img.has_transparency_data:
        return img if img.mode == "RGB" else img.convert("RGB")
    rgba = img.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", img.size, "white"), rgba).convert("RGB")
