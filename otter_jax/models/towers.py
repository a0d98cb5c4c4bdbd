"""Joins an image and a text encoder, which then embed into one common space."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8


class Towers(nn.Module):
    """An image and a text encoder, each with a linear layer to `dim`, and the two temperatures.

    `txt_width` is the width of the text encoder; its linear layer exists only if that differs from
    `dim`. `mean` and `std`, in 0..255, are those that the image encoder was trained with.
    `unbiased` names the encoders ("img", "txt") whose linear layer is as CLIP's: without a bias,
    and there even if the width is `dim`.
    """

    img: nn.Module
    txt: nn.Module
    dim: int
    txt_width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    unbiased: tuple[str, ...] = ()

    def setup(self):
        self.img_head = head(self.img.width, self.dim, bias="img" not in self.unbiased)
        unbiased = "txt" in self.unbiased
        projected = unbiased or self.txt_width != self.dim
        self.txt_head = head(self.txt_width, self.dim, bias=not unbiased) if projected else None
        # Both inverse temperatures start at exp(3.9) = 49, as in the released code.
        self.log_scale = self.param(
            "log_scale", lambda _: {k: jnp.full((), 3.9) for k in ("pairs", "teacher")}
        )

    def __call__(
        self, image: UInt8[Array, "B H W 3"], captions: dict[str, Array], *, train: bool
    ) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
        """Returns the embeddings of images and captions, of unit length, float32.

        `captions` are the arguments of `embed_texts` (token_ids, mask), those of `embed_packed`
        (token_ids, segment_ids, positions), or that of `embed_pooled` (pooled).
        """
        embed = self.embed_packed if "segment_ids" in captions else self.embed_texts
        embed = self.embed_pooled if "pooled" in captions else embed
        txt = embed(**captions, train=train)
        return self.embed_images(image, train=train), txt

    def embed_images(
        self, image: UInt8[Array, "B H W 3"], *, train: bool = False
    ) -> Float[Array, "B D"]:
        """Returns the embeddings of images (pixels 0..255), of unit length, float32."""
        pixels = (image.astype(jnp.float32) - jnp.array(self.mean)) / jnp.array(self.std)
        return unit(self.img_head(self.img(pixels, train=train)))

    def embed_texts(
        self, token_ids: Int[Array, "B L"], mask: Bool[Array, "B L"], *, train: bool = False
    ) -> Float[Array, "B D"]:
        """Returns the embeddings of padded captions, of unit length; 0 for one without a token."""
        return self._project(self.pool_texts(token_ids, mask, train=train), mask.any(axis=1))

    def pool_texts(
        self, token_ids: Int[Array, "B L"], mask: Bool[Array, "B L"], *, train: bool = False
    ) -> Float[Array, "B H"]:
        """Returns what the text encoder alone makes of captions; 0 for one without a token."""
        pooled = self.txt.pool(self.txt(token_ids, mask, train=train), token_ids, mask)
        return pooled * mask.any(axis=1, keepdims=True)

    def embed_pooled(
        self, pooled: Float[Array, "B H"], *, train: bool = False
    ) -> Float[Array, "B D"]:
        """Returns the embeddings of captions from what `pool_texts` made of them; 0 for a 0."""
        return self._project(pooled, (pooled != 0).any(axis=1))

    def embed_packed(
        self,
        token_ids: Int[Array, "G R T"],
        segment_ids: Int[Array, "G R T"],
        positions: Int[Array, "G b"],
        *,
        train: bool = False,
    ) -> Float[Array, "B D"]:
        """Returns the embeddings of packed captions, of unit length; 0 for one without a token.

        B = G * b captions, b per group, lie in R rows per group (`data.packing.Packed.collate`);
        only `Bert` reads such rows.
        """
        rows = token_ids.reshape(-1, token_ids.shape[-1])
        segments = segment_ids.reshape(-1, segment_ids.shape[-1])
        hidden = self.txt(rows, segment_ids=segments, train=train)
        hidden = hidden.reshape(*token_ids.shape, -1)
        return self._project(*self.txt.pool_packed(hidden, segment_ids, positions))

    def _project(
        self, pooled: Float[Array, "B H"], has_token: Bool[Array, " B"]
    ) -> Float[Array, "B D"]:
        """Projects texts' vectors into the common space; 0 for a text without a token."""
        if self.txt_head is not None:
            pooled = self.txt_head(pooled) * has_token[:, None]
        return unit(pooled)


def of_texts(variables: PyTree) -> PyTree:
    """Returns the variables that `embed_texts` depends on: all but those of the image tower."""
    others = ("img", "img_head", "log_scale", "gates")
    return {
        collection: {name: each for name, each in tree.items() if name not in others}
        for collection, tree in variables.items()
    }


def head(width: int, dim: int, *, bias: bool = True) -> nn.Dense:
    """Makes a linear layer with PyTorch's initialisation: uniform within 1 / sqrt(width).

    flax's own initial weights are sqrt(3) times as large, so that a layer before a normalisation
    learns three times slower.
    """
    bound = 1 / math.sqrt(width)

    def draw(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(dim, use_bias=bias, kernel_init=draw, bias_init=draw)


def unit(x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    """Scales rows to length 1; a row of zeros stays zero, with a gradient of zero, not NaN."""
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squared, 1e-24))
