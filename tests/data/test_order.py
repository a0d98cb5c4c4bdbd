"""A set is ordered by its pictures, and no slice divides the records of one."""

import collections
import itertools

import numpy as np
import pytest
import tensorflow_datasets as tfds
from making import made
from pictures import noise
from tars import write_tar
from tensorflow_datasets.core import hashing

from otter_jax.data.build.builder import write
from otter_jax.data.build.pieces import key_of
from otter_jax.data.build.plan import Options, Plan, Record
from otter_jax.data.formats import kinds
from otter_jax.data.source import in_both, open_dataset
from otter_jax.errors import UserError

PICTURES, CAPTIONS = 40, 5


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder with the set `five`: of each picture five pairs, far from each other."""
    folder = tmp_path_factory.mktemp("five")
    members = []
    for caption, number in itertools.product(range(CAPTIONS), range(PICTURES)):
        members.append((f"{number}_{caption}.jpg", noise(number)))
        members.append((f"{number}_{caption}.txt", f"caption {caption} of {number}"))
    made(folder, kinds.plan_of([write_tar(folder / "a.tar", members)], "five", Options()))
    return str(folder / "sets")


def pictures_of(sets, split):
    source = open_dataset(sets, "five", split)
    return [source[i]["image"] for i in range(len(source))]


@pytest.mark.parametrize("border", ["95%", "50%", "1", "2", "101", "-8", "-3%"])
def test_no_picture_is_on_both_sides_of_a_border(sets, border):
    before, after = (pictures_of(sets, s) for s in (f"train[:{border}]", f"train[{border}:]"))
    assert len(before) + len(after) == PICTURES * CAPTIONS
    assert not set(before) & set(after)
    assert all(count == CAPTIONS for count in collections.Counter(before + after).values())
    assert in_both(sets, "five", f"train[:{border}]", f"train[{border}:]") == 0


def test_what_two_slices_share_is_counted_in_whole_pictures(sets):
    assert in_both(sets, "five", "train[:52]", "train[48:]") == CAPTIONS
    assert in_both(sets, "five", "train[:12]+train[31:40]", "train[:38]") == 15 + 5


def test_a_slice_within_one_picture_has_nothing(sets):
    with pytest.raises(UserError, match="nothing in it"):
        open_dataset(sets, "five", "train[1:4]")


def test_the_pairs_of_a_picture_keep_the_order_of_the_source(sets):
    source = open_dataset(sets, "five", "train")
    captions = [source[i]["caption"].split()[1] for i in range(CAPTIONS)]
    assert captions == [str(n) for n in range(CAPTIONS)]


def test_digests_of_pictures_are_kept_in_the_order_of_the_set(sets):
    source = open_dataset(sets, "five", "train[10%:90%]")
    images = [source[i]["image"] for i in range(len(source))]
    digests = source.pictures().tolist()
    assert len(set(digests)) == len(set(images)) == len(set(zip(digests, images, strict=True)))


def test_a_report_counts_pictures_and_those_of_several_pairs(tmp_path):
    members = [(f"{n}.jpg", noise(min(n, 3))) for n in range(5)]
    members += [(f"{n}.txt", f"words {n}") for n in range(5)]
    _, report = made(
        tmp_path, kinds.plan_of([write_tar(tmp_path / "a.tar", members)], "mine", Options())
    )
    assert (report["kept"], report["pictures"], report["shared_pictures"]) == (5, 4, 1)


class Orders:
    """A unit of pictures, each with an order of its own."""

    size = 1

    def __init__(self, orders):
        self.orders = orders

    def read(self, tally):
        for number, order in enumerate(self.orders):
            yield Record(str(number), noise(number), {"key": str(number)}, order)


def keys_of(tmp_path, orders):
    plan = Plan(
        "mine",
        {"key": tfds.features.Text()},
        {"train": [Orders(orders)]},
        {"train": [{"name": "orders", "size": len(orders)}]},
        "orders",
    )
    made(tmp_path, plan)
    source = open_dataset(str(tmp_path / "sets"), "mine", "train")
    return [int(source[i]["key"]) for i in range(len(source))]


def test_records_with_an_order_come_as_tfds_hashes_it(tmp_path):
    orders = [f"path/{n}".encode() for n in range(30)]
    hasher = hashing.Hasher("train")
    expected = sorted(range(30), key=lambda n: hasher.hash_key(orders[n]))
    assert keys_of(tmp_path, orders) == expected != sorted(expected)


def test_a_record_may_name_its_place(tmp_path):
    assert keys_of(tmp_path, [1.0, 0.25, 0.75, 0.0, 0.25]) == [3, 1, 4, 2, 0]


def test_a_key_has_128_bits_and_tells_equal_places_apart():
    rows = [{"order": None, "place": place, "picture": -5} for place in (None, 0.0, 1.0)]
    for row in rows:
        assert 0 <= key_of("train", row, 7) < key_of("train", row, 8) < 2**128
    assert key_of("train", rows[0], 7) != key_of("test", rows[0], 7)


class Doubled(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set as others write them: ordered, every picture in three records."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        parts = {
            "photo": tfds.features.Image(shape=(None, None, 3)),
            "n": tfds.features.Scalar(np.int32),
        }
        features = tfds.features.FeaturesDict(parts)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for n in range(12):
            yield n, {"photo": noise(n // 3), "n": n}


def test_slices_of_sets_of_others_do_not_divide_pictures_either(tmp_path):
    write(Doubled(data_dir=tmp_path))
    source = open_dataset(str(tmp_path), "doubled", "train[4:8]")
    assert [int(source[i]["n"]) for i in range(len(source))] == [6, 7, 8]
    assert source.pictures() is None
