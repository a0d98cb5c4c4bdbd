"""Reads the checkpoints of a run that is to be used, without what it takes to write them.

Orbax has written them. Its arrays are read here by TensorStore, as Orbax reads them, but in a tenth
of its time: a model's first answer waits for this.
"""

import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorstore
from jax.sharding import Sharding
from jaxtyping import PyTree

from otter_jax.errors import UserError
from otter_jax.run import digests

ABOUT = "_METADATA"  # Orbax's list of the arrays in a state, and how they are stored


class Taken(NamedTuple):
    """Names a checkpoint that was taken, and why: "the best by ...", "the latest", "--step"."""

    step: int
    why: str

    def __str__(self):
        return f"step {self.step} ({self.why})"


def restore_best(
    workdir: pathlib.Path,
    like: PyTree,
    sharding: Sharding,
    *,
    best: str,
    step: int | None = None,
    optional: Mapping[str, PyTree] | None = None,
) -> tuple[PyTree, Taken]:
    """Restores the entries of `like` from a run's best checkpoint; returns them, and which it is.

    The best is that with the largest metric `best`, else the latest; `step` takes another one.
    Entries of `optional` are restored if the checkpoint has them. Raises UserError if there is no
    such checkpoint, or it is of another model, or damaged.
    """
    folder = pathlib.Path(workdir).absolute() / "checkpoints"
    if not complete(folder):
        raise UserError(f"There is no checkpoint in {workdir}: train first, or mend --workdir.")
    taken = choose(folder, best, step)
    there = entries(folder, taken.step) if optional else set()
    more = {name: tree for name, tree in (optional or {}).items() if name in there}
    return restore_part(folder, taken.step, like | more, sharding), taken


def choose(folder: pathlib.Path, best: str, step: int | None) -> Taken:
    """Returns the checkpoint `step`, or with None the best by the metric `best`, else the latest.

    Raises UserError if there is none of this step, or the metrics of one are damaged.
    """
    steps = complete(folder)
    if step is not None:
        return Taken(find(folder, steps, step), "--step")
    scores = {}
    for each in steps:
        check_whole(folder, each, "metrics")
        scores[each] = metrics_of(folder, each).get(best, -math.inf)
    rated = [each for each in steps if scores[each] > -math.inf]
    if best and rated:
        return Taken(max(rated, key=scores.get), f"the best by {best}")
    return Taken(steps[-1], "the latest")


def find(folder: pathlib.Path, steps: list[int], step: int) -> int:
    """Returns `step` if it is one of the steps in a folder, else raises UserError."""
    if step not in steps:
        there = ", ".join(map(str, steps)) or "none"
        raise UserError(f"There is no checkpoint of step {step} in {folder}: {there}.")
    return step


