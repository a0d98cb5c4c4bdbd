"""Decodes images and crops them as torchvision's Resize and crops do, without torch.

Only the pixels of the crop are resized, in half the time and less. They differ by at most 1 of 255
on photographs (a test) from those of the whole image, resized along its rows, then its columns (the
order that Pillow always had until version 13, which turns it for some shapes), and then cropped.
Decoded pixels are equal bit for bit to Pillow's. Figures: `benchmarks/input.py`.
"""

import contextlib
import io
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import (
    ExifTags,
    Image,
    ImageEnhance,
    JpegImagePlugin,
    UnidentifiedImageError,
    features,
)
from PIL.TiffImagePlugin import TiffImageFile

from otter_jax.data import blocks, headers
from otter_jax.data.in_flight import Bound

# Pillow's blocks of 16 MiB stay with the thread that freed them, for good; malloc gives larger ones
# than 32 MiB back to the system at once.
Image.core.set_block_size(64 << 20)
IN_FLIGHT = Bound(100_000_000)  # pixels that all threads decode at once: some 1 GB at most
MAX_BYTES = 64 << 20  # of a file
MAX_PIXELS = 89_478_485  # of a decoded image; Pillow begins to warn at the same number
# What image-caption collections hold. The list keeps Pillow from trying its rarer plug-ins
# (PostScript, to name one) on bytes from the web.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
SUFFIXES = (  # of files that are taken for pictures; their content then says what they are
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif",
)  # fmt: skip
MAX_SCANS = 100  # of a JPEG, libtiff's limit too; usual are ten
MAX_PASSES = 1_500_000_000  # pixels that all scans of a JPEG pass over together
Pixels = UInt8[np.ndarray, "H W 3"]
FEATURES = {"WEBP": "webp", "AVIF": "avif"}  # formats that a Pillow may be built without
BROKEN = "unreadable image"
ENCODERS = {"jpeg": "JPEG", "webp": "WEBP"}  # what resized images are stored as
EXIF = ("apply", "ignore")  # what is done with an orientation by EXIF
TURNED = "turned upright, as its EXIF orientation says"
IGNORED = "EXIF orientation ignored"
FIRST = "only the first of its frames or pages is read"

# By orientation: steps down and across, after the sides are exchanged from 5 on (EXIF 2.32, 4.6.4).
_FLIPS = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}
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


class Stored(NamedTuple):
    """Holds an image as a set stores it.

    Attributes:
      size: width and height as it came, in pixels, turned upright.
      content: its file.
      resized: whether it was resized.
      notes: what else was changed or left out, for the report.
    """

    size: tuple[int, int]
    content: bytes
    resized: bool
    notes: tuple[str, ...]


def decode(data: bytes, *, exif: str = "apply") -> Pixels:
    """Returns the pixels of an image as RGB.

    Transparency becomes white; grey, palette, CMYK, LAB and 16-bit pictures are converted; of
    several frames or pages the first is taken. `exif` "apply" turns a JPEG, PNG or WebP upright by
    its EXIF orientation; "ignore" leaves its pixels as they are stored, as torchvision does. What a
    TIFF or an AVIF says of its orientation is part of the format, and always applied.

    Raises:
      UnreadableImage: not an image, truncated, more than MAX_PIXELS, a JPEG of more than
        MAX_SCANS or MAX_PASSES, or too many blocks; all but truncation is known before any pixel
        is decoded.
    """
    with _unreadable(data):
        tag = _orientation(data)
        pixels = _jpeg(data)
        if pixels is None:
            img = _open(data)
            with IN_FLIGHT.hold(img.width * img.height):
                pixels = _turned(np.asarray(rgb(img)), _own_orientation(img))
        return _turned(pixels, tag.value) if tag and exif == "apply" else pixels


def shrink(data: bytes, size: int, *, format: str, quality: int, exif: str = "apply") -> Stored:
    """Returns an image as it is to be stored, with a shorter side of at most `size` pixels.

    An image whose shorter side is longer is resized (bicubic, antialiased) and encoded again in
    `format`, a key of ENCODERS, at `quality`, 1 to 100; all others come back as the same bytes,
    after a test that they can be decoded. `size` 0 resizes none. A JPEG is decoded at an eighth,
    quarter or half of its size where that is twice `size` or more: that is six times as fast, and
    hardly visible.

    No stored image has an EXIF orientation, so that all readers see the same pixels. With `exif`
    "apply" it is turned upright; if it need not be resized, it is encoded again in its own format,
    PNG and lossless WebP without a loss, others at quality 95. With "ignore" its pixels stay as
    they are, and the tag in its bytes becomes 1.

    Raises UnreadableImage as `decode` does.
    """
    with _unreadable(data), contextlib.ExitStack() as holding:
        tag = _orientation(data)
        img = _open(data)
        notes = (FIRST,) if _has_more_frames(img, data) else ()
        turn = _own_orientation(img)
        if tag:
            turn = tag.value if exif == "apply" else 1
            notes += (TURNED if exif == "apply" else IGNORED,)
        shape = img.size if turn < 5 else img.size[::-1]
        holding.enter_context(IN_FLIGHT.hold(img.width * img.height))
        if size and min(shape) > size:
            new = resized(img.size, size)
            img.draft(img.mode, (2 * size, 2 * size))
            small = rgb(img).resize(new, Image.Resampling.BICUBIC)
            with contextlib.suppress(OSError, ValueError):  # WebP ends at 16,383 pixels
                content = _encoded(small, turn, ENCODERS[format], quality=quality)
                return Stored(shape, content, True, notes)
            img = _open(data)
        whole = rgb(img)
        if not tag:
            content = data
        elif exif == "ignore":
            content = headers.upright(data, tag)
        else:
            content = _encoded(whole, turn, img.format, **_alike(img, data))
        return Stored(shape, content, False, notes)


