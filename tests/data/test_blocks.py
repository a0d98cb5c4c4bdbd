"""A picture of thousands of comments, texts or tags is refused before a decoder reads them."""

import io
import struct
import zlib

import numpy as np
import pytest
from pictures import noise
from PIL import Image

from otter_jax.data import blocks, images


def gif(comments, after=False):
    whole = noise(1, "GIF")
    first = 13 + (3 << (whole[10] & 7) + 1 if whole[10] & 0x80 else 0)
    inside = b"".join(b"!\xfe" + b"".join(b"\1c" for _ in range(n)) + b"\0" for n in comments)
    frame = whole[first:-1]
    return whole[:first] + (frame + inside + frame if after else inside + frame) + b";"


def png(kind, content, number):
    whole = noise(1, "PNG")
    chunk = struct.pack(">I", len(content)) + kind + content
    chunk += struct.pack(">I", zlib.crc32(kind + content))
    return whole[:33] + chunk * number + whole[33:]


def tiff(entries, size, kind=7):
    """A directory of tags that all hold what follows it, `size` values of this type."""
    head = b"II*\0" + struct.pack("<IH", 8, entries)
    tags = (struct.pack("<HHII", 60_000, kind, size, 8) for _ in range(entries))
    return head + b"".join(tags) + bytes(4) + bytes(100)


def jpeg(segments):
    whole = noise(1)
    return whole[:2] + b"".join(segments) + whole[2:]


def exif(block):
    return b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block


PACKED = b"a\0\0" + zlib.compress(bytes(100))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (gif([1] * 1_001), "GIF: far too much of comments"),
        (gif([1_001]), "GIF: far too much of comments"),
        (gif([1_001], after=True), "GIF: far too much of comments"),
        (gif([]).replace(b",", b"\1" * 20_000 + b",", 1), "GIF: far too much of stray bytes"),
        (png(b"tEXt", b"a\0b", 201), "PNG: far too much of texts or colour profiles"),
        (png(b"iCCP", PACKED, 201), "PNG: far too much of texts or colour profiles"),
        (png(b"IDAT", b"", 5_000), "PNG: far too much of chunks of a few bytes"),
        (tiff(5_000, 10), "TIFF: far too much of tags"),
        (tiff(3_000, 30_000), "TIFF: far too much of content in tags"),
        (tiff(2, 300_000, kind=4) + bytes(3_000_000), "TIFF: far too much of numbers in tags"),
        (jpeg([exif(tiff(3_000, 30_000))]), "JPEG: far too much of content in tags"),
        (jpeg([exif(tiff(3_000, 30_000)[n : n + 9_000]) for n in range(0, 36_000, 9_000)]),
         "JPEG: far too much of content in tags"),
        (jpeg([b"\xff\xfe\0\2"] * 1_001), "JPEG: far too much of segments before pixels"),
        (b"\0\0\0\x1cftypavif" + bytes(20) + tiff(5_000, 10), "AVIF: far too much of EXIF tags"),
    ],
    ids=lambda value: value if isinstance(value, str) else "picture",
)  # fmt: skip
def test_blocks_are_counted_before_they_are_read(monkeypatch, content, what):
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(images.UnreadableImage, match=what):
        images.decode(content)
    with pytest.raises(images.UnreadableImage, match=what):
        images.shrink(content, 10, format="jpeg", quality=90)


def test_ordinary_pictures_have_far_less(tmp_path):
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(256, size=(900, 1200, 3), dtype=np.uint8))
    about = Image.Exif()
    about[0x0112], about[0x010E] = 6, "a description" * 99
    for format, options in (
        ("JPEG", {"exif": about, "icc_profile": bytes(500_000), "progressive": True}),
        ("PNG", {"exif": about, "icc_profile": bytes(500_000)}),
        ("GIF", {"comment": b"x" * 9_000, "save_all": True, "append_images": [large] * 2}),
        ("TIFF", {"exif": about, "compression": "tiff_lzw"}),
        ("WEBP", {"exif": about}),
        ("AVIF", {"exif": about, "speed": 10}),
    ):
        file = io.BytesIO()
        large.save(file, format, **options)
        assert blocks.excess(file.getvalue()) == "", format
        assert images.decode(file.getvalue()).size == 900 * 1200 * 3


def test_scans_are_counted_by_the_pixels_that_they_pass_over(monkeypatch):
    file = io.BytesIO()
    Image.fromarray(np.zeros((60, 50, 3), np.uint8)).save(file, "JPEG", progressive=True)
    assert images.decode(file.getvalue()).shape == (60, 50, 3)
    monkeypatch.setattr(images, "MAX_PASSES", 60 * 50 * 4)
    with pytest.raises(images.UnreadableImage, match="JPEG of more than 4 scans"):
        images.decode(file.getvalue())


def test_the_canvas_of_a_webp_is_looked_at_before_room_is_made_for_it(monkeypatch):
    head = b"RIFF" + struct.pack("<I", 100) + b"WEBPVP8X" + struct.pack("<II", 10, 2)
    content = head + (60_000).to_bytes(3, "little") * 2 + bytes(90)
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(images.UnreadableImage, match="60001 x 60001 pixels are more"):
        images.decode(content)
