"""Batches are a function of (seed, step): not of hosts, workers, threads or restarts."""

import io
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from otter_jax.data.build.builder import write
from otter_jax.data.build.plan import features
from otter_jax.data.captions import Tokenizer
from otter_jax.data.pipeline import eval_batches, train_batches
from otter_jax.data.source import Source, open_dataset
from otter_jax.errors import UserError

N, SIZE, TOKENS = 24, 8, 6
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(N))]
SETTINGS = {"seed": 3, "batch_size": 8, "image_size": SIZE, "resize": 10, "flip": True}


def picture(number):
    """12 x 10 pixels: no two windows are alike, and blue tells the number."""
    y, x = np.mgrid[:10, :12]
    pixels = np.stack([y * 20, x * 20, np.full_like(x, number)], -1)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def records(bad=(), empty=()):
    return [
        {
            "image": b"no picture" if n in bad else picture(n),
            "caption": b"" if n in empty else str(n).encode(),
            "key": f"key{n}".encode(),
        }
        for n in range(N)
    ]


@pytest.fixture(scope="module")
def source():
    return Source("made:train", records(), features())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return Tokenizer(folder, TOKENS)


def take(source, tokenizer, steps, **changes):
    stream = train_batches(source, tokenizer, **{"start_step": 0, **SETTINGS, **changes})
    batches = list(itertools.islice(stream, steps))
    stream.close()
    return batches


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_same(batches, others):
    assert len(batches) == len(others)
    for a, b in zip(batches, others, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def numbers(batch):
    return batch["image"][:, 0, 0, 2].tolist()


def test_a_batch_holds_each_image_with_its_own_caption(source, tokenizer):
    for batch in take(source, tokenizer, 3):
        assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
            "image": ((8, SIZE, SIZE, 3), np.uint8),
            "token_ids": ((8, TOKENS), np.int32),
            "mask": ((8, TOKENS), np.bool_),
            "replaced": ((8,), np.int32),
        }
        captions = [WORDS[row[1]] for row in batch["token_ids"]]
        assert captions == [str(number) for number in numbers(batch)]
        assert (batch["replaced"] == -1).all()


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_hosts(source, tokenizer, num_hosts):
    hosts = [take(source, tokenizer, 7, host=h, num_hosts=num_hosts) for h in range(num_hosts)]
    whole = [joined(parts) for parts in zip(*hosts, strict=True)]
    assert_same(take(source, tokenizer, 7), whole)


@pytest.mark.parametrize("step", [1, 3, 4, 8])
def test_a_restart_goes_on_exactly(source, tokenizer, step):
    batches = take(source, tokenizer, 10)
    assert_same(batches[step:], take(source, tokenizer, 10 - step, start_step=step))


def test_a_far_step_costs_nothing(source, tokenizer):
    assert len(take(source, tokenizer, 1, start_step=10**9)) == 1


def test_the_batches_do_not_depend_on_the_number_of_workers(source, tokenizer):
    batches = take(source, tokenizer, 5, num_workers=2)
    assert_same(take(source, tokenizer, 5), batches)
    assert all(type(array) is np.ndarray for batch in batches for array in batch.values())


