"""What is exported is the model, under other programs' names."""

import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import untrained

from otter_jax.commands.export import main
from otter_jax.configs import common
from otter_jax.data.captions import Tokenizer
from otter_jax.errors import UserError
from otter_jax.models.bert import Bert, Projection
from otter_jax.models.towers import unit
from otter_jax.run import card, export, trained
from otter_jax.run.checkpoint import Checkpoints
from otter_jax.run.model import initialise, shapes
from otter_jax.weights import encoders, folders, open_clip_export, sentences
from otter_jax.weights.tensors import read

BERT = {
    "model_type": "bert",
    "vocab_size": 10,
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 9,
}
IDS = jnp.arange(16).reshape(2, 8) % 10
MASK = jnp.arange(8) < jnp.array([[8], [5]])
IMAGES = jnp.asarray(np.random.RandomState(0).randint(0, 256, (2, 40, 40, 3)), jnp.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's directory, its config, and its student's variables."""
    home = tmp_path_factory.mktemp("run")
    text = home / "text"
    text.mkdir()
    (text / "config.json").write_text(json.dumps(BERT))
    (text / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "otter"]))
    config = common.get_config("otter")
    config.model.dim = 6
    config.model.dtype = "bfloat16"  # of the training; what is exported computes in float32
    config.data.max_tokens = 9
    config.data.dir = str(home / "no_data")
    config.data.image_size, config.data.resize = 56, 64
    config.model.img.arch = "resnet18"
    config.model.txt.weights = str(text)
    model, student, teacher = untrained.write(home, config, spread=20)
    return home, config, model, student, teacher


@pytest.fixture(scope="module")
def exported(run):
    home, config, *_ = run
    export.run(config, home, home / "exported")
    return home / "exported"


def test_another_program_that_reads_it_embeds_as_the_model_does(run, exported):
    """The other program here is this project's own reading of timm's and Hugging Face's files."""
    _, _, model, student, _ = run
    captions = {"token_ids": IDS, "mask": MASK}
    image, text = jax.jit(lambda v: model.apply(v, jnp.asarray(IMAGES), captions, train=False))(
        student
    )

    encoder = encoders.load_image(str(exported / "image"), arch="resnet18", classifier=True)
    about = json.loads((exported / "image/config.json").read_text())["pretrained_cfg"]
    pixels = (np.asarray(IMAGES) / 255 - np.array(about["mean"])) / np.array(about["std"])
    classify = jax.jit(functools.partial(encoder.module.apply, train=False))
    logits = classify(encoder.variables, jnp.float32(pixels))
    np.testing.assert_allclose(unit(logits), image, atol=1e-5)

    encoder = encoders.load_text(str(exported / "text"))
    assert encoder.width == 6  # with the projection into the common space
    hidden = encoder.module.apply(encoder.variables, IDS, MASK, train=False)
    pooled = encoder.module.apply(encoder.variables, hidden, IDS, MASK, method="pool")
    np.testing.assert_allclose(unit(pooled), text, atol=1e-5)


def test_the_numbers_to_compare_with_are_the_models(run, exported):
    _, config, model, student, _ = run
    check = np.load(exported / "check.npz")
    ids, mask = Tokenizer(exported / "text", config.data.max_tokens).encode(
        check["captions"].tolist()
    )
    embed = functools.partial(model.apply, student, method="embed_texts")
    text = embed(jnp.asarray(ids), jnp.asarray(mask))
    np.testing.assert_allclose(check["text_embeddings"], text, atol=1e-5)
    embed = functools.partial(model.apply, student, method="embed_images")
    image = embed(jnp.asarray(check["pictures"]))
    np.testing.assert_allclose(check["image_embeddings"], image, atol=1e-5)


def test_names_and_axes_are_those_of_timm_and_hugging_face(run, exported):
    _, _, _, student, _ = run
    image = safetensors.numpy.load_file(exported / "image/model.safetensors")
    params = student["params"]
    np.testing.assert_array_equal(image["fc.weight"], params["img_head"]["kernel"].T)
    np.testing.assert_array_equal(
        image["layer2.0.downsample.0.weight"][:, :, 0, 0],
        params["img"]["layer2_0"]["downsample_0"]["kernel"][0, 0].T,
    )
    stats = student["batch_stats"]["img"]["bn1"]
    np.testing.assert_array_equal(image["bn1.running_var"], stats["var"])
    text = safetensors.numpy.load_file(exported / "text/model.safetensors")
    np.testing.assert_array_equal(
        text["encoder.layer.0.attention.self.query.weight"],
        params["txt"]["encoder"]["layer_0"]["attention"]["self"]["query"]["kernel"].T,
    )


def test_an_export_explains_itself(run, exported):
    _, config, *_ = run
    image = json.loads((exported / "image/config.json").read_text())
    assert (image["architecture"], image["num_classes"]) == ("resnet18", 6)
    assert image["pretrained_cfg"]["crop_pct"] == 56 / 64
    about = json.loads((exported / "otter_jax.json").read_text())
    assert (about["weights"], about["step"], about["dim"]) == ("student", 3, 6)
    assert about["config"] == json.loads(config.to_json())
    for name in ("vocab.txt", "config.json"):
        assert (exported / "text" / name).is_file()
    kinds = [
        m["type"].split(".")[-1] for m in json.loads((exported / "text/modules.json").read_text())
    ]
    assert kinds == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert json.loads((exported / "text/config.json").read_text())["dtype"] == "float32"
    assert encoders.load_text(str(exported / "text")).tokenizer == exported / "text"


def test_the_folder_itself_is_both_towers_for_sentence_transformers(run, exported):
    _, _, _, student, _ = run
    kinds = [m["type"].split(".")[-1] for m in json.loads((exported / "modules.json").read_text())]
    assert kinds == ["Router", "Normalize"]
    router = json.loads((exported / "router_config.json").read_text())
    assert router["structure"] == {
        "text": ["text", "text/1_Pooling", "text/2_Dense"],
        "image": ["image", "image/1_Dense"],
    }
    assert router["types"].keys() == {
        path for chain in router["structure"].values() for path in chain
    }
    for path in router["types"]:
        assert (exported / path / "config.json").is_file()
    head = safetensors.numpy.load_file(exported / "image/1_Dense/model.safetensors")
    np.testing.assert_array_equal(head["linear.weight"], student["params"]["img_head"]["kernel"].T)
    np.testing.assert_array_equal(head["linear.bias"], student["params"]["img_head"]["bias"])
    settings = json.loads((exported / "image/sentence_bert_config.json").read_text())
    assert settings["modality_config"]["image"]["method_output_name"] == "pooler_output"
    assert settings["module_output_name"] == "sentence_embedding"


def test_open_clip_finds_the_config_of_its_text_tower_where_the_export_lies(exported):
    about = json.loads((exported / "open_clip/open_clip_config.json").read_text())
    home = Path(about["model_cfg"]["text_cfg"]["hf_model_name"])
    assert home == exported / "open_clip"
    assert json.loads((home / "config.json").read_text())["hidden_size"] == 12


def test_what_open_clip_cannot_hold_is_told_and_the_rest_is_written(run, tmp_path, monkeypatch):
    home, config, *_ = run

    def refuse(*_, **__):
        raise open_clip_export.NotHeldError("it has no place for an otter")

    monkeypatch.setattr(open_clip_export, "write", refuse)
    told = []
    export.run(config, home, tmp_path / "out", tell=told.append)
    assert told == ["There is no folder for open_clip: it has no place for an otter."]
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert there >= {"image", "text", "modules.json", "README.md", "check.npz"}
    assert "open_clip" not in there
    card = (tmp_path / "out/README.md").read_text()
    assert "`open_clip/` is not here: it has no place for an otter." in card
    assert "create_model_from_pretrained" not in card


def test_the_card_calls_unknown_what_nobody_wrote_down(exported):
    card = (exported / "README.md").read_text()
    assert "What `openmoji` was made of is unknown" in card
    assert "| pairs `openmoji` | unknown |" in card
    assert "| text weights `text` | unknown |" in card
    assert "It was not evaluated at this step" in card
    assert "| image encoder | resnet18, began with random weights |" in card


def test_the_card_says_the_licence_that_a_folder_of_weights_names(run, tmp_path):
    _, config, *_ = run
    config = config.copy_and_resolve_references()
    (tmp_path / "README.md").write_text(
        "---\ntags: [a]\nlicense: apache-2.0\n---\nlicense: other\n"
    )
    config.model.txt.weights = str(tmp_path)
    about = {
        "dim": 6, "weights": "ema", "step": 3, "max_tokens": 9,
        "scale": {"pairs": 9.0}, "image": {"resize": 64, "size": 56},
    }  # fmt: skip
    text = card.text(config, about, name="mine", left_out={})
    assert f"| text weights `{tmp_path.name}` | apache-2.0 |" in text


def test_the_averaged_weights_are_exported_on_request(run, tmp_path):
    home, config, _, _, teacher = run
    export.run(config, home, tmp_path / "out", which="ema")
    image = read(tmp_path / "out/image/model.safetensors")
    np.testing.assert_array_equal(image["fc.bias"], teacher["params"]["img_head"]["bias"])


def test_mistakes_are_one_paragraph(run, exported, tmp_path, capsys):
    home, *_ = run
    for arguments, words in (
        ((home, exported), "is there already"),
        ((home, exported / "check.npz"), "is there already"),
        ((tmp_path, tmp_path / "out"), "is .* the directory of a run"),
    ):
        assert main(["--workdir", str(arguments[0]), "--out", str(arguments[1])]) == 2
        assert re.search(f"error: .*{words}", capsys.readouterr().err)


def test_weights_that_a_run_does_not_have_are_an_error(run, tmp_path):
    _, config, _, student, _ = run
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, student)
    checkpoints.close()
    with pytest.raises(UserError, match="has no ema weights; there is student"):
        export.run(config, tmp_path, tmp_path / "out", which="ema")


