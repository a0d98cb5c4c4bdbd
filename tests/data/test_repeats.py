"""Sets that are mixed meet by chance, and how often a batch has a picture twice is known before."""

import numpy as np
import pytest
from making import made
from pictures import noise
from tars import write_tar

from otter_jax.data.build.plan import Options
from otter_jax.data.formats import kinds
from otter_jax.data.repeats import (
    expected_repeats,
    repeats_line,
    trained_on,
    trained_on_line,
)
from otter_jax.data.source import Mixture, Source, open_dataset
from otter_jax.training import contrastive, doctor
from otter_jax.zeroshot.sets import EvalSet


class Kept(Source):
    """A set whose pictures have these digests."""

    def __init__(self, digests):
        super().__init__("kept", [{"image": b""}] * len(digests), {"image": None})
        self._digests = np.array(digests, np.int64)

    def pictures(self):
        return self._digests


def repeats(source, batch_size, batches, seed=0):
    """The mean number of rows whose picture the batch holds already, over so many batches."""
    order, digests = source.order(seed), np.concatenate([p.pictures() for p, _ in source.parts()])
    rows = np.array([digests[order[i]] for i in range(batch_size * batches)])
    return np.mean([batch_size - len(set(batch)) for batch in rows.reshape(-1, batch_size)])


def test_sets_of_the_same_pictures_meet_by_chance_and_not_in_step():
    both = Mixture([Kept(range(320)), Kept(range(320))], [1.0, 1.0])
    in_step, by_chance = 16.0, expected_repeats(both, 32)
    assert by_chance == pytest.approx(16 * 16 / 320)  # each of 16 is among the other 16
    assert abs(repeats(both, 32, 300) - by_chance) < 0.25 < in_step - by_chance


def test_the_first_set_of_a_mixture_has_the_order_that_it_has_alone():
    first, second = Kept(range(50)), Kept(range(50))
    both = Mixture([first, second], [1.0, 1.0]).order(7)
    orders = [[both[i] for i in range(100) if (both[i] >= 50) == later] for later in (False, True)]
    alone = [first.order(7)[i] for i in range(50)]
    assert orders[0] == alone
    assert sorted(orders[1]) == list(range(50, 100))
    assert [i - 50 for i in orders[1]] != alone
    one = Mixture([first], [1.0]).order(7)
    assert [one[i] for i in range(120)] == [first.order(7)[i] for i in range(120)]


@pytest.mark.parametrize("batch_size", [8, 60])
@pytest.mark.parametrize(
    "sources",
    [
        [[n % 30 for n in range(150)]],  # five captions per picture
        [[0] * 40 + list(range(1, 81))],  # one picture of many captions
        [list(range(100)), [n % 50 for n in range(100)]],
    ],
    ids=["five", "one", "mixed"],
)
def test_expected_repeats_are_those_of_simulated_batches(sources, batch_size):
    each = [Kept(digests) for digests in sources]
    source = each[0] if len(each) == 1 else Mixture(each, [3.0, 1.0])
    records, batches = len(source), 600
    rng, found = np.random.default_rng(0), []
    for _ in range(batches):
        drawn = [
            rng.choice(part.pictures(), round(batch_size * share), replace=False)
            for part, share in source.parts()
        ]
        found.append(batch_size - len(set(np.concatenate(drawn).tolist())))
    expected = expected_repeats(source, batch_size)
    assert records > batch_size
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / batches**0.5)


def test_pictures_of_one_caption_are_never_twice_in_a_batch_and_a_small_set_repeats():
    assert expected_repeats(Kept(range(1000)), 64) == pytest.approx(0, abs=1e-9)
    assert expected_repeats(Kept(range(10)), 64) == 54
    assert repeats_line(1.28, 64).startswith("1.3 of 64 rows of a batch (2.0%) are expected")


def test_the_doctor_warns_of_one_percent_and_the_first_lines_of_a_run_say_it_too():
    many = Kept([0] * 20 + list(range(1, 80)))
    (warned,), (good,) = (doctor.look_at_repeats(s, 16) for s in (many, Kept(range(100))))
    assert (warned.level, good.level) == ("warning", "ok")
    assert warned.text.startswith("2.3 of 16 rows of a batch (14.1%)")
    assert contrastive._pictures(many, 16) == {"pictures": warned.text}


def test_nothing_is_said_of_a_set_that_keeps_no_digests():
    source = Source("others", [{"image": b""}], {"image": None})
    assert list(doctor.look_at_repeats(source, 16)) == []
    assert contrastive._pictures(source, 16) == {}


def test_sets_that_share_pictures_on_disk_are_known_and_sets_of_others_say_nothing(tmp_path):
    for name, numbers in (("a", range(6)), ("b", range(3, 9))):
        members = [(f"{n}.jpg", noise(n)) for n in numbers]
        members += [(f"{n}.txt", f"{name} {n}") for n in numbers]
        tar = write_tar(tmp_path / f"{name}.tar", members)
        made(tmp_path, kinds.plan_of([tar], name, Options()))
    both = open_dataset(str(tmp_path / "sets"), "a+b", "train")
    assert expected_repeats(both, 4) == pytest.approx(3 * (2 / 6) ** 2)
    digests = tmp_path / "sets" / "b" / "1.0.0" / "pictures-train.npy"
    np.save(digests, np.load(digests)[:-1])  # not those of this set
    assert expected_repeats(both, 4) is None
    digests.unlink()
    assert expected_repeats(both, 4) is None


def test_pictures_to_evaluate_on_that_are_trained_on_are_counted():
    training = Mixture([Kept(range(10)), Kept(range(20, 30))], [1.0, 1.0])
    assert trained_on(Kept([5, 5, 25, 40]), training) == 3
    assert trained_on_line(Kept([5, 5, 25, 40]), training) == (
        "3 of 4 pictures are trained on, too"
    )
    labels = np.zeros((1, 1), np.int32)
    sets = [EvalSet(str(n), Kept([n]), ["a"], labels, ("{}",)) for n in (5, 40)]
    assert contrastive._seen(sets, training) == {
        "seen": "eval 5: 1 of 1 pictures are trained on, too"
    }
    assert contrastive._seen(sets[1:], training) == {}
    others = Source("others", [{"image": b""}], {"image": None})
    for first, second in ((Kept([40]), training), (others, training), (Kept([5]), others)):
        assert trained_on_line(first, second) == ""
