"""ResNets (He et al., arXiv:1512.03385), v1.5, with timm's and torchvision's names.

The "d" variants (He et al., arXiv:1812.01187) have a stem of three 3x3 convolutions, and a shortcut
that averages where the others skip every second row and column.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from otter_jax.models.convolution import Convolution, max_pool
from otter_jax.models.norm import BatchNorm

# The arguments of `ResNet` that make each architecture.
RESNETS = {
    "resnet18": {"stage_sizes": (2, 2, 2, 2), "block": "basic"},
    "resnet26": {"stage_sizes": (2, 2, 2, 2), "block": "bottleneck"},
    "resnet34": {"stage_sizes": (3, 4, 6, 3), "block": "basic"},
    "resnet50": {"stage_sizes": (3, 4, 6, 3), "block": "bottleneck"},
    "resnet101": {"stage_sizes": (3, 4, 23, 3), "block": "bottleneck"},
    "resnet152": {"stage_sizes": (3, 8, 36, 3), "block": "bottleneck"},
}
RESNETS |= {f"{name}d": {**arguments, "deep": True} for name, arguments in RESNETS.items()}
EXPANSION = {"basic": 1, "bottleneck": 4}  # a block's output channels per inner channel


class Block(nn.Module):
    """A residual block: 3x3, 3x3 (basic), or 1x1, 3x3 with the stride, 1x1 (bottleneck).

    Attributes:
      kept: if pruned, the output channels of all convolutions but the last; else ().
    """

    kind: Literal["basic", "bottleneck"]
    channels: int
    stride: int
    deep: bool = False
    kept: tuple[int, ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B H2 W2 C2"]:
        width = self.channels * EXPANSION[self.kind]
        layers = {  # (kernel size, stride)
            "basic": [(3, self.stride), (3, 1)],
            "bottleneck": [(1, 1), (3, self.stride), (1, 1)],
        }[self.kind]
        channels = (*(self.kept or (self.channels,) * (len(layers) - 1)), width)

        shortcut = x
        if self.stride > 1 or x.shape[-1] != width:
            stride, index = self.stride, 0
            if self.deep:
                shortcut = average_pool(x, stride)
                stride, index = 1, 1  # files number the pooling, too, whatever its stride
            shortcut = convolution(width, 1, stride, self.dtype, f"downsample_{index}")(shortcut)
            shortcut = BatchNorm(dtype=self.dtype, name=f"downsample_{index + 1}")(
                shortcut, use_running_average=not train
            )
        for i, (outputs, layer) in enumerate(zip(channels, layers, strict=True), 1):
            self.sow("intermediates", f"conv{i}_input", x)  # kept on request only
            x = convolution(outputs, *layer, self.dtype, f"conv{i}")(x)
            x = BatchNorm(dtype=self.dtype, name=f"bn{i}")(x, use_running_average=not train)
            x = jax.nn.relu(x if i < len(layers) else x + shortcut)
        return x


class ResNet(nn.Module):
    """Encodes images into features averaged over positions; with `num_classes`, into logits.

    Both are float32.

    Attributes:
      channels: the inner channels of each stage's blocks; the stem always has 64.
      deep: whether it is a "d" variant.
      pruned: (block, its `Block.kept`) for each pruned block.
      dtype: of convolutions and activations.
    """

    stage_sizes: tuple[int, ...]
    block: Literal["basic", "bottleneck"]
    channels: tuple[int, ...] = (64, 128, 256, 512)
    deep: bool = False
    pruned: tuple[tuple[str, tuple[int, ...]], ...] = ()
    num_classes: int | None = None
    dtype: Any = jnp.float32

    classifier = "fc"  # the name in files of the layer to `num_classes`

    @nn.compact
    def __call__(self, image: Float[Array, "B H W 3"], *, train: bool) -> Float[Array, "B C"]:
        x = image
        if self.deep:
            for i, stride in ((0, 2), (3, 1)):  # files number the ReLU, too
                x = convolution(32, 3, stride, self.dtype, f"conv1_{i}")(x)
                norm = BatchNorm(dtype=self.dtype, name=f"conv1_{i + 1}")
                x = jax.nn.relu(norm(x, use_running_average=not train))
            x = convolution(64, 3, 1, self.dtype, "conv1_6")(x)
        else:
            x = convolution(64, 7, 2, self.dtype, "conv1")(x)
        x = jax.nn.relu(BatchNorm(dtype=self.dtype, name="bn1")(x, use_running_average=not train))
        x = max_pool(x, 3, 2, ((1, 1), (1, 1)))
        for stage, (size, channels) in enumerate(zip(self.stage_sizes, self.channels, strict=True)):
            for i in range(size):
                stride = 2 if stage > 0 and i == 0 else 1
                name = f"layer{stage + 1}_{i}"
                kept = dict(self.pruned).get(name, ())
                block = Block(self.block, channels, stride, self.deep, kept, self.dtype, name=name)
                x = block(x, train=train)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))
        return (
            x if self.num_classes is None else nn.Dense(self.num_classes, name=self.classifier)(x)
        )

    @property
    def width(self) -> int:
        """The number of features."""
        return self.channels[-1] * EXPANSION[self.block]


def convolution(channels: int, kernel: int, stride: int, dtype: Any, name: str) -> Convolution:
    """Makes a convolution without bias, padded as in PyTorch: the same on both sides."""
    pad = kernel // 2
    init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    padding = ((pad, pad), (pad, pad))
    return Convolution(channels, kernel, stride, padding, dtype, initializer=init, name=name)


def average_pool(x: Float[Array, "B H W C"], size: int) -> Float[Array, "B H2 W2 C"]:
    """Averages over squares of size x size; at the edges, over the part inside the image."""
    if size == 1:
        return x
    window = (size, size)
    return nn.avg_pool(x, window, strides=window, padding="SAME", count_include_pad=False)
