"""Transfer to labelled pictures, one group of weights at a time, as a task of the loop."""

import bisect
import functools
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import optax
import rich.console
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from otter_jax import gates
from otter_jax import mesh as meshes
from otter_jax.data.pipeline import Labels
from otter_jax.errors import UserError
from otter_jax.run import batches, cluster, directory
from otter_jax.run.console import duration, in_columns, millions
from otter_jax.run.model import check_image_size
from otter_jax.training import compiling
from otter_jax.training.compiling import compiled, jit_step, shapes_of
from otter_jax.training.loop import Step, train
from otter_jax.training.meters import Metrics
from otter_jax.transfer import phases
from otter_jax.transfer.labelled import Labelled, open_splits
from otter_jax.transfer.network import Network, fresh
from otter_jax.transfer.step import TransferState, create_state, transfer_step
from otter_jax.transfer.validation import KS, Validation, normaliser


def run(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    from_step: int | None = None,
    anyway: bool = False,
    console: rich.console.Console,
) -> Validation:
    """Trains through all phases, from the newest checkpoint in `workdir` if there is one.

    `from_step` and `anyway` are those of `loop.train`. Validates and saves after each phase;
    returns the `Validation`. SIGTERM or Ctrl-C saves after
    the current step, and raises Stopped. Raises UserError for a mistake in the config or the data,
    before anything is compiled, and when a number is no longer finite.
    """
    mesh = meshes.make_mesh()
    check_config(config, mesh.size)
    console.print(f"Opening the data set {config.data.name or '(none)'} and the encoder")
    training, held_out = open_splits(config)
    ends = phase_ends(config, len(training.labels))

    def tell(note: str) -> None:
        console.print(f"Note: {note}")

    network = fresh(config, len(training.names), tell=tell)
    cluster.agree(
        lambda: {
            "data.name": cluster.fingerprint((training.labels, held_out.labels)),
            "model's weights": cluster.fingerprint((network.params, network.batch_stats)),
        }
    )
    check_image_size(config.data.image_size, network.model, config.model.arch)
    validation = Validation(config, network.model, held_out, mesh, console)
    task = Transfer(config, workdir, mesh, training, validation, network, ends, console)
    del network  # the task has its weights, and lets go of them when training starts
    train(task, workdir, from_step=from_step, anyway=anyway, console=console)
    return validation


