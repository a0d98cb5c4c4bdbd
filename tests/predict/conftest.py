"""A run of tiny encoders that nobody trained, and what `export` writes of it."""

import functools
import json
import types

import pytest
import untrained
import world

from otter_jax.configs import common
from otter_jax.run import export

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
        _, student, teacher = untrained.write(home, config, spread=3, scale=20)
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
