"""Features and gradients against those that golden/make_transformers.py computed."""

import jax
import numpy as np
from golden.draw import tensor

from otter_jax.weights import naming

PART = "|gradient|"


def compare(encode, variables, family, expected, key):
    """`encode` (variables to features) agrees with what `expected` has under `key`.

    Features to 1e-4 of the largest, gradients to 1e-3: the norms of all, entries of a few.
    """
    probe = tensor("probe", expected[f"{key}|features"].shape)

    def scalar(params):
        features = encode({"params": params})
        return (features * probe).sum(), features

    gradients, features = jax.jit(jax.grad(scalar, has_aux=True))(variables["params"])
    near(features, expected[f"{key}|features"], 1e-4)
    gradients = naming.export({"params": gradients}, family)
    norms = [np.linalg.norm(gradients[name]) for name in sorted(gradients)]
    # Of a key's bias the gradient is zero but for rounding.
    most = np.max(norms)
    np.testing.assert_allclose(norms, expected[f"{key}|norms"], rtol=1e-3, atol=1e-6 * most)
    parts = {name: part for name, part in expected.items() if name.startswith(key + PART)}
    assert parts
    for name, part in parts.items():
        gradient = gradients[name.partition(PART)[2]].ravel()
        near(gradient[:: max(1, gradient.size // 50)], part, 1e-3)


def near(actual, expected, limit):
    """All entries are within `limit` of the largest."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=limit * np.abs(expected).max())
