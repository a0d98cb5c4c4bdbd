"""Weights by recipe: what the arch_*.npz files were computed with, from names and shapes alone."""

import jax
import jax.numpy as jnp
import numpy as np
from golden.draw import SEED, tensor

from otter_jax.weights import encoders, naming


def recipe_variables(module, *inputs, family=None):
    """The module's variables, each drawn by the name it has in files of `family`."""
    family = family or naming.families(module)[0]
    like = jax.tree.map(
        lambda x: np.zeros(x.shape, np.float32), encoders.variable_shapes(module, *inputs)
    )
    drawn = {name: tensor(name, x.shape) for name, x in naming.export(like, family).items()}
    return naming.convert(drawn, like, (family,), source="recipe")


def recipe_images(count, size):
    """Standard normal images [count, size, size, 3]."""
    images = np.random.RandomState(SEED).standard_normal((count, 3, size, size))
    return jnp.asarray(images.transpose(0, 2, 3, 1), jnp.float32)
