"""How pairs match within batches, which of them are noisy, and what the command writes of it."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from pictures import coloured
from PIL import Image

from otter_jax.commands import noise as command
from otter_jax.commands.prepare import main as prepare
from otter_jax.data.source import Source, open_dataset
from otter_jax.errors import UserError
from otter_jax.predict import noise

DIM = 12


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def pairs_of(img, txt, captions=None):
    count = len(img)
    captions = captions or [f"caption {i}" for i in range(count)]
    keys = [f"k{i}" for i in range(count)]
    numbers = np.arange(count)
    return noise.Pairs(unit(img).astype(np.float16), unit(txt).astype(np.float16), numbers, keys,
                       captions, [])  # fmt: skip


def concepts(count=240, kinds=12, seed=0):
    """Pairs of some kinds, several of each, both sides with noise of their own."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(kinds, DIM)))
    kind = rng.integers(kinds, size=count)
    img, txt = (centres[kind] + 0.2 * rng.normal(size=(count, DIM)) for _ in range(2))
    return img, txt, kind


def test_the_analysis_is_that_of_plain_numpy():
    img, txt, _ = concepts(20)
    pairs = pairs_of(img, txt)
    found = noise.matches(pairs, 8, scale=9.0)
    assert (found.batch, found.batches) == (8, 2)  # 4 pairs are left over
    order = np.random.default_rng(0).permutation(20)
    own, other, largest, high, effective = [], [], [], [], []
    for rows in (order[:8], order[8:16]):
        logits = 9.0 * unit(pairs.img[rows].astype(float)) @ unit(pairs.txt[rows].astype(float)).T
        match = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        off = match[~np.eye(8, dtype=bool)].reshape(8, 7)
        own += np.diag(match).tolist()
        other += off.ravel().tolist()
        largest += off.max(1).tolist()
        high += (off >= 0.2).sum(1).tolist()
        effective += np.exp(-(match * np.log(match)).sum(1)).tolist()
    means = [np.mean(each) for each in (own, other, largest, high, effective)]
    np.testing.assert_allclose(found[2:7], means, rtol=1e-4)
    counts = [np.histogram(each, noise.BINS, (0, 1))[0] for each in (own, other)]
    np.testing.assert_array_equal(found[7:], counts)


def test_pairs_whose_captions_were_exchanged_have_the_largest_scores():
    img, txt, kind = concepts()
    moved = np.random.default_rng(1).permutation(len(img))[:60]
    given, given_kind = txt.copy(), kind.copy()
    given[moved], given_kind[moved] = txt[np.roll(moved, 1)], kind[np.roll(moved, 1)]
    wrong = given_kind != kind
    judged = noise.judge(pairs_of(img, given), 120, scale=20.0)
    assert np.median(judged.score[wrong]) > judged.score[~wrong].max()
    worst = noise.noisiest(judged)[: wrong.sum()]
    assert wrong[worst].mean() > 0.9
    # What transport proposes instead is a caption of the right kind.
    assert (given_kind[judged.caption[wrong]] == kind[wrong]).mean() > 0.75
    assert (kind[judged.picture[wrong]] == given_kind[wrong]).mean() > 0.75
    assert judged.own[wrong].mean() < judged.own[~wrong].mean()
    assert judged.trust[wrong].max() < np.median(judged.trust[~wrong])


def test_every_pair_has_a_score_also_those_of_the_last_smaller_batch():
    img, txt, _ = concepts(50)
    judged = noise.judge(pairs_of(img, txt), 16, scale=20.0)
    assert (judged.score != 0).all()
    assert (judged.caption != np.arange(50)).all()


def test_captions_of_the_same_words_count_as_one():
    img, txt, kind = concepts(60, kinds=6)
    same = pairs_of(img, txt, [f"kind {i}" for i in kind])
    judged = noise.judge(same, 60, scale=20.0)
    apart = noise.judge(pairs_of(img, txt), 60, scale=20.0)
    assert judged.own.mean() > 3 * apart.own.mean()
    assert (kind[judged.caption] != kind).all()


def test_a_batch_of_more_pairs_than_there_are_is_refused():
    pairs = pairs_of(*concepts(20)[:2])
    with pytest.raises(UserError, match="21 pairs is more than the 20"):
        noise.matches(pairs, 21, scale=20.0)


