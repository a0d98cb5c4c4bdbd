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
}


def covers(objective: Objective) -> bool:
    """Tells whether the forms here know an objective: all but sigmoids, and trust in pairs."""
    return objective.match == "softmax" and not objective.trust


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
    held = {k: v for k, v in HELD.items() if k != "kept" or form == "cached"}
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
    if objective.temperatures == 1:
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
    panels = {"rows": rows_of(b, axis_name), "img": img}
    affinity, names = None, ["pairs"]
    if matching is not None:
        affinity = Affinity(objective, matching, size, axis_name)
        names.append("teacher")
    panels = split(panels, size)
    if affinity:
        by_row = {k: matching[k] for k in ("image_rows", "text_rows")}
        panels |= {"teacher": affinity.panels | {"vectors": by_row}}

    def columns(sums, each):  # of the students' matches: texts over images need all rows
        cosines = dot(each["img"], all_txt.T)
        return {k: add(sums[k], scales[k] * cosines) for k in names}, None

    zeros = jnp.zeros(B, img.dtype)
    sums, _ = lax.scan(columns, {k: nothing(zeros) for k in names}, panels)
    totals = {k: total_of(sums[k], axis_name) for k in names}

    def panel(state, each):
        numbers, txt_gradient = state
        cosines = dot(each["img"], all_txt.T)
        targets = {"pairs": (objective.pair_targets(each["rows"], B),) * 2}
        if affinity:
            targets["teacher"] = targets_of(affinity, matching, each["teacher"])
        found, of_rows, of_columns = _panel_of_loss(objective, cosines, targets, totals, scales)
        if objective.negatives_gradient:
            of_rows = of_columns = of_rows + of_columns
        txt_gradient += dot(of_columns.T, each["img"])
        return (jax.tree.map(jnp.add, numbers, found), txt_gradient), dot(of_rows, all_txt)

    zero = {k: (zeros[0], zeros[0]) for k in names}
    (numbers, txt_gradient), img_gradient = lax.scan(panel, (zero, jnp.zeros_like(all_txt)), panels)
    numbers = summed(numbers, axis_name)
    if axis_name:
        txt_gradient = lax.psum_scatter(txt_gradient, axis_name, tiled=True)
    terms = {k: numbers[k][0] / B for k in names}
    weights = _weights(objective)
    if affinity:
        terms["teacher"] -= 2 * matching["entropy"]
    loss = sum(weights[k] * terms[k] for k in names)
    of_scales = {k: weights[k] * numbers[k][1] / B if k in names else 0 * scales[k] for k in scales}
    return (loss, terms), (img_gradient.reshape(img.shape), txt_gradient, of_scales)


def _panel_of_loss(objective, cosines, targets, totals, scales):
    """Returns a panel's part of (cross-entropy, slope by the scale), and the slopes by the cosines.

    Those of the mean over B, apart for images over texts and for texts over images.
    """
    B, weights, found, of_rows, of_columns = cosines.shape[1], _weights(objective), {}, 0.0, 0.0
    for name, (images, texts) in targets.items():
        scale, logits = scales[name], scales[name] * cosines
        over_texts = logits - jax.nn.logsumexp(logits, axis=1, keepdims=True)
        over_images = logits - totals[name]
        term = -(images * over_texts + texts * over_images).sum()
        over_texts, over_images = jnp.exp(over_texts) - images, jnp.exp(over_images) - texts
        found[name] = term, ((over_texts + over_images) * cosines).sum()
        of_rows += weights[name] / B * scale * over_texts
        of_columns += weights[name] / B * scale * over_images
    return found, of_rows, of_columns


def _weights(objective):
    return {"pairs": objective.alpha, "teacher": 1 - objective.alpha}
