"""Draws docs/architecture.svg: one batch on its way from file to gradient.

    python docs/figures/architecture.py [--out docs/architecture.svg]

The three matrices are computed by the project's own objective, from made-up embeddings of twelve
pairs in four groups whose captions fit each other's images.
"""

import argparse
import itertools

import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from otter_jax.objective import METHODS

INK, SOFT, PAPER = "#1f2933", "#61707f", "#ffffff"
DATA, STUDENT, TEACHER, LOOP = "#3d6fb4", "#d2691e", "#1b8a7a", "#7a5ba6"
MONO = "DejaVu Sans Mono"


def embeddings(seed: int, noise: float) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Returns unit vectors of twelve images and captions, in groups of 4, 3, 3 and 2."""
    draw = np.random.default_rng(seed).standard_normal
    centres = draw((4, 16))[np.repeat(np.arange(4), (4, 3, 3, 2))]
    both = [centres + noise * draw(centres.shape) for _ in range(2)]
    return tuple(jnp.array(x / np.linalg.norm(x, axis=1, keepdims=True)) for x in both)


def matrices() -> dict[str, np.ndarray]:
    """Returns the teacher's target, the given pairs and a student's match of one batch."""
    objective = METHODS["otter"]
    target = objective.teacher_targets(*embeddings(1, 0.55))["image"]
    img, txt = embeddings(1, 1.1)
    match = jnp.exp(9 * img @ txt.T)
    match /= match.sum(axis=1, keepdims=True)
    pairs = objective.pair_targets(jnp.arange(12), 12)
    return {"target": np.asarray(target), "pairs": np.asarray(pairs), "match": np.asarray(match)}


class Canvas:
    """Boxes, arrows and matrices on a page of 16 x 9 units."""

    def __init__(self):
        self.figure = Figure(figsize=(16, 9), facecolor=PAPER)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, 16), ylim=(0, 9))
        self.axes.axis("off")

    def text(self, x, y, words, *, size=11.5, color=INK, **more):
        """Writes words, centred at (x, y) unless told otherwise."""
        style = {"ha": "center", "va": "center", "linespacing": 1.35} | more
        self.axes.text(x, y, words, fontsize=size, color=color, **style)

    def place(self, y, files):
        """Writes at the right where the code of a lane lies."""
        self.text(15.45, y, files, size=10.5, color=SOFT, ha="right", family=MONO)

    def lane(self, y, height, name, color):
        """Draws a band over the page, with its name at the left."""
        self._rounded(0.25, y, 15.5, height, color, alpha=0.07, edge="none", radius=0.18)
        self.text(0.62, y + height / 2, name, size=13.5, color=color, rotation=90, weight="bold")

    def box(self, x, y, width, height, title, lines, color, *, code=True):
        """Draws a box: a title, and beneath it what comes out."""
        self._rounded(x, y, width, height, PAPER, edge=color, radius=0.1)
        middle = x + width / 2
        family = {"family": MONO} if code else {}
        self.text(middle, y + height - 0.24, title, size=11, color=color, weight="bold", **family)
        self.text(middle, y + (height - 0.36) / 2, lines, size=10.5)

    def arrow(self, start, end, color=SOFT, *, bend=0.0, dashed=False):
        """Draws an arrow, bent to one side by `bend`."""
        self.axes.add_patch(
            FancyArrowPatch(
                start,
                end,
                arrowstyle="-|>",
                mutation_scale=15,
                linewidth=1.8,
                color=color,
                linestyle=(0, (4, 2.5)) if dashed else "-",
                connectionstyle=f"arc3,rad={bend}",
                shrinkA=0,
                shrinkB=0,
            )
        )

    def path(self, points, color):
        """Draws a line of straight pieces that ends as an arrow."""
        *line, (x, y) = points
        self.axes.plot(*zip(*line, strict=True), color=color, linewidth=1.8)
        self.arrow(line[-1], (x, y), color)

    def matrix(self, x, y, side, values, color, title, beneath):
        """Draws a [B, B] matrix as a square, with a title above and a formula beneath."""
        shades = matplotlib.colors.LinearSegmentedColormap.from_list("", [PAPER, color])
        ticks = np.linspace(0, side, len(values) + 1)
        # As squares, not as a picture, so that they stay sharp at any size.
        self.axes.pcolormesh(
            x + ticks, y + side - ticks, values, cmap=shades, vmin=0, edgecolors="face",
            linewidth=0.1,
        )  # fmt: skip
        self.axes.set(xlim=(0, 16), ylim=(0, 9))
        self._rounded(x, y, side, side, "none", edge=color, radius=0.01)
        self.text(x + side / 2, y + side + 0.17, title, size=11.5, color=color, weight="bold")
        self.text(x + side / 2, y - 0.2, beneath, size=10, color=SOFT)

    def _rounded(self, x, y, width, height, fill, *, edge, radius, alpha=1.0):
        self.axes.add_patch(
            FancyBboxPatch(
                (x, y),
                width,
                height,
                boxstyle=f"round,pad=0,rounding_size={radius}",
                facecolor=fill,
                edgecolor=edge,
                linewidth=1.7,
                alpha=alpha,
            )
        )


def chain(page: Canvas, boxes: tuple, y: float, height: float, color: str) -> None:
    """Draws boxes in a row, each (x, width, title, lines, whether the title is code)."""
    for x, width, title, lines, code in boxes:
        page.box(x, y, width, height, title, lines, color, code=code)
    for (x, width, *_), (following, *_) in itertools.pairwise(boxes):
        page.arrow((x + width + 0.05, y + height / 2), (following - 0.05, y + height / 2), color)


def draw_reading(page: Canvas) -> None:
    """Draws the way from files to a batch on the devices."""
    page.lane(7.18, 1.62, "read", DATA)
    words = "CPU: threads or worker processes. A batch depends on seed and step alone"
    page.text(1.1, 8.6, words, size=11.5, color=DATA, ha="left")
    boxes = (
        (1.1, 2.4, "ArrayRecord files", "a set, made once by\nprepare, in hash order", False),
        (4.0, 2.3, "Source[i]", "image: bytes\ncaption: text", True),
        (6.8, 2.75, "train_batches", "decode, crop, tokenise\n[S, S, 3] uint8 and [L] ids", True),
        (10.05, 2.3, "Packed.collate", "captions share rows\nof this process's part", True),
        (12.85, 2.6, "mesh.put_batch", "B rows, spread\nover all devices", True),
    )
    chain(page, boxes, 7.33, 1.05, DATA)
    page.place(8.6, "data/  run/batches.py  mesh.py")
    page.path([(14.15, 7.28), (14.15, 6.98), (2.1, 6.98), (2.1, 5.4)], DATA)


def draw_step(page: Canvas) -> None:
    """Draws the step: the teacher's target, the student's match, loss, gradient and update."""
    page.lane(1.98, 4.82, "step", STUDENT)
    words = "train_step: one compiled function, for the whole batch of B pairs"
    page.text(2.45, 6.55, words, size=11.5, color=STUDENT, ha="left")
    page.place(6.55, "step.py  objective.py  ot.py  models/towers.py")
    page.box(
        1.1, 4.0, 2.0, 1.35, "batch", "images\n[B, H, W, 3]\npacked captions", DATA, code=False
    )
    towers = "Towers: two unit\nvectors per pair, "
    page.box(4.0, 5.1, 2.35, 1.1, "teacher", f"{towers}V\u0302, T\u0302", TEACHER, code=False)
    page.box(4.0, 2.95, 2.35, 1.1, "student", f"{towers}V, T", STUDENT, code=False)
    page.arrow((3.15, 5.0), (3.95, 5.55), DATA)
    page.arrow((3.15, 4.35), (3.95, 3.65), DATA)
    page.arrow((5.17, 4.1), (5.17, 5.05), TEACHER, dashed=True)
    page.text(5.32, 4.57, "follow", size=11, color=TEACHER, family=MONO, weight="bold", ha="left")
    page.text(6.0, 4.57, "(EMA)", size=10.5, color=TEACHER, ha="left")

    found = matrices()
    page.arrow((6.4, 5.65), (8.35, 5.65), TEACHER)
    page.text(7.37, 5.87, "teach", size=11, color=TEACHER, family=MONO, weight="bold")
    page.text(7.37, 5.4, "ot.sinkhorn", size=10.5, color=TEACHER, family=MONO)
    page.matrix(8.4, 5.0, 1.3, found["target"], TEACHER, "target", "what the teacher sees")
    page.arrow((6.4, 3.5), (8.35, 3.5), STUDENT)
    page.matrix(8.4, 2.85, 1.3, found["match"], STUDENT, "match", r"softmax($s\, V T^\top$)")
    page.matrix(11.3, 2.42, 1.0, found["pairs"], DATA, "", "")
    page.text(11.2, 3.05, "pairs", size=11.5, color=DATA, weight="bold", ha="right")
    page.text(11.2, 2.8, "as given", size=10, color=SOFT, ha="right")

    terms = "\u03b1 \u00b7 cross-entropy(pairs, match)\n+ (1\u2212\u03b1) \u00b7 KL(target, match)"
    page.box(10.45, 4.15, 2.7, 1.2, "matching_loss", terms, INK)
    page.arrow((9.75, 5.5), (10.4, 5.1), TEACHER)
    page.arrow((9.75, 3.7), (10.4, 4.35), STUDENT)
    page.arrow((11.8, 3.47), (11.8, 4.1), DATA)
    page.arrow((13.2, 4.75), (13.8, 4.75), INK)
    page.text(13.5, 4.98, "\u2207", size=13, color=INK, weight="bold")
    page.box(13.85, 4.15, 1.6, 1.2, "tx.update", "SGD or\nAdamW", STUDENT)
    page.path([(14.65, 4.1), (14.65, 2.2), (5.17, 2.2), (5.17, 2.9)], STUDENT)
    page.text(7.4, 2.36, "new parameters", size=10.5, color=STUDENT)


def draw_loop(page: Canvas) -> None:
    """Draws what happens between two steps."""
    page.lane(0.2, 1.42, "loop", LOOP)
    page.path([(2.1, 1.98), (2.1, 1.5)], LOOP)
    page.place(1.78, "training/  zeroshot/  run/")
    page.text(2.25, 1.78, "state, metrics", size=10.5, color=LOOP, ha="left")
    boxes = (
        (1.1, 2.4, "Loop.run", "next batch, next step,\none step ahead of the rest", True),
        (4.0, 2.3, "Stop.reached", "SIGTERM: saves, ends\nwith status 75", True),
        (6.8, 2.75, "Clock, Scalars", "log line, metrics.jsonl,\nTensorBoard", True),
        (10.05, 2.3, "Evaluator", "class names to a bank,\nFH@K to results/", True),
        (12.85, 2.6, "Checkpoints.save", "the latest, the best,\nevery keep_every-th", True),
    )
    chain(page, boxes, 0.36, 1.08, LOOP)


def main() -> None:
    """Draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="docs/architecture.svg")
    out = parser.parse_args().out
    page = Canvas()
    draw_reading(page)
    draw_step(page)
    draw_loop(page)
    matplotlib.rcParams["svg.hashsalt"] = "otter_jax"  # the same file every time
    more = {"metadata": {"Date": None}} if out.endswith(".svg") else {"dpi": 110}
    page.figure.savefig(out, **more)


if __name__ == "__main__":
    main()
