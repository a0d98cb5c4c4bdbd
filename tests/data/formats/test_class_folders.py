"""A folder with a folder per class becomes a labelled set; what cannot be one says why."""

import json
import os
import shutil

import pytest
import tensorflow_datasets as tfds
from pictures import noise
from tars import pairs, write_tar

from otter_jax.data.build import parts, work
from otter_jax.data.build.plan import Options
from otter_jax.data.ensure import ensure, make
from otter_jax.data.formats import class_folders
from otter_jax.data.source import open_dataset
from otter_jax.errors import UserError


def write(root, files):
    """Files of {path: content}, or of paths alone, each with a picture of its own."""
    for number, path in enumerate(files):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(files[path] if isinstance(files, dict) else noise(number))
    return root


def build(tmp_path, files, name="mine"):
    """The set of a folder with these files, and its root."""
    root = write(tmp_path / "tree", files)
    ensure(name, str(tmp_path), folder=str(root))
    return root


def labels(tmp_path, split="train", name="mine"):
    """Key -> name of the class."""
    source = open_dataset(str(tmp_path), name, split)
    names = source.classes("label")
    return {source[i]["key"]: names[source[i]["label"]] for i in range(len(source))}


def report(tmp_path, split="train"):
    return json.loads((tmp_path / "mine" / "1.0.0" / "report.json").read_text("utf-8"))[split]


CATS_AND_DOGS = ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg"]


def test_a_folder_per_class_becomes_train_with_bytes_label_and_path(tmp_path):
    files = {
        "cat/1.jpg": noise(1),
        "cat/2.JPEG": noise(2),
        "ape/a.png": noise(3, "PNG"),
        "ape/b.WebP": noise(4, "WEBP"),
    }
    build(tmp_path, files)
    source = open_dataset(str(tmp_path), "mine", "train")
    assert source.classes("label") == ["ape", "cat"]
    records = {source[i]["key"]: source[i] for i in range(len(source))}
    assert {key: record["image"] for key, record in records.items()} == files
    assert labels(tmp_path) == {key: key.split("/")[0] for key in files}
    assert set(records["cat/1.jpg"]) == {"image", "label", "key"}
    builder = tfds.builder_from_directory(str(tmp_path / "mine" / "1.0.0"))
    assert builder.name == "mine"
    assert builder.as_data_source("train")[0]["image"].shape == (20, 20, 3)


def test_label_numbers_agree_between_splits_even_where_a_class_is_missing(tmp_path):
    in_train = ["train/b/1.jpg", "train/b/2.jpg", "train/c/1.jpg"]
    build(tmp_path, [*in_train, "dev-1/a/1.jpg", "dev-1/a/2.jpg", "dev-1/c/1.jpg"])
    train, dev = (open_dataset(str(tmp_path), "mine", split) for split in ("train", "dev-1"))
    assert train.classes("label") == dev.classes("label") == ["a", "b", "c"]
    assert sorted(train[i]["label"] for i in range(len(train))) == [1, 1, 2]
    assert labels(tmp_path, "train") == {
        "train/b/1.jpg": "b",
        "train/b/2.jpg": "b",
        "train/c/1.jpg": "c",
    }
    assert labels(tmp_path, "dev-1") == {
        "dev-1/a/1.jpg": "a",
        "dev-1/a/2.jpg": "a",
        "dev-1/c/1.jpg": "c",
    }


def test_the_order_does_not_follow_the_classes(tmp_path):
    build(tmp_path, [f"{name}/{n}.jpg" for name in "ab" for n in range(20)])
    source = open_dataset(str(tmp_path), "mine", "train[:50%]")
    assert 4 < sum(source[i]["label"] for i in range(20)) < 16


def test_the_same_folder_gives_the_same_records_file(tmp_path):
    root = build(tmp_path / "x", CATS_AND_DOGS)
    ensure("mine", str(tmp_path / "y"), folder=f"{root}/")
    x, y = (next((tmp_path / f / "mine" / "1.0.0").glob("*array_record*")) for f in ("x", "y"))
    assert x.name == y.name
    assert x.read_bytes() == y.read_bytes()


