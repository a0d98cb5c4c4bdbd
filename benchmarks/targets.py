"""Targets and trust where the truth is known: a world of meanings, pictured and worded many ways.

    python -m benchmarks.targets --out runs/targets [--seeds 3]

A meaning is a point among others of its topic. A picture and a caption show it by a fixed random
layer each, together with a style and a wording that mean nothing; popular meanings have many pairs,
and a chosen share of the captions is exchanged. So it is known of every batch which captions are
true of which pictures. Linear heads on both are trained by `step.train_step`; all along, the
teacher's targets, and what the loss as a whole pulls to, are compared with the truth. What comes
out is printed, and stands in OUT: targets.md, targets.png, targets.json.
"""

import argparse
import copy
import dataclasses
import functools
import json
import pathlib
import time
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from matplotlib.figure import Figure

from otter_jax import step
from otter_jax.mesh import make_mesh
from otter_jax.models.towers import head, unit
from otter_jax.objective import METHODS, Objective
from otter_jax.optimizer import learning_rate, make_optimizer

TOPICS, MEANINGS, UNSEEN = 40, 300, 100  # meanings that are trained on, and that are not
PAIRS, LATENT, STYLE = 2_048, 16, 16
WIDTH = {"img": 512, "txt": 256}  # of the features that heads get
SPREAD = {"img": 3.0, "txt": 1.5}  # of style, and of wording
GAIN = 2.0  # of the layers: beyond 1 they are far from linear
DIM, B, STEPS, RATE = 32, 128, 320, 3e-3
EVERY = 16  # steps between two looks at the truth: one epoch at B = 128
LOOKS = 4  # batches that are looked at
NOISE = (0.0, 0.2, 0.5)
USUAL = 0.2, 0.5  # noise of the sweeps
FLOOR = 0.01  # of a target is spread evenly before its logarithm is taken: it may be 0 on a truth

BY_TRANSPORT = {"trust": "transport", "trust_epsilon": 0.05}
OTTER, TRUST = METHODS["otter"], Objective(**BY_TRANSPORT)
RUNS = {
    "InfoNCE": METHODS["infonce"],
    "LS": METHODS["ls"],
    "KD": METHODS["kd"],
    "OTTER": OTTER,
    "SoftCLIP-like": METHODS["softclip"],
    "small loss": Objective(trust="small_loss", trust_epsilon=0.05),
    "trust, softmax": Objective(trust="softmax", trust_epsilon=0.05),
    "trust": TRUST,
    "trust + OTTER": dataclasses.replace(METHODS["trust_otter"], **BY_TRANSPORT),
}
NAMES = [*RUNS, "small loss, share known", "right pairs alone"]
SWEEPS = {  # what is varied, and its values
    "λ": (0.02, 0.05, 0.08, 0.15, 0.3, 0.6),
    "iterations": (1, 2, 5, 20),
    "batch": (32, 64, 128, 256, 512),
    "decay": (0.0, 0.9, 0.99, 0.999),
}


class World(NamedTuple):
    """Holds the features of pairs, and what they mean; the last UNSEEN meanings have no pairs."""

    img: jax.Array
    txt: jax.Array
    of_img: jax.Array
    of_txt: jax.Array
    names: jax.Array  # features of the plainest wording of every meaning
    pictures: jax.Array  # features of two new pictures of every meaning


class Heads(nn.Module):
    """Embeds features of pictures and captions by a linear layer each, as `Towers` does."""

    def setup(self):
        self.img_head, self.txt_head = head(WIDTH["img"], DIM), head(WIDTH["txt"], DIM)
        self.log_scale = self.param(
            "log_scale", lambda _: {k: jnp.full((), 3.0) for k in ("pairs", "teacher")}
        )

    def __call__(self, image, captions, *, train):
        return unit(self.img_head(image)), unit(self.txt_head(captions["features"]))


