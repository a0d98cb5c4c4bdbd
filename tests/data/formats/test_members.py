"""The files of a key make pairs, in a tar as in a folder; what they do not say plainly is named."""

import codecs
import json

import pytest
from pictures import noise
from tars import write_tar

from otter_jax.data.build.plan import UNCAPTIONED, Options
from otter_jax.data.build.report import Tally
from otter_jax.data.formats import keys, kinds, members
from otter_jax.data.formats.reading import Reading
from otter_jax.errors import UserError

LINES = "caption of several lines, joined (--lines makes a pair of each)"
UNKNOWN = "file of an unknown kind in place of an image"
CONTENT = "image known by its content, not by its suffix"
NUMBER, NONE = "caption that is a number, taken as text", "caption that is"
MORE = "further captions of a picture, left out by --nocaptions"
UTF16 = "text in UTF-16 or UTF-32, not UTF-8"


@pytest.fixture(params=["tar", "folder"])
def read(request, tmp_path):
    """Reads files as a tar and as a folder: (key, caption, json) of each, {reason: count}."""

    def reads(files, **reading):
        if request.param == "tar":
            source = write_tar(tmp_path / "a.tar", files.items())
        else:
            source = tmp_path / "tree"
            source.mkdir()
            for name, content in files.items():
                content = content.encode() if isinstance(content, str) else content
                (source / name).write_bytes(content)
        plan = kinds.plan_of([str(source)], "mine", Options(), Reading(**reading))
        tally, found = Tally(), []
        for unit in plan.units["train"]:
            for record in unit.read(tally):
                image = record.image
                image = image if isinstance(image, bytes) else image.read_bytes()
                assert image == noise()
                found.append(tuple(record.fields[name] for name in ("key", "caption", "json")))
        told = tally.found["dropped"] | tally.found["changed"]
        return found, {why: entry["count"] for why, entry in told.items()}

    return reads


def test_lines_of_a_text_are_one_caption_that_is_counted_or_one_each_by_choice(read):
    files = {"a.jpg": noise(), "a.txt": "one\r\n\n two\n", "b.jpg": noise(), "b.txt": "three\n"}
    found, told = read(files)
    assert [row[:2] for row in found] == [("a", "one  two"), ("b", "three")]
    assert told == {LINES: 1}


def test_by_choice_every_line_of_a_text_is_a_caption(read):
    files = {"a.jpg": noise(), "a.txt": "one\r\n\n two\n", "b.jpg": noise(), "b.txt": " \n"}
    found, told = read(files, lines=True)
    assert [row[:2] for row in found] == [("a", "one"), ("a", "two")]
    assert told == {"empty caption": 1}


@pytest.mark.parametrize(
    ("sidecar", "captions", "told"),
    [
        ({"caption": ["one", "two"]}, ["one", "two"], {}),
        ({"captions": ["one", "", "two"]}, ["one", "two"], {"empty caption": 1}),
        ({"caption": None, "captions": "one"}, ["one"], {}),
        ({"caption": 5}, ["5"], {NUMBER: 1}),
        ({"caption": [2.5, {"raw": "x"}]}, ["2.5"], {NUMBER: 1, f"{NONE} an object, no text": 1}),
        ({"caption": float("nan")}, [], {"missing caption": 1}),
        ({"caption": [], "captions": ["one"]}, ["one"], {}),
        ({"caption": []}, [], {"missing caption": 1}),
        ({"caption": True}, [], {f"{NONE} true or false, no text": 1}),
    ],
)
def test_a_sidecar_has_one_caption_or_a_list_of_them(read, sidecar, captions, told):
    found, counted = read({"a.jpg": noise(), "a.json": json.dumps(sidecar)})
    assert [row[1] for row in found] == captions
    assert {row[2] for row in found} <= {json.dumps(sidecar)}
    assert counted == told


def test_texts_in_other_encodings_are_read_and_counted(read):
    text = "ein Otter, größer"
    marked = {
        "a": codecs.BOM_UTF8 + text.encode(),
        "b": codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
        "c": codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
        "d": text.encode("utf-16-le"),
        "e": text.encode("utf-32"),
    }
    files = {f"{name}.jpg": noise() for name in [*marked, "f", "g"]}
    files |= {f"{name}.txt": content for name, content in marked.items()}
    files["f.json"] = json.dumps({"caption": text}, ensure_ascii=False).encode("utf-16")
    files["g.txt"] = text.encode("latin-1")
    found, told = read(files)
    captions = {key: caption for key, caption, _ in found}
    assert captions.pop("g") == "ein Otter, gr\ufffd\ufffder"
    assert captions == dict.fromkeys("abcdef", text)
    assert told == {UTF16: 5, "caption with U+FFFD, for bytes that are (or once were) no UTF-8": 1}


