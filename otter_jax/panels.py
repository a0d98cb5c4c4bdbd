"""Targets, loss and gradients again, by panels of rows: the same numbers from less work and memory.

`ot` and `objective` are the paper; tests hold what is here equal to them. The dense form there
holds six matrices of the batch's size. Two forms here differ in what they keep: "cached" keeps the
teacher's affinity, one matrix; "streaming" makes each panel of it anew in each of num_iters + 2
sweeps (`affinity`), and holds nothing larger than a panel. The students' cosines are made by panels
in both, and the gradients with them, in the forward pass: nothing waits for the backward pass.

On a mesh a device holds and sweeps the rows that are its own; what is sent is embeddings, and
vectors of B floats.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from otter_jax.affinity import (
    Affinity,
    Matching,
    add,
    dot,
    gathered,
    look,
    nothing,
    rows_of,
    split,
    summed,
    targets_of,
    total_of,
)
from otter_jax.mesh import AXIS, ROWS, WHOLE
from otter_jax.objective import Objective, scale_of

FORMS = ("dense", "cached", "streaming")
PANEL = 2**19  # floats of a panel on a CPU: a few stay in its cache
PANEL_GPU = 2**24  # on a GPU: enough to fill it
HELD = {  # where the parts of a Matching are
    "img": ROWS,
    "txt": ROWS,
    "kept": ROWS,
    "image_rows": ROWS,
    "text_rows": ROWS,
    "image_columns": WHOLE,
    "text_columns": WHOLE,
    "entropy": WHOLE,
    "trust": ROWS,
}


def rows_per_panel(batch_size: int, mesh: Mesh) -> int:
    """Returns how many rows make a panel on each device of `mesh`: a divisor of those it has."""
    rows = batch_size // mesh.size
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    wanted = max(1, min(rows, (PANEL if on_cpu else PANEL_GPU) // batch_size))
    divisors = [d for d in range(1, rows + 1) if rows % d == 0]
    below = max(d for d in divisors if d <= wanted)
    return below if 4 * below >= wanted else min(d for d in divisors if d >= wanted)


def _axis(mesh: Mesh) -> str | None:
    """Returns the axis to sum and gather over; None alone, where both would copy."""
    return AXIS if mesh.size > 1 else None


def teach(
    objective: Objective,
    img: Float[Array, "B D"],
    txt: Float[Array, "B D"],
    *,
    mesh: Mesh,
    form: str,
) -> tuple[Matching, dict[str, Float[Array, ""]]]:
    """Returns what sets the targets of a teacher with these embeddings, and their health.

    Does what `step.teach` does in its dense form; `matching_loss` takes the first result.
    """
    size = rows_per_panel(img.shape[0], mesh)
    look_at = functools.partial(look, objective, form=form, size=size, axis_name=_axis(mesh))
    targets = objective.teacher != "none"
    present = {"kept": targets and form == "cached", "trust": objective.trust != ""}
    held = {k: v for k, v in HELD.items() if present.get(k, targets)}
    spread = jax.shard_map(
        look_at, mesh=mesh, in_specs=ROWS, out_specs=(held, WHOLE), check_vma=False
    )
    return spread(*lax.stop_gradient((img, txt)))


def matching_loss(
    objective: Objective,
    img: Float[Array, "B D"],
    txt: Float[Array, "B D"],
    matching: Matching | None,
    log_scale: dict[str, Float[Array, ""]],
    *,
    mesh: Mesh,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the loss of a student with these embeddings, and its terms before weighting.

    Does what `step.matching_loss` does in its dense form. Only the loss has gradients, with respect
    to `img`, `txt` and `log_scale`; the terms are numbers to look at.
    """
    if objective.temperatures == 1 and objective.teacher != "none":
        log_scale = log_scale | {"teacher": log_scale["pairs"]}
    return _matching_loss(objective, mesh, img, txt, matching, jax.tree.map(scale_of, log_scale))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _matching_loss(objective, mesh, img, txt, matching, scales):
    return _forward(objective, mesh, img, txt, matching, scales)[0]


def _forward(objective, mesh, img, txt, matching, scales):
    size = rows_per_panel(img.shape[0], mesh)
    both = functools.partial(_loss_and_gradients, objective, size=size, axis_name=_axis(mesh))
    held = None if matching is None else {k: HELD[k] for k in matching}
    spread = jax.shard_map(
        both,
        mesh=mesh,
        in_specs=(ROWS, ROWS, held, WHOLE),
        out_specs=(WHOLE, (ROWS, ROWS, WHOLE)),
        check_vma=False,
    )
    return spread(img, txt, matching, scales)


def _backward(objective, mesh, gradients, cotangents):
    slope, _ = cotangents
    img, txt, scales = jax.tree.map(lambda x: slope * x, gradients)
    return img, txt, None, scales


_matching_loss.defvjp(_forward, _backward)


