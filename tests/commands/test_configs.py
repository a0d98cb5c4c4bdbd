"""Every config and every variant: it loads, has no key of its own, and trains."""

import functools
import importlib
import json
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from colours import PICTURES, eval_set
from flax import traverse_util
from ml_collections import ConfigDict
from world import REPO

from otter_jax import freezing, mesh, step
from otter_jax.commands import configs
from otter_jax.data.captions import Tokenizer
from otter_jax.errors import UserError
from otter_jax.models.norm import BatchNorm
from otter_jax.objective import METHODS, PUBLISHED, Objective
from otter_jax.run import batches, directory, model, trained
from otter_jax.training import contrastive
from otter_jax.weights import encoders
from otter_jax.zeroshot.metrics import metrics_of

OF_CC3M = (*METHODS, *(f"{method}_released" for method in PUBLISHED))
VARIANTS = {  # of a file that is not here: what it gives without one
    "common": METHODS,
    "quickstart": METHODS,
    "pairs": (*METHODS, *(f"{method}_cpu" for method in METHODS), "cpu"),
    "cc3m": OF_CC3M,
    "wit": OF_CC3M,
    "yfcc15m": OF_CC3M,
    "self_distillation": ("ema", "fixed"),
}
FILES = [name for name in configs.names() if name != "transfer"]  # that is for another command
ALL = [(name, variant) for name in FILES for variant in VARIANTS.get(name, (None,))]
LIKE_CC3M = ("common", "cc3m", "wit", "yfcc15m", "self_distillation")
# Compiling is what takes time here, so what would compile the same takes no step of its own.
SAME_STEP = {
    **{(name, variant): ("cc3m", variant) for name in ("wit", "yfcc15m") for variant in OF_CC3M},
    ("self_distillation", "ema"): ("cc3m", "kd"),
    ("cc3m", "ls_released"): ("cc3m", "infonce_released"),
}
STEPS = [
    ("cc3m", None),
    *((name, None) for name in FILES if name not in LIKE_CC3M),
    *(("cc3m", variant) for variant in OF_CC3M if variant not in ("otter", "ls_released", "trust")),
    ("self_distillation", "fixed"),
    ("pairs", "cpu"),
]
B = 16


def load(name, variant=None):
    """The config as the program gets it from its command line."""
    return configs.load(name if variant is None else f"{name}:{variant}", [])


def module(name):
    return importlib.import_module(f"otter_jax.configs.{name}")


def keys(config):
    """All keys but those of evaluation sets, which have names of their own, and their kinds."""
    flat = directory.flatten(json.loads(config.to_json()))
    return {k: type(v) for k, v in flat.items() if not k.startswith("eval.sets.") and v != {}}


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_a_variant_loads_and_has_the_keys_of_common(name, variant):
    config = load(name, variant)
    found, known = keys(config), keys(load("common"))
    known.pop("eval.sets", None)
    assert found == known
    contrastive.check_config(config, devices=8)
    with pytest.raises((AttributeError, KeyError)):
        config.train.steps = 1
    for spec in config.eval.sets.values():
        assert spec.keys() == module("common").evaluation("x").keys()


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_the_docstring_gives_the_command_and_each_variant(name, variant):
    text = module(name).__doc__
    if name != "common":
        assert f"otter-jax train --config {name} --workdir runs/" in text
        base = (variant or "").removesuffix("_released").removesuffix("_cpu")
        assert f":{base}" in text or "those of cc3m" in text


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_that_is_not_there_is_an_error_that_names_those_that_are(name):
    with pytest.raises(UserError, match=r"There is no \w+ 'nonsense'; there are: \w+"):
        module(name).get_config("nonsense")


class Tiny(nn.Module):
    """An image encoder that compiles in no time: one convolution, one batch norm."""

    dtype: Any
    width = 8

    @nn.compact
    def __call__(self, image, *, train):
        x = nn.Conv(8, (4, 4), strides=4, dtype=self.dtype, name="conv_stem")(image)
        x = BatchNorm(dtype=self.dtype, name="bn1")(x, use_running_average=not train)
        return nn.relu(x).astype(jnp.float32).mean((1, 2))


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    """A text encoder that compiles in no time: embeddings and their norm, no layers."""
    folder = tmp_path_factory.mktemp("text")
    sizes = {"hidden_size": 16, "num_hidden_layers": 0, "vocab_size": 50}
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **sizes}))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "word"]))
    return folder


