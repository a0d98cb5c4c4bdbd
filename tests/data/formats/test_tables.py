"""Tables of every kind become pairs; what is wrong with a row costs that row alone."""

import csv
import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from making import counts, made, write_pictures
from pictures import encoded, noise

from otter_jax.data.build.parts import image_to_store
from otter_jax.data.build.plan import Options
from otter_jax.data.build.report import Tally
from otter_jax.data.formats import kinds, tables
from otter_jax.errors import UserError

CAPTIONS = ["an otter", "a river, and a bank", 'she said "no"', "NA", "null", "tschüß 漢字"]


def write_csv(path, files):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption", "likes"])
        writer.writerows((name, text, 3) for name, text in zip(files, CAPTIONS, strict=True))


def write_tsv(path, files):
    rows = [f"{name}\t{text}\t3" for name, text in zip(files, CAPTIONS, strict=True)]
    path.write_text("\n".join(["file_name\tcaption\tlikes", *rows, ""]), encoding="utf-8")


def write_jsonl(path, files):
    rows = zip(files, CAPTIONS, strict=True)
    lines = [json.dumps({"file_name": n, "caption": t, "likes": 3}) for n, t in rows]
    path.write_text("\n".join(lines), encoding="utf-8")


def write_gz(path, files):
    plain = path.with_suffix("")
    write_csv(plain, files)
    path.write_bytes(gzip.compress(plain.read_bytes()))


def write_parquet(path, files):
    table = pa.table({"file_name": files, "caption": CAPTIONS, "likes": [3] * len(files)})
    pq.write_table(table, path, row_group_size=4)


