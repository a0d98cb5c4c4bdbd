"""Parses phases, which say what each epoch trains, and selects those groups of parameters."""

import re
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
from flax import traverse_util
from jaxtyping import PyTree

from otter_jax.errors import UserError

GROUPS = {  # a phase trains one or several of these
    "f": "the classifier",
    "a": "the gates (filter attention)",
    "b": "scales and biases of the norms",
    "w": "all other weights",
}


def group_of(path: tuple[str, ...], beside: set[str], model: nn.Module) -> str:
    """Returns the group (f, a, b, w) of a parameter.

    `beside` are the names of all parameters in its layer.
    """
    if path[0] == "gates":
        return "a"
    if path[0] == model.classifier:
        return "f"
    return "b" if "scale" in beside else "w"


def select(params: PyTree, group: str, model: nn.Module) -> PyTree:
    """Returns the parameters of one group; {} if there are none."""
    flat = traverse_util.flatten_dict(params)
    beside: dict[tuple[str, ...], set[str]] = {}
    for *module, name in flat:
        beside.setdefault(tuple(module), set()).add(name)
    chosen = {k: v for k, v in flat.items() if group_of(k, beside[k[:-1]], model) == group}
    return traverse_util.unflatten_dict(chosen)


def merge(params: PyTree, groups: Mapping[str, PyTree]) -> PyTree:
    """Returns `params` with the parameters of `groups` in place of the old ones."""
    flat = traverse_util.flatten_dict(params)
    for part in groups.values():
        flat |= traverse_util.flatten_dict(part)
    return traverse_util.unflatten_dict(flat)


def groups_of(phases: Sequence[str]) -> list[str]:
    """Returns the groups that any of the phases trains, sorted."""
    return sorted(set("".join(phases)))


def parse(text: str) -> list[str]:
    """Parses the groups of each epoch: "FFa[fb]" is ["f", "f", "a", "bf"].

    Raises UserError for a letter that is no group, and for no letter at all.
    """
    known = "; ".join(f"{letter} {what}" for letter, what in GROUPS.items())
    phases = []
    for match in re.finditer(r"\[(\w+)\]|(\w)|(.)", text, re.DOTALL):
        groups = (match[1] or match[2] or match[3]).lower()
        unknown = [letter for letter in groups if letter not in GROUPS]
        if unknown:
            raise UserError(
                f"phases={text!r}: there is no group {unknown[0]!r} (character "
                f"{match.start() + 1}). There are {known}; [bf] trains two together."
            )
        phases.append("".join(sorted(set(groups))))
    if not phases:
        raise UserError(f"phases='' trains nothing. There are {known}; an epoch each.")
    return phases


def sizes(params: PyTree, model: nn.Module) -> dict[str, int]:
    """Returns the number of values in each group."""
    return {
        group: sum(leaf.size for leaf in jax.tree.leaves(select(params, group, model)))
        for group in GROUPS
    }
