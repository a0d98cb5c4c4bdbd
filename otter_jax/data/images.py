"""Decodes images and crops them as torchvision's Resize and crops do, without torch.

Only the pixels of the crop are resized, in half the time and less. They differ by at most 1 of 255
on photographs (a test) from those of the whole image, resized along its rows, then its columns (the
order that Pillow always had until version 13, which turns it for some shapes), and then cropped.
Decoded pixels are equal bit for bit to Pillow's. Figures: `benchmarks/input.py`.
"""

import contextlib
import io
import math
from collections.abc import Iterator

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, UnidentifiedImageError, features
from PIL.TiffImagePlugin import TiffImageFile

from otter_jax.data import headers

MAX_PIXELS = 89_478_485  # of a decoded image; Pillow begins to warn at the same number
# What image-caption collections hold. The list keeps Pillow from trying its rarer plug-ins
# (PostScript, to name one) on bytes from the web.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
SUFFIXES = (  # of files that are taken for pictures; their content then says what they are
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif",
)  # fmt: skip
MAX_SCANS = 100  # of a JPEG, libtiff's limit too; usual are ten, and each passes over all pixels
Pixels = UInt8[np.ndarray, "H W 3"]
FEATURES = {"WEBP": "webp", "AVIF": "avif"}  # formats that a Pillow may be built without
BROKEN = "unreadable image"
ENCODERS = {"jpeg": "JPEG", "webp": "WEBP"}  # what resized images are stored as

_WORTH = 1.25  # the crop alone is resized where an image shrinks by this factor or more,
_LONG = 4  # or where its longer side is at least this many times the shorter
_SUPPORT = 2  # pixels of the resized image on either side that a bicubic filter reads


class UnreadableImage(ValueError):
    """Raised for bytes that are no image, a broken one, or one of a kind that is not read.

    Attributes:
      kind: what such bytes are counted under; the error's text says more, or the same.
    """

    def __init__(self, text: str, kind: str = ""):
        super().__init__(text)
        self.kind = kind or text


def decode(data: bytes) -> Pixels:
    """Returns the pixels of an image as RGB.

    Transparency becomes white; grey, palette, CMYK and 16-bit pictures are converted; of an
    animation the first frame is taken. The EXIF orientation is ignored, as torchvision ignores it.

    Raises:
      UnreadableImage: not an image, truncated, or more than MAX_PIXELS; the last is known from the
        header, before any pixel is decoded.
    """
    with _unreadable(data):
        _orientation(data)
        pixels = _jpeg(data)
        return np.asarray(_rgb(_open(data))) if pixels is None else pixels


def shrink(data: bytes, size: int, *, format: str, quality: int) -> tuple[tuple[int, int], bytes]:
    """Returns an image's width and height, and its bytes with a shorter side of at most `size`.

    `size` is in pixels. An image whose shorter side is longer is resized (bicubic, antialiased) and
    encoded again in `format`, a key of ENCODERS, at `quality`, 1 to 100; all others come back as
    the same bytes, after a test that they can be decoded. `size` 0 resizes none. A JPEG is decoded
    at an eighth, quarter or half of its size where that is twice `size` or more: that is six times
    as fast, and hardly visible.

    Raises UnreadableImage as `decode` does.
    """
    with _unreadable(data):
        _orientation(data)
        img = _open(data)
        shape = img.size
        if not size or min(shape) <= size:
            _rgb(img)
            return shape, data
        img.draft(img.mode, (2 * size, 2 * size))
        small = _rgb(img).resize(_resized(shape, size), Image.Resampling.BICUBIC)
        encoded = io.BytesIO()
        try:
            small.save(encoded, ENCODERS[format], quality=quality)
        except (OSError, ValueError):  # WebP ends at 16,383 pixels
            return shape, data
        return shape, encoded.getvalue()


