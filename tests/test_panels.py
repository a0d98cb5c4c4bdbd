"""The forms by panels: the numbers of `ot` and `objective`, on any number of devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from benchmarks import hard, hlo
from otter_jax import affinity, panels, step
from otter_jax import mesh as meshes
from otter_jax.objective import METHODS, Objective

OTTER, B = METHODS["otter"], 24
change = functools.partial(dataclasses.replace, OTTER)
MOVED = hard.METHOD  # two transports in a step
VARIANTS = METHODS | {
    "per_process": change(diagonal="per_process", num_processes=4),
    "whole_columns_removed": change(diagonal="per_process", num_processes=B),
    "no_gradient_of_negatives": change(negatives_gradient=False, num_iters=1),
    "weights": change(image_weight=0.5, text_weight=2.0, smoothing=0.2, alpha=0.3),
    "within_modalities": change(cross_weight=0.0, temperatures=1),
    "images_alone_and_all": change(text_weight=0.0, diagonal="keep"),
    "logarithms": change(epsilon=0.005, num_iters=20),
    "kd_per_process": Objective(
        alpha=0.5, teacher="softmax", teacher_scale=10.0, diagonal="per_process", num_processes=3
    ),
    "trust_by_transport": dataclasses.replace(MOVED, smoothing=0.2, negatives_gradient=False),
    "small_losses_of_sigmoids": Objective(
        trust="small_loss", trust_epsilon=0.5, match="sigmoid", temperatures=1, smoothing=0.1
    ),
}


def embeddings(seed=0, batch=B, dim=12, dtype=np.float64):
    """Of student and teacher, images and texts; random, of unit length."""
    x = np.random.RandomState(seed).randn(4, batch, dim)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(dtype)


def everything(objective, form, x, devices=1):
    """Loss, terms, health, and gradients by both embeddings and both temperatures, in NumPy."""
    log_scale = {"pairs": x.dtype.type(3.9), "teacher": x.dtype.type(2.7)}
    return jax.device_get(_looks(objective, form, devices)(x, log_scale))


@functools.cache
def _looks(objective, form, devices):
    mesh = meshes.make_mesh(devices)

    @jax.jit
    def look(x, log_scale):
        targets, numbers = None, {}
        if objective.has_teacher:
            targets, numbers = step.teach(objective, x[2], x[3], mesh=mesh, form=form)

        def loss(img, txt, log_scale):
            return step.matching_loss(objective, img, txt, targets, log_scale, mesh=mesh, form=form)

        found = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        return found(x[0], x[1], log_scale), numbers

    return look


def close(found, expected, limit):
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=limit, atol=limit * max(1, abs(theirs).max()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_forms_are_the_dense_one_with_every_option(variant, monkeypatch):
    monkeypatch.setattr(panels, "PANEL", 8 * B)  # three panels
    with jax.enable_x64(True):
        expected = everything(VARIANTS[variant], "dense", embeddings())
        for form in ("cached", "streaming"):
            close(everything(VARIANTS[variant], form, embeddings()), expected, 1e-12)


@pytest.mark.parametrize(
    "variant", ["trust_by_transport", "kd", "per_process", "small_losses_of_sigmoids"]
)
def test_eight_devices_are_one(variant, monkeypatch):
    monkeypatch.setattr(panels, "PANEL", B)
    with jax.enable_x64(True):
        expected = everything(VARIANTS[variant], "dense", embeddings())
        for form in ("cached", "streaming"):
            close(everything(VARIANTS[variant], form, embeddings(), devices=8), expected, 1e-12)


@pytest.mark.parametrize("epsilon", hard.EPSILONS)
@pytest.mark.parametrize("name", hard.CASES)
def test_hard_batches_are_right_in_single_precision(name, epsilon, monkeypatch):
    """As float64 has it: to what a rounded cosine, some 1e-7, is over epsilon; trust, too.

    The gradient of a scale, which is 49 here, is as much more wrong: 3e-5 in jax 0.12 instead of 0.
    """
    monkeypatch.setattr(panels, "PANEL", 8 * B)
    x = hard.batch(name, B, 12)
    method = dataclasses.replace(MOVED, epsilon=epsilon, trust_epsilon=epsilon)
    with jax.enable_x64(True):
        exact = everything(method, "dense", x)
    for form in ("cached", "streaming"):
        found = everything(method, form, x.astype(np.float32))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
        ((loss, (*embeddings, scales)), numbers) = found
        ((exact_loss, (*others, exact_scales)), exact_numbers) = exact
        limit = 1e-5 + 2e-6 / epsilon
        close((loss, embeddings, numbers), (exact_loss, others, exact_numbers), limit)
        close(scales, exact_scales, 4e-5 + limit)


def test_scaling_gives_way_to_logarithms_where_its_sums_would_overflow():
    assert affinity.is_plain(OTTER, 262_144, np.float32)
    assert not affinity.is_plain(change(epsilon=0.05), 64, np.float32)
    assert affinity.is_plain(change(epsilon=0.05), 64, np.float64)
    assert not affinity.is_plain(METHODS["kd"], 64, np.float32)


def test_streaming_holds_no_matrix_of_the_batch_and_cached_one(monkeypatch):
    monkeypatch.setattr(panels, "PANEL", 1024 * 16)
    matrices = {}
    for form in ("dense", "cached", "streaming"):
        program = _compiled(MOVED, form, 1024, 32, devices=1)
        matrices[form] = program.memory_analysis().temp_size_in_bytes / 4 / 1024**2
    assert matrices["streaming"] < 0.5
    assert 1 < matrices["cached"] < 1.5
    assert matrices["dense"] > 6


@pytest.mark.parametrize("form", ["cached", "streaming"])
def test_devices_send_embeddings_and_eighty_bytes_a_pair(form):
    """Of transport, 11 vectors of the batch; of the loss, the columns' largest entries and sums."""
    size, D = 256, 16
    collectives = hlo.collectives(_compiled(OTTER, form, size, D, devices=8).as_text())
    assert {c.kind for c in collectives} <= {"all-gather", "reduce-scatter", "all-reduce"}
    sums = sum(c.sent(8) for c in collectives if c.kind == "all-reduce")
    of_loss = 2 * 2 * 4 * size * 2 * 7 / 8
    assert sums - of_loss < 80 * size + 200
    others = sum(c.sent(8) for c in collectives if c.kind != "all-reduce")
    assert others <= 4 * 6 * size * D * 7 / 8