def test_the_order_in_the_set_follows_from_the_paths_alone(tmp_path, monkeypatch):
    build(tmp_path / "x", [f"{name}/{n}.jpg" for name in "ab" for n in range(20)])
    monkeypatch.setattr(class_folders, "SLICE", 3)
    ensure("mine", str(tmp_path / "y"), folder=str(tmp_path / "x" / "tree"))
    files = [next((tmp_path / f / "mine" / "1.0.0").glob("*array_record*")) for f in ("x", "y")]
    assert files[0].read_bytes() == files[1].read_bytes()
    there = open_dataset(str(tmp_path / "y"), "mine", "train")
    keys = [there[i]["key"] for i in range(40)]
    of_a = class_folders.find(tmp_path / "x" / "tree")["train"]["a"]
    places = {file.path: place for file, place in class_folders.placed(of_a)}
    found = [places[key] for key in keys if key[0] == "a"]
    assert found == sorted(found) == pytest.approx([i / 19 for i in range(20)], abs=1e-6)


@pytest.mark.parametrize("sizes", [(2, 2, 2, 14), (5, 5, 5, 5), (2, 3, 50, 4)])
def test_a_slice_with_as_many_pictures_as_classes_has_all_classes_and_so_has_the_rest(
    tmp_path, sizes
):
    files = [f"{c}/{n}.jpg" for c, size in zip("abcd", sizes, strict=True) for n in range(size)]
    build(tmp_path, files)
    for slices in (("train[:20%]", "train[20%:]"), ("train[80%:]", "train[:80%]")):
        for split in slices:
            assert set(labels(tmp_path, split).values()) == set("abcd"), split


def test_a_slice_has_each_class_in_its_share(tmp_path):
    build(tmp_path, [f"{c}/{n}.jpg" for c, size in (("a", 30), ("b", 10)) for n in range(size)])
    for split in ("train[:50%]", "train[50%:]", "train[25%:75%]"):
        found = list(labels(tmp_path, split).values())
        assert abs(found.count("a") - 15) <= 1, split


