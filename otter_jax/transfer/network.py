"""Makes the network that a transfer starts from, or restores the trained one from its run."""

import functools
import pathlib
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Float, PyTree
from ml_collections import ConfigDict

from otter_jax import gates
from otter_jax import mesh as meshes
from otter_jax.errors import UserError
from otter_jax.run.model import complete
from otter_jax.run.reading import restore_best
from otter_jax.run.trained import image_encoder, image_module
from otter_jax.weights import encoders
from otter_jax.weights.tensors import Tell, quiet

Path = tuple[str, ...]


class Network(NamedTuple):
    """Holds an image encoder with a classifier, and its weights.

    Attributes:
      params: its parameters, with its gates under "gates" if it has any.
      step: the step of the run that trained it.
    """

    model: nn.Module
    params: PyTree
    batch_stats: PyTree
    step: int = 0

    def folded(self) -> PyTree:
        """Returns its variables with the gates folded into their kernels."""
        return gates.folded({"params": self.params, "batch_stats": self.batch_stats})


def fresh(config: ConfigDict, classes: int, *, tell: Tell = quiet) -> Network:
    """Makes the network that a transfer starts from, with gates of 1.

    Parameters without weights are drawn from config.seed; `tell` is told what the user should see
    of the weights. Raises UserError as `image_encoder` does,
    and if batch norms should use stored statistics but there are no weights to bring them.
    """
    m = config.model
    module, given = image_encoder(
        m.weights, arch=m.arch, dtype=m.dtype, mean=m.mean, std=m.std, ema=m.ema, tell=tell
    )
    module = module.clone(num_classes=classes)
    image, key = jnp.zeros((1, 64, 64, 3)), jax.random.key(config.seed)
    variables = complete(given, functools.partial(module.init, key, image, train=False))
    params = variables["params"]
    batch_stats = variables.get("batch_stats", {})
    if batch_stats and not m.weights and config.train.stored_statistics:
        raise UserError(
            "model.weights is empty, so that the batch norms have no statistics to normalise by: "
            "set --config.train.stored_statistics=False, or give weights."
        )
    if config.gates.shape:
        params = params | {"gates": gates.create(params, config.gates.shape)}
    return Network(module, params, batch_stats)


def trained(
    config: ConfigDict, workdir: pathlib.Path, classes: int, *, step: int | None = None
) -> Network:
    """Restores the network of a run at `step`, else the best by eval.best, or the latest.

    Raises UserError if there is none, or it is of another network than the config's.
    """
    m = config.model
    model = image_module(m.weights, arch=m.arch, dtype=m.dtype).clone(num_classes=classes)
    like = encoders.variable_shapes(model, jnp.zeros((1, 64, 64, 3)))
    if config.gates.shape:
        create = functools.partial(gates.create, shape=config.gates.shape)
        own = {"gates": jax.eval_shape(create, like["params"])}
        like = like | {"params": like["params"] | own}
    like = {"batch_stats": {}} | like
    found, taken = restore_best(
        workdir, like, meshes.one_device(), best=config.eval.best, step=step
    )
    return Network(model, found["params"], found["batch_stats"], taken.step)


def gates_of(params: PyTree) -> dict[Path, Float[np.ndarray, "..."]]:
    """Returns the gates A by the path of their convolution; {} without gates."""
    flat = traverse_util.flatten_dict(params.get("gates", {}))
    return {path[:-1]: np.asarray(gate) for path, gate in flat.items()}


def attention_of(params: PyTree) -> dict[Path, Float[np.ndarray, "_"]]:
    """Returns the attention to each filter by the path of its convolution; {} without gates."""
    found = gates.attention(params.get("gates", {}))
    return {path[:-1]: np.asarray(values) for path, values in found.items()}
