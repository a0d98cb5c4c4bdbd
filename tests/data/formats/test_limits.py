"""What would take memory or time out of proportion is named, and what is beside it is kept."""

import base64
import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import random
import struct
import tarfile
import time
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import counts, made
from pictures import noise
from tars import write_tar

from otter_jax.data.build import plan
from otter_jax.data.build.plan import Options
from otter_jax.data.build.report import Tally
from otter_jax.data.formats import arrays, cells, footer, kinds, lines, packed, parquet, rows
from otter_jax.data.in_flight import in_threads
from otter_jax.errors import UserError

GOOD = base64.b64encode(noise(1)).decode()


def of(path, name="mine"):
    return kinds.plan_of([str(path)], name, Options())


def kept_and_told(tmp_path, path):
    kept, part = made(tmp_path, of(path))
    return [row["caption"] for row in kept.values()], counts(part)


@pytest.fixture
def short_lines(monkeypatch):
    """Lines of at most 10,000 bytes."""
    for module in (lines, rows):
        monkeypatch.setattr(module, "LONGEST", 10_000)


def test_a_line_that_is_too_long_is_a_row_that_cannot_be_read(tmp_path, short_lines):
    long = "a" * 25_000
    for kind, before, middle in (
        ("csv", "image,caption\n", f"{GOOD},{long}\n"),
        ("csv", "image,caption\n", f'{GOOD},"x\n{long}"\n'),
        ("tsv", "image\tcaption\n", f"{GOOD}\t{long}\n"),
        ("jsonl", "", json.dumps({"image": GOOD, "caption": long}) + "\n"),
    ):
        cut = {"csv": ",", "tsv": "\t"}.get(kind)
        first, last = (
            f"{GOOD}{cut}{c}\n" if cut else json.dumps({"image": GOOD, "caption": c}) + "\n"
            for c in "ab"
        )
        path = tmp_path / f"{kind}{len(middle)}.{kind}"
        path.write_text(before + first + middle + last)
        packed_path = tmp_path / f"{path.name}.gz"
        packed_path.write_bytes(gzip.compress(path.read_bytes()))
        for each in (path, packed_path):
            tally = Tally()
            units = of(each).units["train"]
            records = itertools.chain.from_iterable(unit.read(tally) for unit in units)
            assert [record.fields["caption"] for record in records] == ["a", "b"], each
            told = tally.found["dropped"]["row that cannot be read"]
            assert "a line over 32 MiB" in told["first"][0]


def test_a_packed_table_is_unpacked_once_whatever_quotes_are_open(tmp_path, monkeypatch):
    """A row that ends nowhere is read again, line by line: from memory, not from the beginning."""
    path = tmp_path / "t.csv.gz"
    text = f"image,caption\n{GOOD},x\n" + '"open\n' * 5_000
    path.write_bytes(gzip.compress(text.encode()))
    units = of(path).units["train"]
    begun = []
    stream = packed._stream
    monkeypatch.setattr(packed, "_stream", lambda *a: begun.append(a) or stream(*a))
    tally = Tally()
    assert len([record for unit in units for record in unit.read(tally)]) == 1
    assert tally.found["dropped"]["row that cannot be read"]["count"] == 5_000
    assert len(begun) <= 2


def test_lines_go_back_to_any_of_the_last_ones(tmp_path):
    found = lines.Lines(io.BytesIO(b"".join(b"%d\n" % n for n in range(40))))
    some = list(itertools.islice(found, 30))
    found.back_to(2 * 10 + 3 * 10)  # where the line 20 begins
    assert next(iter(found)) == "20\n"
    assert some[20] == "20\n"
    assert list(found)[-1] == "39\n"


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz", "zst"])
def test_what_unpacks_to_far_more_than_its_size_is_left_there(tmp_path, monkeypatch, packing):
    monkeypatch.setattr(packed, "FREE", 1 << 20)
    pack = {
        "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress,
        "zst": lambda content: pa.compress(content, "zstd", asbytes=True),
    }[packing]  # fmt: skip
    write_tar(tmp_path / "a.tar", [("a.jpg", noise(1)), ("a.txt", "x"), ("b.bin", bytes(20 << 20))])
    path = tmp_path / f"b.tar.{packing}"
    path.write_bytes(pack((tmp_path / "a.tar").read_bytes()))
    captions, told = kept_and_told(tmp_path, path)
    assert captions == ["x"]
    assert told == {"rest of a broken tar": 1}
    if packing == "gz":
        table = tmp_path / "t.csv.gz"
        table.write_bytes(pack(f"image,caption\n{GOOD},x\n".encode() + b"a" * (20 << 20)))
        _, part = made(tmp_path, of(table, "table"))
        assert counts(part) == {"rest of a broken file": 1}


