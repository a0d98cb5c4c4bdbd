"""Evaluates weights on labelled sets, given only the names of their classes.

Each class becomes one vector, the normalised mean of its prompts' embeddings; an image's best
classes are those with the largest cosine. FH@K, flat hit, is the share of images with one of
their labels among the K best classes; where classes have the same cosine, the expected share over
their order.
"""

import itertools
import json
import math
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from jax.sharding import Mesh
from jaxtyping import Bool, Int, PyTree
from ml_collections import ConfigDict

from otter_jax import mesh as meshes
from otter_jax.data.captions import Tokenizer
from otter_jax.errors import Stopped, UserError
from otter_jax.run import batches, cluster, directory, trained
from otter_jax.run.console import progress_bar
from otter_jax.run.embedder import Embedder
from otter_jax.run.model import check_sizes
from otter_jax.zeroshot.bank import class_bank
from otter_jax.zeroshot.hits import KS, by_name, chance, expected_hit, frequency
from otter_jax.zeroshot.prompts import look_at
from otter_jax.zeroshot.sets import EvalSet
from otter_jax.zeroshot.standing import check_finite, standing

# What another config must not change unsaid: a model is worse on what it was not trained on.
SEEN = ("model.", "data.resize", "data.image_size", "data.max_tokens", "data.exif")
UNKNOWN = 10  # labels that are no class, named in the results


