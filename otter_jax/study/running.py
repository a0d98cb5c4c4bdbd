"""Runs the cells of a study on frozen features, as many runs side by side as the device takes."""

import functools
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Shaped

from otter_jax import mesh as meshes
from otter_jax.errors import UserError
from otter_jax.models.efficientnet import EFFICIENTNETS, EfficientNet
from otter_jax.objective import Objective
from otter_jax.run import programs
from otter_jax.run.threads import in_thread
from otter_jax.study import engine, linear, sampling
from otter_jax.study.cells import Cell, Outcome, Run
from otter_jax.study.features import Features
from otter_jax.study.plan import HEADS, STRENGTH, FrozenStudy, Setting
from otter_jax.study.scoring import Search, scores, scores_of_maps
from otter_jax.study.towers import CachedTowers, Frozen
from otter_jax.training import compiling

KEPT = 20  # steps of a main run whose metrics are kept
TOGETHER = 32  # runs side by side on a GPU; on CPUs one after the other is as fast
PROBED = 10  # steps that are timed to tell what a study costs
REMEMBERED = 128  # orders of runs: 2 MB each for 200,000 pairs


class Runner:
    """Trains and scores the runs of cells that have the same features.

    Attributes:
      searches: what is scored.
      done, seconds, compiling: runs so far, and the time that they, and compiling, have taken.
    """

    def __init__(self, study: FrozenStudy, features: Features, together: int | None = None):
        """Puts all features into the memory of the first device.

        Raises UserError if there is nothing to choose values by.
        """
        self._study, self._features = study, features
        self._mesh = meshes.make_mesh(1)
        self.device = self._mesh.devices.flat[0].device_kind
        platform = self._mesh.devices.flat[0].platform
        self._together = together or (1 if platform == "cpu" else TOGETHER)
        names = [*study.data.train]
        sizes = [len(features.parts[name]) for name in names]
        starts = itertools.accumulate(sizes, initial=0)
        self._starts = dict(zip(names, starts, strict=False))
        views = np.concatenate([features.parts[name].trained_on() for name in names], axis=1)
        self._view_count, self._pair_count = views.shape[:2]
        self._images = jax.device_put(views.reshape(-1, *views.shape[2:]))  # view by view
        self._texts = jax.device_put(np.concatenate([features.parts[n].texts for n in names]))
        self._given = jax.device_put(traverse_util.unflatten_dict(dict(features.given), sep="/"))
        self._held = held_out(study, features)
        self.searches = searches(study, features, self._held)
        known = [f"{s.name}@{k}" for s in self.searches for k in s.ks]
        for name in study.choose.by:
            if name not in known:
                raise UserError(
                    f"{study.path}: choose.by={name!r}: no run has it, for want of pictures or of "
                    f"names. There are: {', '.join(known)}."
                )
        self._model = model_of(study, features)
        self._seen: dict[Any, Any] = {}
        self._known: dict[Any, linear.Moments] = {}
        self._compiled: dict[Any, Any] = {}
        self.seconds, self.compiling, self.done = 0.0, 0.0, 0

    def __call__(self, runs: Iterable[Run]) -> Iterator[tuple[Cell, Outcome]]:
        """Makes all runs, those of one program together; yields each one's cell and outcome."""
        groups: dict[Any, list[Run]] = {}
        for cell, seed in runs:
            if self._study.methods[cell.method].is_linear:
                yield cell, self._solve(cell, seed)
                continue
            groups.setdefault((self._program(cell), cell.setting.batch), []).append((cell, seed))
        for (program, _), own in groups.items():
            for start in range(0, len(own), self._together):
                chunk = own[start : start + self._together]
                results = self._run_chunk(program, chunk)
                yield from ((cell, found) for (cell, _), found in zip(chunk, results, strict=True))

    def baselines(self) -> dict[str, dict[str, float]]:
        """Returns the measures of chance, and of always answering the most frequent names."""
        found: dict[str, dict[str, float]] = {}
        for search in self.searches:
            for kind, values in search.baselines().items():
                found.setdefault(kind, {}).update(values)
        return found

    def probe(self, cell: Cell) -> float:
        """Returns the seconds that a run of a cell takes, from a few steps of it."""
        program = self._program(cell)
        run = self._run(program, cell, cell.seeds[0])
        steps = len(run.images)
        few = min(steps, PROBED)
        run = run._replace(images=run.images[:few], texts=run.texts[:few], wrong=run.wrong[:few])
        stacked = jax.tree.map(lambda leaf: np.stack([leaf] * self._together), run)
        self._train(program, stacked)
        begun = time.perf_counter()
        self._train(program, stacked)
        return (time.perf_counter() - begun) * steps / few / self._together

    def _solve(self, cell: Cell, seed: int) -> Outcome:
        """Fits a closed form to the pairs of a seed; returns its outcome."""
        begun = time.perf_counter()
        base, strength = self._study.methods[cell.method].base, dict(cell.values)[STRENGTH]
        maps = linear.fit(base, self._moments(cell.setting, seed), strength)
        own = scores_of_maps(maps, self.searches)
        taken = time.perf_counter() - begun
        self.seconds, self.done = self.seconds + taken, self.done + 1
        both = {"student": own, "ema": own}
        return {"seed": seed, "scores": both, "device": "cpu", "seconds": round(taken, 3)}

    def _moments(self, setting: Setting, seed: int) -> linear.Moments:
        """Returns the moments of a run's pairs, of the middle of pictures; the last are kept."""
        if (setting, seed) not in self._known:
            pairs, texts = self._pairs(setting, seed), np.asarray(self._texts)
            found = linear.moments(self._middles[pairs.images], texts[pairs.texts])
            self._known[setting, seed] = found
            while len(self._known) > 8:
                del self._known[next(iter(self._known))]
        return self._known[setting, seed]

    @functools.cached_property
    def _middles(self) -> Shaped[np.ndarray, "N *features"]:
        """Returns the features of the middle of each training picture."""
        return np.concatenate([self._features.parts[n].images for n in self._study.data.train])

    def _run_chunk(self, program: engine.Program, chunk: Sequence[Run]) -> list[Outcome]:
        """Makes some runs side by side; returns their outcomes."""
        padded = [*chunk, *[chunk[-1]] * (self._together - len(chunk))]
        stacked = jax.tree.map(
            lambda *leaves: np.stack(leaves), *(self._run(program, *each) for each in padded)
        )
        before, begun = self.compiling, time.perf_counter()
        trained = self._train(program, stacked)
        own = {
            weights: scores(self._model, variables, self.searches)
            for weights, variables in trained.variables.items()
        }
        taken = time.perf_counter() - begun - (self.compiling - before)
        self.seconds, self.done = self.seconds + taken, self.done + len(chunk)
        metrics, at, broken = jax.device_get((trained.metrics, trained.at, trained.broken))
        results, seconds = [], round(taken / len(chunk), 3)
        for i, (cell, seed) in enumerate(chunk):
            result = {"seed": seed, "scores": {weights: own[weights][i] for weights in own}}
            result |= {"device": self.device, "seconds": seconds}
            if broken[i]:
                result |= {"diverged_at": int(broken[i])}
            if cell.stage == "main":
                kept = {name: _rounded(values[i]) for name, values in metrics.items()}
                result |= {"steps": at[i].tolist(), "metrics": kept}
            results.append(result)
        return results

    def _train(self, program: engine.Program, stacked: engine.Run) -> engine.Trained:
        """Trains stacked runs, compiled once for all of their shape; a signal need not wait."""
        args = (self._given, self._images, self._texts, stacked)
        key = (program, stacked.images.shape)
        if key not in self._compiled:
            begun = time.perf_counter()
            lowered = engine.train.lower(program, self._mesh, *args)
            self._compiled[key] = in_thread(lowered.compile, compiling.THREAD)
            self.compiling += time.perf_counter() - begun
            programs.note_compiled()
        compiled = self._compiled[key]
        return in_thread(lambda: jax.block_until_ready(compiled(*args)), compiling.THREAD)

    def _run(self, program: engine.Program, cell: Cell, seed: int) -> engine.Run:
        """Returns what tells a run from others."""
        values, objective = dict(cell.values), cell.objective(self._study)
        numbers = {
            name: np.float32(getattr(objective, name))
            for name in engine.traceable(program.objective)
        }
        return engine.Run(
            np.int32(seed), np.float32(values["learning_rate"]), np.float32(values["log_scale"]),
            numbers, *self.seen(cell.setting, self._study.methods[cell.method].length, seed),
        )  # fmt: skip

    def seen(
        self, setting: Setting, length: int, seed: int
    ) -> tuple[Shaped[np.ndarray, "steps B"], ...]:
        """Returns the rows of views and captions in each batch, and which captions are wrong.

        An epoch sees one view of each picture, the next epoch the next; row v * N + i of the views
        of N pairs is view v of pair i.

        Args:
          length: pairs that the run is shown in all.
        """
        key = (setting, length, seed)
        if key in self._seen:
            return self._seen[key]
        pairs = self._pairs(setting, seed)
        order = sampling.draw_order(
            len(pairs.images),
            batch_size=setting.batch,
            steps=length // setting.batch,
            seed=seed,
        )
        epochs = np.arange(order.size, dtype=np.int32).reshape(order.shape) // len(pairs.images)
        images = epochs % self._view_count * self._pair_count + pairs.images[order]
        self._seen[key] = images, pairs.texts[order], pairs.wrong[order]
        while len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return self._seen[key]

    def _pairs(self, setting: Setting, seed: int) -> sampling.Pairs:
        """Returns the pairs of a run, those of held-out concepts left out."""
        rows = np.concatenate(
            [
                self._starts[name] + np.flatnonzero(~self._held[name])
                for name in self._study.data.parts(setting.set)
            ]
        ).astype(np.int32)
        return sampling.draw_pairs(rows, share=setting.share, noise=setting.noise, seed=seed)

    def _program(self, cell: Cell) -> engine.Program:
        """Returns the program of a cell's runs, which cells with other numbers share."""
        train = self._study.methods[cell.method].train
        return engine.Program(self._model, shared(cell.objective(self._study)), train, KEPT)


