"""Every picture of the sources is found once and read in order; nothing else stops anything."""

import io
import itertools
import os
import threading

import numpy as np
import pytest
from pictures import coloured, noise

from otter_jax.data import images
from otter_jax.errors import UserError
from otter_jax.predict import pictures
from otter_jax.predict.pictures import Pictures


def decode(content):
    return images.center_crop(images.decode(content), 16, 16)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.jpg", "a.JPEG", "deep/er/c.png", "deep/notes.txt", ".hidden.jpg", "._a.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise(len(name)))
    return tmp_path / "photos"


def test_a_folder_gives_its_pictures_by_name_and_counts_the_other_files(folder):
    found = Pictures.of(["photos"])
    assert found.paths == ("photos/a.JPEG", "photos/b.jpg", "photos/deep/er/c.png")
    assert found.told() == "3 pictures; 3 other files passed over"


def test_a_picture_that_several_sources_name_is_taken_once_where_it_came_first(folder):
    (folder / "named.as.none").write_bytes(noise())
    found = Pictures.of(["photos/b.jpg", "./photos", str(folder / "b.jpg"), "photos/named.as.none"])
    assert found.paths[0] == "photos/b.jpg"
    assert found.paths[-1] == "photos/named.as.none"  # it is named, so its content decides
    assert len(found.paths) == 4


def test_links_in_a_circle_end(folder):
    (folder / "deep" / "round").symlink_to(folder)
    assert len(Pictures.of([str(folder)]).paths) == 3


def test_a_glob_takes_pictures_and_the_folders_that_it_meets(folder):
    assert Pictures.of(["photos/*"]).paths == Pictures.of(["photos"]).paths
    assert Pictures.of(["photos/**/*.png"]).paths == ("photos/deep/er/c.png",)


@pytest.mark.parametrize("separator", [b"\n", b"\r\n", b"\0"])
def test_paths_are_read_from_stdin(folder, separator):
    odd = b"photos/\xff.jpg"
    stdin = io.BytesIO(separator.join([b"photos/b.jpg", odd, b"gone.jpg", b"photos/deep", b""]))
    found = Pictures.of(["-", "-"], stdin)
    assert [os.fsencode(path) for path in found.paths] == [
        b"photos/b.jpg", odd, b"gone.jpg", b"photos/deep/er/c.png",
    ]  # fmt: skip
    assert found.passed_over == 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("photo", "There is no photo: give a picture"),
        ("photos/*.gif", "There is no photos/*.gif"),
        ("photos/deep/*.txt", "none of the 1 files there ends as pictures do"),
        ("empty", "empty"),
        ("https://a.b/c.jpg", "no path on this machine"),
    ],
)
def test_a_source_without_pictures_is_an_error(folder, source, words):
    (folder.parent / "empty").mkdir()
    with pytest.raises(UserError, match=words.replace("*", r"\*")):
        Pictures.of(["photos", source] if words.startswith("There") else [source])


def test_pictures_come_in_order_in_whole_batches_and_bad_ones_with_their_cause(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name, content in (
        ("empty.jpg", b""),
        ("text.jpg", b"<html>"),
        ("cut.png", noise(1, "PNG")[:99]),
    ):
        (tmp_path / name).write_bytes(content)
    for number in range(7):
        (tmp_path / f"{number}.png").write_bytes(coloured((30 * number, 0, 255), number))
    bad = ["pipe.jpg", "empty.jpg", "text.jpg", "cut.png", "folder.jpg", "gone.jpg", "a\0b"]
    names = [*itertools.chain.from_iterable(zip((f"{n}.png" for n in range(7)), bad, strict=True))]
    batches = list(pictures.read(decode, [str(tmp_path / n) for n in names], batch=3))
    assert [batch.pixels.shape for batch in batches] == [(3, 16, 16, 3)] * 2 + [(1, 16, 16, 3)]
    assert [p for b in batches for p in b.paths] == [str(tmp_path / f"{n}.png") for n in range(7)]
    reds = np.concatenate([b.pixels for b in batches])[..., 0].mean((1, 2))
    np.testing.assert_allclose(reds, 30 * np.arange(7), atol=12)
    why = {os.path.basename(path): cause for b in batches for path, cause in b.unreadable}
    assert list(why) == [*bad[:-1], "a\0b"]
    assert why["pipe.jpg"] == "no regular file"
    assert why["folder.jpg"] == "a folder"
    assert why["empty.jpg"] == "empty file"
    assert why["text.jpg"].startswith("no picture: ")
    assert why["gone.jpg"] == "missing file"
    assert sum(map(len, batches)) == len(names)


def test_pictures_that_all_cannot_be_read_are_one_batch_without_pixels(tmp_path):
    (batch,) = pictures.read(decode, ["gone.jpg", "away.jpg"], batch=1)
    assert not len(batch.pixels)
    assert len(batch) == 2


def test_few_batches_are_held_while_a_device_works(tmp_path):
    (tmp_path / "a.jpg").write_bytes(noise())
    lock, decoded = threading.Lock(), [0]

    def counting(content):
        with lock:
            decoded[0] += 1
        return decode(content)

    batches = pictures.read(counting, itertools.repeat(str(tmp_path / "a.jpg"), 10_000), batch=4)
    next(batches)
    next(batches)
    batches.close()
    assert decoded[0] <= 4 * (2 + pictures.AHEAD) + 1


def test_a_file_over_the_limit_is_not_read(tmp_path):
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    with pytest.raises(images.UnreadableImage, match="file over 64 MiB"):
        pictures.content_of(tmp_path / "huge.jpg")
