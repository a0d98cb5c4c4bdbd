"""Checkpoints: complete or not there, kept by the policy, opened on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from otter_jax import mesh as meshes
from otter_jax import step
from otter_jax.errors import UserError
from otter_jax.run.checkpoint import Checkpoints


def on(devices):
    return meshes.shardings(meshes.make_mesh(devices))[0]


@pytest.fixture
def state():
    return jax.device_put(tiny.state(), on(1))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def saved(tmp_path, state, steps, **options):
    checkpoints = Checkpoints(tmp_path, **options)
    for number, score in steps:
        checkpoints.save(number, state, None if score is None else {"score": score})
        checkpoints.wait()
    return checkpoints


@pytest.mark.parametrize(("before", "after"), [(1, 8), (8, 1)])
def test_a_checkpoint_opens_on_other_devices(tmp_path, state, before, after):
    checkpoints = saved(tmp_path, jax.device_put(state, on(before)), [(3, None)])
    opened = checkpoints.restore(3, state, on(after))
    same(opened, state)
    assert all(len(x.sharding.device_set) == after for x in jax.tree.leaves(opened))
    checkpoints.close()


def test_the_latest_and_the_best_are_kept(tmp_path, state):
    scores = [(1, 0.1), (2, 0.9), (3, 0.2), (4, None), (5, 0.3)]
    checkpoints = saved(tmp_path, state, scores, best="score")
    assert (checkpoints.latest, checkpoints.best) == (5, 2)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [2, 5]
    checkpoints.close()


def test_a_checkpoint_evaluated_later_can_be_the_best(tmp_path, state):
    saved(tmp_path, state, [(1, 0.1), (2, None)], best="score").close()
    checkpoints = Checkpoints(tmp_path, best="score")
    assert checkpoints.best == 1
    assert not checkpoints.is_rated(2)
    for score in (0.4, 0.5):  # a second time, too
        checkpoints.rate(2, {"score": score})
    assert checkpoints.is_rated(2)
    checkpoints.save(3, state, {"score": 0.3})
    checkpoints.wait()
    assert checkpoints.best == 2
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [2, 3]
    checkpoints.close()


def test_without_a_best_no_checkpoint_waits_for_its_metrics(tmp_path, state):
    checkpoints = saved(tmp_path, state, [(1, None)])
    assert checkpoints.is_rated(1)
    checkpoints.rate(1, {"score": 0.4})
    assert not (tmp_path / "checkpoints" / "1" / "metrics").exists()
    checkpoints.close()


def test_every_nth_is_kept_beside_the_latest(tmp_path, state):
    checkpoints = saved(tmp_path, state, [(n, None) for n in range(1, 8)], keep_every=3)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [3, 6, 7]
    assert checkpoints.best == 7
    checkpoints.close()


def test_half_a_checkpoint_is_ignored_and_written_over(tmp_path, state):
    saved(tmp_path, state, [(3, None)]).close()
    half = tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp"
    (half / "state").mkdir(parents=True)
    (half / "state" / "_METADATA").write_text("{")
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.latest == 3
    reader.close()
    writer = saved(tmp_path, state, [(7, None)])
    assert writer.latest == 7
    same(writer.restore(7, state, on(1)), state)
    writer.close()


def test_a_part_is_read_without_the_rest(tmp_path, state):
    checkpoints = saved(tmp_path, state, [(3, None)])
    like = {"params": state.params, "teacher": state.teacher}
    part = checkpoints.restore_part(3, like, on(8))
    same(part, like)
    checkpoints.close()


def test_another_model_is_one_error_that_lists_what_differs(tmp_path, state):
    checkpoints = saved(tmp_path, state, [(3, None)])
    params = state.params | {"img_head": {"kernel": jnp.zeros((14, 7)), "bias": jnp.zeros(6)}}
    other = step.create_state(params, state.batch_stats, tiny.tx())
    with pytest.raises(UserError, match="another shape.*img_head/kernel is \\(14, 6\\)"):
        checkpoints.restore(3, other, on(1))
    fewer = state.replace(params={k: v for k, v in state.params.items() if k != "txt_head"})
    with pytest.raises(UserError, match="not in this model.*txt_head"):
        checkpoints.restore(3, fewer, on(1))
    more = {"params": state.params | {"extra": {"bias": jnp.zeros(2)}}}
    with pytest.raises(UserError, match="not in it.*extra/bias"):
        checkpoints.restore_part(3, more, on(1))
    checkpoints.close()


def test_an_empty_directory_has_no_latest(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new", read_only=True)
    assert checkpoints.latest is None
    assert checkpoints.best is None
    checkpoints.close()
