"""Normalisation of channels (with running statistics as in PyTorch) and of vectors."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class BatchNorm(nn.Module):
    """Normalises each channel (the last axis) over all other axes.

    The running variance follows the unbiased batch variance, as in PyTorch; flax's own module takes
    the biased one, which is 1/16 less at 16 values per channel. It is written for the global batch:
    under `jit` with a sharded batch, the means below are means over all devices.

    Attributes:
      momentum: the weight of the old running value (one minus PyTorch's).
      dtype: of the output; the arithmetic is in float32 or better.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch C"], *, use_running_average: bool
    ) -> Float[Array, "*batch C"]:
        width = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, width)
        bias = self.param("bias", nn.initializers.zeros, width)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, width)
        running_var = self.variable("batch_stats", "var", jnp.ones, width)

        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        shifted = x - running_mean.value
        if use_running_average:
            gain = scale / jnp.sqrt(running_var.value + self.epsilon)
            return (shifted * gain + bias).astype(self.dtype)
        axes = tuple(range(x.ndim - 1))
        count = x.size // x.shape[-1]
        # Both moments in one pass over x, relative to the running mean, so that a large mean
        # does not cost a small variance its precision.
        offset = shifted.mean(axes)
        var = jnp.maximum(jnp.square(shifted).mean(axes) - jnp.square(offset), 0)
        if not self.is_initializing():
            old, new = self.momentum, 1 - self.momentum
            running_mean.value += new * offset
            running_var.value = old * running_var.value + new * var * (count / (count - 1))
        affine = jnp.asarray(scale), jnp.asarray(bias)
        return normalise(shifted, *affine, offset, var, self.epsilon).astype(self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def normalise(
    x: Float[Array, "*batch C"],
    scale: Float[Array, " C"],
    bias: Float[Array, " C"],
    mean: Float[Array, " C"],
    var: Float[Array, " C"],
    epsilon: float,
) -> Float[Array, "*batch C"]:
    """Normalises each channel by its own moments, `mean` and `var`, and scales it.

    The gradient is written out: two sums, then one pass over x. It counts what x changes through
    its moments as part of x's gradient, so that theirs are 0. On CPUs it takes a quarter of the
    time of automatic differentiation, which goes through both moments.
    """
    return (x - mean) * (scale / jnp.sqrt(var + epsilon)) + bias


def _normalise(x, scale, bias, mean, var, epsilon):
    return normalise(x, scale, bias, mean, var, epsilon), (x, scale, mean, var)


def _normalise_back(epsilon, residuals, grad):
    x, scale, mean, var = residuals
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    deviation = jnp.sqrt(var + epsilon)
    # Both sums before anything else: otherwise XLA adds up again in what follows.
    total, product = jax.lax.optimization_barrier((grad.sum(axes), (x * grad).sum(axes)))
    slope = (product - mean * total) / deviation
    gain = scale / deviation
    tilt = gain * slope / (count * deviation)
    grad_x = gain * grad - tilt * (x - mean) - gain * total / count
    return grad_x, slope, total, jnp.zeros_like(mean), jnp.zeros_like(var)


normalise.defvjp(_normalise, _normalise_back)


class LayerNorm(nn.Module):
    """Normalises each vector (the last axis) by its own mean and variance.

    Attributes:
      dtype: of the output; the arithmetic is in float32 or better.
    """

    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        affine = jnp.asarray(scale), jnp.asarray(bias)
        return normalise_vectors(x, *affine, self.epsilon).astype(self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise_vectors(
    x: Float[Array, "*batch C"], scale: Float[Array, " C"], bias: Float[Array, " C"], epsilon: float
) -> Float[Array, "*batch C"]:
    """Normalises each vector, and scales its entries.

    The variance is not E[x²] - E[x]², which is 100 times less exact where a mean is ten times the
    deviation. The gradient is written out. After that of automatic differentiation XLA for CPUs
    adds up the gradients of all later blocks again at each block of a vision transformer.
    """
    return _normalise_vectors(x, scale, bias, epsilon)[0]


def _normalise_vectors(x, scale, bias, epsilon):
    mean = x.mean(-1, keepdims=True)
    gain = jax.lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + epsilon)
    return (x - mean) * (gain * scale) + bias, (x, scale, mean, gain)


def _normalise_vectors_back(epsilon, residuals, grad):
    x, scale, mean, gain = residuals
    axes = tuple(range(x.ndim - 1))
    unit, scaled = (x - mean) * gain, grad * scale
    # Both means before anything else, as in `_normalise_back`.
    offset, slope = jax.lax.optimization_barrier(
        (scaled.mean(-1, keepdims=True), (scaled * unit).mean(-1, keepdims=True))
    )
    grad_x = gain * (scaled - offset - slope * unit)
    grad_scale, grad_bias = (grad * unit).sum(axes), grad.sum(axes)
    return grad_x, grad_scale.astype(scale.dtype), grad_bias.astype(scale.dtype)


normalise_vectors.defvjp(_normalise_vectors, _normalise_vectors_back)
