"""Batches that are hard in single precision: how far from float64 both forms by panels are.

    python -m benchmarks.hard [--batch 64]

prints the largest errors of trust_otter with trust="transport", where one transport sets the
targets and another weighs the pairs, at several temperatures (epsilon, of both): of its numbers
(loss, terms, health, gradients of the scales; each over its size, if that is above 1), and of the
gradients of embeddings, over scale / B, the largest slope that one match can have. In float64 it is
the dense form, as in the paper.
"""

import argparse
import dataclasses

import jax
import numpy as np

from otter_jax import mesh as meshes
from otter_jax import step
from otter_jax.objective import METHODS

D, LOG_SCALE = 64, 3.9
EPSILONS = 0.005, 0.05, 0.15, 5.0
FORMS = "cached", "streaming"
METHOD = dataclasses.replace(METHODS["trust_otter"], trust="transport")
CASES = {
    "random": lambda x: x,
    "duplicates": lambda x: np.repeat(x, 4, axis=1)[:, : x.shape[1]],
    "an outlier": lambda x: np.where(_row(x, 3), -x.mean((0, 1)) * 9, x),
    "all equal": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "a caption without tokens": lambda x: x * ~(_row(x, 5) & (np.arange(4) == 3)[:, None, None]),
}


def _row(x, number):
    return (np.arange(x.shape[1]) == number)[:, None]


def batch(name: str, B: int, D: int) -> np.ndarray:
    """Embeddings of student and teacher, images and texts, of unit length or 0: float64."""
    x = np.random.RandomState(0).randn(4, B, D)
    x = CASES[name](x / np.linalg.norm(x, axis=-1, keepdims=True))
    return np.ascontiguousarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9))


def looks(epsilon: float, form: str):
    """A function of embeddings and scales: loss, terms and health; gradients of all of them."""
    where = {"mesh": meshes.make_mesh(1), "form": form}
    method = dataclasses.replace(METHOD, epsilon=epsilon, trust_epsilon=epsilon)

    @jax.jit
    def look(x, scales):
        targets, health = step.teach(method, x[2], x[3], **where)

        def loss(img, txt, scales):
            return step.matching_loss(method, img, txt, targets, scales, **where)

        found = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(x[0], x[1], scales)
        numbers, (img, txt, of_scales) = found
        return (numbers, health, of_scales), (img, txt)

    def run(x):
        scales = dict.fromkeys(("pairs", "teacher"), x.dtype.type(LOG_SCALE))
        return jax.device_get(look(x, scales))

    return run


def errors(found, exact, B: int) -> str:
    """The largest of numbers, and of gradients; "not finite" where one is not."""
    parts = [
        list(zip(*map(jax.tree.leaves, pair), strict=True))
        for pair in zip(found, exact, strict=True)
    ]
    if not all(np.isfinite(ours).all() for part in parts for ours, _ in part):
        return "not finite"
    numbers = max(abs(ours - true) / max(1, abs(true)) for ours, true in parts[0])
    gradients = max(np.abs(ours - true).max() for ours, true in parts[1])
    return f"{numbers:.0e}, {gradients * B / np.exp(LOG_SCALE):.0e}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64)
    B = parser.parse_args().batch
    cells = {}
    for epsilon in EPSILONS:
        with jax.enable_x64(True):
            dense = looks(epsilon, "dense")
            exact = {name: dense(batch(name, B, D)) for name in CASES}
        for form in FORMS:
            look = looks(epsilon, form)
            for name in CASES:
                found = look(batch(name, B, D).astype(np.float32))
                cells[name, form, epsilon] = errors(found, exact[name], B)
    print(f"| B = {B}, D = {D} | form | " + " | ".join(f"{e:g}" for e in EPSILONS) + " |")
    print("|---" * (2 + len(EPSILONS)) + "|")
    for name in CASES:
        for form in FORMS:
            row = " | ".join(cells[name, form, epsilon] for epsilon in EPSILONS)
            print(f"| {name} | {form} | {row} |")


if __name__ == "__main__":
    main()