def small(config, text_folder):
    """What a step by the config depends on, at reduced size: other encoders, a smaller batch."""
    config.model.img.arch, config.model.img.weights = "tiny", ""
    config.model.txt.weights, config.model.txt.pretrained = str(text_folder), False
    config.train.batch_size, config.data.image_size, config.data.max_tokens = B, 16, 10
    size = {"image_size": config.data.image_size, "max_tokens": config.data.max_tokens}
    sections = ("seed", "model", "objective", "train", "optim", "teacher")
    return ConfigDict({key: config[key] for key in sections} | {"data": size})


@functools.cache
def towers(section):
    return model.fresh(**json.loads(section), key=jax.random.key(0))


def one_step(config):
    """Parameters before and after, and the metrics."""
    devices = mesh.make_mesh(1)
    made, variables, _ = towers(config.model.to_json(sort_keys=True))
    _, tx = contrastive.optimizer(
        config, variables["params"], contrastive.Length.of(config, 10 * B)
    )
    state = step.create_state(variables["params"], variables["batch_stats"], tx)
    train_step = functools.partial(
        step.train_step,
        model=made,
        tx=tx,
        objective=Objective(**config.objective),
        mesh=devices,
        key=jax.random.key(config.seed),
        freeze=config.optim.freeze,
        ema_decay=None if config.teacher.checkpoint else config.teacher.ema_decay,
    )
    whole, rows = mesh.shardings(devices)
    compiled = jax.jit(train_step, in_shardings=(whole, rows), out_shardings=whole)
    after, metrics = compiled(jax.device_put(state, whole), batch(config, devices))
    flat = [traverse_util.flatten_dict(x, sep="/") for x in (state.params, after.params)]
    return jax.device_get((*flat, metrics))


def batch(config, devices):
    rng = np.random.RandomState(0)
    tokenizer = Tokenizer(config.model.txt.weights, config.data.max_tokens)
    shapes = batches.shapes(config, tokenizer, devices)
    values = {
        "image": rng.randint(0, 256, shapes["image"].shape),
        "token_ids": rng.randint(1, 50, shapes["token_ids"].shape),
        "mask": np.arange(config.data.max_tokens) < rng.randint(2, 10, (B, 1)),
    }
    return mesh.put_batch({k: v.astype(shapes[k].dtype) for k, v in values.items()}, devices)


@pytest.mark.parametrize(("name", "variant"), STEPS)
def test_one_step_moves_all_that_is_not_frozen(monkeypatch, text_folder, name, variant):
    monkeypatch.setitem(encoders.IMAGE_ENCODERS, "tiny", (Tiny, {}))
    config = small(load(name, variant), text_folder)
    before, after, metrics = one_step(config)
    assert all(np.isfinite(value) for value in metrics.values())
    # A batch of chance: both directions near ln B, the teacher's share included. A sigmoid pays for
    # each of the B * B pairs that these encoders cannot tell apart.
    assert 0 < metrics["loss"] < 4 * np.log(B) * (B if config.objective.match == "sigmoid" else 1)
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    frozen = {path for path in before if freezing.frozen(path, config.optim.freeze)}
    # Without a teacher's term only a sigmoid has a use for its scale.
    used = config.objective.alpha < 1 or config.objective.match == "sigmoid"
    idle = set() if used else {"log_scale/teacher"}
    assert moved == before.keys() - frozen - idle


@pytest.mark.parametrize(("variant", "start"), [("otter", 49.40245), ("siglip", 10.0)])
def test_scales_start_where_the_objective_says(monkeypatch, text_folder, variant, start):
    """SigLIP's at 10, of which the second is minus its bias; arXiv:2303.15343."""
    monkeypatch.setitem(encoders.IMAGE_ENCODERS, "tiny", (Tiny, {}))
    config = small(load("common", variant), text_folder)
    config.gates = {"shape": ""}
    _, variables, _ = trained.fresh(config, key=jax.random.key(0))
    found = jax.tree.map(np.exp, variables["params"]["log_scale"])
    assert found == {"pairs": pytest.approx(start), "teacher": pytest.approx(start)}


