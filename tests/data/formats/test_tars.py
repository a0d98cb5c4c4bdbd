"""Web-dataset tars become a set, whatever is wrong with them; what was wrong is told."""

import gzip
import json
import pathlib

import pytest
import tensorflow_datasets as tfds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import noise
from tars import pairs, write_tar

from otter_jax.data.build.parts import image_to_store
from otter_jax.data.build.plan import WINDOW, Options
from otter_jax.data.build.report import Tally
from otter_jax.data.ensure import ensure
from otter_jax.data.formats import keys, kinds, tars
from otter_jax.data.source import open_dataset
from otter_jax.errors import UserError


def records(folder, name, split="train"):
    source = open_dataset(str(folder), name, split)
    return {source[i]["key"]: source[i] for i in range(len(source))}


def report(folder, name, split="train"):
    return json.loads((pathlib.Path(folder) / name / "1.0.0" / "report.json").read_text())[split]


def build(tmp_path, members, name="mine"):
    """The records by key, and {reason: [count, first names]} of what was dropped and changed."""
    tar = write_tar(tmp_path / f"{name}.tar", members)
    ensure(name, str(tmp_path), (tar,))
    part = report(tmp_path, name)
    found = {why: entry["count"] for why, entry in (part["dropped"] | part["changed"]).items()}
    kept = records(tmp_path, name)
    assert part["kept"] == len(kept)
    return kept, found


def test_bytes_caption_key_and_json_come_back_as_they_were(tmp_path):
    sidecar = '{"caption": "not this",  "tags": ["ü", 1]}'
    kept, found = build(
        tmp_path,
        [
            ("sub/a.jpg", noise(1)),
            ("sub/a.txt", " an otter\n"),
            ("sub/a.json", sidecar),
            ("b.PNG", noise(2, "PNG")),
            ("b.json", '{"caption": "from json"}'),
            ("./c.webp", noise(3, "WEBP")),
            ("./c.txt", "NA"),
        ],
    )
    assert found == {}
    assert kept["sub/a"] == {
        "image": noise(1),
        "caption": "an otter",
        "key": "sub/a",
        "json": sidecar,
    }
    assert kept["b"]["image"] == noise(2, "PNG")
    assert kept["b"]["caption"] == "from json"
    assert (kept["c"]["caption"], kept["c"]["json"]) == ("NA", "{}")


def test_every_defect_is_counted_named_and_stops_nothing(tmp_path, capsys):
    ok = noise()
    kept, found = build(
        tmp_path,
        [
            ("good.jpg", ok),
            ("good.txt", "good"),
            ("torn.jpg", ok[:-200]),
            ("torn.txt", "cut in the middle"),
            ("zero.jpg", b""),
            ("zero.txt", "no bytes"),
            ("html.jpg", b"<html>"),
            ("html.txt", "not found"),
            ("null.jpg", ok),
            ("null.json", '{"caption": null}'),
            ("list.jpg", ok),
            ("list.json", "[1, 2]"),
            ("notjson.jpg", ok),
            ("notjson.json", "{"),
            ("blank.jpg", ok),
            ("blank.txt", " \n\x00"),
            ("alone.jpg", ok),
            ("words.txt", "no picture"),
            ("good.jpg", noise(9)),
            ("good.txt", "the second of that name"),
            ("readme.md", "passed over"),
            ("long.jpg", ok),
            ("long.txt", "x" * 100_000),
            ("control.jpg", ok),
            ("control.json", '{"caption": "a\\u0000b \\ud83d"}'),
            ("half.jpg", ok),
            ("half.txt", "fine"),
            ("half.json", "{"),
            ("latin.jpg", ok),
            ("latin.txt", "caf\xe9".encode("latin-1")),
        ],
    )
    assert found == {
        "unreadable image": 2,
        "empty file": 1,
        "missing caption": 3,
        "empty caption": 1,
        "image without caption": 1,
        "caption without image": 1,
        "duplicate key": 1,
        "sidecar is not JSON, left out": 2,
        "caption cut at 10,000 characters": 1,
        "caption cleaned of control characters": 1,
        "caption with U+FFFD, for bytes that are (or once were) no UTF-8": 1,
    }
    assert {key: record["caption"] for key, record in kept.items()} == {
        "good": "good",
        "long": "x" * 10_000,
        "control": "a b \ufffd",
        "half": "fine",
        "latin": "caf\ufffd",
    }
    assert kept["half"]["json"] == "{}"
    dropped = report(tmp_path, "mine")["dropped"]
    assert dropped["image without caption"]["first"] == ["mine.tar: alone"]
    assert [name.split(" ")[1] for name in dropped["unreadable image"]["first"]] == [
        "torn",
        "html",
    ]
    printed = capsys.readouterr().out
    assert "train: 5 pairs from 1 tar" in printed
    assert "caption without image: mine.tar: words" in printed


