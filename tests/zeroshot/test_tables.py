"""What an evaluation writes for other programs, and what stands in one table."""

import csv
import dataclasses
import json
import os
import pathlib

import numpy as np
import pytest
from colours import COLOURS, eval_set, evaluation_of, weights

from otter_jax.errors import UserError
from otter_jax.zeroshot import beside, tables

ONE = [[0], [1], [2], [0], [0], [-1]]  # the last but one is no picture
PICTURES = np.array([0, 1, 2, 0, 3, 4])  # the first and the fourth are one
SEVERAL = [[0, 1], [1, -1], [2, 0], [0, -1], [0, -1], [-1, -1]]
# Green is called as red is, so that both are level.
CONFUSED = weights(green=(1, 0, 0))


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_all_metrics_stand_in_a_csv_with_their_intervals(tmp_path, monkeypatch):
    metrics, result = evaluation_of(eval_set(ONE), tmp_path, monkeypatch)(CONFUSED)
    lines = rows_of(tmp_path / "results" / "step_00000007.csv")
    found = {(line["weights"], line["metric"]): line for line in lines}
    for name, value in metrics.items():
        line = found["student", name.split("/")[-1]]
        assert float(line["value"]) == value
        low, high = float(line["low"]), float(line["high"])
        assert [low, high] == result["intervals"]["student"][line["metric"]]
        assert low <= value <= high
        assert (line["set"], line["images"], line["classes"]) == ("colours", "4", "3")
    assert found["chance", "FH@1"]["low"] == ""
    assert float(found["frequency", "FH@2"]["value"]) == 0.75


def test_a_whole_evaluation_writes_its_images_and_classes_and_others_do_not(tmp_path, monkeypatch):
    evaluate = evaluation_of(eval_set(ONE), tmp_path, monkeypatch)
    evaluate(weights())
    folder = tmp_path / "results" / "step_00000007"
    assert not folder.exists()
    evaluate(weights(green=(0, 0, 1), blue=(0, 1, 0)), whole=True)
    images = rows_of(folder / "colours.student.images.csv")
    assert [line["image"] for line in images] == ["p0", "p1", "p2", "p3"]  # p4, p5 do not count
    assert [line["labels"] for line in images] == ["red", "green", "blue", "red"]
    assert [line["class_1"] for line in images] == ["red", "blue", "green", "red"]
    assert images[0]["place"] == "1"
    assert int(images[1]["place"]) > 1
    assert (
        float(images[0]["cosine_1"]) > float(images[0]["cosine_2"]) > float(images[0]["cosine_3"])
    )
    classes = {line["class"]: line for line in rows_of(folder / "colours.student.classes.csv")}
    red, green = classes["red"], classes["green"]
    assert (red["images"], red["recall@1"], red["taken_for"], red["times"]) == (
        "2",
        "1.0000",
        "",
        "0",
    )
    assert (green["images"], green["recall@1"], green["taken_for"]) == ("1", "0.0000", "blue")


def test_several_labels_of_an_image_stand_in_one_field_and_have_map(tmp_path, monkeypatch):
    evaluate = evaluation_of(eval_set(SEVERAL), tmp_path, monkeypatch)
    metrics, result = evaluate(weights(), whole=True)
    assert "colours/student/accuracy" not in metrics
    assert result["chance"]["mAP"] == pytest.approx((3 + 2 + 1) / 4 / 3)
    assert 0 < metrics["colours/student/mAP"] <= 1
    folder = tmp_path / "results" / "step_00000007"
    images = rows_of(folder / "colours.student.images.csv")
    assert [line["labels"] for line in images] == ["red | green", "green", "blue | red", "red"]
    assert "AP" in rows_of(folder / "colours.student.classes.csv")[0]


def test_weights_that_tell_nothing_apart_have_chance_in_map_and_retrieval(tmp_path, monkeypatch):
    same = weights(images=0)
    _, result = evaluation_of(eval_set(SEVERAL), tmp_path, monkeypatch)(same)
    assert result["student"]["mAP"] == pytest.approx(result["chance"]["mAP"])
    pairs = dataclasses.replace(eval_set(ONE), pictures=PICTURES)
    _, result = evaluation_of(pairs, tmp_path, monkeypatch)(same)
    assert result["chance"].keys() == {"FH@1", "FH@2", "text@1", "image@1"}
    for name, value in result["chance"].items():
        assert result["student"][name] == pytest.approx(value)


