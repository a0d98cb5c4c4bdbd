"""The network of a transfer."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import PyTree
from ml_collections import ConfigDict

from otter_jax import gates
from otter_jax.errors import UserError
from otter_jax.run.checkpoint import restore_best
from otter_jax.run.model import complete
from otter_jax.run.trained import image_encoder, image_module
from otter_jax.transfer import pictures
from otter_jax.weights import encoders


def network(config: ConfigDict, classes: int) -> tuple[nn.Module, PyTree, PyTree]:
    """The module with a classifier, its parameters and batch statistics; with gates of 1.

    What no weights are given for is drawn from config.seed.
    """
    m = config.model
    module, given = image_encoder(
        m.weights, arch=m.arch, dtype=m.dtype, mean=m.mean, std=m.std, ema=m.ema
    )
    module = module.clone(num_classes=classes)
    image, key = jnp.zeros((1, 64, 64, 3)), jax.random.key(config.seed)
    variables = complete(given, lambda: module.init(key, image, train=False))
    params = variables["params"]
    batch_stats = variables.get("batch_stats", {})
    if batch_stats and not m.weights and config.train.stored_statistics:
        raise UserError(
            "model.weights is empty, so that the batch norms have no statistics to normalise by: "
            "set --config.train.stored_statistics=False, or give weights."
        )
    if config.gates.shape:
        params = params | {"gates": gates.create(params, config.gates.shape)}
    return module, params, batch_stats


def trained_network(
    config: ConfigDict, workdir: pathlib.Path, classes: int
) -> tuple[nn.Module, PyTree, PyTree, int]:
    """A run's network, its gated parameters and batch statistics, and which step it is.

    The step is the best by eval.best, else the latest. Raises UserError if there is none, or it is
    of another network than the config's.
    """
    m = config.model
    model = image_module(m.weights, arch=m.arch, dtype=m.dtype).clone(num_classes=classes)
    like = encoders.variable_shapes(model, jnp.zeros((1, 64, 64, 3)))
    if config.gates.shape:
        own = {
            "gates": jax.eval_shape(lambda p: gates.create(p, config.gates.shape), like["params"])
        }
        like = like | {"params": like["params"] | own}
    like = {"batch_stats": {}} | like
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    found, step = restore_best(workdir, like, here, best=config.eval.best)
    return model, found["params"], found["batch_stats"], step


def gates_of(params: PyTree) -> dict[pictures.Path, np.ndarray]:
    """The gates A, by the path of their convolution; {} without gates."""
    flat = traverse_util.flatten_dict(params.get("gates", {}))
    return {path[:-1]: np.asarray(gate) for path, gate in flat.items()}


def attention_of(params: PyTree) -> dict[pictures.Path, np.ndarray]:
    """The attention to each filter, by the path of its convolution; {} without gates."""
    found = gates.attention(params.get("gates", {}))
    return {path[:-1]: np.asarray(values) for path, values in found.items()}
