"""Rematerialised blocks: found in every encoder, and no number but the memory changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import traverse_util

from otter_jax.models.bert import Bert
from otter_jax.models.clip import ClipText, ClipTextConfig
from otter_jax.models.efficientnet import STAGES, EfficientNet
from otter_jax.models.remat import forgetful
from otter_jax.models.resnet import RESNETS, ResNet
from otter_jax.models.towers import Towers
from otter_jax.models.vit import ViT

CLIP = ClipTextConfig(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=20,
    num_hidden_layers=3,
    num_attention_heads=2,
    max_position_embeddings=12,
)
IMAGES = {
    "resnet18": (ResNet(**RESNETS["resnet18"]), 8),
    "efficientnet": (EfficientNet(lite=True, stages=STAGES[:2]), 3),
    "vit": (ViT(patch=16, width=16, heads=2, depth=2, image_size=16), 2),
}
TEXTS = {"bert": (Bert(tiny.BERT), 1), "clip": (ClipText(CLIP), 3)}


@pytest.mark.parametrize(
    ("which", "img", "txt"),
    [
        ("img", "resnet18", "bert"),
        ("img", "efficientnet", "bert"),
        ("img", "vit", "bert"),
        ("txt", "vit", "bert"),
        ("txt", "vit", "clip"),
        ("both", "vit", "clip"),
        ("", "vit", "clip"),
    ],
)
def test_each_block_of_the_towers_named_is_computed_again_and_no_variable_moves(which, img, txt):
    (image, images), (text, texts) = IMAGES[img], TEXTS[txt]
    model = Towers(image, text, 6, 16, (127.0,) * 3, (128.0,) * 3)
    rows = jax.tree.map(jnp.asarray, tiny.batch(size=2))
    inputs = rows["image"], tiny.captions_of(rows)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, train=False))

    def apply(variables):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, *inputs, train=True, mutable=["batch_stats"], rngs=rngs)[1]

    with forgetful(which):
        program, updated = jax.make_jaxpr(apply, return_shape=True)(variables)
    for path, leaf in traverse_util.flatten_dict(updated).items():
        assert leaf.shape == traverse_util.flatten_dict(variables)[path].shape
    expected = {"img": images, "txt": texts, "both": images + texts, "": 0}[which]
    assert str(program).count("prevent_cse=True") == expected


def test_a_rematerialised_step_is_the_step():
    """With dropout: the masks are drawn again as they were."""
    model = tiny.towers(dropout=0.5, dtype=np.float64)
    plain, again = (
        tiny.compiled("infonce", double=True, model=model, **options).first_step()
        for options in ({}, {"remat": "both"})
    )

    def near(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)

    jax.tree.map(near, again, plain)
