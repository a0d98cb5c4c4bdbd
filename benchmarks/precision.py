"""Encoders in bfloat16 beside float32: curves of the loss, and where training ends, by seeds.

    python -m benchmarks.precision --out docs/precision

A ResNet of two blocks and a BERT of two layers learn the quickstart's 1,239 drawn pictures and
their names from nothing by OTTER: 16 pixels, batches of 64, 500 steps of AdamW. A seed draws
weights, order and crops, alike for both precisions; three seeds show what that alone changes.
Writes OUT.json as it goes, so that a run that was stopped goes on, and OUT.png; prints the table.
"""

import argparse
import contextlib
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from configs import quickstart
from otter_jax import mesh as meshes
from otter_jax import optimizer, step
from otter_jax.data.captions import Tokenizer
from otter_jax.data.ensure import ensure
from otter_jax.data.source import open_dataset
from otter_jax.models.bert import Bert, BertConfig
from otter_jax.models.resnet import ResNet
from otter_jax.models.towers import Towers
from otter_jax.objective import METHODS
from otter_jax.run import batches
from otter_jax.run.model import initialise
from otter_jax.training.compiling import jit_step
from otter_jax.weights import hub

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
COLOURS = {"float32": "tab:blue", "bfloat16": "tab:orange"}
STEPS, SEEDS, B = 500, (0, 1, 2), 64
PIXELS, MARGIN, WIDTH = 16, 2, 64
SMOOTH = 20  # steps that a point of the curves is the mean of
WHERE = {"loss, steps 1-100": (0, 100), "loss, steps 401-500": (400, 500)}


@functools.cache
def pairs():
    """All pictures, larger than the encoder's input by a margin; tokens among those used; masks."""
    config = quickstart.get_config("otter")
    config.data.resize = config.data.image_size = PIXELS + MARGIN
    ensure(config.data.name, config.data.dir, config.data.tars, exif=config.data.exif)
    source = open_dataset(config.data.dir, config.data.name, config.data.split)
    with contextlib.closing(batches.evaluation(config, source)) as rows:
        images = np.concatenate([row["image"] for row in rows])[: len(source)]
    tokenizer = Tokenizer(hub.locate(config.model.txt.weights), config.data.max_tokens)
    ids, mask = tokenizer.encode([source[i][Tokenizer.feature] for i in range(len(source))])
    return images, np.unique(ids, return_inverse=True)[1].astype(np.int32), mask


def batch_of(rows, offsets):
    """The pairs of these numbers, pictures cropped at these offsets."""
    images, ids, mask = pairs()
    crops = [
        images[row, top : top + PIXELS, left : left + PIXELS]
        for row, (top, left) in zip(rows, offsets, strict=True)
    ]
    return {"image": np.stack(crops), "token_ids": ids[rows], "mask": mask[rows]}


@functools.cache
def program(dtype: str):
    """The model, how its training begins from a key, and its jitted step."""
    text = BertConfig(
        vocab_size=int(pairs()[1].max()) + 1,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=4 * WIDTH,
    )
    kind, mesh = DTYPES[dtype], meshes.make_mesh(1)
    image = ResNet((1, 1), "basic", (16, 32), dtype=kind)
    model = Towers(image, Bert(text, kind), WIDTH, WIDTH, (127.0,) * 3, (128.0,) * 3)
    rate = optimizer.learning_rate(1e-3, total_steps=STEPS, warmup_steps=20)
    tx = optimizer.make_optimizer("adamw", rate, weight_decay=0.01)

    @jax.jit
    def create(key):
        variables = initialise(model, key)
        return step.create_state(variables["params"], variables["batch_stats"], tx)

    how = {"model": model, "tx": tx, "objective": METHODS["otter"], "mesh": mesh, "form": "cached"}
    one = functools.partial(step.train_step, key=jax.random.key(0), **how)
    return model, create, jit_step(one, mesh)


