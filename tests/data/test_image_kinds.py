"""Kinds of pictures: by content, right or named."""

import io
import re
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from otter_jax.data import headers, images

Y, X = np.mgrid[:30, :40]
RGB = np.stack([X * 6, Y * 8, X + Y], -1).astype(np.uint8)
IMG = Image.fromarray(RGB)


def encoded(img, format, **options):
    file = io.BytesIO()
    img.save(file, format, **options)
    return file.getvalue()


def tiff(pixels, bits, photometric=1, signed=False):
    """A grey TIFF of one strip."""
    tags = [
        (256, 4, pixels.shape[1]), (257, 4, pixels.shape[0]), (258, 3, bits), (259, 3, 1),
        (262, 3, photometric), (273, 4, 8), (277, 3, 1), (278, 4, pixels.shape[0]),
        (279, 4, pixels.nbytes), (339, 3, 1 + signed),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    start = struct.pack("<I", 8 + pixels.nbytes)
    number = struct.pack("<H", len(tags))
    return b"II*\0" + start + pixels.tobytes() + number + directory + bytes(4)


@pytest.mark.parametrize(
    ("format", "options", "near"),
    [
        ("JPEG", {"quality": 100, "subsampling": 0}, 3),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("GIF", {}, 24),
        ("BMP", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("TIFF", {"save_all": True, "append_images": [IMG.rotate(180)]}, 0),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}, 3),
    ],
)
def test_every_format_is_read_by_its_content(format, options, near):
    data = encoded(IMG, format, **options)
    assert headers.format_of(data) == format
    assert np.abs(images.decode(data).astype(int) - RGB).max() <= near


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_colour_profile_changes_no_pixel_when_stored_resized_or_read(format):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    plain, tagged = (encoded(IMG, format, **how) for how in ({}, {"icc_profile": lab}))
    assert b"Lab " in tagged or format == "PNG"  # there it is packed
    assert np.array_equal(images.decode(tagged), images.decode(plain))
    small = [images.shrink(data, 20, format="jpeg", quality=90) for data in (plain, tagged)]
    assert small[0].content == small[1].content
    assert images.shrink(tagged, 0, format="jpeg", quality=90).content == tagged


def test_cmyk_is_read_as_it_is_shown():
    for format, options in (("TIFF", {}), ("JPEG", {"quality": 100, "subsampling": 0})):
        pixels = images.decode(encoded(IMG.convert("CMYK"), format, **options))
        assert np.abs(pixels.astype(int) - RGB).max() <= 3


def test_one_bit_tiffs_are_black_and_white():
    img = IMG.convert("1")
    pixels = images.decode(encoded(img, "TIFF", compression="group4"))
    np.testing.assert_array_equal(pixels[..., 0], np.asarray(img) * np.uint8(255))


def test_16_bit_tiffs_keep_their_upper_bits_and_zero_may_be_white():
    deep = (X * 1600).astype("<u2")
    np.testing.assert_array_equal(images.decode(tiff(deep, 16))[..., 1], deep >> 8)
    np.testing.assert_array_equal(images.decode(tiff(deep, 16, 0))[..., 1], 255 - (deep >> 8))


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray((X / 40).astype(np.float32)), "TIFF"),
        encoded(Image.fromarray(X.astype(np.int32)), "TIFF"),
        tiff(X.astype("<i2"), 16, signed=True),
        tiff(np.zeros((30, 60), np.uint8), 12),
    ],
    ids=["float", "32 bit", "signed", "12 bit"],
)
def test_numbers_whose_range_nobody_said_are_named_and_not_shown_black(data):
    with pytest.raises(images.UnreadableImage, match="TIFF of numbers whose range is not known"):
        images.decode(data)