WRITERS = {
    "csv": write_csv, "tsv": write_tsv, "jsonl": write_jsonl, "csv.gz": write_gz,
    "parquet": write_parquet,
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_table_gives_the_same_pairs(tmp_path, kind):
    files = write_pictures(tmp_path / "My Pictures é")
    path = tmp_path / "My Pictures é" / f"t.{kind}"
    WRITERS[kind](path, files)
    kept, part = made(tmp_path, kinds.plan_of([str(path)], "mine", Options()))
    assert {key: row["caption"] for key, row in kept.items()} == dict(
        zip(files, CAPTIONS, strict=True)
    )
    assert all(row["image"] == noise(int(key[0])) for key, row in kept.items())
    assert counts(part) == {}
    assert part["read"] == part["kept"] == len(CAPTIONS)
    assert {int(json.loads(row["json"])["likes"]) for row in kept.values()} == {3}


def test_parquet_holds_bytes_or_what_hugging_face_writes(tmp_path):
    flat = pa.table({"image": [noise(1), noise(2), None], "text": ["one", "two", "none"]})
    pq.write_table(flat, tmp_path / "flat.parquet")
    kept, part = made(tmp_path, kinds.plan_of([str(tmp_path / "flat.parquet")], "flat", Options()))
    assert {row["caption"]: row["image"] for row in kept.values()} == {
        "one": noise(1),
        "two": noise(2),
    }
    assert counts(part) == {"caption without image": 1}
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    structs = [{"bytes": noise(n), "path": f"{n}.jpg"} for n in range(3)]
    pq.write_table(pa.table({"image": structs, "caption": list("abc")}), folder / "train.parquet")
    kept, _ = made(tmp_path, kinds.plan_of([str(tmp_path / "hub")], "hub", Options()))
    assert {key: row["caption"] for key, row in kept.items()} == {
        "0.jpg": "a",
        "1.jpg": "b",
        "2.jpg": "c",
    }


def test_what_is_wrong_with_a_row_is_counted_and_named_and_stops_nothing(tmp_path):
    write_pictures(tmp_path, 2)
    (tmp_path / "torn.jpg").write_bytes(noise()[:-200])
    (tmp_path / "zero.jpg").write_bytes(b"")
    (tmp_path / "small.png").write_bytes(encoded(np.zeros((9, 20, 3)), "PNG"))
    rows = [
        "0.jpg,good",
        "torn.jpg,cut",
        "zero.jpg,none",
        "gone.jpg,not there",
        "http://there/x.jpg,far",
        "1.jpg,",
        "1.jpg,too,many",
        "",
        ",no image",
        "small.png,small",
        '1.jpg,"two\nlines"',
        "0.jpg,good",
    ]
    (tmp_path / "t.csv").write_bytes(("image,caption\r\n" + "\r\n".join(rows)).encode())
    options = Options(min_size=10, keep_duplicates=False)
    kept, part = made(tmp_path, kinds.plan_of([str(tmp_path / "t.csv")], "mine", options))
    assert {row["caption"] for row in kept.values()} == {"good", "two lines"}
    assert counts(part) == {
        "unreadable image": 1,
        "empty file": 1,
        "missing file": 1,
        "URL instead of an image: download them first": 1,
        "empty caption": 1,
        "row that cannot be read": 1,
        "caption without image": 1,
        "image too small": 1,
        "duplicate": 1,
        "caption cleaned of control characters": 1,
    }
    assert part["dropped"]["missing file"]["first"] == ["t.csv: gone.jpg"]
    assert part["read"] == 11


def test_a_long_table_is_cut_between_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RANGE", 200)
    files = write_pictures(tmp_path, 3)
    rows = [f'{files[n % 3]},"row {n}\nand, ""more"" of it"' for n in range(100)]
    (tmp_path / "t.csv").write_text("\ufeffimage,caption\n" + "\n".join(rows), encoding="utf-8")
    plan = kinds.plan_of([str(tmp_path / "t.csv")], "mine", Options())
    units = plan.units["train"]
    assert 10 < len(units) < 100
    records = [record for unit in units for record in unit.read(Tally())]
    assert [r.fields["caption"] for r in records] == [
        f'row {n} and, "more" of it' for n in range(100)
    ]


@pytest.mark.parametrize("later", ["no more quotes", 'he says ""hi""', '"quoted"'])
def test_an_unclosed_quote_costs_its_own_row_alone(tmp_path, monkeypatch, later):
    monkeypatch.setattr(tables, "RANGE", 1000)
    files = write_pictures(tmp_path, 1)
    rows = [f"{files[0]},row {n}" for n in range(500)]
    rows[100], rows[300] = f'{files[0]},"never closed', f"{files[0]},{later}"
    (tmp_path / "t.csv").write_text("image,caption\n" + "\n".join(rows))
    tally = Tally()
    units = kinds.plan_of([str(tmp_path / "t.csv")], "mine", Options()).units["train"]
    read = [record.fields["caption"] for unit in units for record in unit.read(tally)]
    assert len(read) == 499
    assert not {"row 99", "row 101", "row 499"} - set(read)
    assert tally.found["dropped"]["row that cannot be read"]["count"] == 1


@pytest.mark.parametrize("kind", ["csv.gz", "parquet"])
def test_a_table_cut_in_the_middle_keeps_what_came_before_or_says_so(tmp_path, kind):
    files = write_pictures(tmp_path, 1) * 4000
    path = tmp_path / f"t.{kind}"
    if kind == "csv.gz":
        rows = "".join(f"{name},row {np.random.rand()}\n" for name in files)
        path.write_bytes(gzip.compress(b"image,caption\n" + rows.encode())[:-20_000])
        _, part = made(tmp_path, kinds.plan_of([str(path)], "mine", Options()))
        assert 100 < part["kept"] < 4000
        assert counts(part)["rest of a broken file"] == 1
    else:
        pq.write_table(pa.table({"image": files, "caption": files}), path)
        path.write_bytes(path.read_bytes()[:-50])
        with pytest.raises(UserError, match="cannot be read"):
            kinds.plan_of([str(path)], "mine", Options())


def test_columns_that_hold_no_text_are_refused(tmp_path):
    pq.write_table(pa.table({"image": ["a"], "caption": [True]}), tmp_path / "n.parquet")
    with pytest.raises(UserError, match="'caption' of .* is bool; a caption is a text"):
        kinds.plan_of([str(tmp_path / "n.parquet")], "mine", Options())
    write_pictures(tmp_path, 1)
    pq.write_table(pa.table({"image": ["0.jpg"], "caption": [b"caf\xe9"]}), tmp_path / "b.parquet")
    kept, part = made(tmp_path, kinds.plan_of([str(tmp_path / "b.parquet")], "mine", Options()))
    assert kept["0.jpg"]["caption"] == "caf\ufffd"
    assert "caption with U+FFFD, for bytes that are (or once were) no UTF-8" in part["changed"]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@example(b"file://[0.jpg,x\n", "csv")
@given(st.binary(max_size=400), st.sampled_from(["csv", "tsv", "jsonl"]))
def test_no_bytes_break_a_reader_of_tables(tmp_path_factory, junk, kind):
    folder = tmp_path_factory.mktemp("junk")
    write_pictures(folder, 1)
    head = {
        "jsonl": b'{"image": "0.jpg", "caption": "x"}\n',
        "csv": b"image,caption\n0.jpg,x\n",
        "tsv": b"image\tcaption\n0.jpg\tx\n",
    }[kind]
    (folder / f"t.{kind}").write_bytes(head + junk)
    tally = Tally()
    for unit in kinds.plan_of([str(folder / f"t.{kind}")], "mine", Options()).units["train"]:
        for record in unit.read(tally):
            json.dumps(record.fields).encode()
            record.fields["caption"].encode()
            image_to_store(record, Options())


def test_captions_of_several_lines_in_tsv_are_whole_wherever_units_are_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RANGE", 30)
    files = write_pictures(tmp_path, 6)
    text = "".join(f'{name}\t"line one of {name}\nand ""two"""\n' for name in files)
    (tmp_path / "t.tsv").write_text("image\tcaption\n" + text)
    plan = kinds.plan_of([str(tmp_path / "t.tsv")], "mine", Options())
    assert len(plan.units["train"]) == 6
    kept, part = made(tmp_path, plan)
    assert {key: row["caption"] for key, row in kept.items()} == {
        name: f'line one of {name} and "two"' for name in files
    }
    assert part["kept"] == part["read"] == 6
