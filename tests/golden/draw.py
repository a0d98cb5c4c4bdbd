"""Random tensors from names and shapes alone, for PyTorch and JAX alike; no import of either."""

import zlib

import numpy as np

SEED = 20260


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
    elif len(shape) == 4 and shape[1] == 1:  # a filter for each channel
        z = z * np.sqrt(2 / (shape[2] * shape[3]))
    elif len(shape) == 4:
        z = z * np.sqrt(2 / (shape[0] * shape[2] * shape[3]))
    elif len(shape) == 2:
        z = 0.05 * z
    else:
        z = 1 + 0.1 * z
    return z.astype(np.float32)
