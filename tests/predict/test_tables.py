"""Rows are the same in every format, whole after every stop, and never of two commands."""

import csv
import io
import json
import os
import pathlib
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from otter_jax.errors import Stopped, UserError
from otter_jax.predict import tables
from otter_jax.predict.paths import restored

COLUMNS = {"path": str, "rank": int, "class": str, "probability": float, "cosine": float}
ABOUT = {"command": "predict", "model": "0a1b", "top": 2}
ODD = os.fsdecode(b'odd, "\xff\n.jpg')
FILES = ("csv", "jsonl", "parquet")


def rows(*paths):
    """Two rows for each picture."""
    named = ((1, "dog, big", 0.75), (2, "犬", 0.125))
    return [(path, rank, name, p, 0.25) for path in paths for rank, name, p in named]


def read(path):
    """All rows of a file, as dicts of texts."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".jsonl":
        found = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    else:
        found = pq.read_table(path).to_pylist()
    return [{name: str(value) for name, value in row.items()} for row in found]


def write(out, *paths, about=ABOUT, columns=COLUMNS, stop=False):
    """One start, that writes what is missing of these pictures; returns those it wrote."""
    with tables.table(out.suffix[1:], columns, about, out) as table:
        left = [path for path in paths if path not in table.done]
        for path in left:
            table.add([row[: len(columns)] for row in rows(path)])
        if stop:
            raise Stopped
    return left


@pytest.mark.parametrize("format", FILES)
def test_all_formats_have_the_same_rows_and_paths_come_back(tmp_path, format):
    out = tmp_path / f"out.{format}"
    write(out, "a.jpg", ODD)
    found = read(out)
    assert [tuple(row) for row in found] == [tuple(COLUMNS)] * 4
    assert [restored(row["path"]) for row in found] == ["a.jpg", "a.jpg", ODD, ODD]
    assert [row["rank"] for row in found] == ["1", "2", "1", "2"]
    assert found[0]["class"] == "dog, big"
    assert found[1]["class"] == "犬"
    assert [float(row["probability"]) for row in found] == [0.75, 0.125] * 2


@pytest.mark.parametrize("format", FILES)
def test_a_stopped_command_goes_on_and_a_finished_one_adds_what_is_new(tmp_path, format):
    out, whole = tmp_path / f"out.{format}", tmp_path / f"whole.{format}"
    with pytest.raises(Stopped):
        write(out, "a", ODD, stop=True)
    assert out.exists() == (format != "parquet")  # which cannot grow
    assert set(write(out, "a", ODD, "c")) <= {ODD, "c"}  # the last may have lacked rows
    assert write(out, "a", ODD, "c", "d") == ["d"]
    assert write(out, "a", ODD, "c", "d") == []
    write(whole, "a", ODD, "c", "d")
    assert read(out) == read(whole)
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_a_file_that_is_cut_anywhere_ends_as_an_undisturbed_one(tmp_path, format):
    out = tmp_path / f"out.{format}"
    with pytest.raises(Stopped):
        write(out, "a", ODD, "c", stop=True)
    beside = (tmp_path / f"out.{format}.about.json").read_text()
    content = out.read_bytes()
    expected = read(out)
    for size in range(len(content)):
        out.write_bytes(content[:size])
        (tmp_path / f"out.{format}.about.json").write_text(beside)
        write(out, "a", ODD, "c")
        assert read(out) == expected, size


@pytest.mark.parametrize("format", FILES)
def test_a_file_of_another_command_is_refused_and_stays(tmp_path, format):
    out = tmp_path / f"out.{format}"
    write(out, "a")
    content = out.read_bytes()
    for about, columns, words in (
        (ABOUT | {"model": "ffff"}, COLUMNS, "model '0a1b', not 'ffff'"),
        (ABOUT, {"path": str, "rank": int}, "columns"),
        ({"command": "search"}, COLUMNS, "command 'predict', not 'search'"),
    ):
        with pytest.raises(UserError, match=words):
            write(out, "b", about=about, columns=columns)
        assert out.read_bytes() == content


def test_parts_of_another_command_are_refused(tmp_path):
    with pytest.raises(Stopped):
        write(tmp_path / "out.parquet", "a", stop=True)
    with pytest.raises(UserError, match="out.parquet.parts is there, of another command"):
        write(tmp_path / "out.parquet", "a", about=ABOUT | {"top": 5})


@pytest.mark.parametrize("format", FILES)
def test_a_file_that_is_not_of_this_program_is_refused(tmp_path, format):
    out = tmp_path / f"out.{format}"
    out.write_bytes(b"path,rank\nmine,1\n")
    with pytest.raises(UserError, match="delete it|no whole Parquet file"):
        write(out, "a")
    assert out.read_bytes() == b"path,rank\nmine,1\n"


def test_a_line_that_somebody_changed_is_named(tmp_path):
    out = tmp_path / "out.csv"
    write(out, "a", "b")
    out.write_text(out.read_text().replace("b,1,", "b,"))
    with pytest.raises(UserError, match="out.csv: line 4 is not as this command writes it"):
        write(out, "c")


@pytest.mark.parametrize("format", FILES)
def test_two_commands_do_not_write_one_file(tmp_path, format):
    out = tmp_path / f"out.{format}"
    with tables.table(format, COLUMNS, ABOUT, out) as first:
        first.add(rows("a"))
        with pytest.raises(UserError, match="is being written by another process"):
            write(out, "b")
    assert len(read(out)) == 2


def test_a_place_that_is_none_is_said_before_time_is_spent(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for out, words in (
        (tmp_path / "no" / "out.csv", "there is no folder"),
        (tmp_path / "pipe.csv", "no regular file"),
        (pathlib.Path("/proc/out.csv"), r"no file can be made in /proc \("),
    ):
        with pytest.raises(UserError, match=words):
            tables.table("csv", COLUMNS, ABOUT, out)


def test_the_format_follows_the_file_and_where_stdout_goes(tmp_path):
    out = tmp_path / "a.jsonl"
    assert tables.format_of(None, None, True) == "table"
    assert tables.format_of(None, None, False) == "csv"
    assert tables.format_of("jsonl", None, True) == "jsonl"
    assert tables.format_of(None, out, True) == "jsonl"
    assert tables.format_of("csv", tmp_path / "a.txt", True) == "csv"
    for format, path in (("parquet", None), ("csv", out), ("table", out), (None, tmp_path / "a")):
        with pytest.raises(UserError):
            tables.format_of(format, path, False)


def test_stdout_gets_each_batch_at_once():
    stdout = io.BytesIO()
    with tables.table("csv", COLUMNS, ABOUT, stdout=stdout) as table:
        table.add(rows(ODD)[:1])
        assert stdout.getvalue().decode() == (
            'path,rank,class,probability,cosine\n"odd, ""\\xff\\n.jpg",1,"dog, big",0.75,0.25\n'
        )


def test_a_terminal_shows_the_path_of_a_picture_once_and_no_control_characters(capsys):
    with tables.table("table", COLUMNS, ABOUT) as table:
        table.add(rows("a\x1b[31m.jpg", "b.jpg"))
    shown = capsys.readouterr().out
    assert shown.count(r"a\x1b[31m.jpg") == shown.count("b.jpg") == 1
    assert shown.count("0.7500") == 2
    assert "probability" in shown


def test_a_reader_that_has_enough_ends_the_program_without_a_word():
    script = (
        "from otter_jax.predict import tables\n"
        "with tables.table('csv', {'path': str}, {}) as table:\n"
        "    while True: table.add([('a',)] * 999)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=-1, stderr=-1) as process:
        assert process.stdout.readline() == b"path\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141
