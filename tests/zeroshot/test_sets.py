"""Labels and class names of people's files: which are none, which are the same, what is said."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from pictures import noise
from tars import write_tar

from otter_jax.configs.common import evaluation
from otter_jax.data.source import Source
from otter_jax.errors import UserError
from otter_jax.zeroshot import sets
from otter_jax.zeroshot.bank import read_names, templates_of

LION, CAT = "lion", "cat"
E_ONE, E_TWO = "caf\u00e9", "cafe\u0301"  # NFC and NFD of the same word


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """Opens a set of records with these values of a feature; `names` are the bytes of a file."""

    def call(values, feature=None, label="json.species", names=None, spec="", **more):
        name = label.partition(".")[0]
        text = tfds.features.Text()
        features = tfds.features.FeaturesDict({name: feature or text, "key": text})
        if feature is None:
            values = [json.dumps(v) if name == "json" else v for v in values]
        records = [{name: v, "key": f"p{i}".encode()} for i, v in enumerate(values)]
        source = Source("zoo:train", records, features)
        monkeypatch.setattr(sets, "ensure", lambda *_, **__: None)
        monkeypatch.setattr(sets, "open_dataset", lambda *_: source)
        path = ""
        if names is not None:
            path = str(tmp_path / "names.txt")
            (tmp_path / "names.txt").write_bytes(
                names if isinstance(names, bytes) else names.encode()
            )
        return sets.EvalSet.open(
            "zoo", evaluation("zoo", label=spec or label, names=path, **more), ""
        )

    return call


def classes(found):
    """The names of each picture's classes."""
    return [[found.names[n] for n in row if n >= 0] for row in found.labels]


def species(*values):
    return [{"species": value} for value in values]


@pytest.mark.parametrize("nothing", [None, "", " \t", float("nan"), "\u200b", [], [None, ""]])
def test_null_empty_blank_and_nan_are_no_label(opened, capsys, nothing):
    found = opened(species(LION, nothing, CAT))
    assert classes(found) == [[LION], [], [CAT]]
    assert found.no_label == 1
    assert "1 of 3 pictures have no label (json.species is null" in capsys.readouterr().out


def test_an_absent_field_is_no_label_and_null_in_a_list_is_left_out(opened):
    found = opened([*species([LION, None, LION]), {}, {"species": CAT}])
    assert classes(found) == [[LION], [], [CAT]]
    assert found.names == [CAT, LION]


def test_pictures_that_all_lack_a_label_are_an_error(opened):
    with pytest.raises(UserError, match="none of the 2 pictures of zoo:train has a label"):
        opened(species(None, ""))


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_or_windows_line_ends_do_not_matter(opened, start, end):
    names = start + end.join([LION, CAT, ""]).encode()
    assert classes(opened(species(LION, CAT), names=names)) == [[LION], [CAT]]


@pytest.mark.parametrize(("label", "name"), [(E_ONE, E_TWO), (E_TWO, E_ONE), (E_TWO, E_TWO)])
def test_a_name_is_the_same_however_unicode_composes_it(opened, label, name):
    assert classes(opened(species(label), names=name)) == [[E_ONE]]


def test_captions_as_labels_are_compared_in_the_same_way(opened):
    assert classes(opened([E_TWO, LION], label="caption", names=f"{E_ONE}\n{LION}")) == [
        [E_ONE],
        [LION],
    ]


def test_class_names_of_a_set_and_of_a_file_are_compared_in_the_same_way(opened):
    feature = tfds.features.ClassLabel(names=[E_TWO, LION])
    found = opened([0, 1, -1], feature, label="label", names=f"{LION}\n{E_ONE}")
    assert classes(found) == [[E_ONE], [LION], []]


def test_blanks_that_look_the_same_are_the_same(opened):
    assert classes(opened(species("sea\u00a0lion"), names="sea  lion\n")) == [["sea lion"]]


@pytest.mark.parametrize("kind", [int, str, float, lambda n: [n]])
def test_whole_numbers_are_line_numbers_from_0_and_said_so(opened, capsys, kind):
    found = opened(species(*map(kind, (1, 0, 2))), names="lion\ncat\nowl\n")
    assert classes(found) == [["cat"], ["lion"], ["owl"]]
    assert "line numbers of" in capsys.readouterr().out


