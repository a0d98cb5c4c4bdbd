"""A cell holds an image in one of several forms, and one caption or several."""

import base64
import csv
import decimal
import json
import pathlib
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import counts, made, pairs_of, write_pictures
from pictures import noise

from otter_jax.data.build.plan import Options
from otter_jax.data.formats import kinds
from otter_jax.data.formats.cells import captions_of, image_of, short
from otter_jax.errors import UserError


def test_several_captions_of_a_picture_are_a_pair_each_in_every_kind_of_table(tmp_path):
    write_pictures(tmp_path, 2)
    pq.write_table(
        pa.table({"image": ["0.jpg", "1.jpg"], "captions": [["a", "b"], ["c"]]}),
        tmp_path / "t.parquet",
    )
    rows = [{"image": "0.jpg", "captions": ["a", "b"]}, {"image": "1.jpg", "captions": "c"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [("image", "captions"), ("0.jpg", json.dumps(["a", "b"])), ("1.jpg", "c")]
        )
    for kind in ("parquet", "jsonl", "csv"):
        plan = kinds.plan_of([str(tmp_path / f"t.{kind}")], kind, Options())
        assert pairs_of(plan) == [("0.jpg", "a"), ("0.jpg", "b"), ("1.jpg", "c")]
        kept, part = made(tmp_path, plan)
        assert {key: row["image"] for key, row in kept.items()} == {
            "0.jpg": noise(0), "1.jpg": noise(1),
        }  # fmt: skip
        assert part["kept"] == 3
        read = "caption that is a list written as text, read as its captions"
        assert counts(part) == ({read: 1} if kind == "csv" else {})


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ('["a", "b"]', ["a", "b"]),  # JSON
        ("['a dog', \"it's\"]", ["a dog", "it's"]),  # Python
        ("['a' 'b'\n 'c']", ["a", "b", "c"]),  # NumPy
        (' ["a\\"b"] ', ['a"b']),
        ("[Photo]", None),
        ('["a", null, NaN, "b"]', ["a", "b"]),
        ("['a', None, nan]", ["a"]),
        ("[1, 2]", None),
        ("[nan b]", None),
        ("['a', b]", None),
        ('["a"] and ["b"]', None),
        ("[" * 5000 + "]" * 5000, None),
    ],
)
def test_a_list_written_as_text_is_its_captions_and_all_else_is_a_caption(text, texts):
    found, why, note = captions_of(text)
    assert found == (texts or [text])
    assert why == ""
    assert bool(note) is bool(texts)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"), (2.5, "2.5"), (np.float32(1.5), "1.5"), (np.int64(4), "4"),
        (decimal.Decimal("1.10"), "1.10"),
    ],
)  # fmt: skip
def test_a_number_is_a_caption_and_counted(value, text):
    assert captions_of(value) == ([text], "", "caption that is a number, taken as text")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (True, "caption that is true or false, no text"),
        (np.bool_(False), "caption that is true or false, no text"),
        ({"a": 1}, "caption that is an object, no text"),
        ([["a"]], "caption that is a list of lists, no text"),
        (None, "missing caption"),
        (float("nan"), "missing caption"),
        (float("inf"), "missing caption"),
        (np.float32("nan"), "missing caption"),
        (decimal.Decimal("nan"), "missing caption"),
        ([], "missing caption"),
        ([None], "missing caption"),
        ("[]", "missing caption"),  # as pandas and json write an empty list
        ("[null]", "missing caption"),
        ("\\N", "missing caption"),  # as MySQL, Hive and PostgreSQL write null
    ],
)
def test_what_is_no_caption_is_named_by_what_it_is(value, why):
    assert captions_of(value) == ([], why, "")


def test_of_a_list_only_what_is_no_caption_is_lost():
    assert captions_of(["a", True, None, "b"]) == (
        ["a", "b"], "caption that is true or false, no text", "",
    )  # fmt: skip
    assert captions_of(np.array(["a", "b"])) == (["a", "b"], "", "")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_pictures_in_base64_are_read_and_never_printed(tmp_path, kind):
    plain = base64.b64encode(noise(0)).decode()
    wrapped = base64.encodebytes(noise(1)).decode()
    cells = [
        plain, wrapped, f"data:image/jpeg;base64,{plain}", f"b'{plain}'",
        base64.urlsafe_b64encode(noise(2)).decode().rstrip("="),
        "data:image/png,none", base64.b64encode(b"no picture" * 900).decode(), "long.words " * 900,
        repr(noise(3)), "http://there/0.jpg",
    ]  # fmt: skip
    texts = [f"caption {n}" for n in range(len(cells))]
    path = tmp_path / f"t.{kind}"
    if kind == "csv":
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([("image", "caption"), *zip(cells, texts, strict=True)])
    elif kind == "jsonl":
        rows = [{"image": c, "caption": t} for c, t in zip(cells, texts, strict=True)]
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.table({"image": cells, "caption": texts}), path)
    kept, part = made(tmp_path, kinds.plan_of([str(path)], "mine", Options()))
    images = {row["caption"]: row["image"] for row in kept.values()}
    pictures = [noise(0), noise(1), noise(0), noise(0), noise(2)]
    assert images == dict(zip(texts, pictures, strict=False))
    assert counts(part) == {
        "data: URI that is no picture in base64": 1,
        "unreadable image": 1,
        "text of over 4,096 characters instead of an image": 1,
        "image that is bytes as Python prints them: write base64": 1,
        "URL instead of an image: download them first": 1,
    }
    said = json.dumps(part)
    assert plain[:40] not in said
    assert len(said) < 3000
    assert not any(plain[:40] in row["key"] + row["json"] for row in kept.values())


