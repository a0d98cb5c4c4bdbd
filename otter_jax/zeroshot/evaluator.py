"""Evaluates weights on labelled sets, given only the names of their classes.

Each class becomes one vector, the normalised mean of its prompts' embeddings; an image's best
classes are those with the largest cosine. FH@K, flat hit, is the share of images with one of
their labels among the K best classes; where classes have the same cosine, the expected share over
their order. docs/evaluation.md has all metrics.
"""

import functools
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import rich.console
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from otter_jax import mesh as meshes
from otter_jax.data.captions import Tokenizer
from otter_jax.errors import Stopped, UserError
from otter_jax.run import batches, cluster, directory, stops, trained
from otter_jax.run.console import WIDTH, progress_bar
from otter_jax.run.embedder import Embedder
from otter_jax.run.model import check_sizes
from otter_jax.zeroshot import beside, tables
from otter_jax.zeroshot.banks import MANY, Banks
from otter_jax.zeroshot.hits import best_label, by_name, frequency
from otter_jax.zeroshot.measures import Measure, intervals
from otter_jax.zeroshot.metrics import chance, keeps_images, measured, metrics_of, of_each_class
from otter_jax.zeroshot.probes import learn
from otter_jax.zeroshot.prompts import Prompts, look_at
from otter_jax.zeroshot.ranking import Ranker, Seen
from otter_jax.zeroshot.sets import EvalSet

# What another config must not change unsaid: a model is worse on what it was not trained on.
SEEN = ("model.", "data.resize", "data.image_size", "data.max_tokens", "data.exif")
UNKNOWN = 10  # labels that are no class, named in the results

Results = dict[str, dict[str, Any]]  # of each set


