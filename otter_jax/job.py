"""From a config to all that its training steps are made of."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32, PyTree
from ml_collections import ConfigDict

from otter_jax import build, cluster, feed, gates, step
from otter_jax import mesh as meshes
from otter_jax.cluster import fingerprint
from otter_jax.data import pipeline, store
from otter_jax.data.captions import Tokenizer
from otter_jax.data.packing import Packed
from otter_jax.errors import UserError
from otter_jax.objective import Objective

SAMPLE = 5_000  # captions whose lengths are looked at before training


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a run is."""

    pairs: int
    steps: int
    steps_per_epoch: float  # a batch may belong to two epochs

    @classmethod
    def of(cls, config: ConfigDict, pairs: int) -> "Length":
        """The steps of config.train.epochs over so many pairs."""
        B = config.train.batch_size
        steps = max(1, round(config.train.epochs * pairs / B))
        return cls(pairs, steps, pairs / B)


@dataclasses.dataclass
class Job:
    """What a run trains, on what, and how.

    Attributes:
      variables: what training starts from: {"params", "batch_stats"}.
      captions, lengths: some of the set's, evenly over it, and how many tokens they have uncut.
      target: what makes the captions of a batch, packed or not.
      schedule: the learning rate over steps.
    """

    config: ConfigDict
    mesh: Mesh
    source: store.Source
    length: Length
    model: nn.Module
    variables: PyTree
    tokenizer: Tokenizer
    captions: list[str]
    lengths: Int32[np.ndarray, "_"]
    target: pipeline.Target
    schedule: step.Schedule
    tx: Any

    @classmethod
    def of(cls, config: ConfigDict) -> "Job":
        """On all devices. Makes the data set if it is not there.

        Raises UserError for what the config or the data get wrong, before anything is compiled.
        """
        mesh = meshes.make_mesh()
        check(config, mesh.size)
        feed.ensure(config.data.name, config.data.dir, config.data.tars)
        source = store.open_dataset(config.data.dir, config.data.name, config.data.split)
        source.check_has("image")
        source.check_has(Tokenizer.feature)
        length = Length.of(config, len(source))
        model, variables, tokenizer_folder = build.towers(
            **config.model.to_dict(),
            gate_shape=config.gates.shape,
            key=jax.random.key(config.seed),
        )
        tokenizer = Tokenizer(tokenizer_folder, config.data.max_tokens)
        build.check_sizes(config, model, tokenizer)
        captions = [source[i][Tokenizer.feature] for i in source.sample(SAMPLE)]
        cluster.agree(
            lambda: {
                "data.name": f"{source.name}, {len(source)} pairs, {fingerprint(captions)}",
                "model's weights": fingerprint(variables),
            }
        )
        lengths, target = tokenizer.lengths(captions), tokenizer
        if config.data.packed:
            target = Packed.of(
                tokenizer,
                lengths,
                per_group=config.train.batch_size // mesh.size,
                longest=model.txt.config.max_length,
            )
        schedule, tx = optimizer(config, variables["params"], length)
        return cls(
            config, mesh, source, length, model, variables, tokenizer, captions, lengths, target,
            schedule, tx,
        )  # fmt: skip

    def state(self) -> step.TrainState:
        """The state before the first step."""
        return step.create_state(self.variables["params"], self.variables["batch_stats"], self.tx)

    def train_step(self) -> Any:
        """`step.train_step` of a state and a batch, to be compiled; it takes the state over."""
        config = self.config
        whole, rows = meshes.shardings(self.mesh)
        one_step = functools.partial(
            step.train_step,
            model=self.model,
            tx=self.tx,
            objective=Objective(**config.objective),
            mesh=self.mesh,
            key=jax.random.key(config.seed),
            freeze=config.optim.freeze,
            gate_penalty=config.gates.penalty,
            gate_strength=config.gates.strength,
            ema_decay=None if config.teacher.checkpoint else config.teacher.ema_decay,
        )
        return jax.jit(one_step, donate_argnums=0, in_shardings=(whole, rows), out_shardings=whole)


def check(config: ConfigDict, devices: int) -> None:
    """Raises UserError for sizes that cannot be, before any data is read."""
    B = config.train.batch_size
    meshes.check_divides("train.batch_size", B, devices)
    if B < 2:
        raise UserError(
            "train.batch_size=1 has no negatives: every loss would be 0. Take 2 or more."
        )
    meshes.check_divides("eval.batch_size", config.eval.batch_size, devices)
    Objective(**config.objective)
    gates.check(**config.gates)
    for key, value in (
        ("train.epochs", config.train.epochs),
        ("train.log_every", config.train.log_every),
    ):
        if value <= 0:
            raise UserError(f"{key}={value}: must be more than 0.")
    processes = config.objective.num_processes
    if B % processes:
        raise UserError(
            f"objective.num_processes={processes} does not divide train.batch_size={B}."
        )
    if config.teacher.checkpoint and config.objective.teacher == "none":
        raise UserError(
            f"teacher.checkpoint={config.teacher.checkpoint!r}, but method {config.method!r} has "
            "no teacher. Choose kd or otter, or leave it empty."
        )


def optimizer(config: ConfigDict, params: PyTree, length: Length) -> tuple[step.Schedule, Any]:
    """The learning rate over steps, and the optimiser that config.optim asks for."""
    o = config.optim
    if o.schedule not in ("step", "epoch"):
        raise UserError(f'optim.schedule={o.schedule!r}: "step" or "epoch".')
    schedule = step.learning_rate(
        o.learning_rate,
        total_steps=length.steps,
        warmup_steps=o.warmup_steps,
        steps_per_epoch=length.steps_per_epoch if o.schedule == "epoch" else 1.0,
    )
    tx = step.optimizer(
        o.name,
        schedule,
        momentum=o.momentum,
        weight_decay=o.weight_decay,
        clip_norm=o.clip_norm,
        frozen=step.frozen_mask(params, config.optim.freeze),
    )
    return schedule, tx