PARENT = """
import multiprocessing, os, signal, sys
from otter_jax import data
from test_pipeline import SETTINGS, TOKENS, features, records

source = data.Source("made:train", records(), features())
tokenizer = data.Tokenizer(sys.argv[1], TOKENS)
batches = data.train_batches(source, tokenizer, start_step=0, num_workers=1, **SETTINGS)
next(batches)
(child,) = multiprocessing.active_children()
for number in (signal.SIGINT, signal.SIGTERM):
    os.kill(child.pid, number)
for _ in range(20):  # more than were made ahead
    next(batches)
print("alive", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_leaves_signals_to_its_parent_and_ends_with_it(tmp_path):
    """A cluster signals all processes; only the parent knows what must be saved before the end."""
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    here = pathlib.Path(__file__).parent
    parent = subprocess.run(  # returns when the worker, too, has let go of its output
        [sys.executable, "-c", PARENT, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(here.parent), str(here)))},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    assert (parent.returncode, parent.stdout) == (-signal.SIGKILL, "alive\n")


def test_each_epoch_shows_everything_once_in_a_new_order_with_new_crops(source, tokenizer):
    batches = take(source, tokenizer, 6, flip=False)
    first, second = joined(batches[:3]), joined(batches[3:])
    assert sorted(numbers(first)) == sorted(numbers(second)) == list(range(N))
    assert numbers(first) != numbers(second)
    crops = [
        {
            number: image.tobytes()
            for number, image in zip(numbers(part), part["image"], strict=True)
        }
        for part in (first, second)
    ]
    assert sum(crops[0][number] != crops[1][number] for number in range(N)) > N // 2


def test_another_seed_is_another_order(source, tokenizer):
    a, b = (take(source, tokenizer, 1, seed=seed)[0] for seed in (0, 1))
    assert numbers(a) != numbers(b)


def test_half_of_the_images_are_mirrored_when_asked(source, tokenizer):
    def mirrored(flip):
        image = joined(take(source, tokenizer, 30, flip=flip))["image"].astype(int)
        return np.mean(image[:, 0, 0, 1] > image[:, 0, -1, 1])

    assert mirrored(flip=False) == 0
    assert 0.35 < mirrored(flip=True) < 0.65


def test_an_unreadable_image_gives_way_to_the_next_readable_pair_and_is_named(tokenizer):
    bad = {5, 6, N - 1}
    source = Source("made:train", records(bad=bad), features())
    batch = joined(take(source, tokenizer, 3))
    rows = zip(batch["replaced"], numbers(batch), strict=True)
    replaced = {index: number for index, number in rows if index >= 0}
    assert replaced == {5: 7, 6: 7, N - 1: 0}
    assert [WORDS[row[1]] for row in batch["token_ids"]] == [str(n) for n in numbers(batch)]
    assert [source.key(i) for i in sorted(replaced)] == ["key5", "key6", f"key{N - 1}"]
    assert_same([batch], [joined(take(source, tokenizer, 3))])


def test_a_set_without_a_readable_image_stops_with_the_reason(tokenizer):
    source = Source("made:train", records(bad=range(N)), features())
    with pytest.raises(UserError, match="100 images in a row cannot be read"):
        take(source, tokenizer, 1)


def test_an_empty_caption_is_kept(tokenizer):
    source = Source("made:train", records(empty={4}), features())
    batch = joined(take(source, tokenizer, 3))
    row = numbers(batch).index(4)
    assert batch["mask"][row].sum() == 2


def test_dropping_the_stream_stops_its_threads(source, tokenizer):
    before = set(threading.enumerate())
    stream = train_batches(source, tokenizer, start_step=0, **SETTINGS)
    next(stream)
    started = set(threading.enumerate()) - before
    assert started
    del stream
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()


@pytest.mark.parametrize("num_hosts", [1, 2])
def test_evaluation_sees_every_record_once_in_order(source, num_hosts):
    sizes = {"batch_size": 10, "image_size": SIZE, "resize": 10}
    hosts = [
        list(eval_batches(source, host=host, num_hosts=num_hosts, **sizes))
        for host in range(num_hosts)
    ]
    batches = [joined(parts) for parts in zip(*hosts, strict=True)]
    assert [len(batch["index"]) for batch in batches] == [10, 10, 10]
    everything = joined(batches)
    np.testing.assert_array_equal(everything["index"], [*range(N), *[-1] * 6])
    np.testing.assert_array_equal(everything["valid"], [True] * N + [False] * 6)
    assert numbers(everything)[:N] == list(range(N))
    assert not everything["image"][N:].any()
    np.testing.assert_array_equal(
        everything["image"][0, :, :, 1], np.tile(range(40, 200, 20), (8, 1))
    )


def test_evaluation_marks_and_names_an_unreadable_image():
    source = Source("made:test", records(bad={7}), features())
    batch = joined(list(eval_batches(source, batch_size=8, image_size=SIZE, resize=10)))
    assert np.flatnonzero(~batch["valid"]).tolist() == [7]
    assert batch["index"][~batch["valid"]].tolist() == [7]
    assert batch["index"].tolist() == list(range(N))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 9, "num_hosts": 2}, "batch_size=9 does not divide over 2 hosts"),
        ({"batch_size": N + 1}, "more than made:train has records, 24"),
        ({"resize": 7}, "resize=7 is less than image_size=8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_the_first_batch(
    source, tokenizer, changes, message
):
    with pytest.raises(UserError, match=message):
        train_batches(source, tokenizer, **{"start_step": 0, **SETTINGS, **changes})


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
    with pytest.raises(UserError, match=r"no data set dice in .*; there are: cards"):
        open_dataset(folder, "dice", "train")