@pytest.mark.parametrize("compression", ["", "gz"])
def test_a_shard_cut_in_the_middle_keeps_what_came_before(tmp_path, compression):
    whole = pathlib.Path(write_tar(tmp_path / "whole.tar", pairs(range(20))))
    if compression:
        whole.write_bytes(gzip.compress(whole.read_bytes()))
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    rest = write_tar(tmp_path / "rest.tar", pairs(range(100, 105)))
    no_tar = tmp_path / "zz.tar"
    no_tar.write_bytes(b"what is this")
    ensure("mine", str(tmp_path), (str(cut), str(no_tar), rest))
    found = sorted(records(tmp_path, "mine"))
    before = [key for key in found if key < "0100"]
    assert before == [f"{n:04}" for n in range(len(before))]
    assert 5 <= len(before) < 20
    assert found[len(before) :] == [f"{n:04}" for n in range(100, 105)]
    dropped = report(tmp_path, "mine")["dropped"]
    assert dropped["rest of a broken tar"]["first"][0].startswith("cut.tar: ")
    assert dropped[keys.NO_TAR]["first"] == ["zz.tar: text (truncated header)"]


def test_members_of_a_plain_tar_may_be_in_any_order(tmp_path):
    far = [(f"{n}.{kind}", content) for kind, content in (("jpg", noise()), ("json", "{}"),
           ("txt", "said last")) for n in range(WINDOW + 3)]  # fmt: skip
    kept, found = build(tmp_path, far)
    assert len(kept) == WINDOW + 3
    assert {row["caption"] for row in kept.values()} == {"said last"}
    assert found == {"duplicate, kept": WINDOW + 2}


def test_members_of_a_packed_tar_may_be_out_of_order_within_the_window(tmp_path):
    for number, dropped in ((WINDOW, {}), (WINDOW + 3, {keys.FAR: 3})):
        far = sorted(pairs(range(number)), key=lambda member: member[0].endswith("txt"))
        tar = pathlib.Path(write_tar(tmp_path / f"{number}.tar", far))
        tar.write_bytes(gzip.compress(tar.read_bytes()))
        tally = Tally()
        (unit,) = kinds.plan_of([str(tar)], "mine", Options()).units["train"]
        assert len(list(unit.read(tally))) == WINDOW
        found = {why: entry["count"] for why, entry in tally.found["dropped"].items()}
        assert found == dropped


def test_a_key_names_a_pair_within_its_tar(tmp_path):
    both = tuple(write_tar(tmp_path / f"{i}.tar", pairs(range(3))) for i in range(2))
    ensure("mine", str(tmp_path), both)
    assert len(open_dataset(str(tmp_path), "mine", "train")) == 6


def test_a_tar_found_by_two_globs_is_read_once(tmp_path):
    write_tar(tmp_path / "a.tar", pairs(range(3)))
    ensure("mine", str(tmp_path), (str(tmp_path / "*.tar"), str(tmp_path / "a.*")))
    assert len(open_dataset(str(tmp_path), "mine", "train")) == 3


def test_several_sets_and_splits_live_side_by_side_and_tfds_reads_them(tmp_path):
    first = write_tar(tmp_path / "first.tar", pairs(range(4)))
    second = write_tar(tmp_path / "second.tar", pairs(range(4, 6)))
    ensure("one", str(tmp_path), (first,))
    ensure("two", str(tmp_path), {"train": (first,), "test": (second,)})
    assert sorted(records(tmp_path, "two", "test")) == ["0004", "0005"]
    builder = tfds.builder_from_directory(str(tmp_path / "one" / "1.0.0"))
    assert builder.name == "one"
    assert len(builder.as_data_source("train")) == 4
    assert builder.as_data_source("train")[0]["image"].shape[2] == 3