def test_xz_is_not_given_the_memory_that_its_header_asks_for(tmp_path):
    content = bytearray(lzma.compress(bytes(10_000)))
    content[content.find(b"\x21\x01", 12) + 2] = 37  # a dictionary of 1.5 GiB
    end = 12 + 4 * (content[12] + 1) - 4
    content[end : end + 4] = struct.pack("<I", zlib.crc32(content[12:end]))
    (tmp_path / "a.tar.xz").write_bytes(content)
    (unit,) = of(tmp_path / "a.tar.xz").units["train"]
    tally = Tally()
    assert list(unit.read(tally)) == []
    (entry,) = tally.found["dropped"].values()
    assert "Memory usage limit" in entry["first"][0]


def test_long_texts_and_names_in_a_tar_are_named(tmp_path):
    long = "x" * (5 << 20)
    path = tmp_path / "a.tar"
    write_tar(path, [("a.jpg", noise(1)), ("a.txt", "x"), ("b.jpg", noise(2)), ("b.txt", long),
                     ("c.jpg", noise(3)), ("c.json", long)])  # fmt: skip
    captions, told = kept_and_told(tmp_path, path)
    assert captions == ["x"]
    assert told == {"text of over 4 MiB": 2, "image without caption": 2}
    with tarfile.open(path, "a", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("n" * (1 << 20)))
    tally = Tally()
    (unit,) = of(path).units["train"]
    assert len(list(unit.read(tally))) == 1
    assert "a name or attributes" in tally.found["dropped"]["rest of a broken tar"]["first"][0]


@pytest.mark.parametrize("column", ["caption", "other"])
def test_parquet_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path, monkeypatch, column):
    monkeypatch.setattr(parquet, "FREE", 1 << 20)
    monkeypatch.setattr(parquet, "DICTIONARY", 1 << 10)
    for number, values in enumerate((["x", "y" * (4 << 20)], ["y" * 600_000] * 9)):
        columns = {"image": [noise(n) for n in range(len(values))], "caption": ["x"] * len(values)}
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table(columns | {column: values}), path, compression="zstd")
        if column == "caption":
            with pytest.raises(UserError, match="column 'caption' unpacks to"):
                of(path)
        else:
            _, part = made(tmp_path, of(path, f"set{number}"))
            assert counts(part)["columns that nobody asked for and that cannot be read, left out"]


def test_parquet_of_large_cells_is_decoded_a_few_rows_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "HELD", 1 << 20)
    path = tmp_path / "t.parquet"
    images = [noise(n) + os.urandom(300_000) for n in range(20)]
    pq.write_table(pa.table({"image": images, "caption": ["x"] * 20}), path)
    sizes = [batch.num_rows for batch in parquet._batches(path, 0, None)]
    assert sum(sizes) == 20
    assert max(sizes) <= 3


def test_json_of_too_many_values_or_bytes_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    (tmp_path / "t.json").write_text(json.dumps([{"image": GOOD, "caption": "x", "a": [[]] * 50}]))
    monkeypatch.setattr(arrays, "ARRAY", 40)
    with pytest.raises(UserError, match="it holds over 40 values"):
        of(tmp_path / "t.json")
    monkeypatch.setattr(arrays, "LARGEST", 100)
    with pytest.raises(UserError, match="write it as lines of JSON"):
        of(tmp_path / "t.json")
    with pytest.raises(ValueError, match="over 10 values"):
        arrays.parsed("[" + "[]," * 20 + "1]", 10)
    assert arrays.parsed("[1, 2]", 10) == [1, 2]