def complete(folder: pathlib.Path) -> list[int]:
    """Returns the steps of the complete checkpoints in a folder, whatever else is there."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def metrics_of(folder: pathlib.Path, step: int) -> dict[str, float]:
    """Returns the metrics of a checkpoint; {} if it has none."""
    path = folder / str(step) / "metrics" / "metrics"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def entries(folder: pathlib.Path, step: int) -> set[str]:
    """Returns the names of the entries in the state of `step`: "params", "teacher", ..."""
    try:
        return {path[0] for path in _paths(_about(folder, step))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder, step, f"it cannot be read ({first_line(error)})") from error


def restore_part(folder: pathlib.Path, step: int, like: PyTree, sharding: Sharding) -> PyTree:
    """Restores those entries of the state of `step` that `like` has, on the devices of `sharding`.

    `like` gives structure and shapes. Raises UserError, which lists the differences, if the
    checkpoint is of another model, or names what is damaged.
    """
    check_whole(folder, step, "state")
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    wanted = {tuple(map(name_of, path)): leaf for path, leaf in leaves}
    try:
        about = _about(folder, step)
        there = _paths(about)
        opened = {
            path: _opened(folder / str(step) / "state", about, path)
            for path in wanted.keys() & there
        }
        stores = {path: store.result() for path, store in opened.items()}
        saved = {"/".join(path): tuple(store.shape) for path, store in stores.items()}
        shapes = {"/".join(path): tuple(leaf.shape) for path, leaf in wanted.items()}
        compare(folder / str(step), saved, shapes, partial=True)
        reads = {path: store.read() for path, store in stores.items()}
        found = [_placed(reads[p].result(), leaf.dtype, sharding) for p, leaf in wanted.items()]
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise damaged(folder, step, f"it cannot be read ({first_line(error)})") from error
    return jax.tree.unflatten(structure, found)


def _about(folder: pathlib.Path, step: int) -> dict[str, Any]:
    return json.loads((folder / str(step) / "state" / ABOUT).read_text("utf-8"))


def _paths(about: Mapping[str, Any]) -> set[tuple[str, ...]]:
    """Returns the paths of all arrays in a state."""
    listed = about["tree_metadata"].values()
    return {tuple(str(key["key"]) for key in each["key_metadata"]) for each in listed}


def _opened(state: pathlib.Path, about: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """Begins to open an array."""
    name = ".".join(path)
    store = {"driver": "ocdbt", "base": f"file://{state}/"}
    if not about.get("use_ocdbt", True):
        store, name = {"driver": "file", "path": f"{state}/{name}/"}, ""
    driver = "zarr3" if about.get("use_zarr3") else "zarr"
    return tensorstore.open(
        {"driver": driver, "kvstore": store, "path": name}, read=True, open=True
    )


def _placed(values: np.ndarray, dtype: Any, sharding: Sharding) -> jax.Array:
    values = values.astype(dtype, copy=False)
    return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)


def check_whole(folder: pathlib.Path, step: int, part: str) -> None:
    """Raises UserError if files of a part of a checkpoint are not as they were written."""
    wrong = digests.damaged(folder / str(step), part)
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise damaged(folder, step, f"not as they were written are {', '.join(wrong[:3])}{more}")


def damaged(folder: pathlib.Path, step: int, what: str) -> UserError:
    """Returns the error of a damaged checkpoint, which names those that may be whole."""
    others = [number for number in complete(folder) if number != step]
    return UserError(
        f"The checkpoint {folder / str(step)} is damaged: {what}. "
        + (
            f"Other steps there: {', '.join(map(str, others))}. To go on from one of them, "
            f"train with --from {others[-1]}; to evaluate or export it, --step {others[-1]}."
            if others
            else "There is no other one: restore the folder from a copy, or train again."
        )
    )


def first_line(error: Exception) -> str:
    """Returns the first line of an error's text, at most 300 characters.

    Of a longer one TensorStore tells the cause at the end, before it describes the array.
    """
    lines = re.sub(r" \[\w+='.*", "", str(error)).strip().splitlines()
    if not lines:
        return type(error).__name__
    line = lines[0]
    return line if len(line) <= 300 else f"{line[:140]} ... {line[-155:]}"


def shapes_of(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a tree's arrays by their paths, "params/img/..."."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    # Saved, a NamedTuple of the optimiser is a dictionary or a list: compare the names alone.
    return {"/".join(name_of(key) for key in path): tuple(leaf.shape) for path, leaf in flat}


def name_of(key: Any) -> str:
    """Returns the name in a key of a path, of whatever kind of node."""
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def compare(
    folder: pathlib.Path,
    saved: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    partial: bool,
) -> None:
    """Raises UserError that lists what differs between the shapes saved and those wanted.

    With `partial` others may have been saved beside them.
    """
    missing = sorted(wanted.keys() - saved.keys())
    surplus = [] if partial else sorted(saved.keys() - wanted.keys())
    shapes = [
        f"{k} is {saved[k]}, here {wanted[k]}"
        for k in sorted(wanted.keys() & saved.keys())
        if saved[k] != wanted[k]
    ]
    differences = [
        f"{len(items)} {what} ({'; '.join(items[:4])}{'; ...' if len(items) > 4 else ''})"
        for what, items in (
            ("tensors of this model are not in it", missing),
            ("of its tensors are not in this model", surplus),
            ("tensors have another shape", shapes),
        )
        if items
    ]
    if differences:
        raise UserError(
            f"The checkpoint {folder} is of another model, optimiser or method: "
            f"{', '.join(differences)}. Use the config that it was trained with, or another "
            "--workdir."
        )
