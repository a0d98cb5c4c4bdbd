"""Weights by recipe: what the arch_*.npz files were computed with, from names and shapes alone."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from otter_jax import names, weights

SEED = 20260


def recipe_variables(module, *inputs, family=None):
    """The module's variables, each drawn by the name it has in files of `family`."""
    family = family or names.families(module)[0]
    like = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), weights.shapes(module, *inputs))
    drawn = {name: tensor(name, x.shape) for name, x in names.export(like, family).items()}
    return names.convert(drawn, like, (family,), source="recipe")


def tensor(name, shape):
    """A tensor of a file, in PyTorch's axes."""
    z = np.random.RandomState((SEED * 1000003 + zlib.crc32(name.encode())) % 2**32)
    z = z.standard_normal(shape)
    if name.endswith("running_mean"):
        z = 0.1 * z
    elif name.endswith("running_var"):
        z = 0.5 + np.abs(z)
    elif name.endswith("bias"):
        z = 0.05 * z
    elif len(shape) == 4:
        z = z * np.sqrt(2 / (shape[0] * shape[2] * shape[3]))
    elif len(shape) == 2:
        z = 0.05 * z
    else:
        z = 1 + 0.1 * z
    return z.astype(np.float32)


def recipe_images(count, size):
    """Standard normal images [count, size, size, 3]."""
    images = np.random.RandomState(SEED).standard_normal((count, 3, size, size))
    return jnp.asarray(images.transpose(0, 2, 3, 1), jnp.float32)
