"""Runs as training writes them, in milliseconds: a set, config, log, results, embeddings."""

import io
import json

import numpy as np
import rich.console
from making import made
from pictures import noise

from otter_jax.configs import common
from otter_jax.data.build.plan import Options
from otter_jax.data.ensure import plan_of
from otter_jax.data.source import open_dataset
from otter_jax.run import embedder
from otter_jax.run.watched import WatchedPairs
from otter_jax.zeroshot import tables

ODD = [
    "<script>alert(1)</script>",
    "a \"quoted\" & 'odd' one",
    "שלום עולם",
    "👩‍🚀\nflies",
    "x" * 900,
]
CAPTIONS = [*ODD, *(f"picture {n}" for n in range(11))]
HITS = {"FH@1": 0.25, "FH@2": 0.5, "FH@5": 0.75, "FH@10": 1.0, "accuracy": 0.25}


def numbers(step, **more):
    """The numbers of a line of the log."""
    return {
        "step": step, "loss": 8 / step, "pairs": 9 / step, "teacher": 7 / step,
        "scale_pairs": 49.0, "scale_teacher": 50.0, "target_entropy": 2.0, "own_mass": 0.0,
        "row_error": 0.1 / step, "grad_norm": 1.5, "param_norm": 9.0, "pairs_per_second": 100.0,
        "data_wait": 0.01, "seconds_left": 0.0, "learning_rate": 0.1, "epoch": step / 4,
    } | more  # fmt: skip


def evaluation(hits=HITS):
    """The results of a set."""
    chance = dict.fromkeys(hits, 0.125)
    return {
        "student": hits, "ema": hits, "images": 16, "classes": 8,
        "chance": chance, "frequency": chance,
    }  # fmt: skip


def pairs(home, captions=CAPTIONS):
    """Makes the set "pairs" in a folder's `sets`; returns that folder."""
    source = home / "pairs"
    source.mkdir()
    for n, caption in enumerate(captions):
        (source / f"{n:02d}.jpg").write_bytes(noise(n))
        (source / f"{n:02d}.txt").write_text(caption, "utf-8")
    made(home, plan_of([str(source)], "pairs", Options()))
    return home / "sets"


def config_of(sets, method="otter"):
    """The config of a run on them."""
    config = common.get_config(method)
    config.data.dir, config.data.name = str(sets), "pairs"
    config.data.resize = config.data.image_size = 16
    config.train.batch_size = config.eval.batch_size = 16
    return config


class Embedder(embedder.Embedder):
    """Embeds by a table of vectors of unit length, in place of a model; counts the calls."""

    def __init__(self, seed=0):
        self.calls, self._random = 0, np.random.default_rng(seed)

    def images(self, variables, images):
        self.calls += 1
        return self._rows(len(images))

    def texts(self, variables, texts):
        return self._rows(len(texts))

    def _rows(self, count):
        rows = self._random.normal(size=(count, 4)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def watched(config, workdir, embeds=None):
    """The watched pairs of a run, and what they print."""
    console = rich.console.Console(file=io.StringIO(), width=1000)
    source = open_dataset(config.data.dir, config.data.name, config.data.split)
    made = WatchedPairs(config, source, embeds or Embedder(), workdir, console)
    return made, console.file


def predict(folder, config, sets):
    """Writes the tables of an evaluation in which every fourth picture is right."""
    folder.mkdir()
    keys = [record["key"] for record in records(config)]
    for name in sets:
        stem = tables.stem_of(name, "student")
        right = [n % 4 == 0 for n in range(len(keys))]
        rows = [
            (key, ODD[n % 4], 1, ODD[(n + (not right[n])) % 4], "0.5000", "another", "0.2500")
            for n, key in enumerate(keys)
        ]
        heading = ("image", "labels", "place", "class_1", "cosine_1", "class_2", "cosine_2")
        tables.write_csv(folder / f"{stem}.images.csv", heading, rows)
        rows = [(ODD[n], 4, n / 4, 1.0, ODD[(n + 1) % 4], 4 - n) for n in range(4)]
        heading = ("class", "images", "recall@1", "recall@5", "taken_for", "times")
        tables.write_csv(folder / f"{stem}.classes.csv", heading, rows)


def records(config):
    """The records of a config's training set."""
    source = open_dataset(config.data.dir, config.data.name, config.data.split)
    return [source[n] for n in range(len(source))]


def run(workdir, config, steps=(2, 4), sets=("animals",), log=None, keep=(0, 4)):
    """Writes a run's directory; returns it."""
    workdir.mkdir(parents=True)
    for name in sets:
        config.eval.sets[name] = common.evaluation("pairs", split="train", label="caption")
    (workdir / "config.json").write_text(config.to_json())
    start = {"command": ["otter-jax", "train"], "git": "abc", "python": "3.11", "versions": {}}
    (workdir / "run.json").write_text(json.dumps([start]))
    lines = [json.dumps(numbers(step)) for step in steps] if log is None else log
    (workdir / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (workdir / "results").mkdir()
    for step in steps if sets else ():
        found = {"step": step, "sets": {name: evaluation() for name in sets}}
        (workdir / "results" / f"step_{step:08d}.json").write_text(json.dumps(found))
        predict(workdir / "results" / f"step_{step:08d}", config, sets)
    pairs, _ = watched(config, workdir)
    for step in keep:
        pairs.keep(step, None)
    return workdir
