"""Checkpoints (Orbax): saved in the background, kept by a policy, opened on any devices."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from jaxtyping import PyTree

from otter_jax.errors import UserError

_policy = ocp.checkpoint_managers.preservation_policy


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Returns False: polling JAX here would advance the counter by which `cluster.Stop` agrees.

        All processes agree on the stopping step by asking JAX equally often.
        """
        return False


class Checkpoints:
    """Saves and restores the checkpoints of one run, in WORKDIR/checkpoints/STEP.

    It keeps the latest, the one with the largest metric `best` (of those saved together with
    metrics; "" for none), and each whose step is a multiple of `keep_every` (0 for none). A
    directory gets its number only when it is complete, so that a checkpoint that a killed process
    left half written is never restored.
    """

    def __init__(
        self, workdir: pathlib.Path, *, best: str = "", keep_every: int = 0, read_only: bool = False
    ):
        self._folder = pathlib.Path(workdir).absolute() / "checkpoints"
        # LatestN beside BestN: a manager told only of the best deletes the latest when it is bad.
        keep = [_policy.LatestN(1)]
        score = (lambda metrics: metrics.get(best, -math.inf)) if best else None
        if score:
            keep.append(
                _policy.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
            )
        if keep_every:
            keep.append(_policy.EveryNSteps(keep_every))
        self._best = best
        self._manager = _Manager(
            self._folder,
            item_handlers={"state": ocp.PyTreeCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                best_fn=score,  # without it no metrics are written; the policy decides what is kept
                preservation_policy=_policy.AnyPreservationPolicy(keep),
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
            ),
        )

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step of the checkpoint with the largest metric; the latest if none has it."""
        scores = {step: self._metrics(step).get(self._best) for step in self._manager.all_steps()}
        scores = {step: score for step, score in scores.items() if score is not None}
        return max(scores, key=scores.get, default=self.latest)

    def entries(self, step: int) -> set[str]:
        """Returns the names of the entries in the state of `step`: "params", "teacher", ..."""
        return set(self._manager.item_metadata(step)["state"].tree)

    def save(self, step: int, state: PyTree, metrics: Mapping[str, float] | None = None) -> None:
        """Copies the state from the devices, then writes it in the background."""
        if step == self.latest:
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.PyTreeSave(state)),
            metrics=dict(metrics) if metrics else None,
        )

    def is_rated(self, step: int) -> bool:
        """Tells whether the metric `best` of this checkpoint is known, or none is needed."""
        return not self._best or self._best in self._metrics(step)

    def rate(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of a checkpoint that was saved before it was evaluated."""
        if not self._best or not metrics:
            return
        with ocp.Checkpointer(ocp.JsonCheckpointHandler("metrics")) as writer:
            folder = self._folder / str(step) / "metrics"
            writer.save(folder, args=ocp.args.JsonSave(dict(metrics)), force=True)
        self._manager.reload()

    def restore(self, step: int, like: PyTree, sharding: Sharding) -> PyTree:
        """Restores the state of `step` on the devices of `sharding`, whatever devices saved it.

        `like` gives structure and shapes (arrays or ShapeDtypeStructs). Raises UserError, which
        lists the differences, if the checkpoint is of another model.
        """
        return self._restore(step, like, sharding, partial=False)

    def restore_part(self, step: int, like: PyTree, sharding: Sharding) -> PyTree:
        """Restores only those entries of the state of `step` that `like` has."""
        return self._restore(step, like, sharding, partial=True)

    def wait(self) -> None:
        """Waits until every checkpoint is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until every checkpoint is on disk, then releases the directory."""
        self._manager.close()

    def _metrics(self, step):
        return self._manager.metrics(step) or {}

    def _restore(self, step, like, sharding, partial):
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
        )
        saved = _shapes(self._manager.item_metadata(step)["state"].tree)
        _compare(self._folder / str(step), saved, _shapes(target), partial)
        args = ocp.args.PyTreeRestore(
            target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=partial,
        )
        return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]


def restore_best(
    workdir: pathlib.Path,
    like: PyTree,
    sharding: Sharding,
    *,
    best: str,
    optional: Mapping[str, PyTree] | None = None,
) -> tuple[PyTree, int]:
    """Restores the entries of `like` from a run's best checkpoint; returns them and its step.

    The best is that with the largest metric `best`, else the latest. Entries of `optional` are
    restored if the checkpoint has them. Raises UserError if there is no checkpoint, or it is of
    another model.
    """
    checkpoints = Checkpoints(workdir, best=best, read_only=True)
    try:
        step = checkpoints.best
        if step is None:
            raise UserError(f"There is no checkpoint in {workdir}: train first, or mend --workdir.")
        there = checkpoints.entries(step) if optional else set()
        more = {name: tree for name, tree in (optional or {}).items() if name in there}
        return checkpoints.restore_part(step, like | more, sharding), step
    finally:
        checkpoints.close()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    # Saved, a NamedTuple of the optimiser is a dictionary or a list: compare the names alone.
    return {"/".join(_name(key) for key in path): tuple(leaf.shape) for path, leaf in flat}


def _name(key):
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _compare(folder, saved, wanted, partial):
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
