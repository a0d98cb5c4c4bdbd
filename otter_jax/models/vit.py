"""Vision transformers (arXiv:2010.11929), also CLIP's (arXiv:2103.00020), with timm's names."""

import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from otter_jax.models import bert
from otter_jax.models.convolution import Convolution
from otter_jax.models.norm import LayerNorm

ACTIVATIONS = bert.ACTIVATIONS | {"quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x)}

SMALL: dict[str, Any] = {"width": 384, "heads": 6}
BASE: dict[str, Any] = {"width": 768, "heads": 12}
CLIP: dict[str, Any] = {"pre_norm": True, "epsilon": 1e-5}
# The arguments of `ViT` that make each architecture. OpenAI's own CLIPs are the quickgelu ones.
VITS = {
    "vit_small_patch32_224": {"patch": 32, **SMALL},
    "vit_small_patch16_224": {"patch": 16, **SMALL},
    "vit_base_patch32_224": {"patch": 32, **BASE},
    "vit_base_patch16_224": {"patch": 16, **BASE},
    "vit_base_patch32_clip_224": {"patch": 32, **BASE, **CLIP},
    "vit_base_patch16_clip_224": {"patch": 16, **BASE, **CLIP},
    "vit_base_patch32_clip_quickgelu_224": {
        "patch": 32, **BASE, **CLIP, "activation": "quick_gelu",
    },
    "vit_base_patch16_clip_quickgelu_224": {
        "patch": 16, **BASE, **CLIP, "activation": "quick_gelu",
    },
}  # fmt: skip
# The same weights, pooled by the mean. Not called "gap", which in timm has no class token at all.
VITS |= {f"{name}_mean": {**arguments, "pool": "mean"} for name, arguments in VITS.items()}


class ViT(nn.Module):
    """Encodes images into features, in float32; with `num_classes`, into logits.

    An image may have any size that is a multiple of the patch: position embeddings are resampled
    from the grid of `image_size`, as in timm.

    Attributes:
      patch: side of a patch in pixels.
      width: the number of features.
      pre_norm: whether there is a norm before the blocks and no bias in the patch embedding, as in
        CLIP.
      epsilon: of the norms.
      image_size: side of the images that the position embeddings are for, in pixels.
      pool: "token" takes the class token's features, "mean" the mean over the patches'. The norm
        comes before the mean: timm's global_pool="avg" with fc_norm=False.
      dtype: of matrix products and activations; softmax and norms are computed in float32.
    """

    patch: int
    width: int
    heads: int
    depth: int = 12
    pre_norm: bool = False
    activation: str = "gelu"
    epsilon: float = 1e-6
    image_size: int = 224
    pool: Literal["token", "mean"] = "token"
    num_classes: int | None = None
    dtype: Any = jnp.float32

    classifier = "head"  # the name in files of the layer to `num_classes`

    @nn.compact
    def __call__(self, image: Float[Array, "B H W 3"], *, train: bool) -> Float[Array, "B C"]:
        batch, height, width, _ = image.shape
        p = self.patch
        if height % p or width % p:
            raise ValueError(
                f"images of {height}x{width} pixels do not divide into patches of {p}x{p}; "
                f"both sides must be multiples of {p}"
            )
        x = Convolution(
            self.width,
            size=p,
            stride=p,
            padding=((0, 0), (0, 0)),
            dtype=self.dtype,
            use_bias=not self.pre_norm,
            name="patch_embed",
        )(image)
        side = self.image_size // p
        token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, self.width))
        shape = (1, 1 + side * side, self.width)
        positions = self.param("pos_embed", nn.initializers.normal(0.02), shape)
        token = jnp.broadcast_to(token.astype(self.dtype), (batch, 1, self.width))
        x = jnp.concatenate([token, x.reshape(batch, -1, self.width)], axis=1)
        positions = resample(jnp.asarray(positions), (height // p, width // p))
        x += positions.astype(self.dtype)
        if self.pre_norm:
            x = LayerNorm(self.epsilon, self.dtype, name="norm_pre")(x)

        block = partial(Block, self.heads, 4 * self.width, self.activation, self.epsilon)
        for i in range(self.depth):
            x = block(dtype=self.dtype, name=f"blocks_{i}")(x, train=train)

        x = x[:, :1] if self.pool == "token" else x[:, 1:]
        exact = jnp.promote_types(self.dtype, jnp.float32)
        x = LayerNorm(self.epsilon, exact, name="norm")(x).mean(1)
        return (
            x if self.num_classes is None else nn.Dense(self.num_classes, name=self.classifier)(x)
        )


class Block(nn.Module):
    """Attention, then a two-layer perceptron; each begins with a norm and is added to its input.

    Attributes:
      inner: width of the perceptron's inner layer.
      dropout: of the attention's weights, in training, from the rng "dropout".
    """

    heads: int
    inner: int
    activation: str
    epsilon: float
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L H"], mask: Bool[Array, "B L L"] | None = None, *, train: bool
    ) -> Float[Array, "B L H"]:
        norm = partial(LayerNorm, self.epsilon, self.dtype)
        attention = Attention(self.heads, self.dropout, self.dtype, name="attn")
        x += attention(norm(name="norm1")(x), mask, train=train)
        perceptron = Perceptron(self.inner, self.activation, self.dtype, name="mlp")
        return x + perceptron(norm(name="norm2")(x))


class Attention(nn.Module):
    """Applies self-attention with its projection; `mask` says which token (row) sees which."""

    heads: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L H"], mask: Bool[Array, "B L L"] | None, *, train: bool
    ) -> Float[Array, "B L H"]:
        width = x.shape[-1]
        qkv = bert.dense(3 * width, self.dtype, "qkv")(x)
        query, key, value = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, self.heads, -1), 2, 0)
        exact = jnp.promote_types(self.dtype, jnp.float32)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=exact)
        scores /= jnp.sqrt(jnp.array(query.shape[-1], exact))
        if mask is not None:
            # Not -inf: padding that sees no token then attends evenly instead of to NaN.
            scores = jnp.where(mask[:, None], scores, jnp.finfo(exact).min)
        weights = jax.nn.softmax(scores).astype(self.dtype)
        weights = nn.Dropout(self.dropout, deterministic=not train)(weights)
        attended = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
        return bert.dense(width, self.dtype, "proj")(attended)


class Perceptron(nn.Module):
    """Applies two linear layers, with `inner` units between them."""

    inner: int
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B L H"]) -> Float[Array, "B L H"]:
        inner = ACTIVATIONS[self.activation](bert.dense(self.inner, self.dtype, "fc1")(x))
        return bert.dense(x.shape[-1], self.dtype, "fc2")(inner)


def resample(positions: Float[Array, "1 N H"], grid: tuple[int, int]) -> Float[Array, "1 M H"]:
    """Resamples position embeddings, of a class token and a square of patches, to another grid.

    It is bicubic (Keys' a = -0.5) and antialiased, as in timm. Hugging Face's CLIP resamples on
    request only, with a = -0.75 and without antialiasing.
    """
    side = math.isqrt(positions.shape[1] - 1)
    if grid == (side, side):
        return positions
    token, patches = positions[:, :1], positions[:, 1:]
    width = positions.shape[-1]
    patches = jax.image.resize(patches.reshape(1, side, side, width), (1, *grid, width), "cubic")
    return jnp.concatenate([token, patches.reshape(1, -1, width)], axis=1)