class Evaluator:
    """Evaluates weights of one model on all sets of a config."""

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
        self._config, self._mesh = config, mesh
        self._workdir, self._console, self._kind = workdir, console, kind
        meshes.check_divides("eval.batch_size", config.eval.batch_size, mesh.size)
        self._embedder = Embedder(model, tokenizer, mesh, batch_size=config.eval.batch_size)
        self.sets = [
            EvalSet.open(name, spec, config.data.dir, exif=config.data.exif)
            for name, spec in config.eval.sets.items()
        ]
        self._prompts = {s.name: look_at(tokenizer, s.names, s.templates) for s in self.sets}
        for name, found in self._prompts.items():
            for line in found.lines(tokenizer.max_tokens):
                console.print(f"{name}: {line}.")
        known = [
            f"{s.name}/{w}/FH@{k}"
            for s in self.sets
            for w in trained.kept_weights(config)
            for k in KS
            if k <= len(s.names)
        ]
        if config.eval.best and config.eval.best not in known:
            raise UserError(
                f"eval.best={config.eval.best!r} is not a metric of this config; there are: "
                f"{', '.join(known) or 'none, since eval.sets is empty'}."
            )
        whole, rows = meshes.shardings(mesh)

        def place(bank, img, labels):
            return standing(jnp.matmul(img, bank.T, precision=jax.lax.Precision.HIGHEST), labels)

        self._place = jax.jit(place, in_shardings=(whole, rows, rows), out_shardings=whole)

    def __call__(
        self,
        step: int,
        variables: Mapping[str, PyTree],
        check_stop: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """Returns {"SET/WEIGHTS/FH@K": value} for all sets and weights.

        `variables` are those of the weights "student" and "ema" after training step `step`. Prints
        the hits and their baselines as a table, and writes them to `results`.
        `check_stop` is called once per batch, and may raise to end the evaluation.
        """
        if not self.sets:
            return {}
        results: dict[str, dict[str, Any]] = {s.name: {} for s in self.sets}
        total = sum(len(s.source) for s in self.sets) * len(variables)
        sets = "; ".join(f"{s.name}, {len(s.source):,} images" for s in self.sets)
        self._console.print(f"Evaluating step {step} on {sets}")
        with progress_bar(self._console) as bar:
            task = bar.add_task("evaluating", total=total)

            def advance(count):
                bar.advance(task, count)

            for weights, own in variables.items():
                banks: dict[Any, np.ndarray] = {}
                for s in self.sets:
                    bar.update(task, description=f"evaluating {s.name}, {weights}")
                    key = (tuple(s.names), s.templates)
                    if key not in banks:
                        banks[key] = self._bank(own, s, check_stop)
                    placed, valid = self._placed(own, banks[key], s, check_stop, advance)
                    results[s.name] |= self._result(s, weights, placed, valid)
        if cluster.is_first():
            about = {"step": step, "command": sys.argv, "weights": list(variables)}
            directory.write_json(self.results(step), about | {"sets": results})
        self._console.print(table(step, results))
        return {
            f"{name}/{weights}/{metric}": value
            for name, result in results.items()
            for weights in variables
            for metric, value in result[weights].items()
        }

    def results(self, step: int) -> pathlib.Path:
        """Returns the file of an evaluation of the state after step `step`."""
        return directory.results(self._workdir, step, self._kind)

    def _bank(self, variables, s, check_stop):
        def embed(prompts):
            return self._embedder.texts(variables, prompts, check_stop)

        bank = class_bank(embed, s.names, s.templates)
        what = f"eval.sets.{s.name}: embeddings of class names"
        check_finite(np.isfinite(bank).all(axis=1), s.names.__getitem__, what)
        return bank

    def _placed(self, variables, bank, s, check_stop, advance):
        def place(image, labels):
            return self._place(bank, self._embedder.image_batch(variables, image), labels)

        return batches.over_all(
            self._config, s.source, self._mesh, place, s.labels,
            check_stop=check_stop, advance=advance,
        )  # fmt: skip

    def _result(
        self,
        s: EvalSet,
        weights: str,
        placed: Int[np.ndarray, "N 4"],
        valid: Bool[np.ndarray, "N"],
    ) -> dict[str, Any]:
        unreadable = batches.name_unreadable(s.source, valid, self._console)
        labelled = (s.labels >= 0).any(axis=1)
        counted = valid & labelled
        if not counted.any():
            raise UserError(
                f"eval.sets.{s.name}: no labelled image of {s.source.name} is readable."
            )
        above, level, own, finite = placed.T
        what = f"eval.sets.{s.name}: embeddings of images ({weights})"
        check_finite((finite > 0) | ~valid, s.source.key, what)
        tied = int((level > own)[counted].sum())
        if tied:
            self._console.print(
                f"{s.name}, {weights}: {tied:,} of {counted.sum():,} images have ties with their "
                "label; hits are expected values."
            )
        labels, classes = s.labels[counted], len(s.names)
        ks = [k for k in KS if k <= classes]
        hits = expected_hit(above[counted], level[counted], own[counted], ks)
        found = by_name(hits)
        if ((labels >= 0).sum(axis=1) == 1).all():
            found["accuracy"] = hits[1]  # with one label per image, FH@1 is top-1 accuracy
        first = dict(itertools.islice(s.unknown.items(), UNKNOWN))
        prompts = self._prompts[s.name]
        return {
            weights: found,
            "about": s.about | {"max_tokens": self._config.data.max_tokens},
            "prompts": {
                "cut": len(prompts.cut),
                "same_tokens": prompts.same[:UNKNOWN],
                "unknown_tokens": prompts.unknown[:UNKNOWN],
            },
            "images": int(counted.sum()),
            "classes": classes,
            "unreadable": unreadable,
            "unlabelled": int((~labelled).sum()),
            "without_label": s.no_label,
            "unknown_labels": {"count": len(s.unknown), "first": first},
            "chance": by_name(chance(labels, classes)),
            "frequency": by_name(frequency(labels, classes)),
        }


def table(step: int, results: Mapping[str, Mapping[str, Any]]) -> rich.table.Table:
    """Lays out the results of all sets, each with its baselines beneath."""
    out = rich.table.Table(title=f"Zero-shot, step {step}", title_justify="left")
    for heading in ("set", "images", "classes", "weights"):
        out.add_column(heading)
    for k in KS:
        out.add_column(f"FH@{k}", justify="right")
    for name, result in results.items():
        first = (name, str(result["images"]), str(result["classes"]))
        rows = [w for w in ("student", "ema", "frequency", "chance") if w in result]
        for i, weights in enumerate(rows):
            values = [result[weights].get(f"FH@{k}", math.nan) for k in KS]
            out.add_row(
                *(first if i == 0 else ("", "", "")),
                weights,
                *("" if math.isnan(v) else f"{v:.3f}" for v in values),
                style="dim" if weights in ("frequency", "chance") else None,
                end_section=i == len(rows) - 1,
            )
    return out


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
    console: rich.console.Console,
) -> None:
    """Evaluates the checkpoint `step` of `workdir`, else the best by eval.best, or the latest.

    Raises UserError if there is none, or it is of another model than the config's.
    """
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
    with cluster.Stop() as stop:
        try:
            evaluator(found.step, found.variables, stop.check)
            console.print(f"Results are in {evaluator.results(found.step)}.")
        except Stopped:
            console.print("Stopped before the end of the evaluation; no results were written.")
            raise
