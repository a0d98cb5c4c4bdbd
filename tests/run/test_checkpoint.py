"""Checkpoints: complete or not there, kept by the policy, opened on any number of devices."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from otter_jax import mesh as meshes
from otter_jax import step
from otter_jax.errors import UserError
from otter_jax.run import reading
from otter_jax.run.checkpoint import Checkpoints


def on(devices):
    return meshes.shardings(meshes.make_mesh(devices))[0]


@pytest.fixture
def state():
    return jax.device_put(tiny.state(), on(1))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def best(tmp_path):
    """The step that an evaluation takes."""
    return reading.choose(tmp_path / "checkpoints", "score", None).step


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
    assert (checkpoints.latest, best(tmp_path)) == (5, 2)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [2, 5]
    checkpoints.close()


def test_a_checkpoint_evaluated_later_can_be_the_best(tmp_path, state):
    saved(tmp_path, state, [(1, 0.1), (2, None)], best="score").close()
    checkpoints = Checkpoints(tmp_path, best="score")
    assert best(tmp_path) == 1
    assert not checkpoints.is_rated(2)
    for score in (0.4, 0.5):  # a second time, too
        checkpoints.rate(2, {"score": score})
    assert checkpoints.is_rated(2)
    checkpoints.save(3, state, {"score": 0.3})
    checkpoints.wait()
    assert best(tmp_path) == 2
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
    assert best(tmp_path) == 7
    checkpoints.close()


def test_half_a_checkpoint_is_ignored_and_written_over(tmp_path, state):
    saved(tmp_path, state, [(3, None)]).close()
    half = tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp"
    (half / "state").mkdir(parents=True)
    (half / "state" / "_METADATA").write_text("{")
    assert best(tmp_path) == 3
    writer = saved(tmp_path, state, [(7, None)])
    assert writer.latest == 7
    same(writer.restore(7, state, on(1)), state)
    writer.close()


def test_a_part_is_read_without_the_rest(tmp_path, state):
    checkpoints = saved(tmp_path, state, [(3, None)])
    like = {"params": state.params, "teacher": state.teacher}
    part = reading.restore_part(tmp_path / "checkpoints", 3, like, on(8))
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
        reading.restore_part(tmp_path / "checkpoints", 3, more, on(1))
    checkpoints.close()


def test_an_empty_directory_has_no_latest(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.latest is None
    assert checkpoints.steps == []
    checkpoints.close()


def flipped(path, number):
    """Flips one bit of a file; returns what it held."""
    held = path.read_bytes()
    content = bytearray(held)
    content[number // 8 % len(content)] ^= 1 << number % 8
    path.write_bytes(content)
    return held


def read(tmp_path, state):
    """What an evaluation restores, of the best checkpoint."""
    return reading.restore_best(tmp_path, {"params": state.params}, on(1), best="score")[0][
        "params"
    ]


def gone_on(tmp_path, state, number):
    """What a run that goes on restores."""
    with contextlib.closing(Checkpoints(tmp_path, best="score")) as checkpoints:
        checkpoints.about(number)
        return checkpoints.restore(number, state, on(1))


def test_no_flipped_bit_is_used_or_ends_in_a_traceback(tmp_path, state):
    """tests/flips.py flips more; here one of each file that counts."""
    saved(tmp_path, state, [(3, 0.9), (5, 0.1)], best="score").close()
    folder = tmp_path / "checkpoints" / "3"
    files = [path for path in sorted(folder.glob("*/**/*")) if path.is_file()]
    assert len(files) > 6
    for number, path in enumerate(files):
        held = flipped(path, 37 * number)
        words = "3 is damaged.*Other steps there: 5.*--from 5.*--step 5"
        with pytest.raises(UserError, match=words):
            gone_on(tmp_path, state, 3)
        if path.parent.name != "about":  # of which an evaluation makes no use
            with pytest.raises(UserError, match=words):
                read(tmp_path, state)
        path.write_bytes(held)
    (folder / "_CHECKPOINT_METADATA").write_text("{")  # Orbax's own notes, of no use here
    same(read(tmp_path, state), state.params)
    same(gone_on(tmp_path, state, 3), state)


def test_a_missing_file_of_a_checkpoint_is_named(tmp_path, state):
    saved(tmp_path, state, [(3, None)]).close()
    folder = tmp_path / "checkpoints" / "3"
    (folder / "state" / "_METADATA").rename(tmp_path / "_METADATA")
    with pytest.raises(UserError, match="damaged.*state/_METADATA.*There is no other one"):
        read(tmp_path, state)
    (folder / "digests.json").unlink()  # as of an older version: whatever Orbax says of it
    with pytest.raises(UserError, match="3 is damaged: it cannot be read"):
        read(tmp_path, state)


def test_a_rating_does_not_vouch_for_a_state_that_is_damaged(tmp_path, state):
    saved(tmp_path, state, [(3, None)], best="score").close()
    flipped(tmp_path / "checkpoints" / "3" / "state" / "_METADATA", 99)
    checkpoints = Checkpoints(tmp_path, best="score")
    checkpoints.rate(3, {"score": 0.5})
    with pytest.raises(UserError, match="state/_METADATA"):
        checkpoints.restore(3, state, on(1))
    checkpoints.close()


def test_later_checkpoints_are_set_aside_not_deleted(tmp_path, state):
    checkpoints = saved(tmp_path, state, [(n, None) for n in (2, 4, 6)], keep_every=2)
    with pytest.raises(UserError, match="no checkpoint of step 3 in .*: 2, 4, 6"):
        checkpoints.find(3)
    assert checkpoints.set_aside(after=2) == [4, 6]
    assert checkpoints.latest == 2
    checkpoints.save(4, state)
    checkpoints.wait()
    assert checkpoints.set_aside(after=2) == [4]
    assert sorted(p.name for p in (tmp_path / "set_aside").iterdir()) == ["4", "4.1", "6"]
    checkpoints.close()


def test_what_is_said_about_a_checkpoint_stays_with_it(tmp_path, state):
    about = {"name": "squares:train", "contents": "60 pairs, 1a2b3c4d"}
    checkpoints = saved(tmp_path, state, [(3, None)], about=about)
    assert checkpoints.about(3) == about
    checkpoints.close()


def test_of_a_long_error_the_cause_is_told():
    said = f'RESOURCE_EXHAUSTED: Error writing "{"/long/path" * 40}": No space left on device'
    told = reading.first_line(ValueError(f"{said} [os_error_code='28']\nmore"))
    assert told.startswith("RESOURCE_EXHAUSTED: Error writing")
    assert told.endswith("No space left on device")
    assert len(told) == 300
    assert reading.first_line(ValueError("short\nmore")) == "short"
    assert reading.first_line(KeyError()) == "KeyError"


def test_a_save_that_failed_in_the_background_is_one_paragraph(tmp_path, state, monkeypatch):
    def full(folder, *parts):
        raise OSError(28, "No space left on device", str(folder))

    checkpoints = saved(tmp_path, state, [(3, None)])
    monkeypatch.setattr("otter_jax.run.digests.write", full)
    words = "could not be written.*No space left on device.*newest whole one is step 3"
    checkpoints.save(5, state)
    with pytest.raises(UserError, match=words):
        checkpoints.wait()