def test_a_struct_may_have_its_bytes_in_base64_and_gives_its_path_as_key(tmp_path):
    value = {"bytes": base64.b64encode(noise(0)).decode(), "path": "a/0.jpg"}
    assert image_of(value, tmp_path) == (noise(0), "a/0.jpg", "")
    assert image_of({"bytes": None, "path": "0.jpg"}, tmp_path)[0] == tmp_path / "0.jpg"


def test_a_path_is_the_file_that_its_writer_meant(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PICTURES", str(tmp_path / "p"))
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a b.jpg").write_bytes(noise(0))
    (tmp_path / "$5.jpg").write_bytes(noise(0))
    (tmp_path / "p" / unicodedata.normalize("NFD", "é.jpg")).write_bytes(noise(0))
    for text in (
        "p/a b.jpg", "p\\a b.jpg", " p/a b.jpg ", "p/\u00e9.jpg", "~/p/a b.jpg",
        "$HOME/p/a b.jpg", "${PICTURES}/a b.jpg",
        f"file://{tmp_path}/p/a%20b.jpg", str(tmp_path / "p" / "a b.jpg"), "$5.jpg",
    ):  # fmt: skip
        found = image_of(text, tmp_path)
        assert isinstance(found.image, pathlib.Path)
        assert found.image.exists(), text
        assert found.path == text


def test_a_device_or_folder_in_place_of_a_picture_is_not_read(tmp_path):
    write_pictures(tmp_path, 1)
    (tmp_path / "t.csv").write_text("image,caption\n/dev/zero,a\n.,b\n0.jpg,c\n")
    kept, part = made(tmp_path, kinds.plan_of([str(tmp_path / "t.csv")], "mine", Options()))
    assert list(kept) == ["0.jpg"]
    assert counts(part) == {"unreadable file": 2}


def test_what_is_no_image_is_named_by_what_it_is(tmp_path):
    assert image_of([1, 2], tmp_path).why == "image that is a list, not a path or bytes"
    assert image_of({"url": "x"}, tmp_path).why == "image that is an object, not a path or bytes"
    assert image_of(3, tmp_path).why == "image that is a number, not a path or bytes"
    assert image_of(float("nan"), tmp_path).why == "caption without image"


def test_names_in_a_report_are_short_and_keep_both_ends():
    assert short("short\nname") == "short name"
    long = short("a" * 500 + "z" * 500)
    assert len(long) <= 120
    assert (long[0], long[-1]) == ("a", "z")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gone.jpg", "looked for at .*gone.jpg: paths are relative to"),
        ("inner.jpg", "It is there with --root .*/pictures"),
        ("sibling.jpg", "It is there with --root .*/beside"),
        ("/nowhere/0.jpg", "looked for at /nowhere/0.jpg. Mend the paths"),
        (r"C:\photos\0.jpg", r"looked for at .*C:\\photos\\0.jpg. Mend the paths"),
        ("0", "There is one with .jpg at its end"),
        ("0.JPG", "There is 0.jpg: write the names with the capitals"),
        ("http://there/0.jpg", "1 row and no image. The first: URL .*img2dataset"),
        ("", "no image. The first: caption without image. Is another column meant"),
    ],
)
def test_a_table_none_of_whose_images_is_there_is_one_paragraph(tmp_path, text, words):
    home = tmp_path / "table"
    for folder in (home / "pictures", tmp_path / "beside"):
        folder.mkdir(parents=True)
    write_pictures(home, 1)
    (home / "pictures" / "inner.jpg").write_bytes(noise(0))
    (tmp_path / "beside" / "sibling.jpg").write_bytes(noise(0))
    (home / "t.csv").write_text(f"image,caption\n{text},a\n")
    with pytest.raises(UserError, match=words):
        kinds.plan_of([str(home / "t.csv")], "mine", Options())
    (home / "t.csv").write_text(f"image,caption\n{text},a\n0.jpg,b\n")
    assert kinds.plan_of([str(home / "t.csv")], "mine", Options()).units


def test_a_root_is_proposed_only_if_it_has_the_first_files_of_the_table_and_not_one_of_a_name(
    tmp_path,
):
    (tmp_path / "table").mkdir()
    write_pictures(tmp_path / "another set", 1)
    (tmp_path / "table" / "t.csv").write_text("image,caption\n0.jpg,a\n1.jpg,b\n")
    with pytest.raises(UserError, match="paths are relative to .*. Give another folder"):
        kinds.plan_of([str(tmp_path / "table" / "t.csv")], "mine", Options())
    write_pictures(tmp_path / "images", 2)
    with pytest.raises(UserError, match="It is there with --root .*/images"):
        kinds.plan_of([str(tmp_path / "table" / "t.csv")], "mine", Options())
