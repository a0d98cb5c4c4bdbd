"""Records are checked, large images resized once, and few are held at once."""

import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import counts, made
from pictures import noise
from PIL import Image
from tars import write_tar

from otter_jax.data.build.parts import image_to_store
from otter_jax.data.build.plan import Options, Record
from otter_jax.data.formats import kinds


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_large_images_are_resized_once_and_small_ones_are_not_touched(tmp_path, format):
    y, x = np.mgrid[0:300, 0:480]
    smooth = np.stack([x / 2, y / 2, 128 + 100 * np.sin(x / 40)], axis=2).astype(np.uint8)
    large = io.BytesIO()
    Image.fromarray(smooth).save(large, "JPEG", quality=95)
    members = [
        ("large.jpg", large.getvalue()),
        ("large.txt", "x"),
        ("s.jpg", noise()),
        ("s.txt", "y"),
    ]
    tar = write_tar(tmp_path / "a.tar", members)
    options = Options(resize=64, format=format, quality=90)
    kept, part = made(tmp_path, kinds.plan_of([tar], "mine", options))
    assert kept["s"]["image"] == noise()
    with Image.open(io.BytesIO(kept["large"]["image"])) as small:
        assert small.format == format.upper()
        assert small.size == (102, 64)
        expected = Image.fromarray(smooth).resize((102, 64), Image.Resampling.BICUBIC)
        difference = np.asarray(small.convert("RGB"), int) - np.asarray(expected, int)
    assert np.abs(difference).mean() < 4
    assert counts(part) == {"image resized to 64 pixels": 1}
    assert part["shorter_side"]["max"] == 300


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.integers(0, 5), st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=8)
)
def test_no_bytes_break_the_check_of_an_image(kind, changes):
    content = bytearray(noise(kind, ["JPEG", "PNG", "WEBP"][kind % 3]))
    for place, value in changes:
        content[place % len(content)] = value
    for options in (Options(), Options(resize=7)):
        checked = image_to_store(Record("x", bytes(content), {}), options)
        assert bool(checked.why) != bool(checked.image)
