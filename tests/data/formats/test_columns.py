"""How a table is written is found out from its beginning; what cannot be is one paragraph."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import counts, made, pairs_of, write_pictures

from otter_jax.data.build.plan import Options
from otter_jax.data.formats import kinds
from otter_jax.data.formats.reading import Reading
from otter_jax.errors import UserError


def planned(tmp_path, name, content, **reading):
    """The plan of a table of this content, beside pictures."""
    write_pictures(tmp_path, 2)
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return kinds.plan_of([str(path)], "mine", Options(), Reading(**reading))


def captions(tmp_path, *table, **reading):
    """{key: caption} of a table, of which nothing is dropped."""
    kept, part = made(tmp_path, planned(tmp_path, *table, **reading))
    assert part["dropped"] == {}
    return {key: row["caption"] for key, row in kept.items()}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", 'image;caption\n0.jpg;a cat, sitting\n1.jpg;"a;b"\n'),
        ("t.csv", "filepath\ttitle\n0.jpg\ta cat, sitting\n1.jpg\ta;b\n"),
        ("t.csv", "image|caption|likes, or not\n0.jpg|a cat, sitting|1\n1.jpg|a;b|2\n"),
        ("t.csv", 'sep=;\r\nimage;caption\r\n0.jpg;a cat, sitting\r\n1.jpg;"a;b"'),
        ("t.csv", "sep=^\nimage^caption\n0.jpg^a cat, sitting\n1.jpg^a;b"),
        ("t.tsv", 'image,caption\n0.jpg,"a cat, sitting"\n1.jpg,a;b\n'),
        ("t.csv", "\ufeffimage;caption\n0.jpg;a cat, sitting\n1.jpg;\"a;b\"\n"),
        ("t.csv", 'image, caption\n0.jpg, "a cat, sitting"\n1.jpg, a;b\n'),
        ("t.csv", '"image","caption"\n"0.jpg","a cat, sitting"\n"1.jpg","a;b"\n'),
        ("t.csv", '"image";"caption"\n"0.jpg";"a cat, sitting"\n"1.jpg";"a;b"\n'),
        ("t.csv", ' Image , CAPTION \n0.jpg,"a cat, sitting"\n1.jpg,a;b\n'),
    ],
)  # fmt: skip
def test_delimiters_marks_spaces_and_capitals_of_the_first_line_are_understood(
    tmp_path, name, content
):
    expected = {"0.jpg": "a cat, sitting", "1.jpg": "a;b"}
    assert captions(tmp_path, name, content) == expected


def test_a_delimiter_that_was_found_out_is_said_and_another_is_taken_at_ones_word(tmp_path):
    plan = planned(tmp_path, "t.csv", "image;caption\n0.jpg;a\n")
    assert "divided at ';'" in plan.origin
    assert plan.details["delimiter"] == ";"
    kept = captions(tmp_path, "t.csv", "image#caption\n0.jpg#a, b\n", delimiter="#")
    assert kept == {"0.jpg": "a, b"}
    with pytest.raises(UserError, match=r"'image#caption', divided at ',' \(--delimiter C"):
        planned(tmp_path, "t.csv", "image#caption\n0.jpg#a\n")
    with pytest.raises(UserError, match=r"--delimiter is for \.csv and \.tsv"):
        planned(tmp_path, "t.jsonl", '{"image": "0.jpg", "caption": "a"}', delimiter=";")


def test_tables_of_one_set_may_differ_and_that_is_said(tmp_path):
    write_pictures(tmp_path, 2)
    (tmp_path / "a.csv").write_text("image,caption\n0.jpg,a\n")
    (tmp_path / "b.csv").write_text("path;text\n1.jpg;b\n")
    plan = kinds.plan_of([str(tmp_path / "*.csv")], "mine", Options())
    assert pairs_of(plan) == [("0.jpg", "a"), ("1.jpg", "b")]
    assert plan.origin == (
        "2 tables (image 'image', caption 'caption'; image 'path', caption 'text'; "
        "divided at ',', ';')"
    )
    assert plan.details["image"] == "image, path"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_utf_16_is_read_by_its_mark(tmp_path, encoding, packed):
    mark = "" if encoding == "utf-16" else "\ufeff"
    content = (mark + 'image,caption\r\n0.jpg,"tschüß\n漢字"\r\n1.jpg,b\r\n').encode(encoding)
    content = gzip.compress(content) if packed else content
    expected = {"0.jpg": "tschüß 漢字", "1.jpg": "b"}
    assert captions(tmp_path, f"t.csv{packed}", content) == expected


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "", "is empty"),
        ("t.json", "[]", "is empty"),
        ("t.csv", '"image,caption\n', "first line of .* cannot be read: unexpected end"),
        ("t.jsonl", "\n\n", "is empty"),
        ("t.csv", "image,caption\n", "no rows in .*t.csv"),
        ("t.csv", "image,caption\n0.jpg,a,b\n", "no rows .*read: t.csv: byte 14 .3 columns"),
        ("t.csv", "image,caption\n0.jpg,a\n".encode("utf-16-le"), "iconv -f utf-16le"),
        ("t.csv", "image,caption\n0.jpg,a\n".encode("utf-16-be"), "iconv -f utf-16be"),
        ("t.csv", b"image,cap\0tion\n0.jpg,a\n", "holds zero bytes, and is no text"),
        ("t.csv", b"\xd0\xcf\x11\xe0\xa1\xb1" + bytes(90), "a workbook of Excel before 2007"),
        ("t.csv", b"SQLite format 3\0" + bytes(90), "a data base of SQLite"),
        ("t.csv", "image,caption\r0.jpg,a\r", "CR alone.*tr "),
        ("t.csv", "image,caption,caption\n0.jpg,a,b\n", "column 'caption' 2 times"),
        ("t.tsv", "image\timage\tcaption\n0.jpg\ta\tb\n", "column 'image' 2 times"),
        ("t.jsonl", '{"image": "0.jpg", "caption": "a", "caption": "b"}', "'caption' 2 times"),
        ("t.jsonl", "not JSON", "first line of .* is no JSON object"),
        ("t.json", '{\n"images": [', "cannot be read"),
        ("t.json", '{"0.jpg": {"caption": "a"}}', "Its columns are: '0.jpg'. Give --image one"),
        ("t.json", '{\n"info": 3, "licenses": []}', "an object with 'info', 'licenses'. A table"),
        ("t.json", "[1, 2]", "no such array"),
        ("t.csv", "version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("t.csv", "\n<!DOCTYPE html>\n<html>", "a web page"),
        ("t.csv", b"PK\3\4...", "a zip archive, or a workbook of Excel"),
        ("t.csv", b"PAR1...", "must end in .parquet"),
        ("t.parquet", b"ARROW1...", "Arrow: write it as Parquet"),
        ("t.parquet", b"PAR1...", "t.parquet cannot be read"),
        ("t.csv", "url,caption\nhttp://there/0.jpg,a\n", "img2dataset does that"),
        ("t.csv", "image,caption\n0.jpg,\n1.jpg,\n", "2 rows and no image with a caption.*empty"),
        ("t.jsonl", '{"image": "0.jpg", "caption": {"en": "a"}}', "caption that is an object"),
        ("t.txt", "image,caption\n0.jpg,a\n", "call it .csv"),
        ("t.xlsx", "", "Save the workbook as .csv"),
        ("t.csv.zst", "", "Unpack it"),
    ],
)
def test_a_table_that_cannot_be_right_is_one_paragraph(tmp_path, name, content, words):
    with pytest.raises(UserError, match=words):
        planned(tmp_path, name, content)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.json"])
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_gzipped_is_known_by_its_content(tmp_path, name, packed):
    text = (
        '[{"image": "0.jpg", "caption": "a"}]' if name == "t.json" else "image,caption\n0.jpg,a\n"
    )
    content = gzip.compress(text.encode()) if packed else text.encode()
    assert captions(tmp_path, name, content) == {"0.jpg": "a"}


def test_of_names_that_differ_in_capitals_the_usual_one_is_taken(tmp_path):
    content = "Image,image,Caption,caption\n1.jpg,0.jpg,A,b\n"
    assert captions(tmp_path, "t.csv", content) == {"0.jpg": "b"}
    plan = planned(tmp_path, "t.jsonl", '{"Image ": "0.jpg", "CAPTION": "a"}', caption="caption")
    assert plan.details["caption"] == "CAPTION"


def test_a_name_that_other_columns_have_twice_stops_nothing_and_loses_nothing(tmp_path):
    kept, _ = made(tmp_path, planned(tmp_path, "t.csv", "image,caption,n,n\n0.jpg,a,1,2\n"))
    assert json.loads(kept["0.jpg"]["json"]) == {"n": "1", "n_2": "2"}
    table = pa.Table.from_arrays(
        [pa.array(["1.jpg"]), pa.array(["b"]), pa.array([1]), pa.array([2])],
        names=["image", "caption", "n", "n"],
    )
    pq.write_table(table, tmp_path / "t.parquet")
    kept, _ = made(tmp_path, kinds.plan_of([str(tmp_path / "t.parquet")], "other", Options()))
    assert json.loads(kept["1.jpg"]["json"]) == {"n": 1, "n_2": 2}


COCO = {
    "info": {},
    "images": [{"id": 7, "file_name": "0.jpg"}, {"id": 8, "file_name": "1.jpg"}],
    "annotations": [
        {"image_id": 7, "id": 1, "caption": "one"},
        {"image_id": 8, "id": 2, "caption": "other"},
        {"image_id": 7, "id": 3, "caption": "two"},
        {"image_id": 9, "id": 4, "caption": "of none"},
    ],
}
COCO["images"].append({"id": 7, "file_name": "same id.jpg"})


@pytest.mark.parametrize("indent", [None, 1])
def test_coco_gives_a_pair_per_annotation(tmp_path, indent):
    plan = planned(tmp_path, "t.json", json.dumps(COCO, indent=indent))
    assert pairs_of(plan) == [("7", "one"), ("7", "two"), ("8", "other")]
    _, part = made(tmp_path, plan)
    assert counts(part) == {"caption without image": 1, "missing caption": 1}


@pytest.mark.parametrize(
    ("name", "indent"), [("t.json", None), ("t.json", 2), ("t.jsonl", 2), ("t.json.gz", None)]
)
def test_an_array_of_objects_is_a_table(tmp_path, monkeypatch, name, indent):
    monkeypatch.setattr("otter_jax.data.formats.arrays.ROWS", 1)
    rows = [{"image": "0.jpg", "caption": "a"}, {"caption": ["b", "c"], "image": "1.jpg"}]
    content = json.dumps(rows, indent=indent).encode()
    content = gzip.compress(content) if name.endswith(".gz") else content
    plan = planned(tmp_path, name, content)
    assert pairs_of(plan) == [("0.jpg", "a"), ("1.jpg", "b"), ("1.jpg", "c")]
    assert len(plan.units["train"]) == 2


def test_lines_of_json_may_be_called_json_and_lack_a_key_in_the_first(tmp_path):
    rows = [{"image": "0.jpg"}, {"image": "1.jpg", "caption": "b"}]
    plan = planned(tmp_path, "t.json", "\n".join(map(json.dumps, rows)))
    kept, part = made(tmp_path, plan)
    assert [row["caption"] for row in kept.values()] == ["b"]
    assert counts(part) == {"missing caption": 1}


def test_a_table_for_evaluation_needs_no_captions(tmp_path):
    content = "image,label\n0.jpg,otter\n1.jpg,bear\n"
    with pytest.raises(UserError, match="no column for the caption"):
        planned(tmp_path, "t.csv", content)
    plan = planned(tmp_path, "t.csv", content, captions=False)
    assert plan.origin.endswith("/t.csv (image 'image', no caption)")
    kept, _ = made(tmp_path, plan)
    assert [json.loads(kept[key]["json"])["label"] for key in ("0.jpg", "1.jpg")] == [
        "otter", "bear",
    ]  # fmt: skip
    assert {row["caption"] for row in kept.values()} == {""}
    rows = '{"image": "0.jpg", "caption": ["a", "b"]}\n{"image": "1.jpg"}'
    assert pairs_of(planned(tmp_path, "t.jsonl", rows)) == [("0.jpg", "a"), ("0.jpg", "b")]
    plan = planned(tmp_path, "t.jsonl", rows, captions=False)
    assert pairs_of(plan) == [("0.jpg", "a"), ("1.jpg", "")]
    rows = '{"image": "0.jpg", "caption": ["a", true, "b"]}\n{"image": "1.jpg", "caption": true}'
    _, part = made(tmp_path / "more", planned(tmp_path, "t.jsonl", rows, captions=False))
    assert counts(part) == {
        "caption that is true or false, no text": 1,
        "further captions of a picture, left out by --nocaptions": 1,
        "picture without caption, kept": 1,
    }
