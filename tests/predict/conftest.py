"""A run of tiny encoders that nobody trained, and what `export` writes of it."""

import functools
import json
import types

import jax
import numpy as np
import pytest
import world

from otter_jax.configs import common
from otter_jax.run import directory, export
from otter_jax.run.checkpoint import Checkpoints
from otter_jax.run.model import shapes

WORDS = [*world.WORDS, "dog", "cat", "sofa", "##s", ",", "otter", "sea", "something"]


def text_encoder(folder):
    """Writes a text encoder's config and vocabulary."""
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"intermediate_size": 8, "vocab_size": len(words), "max_position_embeddings": 40}
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **sizes, **more}))
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The directory of the run, its config and variables, and the folder `exported`.

    Pictures of 40 pixels, cropped to 32; texts of at most 36 tokens; 6 dimensions.
    """
    home = tmp_path_factory.mktemp("run")
    config = common.get_config("otter")
    config.model.dim = 6
    config.model.img.arch = "tiny"
    config.model.txt.weights = str(text_encoder(home / "text"))
    config.data.max_tokens = 36
    config.data.image_size, config.data.resize = 32, 40
    with world.tiny():
        _, like, _ = shapes(**config.model.to_dict())
        draw = np.random.default_rng(0).normal
        student, teacher = (
            jax.tree.map(lambda x: (draw(size=x.shape) / 3).astype(np.float32), like)
            for _ in range(2)
        )
        student["batch_stats"] = jax.tree.map(np.abs, student["batch_stats"])
        teacher["batch_stats"] = jax.tree.map(np.abs, teacher["batch_stats"])
        student["params"]["log_scale"]["pairs"] = np.float32(np.log(20))
        directory.describe(home, json.loads(config.to_json()))
        checkpoints = Checkpoints(home)
        checkpoints.save(3, student | {"teacher": teacher})
        checkpoints.close()
        export.run(config, home, home / "exported")
        yield types.SimpleNamespace(
            home=home, config=config, student=student, teacher=teacher, exported=home / "exported"
        )


@pytest.fixture(scope="session")
def load(tiny_run):
    """Loads a model of each kind once."""
    import otter_jax

    return functools.cache(otter_jax.load)


@pytest.fixture(scope="session")
def model(tiny_run, load):
    """The run's student."""
    return load(tiny_run.home)
