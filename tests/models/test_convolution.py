"""What is written out of convolutions, norms and linear layers is XLA's own, with gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from otter_jax.models import convolution
from otter_jax.models.linear import contract
from otter_jax.models.norm import BatchNorm, LayerNorm

NONE, ONE, THREE = (((n, n), (n, n)) for n in (0, 1, 3))


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape))


def same_with_gradients(function, expected, *arrays):
    """Compares values and all gradients of two functions, both compiled as one program."""

    @jax.jit
    def compare(*arrays):
        value, pull = jax.vjp(expected, *arrays)
        grad = jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape)
        ours, pull_ours = jax.vjp(function, *arrays)
        return (ours, pull_ours(grad)), (value, pull(grad))

    ours, theirs = compare(*arrays)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), ours, theirs)


@pytest.mark.parametrize(
    ("shape", "size", "stride", "padding"),
    [
        ((5, 7), 1, 1, NONE),
        ((5, 8), 1, 2, NONE),
        ((6, 9), 3, 3, NONE),
        ((5, 8), 2, 2, NONE),  # it does not divide into windows
        ((5, 8), 3, 2, ONE),
        ((9, 7), 7, 2, THREE),
        ((4, 4), 1, 1, ONE),
        ((8, 7), 3, 2, "SAME"),
    ],
)
def test_a_convolution_is_that_of_xla_with_its_gradients(shape, size, stride, padding, monkeypatch):
    monkeypatch.setattr(convolution, "CACHE", 10_000)  # one to six pieces of the batch
    with jax.enable_x64(True):
        same_with_gradients(
            partial(convolution.convolve, stride=stride, padding=padding),
            partial(convolution.convolve_by_xla, stride=stride, padding=padding),
            drawn(6, *shape, 3),
            drawn(size, size, 3, 4),
        )


def test_a_convolution_in_bfloat16_has_gradients_in_bfloat16():
    model = convolution.Convolution(4, 1, 2, NONE, jnp.bfloat16)
    x = drawn(2, 5, 5, 3).astype(jnp.float32)
    variables = model.init(jax.random.key(0), x)
    value, pull = jax.vjp(model.apply, variables, x)
    assert value.dtype == jnp.bfloat16
    grads, _ = pull(jnp.ones_like(value))
    kernel = grads["params"]["kernel"]
    assert kernel.dtype == jnp.float32
    expected = jnp.broadcast_to(x[:, ::2, ::2].sum((0, 1, 2))[:, None], (3, 4))
    np.testing.assert_allclose(kernel[0, 0], expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("shape", [(6, 6), (5, 8)])
def test_a_maximum_is_that_of_xla_and_its_gradient_goes_to_the_first_of_equals(shape):
    ours = partial(convolution.max_pool, size=3, stride=2, padding=ONE)
    theirs = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=ONE)
    x = jnp.floor(2 * drawn(2, *shape, 3))  # many are equal
    same_with_gradients(ours, theirs, x)
    x = x.at[0, 2, 2, 0].set(jnp.nan)
    np.testing.assert_array_equal(ours(x), theirs(x))


def test_gradients_of_both_norms_are_those_of_automatic_differentiation():
    with jax.enable_x64(True):
        x, scale, bias = 3 + 2 * drawn(4, 3, 5, 2), drawn(2), drawn(2)
        norm = BatchNorm(dtype=jnp.float64)
        stats = {"mean": jnp.zeros(2), "var": jnp.ones(2)}

        def ours(x, scale, bias):
            variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
            return norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])[0]

        def plain(x, scale, bias):
            return (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5) * scale + bias

        same_with_gradients(ours, plain, x, scale, bias)

        def ours(x, scale, bias):
            variables = {"params": {"scale": scale, "bias": bias}}
            return LayerNorm(1e-5, jnp.float64).apply(variables, x)

        def plain(x, scale, bias):
            mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
            return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias

        same_with_gradients(ours, plain, x, scale, bias)


def test_a_linear_layer_is_that_of_flax_with_its_gradients():
    with jax.enable_x64(True):
        x, kernel, bias = drawn(2, 3, 5), drawn(5, 4), drawn(4)

        def layer(dot_general, x, kernel, bias):
            layer = nn.Dense(4, dot_general=dot_general)
            return layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)

        same_with_gradients(partial(layer, contract), partial(layer, None), x, kernel, bias)


@pytest.mark.parametrize("depthwise", [False, True])
def test_each_device_computes_the_kernels_gradient_of_its_own_images(depthwise, monkeypatch):
    monkeypatch.setattr(convolution, "CACHE", 10_000)
    function = convolution.depthwise if depthwise else convolution.convolve
    split, whole = (
        jax.NamedSharding(jax.make_mesh((8,), ("data",)), jax.P(*names)) for names in (["data"], [])
    )
    shapes = [(16, 12, 12, 4), (3, 3, 1 if depthwise else 4, 4)]
    slopes = jax.grad(lambda x, k: jnp.sin(function(x, k, 1, "SAME")).sum(), (0, 1))
    lowered = jax.jit(slopes, in_shardings=(split, whole), out_shardings=(split, whole)).lower(
        *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    )
    assert convolution.pieces(16, 16 * 10_000, 8) == 2  # with an image of every device in each
    program = lowered.compile().as_text()
    assert "all-reduce" in program
    assert "all-gather" not in program
