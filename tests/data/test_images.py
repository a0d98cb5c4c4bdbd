"""Bytes to pixels: as torchvision does, and never a crash."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import skimage.data
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
    pixels = images.center_crop(arrays[f"in_{case}"], 256, 224)
    out = pixels.transpose(2, 0, 1).astype(int)

    def theirs(name):
        normalised = np.moveaxis(arrays[f"out_{case}_{name}"], 0, -1)
        return np.moveaxis((normalised * STD + MEAN) * 255, -1, 0).round()

    for ours, released in (
        (out[:, ::4, ::4], theirs("stride4")),
        (out[:, 100, :], theirs("row100")),
    ):
        difference = np.abs(ours - released)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-3


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (224, 224), (225, 1000), (3, 2), (7, 7)])
def test_after_resize_a_crop_always_fits(size):
    img = np.asarray(gradient(*size))
    assert images.center_crop(img, 32, 32).shape == (32, 32, 3)
    for seed in range(50):
        rng = np.random.default_rng(seed)
        assert images.random_crop(img, 32, 32, rng).shape == (32, 32, 3)
        assert images.random_resized_crop(img, 32, 0.1, rng).shape == (32, 32, 3)


def test_random_crops_reach_every_place_and_follow_the_generator():
    whole = np.asarray(gradient(34, 33))
    windows = {whole[y : y + 32, x : x + 32].tobytes() for y in range(2) for x in range(3)}
    rng = np.random.default_rng(0)
    assert {images.random_crop(whole, 33, 32, rng).tobytes() for _ in range(100)} == windows
    again = [images.random_crop(whole, 33, 32, np.random.default_rng(1)) for _ in range(2)]
    np.testing.assert_array_equal(*again)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA"])
def test_every_png_mode_becomes_rgb(mode):
    img = gradient().convert(mode)
    np.testing.assert_array_equal(images.decode(encoded(img, "PNG")), img.convert("RGB"))


def test_cmyk_becomes_rgb():
    pixels = images.decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    np.testing.assert_allclose(pixels[4, 4], (255, 0, 0), atol=4)


def test_16_bit_grey_keeps_its_upper_bits():
    deep = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    for format in ("PNG", "TIFF"):
        pixels = images.decode(encoded(Image.fromarray(deep), format))
        np.testing.assert_array_equal(pixels[0, :, 0], [0, 0, 1, 128, 255])


def test_transparency_lies_on_white():
    rgba = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (images.decode(encoded(rgba, "PNG")) == 255).all()
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert (images.decode(encoded(half, "PNG")) == 127).all()
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30])
    assert (images.decode(encoded(palette, "PNG", transparency=0)) == 255).all()


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_an_animation_is_its_first_frame(format):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert (images.decode(data) == (255, 0, 0)).all()


def test_the_exif_orientation_is_applied_unless_it_is_to_be_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    data = encoded(gradient(40, 30), "JPEG", exif=exif)
    assert images.decode(data).shape == (40, 30, 3)
    assert images.decode(data, exif="ignore").shape == (30, 40, 3)


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


def test_a_hairline_does_not_become_gigabytes():
    img = np.full((50_000, 1, 3), (255, 0, 0), np.uint8)
    tracemalloc.start()
    pixels = images.center_crop(img, 256, 224)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (pixels == (255, 0, 0)).all()
    assert most < 10 << 20


def photo(name):
    """One of scikit-image's, 400 pixels high."""
    img = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    return img.resize((round(img.width * 400 / img.height), 400))


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("resize", [256, 390, 450])
def test_resizing_the_crop_alone_changes_a_pixel_by_one_at_most(name, resize, turned):
    img = photo(name)
    if turned:
        img = img.transpose(Image.Transpose.ROTATE_90)
    width, height = (
        int(resize * side / min(img.size)) if side > min(img.size) else resize for side in img.size
    )
    # Rows, then columns: Pillow 13 does it the other way about for some shapes.
    whole = img.resize((width, img.height), Image.Resampling.BICUBIC)
    whole = whole.resize((width, height), Image.Resampling.BICUBIC)
    top, left = round((height - 224) / 2), round((width - 224) / 2)
    expected = [whole.crop((left, top, left + 224, top + 224))]
    found = [images.center_crop(np.asarray(img), resize, 224)]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        top, left = int(rng.integers(height - 223)), int(rng.integers(width - 223))
        expected.append(whole.crop((left, top, left + 224, top + 224)))
        found.append(images.random_crop(np.asarray(img), resize, 224, np.random.default_rng(seed)))
    difference = np.abs(np.stack(found).astype(int) - np.stack(expected))
    assert difference.max() <= 1
    assert difference.mean() < 1e-2


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "options", [{"subsampling": n} for n in range(3)] + [{"progressive": True}]
)
def test_jpeg_pixels_are_pillows(mode, options):
    data = encoded(photo("chelsea").convert(mode), "JPEG", **options)
    assert images._jpeg(data) is not None
    np.testing.assert_array_equal(images.decode(data), Image.open(io.BytesIO(data)).convert("RGB"))


def test_a_jpeg_with_a_flaw_that_pillow_forgives_is_still_read():
    data = encoded(gradient(200, 200), "JPEG")
    place = data.index(b"\xff\xda")
    flawed = data[:place] + b"\0" + data[place:]  # a stray byte between two markers
    assert images._jpeg(flawed) is None
    np.testing.assert_array_equal(images.decode(flawed), images.decode(data))


def test_a_random_part_has_the_area_and_the_shape_that_are_allowed():
    y, x = np.mgrid[:120, :200]
    img = np.stack([x, y, x * 0], -1).astype(np.uint8)
    areas = []
    for seed in range(200):
        part = images.random_resized_crop(img, 16, 0.3, np.random.default_rng(seed)).astype(float)
        width, height = (np.ptp(part[:, :, axis]) * 16 / 15 for axis in (0, 1))
        areas.append(width * height / (120 * 200))
        assert 0.6 < width / height < 1.5
    assert 0.25 < min(areas) < 0.35
    assert max(areas) > 0.7


def test_jitter_keeps_grey_grey_and_moves_brightness_both_ways():
    grey = np.full((8, 8, 3), 100, np.uint8)
    found = [images.jitter(grey, 0.4, np.random.default_rng(seed)) for seed in range(50)]
    assert all(np.ptp(pixels) == 0 for pixels in found)
    values = [int(pixels[0, 0, 0]) for pixels in found]
    assert 55 < min(values) < 80
    assert 120 < max(values) < 145
    np.testing.assert_array_equal(images.jitter(grey, 0.0, np.random.default_rng(0)), grey)
