"""Weights by recipe: what the arch_*.npz files were computed with, from names and shapes alone."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from otter_jax import weights

SEED = 20260


def recipe_variables(module, *inputs):
    """The module's variables, in its own layout, each drawn by the name it has in files."""
    like = weights.shapes(module, *inputs)
    names = {
        path: weights.file_name(path, weights.FAMILIES[type(module)])
        for path in traverse_util.flatten_dict(like)
    }

    def draw(path, leaf):
        path = tuple(key.key for key in path)
        axes = weights.file_axes(path, leaf.ndim)
        values = tensor(names[path], tuple(leaf.shape[axis] for axis in np.argsort(axes)))
        return values.transpose(axes)

    return jax.tree_util.tree_map_with_path(draw, like)


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
