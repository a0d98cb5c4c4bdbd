"""Checkpoints (Orbax): saved in the background, kept by a policy, opened on any devices."""

import contextlib
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from jaxtyping import PyTree

from otter_jax.errors import UserError
from otter_jax.run import cluster, digests

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
    left half written is never restored. It holds digests of its files, and a checkpoint that is
    not as it was written is never restored either.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        best: str = "",
        keep_every: int = 0,
        read_only: bool = False,
        about: Mapping[str, Any] | None = None,
    ):
        """Opens the checkpoints of a run; `about` is saved with each new one.

        Raises UserError if the metrics of one of them are damaged.
        """
        self._folder = pathlib.Path(workdir).absolute() / "checkpoints"
        self._about = dict(about or {})
        for step in _complete(self._folder):  # the manager reads the metrics of all
            self._check_whole(step, "metrics")
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
                async_options=ocp.AsyncOptions(post_finalization_callback=self._add_digests),
            ),
        )

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, sorted."""
        return sorted(self._manager.all_steps())

    @property
    def best(self) -> int | None:
        """The step of the checkpoint with the largest metric; the latest if none has it."""
        scores = {step: self._metrics(step).get(self._best) for step in self.steps}
        scores = {step: score for step, score in scores.items() if score is not None}
        return max(scores, key=scores.get, default=self.latest)

    def find(self, step: int) -> int:
        """Returns `step` if there is a complete checkpoint of it, else raises UserError."""
        if step not in self.steps:
            there = ", ".join(map(str, self.steps)) or "none"
            raise UserError(f"There is no checkpoint of step {step} in {self._folder}: {there}.")
        return step

    def choose(self, step: int | None) -> "Taken":
        """Returns the checkpoint `step`, or with None the best, else the latest.

        Raises UserError if there is none of this step.
        """
        if step is not None:
            return Taken(self.find(step), "--step")
        best = self.best
        rated = self._best and self._best in self._metrics(best)
        return Taken(best, f"the best by {self._best}" if rated else "the latest")

    def entries(self, step: int) -> set[str]:
        """Returns the names of the entries in the state of `step`: "params", "teacher", ..."""
        return set(self._manager.item_metadata(step)["state"].tree)

    def save(self, step: int, state: PyTree, metrics: Mapping[str, float] | None = None) -> None:
        """Copies the state from the devices, then writes it in the background.

        Raises UserError if the one before could not be written; so do `check`, `wait` and `close`.
        """
        if step == self.latest:
            return
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.PyTreeSave(state)),
                metrics=dict(metrics) if metrics else None,
                custom_metadata=self._about,
            )

    def check(self) -> None:
        """Raises UserError if a checkpoint could not be written in the background."""
        with self._writing():
            self._manager.check_for_errors()

    def about(self, step: int) -> dict[str, Any]:
        """Returns what was saved with the checkpoint beside its state; {} of older versions."""
        return dict(self._manager.metadata(step).custom_metadata or {})

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
        if cluster.is_first():
            digests.write(self._folder / str(step), "metrics")
        self._manager.reload()

    def restore(self, step: int, like: PyTree, sharding: Sharding) -> PyTree:
        """Restores the state of `step` on the devices of `sharding`, whatever devices saved it.

        `like` gives structure and shapes (arrays or ShapeDtypeStructs). Raises UserError, which
        lists the differences, if the checkpoint is of another model, or names what is damaged.
        """
        return self._restore(step, like, sharding, partial=False)

    def restore_part(self, step: int, like: PyTree, sharding: Sharding) -> PyTree:
        """Restores only those entries of the state of `step` that `like` has."""
        return self._restore(step, like, sharding, partial=True)

    def wait(self) -> None:
        """Waits until every checkpoint is on disk."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until every checkpoint is on disk, then releases the directory."""
        with self._writing():
            self._manager.close()

    def set_aside(self, after: int) -> list[int]:
        """Moves the checkpoints after this step to WORKDIR/set_aside; returns their steps.

        All processes call it.
        """
        moved = [step for step in self.steps if step > after]
        if moved and cluster.is_first():
            place = self._folder.with_name("set_aside")
            place.mkdir(exist_ok=True)
            for step in moved:
                names = (f"{step}{'.' * bool(n)}{n or ''}" for n in range(1_000_000))
                free = next(name for name in names if not (place / name).exists())
                (self._folder / str(step)).rename(place / free)
        cluster.stack(np.zeros(0))  # nobody looks before all are moved
        self._manager.reload()
        return moved

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what Orbax and the disk raise into UserError."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # Orbax and TensorStore raise nearly every type there is
            whole = max(_complete(self._folder), default=0)
            there = f"the newest whole one is step {whole}" if whole else "there is no whole one"
            raise UserError(
                f"A checkpoint could not be written to {self._folder}: {_first_line(error)} The "
                f"run ends; {there}. Once the cause is mended (is there room on the disk?), the "
                "same command goes on from there."
            ) from error

    def _add_digests(self) -> None:
        """Adds digests to the checkpoint being written, before it gets its number."""
        if cluster.is_first():
            for folder in self._folder.glob("*.orbax-checkpoint-tmp*"):
                digests.write(folder, "state", "metrics")

    def _metrics(self, step: int) -> dict[str, float]:
        return dict(self._manager.metrics(step) or {})

    def _check_whole(self, step: int, part: str) -> None:
        """Raises UserError if files of a part of a checkpoint are not as they were written."""
        wrong = digests.damaged(self._folder / str(step), part)
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            names = ", ".join(wrong[:3])
            raise self._damaged(step, f"not as they were written are {names}{more}")

    def _damaged(self, step: int, what: str) -> UserError:
        others = [number for number in _complete(self._folder) if number != step]
        return UserError(
            f"The checkpoint {self._folder / str(step)} is damaged: {what}. "
            + (
                f"Other steps there: {', '.join(map(str, others))}. To go on from one of them, "
                f"train with --from {others[-1]}; to evaluate or export it, --step {others[-1]}."
                if others
                else "There is no other one: restore the folder from a copy, or train again."
            )
        )

    def _restore(self, step, like, sharding, partial):
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
        )
        self._check_whole(step, "state")
        args = ocp.args.PyTreeRestore(
            target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=partial,
        )
        try:
            saved = _shapes(self._manager.item_metadata(step)["state"].tree)
            _compare(self._folder / str(step), saved, _shapes(target), partial)
            return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise self._damaged(step, f"it cannot be read ({_first_line(error)})") from error


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
    checkpoints = Checkpoints(workdir, best=best, read_only=True)
    try:
        if not checkpoints.steps:
            raise UserError(f"There is no checkpoint in {workdir}: train first, or mend --workdir.")
        taken = checkpoints.choose(step)
        there = checkpoints.entries(taken.step) if optional else set()
        more = {name: tree for name, tree in (optional or {}).items() if name in there}
        return checkpoints.restore_part(taken.step, like | more, sharding), taken
    finally:
        checkpoints.close()


def _complete(folder: pathlib.Path) -> list[int]:
    """Returns the steps of the complete checkpoints in a folder, whatever else is there."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def _first_line(error: Exception) -> str:
    """Returns the first line of an error's text, at most 300 characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


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
