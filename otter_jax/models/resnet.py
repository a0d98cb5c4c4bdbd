"""ResNets (He et al., arXiv:1512.03385), v1.5, with timm's and torchvision's names and padding."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from otter_jax.models.norm import BatchNorm

# The arguments of `ResNet` that make each architecture.
RESNETS = {
    "resnet18": {"stage_sizes": (2, 2, 2, 2), "block": "basic"},
    "resnet26": {"stage_sizes": (2, 2, 2, 2), "block": "bottleneck"},
    "resnet34": {"stage_sizes": (3, 4, 6, 3), "block": "basic"},
    "resnet50": {"stage_sizes": (3, 4, 6, 3), "block": "bottleneck"},
    "resnet101": {"stage_sizes": (3, 4, 23, 3), "block": "bottleneck"},
}
EXPANSION = {"basic": 1, "bottleneck": 4}  # a block's output channels per inner channel


class Block(nn.Module):
    """A residual block: 3x3, 3x3 (basic), or 1x1, 3x3 with the stride, 1x1 (bottleneck)."""

    kind: Literal["basic", "bottleneck"]
    channels: int
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B H2 W2 C2"]:
        width = self.channels * EXPANSION[self.kind]
        layers = {  # (channels, kernel size, stride)
            "basic": [(width, 3, self.stride), (width, 3, 1)],
            "bottleneck": [(self.channels, 1, 1), (self.channels, 3, self.stride), (width, 1, 1)],
        }[self.kind]

        shortcut = x
        if self.stride > 1 or x.shape[-1] != width:
            shortcut = convolution(width, 1, self.stride, self.dtype, "downsample_0")(x)
            shortcut = BatchNorm(dtype=self.dtype, name="downsample_1")(
                shortcut, use_running_average=not train
            )
        for i, layer in enumerate(layers, 1):
            x = convolution(*layer, self.dtype, f"conv{i}")(x)
            x = BatchNorm(dtype=self.dtype, name=f"bn{i}")(x, use_running_average=not train)
            x = jax.nn.relu(x if i < len(layers) else x + shortcut)
        return x


class ResNet(nn.Module):
    """Features of images, averaged over positions, in float32; or logits, given `num_classes`.

    Attributes:
      channels: the inner channels of each stage's blocks; the stem has always 64.
      dtype: of the convolutions and of what flows between them.
    """

    stage_sizes: tuple[int, ...]
    block: Literal["basic", "bottleneck"]
    channels: tuple[int, ...] = (64, 128, 256, 512)
    num_classes: int | None = None
    dtype: Any = jnp.float32

    classifier = "fc"  # what files call the layer to `num_classes`

    @nn.compact
    def __call__(self, image: Float[Array, "B H W 3"], *, train: bool) -> Float[Array, "B C"]:
        x = convolution(64, 7, 2, self.dtype, "conv1")(image)
        x = jax.nn.relu(BatchNorm(dtype=self.dtype, name="bn1")(x, use_running_average=not train))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, (size, channels) in enumerate(zip(self.stage_sizes, self.channels, strict=True)):
            for i in range(size):
                stride = 2 if stage > 0 and i == 0 else 1
                name = f"layer{stage + 1}_{i}"
                x = Block(self.block, channels, stride, self.dtype, name=name)(x, train=train)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))
        return (
            x if self.num_classes is None else nn.Dense(self.num_classes, name=self.classifier)(x)
        )

    @property
    def width(self) -> int:
        """The number of features."""
        return self.channels[-1] * EXPANSION[self.block]


def convolution(channels: int, kernel: int, stride: int, dtype: Any, name: str) -> nn.Conv:
    """A convolution without bias, padded as PyTorch's are: alike on both sides."""
    pad = kernel // 2
    return nn.Conv(
        channels,
        (kernel, kernel),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        dtype=dtype,
        name=name,
    )
