"""The teacher's affinity by panels of rows, and the vectors that make both targets of it.

Two things save work here. One matrix serves both directions: with the weights a of image-image, b
of text-text and c of image-text similarity, the affinity of images with texts is one product,

    S_ij = [v_i, b t_i] . [a v_j + c t_j, t_j],

and that of texts with images its transpose, so that one sweep over the rows of S does a row step
and a column step of both problems. And a row of a target is softmax(S_i / epsilon + g): of a plan
only the vector g has to be found.

Trust in the given pairs is the diagonal of such targets, of an affinity with c = 1 alone.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from otter_jax.objective import REMOVED, Objective

# What sets a teacher's targets: its embeddings, four vectors, the mean entropy, perhaps S. And with
# trust, a number per given pair, which is all of it for a teacher that sets no targets.
Matching = dict[str, Any]


def is_plain(objective: Objective, batch_size: int, dtype: Any) -> bool:
    """Tells whether exp(S / epsilon) and its scalings stay within the range of `dtype`.

    With columns scaled to a largest of 1, sums lie within B exp(+-range of S / epsilon); float32
    allows 87. An objective that removes whole columns needs logarithms at any epsilon.
    """
    weights = objective.image_weight, objective.text_weight, objective.cross_weight
    spread = 2 * sum(weights) / objective.epsilon
    limit = -math.log(jnp.finfo(dtype).tiny)
    fits = spread + 2 * math.log(batch_size) < limit
    return objective.teacher == "transport" and objective.diagonal != "per_process" and fits


class Affinity:
    """The teacher's affinities, panel by panel, over epsilon (or times teacher_scale).

    `panels` has the number of a panel as its first axis; `open` makes r rows of one of them: of
    exp(S / epsilon) if `plain`, else of S / epsilon.
    """

    def __init__(self, objective: Objective, matching: Matching, size: int, axis_name: str | None):
        img, txt = matching["img"], matching["txt"]
        self.objective, self.matching, self.axis_name = objective, matching, axis_name
        self.B = len(img) * (lax.axis_size(axis_name) if axis_name else 1)
        self.dtype, self.plain = img.dtype, is_plain(objective, self.B, img.dtype)
        transport = objective.teacher == "transport"
        self._inverse = 1 / objective.epsilon if transport else objective.teacher_scale
        self.panels = split({"rows": rows_of(len(img), axis_name)}, size)
        if "kept" in matching:
            self.panels["kept"] = matching["kept"]
        else:
            self.panels |= split({"img": img, "txt": txt}, size)
            right = objective.image_weight * img + objective.cross_weight * txt
            self._right, self._txt = gathered(right, axis_name), None
            if objective.text_weight:
                self._txt = gathered(txt, axis_name)

    def open(self, panel: PyTree) -> Float[Array, "r B"]:
        """Returns the rows of a panel: as they are kept, or made anew."""
        if "kept" in panel:
            return panel["kept"]
        logits = dot(self._inverse * panel["img"], self._right.T)
        if self._txt is not None:
            weight = self._inverse * self.objective.text_weight
            logits += dot(weight * panel["txt"], self._txt.T)
        if not self.plain:
            return logits
        return jnp.exp(self.without(logits, panel["rows"])[0])

    def without(self, logits: Float[Array, "r B"], rows) -> tuple[Float[Array, "r B"], ...]:
        """Takes the removed entries out of a panel of logits, for images and for texts."""
        objective, columns = self.objective, jnp.arange(self.B)
        if objective.diagonal == "keep":
            return logits, logits
        out = self._inverse * REMOVED
        if objective.diagonal == "remove":
            left = jnp.where(rows[:, None] == columns, logits - out, logits)
            return left, left
        each = self.B // objective.num_processes
        images = jnp.where(rows[:, None] % each == columns, logits - out, logits)
        return images, jnp.where(rows[:, None] == columns % each, logits - out, logits)


def look(
    objective: Objective,
    img: Float[Array, "b D"],
    txt: Float[Array, "b D"],
    *,
    form: str,
    size: int,
    axis_name: str | None = None,
) -> tuple[Matching, dict[str, Float[Array, ""]]]:
    """Returns what sets the targets of a teacher with these embeddings, and their health.

    `img` and `txt` are what a device has; `size` is the number of rows of a panel.
    """
    matching, numbers, kept = {}, {}, None
    where = {"form": form, "size": size, "axis_name": axis_name}
    total = functools.partial(summed, axis_name=axis_name)
    B = total(len(img))
    if objective.trust:
        trust, kept = trust_in_pairs(objective, img, txt, **where)
        matching["trust"] = trust
        mean = total(trust.sum()) / B
        below = (2 * trust < mean).sum(dtype=jnp.float32)
        numbers |= {"trust": mean, "distrusted": total(below) / B}
    if objective.teacher == "none":
        return matching, numbers
    if kept is not None:  # its place is for the next matrix: XLA sees by a sum that it is free
        img += 0 * trust.sum()
    affinity = _held(objective, img, txt, place=kept, **where)
    vectors, entropy, own, error = solve(affinity)
    numbers |= {
        "row_error": lax.pmax(error, axis_name) if axis_name else error,
        "target_entropy": total(entropy) / (2 * B),
        "own_mass": total(sum(own).sum()) / (2 * B),
    }
    matching |= affinity.matching | vectors | {"entropy": numbers["target_entropy"]}
    return matching, numbers


def trust_in_pairs(
    objective: Objective,
    img: Float[Array, "b D"],
    txt: Float[Array, "b D"],
    *,
    form: str,
    size: int,
    axis_name: str | None = None,
) -> tuple[Float[Array, " b"], Float[Array, "panels r B"] | None]:
    """Returns which part of its share each given pair keeps, as `Objective.teacher_plans` says.

    And a matrix that was kept for it, if one was, which is no longer needed.
    """
    moved, epsilon = objective.trust == "transport", objective.trust_epsilon
    match = Objective(
        teacher="transport" if moved else "softmax",
        epsilon=epsilon,
        teacher_scale=1 / epsilon,
        num_iters=objective.num_iters,
        image_weight=0.0,
        text_weight=0.0,
        diagonal="keep",
    )
    form = form if moved else "streaming"  # a softmax sweeps once
    affinity = _held(match, img, txt, form=form, size=size, axis_name=axis_name)
    _, _, own, _ = solve(affinity)
    images, texts = (x.reshape(-1) for x in own)
    if moved:
        return images, affinity.matching.get("kept")
    both = jnp.sqrt(images * texts) if objective.trust == "small_loss" else (images + texts) / 2
    return both, None


def _held(objective, img, txt, *, form, size, axis_name, place=None):
    """Returns an affinity that keeps its matrix, at `place`, if the form is "cached"."""
    affinity = Affinity(objective, {"img": img, "txt": txt}, size, axis_name)
    if form == "streaming":
        return affinity
    if place is None:
        place = jnp.zeros((len(affinity.panels["rows"]), size, affinity.B), affinity.dtype)

    def put(k, kept):
        return kept.at[k].set(affinity.open(jax.tree.map(lambda x: x[k], affinity.panels)))

    kept = lax.fori_loop(0, len(place), put, place)
    return Affinity(objective, affinity.matching | {"kept": kept}, size, axis_name)


def solve(affinity: Affinity):
    """Finds the vectors that make targets of an affinity, and what there is to say of these.

    Returns the vectors, this device's part of the summed entropies, the targets of its own pairs
    in either direction, and the largest error of a row.
    """
    return _scaled(affinity) if affinity.plain else _in_logarithms(affinity)


def _scaled(affinity):
    """Does it as Sinkhorn wrote it: by sums of the kernel.

    Both problems stay side by side, [2, B] and [r, 2]: XLA multiplies such arrays as matrices, and
    takes five times as long where they are stacked for each product.
    """
    axis_name, B, n = affinity.axis_name, affinity.B, affinity.objective.num_iters
    zeros = jnp.zeros((2, B), affinity.dtype)

    def iteration(k, state):
        by_column, *_ = state  # of images, a factor per column of S; of texts, per row of its own
        begins = (k == 0) & jnp.array([False, True])  # the texts' problem begins with its rows

        def panel(sums, each):
            kernel = affinity.open(each)
            by_row = jnp.where(begins, 1, 1 / dot(kernel, by_column.T))
            return sums + dot(by_row.T, kernel), by_row[:, 0]

        sums, rows = lax.scan(panel, zeros, affinity.panels)
        by_column = 1 / summed(sums, axis_name)
        largest = by_column.max(1, keepdims=True)
        return by_column / largest, rows, largest[0, 0]

    rows = jnp.zeros(affinity.panels["rows"].shape, affinity.dtype)
    start = zeros + 1, rows, zeros[0, 0]
    by_column, rows, largest = lax.fori_loop(0, n, iteration, start)
    by_image, by_text = by_column

    def last(sums, each):
        kernel = affinity.open(each)
        by_row = 1 / dot(kernel, by_column.T)
        entropy = -_x_log_x(kernel * by_image * by_row[:, :1]).sum(1)
        own = jnp.take_along_axis(kernel, each["rows"][:, None], 1)[:, 0]
        # The texts' rows are columns here, and sum to 1 only up to convergence.
        x_log_x = _x_log_x(kernel * by_row[:, 1:] * by_text).sum(0)
        sums = sums[0] + dot(by_row.T, kernel), sums[1] + x_log_x
        return sums, (by_row, entropy, own)

    sums, (by_row, entropy, own) = lax.scan(last, (zeros, zeros[0]), affinity.panels)
    total, columns = 1 / by_row[..., 0], by_row[..., 1]
    of_texts, numbers = summed(sums[0][1], axis_name), affinity.panels["rows"]
    row_sums = by_text * of_texts
    vectors = {
        "image_rows": 1 / total,
        "image_columns": by_image,
        "text_rows": columns,
        "text_columns": 1 / of_texts,
    }
    entropies = entropy.sum() + jnp.log(row_sums[numbers]).sum() - (sums[1] / row_sums).sum()
    own = own * by_image[numbers] / total, own * columns / of_texts[numbers]
    errors = jnp.abs(rows * total * largest - 1).max(), jnp.abs(row_sums - 1).max()
    return vectors, entropies, own, jnp.maximum(*errors)


def _in_logarithms(affinity):
    """Does it for any range of S / epsilon; the vectors are logarithms of those of `_scaled`."""
    axis_name, B = affinity.axis_name, affinity.B
    transport = affinity.objective.teacher == "transport"
    zeros = jnp.zeros(B, affinity.dtype)

    def logits(each):
        return affinity.without(affinity.open(each), each["rows"])

    def iteration(k, state):
        by_image, by_text, _ = state

        def panel(sums, each):
            images, texts = logits(each)
            rows = -jax.nn.logsumexp(images + by_image, axis=1)
            columns = jnp.where(k == 0, 0, -jax.nn.logsumexp(texts + by_text, axis=1))
            of_images = add(sums[0], images + rows[:, None])
            return (of_images, add(sums[1], texts + columns[:, None])), rows

        sums, rows = lax.scan(panel, (nothing(zeros), nothing(zeros)), affinity.panels)
        return -total_of(sums[0], axis_name), -total_of(sums[1], axis_name), rows

    rows = jnp.zeros(affinity.panels["rows"].shape, affinity.dtype)
    n = affinity.objective.num_iters if transport else 0
    by_image, by_text, rows = lax.fori_loop(0, n, iteration, (zeros, zeros, rows))

    def last(sums, each):
        images, texts = logits(each)
        images += by_image
        total = jax.nn.logsumexp(images, axis=1)
        log_target = images - total[:, None]
        entropy = -(jnp.exp(log_target) * log_target).sum(1)
        columns = -jax.nn.logsumexp(texts + by_text, axis=1) if transport else jnp.zeros_like(total)
        texts += columns[:, None]
        own = [jnp.take_along_axis(x, each["rows"][:, None], 1)[:, 0] for x in (images, texts)]
        return add(sums, texts), (total, columns, entropy, *own)

    sums, (total, columns, entropy, *own) = lax.scan(last, nothing(zeros), affinity.panels)
    of_texts, numbers = total_of(sums, axis_name), affinity.panels["rows"]
    vectors = {
        "image_rows": -total,
        "image_columns": by_image,
        "text_rows": columns,
        "text_columns": -of_texts,
    }
    share = jnp.exp(sums[0] - of_texts) * (sums[2] + sums[1] * (sums[0] - of_texts))
    entropies = entropy.sum() - share.sum()  # sum of target * log target, of this device's rows
    own = jnp.exp(own[0] - total), jnp.exp(own[1] - of_texts[numbers])
    if not transport:
        return vectors, entropies, own, jnp.zeros((), affinity.dtype)
    errors = jnp.abs(jnp.expm1(rows + total)).max(), jnp.abs(jnp.expm1(by_text + of_texts)).max()
    return vectors, entropies, own, jnp.maximum(*errors)


def targets_of(affinity: Affinity, matching: Matching, each: PyTree):
    """Returns a panel of the images' targets, and of the transposed texts' targets."""
    panel, by_row = affinity.open(each), each["vectors"]
    image_row, text_row = by_row["image_rows"][:, None], by_row["text_rows"][:, None]
    image_column, text_column = matching["image_columns"], matching["text_columns"]
    if affinity.plain:
        return panel * image_column * image_row, panel * text_row * text_column
    images, texts = affinity.without(panel, each["rows"])
    return jnp.exp(images + image_column + image_row), jnp.exp(texts + text_row + text_column)


# Sums -------------------------------------------------------------------------------------------


def nothing(zeros):
    """Returns the sums over no rows, for `add`."""
    return jnp.full_like(zeros, jnp.finfo(zeros.dtype).min / 2), zeros, zeros


def add(sums, logits: Float[Array, "r B"]):
    """Adds rows to the sums over rows of exp(logits), and of exp(logits) * logits, per column.

    Both are relative to the column's largest logit so far, which comes first; the second is not
    computed where nobody asks for it.
    """
    before, first, second = sums
    largest = jnp.maximum(before, logits.max(0))
    keep, entries = jnp.exp(before - largest), jnp.exp(logits - largest)
    second = keep * (second + first * (before - largest))
    return (
        largest,
        keep * first + entries.sum(0),
        second + (entries * (logits - largest)).sum(0),
    )


def total_of(sums, axis_name) -> Float[Array, " B"]:
    """Returns the logarithm of the first sum, over the rows of all devices."""
    largest = lax.pmax(sums[0], axis_name) if axis_name else sums[0]
    return largest + jnp.log(summed(sums[1] * jnp.exp(sums[0] - largest), axis_name))


def summed(x, axis_name):
    return lax.psum(x, axis_name) if axis_name else x


def gathered(x, axis_name):
    return lax.all_gather(x, axis_name, tiled=True) if axis_name else x


def split(tree, size):
    return jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), tree)


def rows_of(b: int, axis_name: str | None):
    rows = jnp.arange(b)
    return rows + lax.axis_index(axis_name) * b if axis_name else rows


def _x_log_x(x):
    return jax.scipy.special.xlogy(x, x)


def dot(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
