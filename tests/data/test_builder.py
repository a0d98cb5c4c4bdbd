"""A plan becomes the same set however it is made: stopped, resumed, by several, by Beam."""

import io

import pytest
from making import counts, made, write_pictures
from pictures import noise
from PIL import Image
from tars import tars_of_pairs, write_tar

from otter_jax.data.build import builder, parts, work
from otter_jax.data.build.plan import Options
from otter_jax.data.ensure import make
from otter_jax.data.formats import kinds
from otter_jax.data.formats.reading import Reading
from otter_jax.data.source import open_dataset
from otter_jax.errors import UserError


def test_a_source_that_is_mended_is_read_again(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("image,caption\n0.jpg,a\n1.jpg,b\n")
    (tmp_path / "0.jpg").write_bytes(b"no picture yet")
    plan = kinds.plan_of([str(tmp_path / "t.csv")], "mine", Options())
    with pytest.raises(UserError, match="would have no pairs"):
        made(tmp_path, plan)
    write_pictures(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(builder, "write", None)
        with pytest.raises(TypeError):
            made(tmp_path, plan)
    write_pictures(tmp_path, 2)  # the second came while it was stopped
    kept, part = made(tmp_path, plan)
    assert sorted(kept) == ["0.jpg", "1.jpg"]
    assert part["dropped"] == {}


def test_another_source_of_the_same_files_needs_another_name(tmp_path):
    write_pictures(tmp_path, 1)
    (tmp_path / "t.csv").write_text("image,alt,title\n0.jpg,a,b\n")
    first = kinds.plan_of([str(tmp_path / "t.csv")], "mine", Options(), Reading(caption="alt"))
    made(tmp_path, first)
    other = kinds.plan_of([str(tmp_path / "t.csv")], "mine", Options(), Reading(caption="title"))
    with pytest.raises(UserError, match=r"another caption, 'alt', not 'title'.*another name"):
        made(tmp_path, other)
    tree = tmp_path / "tree"
    write_pictures(tree, 1)
    (tree / "0.txt").write_text("one")
    made(tmp_path, kinds.plan_of([str(tree)], "tree", Options()))
    (tree / "0.txt").write_text("another")
    with pytest.raises(UserError, match="by name or size"):
        made(tmp_path, kinds.plan_of([str(tree)], "tree", Options()))


def test_what_else_comes_with_a_pair_makes_no_other_pair(tmp_path):
    write_pictures(tmp_path, 1)
    (tmp_path / "t.csv").write_text("id,image,caption\n1,0.jpg,a\n2,0.jpg,a\n3,0.jpg,b\n")
    plan = kinds.plan_of([str(tmp_path / "t.csv")], "mine", Options(keep_duplicates=False))
    kept, part = made(tmp_path, plan)
    assert sorted(kept) == ["1", "3"]
    assert counts(part) == {"duplicate": 1}


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


def files_of(home):
    return {path.name: path.read_bytes() for path in home.iterdir() if "array_record" in path.name}


def test_processes_and_a_stop_in_between_change_nothing(tmp_path, monkeypatch):
    plan = kinds.plan_of([str(tars_of_pairs(tmp_path / "tars"))], "mine", Options())
    whole = make(plan, str(tmp_path / "whole"))
    many = make(plan, str(tmp_path / "many"), workers=2)
    read, begun = work.make_unit, []

    def stop_at_the_third(unit, stem, **kwargs):
        begun.append(unit.path.name)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return read(unit, stem, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(work, "make_unit", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            make(plan, str(tmp_path / "stopped"))
    with pytest.raises(UserError, match="no data set mine"):
        open_dataset(str(tmp_path / "stopped"), "mine", "train")
    told = []
    stopped = make(plan, str(tmp_path / "stopped"), done=lambda *x: told.append(x[1]))
    assert told[:2] == [None, None]  # two were there
    assert sum(told[2:]) == 12
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
        patch.setattr(builder, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make(first, str(tmp_path / "sets"))
    assert list((tmp_path / "sets" / "mine").glob("parts.*"))
    kept, _ = made(tmp_path, kinds.plan_of([tars], "mine", Options()))
    assert {Image.open(io.BytesIO(row["image"])).size for row in kept.values()} != {(8, 8)}


def test_a_full_disk_says_so_and_keeps_what_is_done(tmp_path, monkeypatch):
    plan = kinds.plan_of([str(tars_of_pairs(tmp_path / "tars"))], "mine", Options())
    write, count = parts.write_rows, []

    def full(*args):
        count.append(1)
        if len(count) > 2:
            raise OSError(28, "No space left on device")
        return write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_rows", full)
        with pytest.raises(UserError, match=r"No space left(.|\n)*goes on"):
            make(plan, str(tmp_path / "sets"))
    told = []
    make(plan, str(tmp_path / "sets"), done=lambda *x: told.append(x[1]))
    assert None in told


def test_a_disk_that_is_full_for_the_set_alone_says_so_and_other_errors_are_not_hidden(
    tmp_path, monkeypatch
):
    plan = kinds.plan_of([str(tars_of_pairs(tmp_path / "tars"))], "mine", Options())

    def failing(text):
        def write(*_):
            raise RuntimeError(text)

        monkeypatch.setattr(builder, "write", write)

    failing("Failed to finalize: write() failed: No space left on device; at byte 9")
    with pytest.raises(UserError, match="mine: No space left on device. What is done is kept"):
        make(plan, str(tmp_path / "sets"))
    failing("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        make(plan, str(tmp_path / "sets"))