def center_crop(pixels: Pixels, resize: int, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Resizes the shorter side to `resize` pixels, bicubic, and crops the middle `size` x `size`.

    The longer side becomes int(resize * long / short). Halves are rounded to even, as torchvision
    does.
    """
    height, width = resized(pixels.shape[:2], resize)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return _crop(pixels, (height, width), top, left, size)


def random_crop(
    pixels: Pixels, resize: int, size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "S S 3"]:
    """Cuts out a window chosen uniformly, where `center_crop` takes the middle."""
    height, width = resized(pixels.shape[:2], resize)
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


def resized(shape: tuple[int, ...], size: int) -> tuple[int, int]:
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
    said = re.sub("<[^<>]* at 0x[0-9a-f]+>", "it", str(error)) or type(error).__name__
    return UnreadableImage(f"{format}: {said}", BROKEN)


def _own_orientation(img: Image.Image) -> int:
    """Returns the orientation that is part of an AVIF, 1 to 8; Pillow gives it as if by EXIF."""
    exif = Image.Exif()
    if img.format == "AVIF":
        exif.load(img.info.get("exif", b""))
    return exif.get(ExifTags.Base.Orientation, 1)


def _turned(pixels: Pixels, orientation: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """Turns and mirrors pixels so that they stand as the orientation, 1 to 8, wants them seen."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    down, across = _FLIPS[orientation]
    return np.ascontiguousarray(pixels[::down, ::across])


def _has_more_frames(img: Image.Image, data: bytes) -> bool:
    """Tells whether there are more frames or pages than the first, as far as Pillow can tell."""
    if img.format in ("PNG", "WEBP", "AVIF"):
        return img.n_frames > 1
    if img.format not in ("GIF", "TIFF"):
        return False
    try:
        _open(data).seek(1)
    except Exception:  # there is none, or it is broken
        return False
    return True


def _encoded(img: Image.Image, orientation: int, format: str, **options: Any) -> bytes:
    """Returns the file of an image that is turned upright before."""
    file = io.BytesIO()
    Image.fromarray(_turned(np.asarray(img), orientation)).save(file, format, **options)
    return file.getvalue()


def _alike(img: Image.Image, data: bytes) -> dict[str, Any]:
    """Returns the options by which a JPEG, PNG or WebP is encoded again with least loss."""
    if img.format == "WEBP":
        return {"quality": 95, "lossless": b"VP8L" in data[:64]}
    if img.format == "PNG":
        return {}
    return {"quality": 95, "subsampling": 2 if JpegImagePlugin.get_sampling(img) == 2 else 0}


def _orientation(data: bytes) -> headers.Tag | None:
    """Returns the orientation by EXIF.

    Raises UnreadableImage for a JPEG of too many scans, or too many blocks in any picture.
    """
    header = headers.read_jpeg(data) if data.startswith(b"\xff\xd8") else None
    much = blocks.excess(data, header)
    if much:
        raise UnreadableImage(f"{headers.format_of(data)}: far too much of {much}", BROKEN)
    if header is None:
        return headers.orientation(data)
    most = min(MAX_SCANS, MAX_PASSES // max(1, header.pixels))
    if header.several and headers.count_scans(data, most) > most:
        raise UnreadableImage(f"JPEG of more than {most} scans, usual are ten", BROKEN)
    return header.orientation


def _open(data: bytes) -> Image.Image:
    """Reads the header. Raises UnreadableImage for more than MAX_PIXELS."""
    if data[8:16] == b"WEBPVP8X":  # libwebp makes room for all of it when it opens the file
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        _check_size(width, height)
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
        with IN_FLIGHT.hold(width * height):
            return simplejpeg.decode_jpeg(data, "RGB")
    except UnreadableImage:
        raise
    except ValueError:  # broken; Pillow decides which of these can be read all the same
        return None


def rgb(img: Image.Image) -> Image.Image:
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