def make_world(key, noise) -> World:
    """Draws a world in which a share `noise` of the captions is exchanged among themselves."""
    keys = iter(jax.random.split(key, 12))
    topics = jax.random.normal(next(keys), (TOPICS, LATENT))
    each = jax.random.randint(next(keys), (MEANINGS + UNSEEN,), 0, TOPICS)
    within = jax.random.normal(next(keys), (MEANINGS + UNSEEN, LATENT))
    meanings = topics[each] + 0.6 * within
    layers = {
        kind: jax.random.normal(next(keys), (LATENT + STYLE, width)) / jnp.sqrt(LATENT)
        for kind, width in WIDTH.items()
    }

    def shown(kind, which, spread, key):
        style = spread * jax.random.normal(key, (len(which), STYLE))
        return jnp.tanh(GAIN * jnp.concatenate([meanings[which], style], axis=1) @ layers[kind])

    popular = 1 / (10.0 + jnp.arange(MEANINGS))
    of_img = jax.random.choice(next(keys), MEANINGS, (PAIRS,), p=popular / popular.sum())
    order = jax.random.permutation(next(keys), PAIRS)
    wrong = order < jnp.round(noise * PAIRS)
    # The n-th wrong caption goes to the next wrong picture, and the last to the first.
    places = jnp.argsort(~wrong, stable=True)
    count = wrong.sum()
    position = jnp.cumsum(wrong) - 1
    taken = places[jnp.where(count, (position + 1) % jnp.maximum(count, 1), 0)]
    of_txt = jnp.where(wrong, of_img[taken], of_img)
    every = jnp.arange(MEANINGS + UNSEEN)
    return World(
        shown("img", of_img, SPREAD["img"], next(keys)),
        shown("txt", of_txt, SPREAD["txt"], next(keys)),
        of_img,
        of_txt,
        shown("txt", every, 0.0, next(keys)),
        shown("img", jnp.tile(every, 2), SPREAD["img"], next(keys)),
    )


def pulled_to(objective: Objective, targets):
    """Returns what the loss pulls the matches of each direction to, [B, B], and the trust [B]."""
    rows = jnp.arange(len(next(iter(targets.values()))))
    trust = targets.get("trust")
    weights = jnp.ones(len(rows)) if trust is None else objective.weights(trust)
    pairs = objective.alpha * weights[:, None] * objective.pair_targets(rows, len(rows))
    taught = {k: (1 - objective.alpha) * v for k, v in targets.items() if k in ("image", "text")}
    return {k: pairs + taught.get(k, 0) for k in ("image", "text")}, weights


def divergence(truth, target):
    """Computes KL(truth || target), mean over the rows that have a truth, weighted as the target's.

    Targets whose rows do not sum to 1 count by their sums. FLOOR of each is spread evenly.
    """
    sums, known = target.sum(axis=1), truth.any(axis=1)
    truth = truth / jnp.maximum(truth.sum(axis=1, keepdims=True), 1)
    target = (1 - FLOOR) * target / jnp.maximum(sums, 1e-9)[:, None] + FLOOR / len(truth)
    rows = (jax.scipy.special.xlogy(truth, truth) - truth * jnp.log(target)).sum(axis=1)
    return (known * sums * rows).sum() / jnp.maximum((known * sums).sum(), 1e-9)


def judged(objective: Objective, world: World, params, teacher, numbers):
    """Returns what targets are worth in the batch of these pairs, and what the student can do."""
    model = Heads()
    captions = {"features": world.txt[numbers]}
    embeddings = model.apply({"params": teacher}, world.img[numbers], captions, train=False)
    targets = objective.teacher_targets(*embeddings) or {"none": jnp.zeros(len(numbers))}
    whole, weights = pulled_to(objective, targets)
    true = (world.of_img[numbers][:, None] == world.of_txt[numbers]).astype(jnp.float32)
    both = {"image": true, "text": true.T}
    off = 1 - jnp.eye(len(numbers))
    right = jnp.diag(true)
    found = {
        "kl": sum(divergence(both[k], whole[k]) for k in both) / 2,
        "true": sum((both[k] * whole[k]).sum() for k in both)
        / sum(w.sum() for w in whole.values()),
    }
    if "image" in targets:  # the teacher's alone, on what is not given
        found["kl_others"] = sum(divergence(off * both[k], off * targets[k]) for k in both) / 2
        found["true_others"] = sum((off * both[k] * targets[k]).sum() for k in both) / sum(
            (off * targets[k]).sum() for k in both
        )
    if "trust" in targets:
        found |= trusted(weights, targets["trust"], right)
    return found | hits(model, params, world)


