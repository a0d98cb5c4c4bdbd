"""The watched pairs of a run: its first and its latest embeddings, whatever happens to it."""

import numpy as np
import pytest
import written

from otter_jax.errors import Stopped
from otter_jax.run import watched


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return written.pairs(tmp_path_factory.mktemp("home"))


def steps(workdir):
    return [watched.read(path).step for path in watched.kept(workdir)]


def test_the_first_and_the_latest_step_are_kept(tmp_path, sets):
    pairs, _ = written.watched(written.config_of(sets), tmp_path)
    for step in (0, 2, 4):
        pairs.keep(step, None)
    assert steps(tmp_path) == [0, 4]


def test_embeddings_come_back_as_they_were_with_their_captions(tmp_path, sets):
    pairs, _ = written.watched(written.config_of(sets), tmp_path)
    pairs.keep(3, None)
    found = watched.read(watched.kept(tmp_path)[0])
    same = written.Embedder()
    np.testing.assert_array_equal(found.image, same.images(None, range(16)))
    np.testing.assert_array_equal(found.text, same.texts(None, range(16)))
    assert found.numbers.tolist() == list(range(16))
    assert set(written.CAPTIONS) - set(found.captions) == {written.ODD[3]}  # put on one line


def test_only_a_run_that_begins_keeps_its_start_and_a_later_state_is_forgotten(tmp_path, sets):
    embedder = written.Embedder()
    pairs, _ = written.watched(written.config_of(sets), tmp_path, embedder)
    pairs.begin(0, None)
    pairs.keep(8, None)
    pairs.begin(8, None)
    assert embedder.calls == 2
    assert steps(tmp_path) == [0, 8]
    pairs.begin(4, None)
    assert steps(tmp_path) == [0]


def test_no_more_pairs_are_watched_than_a_batch_has(tmp_path, sets):
    config = written.config_of(sets)
    config.train.batch_size = 5
    pairs, _ = written.watched(config, tmp_path)
    pairs.keep(0, None)
    assert watched.read(watched.kept(tmp_path)[0]).numbers.tolist() == [0, 3, 7, 11, 15]


def test_a_failure_is_told_and_a_stop_is_a_stop(tmp_path, sets):
    class Broken(written.Embedder):
        def images(self, variables, images):
            raise variables

    pairs, said = written.watched(written.config_of(sets), tmp_path, Broken())
    pairs.keep(2, RuntimeError("out of memory\nat length"))
    assert "(RuntimeError: out of memory)." in said.getvalue()
    assert said.getvalue().count("\n") == 1
    assert not watched.kept(tmp_path)
    with pytest.raises(Stopped):
        pairs.keep(2, Stopped())