def test_every_picture_left_out_is_counted_and_named_and_stops_nothing(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(parts, "MAX_BYTES", 5_000)
    files = {path: noise(n) for n, path in enumerate(CATS_AND_DOGS)} | {
        "cat/torn.jpg": noise()[:-200],
        "cat/html.png": b"<html>",
        "cat/zero.jpg": b"",
        "cat/notes.txt": b"about cats",
        "cat/noext": noise(),
        "cat/phone.HEIC": b"of a telephone",
        "dog/large.jpg": noise() + b"\0" * 5_000,
    }
    root = write(tmp_path / "tree", files)
    (root / "dog" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    ensure("mine", str(tmp_path), folder=str(root))
    assert sorted(labels(tmp_path)) == CATS_AND_DOGS
    part = report(tmp_path)
    assert part["kept"] == 4
    assert part["changed"] == {}
    assert {why: entry["count"] for why, entry in part["dropped"].items()} == {
        "unreadable image": 2,
        "empty file": 1,
        "not a picture": 3,
        "HEIC picture, not read: convert it to JPEG or PNG": 1,
        "file over 64 MiB": 1,
    }
    others = part["dropped"]["not a picture"]["first"]
    assert others == ["cat/noext", "cat/notes.txt", "dog/gone.jpg"]
    html, torn = part["dropped"]["unreadable image"]["first"]
    assert html == "cat/html.png (no picture: an HTML page)"
    assert torn.startswith("cat/torn.jpg (JPEG: image file is truncated")
    printed = capsys.readouterr().out
    assert "train: 4 pictures from the folder tree" in printed
    assert "dropped         1  empty file: cat/zero.jpg" in printed


def test_five_of_many_unreadable_pictures_are_named(tmp_path):
    bad = {f"cat/bad{n:03}.jpg": b"no" for n in range(150)}
    build(tmp_path, bad | {path: noise() for path in CATS_AND_DOGS})
    entry = report(tmp_path)["dropped"]["unreadable image"]
    assert entry["count"] == 150
    assert [name.split(" ")[0] for name in entry["first"]] == sorted(bad)[:5]
    assert len(labels(tmp_path)) == 4


def test_a_picture_that_vanishes_during_the_build_is_told(tmp_path):
    root = write(tmp_path / "tree", [*CATS_AND_DOGS, "dog/3.jpg"])
    plan = class_folders.plan("mine", root, Options())
    (root / "dog" / "3.jpg").unlink()
    make(plan, str(tmp_path))
    dropped = report(tmp_path)["dropped"]
    assert dropped["missing file"]["first"] == ["dog/3.jpg"]


def test_hidden_files_and_folders_and_other_files_beside_the_classes_are_passed_over(tmp_path):
    files = {path: noise() for path in CATS_AND_DOGS} | {
        ".cache/x/1.jpg": noise(),
        ".DS_Store": b"x",
        "cat/.DS_Store": b"x",
        "cat/._1.jpg": b"x",
        "cat/.thumbs/1.jpg": noise(),
        "__MACOSX/cat/._1.jpg": b"x",  # of a ZIP archive
        "README.md": b"cats and dogs",
    }
    build(tmp_path, files)
    assert sorted(labels(tmp_path)) == CATS_AND_DOGS
    assert report(tmp_path)["dropped"] == {}


def test_links_to_folders_and_pictures_are_followed(tmp_path):
    root = write(tmp_path / "tree", CATS_AND_DOGS)
    write(tmp_path / "elsewhere", ["1.jpg", "2.jpg"])
    (root / "owl").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "3.jpg").symlink_to(tmp_path / "elsewhere" / "1.jpg")
    ensure("mine", str(tmp_path), folder=str(root))
    assert set(labels(tmp_path)) == {*CATS_AND_DOGS, "owl/1.jpg", "owl/2.jpg", "cat/3.jpg"}


def test_class_and_file_names_may_have_spaces_and_any_letters(tmp_path):
    build(tmp_path, ["große Katze/ein Bild.jpg", "große Katze/2.jpg", "犬/写真 1.jpg", "犬/2.jpg"])
    assert labels(tmp_path) == {
        "große Katze/ein Bild.jpg": "große Katze",
        "große Katze/2.jpg": "große Katze",
        "犬/写真 1.jpg": "犬",
        "犬/2.jpg": "犬",
    }


def test_names_that_are_no_utf8_or_have_control_characters_are_cleaned(tmp_path):
    latin, line = os.fsdecode(b"caf\xe9"), "two\nlines"
    files = {f"{latin}/1.jpg": noise(1), f"{latin}/\udce9.jpg": noise(2)}
    files |= {
        f"{latin}/\udce8.jpg": b"no",
        f"{line}/1.jpg": noise(3),
        f"{line}/2.jpg": noise(4),
    }
    build(tmp_path, files)
    assert labels(tmp_path) == {
        "caf\ufffd/1.jpg": "caf\ufffd",
        "caf\ufffd/\ufffd.jpg": "caf\ufffd",
        "two lines/1.jpg": "two lines",
        "two lines/2.jpg": "two lines",
    }
    (name,) = report(tmp_path)["dropped"]["unreadable image"]["first"]
    assert name.startswith("caf\ufffd/\ufffd.jpg (")


def test_a_set_is_found_again_and_another_folder_needs_another_name(tmp_path, capsys):
    root = build(tmp_path, CATS_AND_DOGS)
    other = write(tmp_path / "other", [*CATS_AND_DOGS, "dog/3.jpg"])
    capsys.readouterr()
    ensure("mine", str(tmp_path), folder=str(root))
    ensure("mine", str(tmp_path))
    shutil.copytree(root, tmp_path / "moved")
    ensure("mine", str(tmp_path), folder=str(tmp_path / "moved"))
    assert capsys.readouterr().out == ""
    with pytest.raises(
        UserError,
        match="other files than the folder other, .*: from the folder tree, 4 pictures in train. "
        "Give this data another name",
    ):
        ensure("mine", str(tmp_path), folder=str(other))
    (root / "cat" / "1.jpg").write_bytes(noise() + b"\0")
    with pytest.raises(UserError, match="by name or size"):
        ensure("mine", str(tmp_path), folder=str(root))
    shutil.rmtree(root)
    ensure("mine", str(tmp_path), folder=str(root))  # built, and the pictures cleaned away
    root.mkdir()
    ensure("mine", str(tmp_path), folder=str(root))  # a disk that is not mounted
    assert capsys.readouterr().out == ""


def test_a_picture_moved_to_another_class_makes_another_folder(tmp_path):
    root = build(tmp_path, [*CATS_AND_DOGS, "cat/3.jpg"])
    (root / "cat" / "3.jpg").rename(root / "dog" / "3.jpg")
    with pytest.raises(UserError, match="other files than the folder tree, by name or size"):
        ensure("mine", str(tmp_path), folder=str(root))
    (root / "dog" / "3.jpg").rename(root / "cat" / "3.jpg")
    ensure("mine", str(tmp_path), folder=str(root))


def test_the_same_pictures_in_other_splits_are_another_folder(tmp_path):
    build(tmp_path, CATS_AND_DOGS)
    other = write(tmp_path / "other", [f"test/{path}" for path in CATS_AND_DOGS])
    with pytest.raises(
        UserError, match="built from other files than the folder other, .*: from the folder tree"
    ):
        ensure("mine", str(tmp_path), folder=str(other))


def test_sets_of_tars_and_of_folders_are_not_taken_for_each_other(tmp_path):
    tar = write_tar(tmp_path / "a.tar", pairs(range(3)))
    root = build(tmp_path, CATS_AND_DOGS)
    with pytest.raises(
        UserError, match="mine/1.0.0 was built from other files than 1 tar, .* the folder tree"
    ):
        ensure("mine", str(tmp_path), (tar,))
    ensure("tars", str(tmp_path), (tar,))
    with pytest.raises(
        UserError,
        match="tars/1.0.0 was built from other files than the folder tree, .* 1 tar, a.tar",
    ):
        ensure("tars", str(tmp_path), folder=str(root))
    with pytest.raises(UserError, match="of tars and of the folder .*tree: give one of the two"):
        ensure("mine", str(tmp_path), (tar,), str(root))


def test_an_interrupted_build_leaves_no_set_and_starts_over(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parts, "image_to_store", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, CATS_AND_DOGS)
    with pytest.raises(UserError, match="no data set mine"):
        open_dataset(str(tmp_path), "mine", "train")
    build(tmp_path, CATS_AND_DOGS)
    assert len(labels(tmp_path)) == 4


def refused(tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        build(tmp_path, files)
    assert not (tmp_path / "mine" / "1.0.0").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            [*CATS_AND_DOGS, "train/owl/1.jpg"],
            "mixed: there is the folder train/owl/, so all pictures must lie in "
            "ROOT/SPLIT/CLASS/, but there is cat/1.jpg.",
        ),
        (
            [*CATS_AND_DOGS, "cat/small/1.jpg"],
            "mixed: there is the folder cat/small/, .*ROOT/SPLIT/CLASS/, but there is cat/1.jpg.",
        ),
        ([*CATS_AND_DOGS, "0.jpg"], "folder cat/, .* ROOT/CLASS/, but there is 0.jpg."),
        (["train/a/1.jpg", "train/1.jpg"], "folder train/a/, .*but there is train/1.jpg."),
        (["train/a/1.jpg", "train/a/b/1.jpg"], "folder train/a/, .*but there is train/a/b/."),
    ],
)
def test_mixed_layouts_are_refused_with_an_example_of_both(tmp_path, files, message):
    refused(tmp_path, files, message)


