"""People's own pairs become a set: from tables, folders and tars; stopped, resumed, run twice."""

import csv
import gzip
import io
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import encoded, noise
from PIL import Image
from test_webdataset import write_tar

from otter_jax.commands.prepare import main
from otter_jax.data.build import parts
from otter_jax.data.build.plan import Options, Record
from otter_jax.data.build.report import Tally
from otter_jax.data.formats import kinds, sidecars, tables
from otter_jax.data.source import open_dataset
from otter_jax.errors import UserError

CAPTIONS = ["an otter", "a river, and a bank", 'she said "no"', "NA", "null", "tschüß 漢字"]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "pair", "otter"]
    (folder / "vocab.txt").write_text("\n".join(words))
    return folder


def pictures(folder, number=6):
    folder.mkdir(exist_ok=True)
    for n in range(number):
        (folder / f"{n}.jpg").write_bytes(noise(n))
    return [f"{n}.jpg" for n in range(number)]


def made(tmp_path, plan, **options):
    """The records by key, and the report's part, of a plan's set."""
    home = make(plan, str(tmp_path / "sets"), **options)
    source = open_dataset(str(tmp_path / "sets"), plan.name, "train")
    rows = [source[i] for i in range(len(source))]
    return {row["key"]: row for row in rows}, json.loads((home / "report.json").read_text())[
        "train"
    ]


def counts(part):
    return {why: entry["count"] for why, entry in (part["dropped"] | part["changed"]).items()}


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
    files = pictures(tmp_path / "My Pictures é")
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
    pictures(tmp_path, 2)
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
    files = pictures(tmp_path, 3)
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
    files = pictures(tmp_path, 1)
    rows = [f"{files[0]},row {n}" for n in range(500)]
    rows[100], rows[300] = f'{files[0]},"never closed', f"{files[0]},{later}"
    (tmp_path / "t.csv").write_text("image,caption\n" + "\n".join(rows))
    tally = Tally()
    units = kinds.plan_of([str(tmp_path / "t.csv")], "mine", Options()).units["train"]
    read = [record.fields["caption"] for unit in units for record in unit.read(tally)]
    assert len(read) == 499
    assert not {"row 99", "row 101", "row 499"} - set(read)
    assert tally.found["dropped"]["row that cannot be read"]["count"] == 1


def test_a_source_that_is_mended_is_read_again(tmp_path):
    (tmp_path / "t.csv").write_text("image,caption\n0.jpg,a\n1.jpg,b\n")
    plan = kinds.plan_of([str(tmp_path / "t.csv")], "mine", Options())
    with pytest.raises(UserError, match="would have no pairs"):
        made(tmp_path, plan)
    pictures(tmp_path, 1)
    write = prepared.write
    prepared.write = None
    try:
        with pytest.raises(TypeError):
            made(tmp_path, plan)
    finally:
        prepared.write = write
    pictures(tmp_path, 2)  # the second came while it was stopped
    kept, part = made(tmp_path, plan)
    assert sorted(kept) == ["0.jpg", "1.jpg"]
    assert part["dropped"] == {}


def test_another_source_of_the_same_files_needs_another_name(tmp_path):
    pictures(tmp_path, 1)
    (tmp_path / "t.csv").write_text("image,alt,title\n0.jpg,a,b\n")
    first = kinds.plan_of([str(tmp_path / "t.csv")], "mine", Options(), caption="alt")
    made(tmp_path, first)
    other = kinds.plan_of([str(tmp_path / "t.csv")], "mine", Options(), caption="title")
    with pytest.raises(UserError, match=r"another caption, 'alt', not 'title'.*another name"):
        made(tmp_path, other)
    tree = tmp_path / "tree"
    pictures(tree, 1)
    (tree / "0.txt").write_text("one")
    made(tmp_path, kinds.plan_of([str(tree)], "tree", Options()))
    (tree / "0.txt").write_text("another")
    with pytest.raises(UserError, match="by name or size"):
        made(tmp_path, kinds.plan_of([str(tree)], "tree", Options()))


