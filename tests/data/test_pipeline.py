"""Batches are a function of (seed, step): not of processes, workers, threads or restarts."""

import os
import pathlib
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from records import (
    SETTINGS,
    SIZE,
    TOKENS,
    WORDS,
    N,
    assert_same,
    features,
    joined,
    make_tokenizer,
    numbers,
    records,
    take,
)

from otter_jax.data.pipeline import eval_batches, train_batches, view_batches
from otter_jax.data.source import Source
from otter_jax.errors import UserError


@pytest.fixture(scope="module")
def source():
    return Source("made:train", records(), features())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


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


@pytest.mark.parametrize("num_processes", [2, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(
    source, tokenizer, num_processes
):
    processes = [
        take(source, tokenizer, 7, process=p, num_processes=num_processes)
        for p in range(num_processes)
    ]
    whole = [joined(parts) for parts in zip(*processes, strict=True)]
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
import pathlib
from otter_jax.data.pipeline import train_batches
from otter_jax.data.source import Source
from records import SETTINGS, features, make_tokenizer, records

source = Source("made:train", records(), features())
tokenizer = make_tokenizer(pathlib.Path(sys.argv[1]))
batches = train_batches(source, tokenizer, start_step=0, num_workers=1, **SETTINGS)
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
    helpers = pathlib.Path(__file__).parents[1]
    parent = subprocess.run(  # returns when the worker, too, has let go of its output
        [sys.executable, "-c", PARENT, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(helpers.parent), str(helpers)))},
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


@pytest.mark.parametrize("num_processes", [1, 2])
def test_evaluation_sees_every_record_once_in_order(source, num_processes):
    sizes = {"batch_size": 10, "image_size": SIZE, "resize": 10}
    processes = [
        list(eval_batches(source, process=process, num_processes=num_processes, **sizes))
        for process in range(num_processes)
    ]
    batches = [joined(parts) for parts in zip(*processes, strict=True)]
    assert [len(batch["index"]) for batch in batches] == [10, 10, 10]
    everything = joined(batches)
    np.testing.assert_array_equal(everything["index"], [*range(N), *[-1] * 6])
    np.testing.assert_array_equal(everything["valid"], [True] * N + [False] * 6)
    assert numbers(everything)[:N] == list(range(N))
    assert not everything["image"][N:].any()
    np.testing.assert_array_equal(
        everything["image"][0, :, :, 1], np.tile(range(40, 200, 20), (8, 1))
    )


def seen_in(source, view, flip=True):
    sizes = {"batch_size": 10, "image_size": SIZE, "resize": 10}
    return joined(list(view_batches(source, view=view, flip=flip, **sizes)))


def test_a_view_has_every_record_once_in_order_cropped_at_random(source):
    first, again, other = seen_in(source, 0), seen_in(source, 0), seen_in(source, 1)
    assert_same([first], [again])
    np.testing.assert_array_equal(first["index"], [*range(N), *[-1] * 6])
    assert numbers(first)[:N] == numbers(other)[:N] == list(range(N))
    assert (first["image"][:N] != other["image"][:N]).any()
    # Columns of these pictures grow brighter to the right: each crop, or its mirror, is one of
    # five windows.
    whole = list(range(0, 240, 20))
    windows = {tuple(whole[left : left + SIZE]) for left in range(5)}
    rows = [tuple(pixels[0, :, 1].tolist()) for pixels in first["image"][:N]]
    upright = {row for row in rows if row in windows}
    assert len(upright) > 1
    mirrored = {row[::-1] for row in rows if row not in windows}
    assert len(mirrored) > 1
    assert mirrored <= windows
    never = seen_in(source, 0, flip=False)["image"][:N]
    assert {tuple(pixels[0, :, 1].tolist()) for pixels in never} <= windows


def test_evaluation_marks_and_names_an_unreadable_image():
    source = Source("made:test", records(bad={7}), features())
    batch = joined(list(eval_batches(source, batch_size=8, image_size=SIZE, resize=10)))
    assert np.flatnonzero(~batch["valid"]).tolist() == [7]
    assert batch["index"][~batch["valid"]].tolist() == [7]
    assert batch["index"].tolist() == list(range(N))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 9, "num_processes": 2}, "batch_size=9 does not divide over 2 processes"),
        ({"batch_size": N + 1}, "more than made:train has records, 24"),
        ({"resize": 7}, "resize=7 is less than image_size=8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_the_first_batch(
    source, tokenizer, changes, message
):
    with pytest.raises(UserError, match=message):
        train_batches(source, tokenizer, **{"start_step": 0, **SETTINGS, **changes})