@pytest.mark.parametrize("text", ["", "1", "8,x", "-8", "8,,9"])
def test_sizes_of_batches_that_are_none_are_refused(text):
    with pytest.raises(UserError, match="--batch"):
        command.sizes(text)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a set of ten pairs, and of its source."""
    home = tmp_path_factory.mktemp("noise")
    source = home / "pairs"
    source.mkdir()
    for i in range(10):
        (source / f"p{i}.png").write_bytes(coloured((25 * i, 100, 250 - 25 * i), i))
        (source / f"p{i}.txt").write_text(f"a {'dog' if i % 2 else 'cat'}, number {i}")
    return home, source


def prepared(home, source, tiny_run, *more):
    words = [str(source), "--data_dir", str(home / "sets")]
    words += ["--tokenizer", str(tiny_run.home / "text"), *map(str, more)]
    return prepare(words)


def test_a_batch_that_is_larger_than_the_set_is_told(made, tiny_run, load, capsys):
    home, source = made
    assert prepared(home, source, tiny_run, "--name", "few") == 0
    argv = ["few", "--model", str(tiny_run.home), "--data_dir", str(home / "sets")]
    assert command.main([*argv, "--out", str(home / "few_out"), "--batch", "64"]) == 0
    assert "There are 10 pairs; no larger batch is looked at." in capsys.readouterr().out


def test_the_command_writes_a_table_by_which_prepare_leaves_out_the_noisiest(
    made, tiny_run, load, capsys
):
    home, source = made
    assert prepared(home, source, tiny_run, "--name", "all") == 0
    argv = ["all", "--model", str(tiny_run.home), "--data_dir", str(home / "sets")]
    assert command.main([*argv, "--out", str(home / "out"), "--batch", "4,64"]) == 0
    out = capsys.readouterr().out
    assert "There are 10 pairs; no larger batch is looked at." in out
    table = pq.read_table(home / "out" / "noise.parquet").to_pydict()
    assert sorted(table["key"]) == [f"p{i}" for i in range(10)]
    assert table["score"] == sorted(table["score"], reverse=True)
    about = json.loads((home / "out" / "noise.json").read_text())
    assert [each["batch"] for each in about["matches"]] == [4]
    for name in ("sheet.png", "histogram.png"):
        with Image.open(home / "out" / name) as picture:
            assert picture.width > 300
    assert sorted(p.name for p in (home / "out").iterdir()) == [
        "histogram.png", "noise.json", "noise.parquet", "sheet.png",
    ]  # fmt: skip

    drop = ["--drop", home / "out" / "noise.parquet", "--share", "0.3"]
    assert prepared(home, source, tiny_run, "--name", "clean", *drop) == 0
    assert "left out by --drop" in capsys.readouterr().out
    clean = open_dataset(str(home / "sets"), "clean", "train")
    assert {clean[i]["key"] for i in range(len(clean))} == set(table["key"][3:])
    # The same name without the table, or with another share, is another set.
    assert prepared(home, source, tiny_run, "--name", "clean") == 2
    assert "another table of pairs left out" in capsys.readouterr().err


def test_a_table_that_does_not_say_what_is_left_out_is_refused(made, tiny_run, tmp_path, capsys):
    home, source = made
    plain, scored = tmp_path / "plain.parquet", tmp_path / "scored.parquet"
    pq.write_table(pa.table({"key": ["p1"]}), plain)
    pq.write_table(pa.table({"key": ["p1", "p2"], "score": [0.5, 1.0]}), scored)
    (tmp_path / "text.parquet").write_text("p1\n")
    pq.write_table(pa.table({"name": ["p1"]}), tmp_path / "other.parquet")
    for words, said in (
        (["--drop", scored], "which share"),
        (["--drop", scored, "--share", "1.5"], "above 0 and below 1"),
        (["--drop", plain, "--share", "0.5"], "has none"),
        (["--share", "0.5"], "give both"),
        (["--drop", tmp_path / "text.parquet"], "cannot be read as Parquet"),
        (["--drop", tmp_path / "none.parquet"], "No such file"),
        (["--drop", tmp_path / "other.parquet"], "no column `key`"),
    ):
        assert prepared(home, source, tiny_run, "--name", "x", *words) == 2
        assert said in capsys.readouterr().err
    assert not (home / "sets" / "x").exists()
    assert prepared(home, source, tiny_run, "--name", "one_less", "--drop", plain) == 0
    assert len(open_dataset(str(home / "sets"), "one_less", "train")) == 9


def test_a_picture_that_cannot_be_read_is_named_and_left_out(model, tmp_path):
    records = [
        {"key": "good", "caption": "a dog", "image": coloured((9, 9, 200), 1)},
        {"key": "bad", "caption": "a cat", "image": b"no picture"},
        {"key": "last", "caption": "a sofa", "image": coloured((200, 9, 9), 2)},
    ]
    text = tfds.features.Text()
    features = {"key": text, "caption": text, "image": tfds.features.Image()}
    source = Source("mine:train", records, features)
    done = []
    found = noise.embed(model, source, tmp_path, done.append)
    assert found.keys == ["good", "last"]
    assert found.numbers.tolist() == [0, 2]
    assert [key for key, _ in found.unreadable] == ["bad"]
    assert sum(done) == 3
    expected = model.embed_texts(["a dog", "a sofa"])
    np.testing.assert_allclose(found.txt, expected, atol=1e-3)
