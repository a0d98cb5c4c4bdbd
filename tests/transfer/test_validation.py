"""A validation's top-K: ties are expected values, and what is not finite has none."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from pictures import coloured

from otter_jax import mesh as meshes
from otter_jax.configs import transfer
from otter_jax.data.source import Source
from otter_jax.errors import UserError
from otter_jax.run.console import make_console
from otter_jax.transfer.labelled import Labelled
from otter_jax.transfer.validation import Validation

COLOURS = [(200, 30, 30), (20, 180, 40), (30, 40, 220)]


class Network(nn.Module):
    """The score of a class is that of its colour; a fourth and fifth have others' scores."""

    @nn.compact
    def __call__(self, image, train):
        weight = self.param("weight", nn.initializers.ones, ())
        return weight * image.mean(axis=(1, 2))[:, jnp.array([0, 1, 2, 1, 2])]


@pytest.fixture
def validated():
    features = {"image": tfds.features.Image(), "key": tfds.features.Text()}
    pictures = [*(coloured(colour, n) for n, colour in enumerate(COLOURS)), b""]
    records = [{"image": image, "key": b"p%d" % n} for n, image in enumerate(pictures)]
    source = Source("birds:validation", records, tfds.features.FeaturesDict(features))
    data = Labelled(source, np.array([0, 1, 2, 0], np.int32), tuple("abcde"))
    config = transfer.get_config()
    config.eval.batch_size, config.data.resize, config.data.image_size = 4, 36, 32

    def call(weight):
        validation = Validation(config, Network(), data, meshes.make_mesh(2), make_console())
        return validation({"weight": np.float32(weight)}, {})

    return call


def test_a_class_that_is_level_with_the_right_one_is_half_a_hit(validated):
    assert validated(1) == {"top-1": (1 + 0.5 + 0.5) / 3, "top-3": 1.0}


def test_scores_that_are_all_equal_give_chance_and_those_that_are_not_finite_an_error(validated):
    assert validated(0) == pytest.approx({"top-1": 1 / 5, "top-3": 3 / 5})
    with pytest.raises(UserError, match="birds:validation: the network's scores hold NaN or infin"):
        validated(np.nan)
