"""Runs the cells of a study as whole training runs, each in a directory of its own."""

import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from otter_jax.errors import Diverged, UserError
from otter_jax.run import directory, trained
from otter_jax.run.console import make_console
from otter_jax.study.cells import Cell, Outcome, Run
from otter_jax.study.plan import WholeStudy
from otter_jax.training import contrastive

Load = Callable[[Sequence[str]], ConfigDict]
# Keys of a config that may change between two starts of a run: it makes the same steps.
FREE = ("data.dir", "data.num_workers", "train.log_every", "checkpoint.")


class Runner:
    """Trains the runs of cells one after the other, and reads their last evaluation.

    Attributes:
      device: what the runs are made on.
      done, seconds, compiling: runs so far, and the time that they have taken, compiling included.
    """

    def __init__(self, study: WholeStudy, load: Load, out: pathlib.Path | None):
        """`load` returns the study's config with flags, "--config.KEY=VALUE".

        Raises UserError for a key or value that the config cannot have, and if nothing is
        evaluated by which values could be chosen, or no run keeps the study's weights.
        """
        self._study, self._load, self._out = study, load, out
        self._console = make_console()
        self.device = jax.devices()[0].device_kind
        self.seconds, self.compiling, self.done = 0.0, 0.0, 0
        for setting in study.settings:
            for name, method in study.methods.items():
                values = next(iter(method.grid(study.choose)))
                cell = Cell(setting, name, "choose", tuple(sorted(values.items())), (0,))
                config = self.config(cell, 0)
                sets = {measure.split("/")[0] for measure in study.choose.by}
                if missing := sorted(sets - set(config.eval.sets)):
                    raise UserError(
                        f"{study.path}: choose.by={list(study.choose.by)}: eval.sets of "
                        f"{study.config} has no {missing[0]!r}; it has "
                        f"{', '.join(config.eval.sets) or 'none'}. A measure is SET/FH@K."
                    )
                if study.weights not in trained.kept_weights(config):
                    raise UserError(
                        f"{study.path}: weights={study.weights!r}: runs of {name} have a fixed "
                        f"teacher (teacher.checkpoint), so there is no average of their weights. "
                        'Write weights = "student".'
                    )

    def config(self, cell: Cell, seed: int) -> ConfigDict:
        """Returns the config of a run."""
        values = dict(cell.values)
        objective = cell.definition(self._study)["objective"]
        objective["log_scale"] = values["log_scale"]
        keys = {f"objective.{name}": value for name, value in objective.items()}
        keys |= {"optim.learning_rate": values["learning_rate"], "seed": seed}
        keys |= {"method": cell.method, **self._study.methods[cell.method].train}
        keys |= cell.setting.fields()
        return self._load([f"--config.{name}={value}" for name, value in keys.items()])

    def __call__(self, runs: Iterable[Run]) -> Iterator[tuple[Cell, Outcome]]:
        """Makes one run after the other; yields each one's cell and outcome.

        Raises KeyboardInterrupt, once it is yielded, for a signal that came as a run was ending.
        """
        for cell, seed in runs:
            outcome, stopped = self._run(cell, seed)
            yield cell, outcome
            if stopped:
                raise KeyboardInterrupt

    def probe(self, cell: Cell) -> float:
        """Returns NaN: a whole run is not begun to be timed."""
        return float("nan")

    def baselines(self) -> dict[str, dict[str, float]]:
        """Returns nothing: each run's own results have them."""
        return {}

    def _run(self, cell: Cell, seed: int) -> tuple[Outcome, bool]:
        """Trains a run, or what is left of it.

        Returns its outcome, whose seconds are None if an earlier start made a part of it; and
        whether a signal asked for a stop when nothing of it was left.
        """
        workdir = self._out / "runs" / cell.name / f"seed{seed}"
        config = self.config(cell, seed)
        begun, stopped = time.perf_counter(), False
        found: dict[str, Any] = {"seed": seed, "run": str(workdir.relative_to(self._out))}
        goes_on = directory.is_run(workdir)
        if goes_on:
            _check_same(workdir, config)
        directory.check_run(workdir, config, anyway=False, console=self._console)
        self._console.print(f"Run {workdir}")
        try:
            stopped = contrastive.run(config, workdir, console=self._console)
            found["scores"] = _scores(workdir)
        except Diverged as error:
            found |= {"scores": {"student": {}, "ema": {}}, "diverged_at": error.step}
        taken = time.perf_counter() - begun
        self.seconds, self.done = self.seconds + taken, self.done + 1
        found |= {"device": self.device, "seconds": None if goes_on else round(taken, 1)}
        return found, stopped


def _scores(workdir: pathlib.Path) -> dict[str, dict[str, float]]:
    """Returns the hits of a run's last evaluation, under the weights that it keeps."""
    own = [each for each in directory.evaluations(workdir) if not each.kind]
    results = own[-1].read() if own else None
    if results is None:
        raise UserError(f"{workdir}/results has no evaluation of the run's last step.")
    return {
        weights: {
            f"{name}/{metric}": round(value, 6)
            for name, found in results["sets"].items()
            for metric, value in found[weights].items()
        }
        for weights in results["weights"]
    }


def _check_same(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Raises UserError if the run in `workdir` was begun with another config."""
    lines = directory.differences(directory.read_config(workdir), config)
    if changed := [line for line in lines if not line.startswith(FREE)]:
        more = f"; and {len(changed) - 6} more" if len(changed) > 6 else ""
        raise UserError(
            f"The run in {workdir} was begun with another config: {'; '.join(changed[:6])}{more}. "
            "Give the method another name, take another --out, or remove that folder."
        )
