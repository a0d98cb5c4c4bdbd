"""A column of Parquet that nobody asked for stops nothing, whatever it holds."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import counts, made
from pictures import noise

from otter_jax.data.build.plan import Options
from otter_jax.data.formats import kinds, parquet
from otter_jax.errors import UserError

NS = 1_700_000_000_123_456_789
COLUMNS = {
    "timestamp": (pa.array([NS], pa.timestamp("ns")), "2023-11-14 22:13:20.123456789"),
    "zone": (pa.array([NS // 1000], pa.timestamp("us", tz="Nowhere/Else")), str(NS // 1000)),
    "duration": (pa.array([1], pa.duration("ns")), "1"),
    "date": (pa.array([2**30], pa.date32()), "<value out of range: 1073741824>"),
    "far": (pa.array([3 * 10**17], pa.timestamp("us")), "11476-08-15 05:20:00.000000"),
    "list": (pa.array([[NS]], pa.list_(pa.timestamp("ns"))), ["2023-11-14 22:13:20.123456789"]),
    "struct": (
        pa.array([{"at": NS, "n": 2}], pa.struct([("at", pa.timestamp("ns")), ("n", pa.int64())])),
        {"at": "2023-11-14 22:13:20.123456789", "n": 2},
    ),
    "map": (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), [["a", 1]]),
    "uuid": (pa.array([b"1" * 16], pa.uuid()), "16 bytes"),
    "invalid": (
        pa.StringArray.from_buffers(
            1, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"a\xff")
        ),
        "a\ufffd",
    ),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_that_nobody_asked_for_is_kept_as_json(tmp_path, name):
    column, expected = COLUMNS[name]
    table = pa.table({"image": [noise(0)], "caption": ["an otter"], name: column})
    pq.write_table(table, tmp_path / "t.parquet")
    kept, part = made(tmp_path, kinds.plan_of([str(tmp_path / "t.parquet")], "mine", Options()))
    assert [row["caption"] for row in kept.values()] == ["an otter"]
    assert counts(part) == {}
    assert json.loads(kept["row 0"]["json"]) == {name: expected}


def test_a_broken_column_that_nobody_asked_for_is_left_out_and_said(tmp_path):
    path = tmp_path / "t.parquet"
    words = [f"word {n}" for n in range(50)]
    table = pa.table({"image": [noise(0)] * 50, "caption": words, "notes": ["x" * 9] * 50})
    pq.write_table(table, path, compression="gzip", use_dictionary=False)
    place = pq.read_metadata(path).row_group(0).column(2)
    content = bytearray(path.read_bytes())
    first, size = place.data_page_offset, place.total_compressed_size
    content[first + size // 2 : first + size] = b"\0" * (size - size // 2)
    path.write_bytes(content)
    kept, part = made(tmp_path, kinds.plan_of([str(path)], "mine", Options()))
    assert sorted(row["caption"] for row in kept.values()) == sorted(words)
    assert counts(part) == {"columns that nobody asked for and that cannot be read, left out": 1}
    assert {row["json"] for row in kept.values()} == {"{}"}


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([True]), "'caption' of .* is bool; a caption is a text, a number, or a list"),
        (pa.array([{"a": 1}]), "is struct<a: int64>; a caption is"),
        (pa.array([[["a"]]]), "is list<.*list<.*>; a caption is"),
    ],
)
def test_a_column_that_can_be_no_caption_is_refused_by_its_type(tmp_path, column, words):
    pq.write_table(pa.table({"image": [noise(0)], "caption": column}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=words):
        kinds.plan_of([str(tmp_path / "t.parquet")], "mine", Options())


def test_a_column_that_can_be_no_image_is_refused_by_its_type(tmp_path):
    for column in (pa.array([3]), pa.array([{"url": "x"}]), pa.array([[noise(0)]])):
        pq.write_table(pa.table({"image": column, "caption": ["a"]}), tmp_path / "t.parquet")
        with pytest.raises(UserError, match="an image is bytes, a path, or a struct of `bytes`"):
            kinds.plan_of([str(tmp_path / "t.parquet")], "mine", Options())


@pytest.mark.parametrize(
    "column",
    [
        pa.array([7]), pa.array([[7, 7]]), pa.array(["7"], pa.large_string()),
        pa.array(["7"]).dictionary_encode(), pa.array([["7"]], pa.large_list(pa.string())),
        pa.array([b"7"]),
    ],
)  # fmt: skip
def test_texts_numbers_and_lists_of_them_are_captions_of_every_storage(tmp_path, column):
    pq.write_table(pa.table({"image": [noise(0)], "caption": column}), tmp_path / "t.parquet")
    kept, _ = made(tmp_path, kinds.plan_of([str(tmp_path / "t.parquet")], "mine", Options()))
    assert {row["caption"] for row in kept.values()} == {"7"}


def test_the_wanted_column_twice_is_an_error_and_doubled_names_are_told_apart(tmp_path):
    arrays = [pa.array([noise(0)]), pa.array(["a"]), pa.array(["b"])]
    table = pa.Table.from_arrays(arrays, names=["image", "caption", "caption"])
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(UserError, match="the column 'caption' 2 times"):
        kinds.plan_of([str(tmp_path / "t.parquet")], "mine", Options())
    assert parquet.distinct(["a", "b", "a", "a_2", "a"]) == ["a", "b", "a_2", "a_2_2", "a_3"]


def test_of_tables_that_hold_their_images_one_is_looked_into_before_all_are_read(
    tmp_path, monkeypatch
):
    for n in range(3):
        table = pa.table({"image": [noise(n)], "caption": [f"word {n}"]})
        pq.write_table(table, tmp_path / f"{n}.parquet")
    opened = []
    firsts_in = parquet.firsts_in

    def counted(table, *arguments):
        opened.append(table.name)
        return firsts_in(table, *arguments)

    monkeypatch.setattr(parquet, "firsts_in", counted)
    plan = kinds.plan_of([str(tmp_path)], "mine", Options())
    assert len(plan.units["train"]) == 3
    assert opened == ["0.parquet"]