def test_what_else_comes_with_a_pair_makes_no_other_pair(tmp_path):
    pictures(tmp_path, 1)
    (tmp_path / "t.csv").write_text("id,image,caption\n1,0.jpg,a\n2,0.jpg,a\n3,0.jpg,b\n")
    plan = kinds.plan_of([str(tmp_path / "t.csv")], "mine", Options(keep_duplicates=False))
    kept, part = made(tmp_path, plan)
    assert sorted(kept) == ["1", "3"]
    assert counts(part) == {"duplicate": 1}


@pytest.mark.parametrize("kind", ["csv.gz", "parquet"])
def test_a_table_cut_in_the_middle_keeps_what_came_before_or_says_so(tmp_path, kind):
    files = pictures(tmp_path, 1) * 4000
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
    pq.write_table(pa.table({"image": ["a"], "caption": [3]}), tmp_path / "n.parquet")
    with pytest.raises(UserError, match="'caption' of .* is int64; a caption is text"):
        kinds.plan_of([str(tmp_path / "n.parquet")], "mine", Options())
    pictures(tmp_path, 1)
    pq.write_table(pa.table({"image": ["0.jpg"], "caption": [b"caf\xe9"]}), tmp_path / "b.parquet")
    kept, part = made(tmp_path, kinds.plan_of([str(tmp_path / "b.parquet")], "mine", Options()))
    assert kept["0.jpg"]["caption"] == "caf\ufffd"
    assert "caption with U+FFFD for bytes that are no UTF-8" in part["changed"]


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
        pictures(folder, 2)
        (folder / f"{number}.txt").write_text(f"number {number}")
    (root / "link").symlink_to(far)
    (far / "back").symlink_to(root)
    (root / "00000.parquet").write_bytes(b"img2dataset's")
    kept, _ = made(tmp_path, kinds.plan_of([str(root)], "mine", Options()))
    assert sorted(kept) == ["0", "link/1"]


def test_a_large_folder_is_read_in_slices_and_none_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(sidecars, "FILES", 5)
    pictures(tmp_path / "tree", 20)
    for n in range(20):
        (tmp_path / "tree" / f"{n}.txt").write_text(f"number {n}")
    units = kinds.plan_of([str(tmp_path / "tree")], "mine", Options()).units["train"]
    assert len(units) == 8
    read = [record.fields["key"] for unit in units for record in unit.read(Tally())]
    assert sorted(read, key=int) == [str(n) for n in range(20)]


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_large_images_are_resized_once_and_small_ones_are_not_touched(tmp_path, format):
    y, x = np.mgrid[0:300, 0:480]
    smooth = np.stack([x / 2, y / 2, 128 + 100 * np.sin(x / 40)], axis=2).astype(np.uint8)
    large = io.BytesIO()
    Image.fromarray(smooth).save(large, "JPEG", quality=95)
    members = [
        ("large.jpg", large.getvalue()),
        ("large.txt", "x"),
        ("s.jpg", noise()),
        ("s.txt", "y"),
    ]
    tar = write_tar(tmp_path / "a.tar", members)
    options = Options(resize=64, format=format, quality=90)
    kept, part = made(tmp_path, kinds.plan_of([tar], "mine", options))
    assert kept["s"]["image"] == noise()
    with Image.open(io.BytesIO(kept["large"]["image"])) as small:
        assert small.format == format.upper()
        assert small.size == (102, 64)
        expected = Image.fromarray(smooth).resize((102, 64), Image.Resampling.BICUBIC)
        difference = np.asarray(small.convert("RGB"), int) - np.asarray(expected, int)
    assert np.abs(difference).mean() < 4
    assert counts(part) == {"image resized to 64 pixels": 1}
    assert part["shorter_side"]["max"] == 300


def test_duplicates_are_found_over_all_tars_and_only_exact_ones_go(tmp_path):
    one = [("a.jpg", noise(1)), ("a.txt", "same"), ("b.jpg", noise(1)), ("b.txt", "other words")]
    two = [("a.jpg", noise(1)), ("a.txt", "same"), ("c.jpg", noise(2)), ("c.txt", "same")]
    tars = [write_tar(tmp_path / f"{n}.tar", m) for n, m in enumerate((one, two))]
    kept, part = made(tmp_path, kinds.plan_of(tars, "once", Options(keep_duplicates=False)))
    assert len(kept) == part["kept"] == 3
    assert part["dropped"]["duplicate"] == {"count": 1, "first": ["1.tar: a"]}
    _, part = made(tmp_path, kinds.plan_of(tars, "all", Options()))
    assert part["kept"] == 4
    assert part["duplicates"] == 1


