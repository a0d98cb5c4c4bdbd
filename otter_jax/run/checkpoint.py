"""Checkpoints (Orbax): saved in the background, kept by a policy, opened on any devices."""

import contextlib
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from jaxtyping import PyTree

from otter_jax.errors import UserError
from otter_jax.files import read_json
from otter_jax.run import cluster, digests, reading

ABOUT = "about"  # what is saved beside a state: a folder of the checkpoint, and a file in it
_policy = ocp.checkpoint_managers.preservation_policy


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Returns False: polling JAX here would advance the counter by which `stops.Stop` agrees.

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
        about: Mapping[str, Any] | None = None,
    ):
        """Opens the checkpoints of a run; `about` is saved with each new one.

        Raises UserError if the metrics of one of them are damaged.
        """
        self._folder = pathlib.Path(workdir).absolute() / "checkpoints"
        self._about = dict(about or {})
        for step in reading.complete(self._folder):  # the manager reads the metrics of all
            reading.check_whole(self._folder, step, "metrics")
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
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(),
                ABOUT: ocp.JsonCheckpointHandler(ABOUT),
            },
            options=ocp.CheckpointManagerOptions(
                best_fn=score,  # without it no metrics are written; the policy decides what is kept
                preservation_policy=_policy.AnyPreservationPolicy(keep),
                cleanup_tmp_directories=True,
                create=True,
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

    def find(self, step: int) -> int:
        """Returns `step` if there is a complete checkpoint of it, else raises UserError."""
        return reading.find(self._folder, self.steps, step)

    def save(self, step: int, state: PyTree, metrics: Mapping[str, float] | None = None) -> None:
        """Copies the state from the devices, then writes it in the background.

        Raises UserError if the one before could not be written; so do `check`, `wait` and `close`.
        """
        if step == self.latest:
            return
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state), about=ocp.args.JsonSave(self._about)
                ),
                metrics=dict(metrics) if metrics else None,
            )

    def check(self) -> None:
        """Raises UserError if a checkpoint could not be written in the background."""
        with self._writing():
            self._manager.check_for_errors()

    def about(self, step: int) -> dict[str, Any]:
        """Returns what was saved with the checkpoint beside its state; {} of older versions.

        Raises UserError if it is damaged.
        """
        reading.check_whole(self._folder, step, ABOUT)
        path = self._folder / str(step) / ABOUT / ABOUT
        return read_json(path) if path.exists() else {}

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
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
        )
        folder = self._folder
        reading.check_whole(folder, step, "state")
        args = ocp.args.PyTreeRestore(
            target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)
        )
        try:
            saved = reading.shapes_of(self._manager.item_metadata(step)["state"].tree)
            reading.compare(folder / str(step), saved, reading.shapes_of(target), partial=False)
            return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            what = f"it cannot be read ({reading.first_line(error)})"
            raise reading.damaged(folder, step, what) from error

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
            whole = max(reading.complete(self._folder), default=0)
            there = f"the newest whole one is step {whole}" if whole else "there is no whole one"
            raise UserError(
                f"A checkpoint could not be written to {self._folder}: "
                f"{reading.first_line(error)} The run ends; {there}. Once the cause is mended (is "
                "there room on the disk?), the same command goes on from there."
            ) from error

    def _add_digests(self) -> None:
        """Adds digests to the checkpoint being written, before it gets its number."""
        if cluster.is_first():
            for folder in self._folder.glob("*.orbax-checkpoint-tmp*"):
                digests.write(folder, "state", "metrics", ABOUT)

    def _metrics(self, step: int) -> dict[str, float]:
        return dict(self._manager.metrics(step) or {})
