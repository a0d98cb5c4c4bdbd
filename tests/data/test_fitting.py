"""Pictures are fitted as other projects do, where they do it in another way."""

import numpy as np
import pytest
from PIL import Image

from otter_jax.data.fitting import fit
from otter_jax.data.images import center_crop
from otter_jax.models.fitting import Fitting

WHITE = np.full((20, 40, 3), 255, np.uint8)


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_the_default_is_the_crop_of_this_project():
    picture = noise(90, 60)
    np.testing.assert_array_equal(fit(picture, Fitting(32, 40)), center_crop(picture, 40, 32))


def test_squash_keeps_the_whole_picture_and_not_its_shape():
    picture = noise(90, 60)
    whole = Image.fromarray(picture).resize((32, 32), Image.Resampling.BILINEAR)
    fitted = fit(picture, Fitting(32, 32, "squash", "bilinear"))
    np.testing.assert_array_equal(fitted, np.array(whole))


def test_longest_keeps_the_whole_picture_between_black_bars():
    fitted = fit(WHITE, Fitting(32, 32, "longest"))
    assert (fitted[8:24] == 255).all()
    assert not fitted[:8].any()
    assert not fitted[24:].any()
    odd = fit(WHITE[:19], Fitting(32, 32, "longest"))  # 15 rows: 8 below for 8.5 on either side
    assert (odd[8:23] == 255).all()
    assert not odd[:8].any()
    assert not odd[23:].any()


def test_longest_keeps_a_line_of_a_very_long_picture():
    fitted = fit(np.full((1, 1000, 3), 255, np.uint8), Fitting(8, 8, "longest"))
    assert fitted.shape == (8, 8, 3)
    assert fitted.any()


@pytest.mark.parametrize(("halves", "left"), [("down", 1), ("even", 2)])
def test_half_a_pixel_beside_the_crop_goes_where_they_put_it(halves, left):
    picture = noise(32, 35)  # 1.5 pixels on either side
    fitted = fit(picture, Fitting(32, 32, halves=halves))
    np.testing.assert_array_equal(fitted, picture[:, left : left + 32])