def tars_of_pairs(folder, number=4, each=6):
    folder.mkdir(exist_ok=True)
    for n in range(number):
        members = []
        for i in range(each):
            members += [(f"{i}.jpg", noise(100 * n + i)), (f"{i}.txt", f"pair {n} {i}")]
        write_tar(folder / f"{n}.tar", members)
    return folder


def files_of(home):
    return {path.name: path.read_bytes() for path in home.iterdir() if "array_record" in path.name}


def test_processes_and_a_stop_in_between_change_nothing(tmp_path, monkeypatch):
    plan = kinds.plan_of([str(tars_of_pairs(tmp_path / "tars"))], "mine", Options())
    whole = make(plan, str(tmp_path / "whole"))
    many = make(plan, str(tmp_path / "many"), workers=2)
    read, begun = parts.make_part, []

    def stop_at_the_third(unit, path, **kwargs):
        begun.append(unit.path.name)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return read(unit, path, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "make_part", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            make(plan, str(tmp_path / "stopped"))
    with pytest.raises(UserError, match="no data set mine"):
        open_dataset(str(tmp_path / "stopped"), "mine", "train")
    told = []
    stopped = make(plan, str(tmp_path / "stopped"), done=lambda *x: told.append(x[1]))
    assert sorted(told) == [0, 0, 6, 6]  # two were there
    assert files_of(whole) == files_of(many) == files_of(stopped) != {}
    assert not list((tmp_path / "stopped" / "mine").glob("parts.*"))


def test_apache_beam_makes_the_same_set(tmp_path):
    plan = kinds.plan_of(
        [str(tars_of_pairs(tmp_path / "tars"))], "mine", Options(keep_duplicates=False)
    )
    alone, report = made(tmp_path / "alone", plan)
    beam = "--runner=DirectRunner --direct_running_mode=in_memory"
    together, other = made(tmp_path / "beam", plan, beam=beam)
    assert together == alone
    assert {k: v for k, v in report.items() if k != "seconds"} == {
        k: v for k, v in other.items() if k != "seconds"
    }


def test_parts_of_other_options_are_not_taken(tmp_path, monkeypatch):
    tars = str(tars_of_pairs(tmp_path / "tars", number=2))
    first = kinds.plan_of([tars], "mine", Options(resize=8))
    with monkeypatch.context() as patch:
        patch.setattr(parts, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make(first, str(tmp_path / "sets"))
    assert list((tmp_path / "sets" / "mine").glob("parts.*"))
    kept, _ = made(tmp_path, kinds.plan_of([tars], "mine", Options()))
    assert {Image.open(io.BytesIO(row["image"])).size for row in kept.values()} != {(8, 8)}


def test_a_full_disk_says_so_and_keeps_what_is_done(tmp_path, monkeypatch):
    plan = kinds.plan_of([str(tars_of_pairs(tmp_path / "tars"))], "mine", Options())
    write, count = parts._write, []

    def full(*args):
        count.append(1)
        if len(count) > 2:
            raise OSError(28, "No space left on device")
        return write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "_write", full)
        with pytest.raises(UserError, match=r"No space left(.|\n)*goes on"):
            make(plan, str(tmp_path / "sets"))
    told = []
    make(plan, str(tmp_path / "sets"), done=lambda *x: told.append(x[1]))
    assert 0 in told


def program(tmp_path, tokenizer_folder, *arguments):
    return [
        sys.executable, "-m", "otter_jax.prepare", *map(str, arguments), "--name", "mine",
        "--data_dir", str(tmp_path / "sets"), "--tokenizer", str(tokenizer_folder),
        "--max_tokens", "4",
    ]  # fmt: skip


def test_the_program_killed_goes_on_and_run_twice_does_nothing(tmp_path, tokenizer_folder):
    folder = tars_of_pairs(tmp_path / "tars", number=6, each=40)
    command = program(tmp_path, tokenizer_folder, folder, "--resize", "8", "--workers", "2")
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    parts = tmp_path / "sets" / "mine"
    deadline = time.monotonic() + 240
    while not list(parts.glob("parts.*/*.parquet")) and first.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    assert "train: 240 pairs from 6 tars" in second.stdout
    assert "tokens on average" in second.stdout
    page = (parts / "1.0.0" / "report.html").read_text()
    assert 'src="report/train_pairs.png"' in page
    assert "image resized to 8 pixels" in page
    before = {path: path.stat().st_mtime_ns for path in parts.rglob("*") if path.is_file()}
    third = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    assert "nothing was done" in third.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_mistakes_are_one_paragraph(tmp_path, tokenizer_folder, capsys):
    pictures(tmp_path / "p", 1)
    (tmp_path / "t.csv").write_text("0.jpg,an otter\n0.jpg,a river\n")
    (tmp_path / "t.xyz").write_text("what")
    (tmp_path / "empty").mkdir()
    tar = write_tar(tmp_path / "a.tar", [("a.jpg", noise()), ("a.txt", "x")])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    for arguments, said in (
        ((tmp_path / "nope",), "There is nothing at"),
        ((tmp_path / "t.xyz",), "A source is a folder, a tar"),
        ((tmp_path / "t.csv",), "names the columns: '0.jpg', 'an otter'"),
        ((tmp_path / "t.csv", "--caption", "words"), "--image"),
        ((tmp_path / "bad.parquet",), "cannot be read"),
        ((tmp_path / "empty",), "no pictures with captions"),
        ((tar, tmp_path / "t.csv"), "several kinds"),
        ((tar, "--caption", "x"), "are for tables"),
        ((tar, "--quality", "0"), "quality=0"),
        ((tar, "--format", "gif"), "format='gif'"),
        ((tar, "--resize", "-1"), "resize=-1"),
        ((tar, "--tokenizer", "nope"), "no weights at 'nope'"),
    ):
        status = main(program(tmp_path, tokenizer_folder)[3:] + list(map(str, arguments)))
        out = capsys.readouterr().err
        assert status == 2
        assert out.startswith("error: ")
        assert said in out


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=400), st.sampled_from(["csv", "tsv", "jsonl"]))
def test_no_bytes_break_a_reader_of_tables(tmp_path_factory, junk, kind):
    folder = tmp_path_factory.mktemp("junk")
    head = b'{"image": "0.jpg", "caption": "x"}\n' if kind == "jsonl" else b""
    head = head or (b"image,caption\n" if kind == "csv" else b"image\tcaption\n")
    (folder / f"t.{kind}").write_bytes(head + junk)
    tally = Tally()
    for unit in kinds.plan_of([str(folder / f"t.{kind}")], "mine", Options()).units["train"]:
        for record in unit.read(tally):
            json.dumps(record.fields).encode()
            record.fields["caption"].encode()
            parts.check(record, Options())


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.integers(0, 5), st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=8)
)
def test_no_bytes_break_the_check_of_an_image(kind, changes):
    content = bytearray(noise(kind, ["JPEG", "PNG", "WEBP"][kind % 3]))
    for place, value in changes:
        content[place % len(content)] = value
    for options in (Options(), Options(resize=7)):
        checked = parts.check(Record("x", bytes(content), {}), options)
        assert bool(checked.why) != bool(checked.image)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(0, 9_000), st.integers(0, 255)), max_size=12),
    st.integers(0, 10_240),
    st.booleans(),
)
def test_no_bytes_break_the_reader_of_tars(tmp_path_factory, changes, length, packed):
    folder = tmp_path_factory.mktemp("junk")
    path = write_tar(folder / "a.tar", [("a.jpg", noise()), ("a.txt", "x"), ("b.json", "{}")])
    content = bytearray((folder / "a.tar").read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    cut = bytes(content[:length])
    (folder / "a.tar").write_bytes(gzip.compress(cut) if packed else cut)
    tally = Tally()
    for unit in kinds.plan_of([path], "mine", Options()).units["train"]:
        for record in unit.read(tally):
            json.dumps(record.fields).encode()
            parts.check(record, Options())