@pytest.mark.parametrize("files", [[], ["1.jpg", "2.jpg"], {"cat/notes.txt": b"", "a.txt": b""}])
def test_a_folder_without_pictures_in_classes_is_refused(tmp_path, files):
    (tmp_path / "tree").mkdir()
    refused(
        tmp_path,
        files,
        r"no class folders with pictures \(.jpg, .jpeg, .*, .avif\) in .*/tree. The layout must",
    )


def test_a_split_without_pictures_is_refused_by_name(tmp_path):
    files = {f"train/{path}": noise() for path in CATS_AND_DOGS}
    refused(tmp_path, files | {"test/cat/notes.txt": b""}, "no class folders .* in .*/tree/test.")
    (tmp_path / "tree" / "test" / "cat" / "1.jpg").write_bytes(b"no")
    with pytest.raises(UserError, match=r"no pictures in test(.|\n)*image: test/cat/1.jpg"):
        ensure("mine", str(tmp_path), folder=str(tmp_path / "tree"))


def test_classes_with_fewer_than_two_pictures_are_listed_before_anything_is_read(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(work, "make_unit", None)
    files = {f"{n:02}/1.jpg": noise() for n in range(12)} | {"00/x.txt": b"", "12/x.txt": b""}
    listed = ", ".join(rf"{n:02} \(1\)" for n in range(10))
    refused(
        tmp_path,
        files | {path: noise() for path in CATS_AND_DOGS},
        rf"both learned and tested, .*fewer than 2 readable pictures: {listed} and 3 more. Add "
        "pictures, or remove the folder",
    )


def test_classes_with_fewer_than_two_readable_pictures_are_listed_with_what_was_wrong(tmp_path):
    files = {f"train/{path}": noise() for path in CATS_AND_DOGS}
    files |= {"test/cat/1.jpg": noise(), "train/ape/1.jpg": noise(), "test/ape/2.jpg": b"no"}
    files |= {"train/bee/1.jpg": b"no", "train/bee/2.jpg": b""}
    refused(
        tmp_path,
        files,
        r"readable pictures: ape \(1\), bee \(0\). Add (.|\n)*empty file: train/bee/2.jpg",
    )


def test_a_class_of_pictures_in_a_format_that_is_not_read_is_told_that(tmp_path):
    files = {path: noise() for path in CATS_AND_DOGS} | {"cow/1.heic": b"", "cow/2.heic": b""}
    refused(tmp_path, files, r"cow \(0\)\. Add .* cow/1.heic is a HEIC picture, not read: convert")


def test_a_class_with_one_picture_in_each_of_two_splits_is_enough(tmp_path):
    build(tmp_path, ["train/a/1.jpg", "test/a/1.jpg"])
    assert labels(tmp_path, "test") == {"test/a/1.jpg": "a"}


def test_folders_of_two_splits_are_one_class_however_unicode_composes_their_name(tmp_path):
    build(tmp_path, ["train/caf\u00e9/1.jpg", "test/cafe\u0301/1.jpg"])
    assert labels(tmp_path) == {"train/caf\u00e9/1.jpg": "caf\u00e9"}
    assert labels(tmp_path, "test") == {"test/cafe\u0301/1.jpg": "caf\u00e9"}


def test_folders_of_one_split_that_look_the_same_are_refused(tmp_path):
    two = [f"{name}/{n}.jpg" for name in ("caf\u00e9", "cafe\u0301") for n in (1, 2)]
    refused(tmp_path, two, "cannot be told apart .*accents are composed")


def test_class_folders_with_one_name_once_cleaned_are_refused(tmp_path):
    two = ["caf\udce8/1.jpg", "caf\udce8/2.jpg", "caf\udce9/1.jpg", "caf\udce9/2.jpg"]
    refused(tmp_path, two, r"'caf\\udce9' in .* cannot be told apart from 'caf\\udce8'")
    shutil.rmtree(tmp_path / "tree")
    two = ["train/cat/1.jpg", "train/cat/2.jpg", "test/ cat/1.jpg"]
    refused(tmp_path, two, r"cannot be told apart from ' cat'")
    shutil.rmtree(tmp_path / "tree")
    refused(tmp_path, ["\t/1.jpg", "\t/2.jpg"], r"'\\t' in .* cannot be told once")


@pytest.mark.parametrize("split", ["my split", "all", "a.b"])
def test_splits_that_tfds_cannot_name_are_refused(tmp_path, split):
    refused(
        tmp_path,
        [f"{split}/{path}" for path in CATS_AND_DOGS],
        f"split cannot be called '{split}'.*Rename that folder in .*tree",
    )


def test_a_folder_that_is_locked_is_told(tmp_path, monkeypatch):
    def locked(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(class_folders.os, "scandir", locked)
    with pytest.raises(UserError, match="The folder .*cannot be read: Permission denied."):
        class_folders.find(tmp_path)


def test_what_cannot_be_built_says_why(tmp_path):
    root = write(tmp_path / "tree", CATS_AND_DOGS)
    with pytest.raises(UserError, match="no folder .*/nowhere. Give the folder that holds"):
        ensure("mine", str(tmp_path), folder=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no folder .*/1.jpg"):
        ensure("mine", str(tmp_path), folder=str(root / "cat" / "1.jpg"))
    with pytest.raises(UserError, match="folder that holds its pictures, .*/tree: give it another"):
        ensure("tree", str(tmp_path), folder=str(root))
    with pytest.raises(UserError, match="in the folder that holds its pictures"):
        ensure("mine", str(root / "sets"), folder=str(root))
    (root / "sets" / "other").mkdir(parents=True)  # as if another set lay there already
    with pytest.raises(UserError, match="in the folder that holds its pictures"):
        ensure("mine", str(root / "sets"), folder=str(root))
    shutil.rmtree(root / "sets")
    with pytest.raises(UserError, match="cannot be called 'My Set'"):
        ensure("My Set", str(tmp_path), folder=str(root))
    with pytest.raises(UserError, match="name openmoji is taken: give the data of your folder"):
        ensure("openmoji", str(tmp_path), folder=str(root))
    with pytest.raises(UserError, match="To make it: otter-jax prepare SOURCE --name mine"):
        ensure("mine", str(tmp_path))
