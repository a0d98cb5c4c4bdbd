"""What a run sees: shares, wrong captions, and batches."""

import numpy as np

from otter_jax.study import sampling

ROWS = np.arange(100, 300)


def test_the_named_part_of_the_captions_is_another_pairs_and_no_other():
    pairs = sampling.draw_pairs(ROWS, share=1.0, noise=0.5, seed=3)
    assert pairs.wrong.sum() == 100
    assert (pairs.images == ROWS).all()
    assert ((pairs.texts != pairs.images) == pairs.wrong).all()
    assert sorted(pairs.texts) == ROWS.tolist()  # exchanged, so each is there once


def test_a_share_is_drawn_before_the_noise():
    pairs = sampling.draw_pairs(ROWS, share=0.25, noise=0.2, seed=3)
    assert len(pairs.images) == 50
    assert pairs.wrong.sum() == 10
    assert sorted(pairs.texts) == pairs.images.tolist()


def test_an_epoch_shows_every_pair_once_and_batches_go_on_into_the_next():
    order = sampling.draw_order(20, batch_size=8, steps=5, seed=1)
    stream = order.ravel()
    assert sorted(stream[:20]) == sorted(stream[20:]) == list(range(20))
    assert (stream[:20] != stream[20:]).any()
    assert (order == sampling.draw_order(20, batch_size=8, steps=5, seed=1)).all()
    assert (order != sampling.draw_order(20, batch_size=8, steps=5, seed=2)).any()


def test_held_out_concepts_are_known_names_and_all_their_rows():
    concepts = [["a"], ["b"], ["a"], ["c"], [], ["unknown"]]
    marked = sampling.held_out(concepts, {"a", "b", "c"}, count=2, seed=0)
    chosen = {row[0] for row, held in zip(concepts, marked, strict=True) if held}
    assert len(chosen) == 2
    assert chosen <= {"a", "b", "c"}
    assert marked.tolist() == [bool(chosen & {*row}) for row in concepts]