@pytest.mark.parametrize("devices", [1, 4])
def test_a_set_of_pairs_is_searched_both_ways_over_its_different_pictures(
    tmp_path, monkeypatch, devices
):
    pairs = dataclasses.replace(eval_set(ONE), pictures=PICTURES)
    evaluate = evaluation_of(pairs, tmp_path, monkeypatch)
    metrics, _ = evaluate(weights(green=(0, 0, 1)), devices)  # green and blue have one text
    found = {name.removeprefix("colours/student/"): value for name, value in metrics.items()}
    assert "recall@1" not in found
    assert found["text@1"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)  # of three pictures, not four
    assert found["image@1"] == pytest.approx((1 + 0 + 1) / 3)
    assert found["FH@1"] == pytest.approx((1 + 1 / 2 + 1 / 2 + 1) / 4)


def test_runs_on_the_same_set_stand_in_one_table_with_a_star_at_the_best(
    tmp_path, monkeypatch, capsys
):
    first, second = tmp_path / "first", tmp_path / "second"
    evaluation_of(eval_set(ONE), first, monkeypatch)(weights())
    os.utime(first / "results" / "step_00000007.json", (1, 1))
    (first / "results" / "step_00000008.json").write_text("{")  # damaged, or of something else
    capsys.readouterr()
    evaluate = evaluation_of(eval_set(ONE), second, monkeypatch)
    evaluate(CONFUSED, others=[first])
    out = capsys.readouterr().out
    assert out.count("first step 7 student") == out.count("second step 7 student") == 1
    assert "1.000*" in out
    assert out.count("chance") == 1
    assert max(map(len, out.splitlines())) <= 100 + len(str(tmp_path))
    other = eval_set(ONE, about={"labels": "c3d4", "templates": ["{}"]})
    evaluation_of(other, second, monkeypatch)(CONFUSED, others=[first])
    assert f"{first} has no results on colours" in (out := capsys.readouterr().out)
    assert "first step 7 student" not in out


def test_a_run_without_results_beside_is_an_error_that_names_the_command(tmp_path):
    with pytest.raises(UserError, match=f"otter-jax eval --workdir {tmp_path}"):
        beside.check(tmp_path / "own", [tmp_path])


def test_the_run_itself_and_a_run_twice_are_no_runs_beside_it(tmp_path):
    for name in ("own", "other"):
        (tmp_path / name / "results").mkdir(parents=True)
        (tmp_path / name / "results" / "step_00000003.json").write_text("{}")
    own, other = tmp_path / "own", tmp_path / "other"
    beside.check(own, [other])
    with pytest.raises(UserError, match="own is the run that is evaluated.*leave it out"):
        beside.check(own, [other, tmp_path / "other" / ".." / "own"])
    with pytest.raises(UserError, match="other is there twice"):
        beside.check(own, [other, other])


def test_results_of_older_versions_stand_beside_without_intervals(tmp_path):
    (tmp_path / "results").mkdir()
    about = {"labels": "a1b2", "templates": ["{}"]}
    old = {"step": 3, "sets": {"other": {"about": about, "student": {"FH@1": 0.5}, "images": 4}}}
    (tmp_path / "results" / "step_00000003.json").write_text(json.dumps(old))
    (row,) = beside.rows_beside(tmp_path, "old", {"about": about})
    assert row == tables.Row("old step 3 student", {"FH@1": 0.5}, {})


def test_runs_are_called_by_their_folders_unless_these_have_one_name():
    a, b, c = (pathlib.Path(path) for path in ("runs/a", "runs/b", "old/a"))
    assert beside.called([a, b]) == ["a", "b"]
    assert beside.called([a, b, c]) == ["runs/a", "runs/b", "old/a"]
    assert beside.called([a, pathlib.Path(".")]) == ["runs/a", "."]


def test_the_class_that_a_class_is_most_often_taken_for_is_named(tmp_path):
    names, labels = list(COLOURS), np.array([[0], [0], [0], [0], [1]])
    best = np.array([0, 1, 2, 2, 0])
    tables.write_classes(tmp_path / "classes.csv", names, labels, best, {"x": np.ones(3)})
    lines = rows_of(tmp_path / "classes.csv")
    assert [(line["class"], line["taken_for"], line["times"]) for line in lines] == [
        ("red", "blue", "2"),
        ("green", "red", "1"),
    ]
