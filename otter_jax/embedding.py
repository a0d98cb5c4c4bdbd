"""Embeds a batch with both towers: at once, or some pairs at a time with the same gradients.

With a microbatch, pairs are embedded so many at a time and their activations forgotten. The loss
is still that of the whole batch: every pair is a negative of every other. In the backward pass
each part is embedded again, and the gradients of its embeddings go through it (GradCache,
arXiv:2101.06983); here that is a rematerialised scan. So memory grows with the microbatch, and a
step costs a third more.

What a part computes is what the batch computes, with one exception: batch norm in training mode is
over a part, on all devices, and the running statistics follow the mean of the parts'. Layer norms,
and batch norms that are frozen or in evaluation mode, do not see the difference. Dropout's masks
are the same in both passes, but not those of another microbatch.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key, PyTree

from otter_jax import gates
from otter_jax.freezing import stored_statistics
from otter_jax.mesh import AXIS
from otter_jax.models.remat import forgetful

Embeddings = tuple[Float[Array, "B D"], Float[Array, "B D"]]


@jax.named_scope("embedding")
def embed(
    model: nn.Module,
    batch: dict[str, Array],
    variables: PyTree,
    rng: Key[Array, ""],
    *,
    train: bool,
    mesh: Mesh,
    freeze: str = "",
    microbatch: int = 0,
    remat: str = "",
) -> tuple[Embeddings, PyTree]:
    """Returns the embeddings of a batch's images and captions, and the updated statistics.

    `microbatch` pairs, a divisor of the batch and a multiple of the devices, are embedded at a
    time; 0 embeds all at once. The batch norms of what `freeze` matches use stored statistics. The
    blocks of the towers `remat`, a key of `models.remat.TOWERS`, are computed again in the backward
    pass.
    """

    def apply(part, rng):
        captions = {k: v for k, v in part.items() if k != "image"}
        with stored_statistics(freeze), forgetful(remat):
            return model.apply(
                variables | {"params": gates.fold(variables["params"])}, part["image"], captions,
                train=train, rngs={"dropout": rng}, mutable=["batch_stats"],
            )  # fmt: skip

    B = len(batch["image"])
    if microbatch in (0, B):
        return apply(batch, rng)
    parts = B // microbatch

    @jax.checkpoint
    def one(part, number):
        return apply(part, jax.random.fold_in(rng, number))

    def step(_, each):
        return None, one(*each)

    dealt = {name: _deal(x, parts, mesh) for name, x in batch.items()}
    _, (embeddings, updated) = lax.scan(step, None, (dealt, jnp.arange(parts)))
    img, txt = (_collect(x, mesh) for x in embeddings)
    return (img, txt), jax.tree.map(lambda x: x.mean(0), updated)


def _deal(x, parts, mesh):
    """Cuts the rows of every device into so many parts: [parts, rows of a part, ...]."""
    x = x.reshape(mesh.size, parts, -1, *x.shape[1:]).swapaxes(0, 1)
    x = x.reshape(parts, -1, *x.shape[3:])
    return lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(None, AXIS)))


def _collect(x, mesh):
    """Undoes `_deal`."""
    parts = x.shape[0]
    x = x.reshape(parts, mesh.size, -1, *x.shape[2:]).swapaxes(0, 1)
    x = x.reshape(-1, *x.shape[3:])
    return lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(AXIS)))