@pytest.mark.parametrize(("one", "other"), SAME_STEP.items(), ids=str)
def test_these_differ_in_their_data_alone(one, other):
    lines = directory.differences(load(*one), load(*other))
    assert {line.split(": ")[0] for line in lines} <= {
        "method",
        "data.name",
        "eval.sets.heldout.data",
    }


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_variants_of_a_file_are_one_config_with_other_objectives(name, variant):
    """So that a step by each objective and a step by each file are steps by every variant."""
    lines = directory.differences(load(name), load(name, variant))
    changed = {line.split(": ")[0] for line in lines}
    changed = {key for key in changed if key != "method" and not key.startswith("objective.")}
    released = (
        {"model.dtype", "optim.schedule", "optim.clamp_scales", "data.exif"}
        if "released" in (variant or "")
        else set()
    )
    others = {"fixed": {"teacher.checkpoint"}}.get(variant, set())
    if (variant or "").endswith("cpu"):
        others = {"model.dtype", "model.txt.dropout", "optim.freeze", "optim.learning_rate"}
        others |= {"data.resize", "data.image_size", "train.batch_size"}
    assert changed <= released | others


def test_a_released_variant_differs_in_the_options_that_the_docs_name():
    page = (REPO / "docs" / "fidelity.md").read_text("utf-8")
    changed = set()
    for method in PUBLISHED:
        lines = directory.differences(load("cc3m", method), load("cc3m", f"{method}_released"))
        changed |= {line.split(":")[0] for line in lines}
    assert changed - {"model.dtype"} == {
        "objective.diagonal",
        "objective.image_weight",
        "objective.negatives_gradient",
        "objective.num_processes",
        "objective.smoothing",
        "objective.text_weight",
        "optim.schedule",
        "optim.clamp_scales",
        "data.exif",
    }
    for key in changed - {"model.dtype"}:
        assert re.search(rf"`{re.escape(key)}=", page), key


@pytest.mark.parametrize("name", ["cc3m", "wit", "yfcc15m", "self_distillation", "pairs"])
def test_what_is_held_out_follows_the_data_and_is_not_trained_on(name):
    tars = ("/data/a-*.tar", "/data/b.tar")
    config = load(name)
    config.data.tars, config.data.name = tars, "mine"
    heldout = config.eval.sets.heldout
    assert config.data.tars == heldout.tars == tars
    assert config.data.name == heldout.data == "mine"
    learned, held_out = (
        re.fullmatch(r"train\[(.*)\]", s)[1] for s in (config.data.split, heldout.split)
    )
    assert learned == f":{held_out[:-1]}"  # one ends where the other begins
    assert held_out.endswith(":")


def test_self_distillation_has_one_target_and_two_teachers():
    ema, fixed = load("self_distillation"), load("self_distillation", "fixed")
    assert [line.split(": ")[0] for line in directory.differences(ema, fixed)] == [
        "teacher.checkpoint"
    ]


@pytest.mark.parametrize("name", ["quickstart", "pairs", "common"])
@pytest.mark.parametrize("method", METHODS)
def test_every_config_loads_with_every_method(name, method):
    config = module(name).get_config(method)
    assert config.method == method
    Objective(**config.objective)
    with pytest.raises((AttributeError, KeyError)):
        config.train.steps = 1


@pytest.mark.parametrize("variant", ["otter", "cpu", "infonce"])
def test_the_best_of_few_pairs_is_kept_by_a_metric_that_they_have(variant):
    config = load("pairs", variant)
    name, _, metric = config.eval.best.split("/")
    assert name in config.eval.sets
    held_out = eval_set([[0], [1], [2]], PICTURES[:3], pictures=np.arange(3))  # of sixty pairs
    assert metric in metrics_of(held_out)


def test_the_pairs_config_evaluates_on_what_the_command_line_names():
    config = module("pairs").get_config()
    config.data.name, config.data.tars = "mine", ("a.tar",)
    assert config.eval.sets.heldout.data == "mine"
    assert config.eval.sets.heldout.tars == ("a.tar",)


def test_the_release_has_the_published_methods_alone():
    with pytest.raises(UserError, match="no method 'trust'; there are: infonce, ls, kd, otter"):
        module("cc3m").get_config("trust_released")