@functools.cache
def _compiled(objective, form, size, D, devices):
    mesh = meshes.make_mesh(devices)
    copies, pieces = meshes.shardings(mesh)

    def look(x, y, v, t, log_scale):
        targets, numbers = step.teach(objective, v, t, mesh=mesh, form=form)

        def loss(x, y, log_scale):
            return step.matching_loss(objective, x, y, targets, log_scale, mesh=mesh, form=form)

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(x, y, log_scale), numbers

    rows = jax.ShapeDtypeStruct((size, D), jnp.float32)
    scale = jax.ShapeDtypeStruct((), jnp.float32)
    look = jax.jit(look, in_shardings=(pieces,) * 4 + (copies,))
    return look.lower(*[rows] * 4, {"pairs": scale, "teacher": scale}).compile()


@pytest.mark.parametrize(
    ("batch", "devices", "floats", "rows"),
    [(24, 1, 2**20, 24), (24, 8, 2**20, 3), (24, 1, 100, 4), (26, 1, 130, 2), (23, 1, 200, 23)],
)
def test_a_panel_is_a_divisor_of_the_rows(batch, devices, floats, rows, monkeypatch):
    monkeypatch.setattr(panels, "PANEL", floats)
    assert panels.rows_per_panel(batch, meshes.make_mesh(devices)) == rows


@pytest.mark.parametrize("form", ["cached", "streaming"])
def test_a_step_in_either_form_is_the_dense_step(form):
    state, metrics = tiny.compiled("otter", double=True).first_step()
    other, found = tiny.compiled("otter", double=True, form=form).first_step()
    assert found.keys() == metrics.keys()
    close((other.params, found), (state.params, metrics), 1e-9)
