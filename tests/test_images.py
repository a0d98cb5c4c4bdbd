"""Bytes to pixels: as torchvision does, and never a crash."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from otter_jax.data import images

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def encoded(img, format, **options):
    file = io.BytesIO()
    img.save(file, format, **options)
    return file.getvalue()


def gradient(width=40, height=30):
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 6, y * 8, x + y], -1).astype(np.uint8))


@pytest.mark.parametrize("case", [0, 1])
def test_resize_and_center_crop_give_the_released_codes_pixels(golden, case):
    arrays = golden("unit_transforms.npz")
    img = images.resize(Image.fromarray(arrays[f"in_{case}"]), 256)
    pixels = images.center_crop(img, 224)
    out = ((pixels / np.float32(255) - MEAN) / STD).transpose(2, 0, 1)
    np.testing.assert_allclose(out[:, ::4, ::4], arrays[f"out_{case}_stride4"], atol=1e-6)
    np.testing.assert_allclose(out[:, 100, :], arrays[f"out_{case}_row100"], atol=1e-6)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (224, 224), (225, 1000), (3, 2), (7, 7)])
def test_after_resize_a_crop_always_fits(size):
    img = images.resize(gradient(*size), 32)
    assert min(img.size) == 32
    assert max(img.size) == int(32 * max(size) / min(size))
    assert images.center_crop(img, 32).shape == (32, 32, 3)
    assert images.random_crop(img, 32, np.random.default_rng(0)).shape == (32, 32, 3)


def test_random_crops_reach_every_place_and_follow_the_generator():
    img = gradient(34, 33)
    whole = np.asarray(img)
    windows = {whole[y : y + 32, x : x + 32].tobytes() for y in range(2) for x in range(3)}
    rng = np.random.default_rng(0)
    assert {images.random_crop(img, 32, rng).tobytes() for _ in range(100)} == windows
    again = [images.random_crop(img, 32, np.random.default_rng(1)) for _ in range(2)]
    np.testing.assert_array_equal(*again)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA"])
def test_every_png_mode_becomes_rgb(mode):
    img = gradient().convert(mode)
    decoded = images.decode(encoded(img, "PNG"))
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(decoded, img.convert("RGB"))


def test_cmyk_becomes_rgb():
    img = images.decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert img.mode == "RGB"
    np.testing.assert_allclose(np.asarray(img)[4, 4], (255, 0, 0), atol=4)


def test_16_bit_grey_keeps_its_upper_bits():
    deep = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    for format in ("PNG", "TIFF"):
        pixels = np.asarray(images.decode(encoded(Image.fromarray(deep), format)))
        np.testing.assert_array_equal(pixels[0, :, 0], [0, 0, 1, 128, 255])


def test_transparency_lies_on_white():
    rgba = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert images.decode(encoded(rgba, "PNG")).getpixel((3, 3)) == (255, 255, 255)
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert images.decode(encoded(half, "PNG")).getpixel((3, 3)) == (127, 127, 127)
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30])
    assert images.decode(encoded(palette, "PNG", transparency=0)).getpixel((3, 3)) == (255,) * 3


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_an_animation_is_its_first_frame(format):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert images.decode(data).getpixel((8, 8)) == (255, 0, 0)


def test_the_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert images.decode(encoded(gradient(40, 30), "JPEG", exif=exif)).size == (40, 30)


def png_header(width, height):
    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>404 Not Found</html>",
        encoded(gradient(200, 200), "JPEG")[:-800],
        encoded(gradient(200, 200), "PNG")[:-800],
        encoded(gradient(200, 200), "WEBP")[:-800],
        png_header(10_000, 10_000),
        png_header(100_000, 100_000),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
    ids=["empty", "html", "cut jpeg", "cut png", "cut webp", "100 MP", "10 GP", "postscript"],
)
def test_what_is_no_picture_is_unreadable_and_nothing_worse(data):
    with pytest.raises(images.UnreadableImage):
        images.decode(data)


def test_a_hairline_is_unreadable_rather_than_gigabytes():
    with pytest.raises(images.UnreadableImage, match="too thin"):
        images.resize(Image.new("RGB", (1, 5_000)), 256)
