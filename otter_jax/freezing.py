"""Freezing: parameters that stay as they are while the rest is trained.

A regular expression names them. They get no gradient and no update, their batch norms use the
stored running statistics, and an EMA teacher shares them with its student.
"""

import re

import flax.linen as nn
import jax
from flax import traverse_util
from jaxtyping import PyTree

from otter_jax.errors import UserError
from otter_jax.models.norm import BatchNorm


def frozen(path: str, pattern: str) -> bool:
    """Tells whether the parameter at `path`, such as "img/blocks_3_0/bn1/scale", matches `pattern`.

    The regular expression must match from the beginning of the path; "" freezes nothing.
    """
    return bool(pattern) and re.match(pattern, path) is not None


def frozen_mask(params: PyTree, pattern: str) -> PyTree[bool]:
    """Marks the parameters that stay as they are.

    Raises UserError if a pattern matches none of them, or all.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    mask = {path: frozen(path, pattern) for path in flat}
    if pattern and (all(mask.values()) or not any(mask.values())):
        many = "every parameter" if all(mask.values()) else "no parameter"
        some = sorted({"/".join(path.split("/")[:2]) + "/" for path in flat})
        raise UserError(
            f"optim.freeze={pattern!r} matches {many}. It is a regular expression matched from the "
            f"beginning of a parameter's path; paths here begin with: {', '.join(some)}."
        )
    return traverse_util.unflatten_dict(mask, sep="/")


def stop_frozen(params: PyTree, pattern: str) -> PyTree:
    """Stops the gradient to the frozen parameters, so that their backward pass is not computed."""
    flat = traverse_util.flatten_dict(params, sep="/")
    stopped = {k: jax.lax.stop_gradient(v) if frozen(k, pattern) else v for k, v in flat.items()}
    return traverse_util.unflatten_dict(stopped, sep="/")


def with_frozen(variables: PyTree, source: PyTree, pattern: str) -> PyTree:
    """Returns variables with the frozen ones, and the statistics that belong to them, of `source`.

    An EMA teacher's are equal to its student's. If it looks with the student's, the compiler sees
    that both compute the same with them, and computes it once; if it keeps its own when it follows,
    the compiler sees that nothing moves, and does not even read them.
    """

    def pick(path, own, others):
        name = "/".join(key.key for key in path[1:])
        if path[0].key == "batch_stats":  # frozen together with the scale beside it
            name = name.rpartition("/")[0] + "/scale"
        return others if frozen(name, pattern) else own

    return jax.tree_util.tree_map_with_path(pick, variables, source)


def stored_statistics(pattern: str):
    """Makes batch norms with a frozen scale use, and keep, their running statistics.

    Returns a context; modules that are applied in it need no code for this.
    """

    def interceptor(call, args, kwargs, context):
        if isinstance(context.module, BatchNorm) and context.method_name == "__call__":
            path = "/".join((*context.module.path, "scale"))
            if frozen(path, pattern):
                kwargs = kwargs | {"use_running_average": True}
        return call(*args, **kwargs)

    return nn.intercept_methods(interceptor)
