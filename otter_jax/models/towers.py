"""Two encoders that meet: an image and a caption become unit vectors of one space."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8


class Towers(nn.Module):
    """Image and text encoder, a linear layer each to `dim`, and the two temperatures.

    `txt_width` is the width of the text encoder; its linear layer exists only where it differs
    from `dim`. `mean` and `std`, in 0..255, are what the image encoder was trained with.
    """

    img: nn.Module
    txt: nn.Module
    dim: int
    txt_width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def setup(self):
        self.img_head = head(self.img.width, self.dim)
        self.txt_head = None if self.txt_width == self.dim else head(self.txt_width, self.dim)
        # exp(3.9) = 49: where the released code starts both inverse temperatures.
        self.log_scale = self.param(
            "log_scale", lambda _: {k: jnp.full((), 3.9) for k in ("pairs", "teacher")}
        )

    def __call__(
        self,
        image: UInt8[Array, "B H W 3"],
        token_ids: Int[Array, "..."],
        mask: Bool[Array, "..."] | Int[Array, "..."],
        place: Int[Array, "G b"] | None = None,
        *,
        train: bool,
    ) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
        """Embeddings of images and captions, of unit length, float32."""
        txt = self.embed_texts(token_ids, mask, place, train=train)
        return self.embed_images(image, train=train), txt

    def embed_images(
        self, image: UInt8[Array, "B H W 3"], *, train: bool = False
    ) -> Float[Array, "B D"]:
        """Embeddings of images (pixels 0..255), of unit length, float32."""
        pixels = (image.astype(jnp.float32) - jnp.array(self.mean)) / jnp.array(self.std)
        return unit(self.img_head(self.img(pixels, train=train)))

    def embed_texts(
        self,
        token_ids: Int[Array, "..."],
        mask: Bool[Array, "..."] | Int[Array, "..."],
        place: Int[Array, "G b"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B D"]:
        """Embeddings of captions, of unit length, float32; 0 for a caption without a token.

        token_ids and mask are [B, L]; or, with `place`, [G, R, T] of the G * b = B captions of G
        groups, packed in R rows each as `data.packing.Packed.collate` does.
        """
        if place is None:
            hidden = self.txt(token_ids, mask, train=train)
            pooled, there = self.txt.pool(hidden, token_ids, mask), mask.any(axis=1)
        else:
            rows = token_ids.reshape(-1, token_ids.shape[-1]), mask.reshape(-1, mask.shape[-1])
            hidden = self.txt(*rows, train=train).reshape(*token_ids.shape, -1)
            pooled, there = self.txt.pool_packed(hidden, mask, place)
        if self.txt_head is not None:
            pooled = self.txt_head(pooled) * there[:, None]
        return unit(pooled)


def head(width: int, dim: int) -> nn.Dense:
    """A linear layer that starts as PyTorch's do: uniform within 1 / sqrt(width).

    flax's own start is sqrt(3) larger, and so, before a normalisation, learns three times slower.
    """
    bound = 1 / math.sqrt(width)

    def draw(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(dim, kernel_init=draw, bias_init=draw)


def unit(x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    """Rows scaled to length 1; a row of zeros stays zero, with a gradient of zero, not NaN."""
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squared, 1e-24))
