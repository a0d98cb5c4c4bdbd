"""Flips single bits of a checkpoint and counts what becomes of them.

    python tests/flips.py --flips 200

A flip is silent if a state is restored that is not the one that was saved, or if another checkpoint
than the best is taken. It ends in a traceback if the error is none for a user.
"""

import argparse
import collections
import contextlib
import pathlib
import random
import sys
import tempfile

import jax
import numpy as np
import tiny
from absl import logging

from otter_jax import mesh as meshes
from otter_jax.errors import UserError
from otter_jax.run import reading
from otter_jax.run.checkpoint import Checkpoints

WORST = ("traceback", "silent", "named", "as saved")


def flipped(path: pathlib.Path, rng: random.Random) -> bytes:
    """Flips one bit of a file; returns what it held."""
    held = path.read_bytes()
    content = bytearray(held)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return held


def outcomes(workdir: pathlib.Path, state, best: int, about) -> set[str]:
    """Says what evaluating the run and going on with it make of it.

    "as saved", "named", "silent" or "traceback"
    """
    sharding = meshes.one_device()

    def evaluated():
        found, taken = reading.restore_best(
            workdir, {"params": state.params}, sharding, best="score"
        )
        return taken.step == best and same(found["params"], state.params)

    def gone_on_with():
        with contextlib.closing(Checkpoints(workdir, best="score")) as checkpoints:
            step = checkpoints.latest
            return checkpoints.about(step) == about and same(
                checkpoints.restore(step, state, sharding), state
            )

    return {ending(evaluated), ending(gone_on_with)}


def ending(of) -> str:
    """Says how a call ended that tells whether it found what was saved."""
    try:
        return "as saved" if of() else "silent"
    except UserError:
        return "named"
    except Exception as error:
        print(f"traceback: {type(error).__name__}: {error}", file=sys.stderr)
        return "traceback"


def same(found, saved) -> bool:
    """Tells whether all arrays of two trees are equal."""
    pairs = zip(jax.tree.leaves(jax.device_get(found)), jax.tree.leaves(saved), strict=True)
    return all(np.array_equal(*pair) for pair in pairs)


def main() -> int:
    """Flips bits one at a time; the exit status is 1 if one was silent or a traceback."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.set_verbosity(logging.FATAL)
    rng, counts = random.Random(options.seed), collections.Counter()
    state = jax.device_put(tiny.state(), meshes.one_device())
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        about = {"name": "squares:train", "contents": "60 pairs, 1a2b3c4d"}
        with contextlib.closing(Checkpoints(workdir, best="score", about=about)) as checkpoints:
            checkpoints.save(3, state, {"score": 0.9})
            checkpoints.save(5, state, {"score": 0.1})
        files = [
            p for p in (workdir / "checkpoints").rglob("*") if p.is_file() and p.stat().st_size
        ]
        for _ in range(options.flips):
            # By size, so that arrays have their share, and by file, so that small ones have one.
            weights = [path.stat().st_size for path in files] if rng.random() < 0.5 else None
            (path,) = rng.choices(files, weights)
            held = flipped(path, rng)
            ends = outcomes(workdir, state, 3, about)
            counts[next(what for what in WORST if what in ends)] += 1
            path.write_bytes(held)
    print(f"{options.flips} flips: {', '.join(f'{n} {what}' for what, n in counts.most_common())}")
    return 1 if counts["silent"] or counts["traceback"] else 0


if __name__ == "__main__":
    sys.exit(main())
