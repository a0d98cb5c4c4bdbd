"""`predict` names pictures: as a user sees it."""

import contextlib
import csv
import io
import json
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
from pictures import noise
from PIL import Image

from otter_jax.commands import predict, start
from otter_jax.predict import model as models
from otter_jax.predict import progress

CLASSES = ["dog", "cat", "sea otter", "sofa", "red"]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(noise(number))
    return folder


def told(capsys, *argv):
    """The exit status, the rows on stdout, and what is said on stderr."""
    stdout = io.TextIOWrapper(io.BytesIO())
    with contextlib.redirect_stdout(stdout):
        status = predict.main([str(word) for word in argv])
    out = stdout.buffer.getvalue().decode()
    return status, list(csv.DictReader(io.StringIO(out))), capsys.readouterr().err


def test_csv_says_what_classify_says(tiny_run, model, photos, capsys):
    status, rows, err = told(capsys, tiny_run.home, photos, "--classes", ",".join(CLASSES))
    assert status == 0
    assert list(rows[0]) == ["path", "rank", "class", "probability", "cosine"]
    paths = sorted(photos.iterdir())
    expected = [guess for guesses in model.classify(paths, CLASSES) for guess in guesses]
    assert [row["path"] for row in rows] == [str(path) for path in paths for _ in CLASSES]
    assert [row["rank"] for row in rows] == list("12345") * 5
    assert [row["class"] for row in rows] == [guess.name for guess in expected]
    for column in ("probability", "cosine"):
        np.testing.assert_allclose(
            [float(row[column]) for row in rows],
            [getattr(guess, column) for guess in expected],
            rtol=1e-4,
            atol=1e-6,
        )
    assert "step 3 (the latest), student weights; 5 classes in 1 template" in err
    assert "5 pictures in" in err


def test_many_classes_are_counted_in_a_log_while_they_are_embedded(
    tiny_run, photos, capsys, monkeypatch
):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(models, "AT_ONCE", 2)
    names = "counted dog,counted cat,counted sofa"  # in no cache yet
    _, _, err = told(capsys, tiny_run.home, photos, "--classes", names)
    assert "2 of 3 classes, " in err


def test_a_file_that_is_no_picture_is_named_and_the_status_tells(tiny_run, photos, capsys):
    (photos / "a.jpg").write_text("hello")
    status, rows, err = told(capsys, tiny_run.home, "--classes", "dog,cat", photos, "--top", "1")
    assert status == start.PARTLY == 3
    assert len(rows) == 5
    assert f"Cannot be read: {photos / 'a.jpg'}: no picture: text" in err
    assert "1 file could not be read, and has no rows: exit status 3" in err


def test_below_the_threshold_it_is_none_of_them(tiny_run, photos, capsys):
    argv = (tiny_run.home, photos, "--classes", ",".join(CLASSES), "--threshold")
    _, every, _ = told(capsys, *argv, "0")
    best = sorted({float(row["probability"]) for row in every if row["rank"] == "1"})
    limit = (best[0] + best[1]) / 2
    _, rows, _ = told(capsys, *argv, limit)
    none = [row for row in rows if row["class"] == "none of them"]
    assert [(row["rank"], row["probability"], row["cosine"]) for row in none] == [("0", "", "")]
    rest = [row for row in rows if row["class"] != "none of them"]
    assert {row["path"] for row in rest} | {none[0]["path"]} == {row["path"] for row in every}
    assert all(float(row["probability"]) >= limit for row in rest)


def test_with_multi_probabilities_are_each_classes_own(tiny_run, model, photos, capsys):
    argv = (tiny_run.home, photos / "0.jpg", "--multi", "--classes")
    _, rows, err = told(capsys, *argv, "dog,cat,something")
    found = {row["class"]: float(row["probability"]) for row in rows}
    assert found["something"] == pytest.approx(0.5)
    assert sum(found.values()) != pytest.approx(1, abs=0.01)
    _, (alone,), err = told(capsys, *argv, "dog")
    assert float(alone["probability"]) == pytest.approx(found["dog"], rel=1e-4)
    assert "the only class" not in err
    assert "the only class" in told(capsys, *argv[:2], "--classes", "dog")[2]


def test_templates_and_synonyms_count(tiny_run, model, photos, capsys, tmp_path):
    (tmp_path / "names.txt").write_text("dog\tcat;sofa\nred\n")
    (tmp_path / "templates.txt").write_text("a {}\na photo of {c}.\n")
    _, rows, err = told(
        *(capsys, tiny_run.home, photos / "0.jpg", "--classes", tmp_path / "names.txt"),
        *("--templates", tmp_path / "templates.txt"),
    )
    several = [["dog", "cat", "sofa"], "red"]
    bank = model.bank(several, ["a {}", "a photo of {}."], cached=False)
    cosines = bank @ model.embed_images([photos / "0.jpg"])[0]
    assert {row["class"]: float(row["cosine"]) for row in rows} == pytest.approx(
        {"dog": cosines[0], "red": cosines[1]}, rel=1e-4
    )
    assert "2 classes in 2 templates" in err


