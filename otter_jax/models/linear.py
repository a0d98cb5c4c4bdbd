"""Products with matrices of parameters, with gradients that need no transposed copy."""

from typing import Any

import jax
from jaxtyping import Array, Float


@jax.custom_vjp
def product(x: Float[Array, "*batch C"], kernel: Float[Array, "C C2"]) -> Float[Array, "*batch C2"]:
    """Multiplies each vector by a matrix.

    The kernel's gradient is written out as a product of two matrices, contracted over their rows.
    That of automatic differentiation has XLA for CPUs write out a transposed copy of `grad`, and
    compute again in it, badly, whatever made `grad`: that takes longer than the product.
    """
    return x @ kernel


def _product(x, kernel):
    return product(x, kernel), (x, kernel)


def _product_back(residuals, grad):
    x, kernel = residuals
    rows, grads = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    return grad @ kernel.T, jax.lax.dot_general(rows, grads, (((0,), (0,)), ((), ())))


product.defvjp(_product, _product_back)


def contract(x: Array, kernel: Array, dimensions: Any, precision: Any = None) -> Array:
    """Is `product` as the `dot_general` of flax's Dense, which asks for no other dimensions."""
    assert (dimensions, precision) == ((((x.ndim - 1,), (0,)), ((), ())), None)
    return product(x, kernel)
