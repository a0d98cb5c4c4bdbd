"""Validation: a network's accuracy on a labelled split."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import rich.console
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree, UInt8
from ml_collections import ConfigDict

from otter_jax import gates
from otter_jax import mesh as meshes
from otter_jax.errors import UserError
from otter_jax.run import batches
from otter_jax.transfer.labelled import Labelled

KS = (1, 3)  # of top-K


def normaliser(config: ConfigDict) -> Callable[[UInt8[Array, "B H W 3"]], Float[Array, "B H W 3"]]:
    """Returns the function that normalises pixels in 0..255 by the config's mean and std."""
    mean, std = (jnp.array(list(config.model[key]), jnp.float32) for key in ("mean", "std"))

    def normalise(image):
        return (image.astype(jnp.float32) - mean) / std

    return normalise


class Validation:
    """Measures a network's top-K accuracy on a labelled split."""

    def __init__(
        self,
        config: ConfigDict,
        model: nn.Module,
        data: Labelled,
        mesh: Mesh,
        console: rich.console.Console,
    ):
        self.data, self.mesh = data, mesh
        self._config, self._console = config, console
        self._named = False
        whole, rows = meshes.shardings(mesh)
        normalise = normaliser(config)

        def ranked(params, batch_stats, image):
            variables = gates.folded({"params": params, "batch_stats": batch_stats})
            logits = model.apply(variables, normalise(image), train=False)
            return jax.lax.top_k(logits, min(max(KS), logits.shape[1]))[1]

        shardings = (whole, whole, rows)
        self._ranked = jax.jit(ranked, in_shardings=shardings, out_shardings=whole)

    def __call__(
        self, params: PyTree, batch_stats: PyTree, check_stop: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Returns the "top-1" and "top-3" accuracy of the gated network.

        Unreadable images are left out, and named. `check_stop` is called once per batch, and may
        raise to end the validation.
        """
        ranked, ok = batches.over_all(
            self._config,
            self.data.source,
            self.mesh,
            functools.partial(self._ranked, params, batch_stats),
            check_stop=check_stop,
        )
        if not self._named:
            batches.name_unreadable(self.data.source, ok, self._console)
            self._named = True
        hits = ranked == self.data.labels[:, None]
        if not ok.any():
            raise UserError(f"No image of {self.data.source.name} is readable.")
        return {f"top-{k}": float(hits[ok, :k].any(axis=1).mean()) for k in KS}