def test_classes_go_into_the_json_of_a_record(read):
    files = {"a.cls": "3\n", "b.cls": "otter", "c.cls": "7", "c.json": '{"x": 1}'}
    files |= {f"{name}.jpg": noise() for name in "abc"}
    found, told = read(files, captions=False)
    assert [json.loads(row[2]) for row in found] == [
        {"cls": 3}, {"cls": "otter"}, {"x": 1, "cls": 7}
    ]  # fmt: skip
    assert told == {UNCAPTIONED: 3}


def test_pictures_need_a_caption_unless_the_set_is_only_evaluated_on(read):
    files = {f"{name}.jpg": noise() for name in "abcd"}
    files |= {"b.json": '{"species": "otter"}', "c.txt": "", "d.json": '{"caption": ["x", "y"]}'}
    found, told = read(files, captions=False)
    assert [row[:2] for row in found] == [("a", ""), ("b", ""), ("c", ""), ("d", "x")]
    assert json.loads(found[1][2]) == {"species": "otter"}
    assert told == {UNCAPTIONED: 3, MORE: 1}


def test_with_captions_needed_the_same_pictures_are_dropped(read):
    files = {"a.jpg": noise(), "b.jpg": noise(), "b.json": '{"species": "otter"}'}
    found, told = read(files | {"c.jpg": noise(), "c.txt": "", "d.jpg": noise(), "d.cls": "1"})
    assert found == []
    assert told == {"image without caption": 2, "missing caption": 1, "empty caption": 1}


def test_pictures_that_are_not_read_are_named_by_format_and_others_known_by_content(read):
    files = {
        "a.heic": b"....ftypheic", "a.txt": "x", "b.HEIF": b"", "c.jxl": b"", "c.txt": "x",
        "d": noise(), "d.txt": "no suffix", "e.dat": noise(), "e.json": '{"caption": "wrong"}',
        "f.mp4": b"a film", "f.txt": "x", "g.npy": b"alone", "h.jpg": noise(), "h.txt": "fine",
        "h.heic": b"", "h.npy": b"",
    }  # fmt: skip
    found, told = read(files)
    assert [row[:2] for row in found] == [("d", "no suffix"), ("e", "wrong"), ("h", "fine")]
    assert told == {
        "HEIC picture, not read: convert it to JPEG or PNG": 2,
        "JPEG XL picture, not read: convert it to JPEG or PNG": 1,
        CONTENT: 2,
        UNKNOWN: 1,
    }


@pytest.mark.parametrize("suffix", ["JPG", "jpe", "jfif", "gif", "bmp", "tif", "tiff", "avif"])
def test_pictures_of_all_suffixes_are_read(read, suffix):
    found, told = read({f"a.{suffix}": noise(), "a.txt": "x"})
    assert [row[0] for row in found] == ["a"]
    assert told == {}


def dotted():
    """Files whose names have more dots than one."""
    files = {"ok.jpg": noise(), "ok.txt": "fine", "x.jpg.jpg": noise(), "s.input.jpg": noise()}
    return files | {"s.output.txt": "apart", "photo.0.jpg": noise(), "photo.0.txt": "zero"} | {
        "A dog..jpg": noise(), "A dog..txt": "dog",  # named by a sentence
    }  # fmt: skip


def test_a_key_ends_at_the_first_dot_in_tars_and_all_others_are_named(tmp_path):
    tar = write_tar(tmp_path / "a.tar", dotted().items())
    tally = Tally()
    (unit,) = kinds.plan_of([tar], "mine", Options()).units["train"]
    assert [record.fields["key"] for record in unit.read(tally)] == ["ok"]
    assert tally.found["dropped"] == {
        keys.DOTS: {"count": 7, "first": [f"a.tar: {name}" for name in list(dotted())[2:7]]}
    }


def test_a_key_ends_at_the_last_dot_by_choice_and_in_folders(read):
    found, told = read(dotted(), key="last-dot")
    assert sorted(row[0] for row in found) == ["A dog.", "ok", "photo.0"]
    assert told == {"image without caption": 2, "caption without image": 1}


def test_a_sidecar_of_another_kind_gives_way_to_the_class():
    tally = Tally()
    files = {"image": noise(), "txt": b"x", "json": b"[1]", "cls": b"2"}
    (record,) = members.records("a", files, "a", tally)
    assert record.fields["json"] == '{"cls": 2}'
    assert list(tally.found["changed"]) == ["sidecar is no JSON object, left out"]


def test_a_folder_of_others_is_named(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"film")
    with pytest.raises(UserError, match=r"no pictures with captions in .*\.jpeg"):
        kinds.plan_of([str(tmp_path)], "mine", Options())