def test_numbers_of_a_class_feature_without_names_are_line_numbers(opened):
    feature = tfds.features.ClassLabel(num_classes=2)
    assert classes(opened([1, 0], feature, label="label", names="lion\ncat")) == [[CAT], [LION]]


def test_whole_numbers_that_are_missing_in_places_are_read_though_they_came_as_floats(opened):
    found = opened(species(1.0, float("nan"), 0.0), names="lion\ncat")
    assert classes(found) == [[CAT], [], [LION]]
    assert classes(opened(species(3.0, 3))) == [["3"], ["3"]]


def test_whole_numbers_of_a_csv_are_read_though_it_writes_them_as_floats_and_nan(opened):
    found = opened(species("1.0", "nan", "0.0"), names="lion\ncat")
    assert classes(found) == [[CAT], [], [LION]]
    assert found.unknown == {"nan": 1}


def test_digits_that_are_names_are_names(opened):
    assert classes(opened(species(1, 0), names="1\n0\n")) == [["1"], ["0"]]


def test_line_numbers_stay_right_after_blank_and_repeated_names(opened):
    found = opened(species(0, 2, 3, 4), names="lion\n\ncat\nlion\nowl\n")
    assert classes(found) == [["lion"], ["cat"], ["lion"], ["owl"]]
    assert found.names == ["lion", "cat", "owl"]


def test_numbers_that_may_count_from_1_are_an_error_or_said(opened, capsys):
    with pytest.raises(UserError, match="from 1, put an empty line before the first name"):
        opened(species(1, 2), names="lion\ncat")
    assert classes(opened(species(1, 2), names="\nlion\ncat")) == [["lion"], ["cat"]]
    opened(species(1, 1), names="lion\ncat")
    assert "from 0 (which no picture has): 1 is 'cat'." in capsys.readouterr().out


def test_a_mark_for_each_class_is_no_list_of_class_numbers(opened):
    with pytest.raises(UserError, match="3 numbers that are all 0 or 1"):
        opened(species([0, 1, 0], [1, 0, 0]), names="lion\ncat\nowl")
    assert classes(opened(species([0, 1], [0]), names="lion\ncat")) == [["lion", "cat"], ["lion"]]


@pytest.mark.parametrize("number", [3, -1, 1])
def test_numbers_without_a_line_are_an_error_that_names_them(opened, number):
    with pytest.raises(UserError, match=f"no name for {number}, which 2 pictures have"):
        opened(species(0, number, number), names="lion\n\ncat")


def test_numbers_without_a_file_of_names_are_said(opened, capsys):
    assert opened(species(1, 0)).names == ["0", "1"]
    assert "eval.sets.zoo.names may be a file" in capsys.readouterr().out


def test_a_missing_label_that_some_program_wrote_as_text_is_said(opened, capsys):
    assert opened(species("nan", LION)).names == ["lion", "nan"]
    assert "nan is a label and a class like any other" in capsys.readouterr().out


def test_labels_that_are_no_class_are_counted_and_named_with_what_is_alike(opened, capsys):
    found = opened(species(LION, "Cat", "Cat", "yeti"), names="lion\ncat")
    assert classes(found) == [[LION], [], [], []]
    assert found.unknown == {"Cat": 2, "yeti": 1}
    assert found.no_label == 0
    assert "2 labels are not among the 2 class names" in (out := capsys.readouterr().out)
    assert "such as 'Cat' (there is 'cat'), 'yeti'." in out


def test_labels_and_names_with_nothing_in_common_are_both_shown(opened):
    with pytest.raises(UserError, match=r"Labels: 'lion' .*\. Names: 'lion,cat'\."):
        opened(species(LION), names="lion,cat\n")


def test_a_field_that_does_not_exist_is_an_error_that_names_those_that_do(opened):
    with pytest.raises(UserError, match=r"species \(2\), place \(1\)\. Did you mean json\.species"):
        opened([{"species": LION, "place": "zoo"}, *species(CAT)], label="json.speceis")