def test_a_checkpoint_with_nan_is_not_exported(run, tmp_path):
    _, config, _, student, _ = run
    head = {
        "img_head": {"kernel": student["params"]["img_head"]["kernel"], "bias": np.full(6, np.nan)}
    }
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, student | {"params": student["params"] | head})
    checkpoints.close()
    with pytest.raises(UserError, match=r"step 1, holds NaN .*params\.img_head\.bias: 6 of 6"):
        export.run(config, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


PROJECTED = (Projection(5, "Tanh"), Projection(4, "Identity", False))


@pytest.mark.parametrize("dim", [4, 6])
def test_pooling_and_projections_of_a_text_encoder_are_written_and_read_again(run, dim, tmp_path):
    _, config, model, *_ = run
    text = Bert(model.txt.config, pooling="cls", projections=PROJECTED)
    model = model.clone(txt=text, txt_width=4, dim=dim)
    variables = initialise(model, jax.random.key(0))
    original = Path(config.model.txt.weights)
    lower_case = original / "sentence_bert_config.json"
    lower_case.write_text('{"do_lower_case": true}')
    folders.write_text(tmp_path / "text", config, model, variables, original)
    lower_case.unlink()
    encoder = encoders.load_text(str(tmp_path / "text"))
    assert encoder.module.pooling == "cls"
    assert encoder.module.projections == PROJECTED + ((Projection(6),) if dim == 6 else ())
    hidden = encoder.module.apply(encoder.variables, IDS, MASK, train=False)
    pooled = encoder.module.apply(encoder.variables, hidden, IDS, MASK, method="pool")
    expected = model.apply(variables, IDS, MASK, method="embed_texts")
    np.testing.assert_allclose(unit(pooled), expected, atol=1e-5)
    assert sentences.lower_case(tmp_path / "text")
    assert json.loads((tmp_path / "text/modules.json").read_text())[-1]["type"].endswith(
        "Normalize"
    )


# From one run to another -------------------------------------------------------------------------


def begun(config, home, *, img, txt, **changes):
    """What a run begins with whose towers come from these weights, and what was told."""
    own = config.copy_and_resolve_references()
    own.unlock()
    own.model.img.weights, own.model.txt.weights = str(img), str(txt)
    own.update_from_flattened_dict(changes)
    notes = []
    _, variables, tokenizer = trained.fresh(own, key=jax.random.key(7), tell=notes.append)
    assert tokenizer == home / "text"
    shapes_again = shapes(**own.model.to_dict())[1]  # as an evaluation of that run needs them
    assert jax.tree.structure(shapes_again["params"]) == jax.tree.structure(variables["params"])
    return variables, " ".join(notes)


def equal(one, other):
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


def test_a_run_begins_where_another_ended_heads_and_temperatures_included(run):
    home, config, _, student, teacher = run
    variables, notes = begun(config, home, img=home, txt=home)
    assert equal(variables, student)
    assert f"img and txt begin with the student weights of {home}, step 3" in notes
    variables, notes = begun(config, home, img=f"{home}#ema", txt=f"{home}#ema")
    assert equal(variables, teacher)


def test_one_tower_of_a_run_comes_with_its_head_alone(run):
    home, config, _, student, _ = run
    variables, _ = begun(
        config, home, img=home, txt=home / "text", **{"model.txt.pretrained": False}
    )
    ours, theirs = variables["params"], student["params"]
    assert equal([ours["img"], ours["img_head"]], [theirs["img"], theirs["img_head"]])
    assert equal(variables["batch_stats"], student["batch_stats"])
    assert not equal(ours["txt"], theirs["txt"])
    assert float(ours["log_scale"]["pairs"]) == np.float32(3.9)


def test_a_head_of_another_size_begins_anew_and_another_tower_is_refused(run):
    home, config, _, student, _ = run
    variables, notes = begun(config, home, img=home, txt=home, **{"model.dim": 10})
    assert equal(variables["params"]["txt"], student["params"]["txt"])
    assert variables["params"]["img_head"]["kernel"].shape[-1] == 10
    assert "have another size than model.dim=10: anew" in notes
    with pytest.raises(UserError, match="model.img.arch='resnet26', but the run in .* 'resnet18'"):
        begun(config, home, img=home, txt=home, **{"model.img.arch": "resnet26"})
    with pytest.raises(UserError, match="has no best weights"):
        begun(config, home, img=f"{home}#best", txt=home)