def trusted(weights, trust, right):
    """Returns precision and recall of distrust (a weight below a half), and the AUC of trust."""
    low, wrong = weights < 0.5, 1 - right
    above = (trust[:, None] > trust) + 0.5 * (trust[:, None] == trust)
    pairs = right[:, None] * wrong
    return {
        "precision": (low * wrong).sum() / jnp.maximum(low.sum(), 1),
        "recall": (low * wrong).sum() / jnp.maximum(wrong.sum(), 1),
        "auc": (pairs * above).sum() / jnp.maximum(pairs.sum(), 1),
    }


def hits(model, params, world):
    """Returns the share of new pictures whose meaning is the nearest name, among all names."""
    img, names = model.apply(
        {"params": params}, world.pictures, {"features": world.names}, train=False
    )
    cosines = img @ names.T
    of = jnp.tile(jnp.arange(len(names)), 2)
    rank = (cosines > jnp.take_along_axis(cosines, of[:, None], axis=1)).sum(axis=1)
    seen = of < MEANINGS
    return {
        f"{which} name@{k}": ((rank < k) * those).sum() / those.sum()
        for which, those in (("seen", seen), ("unseen", ~seen))
        for k in (1, 5)
    }


@functools.partial(jax.jit, static_argnames=("objective", "batch", "steps", "clean"))
def trained(key, noise, decay, numbers, objective, batch=B, steps=STEPS, clean=False):
    """Returns the judgements after every EVERY steps, stacked; `clean` trains on right pairs.

    `numbers` are fields of the objective that differ, so that one program does for all of them.
    """
    objective = copy.copy(objective)
    for name, value in numbers.items():  # past the checks, which need known values
        object.__setattr__(objective, name, value)
    worlds, heads, order = jax.random.split(key, 3)
    world, model, mesh = make_world(worlds, noise), Heads(), make_mesh(1)
    tx = make_optimizer(
        "adamw", learning_rate(RATE, total_steps=steps, warmup_steps=20), weight_decay=0.01
    )
    params = model.init(heads, world.img[:1], {"features": world.txt[:1]}, train=False)["params"]
    right = (world.of_img == world.of_txt).astype(jnp.float32)
    likely = jnp.where(clean, right, 1.0)

    def batch_of(k):  # without a repetition within a batch; by chance from epoch to epoch
        drawn = jax.random.fold_in(order, k)
        return jax.random.choice(drawn, PAIRS, (batch,), False, p=likely / likely.sum())

    def advance(state, k):
        numbers = batch_of(k)
        rows = {"image": world.img[numbers], "features": world.txt[numbers]}
        state, _ = step.train_step(
            state, rows, model=model, tx=tx, objective=objective, mesh=mesh, key=key,
            ema_decay=decay,
        )  # fmt: skip
        return state, None

    def epoch(state, k):
        state, _ = lax.scan(advance, state, k)
        teacher = state.teacher["params"]

        def look(n):
            numbers = jax.random.permutation(jax.random.key(n), PAIRS)[:batch]
            return judged(objective, world, state.params, teacher, numbers)

        return state, jax.tree.map(lambda x: x.mean(), lax.map(look, jnp.arange(LOOKS)))

    state = step.create_state(params, {}, tx)
    return lax.scan(epoch, state, jnp.arange(steps).reshape(-1, EVERY))[1]


