"""Any set on disk opens; several are mixed by weight, by (seed, step) alone as one is."""

import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from records import (
    SIZE,
    N,
    assert_same,
    features,
    joined,
    make_tokenizer,
    numbers,
    picture,
    take,
)
from tars import pairs, write_tar

from otter_jax.data.build.builder import write
from otter_jax.data.build.report import read_report
from otter_jax.data.ensure import ensure
from otter_jax.data.pipeline import eval_batches
from otter_jax.data.source import Mixture, Source, open_dataset, parse_mixture
from otter_jax.errors import UserError


def part(name, numbers, **more):
    records = [
        {"image": picture(n), "caption": str(n).encode(), "key": f"key{n}".encode(), **more}
        for n in numbers
    ]
    return Source(name, records, features(*more))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def mixture():
    return Mixture([part("a:train", range(6)), part("b:train", range(6, N))], [3.0, 1.0])


def test_records_are_numbered_one_set_after_the_other(mixture):
    assert len(mixture) == N
    assert [mixture[i]["caption"] for i in range(N)] == [str(n) for n in range(N)]
    assert mixture[-1]["caption"] == str(N - 1)
    assert [mixture.key(i) for i in (0, 6)] == ["a:train key0", "b:train key6"]
    assert mixture.name == "a:train + b:train"
    with pytest.raises(IndexError):
        mixture[N]


def test_shares_follow_the_weights_and_each_set_its_own_epochs(mixture, tokenizer):
    seen = [n for batch in take(mixture, tokenizer, 12) for n in numbers(batch)]
    few = [n for n in seen if n < 6]
    assert len(few) == 72 == 3 * len([n for n in seen if n >= 6])
    epochs = np.array(few).reshape(-1, 6)
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 6
    assert len({n for n in seen if n >= 6}) == N - 6


def test_batches_are_those_of_any_number_of_processes_and_of_a_restart(mixture, tokenizer):
    whole = take(mixture, tokenizer, 6)
    assert_same(whole[4:], take(mixture, tokenizer, 2, start_step=4))
    for processes in (2, 4):
        rows = [
            take(mixture, tokenizer, 6, process=p, num_processes=processes)
            for p in range(processes)
        ]
        assert_same(whole, [joined(parts) for parts in zip(*rows, strict=True)])


def test_sets_with_other_features_share_those_they_have_in_common(tokenizer):
    both = Mixture([part("a", range(4), json="{}"), part("b", range(4, N))], [1.0, 1.0])
    assert sorted(both.features) == sorted(both[0]) == ["caption", "image", "key"]
    labelled = Source("c", [{"label": 1}], {"label": tfds.features.ClassLabel(num_classes=2)})
    with pytest.raises(UserError, match="not all of these sets have images"):
        Mixture([part("a", range(4)), labelled], [1.0, 1.0])


def test_classes_are_those_of_all_sets_or_none():
    def labelled(names):
        kinds = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=names)}
        return Source("x", [{"image": b"", "label": 0}], kinds)

    assert Mixture([labelled("ab"), labelled("ab")], [1.0, 1.0]).classes("label") == [
        "a",
        "b",
    ]
    assert Mixture([labelled("ab"), labelled("ba")], [1.0, 1.0]).classes("label") is None


def test_names_say_which_sets_and_how_much_of_each():
    assert parse_mixture("cc3m") == [("cc3m", 0)]
    assert parse_mixture("a/b/1.0.0 + c") == [("a/b/1.0.0", 0), ("c", 0)]
    assert parse_mixture("0.7*a+3e-1*b") == [("a", 0.7), ("b", 0.3)]
    for name, said in (
        ("a+", "What is ''"),
        ("0*a+1*b", "What is '0"),
        ("x*a+1*b", "What is 'x"),
        ("nan*a+1*b", "What is 'nan"),
        ("2*a+b", "all of its sets a weight, or none"),
        ("a+a", "twice"),
    ):
        with pytest.raises(UserError, match=said.replace("*", r"\*")):
            parse_mixture(name)


def test_sets_on_disk_are_mixed_by_their_sizes(tmp_path, tokenizer):
    for name, count in (("few", 2), ("many", 6)):
        ensure(name, str(tmp_path), (write_tar(tmp_path / f"{name}.tar", pairs(range(count))),))
    ensure("few+many", str(tmp_path))
    both = open_dataset(str(tmp_path), "few+many", "train")
    order = both.order(0)
    assert [sum(order[i] < 2 for i in range(start, start + 40)) for start in (0, 400)] == [10, 10]
    with pytest.raises(UserError, match="no data set none"):
        ensure("few+none", str(tmp_path))
    with pytest.raises(UserError, match="make each by itself"):
        ensure("few+many", str(tmp_path), (str(tmp_path / "few.tar"),))


