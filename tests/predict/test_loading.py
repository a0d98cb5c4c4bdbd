"""A model is what was trained, whichever folder it is read from."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import world

import otter_jax
from otter_jax.errors import UserError
from otter_jax.run.checkpoint import Checkpoints


def check_embeddings(model, numbers):
    pixels, captions = numbers["pictures"], numbers["captions"].tolist()
    np.testing.assert_allclose(model.embed_pixels(pixels), numbers["image_embeddings"], atol=1e-5)
    np.testing.assert_allclose(model.embed_texts(captions), numbers["text_embeddings"], atol=1e-5)


def test_an_exported_folder_embeds_as_the_numbers_in_it_say(tiny_run, load):
    check_embeddings(load(tiny_run.exported), np.load(tiny_run.exported / "check.npz"))


def test_a_run_embeds_as_its_export_does(tiny_run, model):
    check_embeddings(model, np.load(tiny_run.exported / "check.npz"))
    assert (model.dim, model.image_size, model.max_tokens) == (6, 32, 36)
    assert model.scale == pytest.approx(20)


def test_a_model_that_was_trained_with_a_sigmoid_judges_each_class_by_its_bias(tiny_run, tmp_path):
    shutil.copytree(tiny_run.home, tmp_path / "run")
    of_run, of_export = tmp_path / "run/config.json", tmp_path / "run/exported/otter_jax.json"
    config, about = json.loads(of_run.read_text()), json.loads(of_export.read_text())
    config["objective"]["match"] = about["config"]["objective"]["match"] = "sigmoid"
    about["scale"]["teacher"] = 7.5
    of_run.write_text(json.dumps(config))
    of_export.write_text(json.dumps(about))
    learned = np.exp(tiny_run.student["params"]["log_scale"]["teacher"])
    assert otter_jax.load(tmp_path / "run").bias == pytest.approx(-max(learned, 1.0))
    exported = otter_jax.load(tmp_path / "run/exported")
    picture = np.zeros((32, 32, 3), np.uint8)
    (guesses,) = exported.classify([picture], ["dog", "cat"], multi=True)
    for guess in guesses:
        assert guess.probability == pytest.approx(1 / (1 + np.exp(7.5 - 20 * guess.cosine)))


def test_the_averaged_weights_and_a_step_are_taken_on_request(tiny_run, load):
    student, ema = load(tiny_run.home), load(tiny_run.home, weights="ema", step=3)
    assert "student" in student.name
    assert "step 3 (--step), ema" in ema.name
    assert not np.allclose(student.embed_texts(["a dog"]), ema.embed_texts(["a dog"]), atol=1e-2)


def test_the_identity_is_of_what_embeddings_depend_on(tiny_run, load, tmp_path):
    identity = load(tiny_run.home).identity
    assert identity == otter_jax.load(tiny_run.home).identity
    assert identity != load(tiny_run.home, weights="ema").identity
    shutil.copytree(tiny_run.exported, tmp_path / "out")
    exported = load(tiny_run.exported).identity
    assert otter_jax.load(tmp_path / "out").identity == exported  # wherever it lies
    about = json.loads((tmp_path / "out/otter_jax.json").read_text())
    about["config"]["data"]["resize"] += 1
    (tmp_path / "out/otter_jax.json").write_text(json.dumps(about))
    assert otter_jax.load(tmp_path / "out").identity != exported
    vocabulary = (tmp_path / "out/text/vocab.txt").read_text()
    about["config"]["data"]["resize"] -= 1
    (tmp_path / "out/otter_jax.json").write_text(json.dumps(about))
    (tmp_path / "out/text/vocab.txt").write_text(vocabulary.replace("dog", "dox"))
    assert otter_jax.load(tmp_path / "out").identity != exported


def test_what_is_no_model_is_told_what_it_is(tiny_run, tmp_path):
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm/config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.pt").write_bytes(b"PK")
    for path, words in (
        (tmp_path / "nowhere", "There is no MODEL .*nowhere"),
        ("", "There is no MODEL ''"),
        (tiny_run.home / "checkpoints", "in the directory of a run: give that, "),
        (tiny_run.exported / "image", "lies in the directory of a run"),
        (tmp_path / "timm", "another project's encoder"),
        (tmp_path / "empty", "it holds nothing. Give the directory of a run"),
        (tmp_path / "weights.pt", "it is a file, .*`otter-jax convert`"),
    ):
        with pytest.raises(UserError, match=words):
            otter_jax.load(path)
    shutil.copytree(tiny_run.exported, tmp_path / "out")
    with pytest.raises(UserError, match="give the whole folder, .*out.$"):
        otter_jax.load(tmp_path / "out/image")
    with pytest.raises(UserError, match=r"weights='ema' is for the directory of a run"):
        otter_jax.load(tmp_path / "out", weights="ema")
    (tmp_path / "out/otter_jax.json").write_text("{")
    with pytest.raises(UserError, match="otter_jax.json is damaged.* export the run again"):
        otter_jax.load(tmp_path / "out")


def test_a_transfer_is_told_that_it_reads_no_names(tmp_path):
    Checkpoints(tmp_path).close()
    (tmp_path / "config.json").write_text('{"phases": {}, "data": {}}')
    with pytest.raises(UserError, match="a run of transfer, .*no text encoder that could read"):
        otter_jax.load(tmp_path)


def test_importing_the_package_loads_no_jax():
    code = "import otter_jax, sys; otter_jax.load; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=world.REPO)
