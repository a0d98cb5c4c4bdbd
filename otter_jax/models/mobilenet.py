"""MobileNetV3 (Howard et al., arXiv:1905.02244) and FBNetV3 (Dai et al., arXiv:2006.02049).

They have inverted residuals with hard swish, and a head after the average over positions. Layers
have timm's names.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from otter_jax.models.convolution import Pointwise
from otter_jax.models.efficientnet import (
    Block,
    batch_norm,
    convolution,
    padding_of,
    round_channels,
)

Row = tuple[int, int, int | float, int, int, bool]

# The arguments of `MobileNet` that make each architecture. A stage has rows of equal blocks:
# (repeats, channels, expansion, kernel size, stride of the first, squeeze-excitation).
MOBILENETS = {
    "mobilenetv3_small_100": {
        "stages": (
            ((1, 16, 1, 3, 2, True),),
            ((1, 24, 4.5, 3, 2, False), (1, 24, 3.67, 3, 1, False)),
            ((1, 40, 4, 5, 2, True), (2, 40, 6, 5, 1, True)),
            ((2, 48, 3, 5, 1, True),),
            ((3, 96, 6, 5, 2, True),),
        ),
        "relu_stages": 2,
        "channels": (16, 576, 1024),
    },
    "mobilenetv3_large_100": {
        "stages": (
            ((1, 16, 1, 3, 1, False),),
            ((1, 24, 4, 3, 2, False), (1, 24, 3, 3, 1, False)),
            ((3, 40, 3, 5, 2, True),),
            ((1, 80, 6, 3, 2, False), (1, 80, 2.5, 3, 1, False), (2, 80, 2.3, 3, 1, False)),
            ((2, 112, 6, 3, 1, True),),
            ((3, 160, 6, 5, 2, True),),
        ),
        "relu_stages": 3,
        "channels": (16, 960, 1280),
    },
    "fbnetv3_b": {
        "stages": (
            ((2, 16, 1, 3, 1, False),),
            ((1, 24, 4, 5, 2, False), (3, 24, 2, 5, 1, False)),
            ((1, 40, 5, 5, 2, True), (4, 40, 3, 5, 1, True)),
            ((1, 72, 5, 5, 2, False), (4, 72, 3, 3, 1, False)),
            ((1, 120, 5, 3, 1, True), (5, 120, 3, 5, 1, True)),
            ((1, 184, 6, 3, 2, True), (5, 184, 4, 5, 1, True), (1, 224, 6, 5, 1, True)),
        ),
        "channels": (16, 1344, 1984),
        "kind": "fbnetv3",
    },
    "fbnetv3_d": {
        "stages": (
            ((2, 16, 1, 3, 1, False),),
            ((1, 24, 5, 3, 2, False), (5, 24, 2, 3, 1, False)),
            ((1, 40, 4, 5, 2, True), (4, 40, 3, 3, 1, True)),
            ((1, 72, 5, 3, 2, False), (4, 72, 3, 3, 1, False)),
            ((1, 128, 5, 3, 1, True), (6, 128, 3, 5, 1, True)),
            ((1, 208, 6, 3, 2, True), (5, 208, 5, 5, 1, True), (1, 240, 6, 5, 1, True)),
        ),
        "channels": (24, 1440, 1984),
        "kind": "fbnetv3",
    },
    "fbnetv3_g": {
        "stages": (
            ((3, 24, 1, 3, 1, False),),
            ((1, 40, 4, 5, 2, False), (4, 40, 2, 5, 1, False)),
            ((1, 56, 4, 5, 2, True), (4, 56, 3, 5, 1, True)),
            ((1, 104, 5, 5, 2, False), (4, 104, 3, 3, 1, False)),
            ((1, 160, 5, 3, 1, True), (8, 160, 3, 5, 1, True)),
            ((1, 264, 6, 3, 2, True), (6, 264, 5, 5, 1, True), (2, 288, 6, 5, 1, True)),
        ),
        "channels": (32, 1728, 1984),
        "kind": "fbnetv3",
    },
}


class MobileNet(nn.Module):
    """Encodes images into features, in float32; with `num_classes`, into logits.

    The features are those of `conv_head`, a layer that follows the average over positions.

    Attributes:
      channels: of the stem, of the last convolution before the average, and of `conv_head`.
      relu_stages: the number of stages, from the first, with ReLU instead of hard swish.
      kind: FBNet's squeeze-excitation is narrower (a quarter of the block's input channels, not of
        its widened ones) and has hard swish instead of ReLU; its `conv_head` has no bias.
      pruned: (block, number of its depthwise filters) for each pruned block.
      dtype: of convolutions and activations before the average.
    """

    stages: tuple[tuple[Row, ...], ...]
    channels: tuple[int, int, int]
    relu_stages: int = 0
    kind: Literal["mobilenetv3", "fbnetv3"] = "mobilenetv3"
    pruned: tuple[tuple[str, int], ...] = ()
    num_classes: int | None = None
    dtype: Any = jnp.float32

    classifier = "classifier"  # the name in files of the layer to `num_classes`

    @nn.compact
    def __call__(self, image: Float[Array, "B H W 3"], *, train: bool) -> Float[Array, "B C"]:
        act, fbnet = jax.nn.hard_swish, self.kind == "fbnetv3"
        stem, last, head = self.channels
        x = convolution(stem, 3, 2, padding_of(3, False), self.dtype, "conv_stem")(image)
        x = act(batch_norm(False, self.dtype)(name="bn1")(x, use_running_average=not train))
        for stage, rows in enumerate(self.stages):
            blocks = [(row, row[4] if i == 0 else 1) for row in rows for i in range(row[0])]
            for i, ((_, channels, expansion, kernel, _, squeezed), stride) in enumerate(blocks):
                hidden = round_channels(x.shape[-1] * expansion)
                squeeze = (
                    round_channels(x.shape[-1] / 4, keep=0.95)
                    if fbnet
                    else round_channels(hidden / 4)
                )
                name = f"blocks_{stage}_{i}"
                x = Block(
                    channels=channels,
                    hidden=hidden,
                    kept=dict(self.pruned).get(name),
                    kernel=kernel,
                    stride=stride,
                    squeeze=squeeze if squeezed else 0,
                    act=jax.nn.relu if stage < self.relu_stages else act,
                    squeeze_act=act if fbnet else jax.nn.relu,
                    gate=jax.nn.hard_sigmoid,
                    dtype=self.dtype,
                    name=name,
                )(x, train=train)
        x = Last(last, self.dtype, name=f"blocks_{len(self.stages)}_0")(x, train=train)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2), keepdims=True)
        x = act(Pointwise(head, x.dtype, not fbnet, name="conv_head")(x))[:, 0, 0]
        return (
            x if self.num_classes is None else nn.Dense(self.num_classes, name=self.classifier)(x)
        )

    @property
    def width(self) -> int:
        """The number of features."""
        return self.channels[-1]


class Last(nn.Module):
    """Applies the convolution before the average; files name it as another stage."""

    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B H W C2"]:
        x = Pointwise(self.channels, self.dtype, name="conv")(x)
        x = batch_norm(False, self.dtype)(name="bn1")(x, use_running_average=not train)
        return jax.nn.hard_swish(x)
