"""Towers without their frozen parts: the inputs are what these would give."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from otter_jax.models.towers import Towers, unit


class Frozen(nn.Module):
    """Stands for an encoder that is frozen as a whole: its input is the encoder's output."""

    width: int

    def __call__(self, features: Float[Array, "B F"], *, train: bool) -> Float[Array, "B F"]:
        """Returns the features as they are."""
        return features


class CachedTowers(Towers):
    """Towers whose batches hold what enters their trained parts, in place of pixels and tokens.

    `img` is `Frozen`, or an encoder that begins at a block (its field `enter`); parameters that
    are trained have the names that they have in `Towers`, and start with the same values. There
    are no pixels, so `mean` and `std` change nothing.
    """

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __call__(
        self, image: Float[Array, "B *features"], captions: dict[str, Array], *, train: bool
    ) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
        """Returns the embeddings of images and captions; `captions` holds `pooled`."""
        return self.embed_images(image, train=train), self.embed_texts(**captions, train=train)

    def embed_images(
        self, image: Float[Array, "B *features"], *, train: bool = False
    ) -> Float[Array, "B D"]:
        """Returns the embeddings of images, of unit length, float32."""
        return unit(self.img_head(self.img(image.astype(jnp.float32), train=train)))

    def embed_texts(
        self, pooled: Float[Array, "B W"], *, train: bool = False
    ) -> Float[Array, "B D"]:
        """Returns the embeddings of texts from their pooled hidden states; 0 for a row of zeros."""
        return self.embed_pooled(pooled.astype(jnp.float32), train=train)