def run(
    objective: Objective, noise: float, seeds: int, *, decay: float = 0.999, numbers=None, **options
) -> dict[str, list[list[float]]]:
    """Returns {measure: values over the steps, a list per seed}."""
    one = functools.partial(trained, objective=objective, **options)
    each = jax.vmap(one, in_axes=(0, None, None, None))
    keys = jax.random.split(jax.random.key(0), seeds)
    found = jax.device_get(each(keys, jnp.float32(noise), jnp.float32(decay), numbers or {}))
    return {name: np.round(values, 4).tolist() for name, values in found.items()}


def varied(what: str, value: float, method: str) -> dict:
    """Returns the arguments of `run` that set `what` to a value."""
    objective = RUNS[method]
    if what == "λ":
        field = "epsilon" if method == "OTTER" else "trust_epsilon"
        return {"objective": objective, "numbers": {field: jnp.float32(value)}}
    if what == "iterations":
        return {"objective": dataclasses.replace(objective, num_iters=value)}
    return {"objective": objective, what: value}


def all_runs(seeds: int, path: pathlib.Path) -> list[dict]:
    """Trains what is not in the file yet, adds it there, and returns a record of each run."""
    records, begun = json.loads(path.read_text()) if path.exists() else [], time.monotonic()
    done = {(r["what"], r["method"], r["noise"], r["value"]) for r in records}

    def add(what, method, noise, value=None, **options):
        if (what, method, noise, value) in done:
            return
        found = run(noise=noise, seeds=seeds, **options)
        records.append(
            {"what": what, "method": method, "noise": noise, "value": value, "found": found}
        )
        path.write_text(json.dumps(records))
        ends = {k: round(float(np.mean([seed[-1] for seed in v])), 3) for k, v in found.items()}
        print(f"{time.monotonic() - begun:5.0f} s, {what}, {method}, {noise}, {value}: {ends}")

    for noise in NOISE:
        for name, objective in RUNS.items():
            add("method", name, noise, objective=objective)
        known = dataclasses.replace(RUNS["small loss"], trust_share=1 - noise)
        add("method", "small loss, share known", noise, objective=known)
        add("method", "right pairs alone", noise, objective=METHODS["infonce"], clean=True)
    for what, values in SWEEPS.items():
        for value in values:
            for noise in USUAL:
                for method in ("OTTER", "trust"):
                    add(what, method, noise, value, **varied(what, value, method))
    for method in ("InfoNCE", "trust"):
        add("length", method, 0.5, 4 * STEPS, objective=RUNS[method], steps=4 * STEPS)
    return records


def last(record: dict, measure: str) -> float | None:
    """Returns a measure after the last step, mean over seeds; None where there is none."""
    seeds = record["found"].get(measure)
    return None if seeds is None else float(np.mean([values[-1] for values in seeds]))


