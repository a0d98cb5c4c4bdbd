"""What a source is, is found out from its name and contents, said, or asked."""

import json

import pytest
from making import made, write_pictures
from pictures import noise
from tars import write_tar

from otter_jax.data.build.plan import Options, SourceMissing
from otter_jax.data.formats import kinds, tars
from otter_jax.data.formats.patterns import MOST, braces, matches_of
from otter_jax.data.formats.reading import Reading
from otter_jax.errors import UserError


def planned(*sources, **reading):
    """The plan of these sources."""
    return kinds.plan_of([str(s) for s in sources], "mine", Options(), Reading(**reading))


def write_table(path, files, caption="caption"):
    """A table of these files, by its suffix, with two columns."""
    if path.suffix == ".csv":
        path.write_text(f"file_name,{caption}\n" + "".join(f"{name},of {name}\n" for name in files))
    else:
        rows = [{"file_name": name, caption: f"of {name}"} for name in files]
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_an_image_folder_of_hugging_face_is_its_tables(tmp_path):
    for split in ("train", "validation"):
        files = write_pictures(tmp_path / split, 2)
        write_table(tmp_path / split / "metadata.jsonl", files, "text")
        write_table(tmp_path / split / "metadata.csv", files, "text")
    plan = planned(tmp_path)
    assert plan.origin.startswith("2 tables (image 'file_name', caption 'text'")
    assert "train, validation together" in plan.origin
    one = planned(tmp_path / "train")
    assert one.origin.startswith("train/metadata.jsonl (")
    kept, part = made(tmp_path, one)
    assert {key: row["caption"] for key, row in kept.items()} == {
        "0.jpg": "of 0.jpg", "1.jpg": "of 1.jpg",
    }  # fmt: skip
    assert part["origin"] == one.origin


def test_how_many_pictures_an_image_folder_has_beside_those_it_names_is_said(tmp_path, capsys):
    write_table(tmp_path / "metadata.csv", write_pictures(tmp_path, 3)[:1])
    assert planned(tmp_path).origin.startswith(f"{tmp_path.name}/metadata.csv")
    said = "of its 3 pictures those are taken that metadata.csv names"
    assert f"{said}.\n" in capsys.readouterr().out
    (tmp_path / "2.txt").write_text("a caption")
    planned(tmp_path)
    assert f"{said}, not those with a caption beside them.\n" in capsys.readouterr().out


def test_a_folder_with_pictures_and_a_table_of_another_name_is_asked_about(tmp_path):
    write_table(tmp_path / "labels.csv", write_pictures(tmp_path, 2))
    (tmp_path / "readme.txt").write_text("of no picture")
    with pytest.raises(UserError, match="no captions beside them. It holds a table, .*labels.csv"):
        planned(tmp_path)
    write_table(tmp_path / "other.jsonl", [])
    with pytest.raises(UserError, match="tables, .*labels.csv, .*other.jsonl: give the one"):
        planned(tmp_path)
    assert "files in" in planned(tmp_path, captions=False).origin
    (tmp_path / "0.txt").write_text("an otter")
    assert "files in" in planned(tmp_path).origin


def test_a_folder_without_pictures_is_the_one_table_in_it_or_all_its_parquet_files(tmp_path):
    write_pictures(tmp_path / "p", 1)
    folder = tmp_path / "tables"
    folder.mkdir()
    write_table(folder / "a.csv", [str(tmp_path / "p" / "0.jpg")])
    assert planned(folder).origin.startswith("tables/a.csv (")
    write_table(folder / "b.csv", [str(tmp_path / "p" / "0.jpg")])
    with pytest.raises(UserError, match="no picture. It holds tables, .*a.csv, .*b.csv"):
        planned(folder)


def test_a_folder_of_parts_as_spark_writes_it_is_one_set(tmp_path):
    files = write_pictures(tmp_path, 2)
    folder = tmp_path / "pairs.csv"
    folder.mkdir()
    for n, name in enumerate(files):
        write_table(folder / f"part-{n:05d}-c000.csv", [name])
    (folder / "_SUCCESS").write_text("")
    (folder / ".part-00000-c000.csv.crc").write_text("crc")
    assert planned(folder, root=tmp_path).origin.startswith("2 tables")


def test_a_folder_of_arrow_files_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "data-00000-of-00001.arrow").write_bytes(b"")
    for also in ("dataset_dict.json", "train/state.json", "train/dataset_info.json"):
        (tmp_path / also).write_text("{}")
        for folder in (tmp_path, tmp_path / "train"):
            with pytest.raises(UserError, match=r"save_to_disk.*to_parquet"):
                planned(folder)


def test_a_set_that_is_made_already_is_no_source(tmp_path):
    write_table(tmp_path / "t.csv", write_pictures(tmp_path, 1))
    made(tmp_path, planned(tmp_path / "t.csv"))
    with pytest.raises(UserError, match=r"is made already.*--config\.data\.name=NAME"):
        planned(tmp_path / "sets")


def test_a_table_that_is_given_twice_is_read_once(tmp_path):
    path = write_table(tmp_path / "t.csv", write_pictures(tmp_path, 1))
    assert len(planned(path, tmp_path / "*.csv").units["train"]) == 1


