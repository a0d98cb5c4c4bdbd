"""A stopped preparation goes on within a unit, and a source that has changed is noticed."""

import dataclasses
import functools
import itertools
import json
import os
import threading

import pytest
import tensorflow_datasets as tfds
from making import counts, made, write_pictures
from pictures import noise
from tars import pairs, write_tar

from otter_jax.data.build import builder, parts, work
from otter_jax.data.build.plan import Options, Plan, Record
from otter_jax.data.ensure import ensure, make
from otter_jax.data.formats import kinds
from otter_jax.errors import UserError


@pytest.fixture
def tar(tmp_path):
    """A tar of 23 pairs, among them one without a caption and one that is no picture."""
    members = [*pairs(range(23)), ("x.jpg", noise(99)), ("broken.jpg", b"no"), ("broken.txt", "t")]
    return write_tar(tmp_path / "a.tar", members)


@pytest.fixture
def small(monkeypatch):
    """Makes parts of one record each."""
    monkeypatch.setattr(work, "make_unit", functools.partial(parts.make_unit, seconds=0.0))


def stop_after(monkeypatch, records):
    """Ends the preparation as Ctrl-C would, when so many records of a unit have been checked."""
    through = parts.in_threads

    def stopping(work, items, **limits):
        yield from itertools.islice(through(work, items, **limits), records)
        raise KeyboardInterrupt

    monkeypatch.setattr(parts, "in_threads", stopping)


def looked_at(monkeypatch):
    """The names of the records whose images are decoded from here on."""
    look, names = parts.image_to_store, []

    def looking(record, options):
        names.append(record.name)
        return look(record, options)

    monkeypatch.setattr(parts, "image_to_store", looking)
    return names


def files_of(home):
    return {path.name: path.read_bytes() for path in home.iterdir() if "array_record" in path.name}


def report_of(home):
    report = json.loads((home / "report.json").read_text())["train"]
    return {key: value for key, value in report.items() if key not in ("made", "seconds")}


def test_a_unit_goes_on_after_its_last_part(tmp_path, tar, small, monkeypatch, capsys):
    plan = kinds.plan_of([tar], "mine", Options())
    whole = make(plan, str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, 17)
        with pytest.raises(KeyboardInterrupt):
            make(plan, str(tmp_path / "sets"))
    (folder,) = (tmp_path / "sets" / "mine").glob("parts.*")
    there = sorted(path.name for path in folder.iterdir())
    assert len(there) == 17
    assert there == [f"train-000000-{n:04}.parquet" for n in range(len(there))]
    looked, told = looked_at(monkeypatch), []
    capsys.readouterr()
    home = make(plan, str(tmp_path / "sets"), done=lambda *x: told.append(x))
    assert len(looked) == 24 - 17
    assert "Going on: 17 pairs were checked before." in capsys.readouterr().out
    assert sum(size for size, _ in told) == os.path.getsize(tar)
    assert files_of(home) == files_of(whole) != {}
    assert report_of(home) == report_of(whole)
    assert counts(report_of(home)) == {"image without caption": 1, "unreadable image": 1}


@dataclasses.dataclass(frozen=True)
class Counted:
    """A unit of ten pictures, which tells how far it has been read."""

    size: int = 1000

    def read(self, tally):
        for n in range(10):
            yield Record(str(n), noise(n), {"key": str(n)}, at=100 * n + 50)


def counted():
    key = {"key": tfds.features.Text()}
    return Plan("mine", key, {"train": [Counted()]}, {"train": [{"name": "x", "size": 1}]}, "x")


def test_progress_is_told_within_a_unit(tmp_path, small):
    told = []
    make(counted(), str(tmp_path), done=lambda *x: told.append(x))
    assert told == [(50, 1), *[(100, 1)] * 9, (50, 0)]