def test_a_feature_that_does_not_exist_is_an_error_that_names_those_that_do(opened, monkeypatch):
    spec = evaluation("zoo", label="lable")
    feature = tfds.features.ClassLabel(names=["a"])
    opened([0], feature, label="label")
    with pytest.raises(UserError, match="it has label, key. Did you mean label"):
        sets.EvalSet.open("zoo", spec, "")


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ({"a": {"b": LION}}, "json.a.b"),
        ({"a.b": LION}, "json.a.b"),
        ({"a": [{"b": LION}, {"b": None}, {}]}, "json.a.b"),
    ],
)
def test_a_field_of_an_object_is_named_with_a_dot(opened, value, label):
    assert classes(opened([value], label=label)) == [[LION]]


def test_an_object_is_no_label_and_its_fields_are_named(opened):
    with pytest.raises(UserError, match=r"Name a field of them: json\.species\.name, .*\.id\."):
        opened(species(LION, {"name": LION, "id": 3}))


@pytest.mark.parametrize("label", ["json", "caption.x"])
def test_json_as_a_whole_and_a_field_of_a_text_are_errors(opened, label):
    with pytest.raises(UserError, match="json.species" if label == "json" else "none"):
        opened(species(LION) if label == "json" else [LION], label=label)


def test_texts_in_a_list_of_a_feature_are_texts(opened):
    feature = tfds.features.Sequence(tfds.features.Text())
    values = [np.array([b"lion", b"cat"], object), np.array([b""], object)]
    assert classes(opened(values, feature, label="tags")) == [[LION, CAT], []]


@pytest.mark.parametrize("content", ["lion\ncat".encode("utf-16"), "caf\u00e9".encode("latin-1")])
def test_names_in_another_encoding_are_an_error_that_says_so(tmp_path, content):
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(UserError, match="not in UTF-8"):
        read_names(str(tmp_path / "names.txt"))


def test_names_that_bring_their_numbers_are_said(tmp_path, capsys):
    (tmp_path / "names.txt").write_text("0 cat\n1: lion\n")
    read_names(str(tmp_path / "names.txt"))
    assert "each name begins with a number, as '0 cat'" in capsys.readouterr().out


def test_a_field_without_its_feature_is_an_error_that_says_both(opened):
    feature = tfds.features.Text()
    with pytest.raises(UserError, match=r"Did you mean json\.species\?"):
        opened([json.dumps({"species": LION})], feature, spec="species")


def test_repeated_names_are_named(tmp_path, capsys):
    (tmp_path / "names.txt").write_text("cat\nlion\ncat\n")
    assert read_names(str(tmp_path / "names.txt")) == ["cat", "lion"]
    assert "1 repeated names are left out, such as cat" in capsys.readouterr().out


def test_templates_are_taken_as_clip_benchmark_writes_them_too(tmp_path):
    file = tmp_path / "templates.txt"
    file.write_text("\ufeffa photo of {c}.\n\na drawing of {}.\n", "utf-8")
    expected = ("a photo of {}.", "a drawing of {}.")
    assert templates_of(str(file), "templates") == expected
    assert templates_of(("a photo of {c}.", "a drawing of {}."), "templates") == expected
    assert templates_of("a photo of {}.", "templates") == expected[:1]


@pytest.mark.parametrize("given", [("a photo",), (), "", "a photo", ("a {}", "a {name}")])
def test_templates_without_a_place_for_the_name_are_an_error(given):
    with pytest.raises(UserError, match="each needs {}"):
        templates_of(given, "templates")


@pytest.mark.parametrize(("label", "needed"), [("json.species", False), ("caption", True)])
def test_only_a_set_whose_labels_are_captions_needs_them(monkeypatch, label, needed):
    class Asked(Exception):
        pass

    def ask(*_, captions, **__):
        raise Asked(captions)

    monkeypatch.setattr(sets, "ensure", ask)
    with pytest.raises(Asked, match=str(needed)):
        sets.EvalSet.open("animals", evaluation("animals", label=label), "")