class Cards(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A catalogue set as others write them: labels, a mask, no caption and no key."""

    VERSION = tfds.core.Version("2.10.0")
    size = 4

    def _info(self):
        image = tfds.features.Image(shape=(None, None, 3))
        label = tfds.features.ClassLabel(names=["spade", "heart"])
        parts = {"image": image, "label": label, "title": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(parts))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(10), "test": self._generate_examples(self.size)}

    def _generate_examples(self, n):
        for i in range(n):
            yield i, {"image": picture(i), "label": i % 2, "title": f"Größe {i}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    old = Cards(data_dir=folder)
    old.size = 3
    write(old)
    (folder / "cards" / "2.10.0").rename(folder / "cards" / "2.9.0")
    write(Cards(data_dir=folder))
    return str(folder)


def test_any_catalogue_set_opens_with_its_bytes_text_and_labels(folder, tokenizer):
    source = open_dataset(folder, "cards", "train[:50%]")
    assert len(source) == 5
    for i in range(5):
        record = source[i]
        number = int(record["title"].removeprefix("Größe "))
        assert record["image"] == picture(number)
        assert record["label"] == number % 2
        assert source.key(i) == str(i)
    assert source.classes("label") == ["spade", "heart"]
    assert source.classes("image") is None
    batches = list(eval_batches(source, batch_size=2, image_size=SIZE, resize=SIZE))
    assert sum(batch["valid"].sum() for batch in batches) == 5
    with pytest.raises(UserError, match="no feature `caption`"):
        take(source, tokenizer, 1)


def test_the_newest_version_is_opened_unless_one_is_named(folder):
    with pytest.raises(UserError, match=r"no data set cards/3\.0\.0"):
        open_dataset(folder, "cards/3.0.0", "train")
    assert len(open_dataset(folder, "cards/2.9.0", "test")) == 3
    assert len(open_dataset(folder, "cards", "test")) == 4


@pytest.mark.parametrize("split", ["valid", "train[:0%]", "train[8:3]", "", "train[", "train[a:b]"])
def test_an_unknown_or_empty_split_lists_those_there_are(folder, split):
    with pytest.raises(UserError, match="there are: test, train"):
        open_dataset(folder, "cards", split)


def test_an_unknown_set_lists_those_there_are(folder):
    with pytest.raises(UserError, match=r"no data set dice in .*; there are: [^?]*$"):
        open_dataset(folder, "dice", "train")
    with pytest.raises(
        UserError, match=r"no data set crads in .*; there are: cards.* mean cards\?"
    ):
        open_dataset(folder, "crads", "train")


def test_a_record_that_cannot_be_read_is_named_with_the_set_and_the_remedy(tmp_path):
    class Damaged(list):
        def __getitem__(self, index):
            if index == 1:
                raise RuntimeError("chunk data hash mismatch")
            return super().__getitem__(index)

    features = tfds.features.FeaturesDict({"key": tfds.features.Text()})
    records = Damaged([{"key": b"a"}] * 3)
    source = Source("mine:train", records, features, folder=tmp_path)
    assert source[0] == {"key": "a"}
    with pytest.raises(UserError, match="mine:train: record 1 .*hash mismatch.*Remove /.*again"):
        source[1]
    with pytest.raises(IndexError):
        source[3]


def halve(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGED = {
    "records cut": ("*array_record*", halve, r"mine:train: record \d+ cannot be read"),
    "records gone": (
        "*array_record*",
        pathlib.Path.unlink,
        "record 0 cannot be read, its file is damaged or gone",
    ),
    "about cut": ("dataset_info.json", halve, "cannot be opened: Failed to load JSON"),
    "features gone": ("features.json", pathlib.Path.unlink, "cannot be opened"),
    "digests cut": ("pictures-train.npy", halve, r"pictures-train\.npy is damaged"),
    "report cut": ("report.json", halve, r"report\.json is damaged"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    home = tmp_path_factory.mktemp("whole")
    ensure("mine", str(home), (write_tar(home / "a.tar", pairs(range(40))),))
    return home


@pytest.mark.parametrize("name", DAMAGED)
def test_a_set_that_is_damaged_is_one_paragraph(name, whole, tmp_path):
    pattern, damage, words = DAMAGED[name]
    shutil.copytree(whole / "mine", tmp_path / "mine")
    (file,) = (tmp_path / "mine" / "1.0.0").glob(pattern)
    damage(file)

    def look():
        read_report(file.parent)
        source = open_dataset(str(tmp_path), "mine", "train")
        source.pictures()
        for number in range(len(source)):
            source[number]

    with pytest.raises(UserError, match=words):
        look()


def test_a_slice_of_a_damaged_set_is_one_paragraph(whole, tmp_path):
    shutil.copytree(whole / "mine", tmp_path / "mine")
    (file,) = tmp_path.glob("mine/*/*array_record*")
    halve(file)
    with pytest.raises(UserError, match="mine:train: record 19 cannot be read"):
        open_dataset(str(tmp_path), "mine", "train[50%:]")