def shared(objective: Objective) -> Objective:
    """Returns an objective that stands for all that one program can have as its numbers."""
    return engine.with_numbers(objective, {name: 1.0 for name in engine.traceable(objective)})


def held_out(study: FrozenStudy, features: Features) -> dict[str, Any]:
    """Marks, for each training set, the rows of the concepts that are never trained on."""
    held = study.data.held_out
    label = study.data.search[held.search].label
    known = set(features.banks[held.search].names)
    found = {name: np.zeros(len(features.parts[name]), bool) for name in study.data.train}
    labels = [row for name in held.sets for row in features.parts[name].labels[label]]
    marked = sampling.held_out(labels, known, count=held.count, seed=held.seed)
    start = 0
    for name in held.sets:
        size = len(features.parts[name])
        found[name] = marked[start : start + size]
        start += size
    return found


def searches(study: FrozenStudy, features: Features, held: Mapping[str, Any]) -> list[Search]:
    """Returns each search in each evaluation set, the held-out pictures among these as "val"."""
    found = []
    sets = {"val": [(features.parts[name], held[name]) for name in study.data.held_out.sets]}
    for name in study.data.eval:
        part = features.parts[name]
        sets[name] = [(part, np.ones(len(part), bool))]
    for name, spec in study.data.search.items():
        bank = features.banks[name]
        for set_name, parts in sets.items():
            labels = [part.numbers(spec.label, bank.names)[rows] for part, rows in parts]
            most = max(each.shape[1] for each in labels)
            joined = np.concatenate(
                [np.pad(x, ((0, 0), (0, most - x.shape[1])), constant_values=-1) for x in labels]
            )
            images = np.concatenate([part.images[rows] for part, rows in parts])
            labelled = (joined >= 0).any(axis=1)
            if labelled.any():
                found.append(
                    Search(f"{set_name}/{name}", images[labelled], bank.texts, joined[labelled])
                )
    return found


def model_of(study: FrozenStudy, features: Features) -> CachedTowers:
    """Returns the model of the runs: the trained part of the study's towers."""
    trained = study.train.trained
    width = features.about["width"]
    img = Frozen(width)
    if trained != HEADS:
        arguments = EFFICIENTNETS[study.model.img.arch]
        pruned = tuple(map(tuple, features.about["pruned"]))
        img = EfficientNet(**arguments, pruned=pruned, enter=trained)
    txt_width = next(iter(features.parts.values())).texts.shape[1]
    return CachedTowers(img=img, txt=Frozen(txt_width), dim=study.model.dim, txt_width=txt_width)


def _rounded(values: Any) -> list[float | None]:
    """Returns numbers as JSON has them, with five digits; None for what is not finite."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]
