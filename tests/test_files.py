"""Nothing waits for what is no file, and nothing is read beyond what was allowed for."""

import errno
import os
import socket
import subprocess
import sys

import pytest
from making import counts, made, write_pictures

from otter_jax import files
from otter_jax.data.build.plan import Options
from otter_jax.data.captions import Tokenizer
from otter_jax.data.formats import kinds
from otter_jax.data.formats.reading import OUTSIDE, Reading
from otter_jax.errors import UserError
from otter_jax.weights import tensors
from otter_jax.zeroshot import bank


@pytest.fixture(params=["pipe", "socket", "device", "folder", "link to a device"])
def no_file(request, tmp_path):
    path = tmp_path / "none"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "socket":
        place = os.getcwd()
        os.chdir(tmp_path)  # a socket's path is short
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind("none")
        finally:
            os.chdir(place)
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "link to a device":
        path.symlink_to("/dev/zero")
    else:
        return "/dev/zero", request.param
    return path, request.param


def test_only_regular_files_are_opened(no_file):
    path, kind = no_file
    said = "Is a directory" if kind == "folder" else f"no regular file, but a {kind.split()[-1]}"
    with pytest.raises(files.Refused, match=said):
        files.read_bytes(path)


def test_a_link_in_a_circle_and_a_name_that_is_too_long_are_refused(tmp_path):
    (tmp_path / "round").symlink_to("round")
    for path in (tmp_path / "round", tmp_path / ("x" * 300)):
        with pytest.raises(files.Refused):
            files.read_bytes(path)


def test_json_that_nests_without_end_is_none(tmp_path):
    (tmp_path / "a").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nests too deeply"):
        files.read_json(tmp_path / "a")


def test_at_most_the_limit_is_read_whatever_the_size_is_said_to_be(tmp_path, monkeypatch):
    assert "VmRSS" in files.read_text("/proc/self/status"), "of size 0 by stat"
    path = tmp_path / "a"
    path.write_bytes(b"x" * 11)
    assert files.read_bytes(path, 11) == b"x" * 11
    with pytest.raises(files.Refused) as refused:
        files.read_bytes(path, 10)
    assert refused.value.errno == errno.EFBIG
    said = os.fstat
    monkeypatch.setattr(  # it grows while it is read
        files.os, "fstat", lambda n: os.stat_result((said(n).st_mode, *[0] * 9))
    )
    assert files.read_bytes(path, 11) == b"x" * 11
    with pytest.raises(files.Refused):
        files.read_bytes(path, 10)


def test_a_pipe_in_place_of_any_file_is_named_at_once(tmp_path):
    for name in ("t.csv", "t.csv.gz", "t.jsonl", "t.json", "t.parquet", "names.txt", "x.pt"):
        os.mkfifo(tmp_path / name)
    for name in ("t.csv", "t.csv.gz", "t.jsonl", "t.json", "t.parquet"):
        with pytest.raises(UserError, match="no regular file, but a pipe"):
            kinds.plan_of([str(tmp_path / name)], "mine", Options())
    with pytest.raises(UserError, match="no regular file, but a pipe"):
        bank.read_names(str(tmp_path / "names.txt"))
    with pytest.raises(UserError, match="no file of weights"):
        tensors.read(tmp_path / "x.pt")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na")
    os.mkfifo(tmp_path / "tokenizer" / "config.json")
    with pytest.raises(UserError, match=r"config.json cannot be read: no regular file"):
        Tokenizer(tmp_path / "tokenizer", 5)


def test_what_leaves_the_folder_of_an_untrusted_source_is_left_out_and_counted(tmp_path):
    names = write_pictures(tmp_path / "mine", 3)
    write_pictures(tmp_path / "other", 1)
    (tmp_path / "mine" / "link.jpg").symlink_to(tmp_path / "other" / "0.jpg")
    table = tmp_path / "mine" / "t.csv"
    outside = (tmp_path / "other" / "0.jpg", "../other/0.jpg", "link.jpg", "/proc/self/environ")
    lines = [f"{path},x" for path in (*names, *outside)]
    table.write_text("\n".join(["image,caption", *lines]) + "\n")
    for n in range(3):
        (tmp_path / "mine" / f"{n}.txt").write_text("x")
    (tmp_path / "mine" / "link.txt").write_text("x")
    (tmp_path / "mine" / "3.jpg").write_bytes((tmp_path / "mine" / names[0]).read_bytes())
    (tmp_path / "mine" / "3.txt").symlink_to("/proc/self/environ")
    untrusted = Reading(untrusted=True)
    for source, left_out in ((table, 4), (tmp_path / "mine", 2)):
        plan = kinds.plan_of([str(source)], f"mine{left_out}", Options(), untrusted)
        kept, part = made(tmp_path, plan)
        assert len(kept) == 3
        assert counts(part) == {OUTSIDE: left_out}
    kept, _ = made(tmp_path, kinds.plan_of([str(table)], "trusted", Options()))
    assert len(kept) == 6, "a table of one's own may name any file"


def test_a_link_of_an_untrusted_folder_to_another_is_refused(tmp_path):
    write_pictures(tmp_path / "mine", 1)
    (tmp_path / "mine" / "0.txt").write_text("x")
    (tmp_path / "mine" / "all").symlink_to("/")
    with pytest.raises(UserError, match=r"mine/all leads out of .*mine, which --untrusted refuses"):
        kinds.plan_of([str(tmp_path / "mine")], "mine", Options(), Reading(untrusted=True))
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "a.tar").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=r"a.tar leads out of"):
        kinds.plan_of([str(tmp_path / "tars")], "mine", Options(), Reading(untrusted=True))


def test_a_file_is_there_once_it_is_whole_and_an_error_leaves_what_was(tmp_path):
    path = tmp_path / "table.csv"
    for content in ("first", "second"):
        with files.written_whole(path) as scratch:
            scratch.write_text(content)
            assert path.exists() == (content == "second")
        assert path.read_text() == content

    def half():
        with files.written_whole(path) as scratch:
            scratch.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        half()
    assert [each.name for each in tmp_path.iterdir()] == ["table.csv"]
    assert path.read_text() == "second"


def test_of_two_that_write_a_file_at_once_either_is_whole(tmp_path):
    path = tmp_path / "table.csv"
    with files.written_whole(path) as first:
        first.write_text("first")
        with files.written_whole(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
        assert first.read_text() == "first"
    assert path.read_text() == "first"
    before = os.umask(0o027)
    os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~before


def test_what_a_killed_writer_left_the_next_one_of_the_file_removes(tmp_path):
    path, other = tmp_path / "[a].csv", tmp_path / "b.csv"
    script = """if True:
        import os, pathlib, sys
        from otter_jax import files
        begun = [files.written_whole(pathlib.Path(name)) for name in sys.argv[1:]]
        for each in begun:
            each.__enter__().write_text("half")
        os.kill(os.getpid(), 9)
    """
    subprocess.run([sys.executable, "-c", script, path, other])
    mine = tmp_path / ".[a].csv.mine.tmp"
    mine.touch()
    assert len(list(tmp_path.iterdir())) == 3
    with files.written_whole(path) as scratch:
        scratch.write_text("whole")
    left = set(tmp_path.iterdir()) - {path, mine}
    assert [each.name.split(".")[1] for each in left] == ["b"], "of another file: its next writer's"