def test_that_a_column_of_splits_is_not_obeyed_is_said(tmp_path):
    write_pictures(tmp_path, 2)
    (tmp_path / "t.csv").write_text("image,caption,Split\n0.jpg,a,train\n1.jpg,b,test\n")
    assert "all splits together, whatever the column 'Split' says" in (
        planned(tmp_path / "t.csv").origin
    )


def test_links_that_lead_in_circles_end(tmp_path):
    write_table(tmp_path / "metadata.csv", write_pictures(tmp_path, 1))
    (tmp_path / "again").symlink_to(tmp_path)
    assert planned(tmp_path).origin.count("metadata") == 1


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a-{00008..00010}.tar", ["a-00008.tar", "a-00009.tar", "a-00010.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{00..10..5}", ["00", "05", "10"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("x{}y{one}.tar", ["x{}y{one}.tar"]),
        ("{one}{a,b}", ["{one}a", "{one}b"]),
    ],
)
def test_braces_stand_for_what_a_shell_has_them_stand_for(pattern, names):
    assert braces(pattern) == names


def test_braces_of_too_many_names_are_an_error():
    for pattern in ("{0..99999999999}", "{0..9999}{0..9999}"):
        with pytest.raises(UserError, match=f"over {MOST:,} names"):
            braces(pattern)


def test_braces_name_sources_and_the_tars_of_a_config(tmp_path):
    for n in range(3):
        write_tar(tmp_path / f"s-{n:05d}.tar", [(f"{n}.jpg", noise(n)), (f"{n}.txt", f"of {n}")])
    pattern = f"{tmp_path}/s-{{00000..00002}}.tar"
    assert planned(pattern).origin == "3 tars"
    assert [path.name for path in tars.find([pattern])["train"]] == [
        "s-00000.tar", "s-00001.tar", "s-00002.tar",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"Of the 4 names .* 1 match nothing.*s-00003.tar"):
        planned(f"{tmp_path}/s-{{00000..00003}}.tar")
    with pytest.raises(UserError, match="There is nothing at"):
        planned(f"{tmp_path}/t-{{00000..00003}}.tar")
    with pytest.raises(SourceMissing):
        tars.find([f"{tmp_path}/t-{{00000..00003}}.tar"])


@pytest.mark.parametrize(
    "source", ["https://there/00000.tar", "s3://there/{0..9}.tar", "pipe:cat a.tar", "hf://a/b"]
)
def test_what_lies_elsewhere_is_said_to_be_no_path(source):
    for call in (planned, lambda path: tars.find([path])):
        with pytest.raises(UserError, match="is no path on this machine"):
            call(source)


def test_home_and_variables_at_the_beginning_of_a_pattern_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.tar").write_bytes(b"")
    for pattern in ("~/a.tar", "$HOME/*.tar", "${HOME}/{a,a}.tar"):
        assert matches_of(pattern) == [f"{tmp_path}/a.tar"]
    for pattern in (f"file://{tmp_path}/a.tar", f"file://localhost{tmp_path}/%61.tar"):
        assert matches_of(pattern) == [f"{tmp_path}/a.tar"]
    assert matches_of(f"file://{tmp_path}/b.tar") == []


def test_two_stars_find_files_at_any_depth_once_and_follow_no_circles(tmp_path, monkeypatch):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    for place in (tmp_path / "1.tar", folder / "2.tar"):
        place.touch()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "3.tar").touch()
    for number in range(5):  # followed, these are millions of paths
        (folder / f"up{number}").symlink_to(tmp_path)
        (tmp_path / "a" / f"self{number}").symlink_to(tmp_path / "a")
    both = [str(tmp_path / "1.tar"), str(folder / "2.tar")]
    assert matches_of(f"{tmp_path}/**/*.tar") == both
    assert matches_of(f"{tmp_path.parent}/{tmp_path.name[:-1]}?/a/**/*.tar") == both[1:]
    monkeypatch.chdir(tmp_path)
    assert matches_of("**/*.tar") == ["1.tar", "a/b/2.tar"]
    assert "a/b/2.tar" in matches_of("a/**")


def test_what_a_source_cannot_use_is_refused_by_name(tmp_path):
    tar = write_tar(tmp_path / "a.tar", [("a.jpg", noise()), ("a.txt", "x")])
    with pytest.raises(UserError, match="--root, --delimiter are not for tars, such as a.tar"):
        planned(tar, root=tmp_path, delimiter=";")
    table = write_table(tmp_path / "t.csv", write_pictures(tmp_path, 1))
    with pytest.raises(UserError, match="--key is not for tables, such as t.csv"):
        planned(table, key="last-dot")
    with pytest.raises(UserError, match="key='no-dot': one of first-dot, last-dot"):
        Reading(key="no-dot")


def test_which_tars_of_a_folder_are_taken_is_said_and_what_lies_beside_them(tmp_path, capsys):
    for name in ("train-0.tar", "eval-0.tar", "concepts.txt", "loose.jpg"):
        (tmp_path / name).touch()
    plan = kinds.plan_of([str(tmp_path)], "mine", Options())
    assert len(plan.units["train"]) == 2
    said = capsys.readouterr().out
    assert "all of its tars are taken, eval-0.tar, train-0.tar." in said
    assert (
        "Beside them lie 2 files and folders that are not, such as concepts.txt, loose.jpg." in said
    )
