"""The commands embed and search, from a folder of pictures to those that fit a text."""

import csv
import io
import os
import shutil

import numpy as np
import pytest
from pictures import coloured
from PIL import Image

from otter_jax.commands import embed, search
from otter_jax.predict.index import Index

ODD = os.fsdecode(b"o\xff.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number, name in enumerate(["a.png", "b b.png", "c.png", ODD]):
        (folder / name).write_bytes(coloured((200, 60 * number, 20 * number), number))
    return folder


@pytest.fixture(scope="module")
def indexed(photos, tiny_run):
    out = photos.parent / "index.parquet"
    assert embed.main([str(tiny_run.home), str(photos), "--out", str(out)]) == 0
    return out


def said(capfdbinary, status, *argv):
    """What a search prints."""
    capfdbinary.readouterr()
    assert search.main(list(map(str, argv))) == status
    out, err = capfdbinary.readouterr()
    return out if not status else err.decode()


def test_pictures_are_found_by_text_with_the_cosine_of_the_models_vectors(
    indexed, photos, model, capfdbinary
):
    out = said(capfdbinary, 0, indexed, "a dog", "red square", "--top", 3)
    rows = list(csv.DictReader(io.StringIO(out.decode())))
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 2
    paths = sorted(photos.iterdir())
    texts = ["a dog", "red square"]
    cosines = model.embed_texts(texts) @ model.embed_images(paths).T
    for number, text in enumerate(texts):
        found = [row for row in rows if row["query"] == text]
        best = np.sort(cosines[number])[::-1][:3]
        np.testing.assert_allclose([float(row["cosine"]) for row in found], best, atol=2e-3)
        names = [paths[i].name for i in np.argsort(-cosines[number])[:3]]
        assert [os.path.basename(row["path"]) for row in found] == [
            name.replace("\udcff", r"\xff") for name in names
        ]


def test_a_picture_is_its_own_nearest_and_paths_alone_are_raw_and_from_here(
    indexed, photos, capfdbinary, monkeypatch
):
    odd = photos / ODD
    assert (
        said(capfdbinary, 0, indexed, "--image", odd, "--top", 1, "-f") == os.fsencode(odd) + b"\n"
    )
    monkeypatch.chdir(photos)
    assert said(capfdbinary, 0, indexed, "--image", ODD, "--top", 1, "-0") == b"o\xff.png\0"
    assert len(said(capfdbinary, 0, indexed, "a", "dog", "--top", 99, "-0").split(b"\0")) == 5


def test_a_sheet_shows_what_is_found(indexed, tmp_path, capfdbinary):
    sheet = tmp_path / "found.png"
    said(capfdbinary, 0, indexed, "a dog", "--sheet", sheet)
    with Image.open(sheet) as img:
        assert img.width > 600


def test_an_index_whose_model_has_moved_is_searched_by_telling_where(
    photos, tiny_run, tmp_path, capfdbinary
):
    out, moved = tmp_path / "index.parquet", tmp_path / "moved"
    shutil.copytree(tiny_run.home, tmp_path / "run")
    assert embed.main([str(tmp_path / "run"), str(photos), "--out", str(out)]) == 0
    (tmp_path / "run").rename(moved)
    assert "if it was moved, give --model MODEL" in said(capfdbinary, 2, out, "a dog")
    assert said(capfdbinary, 0, out, "a dog", "--model", moved, "-f")
    wrong = said(capfdbinary, 2, out, "a dog", "--model", moved, "--weights", "ema")
    assert "Vectors of two models cannot be compared" in wrong
    assert Index(out).load["step"] == 3  # so a run that trains on is searched by the same weights
    assert embed.main([str(moved), str(photos), "--out", str(out), "--weights", "ema"]) == 2
    assert Index(out).count == 4


def test_pictures_that_cannot_be_read_are_named_and_the_status_tells(tiny_run, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(coloured((9, 9, 200), 1))
    (tmp_path / "b\n.png").write_bytes(b"broken")
    argv = [str(tiny_run.home), str(tmp_path), "--out", str(tmp_path / "index.parquet")]
    assert embed.main(argv) == 3
    out = capsys.readouterr().out
    assert "2 pictures" in out
    assert r"b\n.png: no picture: text" in out
    assert "search" in out.splitlines()[-1]
    (tmp_path / "b\n.png").unlink()
    assert embed.main(argv) == 0
    assert "0 new, 1 as they were" in capsys.readouterr().out


def test_an_index_of_no_picture_is_not_offered_to_search(tiny_run, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"broken")
    out = tmp_path / "index.parquet"
    assert embed.main([str(tiny_run.home), str(tmp_path), "--out", str(out)]) == 3
    assert "search" not in capsys.readouterr().out
    assert search.main([str(out), "a dog"]) == 2
    assert "is an index of no picture" in capsys.readouterr().err


def test_texts_have_vectors_too(tiny_run, model, tmp_path, capsys):
    long = "dog " * 40
    (tmp_path / "texts.txt").write_text(f"a dog\nred square\n{long}\n")
    out = tmp_path / "texts.npz"
    argv = [str(tiny_run.home), "--texts", str(tmp_path / "texts.txt"), "--out", str(out)]
    assert embed.main(argv) == 0
    assert "Note: 1 text is cut at 36 tokens, such as 'dog dog" in capsys.readouterr().out
    expected = model.embed_texts(["a dog", "red square", long])
    np.testing.assert_allclose(np.load(out)["embeddings"], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("command", "argv", "words"),
    [
        (embed, ["m", "photos"], "--out is missing: a file"),
        (embed, ["m", "--out", "a.npz"], "Give SOURCEs"),
        (embed, ["m", "p", "--texts", "t.txt", "--out", "a.npz"], "one of both"),
        (embed, ["m", "p", "--out", "a.csv"], "give it the ending .npz or .parquet"),
        (embed, ["m", "no_photos", "--out", "a.npz"], "There is no no_photos"),
        (search, ["a.parquet"], "Give a TEXT"),
        (search, ["a.parquet", "a dog", "--image", "b.jpg"], "one of both"),
        (search, ["a.parquet", "a dog", "--top", "0"], "--top=0"),
        (search, ["a.parquet", "a dog", " "], "A TEXT is empty"),
        (search, ["a.parquet", "a dog", "--sheet", "a.jpg"], "a sheet is a PNG"),
        (search, ["a.parquet", "a dog"], "There is no index a.parquet. Make one: embed MODEL"),
    ],
)
def test_mistakes_are_said_before_anything_is_loaded(command, argv, words, capsys, monkeypatch):
    monkeypatch.setattr("otter_jax.predict.loading.load", None)
    assert command.main(argv) == 2
    assert words in capsys.readouterr().err
