"""A pair of encoders and a batch small enough to compile in seconds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from otter_jax import freezing, gates, optimizer, step
from otter_jax import mesh as meshes
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


def towers(dropout: float = 0.0, dtype=jnp.float32) -> Towers:
    text = dataclasses.replace(
        BERT, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    )
    return Towers(
        img=ResNet(stage_sizes=(1,), block="basic", channels=(14,), dtype=dtype),
        txt=Bert(text, dtype=dtype),
        dim=6,
        txt_width=16,
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
    )


def batch(seed: int = 0, size: int = B) -> dict[str, np.ndarray]:
    rng = np.random.RandomState(seed)
    lengths = rng.randint(2, 8, (size, 1))
    return {
        "image": rng.randint(0, 256, (size, 16, 16, 3)).astype(np.uint8),
        "token_ids": rng.randint(1, 50, (size, 7)).astype(np.int32),
        "mask": np.arange(7) < lengths,
    }


def captions_of(batch):
    return {name: rows for name, rows in batch.items() if name != "image"}


@functools.cache
def variables():
    """Weights and statistics, in NumPy: copying arrays of jax's compiles a program a shape."""
    model, x = towers(), batch()
    init = functools.partial(model.init, train=False)
    return jax.device_get(jax.jit(init)(jax.random.key(0), x["image"], captions_of(x)))


def tx(**options):
    return optimizer.make_optimizer("sgd", lambda _: 0.01, **options)


def state(optimiser=None, gated="", dtype=np.float32):
    """The state before the first step, in NumPy; with `gated`, gates of this shape on images."""

    def create(params, batch_stats):
        if gated:
            params = params | {"gates": {"img": gates.create(params["img"], gated)}}
        return step.create_state(params, batch_stats, optimiser or tx())

    found = jax.tree.map(dtype, variables())
    return jax.device_get(jax.jit(create)(found["params"], found["batch_stats"]))


def jitted(objective: str | Objective, devices: int = 1, **options):
    """(train_step for so many devices, put: host batch -> device batch)."""
    mesh = meshes.make_mesh(devices)
    whole, rows = meshes.shardings(mesh)
    if isinstance(objective, str):
        objective = METHODS[objective]
    f = functools.partial(
        step.train_step,
        **{"model": towers(), "tx": tx(), "objective": objective, "mesh": mesh}
        | {"key": jax.random.key(1)}
        | options,
    )
    f = jax.jit(f, in_shardings=(whole, rows), out_shardings=whole)
    return f, functools.partial(meshes.put_batch, mesh=mesh)


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled train_step, what puts a batch on its devices, and its first state."""

    step: jax.stages.Compiled
    put: functools.partial
    state: step.TrainState

    def __call__(self, state, rows):
        """The next state, and the metrics, of this batch of NumPy arrays."""
        with jax.enable_x64(self.state.params["log_scale"]["pairs"].dtype == np.float64):
            return self.step(state, self.put(rows))

    def first_step(self):
        """The state and the metrics after the first step of `batch()`, in NumPy."""
        return jax.device_get(self(self.state, batch()))


@functools.cache
def compiled(
    objective: str | Objective,
    devices: int = 1,
    *,
    double: bool = False,
    model: Towers | None = None,
    freeze: str = "",
    gated: str = "",
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    **options,
) -> Program:
    """Compiles a step once for all tests of this process that ask for the same options.

    With `double` in float64: in float32 rounding can decide the sign of a ReLU's input, and so a
    gradient's third digit.
    """
    dtype = np.float64 if double else np.float32
    with jax.enable_x64(double):
        first = state(gated=gated, dtype=dtype)
        still = freezing.frozen_mask(first.params, freeze) if freeze else None
        optimiser = tx(frozen=still, weight_decay=weight_decay, clip_norm=clip_norm)
        options |= {"model": model or towers(dtype=dtype), "tx": optimiser, "freeze": freeze}
        train_step, put = jitted(objective, devices, **options)
        first = state(optimiser, gated, dtype)
        return Program(train_step.lower(first, put(batch())).compile(), put, first)
