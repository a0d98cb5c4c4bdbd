"""Every key of a config has a range, and a value outside it is one paragraph that names the key."""

import math

import pytest

from otter_jax.commands import configs, ranges
from otter_jax.errors import UserError

NAN, INF = math.nan, math.inf
# key: values that no run can have
TRAIN = {
    "seed": (-1, 2**32),
    "objective.alpha": (-0.1, 1.1, NAN),
    "objective.smoothing": (1.0, NAN),
    "objective.epsilon": (0.0, -1.0, NAN, INF),
    "objective.num_iters": (0, 10**6),
    "objective.teacher": ("sinkhorn", ""),
    "objective.teacher_scale": (NAN, INF, -1.0),
    "model.dim": (0, -3, 10**9),
    "model.dtype": ("float16", "half", ""),
    "model.img.mean": ((1.0, 2.0), (1.0, 2.0, NAN), ("a", "b", "c"), (1.0, 2.0, 300.0)),
    "model.img.std": ((0.0, 1.0, 1.0), (), (-1.0, 1.0, 1.0)),
    "model.txt.weights": ("",),
    "model.txt.dropout": (1.0, -0.1, NAN),
    "data.dir": ("", " ", "gs://bucket/sets"),
    "data.name": ("/etc", "../sets", "a/../../b", "0.5*a+0.5*../b"),
    "data.split": ("",),
    "data.tars": ((1, 2), ("",)),
    "data.resize": (0, -1, 10**6),
    "data.min_area": (-0.1, 1.5, NAN),
    "data.jitter": (-0.1, 1.5, NAN),
    "data.max_tokens": (0, -1, 10**9),
    "data.num_workers": (-1, 10**6),
    "data.exif": ("turn",),
    "train.batch_size": (0, -8, 2**40),
    "train.epochs": (0.0, -1.0, NAN, INF),
    "train.log_every": (0, -1),
    "train.remat": ("image", True),
    "optim.name": ("adam",),
    "optim.learning_rate": (0.0, -1e-3, NAN, INF),
    "optim.schedule": ("weekly",),
    "optim.warmup_steps": (-1,),
    "optim.momentum": (1.0, 1.5, -0.1, NAN),
    "optim.weight_decay": (-1.0, NAN, INF),
    "optim.clip_norm": (-1.0, NAN, INF),
    "optim.freeze": ("img/(", "*"),
    "gates.shape": ("row",),
    "gates.penalty": ("l3",),
    "gates.strength": (-1.0, NAN, INF),
    "teacher.ema_decay": (-0.1, 1.1, NAN),
    "eval.every": (-1,),
    "eval.batch_size": (0, -1),
    "checkpoint.every": (-1,),
    "checkpoint.keep_every": (-1,),
}
TRANSFER = {
    "phases": ("",),
    "model.arch": ("",),
    "model.mean": ((1.0, 2.0),),
    "data.validation": ("",),
    "optim.schedule": ("step",),
    "optim.learning_rate": (NAN, -1.0, 0.0),
}
WRONG = [
    (name, key, value)
    for name, keys in (("pairs", TRAIN), ("transfer", TRANSFER))
    for key, values in keys.items()
    for value in values
]


def keys_of(config):
    return {key for key, _ in ranges._leaves(config)}


@pytest.mark.parametrize("name", configs.names())
def test_every_key_has_a_range_and_every_value_that_ships_is_in_it(name):
    config = configs.load(name, [])
    table = ranges.TABLES["transfer" if name == "transfer" else "train"]
    assert keys_of(config) == set(table)
    for each in config.eval.sets.values() if "sets" in config.eval else ():
        assert set(each) == set(ranges.EVAL_SET)


@pytest.mark.parametrize(("name", "key", "value"), WRONG, ids=str)
def test_a_value_outside_its_range_is_one_paragraph(name, key, value):
    with pytest.raises(UserError, match="must be|On the command line") as caught:
        configs.load(name, [f"--config.{key}={value}"])
    assert key in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_set_to_evaluate_on_is_looked_at_too():
    for line in ("label=", "split=", "data=../x", "templates=(1, 2)"):
        with pytest.raises(UserError, match=r"eval.sets.\w+.\w+='?.*must be"):
            configs.load("quickstart", [f"--config.eval.sets.unseen.{line}"])


def test_a_config_file_that_sets_what_no_override_can_is_looked_at_too(tmp_path):
    own = tmp_path / "own.py"
    for line, words in (
        ("config.train.batch_size = None", "train.batch_size=None: must be a whole number"),
        ("config.eval.sets.mine = 'openmoji'", "eval.sets.mine='openmoji': must be made by"),
        ("config.model.img.mean = (1.0, None, 2.0)", "model.img.mean"),
        ("config.unlock(); config.optim.lr = 0.1", "key optim.lr that this program does not know"),
    ):
        own.write_text(
            "from otter_jax.configs import pairs\n"
            f"def get_config():\n    config = pairs.get_config()\n    {line}\n    return config\n"
        )
        with pytest.raises(UserError) as caught:
            configs.load(str(own), [])
        assert words in str(caught.value)