def test_the_same_tars_give_the_same_files(tmp_path):
    tar = write_tar(tmp_path / "a.tar", pairs(range(30)))
    for folder in ("x", "y"):
        ensure("mine", str(tmp_path / folder), (tar,))
    x, y = (sorted((tmp_path / f / "mine" / "1.0.0").iterdir()) for f in ("x", "y"))
    assert [file.name for file in x] == [file.name for file in y]
    for a, b in zip(x, y, strict=True):
        if "array_record" in a.name:
            assert a.read_bytes() == b.read_bytes()


def test_a_set_is_found_again_and_other_tars_need_another_name(tmp_path, capsys):
    tar = write_tar(tmp_path / "a.tar", pairs(range(3)))
    other = write_tar(tmp_path / "b.tar", pairs(range(3)))
    ensure("mine", str(tmp_path), (tar,))
    capsys.readouterr()
    ensure("mine", str(tmp_path), (tar,))
    ensure("mine", str(tmp_path))
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match=r"other files.*a\.tar.*another name"):
        ensure("mine", str(tmp_path), (other,))
    write_tar(tar, pairs(range(9)))
    with pytest.raises(UserError, match="by name or size"):
        ensure("mine", str(tmp_path), (tar,))
    pathlib.Path(tar).unlink()
    ensure("mine", str(tmp_path), (tar,))  # built, and the tars cleaned away


def test_a_set_to_evaluate_on_needs_no_captions_and_is_not_trained_on(tmp_path, capsys):
    tar = write_tar(tmp_path / "a.tar", [*pairs(range(2)), ("x.jpg", noise()), ("x.cls", "7")])
    ensure("seen", str(tmp_path), (tar,), captions=False)
    kept = records(tmp_path, "seen")
    assert (kept["x"]["caption"], kept["x"]["json"]) == ("", '{"cls": 7}')
    assert kept["0000"]["caption"] == "picture number 0"
    ensure("seen", str(tmp_path), captions=False)
    for source in ((), (tar,)):
        with pytest.raises(UserError, match=r"1 pictures of the data set seen have no caption"):
            ensure("seen", str(tmp_path), source)
    ensure("trained", str(tmp_path), (tar,))
    assert len(records(tmp_path, "trained")) == 2
    capsys.readouterr()
    ensure("trained", str(tmp_path), (tar,), captions=False)
    assert "trained: 1 records without caption were left out" in capsys.readouterr().out
    full = write_tar(tmp_path / "b.tar", pairs(range(2)))
    ensure("both", str(tmp_path), (full,), captions=False)
    ensure("both", str(tmp_path), (full,))  # no caption is missing


def test_an_interrupted_build_leaves_no_set_and_starts_over(tmp_path, monkeypatch):
    tar = write_tar(tmp_path / "a.tar", pairs(range(3)))

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tars, "records", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ensure("mine", str(tmp_path), (tar,))
    killed = tmp_path / "mine" / "incomplete.ABCDEF_1.0.0"
    killed.mkdir()
    with pytest.raises(UserError, match="no data set mine"):
        open_dataset(str(tmp_path), "mine", "train")
    ensure("mine", str(tmp_path), (tar,))
    assert len(records(tmp_path, "mine")) == 3
    assert not killed.exists()


def test_what_cannot_be_built_says_why(tmp_path):
    tar = write_tar(tmp_path / "a.tar", [("a.jpg", noise()), ("b.txt", "apart")])
    with pytest.raises(UserError, match=r"no pairs in train(.|\n)*image without caption: a\.tar"):
        ensure("mine", str(tmp_path), (tar,))
    with pytest.raises(UserError, match=r"No tar matches '.*nope-\*\.tar'"):
        ensure("mine", str(tmp_path), (str(tmp_path / "nope-*.tar"),))
    with pytest.raises(UserError, match="cannot be called 'My Set'"):
        ensure("My Set", str(tmp_path), (tar,))
    with pytest.raises(UserError, match="name openmoji is taken"):
        ensure("openmoji", str(tmp_path), (tar,))
    with pytest.raises(UserError, match=r"no data set mine in .*; there are: none"):
        ensure("mine", str(tmp_path))


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
            image_to_store(record, Options())