def table(records: list[dict]) -> str:
    """Lays out the methods, a row each; a cell has the noises of NOISE."""
    columns = {
        "KL": "kl",
        "true": "true",
        "seen": "seen name@1",
        "unseen": "unseen name@1",
        "AUC": "auc",
        "precision": "precision",
        "recall": "recall",
    }
    lines = [f"| method | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in NAMES:
        own = {r["noise"]: r for r in records if r["what"] == "method" and r["method"] == name}
        cells = []
        for measure in columns.values():
            asked = [n for n in NOISE if n or measure not in ("auc", "precision", "recall")]
            found = [last(own[noise], measure) for noise in asked]
            shown = [f"{x:.2f}".removeprefix("0") for x in found if x is not None]
            cells.append(" / ".join(shown) or "")
        if name == "right pairs alone":  # what it is judged on are all pairs
            cells[:2] = ["", ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


COLOURS = dict(zip(NAMES, [
    "#9aa5b1", "#c4a35a", "#7d5ba6", "#2a6fdb", "#58a4b0", "#b5838d", "#f28f3b", "#d1495b",
    "#2e8b57", "#e8b4bc", "#000000",
], strict=True))  # fmt: skip


def plot(records: list[dict]) -> Figure:
    """Draws targets and trust over training and against noise; below, what the sweeps varied."""
    figure = Figure(figsize=(15, 7.2), layout="constrained")
    above, below = figure.subplots(2, 4)
    methods = [r for r in records if r["what"] == "method"]
    over_steps(above[0], [r for r in methods if r["noise"] == 0.5], "kl", RUNS)
    above[0].set(title="KL(truth ‖ whole pull), half wrong", xlabel="step", ylabel="nats")
    over_steps(above[1], [r for r in methods if r["noise"] == 0.5], "unseen name@1", COLOURS)
    above[1].set(title="unseen name@1, half wrong", xlabel="step", ylim=(0, 1))
    for name in COLOURS:
        of = [last(r, "unseen name@1") for r in methods if r["method"] == name]
        above[2].plot(NOISE, of, ".-", color=COLOURS[name], label=name)
    above[2].set(title="unseen name@1 at the end", xlabel="share of wrong captions", ylim=(0, 1))
    long = [r for r in records if r["what"] == "length" and r["method"] == "trust"]
    for measure, dash in (("auc", "-"), ("precision", "--"), ("recall", ":")):
        for record in long:
            curve(above[3], record, measure, COLOURS["trust"], measure, dash)
    for record in records:
        if record["what"] == "length":
            colour, name = COLOURS[record["method"]], f"unseen name@1, {record['method']}"
            curve(above[3], record, "unseen name@1", colour, name, "-.")
    above[3].set(title="80 epochs, half wrong", xlabel="step", ylim=(-0.4, 1.02))
    for axes, what in zip(below, SWEEPS, strict=True):
        sweep(axes, [r for r in records if r["what"] == what], what)
    for axes in (*above, *below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(10)
    figure.legend(*above[1].get_legend_handles_labels(), loc="outside upper center", ncols=6,
                  frameon=False, fontsize=9)  # fmt: skip
    above[3].legend(frameon=False, fontsize=7, loc="lower center", ncols=2)
    below[0].legend(frameon=False, fontsize=8)
    return figure


def curve(axes, record, measure, colour, label, dash="-"):
    """Draws a measure of a run over the steps, mean over seeds."""
    values = np.mean(record["found"][measure], axis=0)
    axes.plot(EVERY * np.arange(1, len(values) + 1), values, dash, color=colour, label=label)


def over_steps(axes, records, measure, names):
    """Draws a measure of several methods over the steps."""
    for record in records:
        if record["method"] in names and measure in record["found"]:
            curve(axes, record, measure, COLOURS[record["method"]], record["method"])


def sweep(axes, records, what):
    """Draws, over what is varied, which part of OTTER's targets is true, and the AUC of trust."""
    for method, measure in (("OTTER", "true_others"), ("trust", "auc")):
        for noise, dash in zip(USUAL, ("--", "-"), strict=True):
            of = [r for r in records if (r["method"], r["noise"]) == (method, noise)]
            label = {"OTTER": "OTTER: true share of targets", "trust": "trust: AUC"}[method]
            axes.plot(range(len(of)), [last(r, measure) for r in of], f".{dash}",
                      color=COLOURS[method], label=f"{label}, {noise:.0%} wrong")  # fmt: skip
    axes.set_xticks(range(len(SWEEPS[what])), [f"{value:g}" for value in SWEEPS[what]])
    axes.set(title=f"against {what}", xlabel=what, ylim=(0, 1.02))


def main() -> None:
    """Runs everything, and writes what came out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    records = all_runs(options.seeds, options.out / "targets.json")
    (options.out / "targets.md").write_text(table(records), "utf-8")
    plot(records).savefig(options.out / "targets.png", dpi=90)
    print(table(records))


if __name__ == "__main__":
    main()
