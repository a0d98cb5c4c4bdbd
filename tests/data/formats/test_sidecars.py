"""A folder of pictures with captions beside them becomes pairs."""

import json
import os

from making import counts, made, write_pictures
from pictures import noise

from otter_jax.data.build.plan import Options
from otter_jax.data.build.report import Tally
from otter_jax.data.formats import kinds, sidecars
from otter_jax.data.formats.members import MAX_TEXT


def test_a_folder_of_pictures_with_captions_beside_them(tmp_path):
    root = tmp_path / "tree"
    files = {
        "a.jpg": noise(1), "a.txt": b"first", "b.PNG": noise(2, "PNG"),
        "b.json": b'{"caption": "2"}',
        "in/c.webp": noise(3, "WEBP"), "in/c.txt": b"third", "in/c.json": b'{"tags": ["x"]}',
        "alone.jpg": noise(4), "words.txt": b"no picture", "a.png": noise(5, "PNG"),
        ".hidden/d.jpg": noise(6), "readme.md": b"no",
    }  # fmt: skip
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    kept, part = made(tmp_path, kinds.plan_of([str(root)], "mine", Options()))
    assert {key: row["caption"] for key, row in kept.items()} == {
        "a": "first", "b": "2", "in/c": "third"
    }  # fmt: skip
    assert json.loads(kept["in/c"]["json"]) == {"tags": ["x"]}
    assert kept["a"]["image"] == noise(1)
    assert counts(part) == {
        "second image or caption of a name": 1,
        "image without caption": 1,
        "caption without image": 1,
    }


def test_links_are_followed_once_and_parquet_beside_pictures_is_passed_over(tmp_path):
    root, far = tmp_path / "tree", tmp_path / "far"
    for folder, number in ((root, 0), (far, 1)):
        write_pictures(folder, 2)
        (folder / f"{number}.txt").write_text(f"number {number}")
    (root / "link").symlink_to(far)
    (far / "back").symlink_to(root)
    (root / "00000.parquet").write_bytes(b"img2dataset's")
    kept, _ = made(tmp_path, kinds.plan_of([str(root)], "mine", Options()))
    assert sorted(kept) == ["0", "link/1"]


def test_a_large_folder_is_read_in_slices_and_none_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(sidecars, "FILES", 5)
    write_pictures(tmp_path / "tree", 20)
    for n in range(20):
        (tmp_path / "tree" / f"{n}.txt").write_text(f"number {n}")
    units = kinds.plan_of([str(tmp_path / "tree")], "mine", Options()).units["train"]
    assert len(units) == 8
    read = [record.fields["key"] for unit in units for record in unit.read(Tally())]
    assert sorted(read, key=int) == [str(n) for n in range(20)]


def test_what_is_no_file_is_never_opened_and_links_that_lead_nowhere_are_named(tmp_path):
    root = tmp_path / "tree"
    names = write_pictures(root, 1)
    for name, target in (("far", "nowhere"), ("round", "round.jpg"), ("zero", "/dev/zero")):
        (root / f"{name}.jpg").symlink_to(target)
        (root / f"{name}.txt").write_text("x")
    os.mkfifo(root / "pipe.jpg")
    (root / "0").mkdir()
    (root / "0.txt").write_text("beside a folder of its name")
    kept, part = made(tmp_path, kinds.plan_of([str(root)], "mine", Options()))
    assert [f"{key}.jpg" for key in kept] == names
    assert counts(part) == {"missing file": 1, "unreadable file": 1, "caption without image": 1}


def test_names_are_the_same_however_unicode_composes_them(tmp_path):
    (tmp_path / "e\u0301.jpg").write_bytes(noise())
    (tmp_path / "\u00e9.txt").write_text("x")
    (unit,) = kinds.plan_of([str(tmp_path)], "mine", Options()).units["train"]
    (record,) = unit.read(Tally())
    assert record.image.read_bytes() == noise()


def test_a_caption_of_over_4_mib_is_named_and_not_read(tmp_path):
    write_pictures(tmp_path / "tree", 2)
    for name, size in (("0.txt", MAX_TEXT + 1), ("1.txt", 1)):
        with open(tmp_path / "tree" / name, "wb") as file:
            file.write(b"x")
            file.truncate(size)  # takes no space
    tally = Tally()
    (unit,) = kinds.plan_of([str(tmp_path / "tree")], "mine", Options()).units["train"]
    assert [record.fields["key"] for record in unit.read(tally)] == ["1"]
    assert tally.found["dropped"] == {"text of over 4 MiB": {"count": 1, "first": ["0.txt"]}}
