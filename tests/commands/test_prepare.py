"""The command makes a set and its report; killed it goes on, done it does nothing."""

import json
import signal
import subprocess
import sys
import time

import pytest
from making import write_pictures
from pictures import noise
from tars import tars_of_pairs, write_tar

from otter_jax.commands.prepare import main
from otter_jax.data.source import open_dataset


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "pair", "otter"]
    (folder / "vocab.txt").write_text("\n".join(words))
    return folder


def flags(tmp_path, tokenizer_folder, *arguments):
    return [
        *map(str, arguments), "--name", "mine", "--data_dir", str(tmp_path / "sets"),
        "--tokenizer", str(tokenizer_folder), "--max_tokens", "4",
    ]  # fmt: skip


# What the command does until its parts are made, without what it imports for the rest.
KILLED = """
import sys
from otter_jax.data.build.plan import Options
from otter_jax.data.ensure import make, plan_of

options = Options(resize=8, keep_duplicates=False)
make(plan_of([sys.argv[1]], "mine", options), sys.argv[2], workers=2)
"""


def test_killed_it_goes_on_and_run_twice_it_does_nothing(tmp_path, tokenizer_folder, capsys):
    folder = tars_of_pairs(tmp_path / "tars", number=6, each=40)
    first = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "sets")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    parts = tmp_path / "sets" / "mine"
    deadline = time.monotonic() + 240
    while not list(parts.glob("parts.*/*.parquet")) and first.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    command = flags(tmp_path, tokenizer_folder, folder, "--resize", "8", "--workers", "1")
    assert main(command) == 0
    second = capsys.readouterr().out
    assert "train: 240 pairs from 6 tars" in second
    assert "tokens on average" in second
    report = json.loads((parts / "1.0.0" / "report.json").read_text())
    assert 0 < report["train"]["made"] < 240  # the others were there
    page = (parts / "1.0.0" / "report.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 24
    assert "image resized to 8 pixels" in page
    before = {path: path.stat().st_mtime_ns for path in parts.rglob("*") if path.is_file()}
    assert main(command) == 0
    assert "nothing was done" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_table_of_pairs_becomes_a_set_and_what_comes_next_is_said(
    tmp_path, tokenizer_folder, capsys
):
    names = write_pictures(tmp_path / "p", 3)
    rows = [f"p/{name},otter {n}" for n, name in enumerate(names)]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,caption", *rows]))
    assert main(flags(tmp_path, tokenizer_folder, tmp_path / "pairs.csv")) == 0
    out = capsys.readouterr().out
    assert "train: 3 pairs from " in out
    assert "otter_jax train --config pairs:cpu --config.data.name=mine" in out
    source = open_dataset(str(tmp_path / "sets"), "mine", "train")
    assert {source[n]["caption"] for n in range(3)} == {"otter 0", "otter 1", "otter 2"}


def test_mistakes_are_one_paragraph(tmp_path, tokenizer_folder, capsys):
    write_pictures(tmp_path / "p", 1)
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
        ((tar, "--caption", "x", "--delimiter", ";"), "--caption, --delimiter are not for tars"),
        ((tmp_path / "t.csv", "--lines"), "--lines is not for tables, such as t.csv"),
        ((tar, "--key", "no-dot"), "invalid choice: 'no-dot'"),
        ((tmp_path / "t.csv", "--delimiter", "::"), "delimiter='::': one character"),
        ((tar, "--quality", "0"), "quality=0"),
        ((tar, "--format", "gif"), "format='gif'"),
        ((tar, "--resize", "-1"), "resize=-1"),
        ((tar, "--tokenizer", "nope"), "no weights at 'nope'"),
    ):
        status = main([*flags(tmp_path, tokenizer_folder), *map(str, arguments)])
        out = capsys.readouterr().err
        assert status == 2
        assert out.startswith("error: ")
        assert said in out
