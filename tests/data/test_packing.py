"""Packed captions: the same embeddings and steps as padded ones, from fewer tokens."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax import step
from otter_jax.data.captions import Tokenizer
from otter_jax.data.packing import DEVIATIONS, Packed, _lay
from otter_jax.models.bert import Bert

L = 7


def fits(packing, lengths):
    """Whether captions of these lengths fit into a group's rows without a cut."""
    return len(_lay(lengths, packing.length)[1]) <= packing.rows


class Words(Tokenizer):
    """A tokenizer of no text: rows come from the test."""

    def __init__(self, max_tokens=L):
        self.max_tokens, self.pad_id = max_tokens, 0


def packed(per_group, rows, length=10):
    return Packed(Words(), per_group, rows, length)


def captions(lengths, seed=0):
    rng = np.random.RandomState(seed)
    ids = rng.randint(1, 50, (len(lengths), L)).astype(np.int32)
    return {"token_ids": ids, "mask": np.arange(L) < np.array(lengths)[:, None]}


def unpacked(batch, packing):
    """The tokens of each caption, from its position."""
    found = []
    for group, positions in enumerate(batch["positions"]):
        for position in positions:
            row, number = divmod(int(position), packing.length + 1)
            own = batch["segment_ids"][group, row] == number + 1
            found.append(batch["token_ids"][group, row][own].tolist())
    return found


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, L), min_size=12, max_size=12))
def test_every_token_of_every_caption_is_where_its_position_says(lengths):
    packing, batch = packed(per_group=6, rows=6), captions(lengths)
    found = packing.collate(batch)
    whole = [ids[:n].tolist() for ids, n in zip(batch["token_ids"], lengths, strict=True)]
    assert unpacked(found, packing) == whole
    assert not found["cut"].any()
    assert "mask" not in found
    assert (found["token_ids"][found["segment_ids"] == 0] == 0).all()
    for name, (shape, dtype) in packing.shapes(12).items():
        assert found[name].shape == shape
        assert found[name].dtype == dtype


def test_hosts_pack_what_one_host_would():
    batch = captions(np.random.RandomState(0).randint(0, L + 1, 24))
    whole = packed(per_group=6, rows=6).collate(batch)
    halves = [
        packed(per_group=6, rows=6).collate({name: rows[half] for name, rows in batch.items()})
        for half in (slice(12), slice(12, None))
    ]
    for name, rows in whole.items():
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), rows)


def test_a_group_that_does_not_fit_has_its_longest_cut_and_they_keep_their_last_token():
    packing, batch = packed(per_group=6, rows=2), captions([7, 7, 6, 2, 2, 1])
    found = packing.collate(batch)
    kept = unpacked(found, packing)
    lengths = [len(caption) for caption in kept]
    assert lengths == [5, 5, 5, 2, 2, 1]
    assert found["cut"].tolist() == [True, True, True, False, False, False]
    for ids, before, after in zip(batch["token_ids"], [7, 7, 6], kept[:3], strict=False):
        assert after == [*ids[:4], ids[before - 1]]


@pytest.mark.parametrize("per_group", [16, 512])
def test_a_group_has_rows_for_deviations_from_its_mean_and_few_more(per_group):
    rng = np.random.RandomState(0)
    lengths = rng.choice([3, 6, 14, 40, 60], 20_000, p=[0.1, 0.2, 0.5, 0.15, 0.05]).astype(np.int32)
    packing = Packed.of(Words(60), lengths, per_group=per_group, longest=512)
    most = per_group * lengths.mean() + DEVIATIONS * math.sqrt(per_group) * lengths.std()
    assert abs(packing.rows * packing.length / most - 1) < 0.25
    assert all(fits(packing, rng.choice(lengths, per_group)) for _ in range(300))


@pytest.mark.parametrize("per_group", [64, 512])
@pytest.mark.parametrize("law", ["all 60", "all 40", "normal 45", "uniform"])
def test_long_captions_are_not_cut_either(per_group, law):
    rng = np.random.RandomState(0)
    lengths = {
        "all 60": np.full(5000, 60),
        "all 40": np.full(5000, 40),
        "normal 45": rng.normal(45, 8, 5000).round().clip(2, 60),
        "uniform": rng.randint(25, 61, 5000),
    }[law].astype(np.int32)
    packing = Packed.of(Words(60), lengths, per_group=per_group, longest=512)
    assert all(fits(packing, rng.choice(lengths, per_group)) for _ in range(100))
    assert packing.rows * packing.length <= 1.07 * per_group * 60


def test_a_row_a_caption_is_the_most():
    def of(length, longest=512):
        lengths = np.full(100, length, np.int32)
        return Packed.of(Words(length), lengths, per_group=8, longest=longest)

    assert of(60).rows == 8
    assert [of(60).length, of(100).length, of(60, longest=62).length] == [64, 128, 62]


def near(one, other):
    """Sums of the same tokens in another order: 2e-7 of the largest apart, measured."""
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 + 1e-6 * np.abs(one).max())


KINDS = {"bert": tiny.BERT, "roberta": dataclasses.replace(tiny.BERT, roberta_positions=True)}


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_and_gradients_are_those_of_padded_captions(kind):
    model = dataclasses.replace(tiny.towers(), txt=Bert(KINDS[kind]))
    params = tiny.variables()["params"]
    batch = captions([7, 3, 0, 1, 5, 2, 7, 4, 6, 2, 2, 3])
    batch["token_ids"][0, 2] = 0  # the padding's number, but in a caption
    packing = packed(per_group=6, rows=4)
    found = packing.collate(batch)
    weight = np.random.RandomState(1).randn(12, 6).astype(np.float32)

    del found["cut"]

    @functools.partial(jax.jit, static_argnames="method")
    def both(params, captions, method):
        def embed(params):
            out = model.apply({"params": params}, **captions, method=method)
            return (out * weight).sum(), out

        (_, out), grads = jax.value_and_grad(embed, has_aux=True)(params)
        return out, grads["txt"]

    one = jax.device_get(both(params, batch, method="embed_texts"))
    other = jax.device_get(both(params, found, method="embed_packed"))
    assert not other[0][2].any()
    jax.tree.map(near, one, other)


class Pixels(nn.Module):
    """The least of an image encoder: captions are what is looked at here."""

    width = 48

    def __call__(self, image, *, train):
        return image[:, :4, :4].reshape(len(image), -1)


def test_steps_on_eight_devices_are_those_of_padded_captions_on_one():
    model, batch = dataclasses.replace(tiny.towers(), img=Pixels()), tiny.batch()
    packing = packed(per_group=tiny.B // 8, rows=3)
    together = packing.collate(batch)
    assert not together.pop("cut").any()
    assert np.prod(together["token_ids"].shape) > 0
    inputs = batch["image"], tiny.captions_of(batch)
    params = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), *inputs)
    results = []
    for rows, devices in ((batch, 1), (together, 8)):
        train_step, put = tiny.jitted("otter", devices, model=model)
        state = step.create_state(params["params"], {}, tiny.tx())
        for _ in range(2):
            state, metrics = train_step(state, put(rows))
        results.append((jax.device_get(state.params), float(metrics["loss"])))
    (params, loss), (other, other_loss) = results
    assert abs(loss - other_loss) < 1e-5
    jax.tree.map(near, params, other)