UNREAD = {
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic": "HEIC picture, not read: convert it to JPEG or PNG",
    b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic": "HEIC picture, not read: convert it to JPEG or PNG",
    b"\xff\x0a\xfa\x1f": "JPEG XL picture, not read: convert it to JPEG or PNG",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL picture, not read: convert it to JPEG or PNG",
    b'<?xml version="1.0"?><svg xmlns="s"/>': "SVG picture, not read: convert it to JPEG or PNG",
    b"8BPS\0\1": "Photoshop picture, not read: convert it to JPEG or PNG",
    b"P6\n1 1\n255\nabc": "Netpbm picture, not read: convert it to JPEG or PNG",
    b"%PDF-1.4": "no picture: a PDF file",
    b"\n<!DOCTYPE html><html>404": "no picture: an HTML page",
    b"<html>404": "no picture: an HTML page",
    b"version https://git-lfs.github.com/spec/v1": "no picture: a Git LFS pointer",
    b"\0\0\0\x18ftypisom\0\0\0\0": "no picture: a video",
    b"Not Found": "no picture: text",
    bytes(64): "no picture: zeros alone",
    b"": "no picture: nothing",
    b"\x01\x02\x03": "no picture: of no known format",
    b"\x89PNG\r\n\x1a\n": "PNG: its header is broken",
    b"\xff\xd8\xff": "JPEG: its header is broken",
    b"BM": "BMP: its header is broken",
    encoded(IMG, "AVIF")[:80]: "AVIF: ",
}


@pytest.mark.parametrize("data", UNREAD, ids=lambda data: UNREAD[data])
def test_what_cannot_be_read_is_named_by_its_format(data):
    for read in (images.decode, lambda data: images.shrink(data, 9, format="jpeg", quality=9)):
        with pytest.raises(images.UnreadableImage) as caught:
            read(data)
        assert str(caught.value).startswith(UNREAD[data])
        assert not re.search("0x[0-9a-f]{4}", str(caught.value))


def test_foreign_formats_are_counted_each_by_itself_and_broken_files_together():
    kinds = set()
    for data in UNREAD:
        with pytest.raises(images.UnreadableImage) as caught:
            images.decode(data)
        kinds.add(caught.value.kind)
    foreign = ("HEIC", "JPEG XL", "SVG", "Photoshop", "Netpbm")
    assert kinds == {images.BROKEN} | {
        f"{name} picture, not read: convert it to JPEG or PNG" for name in foreign
    }


def test_no_error_names_an_address_in_memory():
    error = OSError("cannot read <_io.BytesIO object at 0x7f5f51acb970> further")
    assert str(images._reason(b"BM", error)) == "BMP: cannot read it further"


def scans(count):
    """A grey progressive JPEG of so many scans."""
    data = encoded(IMG.convert("L"), "JPEG", progressive=True)
    start = data.index(b"\xff\xda")
    scan = data[start : data.index(b"\xff", start + 4)]
    return data[:start] + scan * count + data[start:]


def test_a_jpeg_of_hundreds_of_scans_is_refused_before_it_is_decoded():
    ordinary = encoded(IMG, "JPEG", progressive=True)
    assert 5 < headers.count_scans(ordinary, 100) < 20
    images.decode(ordinary)
    for read in (images.decode, lambda data: images.shrink(data, 9, format="jpeg", quality=9)):
        with pytest.raises(images.UnreadableImage, match="more than 100 scans"):
            read(scans(101))


def test_what_looks_like_scans_in_the_comment_of_a_jpeg_is_none():
    data = encoded(IMG, "JPEG", progressive=True, comment=b"\xff\xda" * 200)
    assert headers.count_scans(data, 100) < 20
    assert images.decode(data).shape == RGB.shape


def test_a_picture_that_webp_cannot_hold_when_resized_stays_as_it_came():
    data = encoded(Image.new("RGB", (36_000, 4)), "PNG")  # 18,000 x 2 pixels; WebP ends at 16,383
    stored = images.shrink(data, 2, format="webp", quality=90)
    assert (stored.content, stored.resized) == (data, False)
    assert images.shrink(data, 2, format="jpeg", quality=90).resized


def test_a_format_that_this_pillow_was_built_without_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setattr(images.features, "check", lambda _: False)
    with pytest.raises(images.UnreadableImage, match="AVIF .* pip install -U pillow, or convert"):
        images.decode(encoded(IMG, "AVIF")[:-20])
