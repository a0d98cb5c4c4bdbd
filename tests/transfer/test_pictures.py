"""What attention says: rankings, and the pictures that excite a filter."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from otter_jax.report.transfer import extremes, plot_excitement, plot_histograms, ranking
from otter_jax.transfer import pictures


class Colours(nn.Module):
    """Two convolutions of 1 x 1, whose filters each look for one colour."""

    @nn.compact
    def __call__(self, image, *, train):
        x = nn.Conv(4, (1, 1), name="first")(image)
        return nn.Conv(2, (1, 1), name="second")(x).mean((1, 2))


def test_pictures_are_those_that_excite_the_most_and_the_least_attended_filter():
    red_green_blue = jnp.eye(3)[None, None]
    first = jnp.concatenate([red_green_blue, jnp.zeros((1, 1, 3, 1))], -1)
    kernels = {"first": first, "second": jnp.ones((1, 1, 4, 2))}
    params = {name: {"kernel": k, "bias": jnp.zeros(k.shape[-1])} for name, k in kernels.items()}
    attention = {
        ("first",): np.array([0.2, 1.5, 3.0, 1.0], np.float32),
        ("second",): np.array([1.0, 1.0], np.float32),
    }
    # Picture i has one pixel of red and one of blue, the redder the less blue.
    images = np.zeros((9, 4, 4, 3), np.uint8)
    images[:, 1, 2, 0] = redness = np.array([30, 80, 10, 70, 40, 60, 20, 90, 50])
    images[:, 3, 0, 2] = 100 - redness
    shown = pictures.excite(
        Colours(),
        {"params": params},
        attention,
        images,
        normalise=lambda image: image.astype(jnp.float32),
        batch_size=4,
    )
    by = {(one.layer[0], one.rank): one for one in shown}
    assert by.keys() == {
        ("first", 0), ("first", 1), ("first", -2), ("first", -1), ("second", 0), ("second", -1)
    }  # fmt: skip
    most, least = by["first", 0], by["first", -1]
    assert (most.filter, most.attention) == (2, 3.0)
    assert (least.filter, round(least.attention, 3)) == (0, 0.2)
    assert least.pictures[:, 1, 2, 0].tolist() == [90, 80, 70, 60, 50, 40]
    assert most.pictures[:, 3, 0, 2].tolist() == [90, 80, 70, 60, 50, 40]
    assert len(plot_excitement(shown).axes) == 6 * (pictures.PICTURES + 1)


def test_the_ranking_has_the_most_attended_first_and_its_ends_in_a_row():
    attention = {("block", "conv"): np.array([0.5, 2.0, 1.0, 1.25, 0.75], np.float32)}
    ranked = ranking(attention)
    assert ranked == {
        "block/conv": {"filters": [1, 3, 2, 4, 0], "attention": [2.0, 1.25, 1.0, 0.75, 0.5]}
    }
    (row,) = extremes(attention)
    assert list(row.values()) == [
        "block/conv", 5, "1 (2.000), 3 (1.250), 2 (1.000)", "0 (0.500), 4 (0.750), 2 (1.000)"
    ]  # fmt: skip


def test_the_most_telling_convolutions_are_those_whose_filters_differ_most():
    spreads = [0.1, 0.5, 0.0, 0.4, 0.3, 0.2]
    attention = {(f"conv{i}",): np.array([1 - s, 1 + s], np.float32) for i, s in enumerate(spreads)}
    assert pictures.telling(attention) == [("conv1",), ("conv3",), ("conv4",), ("conv5",)]


def test_histograms_are_of_the_gates_themselves_with_their_signs():
    gates = {("conv",): np.array([-1.0, -1.0, 1.0, 2.0], np.float32).reshape(1, 1, 2, 2)}
    (axis,) = plot_histograms(gates).axes
    heights = {round(bar.get_x(), 1): bar.get_height() for bar in axis.patches if bar.get_height()}
    assert sorted(heights.values()) == [1, 1, 2]
    assert min(heights) < 0
    assert heights[min(heights)] == 2
