"""What a frozen text encoder makes of captions is computed once, and changes no step."""

import io
import pickle

import jax
import numpy as np
import pytest
import rich.console
import tiny

from otter_jax import mesh as meshes
from otter_jax.configs import quickstart
from otter_jax.data.captions import Tokenizer
from otter_jax.data.readings import Readings
from otter_jax.data.source import Source
from otter_jax.training import texts

FREEZE = "txt/|img/(conv1|bn1)"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "green", "blue", "square"]
CAPTIONS = [" ".join(WORDS[4 + i % 4 : 5 + i % 7]) for i in range(2 * tiny.B)]  # some are empty


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return Tokenizer(folder, max_tokens=7)


def test_a_step_with_captions_read_once_is_the_step_with_their_tokens(tokenizer):
    """Loss, metrics and the whole new state; and the step's program has no text encoder."""
    captions, program = CAPTIONS[: tiny.B], tiny.compiled("otter", freeze=FREEZE)
    ids, mask = tokenizer.encode(captions)
    image = tiny.batch()["image"]
    padded = program(program.state, {"image": image, "token_ids": ids, "mask": mask})

    source = Source("set", [{"caption": caption} for caption in CAPTIONS], {"caption": None})
    embedder = texts.embedder(tiny.towers(), tokenizer, meshes.make_mesh(1), 8)
    readings, out = Readings(width=16), io.StringIO()
    texts.read(readings, source, embedder, program.state, rich.console.Console(file=out))
    number = len(set(CAPTIONS))
    assert out.getvalue() == f"Reading {number} captions once for the run, 0.0 MB\n"

    pooled = np.stack([readings.row({"caption": caption})["pooled"] for caption in captions])
    assert {"pooled": (pooled.shape, pooled.dtype)} == readings.shapes(tiny.B)
    still = texts.freezing.frozen_mask(program.state.params, FREEZE)
    one_step, put = tiny.jitted("otter", tx=tiny.tx(frozen=still), freeze=FREEZE)
    batch = put({"image": image, "pooled": pooled})
    compiled = one_step.lower(program.state, batch).compile()
    once = compiled(program.state, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=1e-5, atol=1e-6 * max(1, np.abs(b).max())
        ),
        *jax.device_get((padded, once)),
    )
    assert "/txt/" in program.step.as_text()
    assert "/txt/" not in compiled.as_text()


def test_a_row_has_its_captions_vector_in_workers_too():
    readings = Readings(width=2)
    assert not readings.row({"caption": "a"})["pooled"].any()  # before any are known
    readings.keep(["a", "b"], np.array([[1, 2], [3, 4]], np.float32))
    for each in (readings, pickle.loads(pickle.dumps(readings))):
        assert each.row({"caption": "b"})["pooled"].tolist() == [3, 4]
        with pytest.raises(KeyError):
            each.row({"caption": "c"})


@pytest.mark.parametrize(
    ("changes", "pairs", "once"),
    [
        ({}, 1_239, True),
        ({"data.packed": True}, 1_239, True),
        ({"optim.freeze": "txt/enc|img/"}, 1_239, False),  # not the whole encoder
        ({"optim.freeze": ""}, 1_239, False),
        ({"model.txt.dropout": 0.1}, 1_239, False),
        ({"teacher.checkpoint": "runs/teacher"}, 1_239, False),  # reads with weights of its own
        ({"train.epochs": 1.9}, 1_239, False),  # most would be read once anyway
        ({}, 174_762, True),  # 256 MiB of 384 floats
        ({}, 174_763, False),
        ({"data.num_workers": 1}, 87_382, False),  # it holds them too
    ],
)
def test_captions_are_read_once_if_nothing_changes_and_they_fit(changes, pairs, once):
    config = quickstart.get_config()
    config.update_from_flattened_dict(changes)
    params = {"txt": {"emb": {"x": 0}, "enc": {"x": 0}}, "img": {"x": 0}, "log_scale": {"x": 0}}
    assert texts.is_read_once(config, params, 384, pairs) == once