def train(dtype: str, seed: int) -> dict:
    """The loss of every step, and how often a picture finds its own name among all at the end."""
    model, create, one = program(dtype)
    draw, count = np.random.default_rng(seed), len(pairs()[0])
    order = np.concatenate([draw.permutation(count) for _ in range(1 + STEPS * B // count)])
    state, losses = create(jax.random.key(seed)), []
    for number in range(STEPS):
        rows = order[number * B : (number + 1) * B]
        state, metrics = one(state, batch_of(rows, draw.integers(0, MARGIN + 1, (B, 2))))
        losses.append(metrics["loss"])
        if not number:  # compiled
            jax.block_until_ready(metrics)
            began = time.process_time()
    run = {"dtype": dtype, "seed": seed, "loss": [round(float(x), 5) for x in losses]}
    run["CPU seconds"] = round(time.process_time() - began, 1)
    everything = batch_of(range(count), [(MARGIN // 2, MARGIN // 2)] * count)
    captions = {name: everything[name] for name in ("token_ids", "mask")}
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    look = jax.jit(functools.partial(model.apply, train=False))
    img, txt = jax.device_get(look(variables, everything["image"], captions))
    cosines = img @ txt.T
    ranks = (cosines > np.diag(cosines)[:, None]).sum(1)
    return run | {f"hit@{k}": round(float((ranks < k).mean()), 4) for k in (1, 10)}


def table(runs: list[dict]) -> str:
    """Means over seeds, and in brackets from the least to the largest."""
    lines = ["| | " + " | ".join(DTYPES) + " |", "|---" * (1 + len(DTYPES)) + "|"]
    for name in (*WHERE, "hit@1", "hit@10", "CPU seconds"):
        cells = []
        for dtype in DTYPES:
            own = [run for run in runs if run["dtype"] == dtype]
            values = [
                np.mean(run["loss"][slice(*WHERE[name])]) if name in WHERE else run[name]
                for run in own
            ]
            digits = 0 if name == "CPU seconds" else 3
            low, mean, high = (f"{f(values):.{digits}f}" for f in (min, np.mean, max))
            cells.append(f"{mean} ({low} to {high})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(runs: list[dict], out: pathlib.Path) -> None:
    """The loss over steps by precision; and the difference of both, beside that of seeds."""
    smooth = {
        dtype: np.array(
            [
                np.convolve(run["loss"], np.ones(SMOOTH) / SMOOTH, "valid")
                for run in sorted(runs, key=lambda run: run["seed"])
                if run["dtype"] == dtype
            ]
        )
        for dtype in DTYPES
    }
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = np.arange(SMOOTH, STEPS + 1)
    for dtype, curves in smooth.items():
        left.fill_between(x, curves.min(0), curves.max(0), color=COLOURS[dtype], alpha=0.25, lw=0)
        left.plot(x, curves.mean(0), color=COLOURS[dtype], label=f"{dtype}, mean of {len(curves)}")
    exact = smooth["float32"]
    spread = exact - exact.mean(0)
    label = "float32: seeds from their mean"
    right.fill_between(x, spread.min(0), spread.max(0), color="tab:blue", alpha=0.25, lw=0)
    right.plot([], [], color="tab:blue", lw=6, alpha=0.25, label=label)
    for number, difference in enumerate(smooth["bfloat16"] - exact):
        label = None if number else "bfloat16 - float32, each seed"
        right.plot(x, difference, color="tab:orange", lw=1, label=label)
    left.set_title("loss, nats", fontsize=11)
    right.set_title("difference of the loss, nats", fontsize=11)
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(out, dpi=120)


def main() -> None:
    """Trains what OUT.json lacks, writes it and the plot, prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="without .json and .png")
    options = parser.parse_args()
    path = options.out.with_suffix(".json")
    runs = json.loads(path.read_text()) if path.exists() else []
    for seed in SEEDS:
        for dtype in DTYPES:
            if not any(run["dtype"] == dtype and run["seed"] == seed for run in runs):
                runs.append(train(dtype, seed))
                path.write_text(json.dumps(runs))
    plot(runs, options.out.with_suffix(".png"))
    print(table(runs))


if __name__ == "__main__":
    main()
