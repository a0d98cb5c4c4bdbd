"""Validation: a network's accuracy on a labelled split."""

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
from otter_jax.zeroshot.hits import expected_hit
from otter_jax.zeroshot.standing import check_finite, standing

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

        def place(params, batch_stats, image, labels):
            variables = gates.folded({"params": params, "batch_stats": batch_stats})
            return standing(model.apply(variables, normalise(image), train=False), labels)

        shardings = (whole, whole, rows, rows)
        self._place = jax.jit(place, in_shardings=shardings, out_shardings=whole)

    def __call__(
        self, params: PyTree, batch_stats: PyTree, check_stop: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Returns the "top-1" and "top-3" accuracy of the gated network.

        Where classes have the same score, it is what is expected over their order. Unreadable
        images are left out, and named. `check_stop` is called once per batch, and may raise to end
        the validation. Raises UserError if no image is readable, or a score is not finite.
        """

        def place(image, labels):
            return self._place(params, batch_stats, image, labels)

        source = self.data.source
        placed, ok = batches.over_all(
            self._config, source, self.mesh, place, self.data.labels[:, None],
            check_stop=check_stop,
        )  # fmt: skip
        if not self._named:
            batches.name_unreadable(source, ok, self._console)
            self._named = True
        if not ok.any():
            raise UserError(f"No image of {source.name} is readable.")
        above, level, own, finite = placed.T
        check_finite((finite > 0) | ~ok, source.key, f"{source.name}: the network's scores")
        hits = expected_hit(above[ok], level[ok], own[ok], KS)
        return {f"top-{k}": share for k, share in hits.items()}
