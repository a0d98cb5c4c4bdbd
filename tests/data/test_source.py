"""Several sets as one: shares by weight, and batches that follow from (seed, step) as one set's."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from test_pipeline import N, assert_same, joined, numbers, picture, take, tokenizer  # noqa: F401

from otter_jax.data.build.plan import features
from otter_jax.data.ensure import ensure
from otter_jax.data.source import Mixture, Source, open_dataset, sets_of
from otter_jax.errors import UserError


def part(name, numbers, **more):
    records = [
        {"image": picture(n), "caption": str(n).encode(), "key": f"key{n}".encode(), **more}
        for n in numbers
    ]
    return Source(name, records, features(**{key: tfds.features.Text() for key in more}))


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


def test_shares_follow_the_weights_and_each_set_its_own_epochs(mixture, tokenizer):  # noqa: F811
    seen = [n for batch in take(mixture, tokenizer, 12) for n in numbers(batch)]
    few = [n for n in seen if n < 6]
    assert len(few) == 72 == 3 * len([n for n in seen if n >= 6])
    epochs = np.array(few).reshape(-1, 6)
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 6
    assert len({n for n in seen if n >= 6}) == N - 6


def test_batches_are_those_of_any_number_of_hosts_and_of_a_restart(mixture, tokenizer):  # noqa: F811
    whole = take(mixture, tokenizer, 6)
    assert_same(whole[4:], take(mixture, tokenizer, 2, start_step=4))
    for hosts in (2, 4):
        rows = [take(mixture, tokenizer, 6, host=h, num_hosts=hosts) for h in range(hosts)]
        assert_same(whole, [joined(parts) for parts in zip(*rows, strict=True)])


def test_sets_with_other_features_share_those_they_have_in_common(tokenizer):  # noqa: F811
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
    assert sets_of("cc3m") == [("cc3m", 0)]
    assert sets_of("a/b/1.0.0 + c") == [("a/b/1.0.0", 0), ("c", 0)]
    assert sets_of("0.7*a+3e-1*b") == [("a", 0.7), ("b", 0.3)]
    for name, said in (
        ("a+", "What is ''"),
        ("0*a+1*b", "What is '0"),
        ("x*a+1*b", "What is 'x"),
        ("nan*a+1*b", "What is 'nan"),
        ("2*a+b", "all of its sets a weight, or none"),
        ("a+a", "twice"),
    ):
        with pytest.raises(UserError, match=said.replace("*", r"\*")):
            sets_of(name)


def test_sets_on_disk_are_mixed_by_their_sizes(tmp_path, tokenizer):  # noqa: F811
    from test_webdataset import pairs, write_tar

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