def test_progress_goes_on_where_it_was(tmp_path, small, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            make(counted(), str(tmp_path))
    told = []
    make(counted(), str(tmp_path), done=lambda *x: told.append(x))
    assert told == [(250, None), *[(100, 1)] * 7, (50, 0)]


def test_parts_of_other_records_are_not_taken(tmp_path, tar, small, monkeypatch):
    plan = kinds.plan_of([tar], "mine", Options())
    with monkeypatch.context() as patch:
        stop_after(patch, 17)
        with pytest.raises(KeyboardInterrupt):
            make(plan, str(tmp_path / "sets"))
    about = os.stat(tar)
    write_tar(tar, [*pairs(range(40, 63)), ("x.jpg", noise(99)), ("broken.jpg", b"no"),
                    ("broken.txt", "t")])  # fmt: skip
    os.utime(tar, ns=(about.st_atime_ns, about.st_mtime_ns))
    kept, report = made(tmp_path, plan)
    assert sorted(kept) == [f"{n:04}" for n in range(40, 63)]
    assert report["read"] == 25


def test_the_files_of_dead_processes_are_removed(tmp_path, tar, monkeypatch):
    plan = kinds.plan_of([tar], "mine", Options())
    with monkeypatch.context() as patch:
        patch.setattr(builder, "write", None)
        with pytest.raises(TypeError):
            make(plan, str(tmp_path))
    (folder,) = (tmp_path / "mine").glob("parts.*")
    (folder / "train-000000.0123.tmp").write_bytes(b"half a part")
    with monkeypatch.context() as patch:
        patch.setattr(builder, "write", None)
        with pytest.raises(TypeError):
            make(plan, str(tmp_path))
    assert not list(folder.glob("*.tmp"))


def test_only_what_follows_a_file_that_has_come_is_made_again(tmp_path, small, monkeypatch):
    names = write_pictures(tmp_path / "pictures", 20)
    (tmp_path / "pictures" / names[2]).unlink()
    late = tmp_path / "pictures" / names[13]
    late.rename(tmp_path / "late.jpg")
    rows = "".join(f"pictures/{name},words {name}\n" for name in names)
    (tmp_path / "t.csv").write_text(f"image,caption\n{rows}")
    plan = kinds.plan_of([str(tmp_path / "t.csv")], "mine", Options())
    with monkeypatch.context() as patch:
        patch.setattr(builder, "write", None)
        with pytest.raises(TypeError):
            make(plan, str(tmp_path / "sets"))
    (tmp_path / "late.jpg").rename(late)
    looked = looked_at(monkeypatch)
    kept, report = made(tmp_path, plan)
    assert len(kept) == 19
    assert counts(report) == {"missing file": 1}
    assert sorted(looked) == [f"t.csv: pictures/{name}" for name in sorted(names[13:])]


@pytest.fixture
def table(tmp_path):
    """A table of six pictures, half of which are not there."""
    names = write_pictures(tmp_path / "pictures", 3) + [f"{n}.jpg" for n in range(3, 6)]
    rows = "".join(f"pictures/{name},a cat\n" for name in names)
    (tmp_path / "t.csv").write_text(f"image,caption\n{rows}")
    return tmp_path / "t.csv"


def planned(table):
    return kinds.plan_of([str(table)], "mine", Options(keep_duplicates=True))


def test_files_that_were_missing_and_are_there_now_are_said(tmp_path, table, capsys):
    home = make(planned(table), str(tmp_path / "sets"))
    make(planned(table), str(tmp_path / "sets"))
    assert "since then" not in capsys.readouterr().out
    write_pictures(tmp_path / "pictures", 5)
    make(planned(table), str(tmp_path / "sets"))
    said = capsys.readouterr().out
    assert "since then 2 of the 3 files that could not be read are there, such as" in said
    assert f"rm -r {home}" in said


def test_of_many_missing_files_some_are_looked_for_and_that_is_said(
    tmp_path, table, monkeypatch, capsys
):
    monkeypatch.setattr(builder, "ABSENT", 2)
    make(planned(table), str(tmp_path / "sets"))
    write_pictures(tmp_path / "pictures", 6)
    make(planned(table), str(tmp_path / "sets"))
    assert "since then 2 of 2 of the 3 files that could not be read are there" in (
        capsys.readouterr().out
    )


def later(path, seconds=10):
    about = os.stat(path)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + seconds * 10**9))


def test_a_source_that_was_written_to_is_said_and_stops_nothing(tmp_path, table, capsys):
    home = make(planned(table), str(tmp_path / "sets"))
    table.write_text(table.read_text().replace("cat", "dog"))
    later(table)
    assert make(planned(table), str(tmp_path / "sets")) == home
    said = capsys.readouterr().out
    assert "since then t.csv: another modification time. If that matters" in said
    assert f"rm -r {home}" in said


def test_training_says_that_its_tars_were_written_to_and_goes_on(tmp_path, tar, capsys):
    ensure("mine", str(tmp_path / "sets"), (tar,))
    capsys.readouterr()
    ensure("mine", str(tmp_path / "sets"), (tar,))
    assert capsys.readouterr().out == ""
    later(tar)
    ensure("mine", str(tmp_path / "sets"), (tar,))
    assert "a.tar: another modification time" in capsys.readouterr().out


