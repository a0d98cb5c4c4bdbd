"""Filter attention: a learned weight on every convolution filter, the filters themselves frozen.

Every convolution y = conv(x, W) of a network becomes y = conv(x, W * A), with A = 1 at the start
and no activation (Mo, Cheng & Fang, arXiv:1906.04950). Here that is a function on parameters: gates
are parameters of their own, under the key "gates" and there under the path of their kernel, and
`fold` multiplies them in before a network is applied. No encoder knows of it.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float, PyTree

from otter_jax.errors import UserError

SHAPES = ("filter", "slice")
PENALTIES = ("", "l2", "l1")
Path = tuple[str, ...]


def check_gates(shape: str, penalty: str, strength: float) -> None:
    """Raises UserError for impossible values of a config's `gates` section."""
    for key, value, known in (("shape", shape, ("", *SHAPES)), ("penalty", penalty, PENALTIES)):
        if value not in known:
            raise UserError(f"gates.{key}={value!r}: one of {', '.join(map(repr, known))}.")
    if not shape and penalty:
        raise UserError(f"gates.penalty={penalty!r}, but gates.shape is empty: there are no gates.")
    if strength < 0:
        raise UserError(f"gates.strength={strength}: must not be less than 0.")


def create(params: PyTree, shape: str) -> PyTree:
    """Makes gates of 1 for every convolution in `params`.

    For a kernel [K, K, I, O] a "filter" gate is [1, 1, 1, O], one weight per filter; a "slice" gate
    is [1, 1, I, O], one weight per K x K slice of a filter (26,560 and 13,385,920 weights in
    ResNet-50 with its shortcuts).
    Raises UserError if there is no convolution.
    """
    gates = {
        path: jnp.ones((1, 1, 1 if shape == "filter" else leaf.shape[2], leaf.shape[3]), leaf.dtype)
        for path, leaf in traverse_util.flatten_dict(params).items()
        if is_convolution(path, leaf)
    }
    if not gates:
        raise UserError("There is no convolution among these parameters that a gate could be on.")
    return traverse_util.unflatten_dict(gates)


def is_convolution(path: Path, leaf: Any) -> bool:
    """Tells whether the parameter is the kernel of a convolution."""
    return path[-1] == "kernel" and leaf.ndim == 4


def fold(params: Mapping[str, Any]) -> dict[str, Any]:
    """Multiplies every gated kernel by its gate, and drops the entry "gates".

    A gated network computes with the result, so that gates cost nothing at inference. Without an
    entry "gates" the parameters are returned as they are.
    """
    flat = traverse_util.flatten_dict({k: v for k, v in params.items() if k != "gates"})
    for path, gate in traverse_util.flatten_dict(params.get("gates", {})).items():
        flat[path] = flat[path] * gate
    return traverse_util.unflatten_dict(flat)


def folded(variables: PyTree) -> PyTree:
    """Returns {"params", "batch_stats"} of a module with the gates folded into its parameters."""
    return variables | {"params": fold(variables["params"])}


def penalty(gates: PyTree, kind: str) -> Float[Array, ""]:
    """Returns the gate penalty, before its factor lambda; 0 for "".

    "l2" is -mean((A - 1)^2) of each convolution, summed over them: it rewards leaving 1 (the
    paper's "modified L2"; it has no lower bound, so lambda and the number of steps bound it).
    "l1" is the mean of |A| over all gates.
    """
    leaves = list(traverse_util.flatten_dict(gates).values())
    if kind == "l2":
        return -sum(jnp.square(gate - 1).mean() for gate in leaves)
    if kind == "l1":
        return sum(jnp.abs(gate).sum() for gate in leaves) / sum(gate.size for gate in leaves)
    return jnp.zeros(())


def attention(gates: PyTree) -> dict[Path, Float[Array, "_"]]:
    """Returns the attention to each filter of each convolution: the mean of |A| over its slices."""
    flat = traverse_util.flatten_dict(gates)
    return {path: jnp.abs(gate).mean((0, 1, 2)) for path, gate in flat.items()}