def test_captions_that_are_nearly_a_list_take_no_time():
    began = time.process_time()
    blanks, items, slashes = " " * 100_000, "'a' " * 50_000, "\\" * 100_001
    for text in (f"['a'{blanks}x]", f"[{items}x]", f"['a{slashes}]"):
        assert cells.captions_of(text)[0] == [text]
    found, _, _ = cells.captions_of("[" + "'a', " * 20_000 + "'b']")
    assert found == ["a"] * (plan.MOST_CAPTIONS + 1)
    found, _, _ = cells.captions_of(["a"] * 100_000)
    assert len(found) == 100_000
    assert time.process_time() - began < 5


def test_a_picture_has_at_most_a_thousand_captions_and_little_beside(tmp_path, monkeypatch):
    (tmp_path / "t.jsonl").write_text(
        json.dumps({"image": GOOD, "caption": [str(n) for n in range(1_500)]}) + "\n"
        + json.dumps({"image": GOOD, "caption": "x", "more": "y" * 9_000}) + "\n"
    )  # fmt: skip
    monkeypatch.setattr(plan, "MAX_JSON", 8_000)
    tally = Tally()
    (unit,) = of(tmp_path / "t.jsonl").units["train"]
    found = list(unit.read(tally))
    assert len(found) == 1_001
    assert found[-1].fields["json"] == "{}"
    assert list(tally.found["changed"]) == [
        "captions of a picture beyond 1,000, left out",
        "what came with a picture, over 4 MiB, left out",
    ]


def test_threads_are_given_so_many_bytes_ahead():
    given, most = [], [0]

    def items():
        for n in range(30):
            given.append(n)
            yield n

    for done, (item, _) in enumerate(
        in_threads(lambda n: n, items(), ahead=20, size=lambda n: 10, most=45)
    ):
        assert item == done
        most[0] = max(most[0], len(given) - done)
    assert len(given) == 30
    assert most[0] == 5


def test_what_a_footer_says_is_what_pyarrow_says(tmp_path):
    path = tmp_path / "t.parquet"
    columns = {
        "image": [{"bytes": noise(n), "path": str(n)} for n in range(50)],
        "caption": [["a", "b"], None] * 25, "n": range(50), "bad": [b"\xff", None] * 25,
    }  # fmt: skip
    for options in ({}, {"use_dictionary": False}, {"write_statistics": False}):
        pq.write_table(pa.table(columns), path, row_group_size=20, **options)
        about, found = pq.read_metadata(path), footer.groups_of(path)
        assert len(found) == about.num_row_groups == 3
        for number, group in enumerate(found):
            theirs = about.row_group(number)
            assert group.rows == theirs.num_rows
            for i, chunk in enumerate(group.chunks):
                column = theirs.column(i)
                assert ".".join(chunk.path) == column.path_in_schema
                assert chunk.values == column.num_values
                assert chunk.unpacked == column.total_uncompressed_size
                assert chunk.packed == column.total_compressed_size
                assert chunk.dictionary == (column.dictionary_page_offset or 0)


def test_a_damaged_footer_ends_in_an_error_and_never_the_process(tmp_path):
    """pyarrow's own accessors of a column's sizes may call abort(): found by tests/fuzz.py."""
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [noise(n) for n in range(9)], "caption": ["x"] * 9}), path)
    content, rng = path.read_bytes(), random.Random(0)
    length = int.from_bytes(content[-8:-4], "little")
    for _ in range(300):
        damaged = bytearray(content)
        damaged[len(content) - 8 - rng.randrange(length)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            for unit in of(path).units["train"]:
                list(unit.read(Tally()))
        except (UserError, OSError, pa.ArrowException):
            pass
    for claim in (0, 1, 2**31, 2**32 - 1):
        path.write_bytes(content[:-8] + claim.to_bytes(4, "little") + b"PAR1")
        with pytest.raises(UserError):
            of(path)