def folder_of(root, files):
    """A folder with a picture in each of these files."""
    for number, name in enumerate(files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(noise(number))
    return str(root)


def test_a_folder_per_class_is_a_set_as_it_is_also_of_classes_with_one_picture(tmp_path):
    folder = folder_of(tmp_path / "zoo", ("lion/a.jpg", "lion/b.jpg", "cat/a.jpg"))
    spec = evaluation("zoo", folder=folder)
    found = sets.EvalSet.open("zoo", spec, str(tmp_path / "sets"))
    assert found.names == [CAT, LION]
    assert sorted(map(tuple, classes(found))) == [(CAT,), (LION,), (LION,)]
    assert sets.EvalSet.open("zoo", spec, str(tmp_path / "sets")).about == found.about


def test_a_folder_with_labels_in_a_table_is_a_set_as_it_is(tmp_path):
    folder = folder_of(tmp_path / "zoo", ("a.jpg", "b.jpg", "c.jpg"))
    table = "file_name,species\na.jpg,lion\nb.jpg,cat\nc.jpg,\n"
    (tmp_path / "zoo" / "metadata.csv").write_text(table)
    spec = evaluation("zoo", folder=folder, label="json.species")
    found = sets.EvalSet.open("zoo", spec, str(tmp_path / "sets"))
    assert sorted(map(tuple, classes(found))) == [(), (CAT,), (LION,)]


def test_a_folder_that_is_none_is_an_error_that_names_it(tmp_path):
    for label in ("label", "json.species"):
        spec = evaluation("zoo", folder=str(tmp_path / "zoo"), label=label)
        with pytest.raises(UserError, match=f"There is no folder {tmp_path}/zoo"):
            sets.EvalSet.open("zoo", spec, str(tmp_path / "sets"))


def test_probes_learn_from_another_split_with_the_classes_of_this_one(tmp_path):
    files = [f"{s}/{c}/{n}.jpg" for s in ("train", "test") for c in (LION, CAT) for n in "ab"]
    folder = folder_of(tmp_path / "zoo", [*files, "train/owl/a.jpg"])
    (tmp_path / "names.txt").write_text("lion\ncat\n")
    spec = evaluation(
        "zoo", folder=folder, split="test", probe="train", names=str(tmp_path / "names.txt")
    )
    found = sets.EvalSet.open("zoo", spec, str(tmp_path / "sets"))
    assert found.learned.names == found.names == [LION, CAT]
    assert sorted(map(tuple, classes(found.learned))) == [(), *[(CAT,)] * 2, *[(LION,)] * 2]
    for split in ("test", "test[:50%]"):
        spec.probe = split
        with pytest.raises(UserError, match=r"zoo.probe='test.*': [24] records are in the split"):
            sets.EvalSet.open("zoo", spec, str(tmp_path / "sets"))
    spec.probe = "trian"
    with pytest.raises(UserError, match="has no split 'trian'"):
        sets.EvalSet.open("zoo", spec, str(tmp_path / "sets"))


def test_captions_among_themselves_are_pairs_and_the_same_picture_has_one_number(tmp_path):
    pictures = [noise(0), noise(1), noise(0), noise(2)]
    texts = ("a lion", "a cat", "a big cat", "a cat")
    write_tar(
        tmp_path / "zoo.tar",
        [
            (f"{n}.{kind}", content)
            for n, pair in enumerate(zip(pictures, texts, strict=True))
            for kind, content in zip(("jpg", "txt"), pair, strict=True)
        ],
    )  # fmt: skip
    spec = evaluation("zoo", tars=(str(tmp_path / "zoo.tar"),), label="caption", templates=("{}",))
    found = sets.EvalSet.open("zoo", spec, str(tmp_path / "sets"))
    named = {text: number for (text,), number in zip(classes(found), found.pictures, strict=True)}
    assert named["a lion"] == named["a big cat"]
    assert len(set(found.pictures.tolist())) == 3
    (tmp_path / "names.txt").write_text("a lion\na cat")
    spec.names = str(tmp_path / "names.txt")
    assert sets.EvalSet.open("zoo", spec, str(tmp_path / "sets")).pictures is None


def test_a_misspelt_set_is_an_error_that_names_the_nearest_and_all(tmp_path):
    folder = folder_of(tmp_path / "zoo", ("lion/a.jpg",))
    sets.EvalSet.open("zoo", evaluation("animals", folder=folder), str(tmp_path / "sets"))
    with pytest.raises(UserError, match=r"no data set anmials .*are: animals\. Did you mean anim"):
        sets.EvalSet.open("zoo", evaluation("anmials"), str(tmp_path / "sets"))
