"""A pair of encoders and a batch small enough to compile in seconds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from otter_jax import mesh as meshes
from otter_jax import optimizer, step
from otter_jax.models.bert import Bert, BertConfig
from otter_jax.models.resnet import ResNet
from otter_jax.models.towers import Towers
from otter_jax.objective import METHODS, Objective

B = 24  # a multiple of 8 that no other axis of the tiny model has
BERT = BertConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=20,
    max_position_embeddings=12,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
)


def towers(dropout: float = 0.0) -> Towers:
    import dataclasses

    text = dataclasses.replace(
        BERT, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    )
    return Towers(
        img=ResNet(stage_sizes=(1, 1), block="basic", channels=(8, 14)),
        txt=Bert(text),
        dim=6,
        txt_width=16,
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
    )


def batch(seed: int = 0, size: int = B) -> dict[str, np.ndarray]:
    rng = np.random.RandomState(seed)
    lengths = rng.randint(2, 8, (size, 1))
    return {
        "image": rng.randint(0, 256, (size, 32, 32, 3)).astype(np.uint8),
        "token_ids": rng.randint(1, 50, (size, 7)).astype(np.int32),
        "mask": np.arange(7) < lengths,
    }


def captions_of(batch):
    return {name: rows for name, rows in batch.items() if name != "image"}


@functools.cache
def variables():
    model, x = towers(), batch()
    init = functools.partial(model.init, train=False)
    return jax.jit(init)(jax.random.key(0), x["image"], captions_of(x))


def tx(**options):
    return optimizer.make_optimizer("sgd", lambda _: 0.05, **options)


def state(optimiser=None):
    v = jax.tree.map(jnp.copy, variables())
    return step.create_state(v["params"], v["batch_stats"], optimiser or tx())


def jitted(objective: str | Objective, devices: int = 1, *, dropout: float = 0.0, **options):
    """(train_step compiled for so many devices, put: host batch -> device batch)."""
    mesh = meshes.make_mesh(devices)
    whole, rows = meshes.shardings(mesh)
    if isinstance(objective, str):
        objective = METHODS[objective]
    f = functools.partial(
        step.train_step,
        **{"model": towers(dropout), "tx": tx(), "objective": objective, "mesh": mesh}
        | {"key": jax.random.key(1)}
        | options,
    )
    f = jax.jit(f, in_shardings=(whole, rows), out_shardings=whole)
    return f, functools.partial(meshes.put_batch, mesh=mesh)


@functools.cache
def compiled(method: str, devices: int):
    """As `jitted`, compiled once for all tests of this process."""
    train_step, put = jitted(method, devices)
    return train_step.lower(state(), put(batch())).compile(), put