def test_sets_of_older_versions_have_no_times_to_compare(tmp_path, tar, capsys):
    ensure("mine", str(tmp_path / "sets"), (tar,))
    path = tmp_path / "sets" / "mine" / "1.0.0" / "report.json"
    report = json.loads(path.read_text())
    for file in report["train"]["files"]:
        del file["modified"]
    path.write_text(json.dumps(report))
    capsys.readouterr()
    ensure("mine", str(tmp_path / "sets"), (tar,))
    assert capsys.readouterr().out == ""
    write_tar(tar, pairs(range(3)))
    with pytest.raises(UserError, match="other files"):
        ensure("mine", str(tmp_path / "sets"), (tar,))


def test_a_stopped_start_that_is_of_no_use_is_said(tmp_path, table, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(builder, "write", None)
        with pytest.raises(TypeError):
            make(planned(table), str(tmp_path / "sets"))
    later(table)
    capsys.readouterr()
    make(planned(table), str(tmp_path / "sets"))
    assert "an earlier start of mine checked is of no use" in capsys.readouterr().out


def test_a_process_that_waits_for_another_says_so(tmp_path, tar, monkeypatch, capsys):
    plan, make_parts, second = kinds.plan_of([tar], "mine", Options()), work.make_parts, []

    def while_made(*args):
        second.append(threading.Thread(target=make, args=(plan, str(tmp_path))))
        second[0].start()
        while "Another process makes the data set" not in (said := capsys.readouterr().out):
            assert second[0].is_alive(), said
        return make_parts(*args)

    monkeypatch.setattr(builder, "make_parts", while_made)
    make(plan, str(tmp_path))
    second[0].join()
    assert capsys.readouterr().out.count("train: 23 pairs") == 1


@pytest.mark.parametrize("kind", ["pairs", "classes"])
def test_a_picture_of_a_folder_that_was_written_to_is_said(tmp_path, kind, capsys):
    root = tmp_path / "tree"
    root.mkdir()
    if kind == "classes":
        for name in ("cat", "dog"):
            write_pictures(root / name, 2)
        again = functools.partial(ensure, "mine", str(tmp_path / "sets"), folder=str(root))
    else:
        write_pictures(root, 2)
        (root / "0.txt").write_text("cat")
        (root / "1.txt").write_text("dog")
        plan = functools.partial(kinds.plan_of, [str(root)], "mine", Options())

        def again():
            make(plan(), str(tmp_path / "sets"))

    again()
    capsys.readouterr()
    again()
    assert capsys.readouterr().out == ""
    later(root / "0.txt" if kind == "pairs" else root / "cat" / "0.jpg")
    again()
    assert "another modification time. If that matters, remove the set" in capsys.readouterr().out


def test_a_folder_with_other_names_makes_another_set_and_a_moved_one_the_same(tmp_path, capsys):
    root, sets = tmp_path / "here" / "tree", str(tmp_path / "sets")
    root.parent.mkdir()
    write_pictures(root, 1)
    (root / "0.txt").write_text("cat")
    make(kinds.plan_of([str(root)], "mine", Options()), sets)
    capsys.readouterr()
    moved = (tmp_path / "here").rename(tmp_path / "there") / "tree"
    make(kinds.plan_of([str(moved)], "mine", Options()), sets)
    assert capsys.readouterr().out == ""
    for name in ("0.jpg", "0.txt"):
        (moved / name).rename(moved / name.replace("0", "1"))
    with pytest.raises(UserError, match="other files than 2 files in tree, by name or size"):
        make(kinds.plan_of([str(moved)], "mine", Options()), sets)


def test_tars_and_folders_tell_how_far_they_are_read(tmp_path, small):
    tar, root = write_tar(tmp_path / "a.tar", pairs(range(150))), tmp_path / "tree"
    for name in write_pictures(root, 4):
        (root / name).with_suffix(".txt").write_text(f"words {name}")
    for name, source, size in (("a", tar, os.path.getsize(tar)), ("b", str(root), 8)):
        told = []
        plan = kinds.plan_of([source], name, Options())
        make(plan, str(tmp_path / "sets"), done=lambda *x, told=told: told.append(x))
        assert sum(at for at, _ in told) == size
        assert len(told) >= 4
        assert all(at <= size / 2 for at, _ in told)