def _loss_and_gradients(
    objective: Objective,
    img: Float[Array, "b D"],
    txt: Float[Array, "b D"],
    matching: Matching | None,
    scales: dict[str, Float[Array, ""]],
    *,
    size: int,
    axis_name: str | None = None,
) -> tuple[tuple[Float[Array, ""], dict[str, Float[Array, ""]]], PyTree]:
    """Returns the loss and its terms, as `Objective.loss` does, and the gradients of the loss.

    Those are with respect to the embeddings (rows of this device) and to the `scales`, which are
    inverse temperatures. `matching` is that of `teach`, None without a teacher.
    """
    all_txt = gathered(txt, axis_name)
    b, B = img.shape[0], all_txt.shape[0]
    panels = split({"rows": rows_of(b, axis_name), "img": img}, size)
    affinity, names = None, ["pairs"]
    if objective.trust:
        counts = objective.weights(matching["trust"], axis_name=axis_name)
        panels["counts"], counts = split(counts, size), gathered(counts, axis_name)
    if objective.teacher != "none":
        affinity = Affinity(objective, matching, size, axis_name)
        names.append("teacher")
        vectors = {k: matching[k] for k in ("image_rows", "text_rows")}
        panels["teacher"] = affinity.panels | {"vectors": vectors}

    def columns(sums, each):  # of the students' matches: texts over images need all rows
        cosines = dot(each["img"], all_txt.T)
        return {k: add(sums[k], scales[k] * cosines) for k in names}, None

    zeros, totals = jnp.zeros(B, img.dtype), {}
    if objective.match == "softmax":
        sums, _ = lax.scan(columns, {k: nothing(zeros) for k in names}, panels)
        totals = {k: total_of(sums[k], axis_name) for k in names}

    def panel(state, each):
        numbers, txt_gradient = state
        cosines = dot(each["img"], all_txt.T)
        given = objective.pair_targets(each["rows"], B)
        by_row, by_column = (each["counts"][:, None], counts) if objective.trust else (1, 1)
        targets = {"pairs": (given, given, by_row, by_column)}
        if affinity:
            targets["teacher"] = (*targets_of(affinity, matching, each["teacher"]), 1, 1)
        found, of_rows, of_columns = _panel_of_loss(objective, cosines, targets, totals, scales)
        if objective.negatives_gradient:
            of_rows = of_columns = of_rows + of_columns
        txt_gradient += dot(of_columns.T, each["img"])
        return (jax.tree.map(jnp.add, numbers, found), txt_gradient), dot(of_rows, all_txt)

    zero = dict.fromkeys(names, zeros[0]), dict.fromkeys(scales, zeros[0])
    (numbers, txt_gradient), img_gradient = lax.scan(panel, (zero, jnp.zeros_like(all_txt)), panels)
    terms, of_scales = jax.tree.map(lambda x: x / B, summed(numbers, axis_name))
    if axis_name:
        txt_gradient = lax.psum_scatter(txt_gradient, axis_name, tiled=True)
    if affinity:
        terms["teacher"] -= 2 * matching["entropy"]
    loss = sum(_weights(objective)[k] * terms[k] for k in names)
    return (loss, terms), (img_gradient.reshape(img.shape), txt_gradient, of_scales)


def _panel_of_loss(objective, cosines, targets, totals, scales):
    """Returns a panel's part of terms and slopes by the scales, and the slopes by the cosines.

    The last are those of the mean over B, apart for images over texts and for texts over images.
    A target is given for both, and how much its rows and columns count.
    """
    B, weights, of_rows, of_columns = cosines.shape[1], _weights(objective), 0.0, 0.0
    terms, slopes = {}, dict.fromkeys(scales, 0.0)
    for name, target in targets.items():
        logits = scales[name] * cosines
        if objective.match == "sigmoid":
            terms[name], *over = _sigmoids(logits - scales["teacher"], *target[1:])
            slopes["teacher"] = -weights[name] * sum(over).sum()
        else:
            terms[name], *over = _softmaxes(logits, totals[name], *target)
        slopes[name] = weights[name] * (sum(over) * cosines).sum()
        of_rows += weights[name] / B * scales[name] * over[0]
        of_columns += weights[name] / B * scales[name] * over[1]
    return (terms, slopes), of_rows, of_columns


def _softmaxes(logits, total, images, texts, by_row, by_column):
    """Returns the sum of both cross-entropies, and their slopes by the logits."""
    over_texts = logits - jax.nn.logsumexp(logits, axis=1, keepdims=True)
    over_images = logits - total
    term = -(by_row * images * over_texts + by_column * texts * over_images).sum()
    over_texts, over_images = jnp.exp(over_texts) - images, jnp.exp(over_images) - texts
    return term, by_row * over_texts, by_column * over_images


def _sigmoids(logits, pairs, by_row, by_column):
    """Returns the sum of `objective.sigmoid_loss` both ways, and its slopes by the logits."""
    match, other = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    term = -((by_row + by_column) * pairs * match + 2 * (1 - pairs) * other).sum()
    below, above = pairs * jnp.exp(other), (1 - pairs) * jnp.exp(match)
    return term, above - by_row * below, above - by_column * below


def _weights(objective):
    return {"pairs": objective.alpha, "teacher": 1 - objective.alpha}