class Transfer:
    """Trains a classifier of pictures, phase by phase; a `training.loop.Task`."""

    unit = "images"
    remedy = "A lower optim.learning_rate or gates.strength"

    def __init__(
        self,
        config: ConfigDict,
        workdir: pathlib.Path,
        mesh: Mesh,
        training: Labelled,
        validation: Validation,
        network: Network,
        ends: list[int],
        console: rich.console.Console,
    ):
        """Takes the `ends`, the last step of each phase, from `phase_ends`."""
        self.config, self.mesh, self.source = config, mesh, training.source
        self.steps = ends[-1]
        labels = cluster.fingerprint(training.labels)
        self.contents = f"{len(training.labels):,} images, {labels}"
        self._ends, self._phases = ends, phases.parse(config.phases)
        self._workdir, self._console = workdir, console
        self._training, self._validation = training, validation
        self._model = network.model
        self._state: TransferState | None = create_state(
            network.params, network.batch_stats, self._phases, network.model
        )
        self._like = shapes_of(self._state)
        self._annotation = Labels(config.data.label)
        self._schedule = learning_rate(config, self.steps)
        self._compiled: dict[str, Step] = {}  # by the groups that a step trains

    def initial_state(self, start: int) -> TransferState:
        """Returns the state before step 1; can be called once.

        Raises UserError if the phases end before step `start`.
        """
        if start > self.steps:
            raise UserError(
                f"{self._workdir} is at step {start}, but {self.config.phases!r} end at step "
                f"{self.steps}: give the phases that it was trained by, or another --workdir."
            )
        self._check_phases(start)
        state, self._state = self._state, None
        return state

    def _check_phases(self, start: int) -> None:
        """Raises UserError if the phases before step `start` were others."""
        if not start or not (self._workdir / "config.json").exists():
            return
        before = directory.config_of(self._workdir, needs="phases").phases
        done = phases.parse(before)[: self._phase(start) + 1]
        if done != self._phases[: len(done)]:
            raise UserError(
                f"The run in {self._workdir} was trained by the phases {before!r} up to step "
                f"{start}, which is in phase {len(done)}, and {self.config.phases!r} begin "
                "otherwise. Only later phases may change; or give another --workdir."
            )

    def begin(self, state: TransferState, start: int) -> None:
        """Prints network, phases, data and length of the run; removes a report of fewer phases."""
        if cluster.is_first():
            (self._workdir / "report.html").unlink(missing_ok=True)
        self._console.print(in_columns(self._summary(state, start)))

    def batches(self, start: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields this process's rows of the batches from step `start` on."""
        return batches.training(self.config, self.source, self._annotation, start)

    def step_at(self, now: int) -> Step:
        """Returns the step of the phase that step `now` belongs to, compiled at its first use."""
        groups = self._phases[self._phase(now)]
        if groups not in self._compiled:
            step = functools.partial(
                transfer_step,
                model=self._model,
                groups=groups,
                learning_rate=self._schedule,
                normalise=normaliser(self.config),
                gate_penalty=self.config.gates.penalty,
                gate_strength=self.config.gates.strength,
                stored_statistics=self.config.train.stored_statistics,
            )
            shapes = batches.shapes(self.config, self._annotation, self.mesh)
            program, need = compiled(
                jit_step(step, self.mesh),
                self._like,
                shapes,
                name=f"phase {groups}",
                console=self._console,
            )
            check_need(need, self.config.train.batch_size, self.mesh.size)
            self._compiled[groups] = program
        return self._compiled[groups]

    def is_evaluated(self, now: int) -> bool:
        """Tells whether step `now` is the last of a phase."""
        return now in self._ends

    def evaluate(self, now: int, state: TransferState, check_stop: Callable[[], None]) -> Metrics:
        """Validates; writes WORKDIR/results/step_N.json and prints a line."""
        measured = self._validation(state.params, state.batch_stats, check_stop)
        phase = self._phase(now)
        result = {"step": now, "epoch": phase + 1, "phase": self._phases[phase], **measured}
        if cluster.is_first():
            directory.write_json(directory.results(self._workdir, now), result)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
        of = f"{phase + 1}/{len(self._phases)} ({self._phases[phase]})"
        self._console.print(f"epoch {of} | validation {shown}")
        return measured

    def numbers(self, now: int) -> Metrics:
        """Returns the learning rate of step `now`, and how many epochs are done after it."""
        return {
            "learning_rate": float(self._schedule(now - 1)),
            "epoch": now * self.config.train.batch_size / len(self._training.labels),
        }

    def line(self, now: int, recorded: Metrics) -> str:
        """Returns the log line: phase, loss, accuracy on the batches, speed and time left."""
        m = recorded
        return (
            f"step {now}/{self.steps} epoch {m['epoch']:.1f} ({self._phases[self._phase(now)]}) |"
            f" loss {m['loss']:.3f} | accuracy {m['accuracy']:.3f}\n   "
            f" {m['images_per_second']:.0f} images/s, data wait {m['data_wait']:.0%} | left"
            f" {duration(m['seconds_left'])}"
        )

    def _phase(self, now: int) -> int:
        """Returns the number, from 0, of the phase that step `now` belongs to."""
        return bisect.bisect_left(self._ends, now)

    def _summary(self, state: TransferState, start: int) -> dict[str, str]:
        sizes = phases.sizes(state.params, self._model)
        trained = [
            f"{group} {phases.GROUPS[group]}: {millions(sizes[group])}"
            for group in phases.groups_of(self._phases)
        ]
        held_out, m = self._validation.data, self.config.model
        share = np.bincount(held_out.labels).max() / len(held_out.labels)
        devices = meshes.count(self.mesh)
        return {
            "network": f"{m.arch}, weights {m.weights or 'random'}",
            "phases": f"{self.config.phases}: an epoch each",
            "trained": f"{'; '.join(trained)}; of {millions(sum(sizes.values()))} values in all",
            "data": f"{self.source.name}, {len(self._training.labels):,} images, "
            f"{len(self._training.names)} classes",
            "validation": f"{held_out.source.name}, {len(held_out.labels):,} images; always the "
            f"commonest class: top-1 {share:.3f}",
            "batch": f"{self.config.train.batch_size} over {devices}",
            "length": f"{self.steps} steps" + (f", going on from step {start}" if start else ""),
        }


def check_need(need: compiling.Need | None, batch_size: int, devices: int) -> None:
    """Raises UserError if a step is too large for a device, with a batch that may fit."""
    if short := compiling.shortage(need):
        fits = compiling.largest_batch(need, batch_size, devices)
        about = f"About train.batch_size={fits} would fit" if fits else "No batch would fit"
        raise UserError(f"{short} {about}; more devices or smaller pictures help, too.")


def check_config(config: ConfigDict, devices: int) -> None:
    """Raises UserError for impossible values of a config, before any data is read."""
    meshes.check_divides("train.batch_size", config.train.batch_size, devices)
    meshes.check_divides("eval.batch_size", config.eval.batch_size, devices)
    parsed = phases.parse(config.phases)
    if config.train.log_every <= 0:
        raise UserError(f"train.log_every={config.train.log_every}: must be more than 0.")
    if config.optim.schedule not in ("constant", "cosine"):
        raise UserError(f'optim.schedule={config.optim.schedule!r}: "constant" or "cosine".')
    gates.check_gates(**config.gates)
    if config.eval.best not in ("", *(f"top-{k}" for k in KS)):
        raise UserError(f'eval.best={config.eval.best!r}: "top-1", "top-3" or "".')
    gated = any("a" in groups for groups in parsed)
    if gated and not config.gates.shape:
        raise UserError(
            f"phases={config.phases!r} train the gates (a), but gates.shape is empty: "
            '"filter" or "slice".'
        )
    if config.gates.shape and not gated:
        raise UserError(
            f"gates.shape={config.gates.shape!r}, but phases={config.phases!r} never train the "
            'gates (a): add such a phase, or set gates.shape="".'
        )


def phase_ends(config: ConfigDict, images: int) -> list[int]:
    """Returns the last step of each phase, an epoch long; a batch may belong to two epochs.

    Raises UserError if a batch is larger than the set.
    """
    batch_size = config.train.batch_size
    count = len(phases.parse(config.phases))
    ends = [round((i + 1) * images / batch_size) for i in range(count)]
    if ends[0] < 1 or images < batch_size:
        raise UserError(
            f"train.batch_size={batch_size} is more than the {images} pictures: make it smaller."
        )
    return ends


def learning_rate(config: ConfigDict, steps: int) -> Callable[[Array | int], Array | float]:
    """Returns Adam's rate over steps, constant or a cosine to 0 at the last."""
    if config.optim.schedule == "constant":
        return optax.constant_schedule(config.optim.learning_rate)
    return optax.cosine_decay_schedule(config.optim.learning_rate, steps)