def center_crop(pixels: Pixels, resize: int, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Resizes the shorter side to `resize` pixels, bicubic, and crops the middle `size` x `size`.

    The longer side becomes int(resize * long / short). Halves are rounded to even, as torchvision
    does.
    """
    height, width = _resized(pixels.shape[:2], resize)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return _crop(pixels, (height, width), top, left, size)


def random_crop(
    pixels: Pixels, resize: int, size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "S S 3"]:
    """Cuts out a window chosen uniformly, where `center_crop` takes the middle."""
    height, width = _resized(pixels.shape[:2], resize)
    top = int(rng.integers(height - size + 1))
    left = int(rng.integers(width - size + 1))
    return _crop(pixels, (height, width), top, left, size)


def random_resized_crop(
    pixels: Pixels, size: int, min_area: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "S S 3"]:
    """Resizes a random part of the image to `size` x `size` pixels, bicubic with antialiasing.

    The part has from `min_area` to 1 of the area and is from 3:4 to 4:3 in shape, as in "Going
    deeper with convolutions" (Szegedy et al., arXiv:1409.4842); where ten draws do not fit, it is
    the largest middle part of such a shape.
    """
    whole_height, whole_width = pixels.shape[:2]
    for _ in range(10):
        area = whole_width * whole_height * rng.uniform(min_area, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= whole_width and 0 < height <= whole_height:
            left = int(rng.integers(whole_width - width + 1))
            top = int(rng.integers(whole_height - height + 1))
            break
    else:
        width = min(whole_width, round(whole_height * 4 / 3))
        height = min(whole_height, round(whole_width * 4 / 3))
        left, top = (whole_width - width) // 2, (whole_height - height) // 2
    box = (left, top, left + width, top + height)
    img = Image.fromarray(pixels)
    return np.array(img.resize((size, size), Image.Resampling.BICUBIC, box))


def jitter(
    pixels: UInt8[np.ndarray, "S S 3"], strength: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "S S 3"]:
    """Changes brightness, contrast and saturation by 1 - strength to 1 + strength, in random order.

    The hue stays: captions name colours.
    """
    img = Image.fromarray(pixels)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for number in rng.permutation(len(enhancers)):
        img = enhancers[number](img).enhance(rng.uniform(1 - strength, 1 + strength))
    return np.array(img)


def _crop(
    pixels: Pixels, shape: tuple[int, int], top: int, left: int, size: int
) -> UInt8[np.ndarray, "S S 3"]:
    """Returns a window of the image resized to `shape`, height and width."""
    assert min(shape) >= size, f"a {size} px window in an image of {shape} px"
    height, width = pixels.shape[:2]
    if (height, width) == shape:
        return pixels[top : top + size, left : left + size].copy()
    # First along the rows, then along the columns, as Pillow did before it chose by their lengths.
    if min(height, width) < _WORTH * min(shape) and max(shape) < _LONG * min(shape):
        # Little time would be saved; and where pixels are not averaged, two roundings may add up.
        wide = Image.fromarray(pixels).resize((shape[1], height), Image.Resampling.BICUBIC)
        whole = wide.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
        return np.array(whole.crop((left, top, left + size, top + size)))
    rows = _span(top, size, height / shape[0], height)
    columns = _span(left, size, width / shape[1], width)
    beyond = _SUPPORT * max(1, height / shape[0])
    first, last = math.floor(max(0, rows[0] - beyond)), math.ceil(min(rows[1] + beyond, height))
    img = Image.fromarray(
        pixels[first:last]
    )  # a box that leaves rows out costs Pillow another pass
    box = (columns[0], 0, columns[1], img.height)
    wide = img.resize((size, img.height), Image.Resampling.BICUBIC, box)
    box = (0, rows[0] - first, size, rows[1] - first)
    return np.array(wide.resize((size, size), Image.Resampling.BICUBIC, box))


def _span(start: int, size: int, scale: float, whole: int) -> tuple[float, float]:
    """Returns the range of the `whole` original pixels that `size` resized ones come from."""
    return start * scale, min((start + size) * scale, whole)


def _resized(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """Returns both sides, in the order given, once the shorter of them is `size`."""
    long = int(size * max(shape) / min(shape))
    return (size, long) if shape[0] <= shape[1] else (long, size)


@contextlib.contextmanager
def _unreadable(data: bytes) -> Iterator[None]:
    """Turns whatever error decoding raises into UnreadableImage, which names the format."""
    try:
        yield
    except UnreadableImage:
        raise
    except Exception as error:  # on broken bytes Pillow's decoders raise nearly every type there is
        raise _reason(data, error) from error


def _reason(data: bytes, error: Exception) -> UnreadableImage:
    """Says why an image cannot be read, by what its bytes begin with."""
    format = headers.format_of(data)
    if not format:
        return UnreadableImage(f"no picture: {headers.contents(data)}", BROKEN)
    if format not in FORMATS:
        return UnreadableImage(f"{format} picture, not read: convert it to JPEG or PNG")
    feature = FEATURES.get(format)
    if feature and not features.check(feature):
        return UnreadableImage(
            f"{format} picture, which the installed Pillow cannot read: pip install -U pillow, or "
            "convert it to JPEG or PNG"
        )
    if isinstance(error, Image.DecompressionBombError):
        return UnreadableImage(f"more than {MAX_PIXELS:,} pixels", BROKEN)
    if isinstance(error, UnidentifiedImageError):  # its text names an address in memory
        return UnreadableImage(f"{format}: its header is broken or of a rare kind", BROKEN)
    return UnreadableImage(f"{format}: {error or type(error).__name__}", BROKEN)


def _orientation(data: bytes) -> headers.Tag | None:
    """Returns the orientation by EXIF. Raises UnreadableImage for a JPEG of too many scans."""
    if not data.startswith(b"\xff\xd8"):
        return headers.orientation(data)
    header = headers.read_jpeg(data)
    if header.several and headers.count_scans(data, MAX_SCANS) > MAX_SCANS:
        raise UnreadableImage(f"JPEG of more than {MAX_SCANS} scans, usual are ten", BROKEN)
    return header.orientation


def _open(data: bytes) -> Image.Image:
    """Reads the header. Raises UnreadableImage for more than MAX_PIXELS."""
    img = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_size(img.width, img.height)
    return img


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{width} x {height} pixels are more than {MAX_PIXELS:,}", BROKEN)


def _jpeg(data: bytes) -> Pixels | None:
    """Decodes an ordinary, undamaged JPEG as Pillow does, in less time; None for all others."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray"):
            return None
        _check_size(width, height)
        return simplejpeg.decode_jpeg(data, "RGB")
    except UnreadableImage:
        raise
    except ValueError:  # broken; Pillow decides which of these can be read all the same
        return None


def _rgb(img: Image.Image) -> Image.Image:
    """Converts an image of any mode to RGB, on white where it is transparent."""
    bits = img.tag_v2.get(258, (16,)) if isinstance(img, TiffImageFile) else (16,)
    if img.mode in ("I", "F") or (img.mode.startswith("I;16") and bits != (16,)):
        raise UnreadableImage(
            f"{img.format} of numbers whose range is not known: convert it to 8 or 16 bits"
        )
    white = isinstance(img, TiffImageFile) and img.tag_v2.get(262) == 0  # zero is white
    img.load()
    if img.mode.startswith("I;16"):  # Pillow's own conversion clips it at 255
        grey = (np.asarray(img) >> 8).astype(np.uint8)
        return Image.fromarray(255 - grey if white else grey).convert("RGB")
    if not img.has_transparency_data:
        return img if img.mode == "RGB" else img.convert("RGB")
    rgba = img.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", img.size, "white"), rgba).convert("RGB")
