"""Evaluation sets that are written for CLIP_benchmark hold what the model sees, and its labels."""

import dataclasses
import io
import tarfile

import numpy as np
import pytest
import records
from PIL import Image

from otter_jax.configs import common
from otter_jax.data.images import center_crop, decode
from otter_jax.data.source import Source
from otter_jax.errors import UserError
from otter_jax.run.console import make_console
from otter_jax.zeroshot import benchmark
from otter_jax.zeroshot.sets import EvalSet

NAMES = ["sea otter", "{curly}", "café"]


@pytest.fixture
def config():
    config = common.get_config()
    config.data.image_size, config.data.resize = records.SIZE, 10
    config.eval.batch_size = 16  # the last batch is not full
    config.eval.sets.zoo = common.evaluation("zoo")
    return config


def zoo(labels, bad=()):
    source = Source("zoo:test", records.records(bad), records.features("caption", "key"))
    return EvalSet("zoo", source, NAMES, np.array(labels, np.int32), ("a {}.", "{} {{}"))


def members(folder):
    """{name: content} of all tars of a set, and their names."""
    found, tars = {}, sorted((folder / "test").glob("*.tar"))
    for path in tars:
        with tarfile.open(path) as tar:
            found |= {each.name: tar.extractfile(each).read() for each in tar}
    return found, [path.name for path in tars]


def test_pictures_are_as_the_model_sees_them_beside_their_class_numbers(
    config, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(benchmark, "PER_TAR", 9)
    labels = [[n % 3, -1] for n in range(records.N)]
    labels[5] = [-1, -1]
    found = zoo(labels, bad=[7])
    console = make_console()
    assert benchmark.write(found, config, tmp_path / "zoo", console) == 22
    content, tars = members(tmp_path / "zoo")
    assert tars == ["0.tar", "1.tar", "2.tar"]
    assert (tmp_path / "zoo/test/nshards.txt").read_text().strip() == "3"
    kept = [n for n in range(records.N) if n not in (5, 7)]
    assert [*content] == [f"{n:08d}.{kind}" for n in kept for kind in ("png", "cls")]
    for n in kept:
        assert content[f"{n:08d}.cls"] == str(n % 3).encode()
        pixels = np.asarray(Image.open(io.BytesIO(content[f"{n:08d}.png"])))
        np.testing.assert_array_equal(pixels, center_crop(decode(records.picture(n)), 10, 8))
    assert "1 unreadable images are left out, such as key7" in capsys.readouterr().out


def test_names_and_templates_are_lines_for_pythons_format(config, tmp_path):
    benchmark.write(zoo([[0]] * records.N), config, tmp_path / "zoo", make_console())
    names = (tmp_path / "zoo/classnames.txt").read_text("utf-8").splitlines()
    lines = (tmp_path / "zoo/zeroshot_classification_templates.txt").read_text().splitlines()
    assert names == NAMES
    assert [line.format(c=names[1]) for line in lines] == ["a {curly}.", "{curly} {{curly}"]


def test_sets_that_clip_benchmark_has_no_form_for_are_refused_by_name(config, monkeypatch):
    found = zoo([[0, 1], [2, -1]] + [[1, -1]] * (records.N - 2))
    monkeypatch.setattr(benchmark.EvalSet, "open", lambda *_, **__: found)
    with pytest.raises(UserError, match="--eval zoo: 1 of its 24 pictures have several labels"):
        benchmark.open_sets(config, ["zoo"])
    pairs = dataclasses.replace(found, pictures=np.arange(records.N))
    monkeypatch.setattr(benchmark.EvalSet, "open", lambda *_, **__: pairs)
    with pytest.raises(UserError, match="--eval zoo: it is a set of pairs"):
        benchmark.open_sets(config, ["zoo"])
    with pytest.raises(UserError, match="--eval zo: .* no such evaluation set; there are: zoo"):
        benchmark.open_sets(config, ["zo"])


def test_a_set_without_a_readable_picture_is_an_error(config, tmp_path):
    found = zoo([[0]] * records.N, bad=range(records.N))
    with pytest.raises(UserError, match="no labelled picture of it is readable"):
        benchmark.write(found, config, tmp_path / "zoo", make_console())
