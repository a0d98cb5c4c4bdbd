"""What is shown of predictions: the right pictures, and the classes that do well and badly."""

import pytest
import written

from otter_jax.report import classes, history, predictions
from otter_jax.report.predictions import OfClass, Prediction
from otter_jax.report.thumbnails import BLANK, Thumbnails


def of_class(name, recall, images=4, taken_for="", times=0):
    return OfClass(name, images, recall, taken_for, times)


def test_no_class_is_best_and_worst_and_larger_ones_come_first():
    found = [of_class("a", 1.0), of_class("b", 1.0, 9), of_class("c", 0.0), of_class("d", 0.5)]
    best, worst = classes.extremes(found)
    assert [each.name for each in best] == ["b", "a"]
    assert [each.name for each in worst] == ["c", "d"]
    assert classes.extremes(found[:1]) == ([], [])


def test_confusions_are_of_several_pictures_and_the_commonest_come_first():
    found = [
        of_class("a", 0.0, 9, "b", 3), of_class("b", 0.0, 4, "a", 4), of_class("c", 0.0, 1, "a", 1)
    ]  # fmt: skip
    assert [each.name for each in classes.confusions(found)] == ["b", "a"]


def test_wrong_answers_are_counted_over_all_classes():
    images = [
        Prediction(str(n), (label,), [(best, 0.5)])
        for n, (label, best) in enumerate([("a", "b"), ("c", "b"), ("b", "b"), ("a", "c")])
    ]
    assert classes.wrong_answers(images) == [("b", 2)]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return written.pairs(tmp_path_factory.mktemp("home"))


def test_predictions_come_back_with_their_labels_and_classes(tmp_path, sets):
    workdir = written.run(tmp_path / "run", written.config_of(sets), sets=("a/b",))
    found = predictions.read(history.read(workdir), "a/b")
    assert (found.step, found.weights, len(found.images)) == (4, "student", 16)
    assert found.images[4].labels == (written.ODD[0],)
    assert found.images[4].best == [(written.ODD[0], 0.5), ("another", 0.25)]
    assert found.classes[2] == OfClass(written.ODD[2], 4, 0.5, written.ODD[3], 2)
    assert predictions.read(history.read(workdir), "others") is None


def test_damaged_tables_are_told(tmp_path, sets):
    run = history.read(written.run(tmp_path / "run", written.config_of(sets)))
    table = run.workdir / "results" / "step_00000004" / "animals.student.images.csv"
    for damage in (b"image,labels\n1,2\n", b"image,labels,class_1\n1,2\n3\n", b"\xff\xfe\x00"):
        table.write_bytes(damage)
        assert predictions.read(run, "animals").step == 2
        assert run.notes.pop().endswith("/animals.student.images.csv is damaged and left out.")


def test_a_picture_is_found_by_its_key_though_some_before_it_are_not_in_the_table(tmp_path, sets):
    config = written.config_of(sets)
    run = history.read(written.run(tmp_path / "run", config))
    thumbnails, keys = Thumbnails(run), [record["key"] for record in written.records(config)]
    kept = keys[3:]
    pictures = [thumbnails.of_image("animals", len(kept), n, key) for n, key in enumerate(kept)]
    assert len(set(pictures)) == len(kept)
    assert BLANK not in pictures
    assert pictures[0] == thumbnails.of_pair(3, written.records(config)[3]["caption"])
    assert thumbnails.notes == []
    assert thumbnails.of_image("animals", len(kept), 0, "no key") == BLANK
    assert "was made anew since the evaluation" in thumbnails.notes[0]