def test_prompts_that_mean_less_than_they_seem_to_are_said_each_time(tiny_run, photos, capsys):
    names = "dog,Dog,zzz,red " + "sofa " * 40
    for _ in range(2):  # of the cache, too
        _, _, err = told(capsys, tiny_run.home, photos / "0.jpg", "--classes", names)
        assert "2 classes have the same tokens as another, such as 'dog/Dog'" in err
        assert "1 class has names of unknown tokens alone, such as 'zzz'" in err
        assert "1 class has prompts that are cut at 36 tokens" in err


def test_classes_are_embedded_once(tiny_run, photos, capsys, monkeypatch):
    argv = (tiny_run.home, photos / "0.jpg", "--classes", "otter,sofa")
    _, rows, _ = told(capsys, *argv)
    with monkeypatch.context() as patch:
        patch.setattr(models.Model, "embed_texts", None)
        assert told(capsys, *argv)[1] == rows
        status, _, err = told(capsys, *argv, "--weights", "ema", "--templates", "a {}")
        assert status == 1  # other weights have another bank
    bank = max((tiny_run.home / "cache").glob("bank_*"), key=lambda path: path.stat().st_mtime)
    bank.write_bytes(bank.read_bytes()[:100])
    _, again, err = told(capsys, *argv)
    assert again == rows
    assert f"The cache {bank} is damaged" in err


def test_a_stopped_command_goes_on(tiny_run, photos, capsys, monkeypatch, tmp_path):
    argv = (tiny_run.home, photos, "--classes", "dog,cat", "--batch-size", "8")
    whole, part = tmp_path / "whole.csv", tmp_path / "part.csv"
    for number in range(5, 20):
        (photos / f"{number:02}.jpg").write_bytes(noise(number))
    assert told(capsys, *argv, "--out", whole)[0] == 0
    embed, calls = models.Model.embed_pixels, []

    def once(self, pixels):
        if calls:
            signal.raise_signal(signal.SIGINT)
        calls.append(len(pixels))
        return embed(self, pixels)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # some shells ignore it
    try:
        with monkeypatch.context() as patch:
            patch.setattr(models.Model, "embed_pixels", once)
            status, _, err = told(capsys, *argv, "--out", part)
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == 75
    assert "the same command goes on" in err
    assert len(part.read_text().splitlines()) == 1 + 2 * 8
    status, _, err = told(capsys, *argv, "--out", part)
    assert status == 0
    assert "7 pictures have their rows already" in err  # the last one may lack rows
    assert part.read_text() == whole.read_text()
    status, _, err = told(capsys, *argv, "--out", part, "--top", "1")
    assert status == 2
    assert "of another command: it has top 5, not 1" in err


def test_other_formats_and_the_sheet_have_the_same(tiny_run, photos, capsys, tmp_path):
    argv = (tiny_run.home, photos, "--classes", "dog,cat", "--top", "1")
    _, rows, _ = told(capsys, *argv)
    sheet = tmp_path / "sheet.png"
    for name in ("a.jsonl", "a.parquet"):
        assert told(capsys, *argv, "--out", tmp_path / name, "--sheet", sheet)[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    table = pq.read_table(tmp_path / "a.parquet").to_pylist()
    for found in (lines, table):
        assert [row["class"] for row in found] == [row["class"] for row in rows]
        assert [row["path"] for row in found] == [row["path"] for row in rows]
    with Image.open(sheet) as img:
        first = img.size
    told(capsys, *argv, "--out", tmp_path / "a.jsonl", "--sheet", sheet)  # all rows are there
    with Image.open(sheet) as img:
        assert img.size == first


def test_mistakes_are_told_before_a_model_is_loaded(
    tiny_run, photos, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr("otter_jax.predict.loading.load", None)
    good = (tiny_run.home, photos, "--classes", "dog,cat")
    for argv, words in (
        ((), "required: MODEL"),
        ((tiny_run.home,), "--classes is missing"),
        ((tiny_run.home, "--classes", "dog"), "SOURCE is missing"),
        ((tiny_run.home, tmp_path / "none", "--classes", "dog"), "There is no "),
        ((tiny_run.home, photos, "--classes", ""), "There are no classes"),
        ((*good, "--top", "0"), "--top 0: give 1 or more"),
        ((*good, "--threshold", "50"), "a probability is from 0 to 1"),
        ((*good, "--templates", "a dog"), "each needs {}"),
        ((*good, "--templates", ""), "'' has none, and is no file"),
        ((*good, "--out", tmp_path / "a.txt"), "give it the ending .csv"),
        ((*good, "--sheet", tmp_path / "a.jpg"), "a sheet is a PNG"),
        ((*good, "--tpo", "1"), "did you mean --top?"),
    ):
        status, _, err = told(capsys, *argv)
        assert status == 2
        assert words in err
