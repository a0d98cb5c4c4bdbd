"""Classes are read as people type them, and as they keep them in files."""

import pytest

from otter_jax.errors import UserError
from otter_jax.predict.classes import read_classes
from otter_jax.zeroshot.bank import templates_of


def test_a_list_has_commas_between_names_and_quotes_around_names_with_commas():
    assert read_classes('dog, sofa,"salt, pepper"').first == ["dog", "sofa", "salt, pepper"]
    assert read_classes("犬,собака").names == [("犬",), ("собака",)]


def test_a_file_has_a_name_on_a_line_and_its_synonyms_after_a_tab(tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffdog\thound; pup ;dog\r\nsalt, pepper\r\n\r\nsofa\t\r\n".encode())
    found = read_classes(str(file))
    assert found.names == [("dog", "hound", "pup"), ("salt, pepper",), ("sofa",)]
    assert found.notes == [f"{file}: 1 blank name is left out"]


def test_repeated_names_are_taken_once_and_said(tmp_path):
    found = read_classes("dog,cat, dog ,,dog")
    assert found.first == ["dog", "cat"]
    assert found.notes == [
        "--classes: 1 blank name is left out",
        "--classes: 2 names are there again, such as 'dog'",
    ]
    (tmp_path / "names.txt").write_text("dog\thound\ndog\tpup\ncat")
    assert read_classes(str(tmp_path / "names.txt")).names == [("dog", "hound", "pup"), ("cat",)]


def test_one_class_is_said_to_be_certain():
    (note,) = read_classes("dog").notes
    assert "its probability is 1 whatever a picture shows; --multi judges it on its own" in note


def test_without_a_class_it_is_an_error(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    for given, words in (
        ("", "There are no classes in --classes: give names"),
        (" , ", "no classes"),
        (str(tmp_path / "empty.txt"), "There are no classes in .*empty.txt"),
        ("nowhere.txt", "There is no file nowhere.txt with classes"),
        (str(tmp_path / "latin.txt"), "is not in UTF-8"),
        ('dog,"sofa', "cannot be told apart .*: a name with commas stands in quotes"),
    ):
        with pytest.raises(UserError, match=words):
            read_classes(given)


def test_a_list_may_be_longer_than_a_path():
    names = [f"class {i}" for i in range(2000)]
    assert read_classes(",".join(names)).first == names


def test_a_template_may_be_longer_than_a_path():
    long = "a photo of {}, " * 500
    assert templates_of(long, "--templates") == (long,)