class Evaluator:
    """Evaluates weights of one model on all sets of a config.

    Attributes:
      sets: in their order.
      embedder: embeds pictures and texts; others may use what it has compiled.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: nn.Module,
        tokenizer: Tokenizer,
        mesh: Mesh,
        workdir: pathlib.Path,
        console: rich.console.Console,
        kind: str = "",
    ):
        """Opens the sets, and says which classes' prompts are cut or not told apart.

        The results of another `kind` of evaluation than the run's own, "", have files of their own.
        Raises UserError if something is wrong with the sets, or with eval.best.
        """
        self._config, self._workdir, self._console, self._kind = config, workdir, console, kind
        size = config.eval.batch_size
        meshes.check_divides("eval.batch_size", size, mesh.size)
        self.embedder = Embedder(model, tokenizer, mesh, batch_size=size)
        self._banks = Banks(self.embedder, console, batch_size=size)
        self._ranker = Ranker(config, self.embedder, mesh)
        self.sets = [
            EvalSet.open(name, spec, config.data.dir, exif=config.data.exif)
            for name, spec in config.eval.sets.items()
        ]
        self._prompts: dict[str, Prompts] = {}
        for s in self.sets:
            if (total := len(s.names) * len(s.templates)) > MANY:
                console.print(f"{s.name}: looking at {total:,} prompts")
            self._prompts[s.name] = look_at(tokenizer, s.names, s.templates)
            for line in self._prompts[s.name].lines(tokenizer.max_tokens):
                console.print(f"{s.name}: {line}.")
        known = [
            f"{s.name}/{w}/{metric}"
            for s in self.sets
            for w in trained.kept_weights(config)
            for metric in metrics_of(s)
        ]
        if config.eval.best and config.eval.best not in known:
            raise UserError(
                f"eval.best={config.eval.best!r} is not a metric of this config; there are: "
                f"{', '.join(known) or 'none, since eval.sets is empty'}."
            )

    def __call__(
        self,
        step: int,
        variables: Mapping[str, PyTree],
        check_stop: Callable[[], None] = lambda: None,
        *,
        whole: bool = False,
        others: Sequence[pathlib.Path] = (),
    ) -> dict[str, float]:
        """Returns {"SET/WEIGHTS/METRIC": value} for all sets and weights.

        `variables` are those of the weights "student" and "ema" after training step `step`. Prints
        metrics and baselines as tables, beside what the directories of `others` hold of the same
        sets, and writes them to `results`, as JSON and as CSV. A `whole` evaluation also writes
        tables of all classes and images, and makes probes for sets with a split to learn from.
        `check_stop` is called once per batch, and may raise to end the evaluation.
        """
        if not self.sets:
            return {}
        results: Results = {s.name: {"intervals": {}} for s in self.sets}
        sets = "; ".join(f"{s.name}, {len(s.source):,} images" for s in self.sets)
        self._console.print(f"Evaluating step {step} on {sets}")
        with progress_bar(self._console) as bar:
            for weights, own in variables.items():
                banks = self._banks.of(self.sets, own, bar, check_stop)
                for s, bank in zip(self.sets, banks, strict=True):
                    task = bar.add_task(f"evaluating {s.name}, {weights}", total=len(s.source))
                    seen = self._ranker.rank(
                        s, weights, own, bank, keep_images=keeps_images(s),
                        check_stop=check_stop, advance=functools.partial(bar.advance, task),
                    )  # fmt: skip
                    found = measured(seen, self._ranker, check_stop)
                    results[s.name] |= self._described(seen)
                    _add(results[s.name], weights, found)
                    if whole:
                        self._complete(results[s.name], step, seen, found, own, check_stop)
        self._banks.forget_unused()
        self._write(step, results, list(variables))
        self._print(step, results, list(variables), others)
        return {
            f"{name}/{weights}/{metric}": value
            for name, result in results.items()
            for weights in variables
            for metric, value in result[weights].items()
        }

    def results(self, step: int) -> pathlib.Path:
        """Returns the file of an evaluation of the state after step `step`."""
        return directory.results(self._workdir, step, self._kind)

    def _described(self, seen: Seen) -> dict[str, Any]:
        """Returns what results say of a set beside metrics; prints which images do not count."""
        s, prompts = seen.s, self._prompts[seen.s.name]
        unreadable = batches.name_unreadable(s.source, seen.valid, self._console)
        _, level, own = best_label(seen.ranked.above, seen.ranked.level)
        if tied := int((level > own).sum()):
            self._console.print(
                f"{s.name}, {seen.weights}: {tied:,} of {len(own):,} images have ties with their "
                "label; hits are expected values."
            )
        first = dict(itertools.islice(s.unknown.items(), UNKNOWN))
        return {
            "about": s.about | {"max_tokens": self._config.data.max_tokens},
            "prompts": {
                "cut": len(prompts.cut),
                "same_tokens": prompts.same[:UNKNOWN],
                "unknown_tokens": prompts.unknown[:UNKNOWN],
            },
            "images": len(seen.labels),
            "classes": len(s.names),
            "unreadable": unreadable,
            "unlabelled": int((s.labels < 0).all(axis=1).sum()),
            "without_label": s.no_label,
            "unknown_labels": {"count": len(s.unknown), "first": first},
            "chance": chance(seen),
            "frequency": by_name(frequency(seen.labels, len(s.names))),
        }

    def _complete(
        self,
        result: dict[str, Any],
        step: int,
        seen: Seen,
        found: Mapping[str, Measure],
        variables: PyTree,
        check_stop: Callable[[], None],
    ) -> None:
        """Adds what a whole evaluation has beside metrics: tables of all images, and probes."""
        if cluster.is_first():
            folder = self.results(step).with_suffix("")
            tables.write_seen(folder, seen, of_each_class(found, len(seen.labels)))
        if seen.s.learned is None:
            return
        learned, valid = self._ranker.embed(variables, seen.s.learned, check_stop)
        result.setdefault("probes", {})
        for probe in learn(seen, learned, valid, self._console):
            name = f"{seen.weights}, {probe.name}"
            result["probes"][name] = probe.settings
            _add(result, name, probe.metrics(seen))

    def _write(self, step: int, results: Results, weights: Sequence[str]) -> None:
        if cluster.is_first():
            about = {"step": step, "command": sys.argv, "weights": weights}
            directory.write_json(self.results(step), about | {"sets": results})
            tables.write_results(self.results(step).with_suffix(".csv"), results, weights)

    def _print(self, step, results, weights, others):
        rows = {}
        own, *names = beside.called([self._workdir, *others])
        for name, result in results.items():
            rows[name] = tables.rows_of(result, weights, f"{own} step {step} " if others else "")
            for folder, called in zip(others, names, strict=True):
                theirs = beside.rows_beside(folder, called, result)
                rows[name] += theirs
                if not theirs:
                    self._console.print(
                        f"{folder} has no results on {name}, with the same classes, labels and "
                        f"templates. To make them: otter-jax eval --workdir {folder}, with the "
                        "--config of this evaluation."
                    )
        width = None if self._console.is_terminal else WIDTH
        for table in tables.tables(f"step {step}", results, rows, best=bool(others)):
            self._console.print(table, width=width)


def _add(result: dict[str, Any], name: str, metrics: Mapping[str, Measure]) -> None:
    """Adds the values and intervals of some weights, or a probe, to the results of a set."""
    result[name] = {metric: measure.value for metric, measure in metrics.items()}
    result["intervals"][name] = intervals(metrics)


def _evaluated(config: ConfigDict) -> dict[str, Any]:
    """Returns the parts of a config that an evaluation depends on, beside the model."""
    found = json.loads(config.to_json())
    return {"sets": found["eval"]["sets"], "data": found["data"]}


def _changed(config: ConfigDict, workdir: pathlib.Path) -> list[str]:
    """Returns "key: old -> new" where pictures, captions or encoders are other than in training."""
    try:
        trained_with = directory.config_of(workdir)
    except UserError:  # its config is damaged, or lost
        return []
    differences = directory.differences(trained_with, config)
    return [line for line in differences if line.startswith(SEEN)]


def _is_own(config: ConfigDict, workdir: pathlib.Path) -> bool:
    """Tells whether the run itself is evaluated as `config` says."""
    try:
        return _evaluated(directory.config_of(workdir)) == _evaluated(config)
    except UserError:  # its config is damaged, or lost
        return False


def run(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    step: int | None = None,
    others: Sequence[pathlib.Path] = (),
    console: rich.console.Console,
) -> None:
    """Evaluates the checkpoint `step` of `workdir`, else the best by eval.best, or the latest.

    The results of the runs in `others` stand in the same tables. Raises UserError if there is no
    such checkpoint, it is of another model than the config's, or one of `others` has no results,
    or is there twice.
    """
    beside.check(workdir, others)
    mesh = meshes.make_mesh()
    whole, _ = meshes.shardings(mesh)
    found = trained.load(config, workdir, whole, step=step)
    console.print(f"Evaluating {workdir}, {found.taken}")
    tokenizer = Tokenizer(found.tokenizer, config.data.max_tokens)
    check_sizes(config, found.model, tokenizer)
    for line in _changed(config, workdir):
        console.print(f"Other than in training: {line}")
    kind = "" if _is_own(config, workdir) else directory.digest(_evaluated(config))
    evaluator = Evaluator(config, found.model, tokenizer, mesh, workdir, console, kind)
    with stops.Stop() as stop:
        try:
            evaluator(found.step, found.variables, stop.check, whole=True, others=others)
            path = evaluator.results(found.step)
            console.print(f"Results are in {path}, and tables in {path.with_suffix('')}.")
        except Stopped:
            console.print("Stopped before the end of the evaluation; no results were written.")
            raise
