"""The two towers' own part: heads, and vectors of length one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otter_jax.models.towers import head, unit


@pytest.mark.parametrize("width", [4, 2048])
def test_a_head_starts_as_pytorchs_linear_layers_do(width):
    params = head(width, 500).init(jax.random.key(0), np.zeros((1, width)))["params"]
    bound = width**-0.5
    for values in (params["kernel"], params["bias"]):
        assert np.abs(values).max() <= bound
        np.testing.assert_allclose(values.std(), bound / np.sqrt(3), rtol=0.1)


def test_rows_have_length_one_and_a_row_of_zeros_has_no_gradient():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(unit(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    gradient = jax.grad(lambda x: unit(x)[:, 0].sum())(x)
    np.testing.assert_allclose(gradient[0], [0.128, -0.096], rtol=1e-5)
    assert np.isfinite(gradient).all()
