"""Some pairs at a time: the embeddings and gradients of the whole batch."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from otter_jax import embedding
from otter_jax import mesh as meshes

NO_BATCH_NORM = r"img/.*(bn\d|downsample_1)"  # the stored statistics are taken
BATCH = jax.tree.map(jnp.asarray, tiny.batch())
near = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("method", "form", "devices", "microbatch"),
    [
        ("infonce", "dense", 1, 2),
        ("kd", "streaming", 1, 6),
        ("otter", "cached", 1, 12),
        ("otter", "dense", 8, 8),
    ],
)
def test_a_step_in_parts_is_the_step_at_once(method, form, devices, microbatch):
    whole = tiny.compiled(method, double=True, freeze=NO_BATCH_NORM)
    state, metrics = whole.first_step()
    parts = tiny.compiled(
        method, devices, double=True, freeze=NO_BATCH_NORM, form=form, microbatch=microbatch
    )
    other, found = parts.first_step()
    jax.tree.map(near, (other.params, other.teacher, found), (state.params, state.teacher, metrics))
    kinds = {kind for kind in re.findall(r"all-to-all|collective-permute", parts.step.as_text())}
    assert not kinds  # pairs stay on their device


def test_parts_hold_less_than_the_batch():
    held = [
        tiny.compiled("otter", double=True, freeze=NO_BATCH_NORM, **how)
        .step.memory_analysis()
        .temp_size_in_bytes
        for how in ({}, {"form": "cached", "microbatch": 12})
    ]
    assert held[1] < 0.8 * held[0]


def embedded(model, microbatch, rng=0, of=jnp.sum, train=True):
    """Embeddings, statistics, and gradients of a function of the embeddings."""
    variables, mesh = tiny.variables(), meshes.make_mesh(1)

    def look(params):
        found, updated = embedding.embed(
            model,
            BATCH,
            variables | {"params": params},
            jax.random.key(rng),
            train=train,
            mesh=mesh,
            microbatch=microbatch,
        )
        return sum(map(of, found)), (found, updated)

    (_, found), gradients = jax.jit(jax.value_and_grad(look, has_aux=True))(variables["params"])
    return jax.device_get((found, gradients))


def test_batch_norm_is_over_a_part_and_its_statistics_follow_the_mean():
    """As the module says: each part as a batch of its own, of which the statistics are the mean."""
    model, batch, variables = tiny.towers(), BATCH, tiny.variables()
    (found, updated), _ = embedded(model, 8)
    alone = [
        model.apply(
            variables,
            batch["image"][i : i + 8],
            {k: v[i : i + 8] for k, v in tiny.captions_of(batch).items()},
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        for i in (0, 8, 16)
    ]
    for side in (0, 1):
        expected = np.concatenate([embeddings[side] for embeddings, _ in alone])
        np.testing.assert_allclose(found[side], expected, atol=1e-5)
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *(stats for _, stats in alone))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, updated["batch_stats"], mean["batch_stats"])


def test_dropout_draws_the_same_masks_in_the_second_pass():
    """Else the gradient would be that of another function than the embeddings are of."""
    model = tiny.towers(dropout=0.5)
    weights = np.random.RandomState(0).randn(tiny.B, 6).astype(np.float32)

    def of(x):
        return (x * weights).sum()

    (found, _), gradients = embedded(model, 8, of=of)
    (other, _), _ = embedded(model, 8, rng=1, of=of)
    assert np.abs(found[1] - other[1]).max() > 0.1  # masks matter

    def unrolled(params):  # without a second pass
        total = 0.0
        for number, i in enumerate((0, 8, 16)):
            part = {k: v[i : i + 8] for k, v in BATCH.items()}
            embeddings, _ = model.apply(
                tiny.variables() | {"params": params},
                part["image"],
                tiny.captions_of(part),
                train=True,
                rngs={"dropout": jax.random.fold_in(jax.random.key(0), number)},
                mutable=["batch_stats"],
            )
            total += sum((x * weights[i : i + 8]).sum() for x in embeddings)
        return total

    expected = jax.device_get(jax.jit(jax.grad(unrolled))(tiny.variables()["params"]))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, gradients["txt"], expected["txt"])
