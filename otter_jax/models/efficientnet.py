"""EfficientNet-Lite: arXiv:1905.11946 with ReLU6, and without squeeze-excitation."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from otter_jax.models.norm import BatchNorm

# The arguments of `EfficientNet` that make each architecture, and the size it was designed for.
EFFICIENTNETS = {
    "efficientnet_lite0": {"width_factor": 1.0, "depth_factor": 1.0},  # 224 px
    "efficientnet_lite1": {"width_factor": 1.0, "depth_factor": 1.1},  # 240 px
    "efficientnet_lite2": {"width_factor": 1.1, "depth_factor": 1.2},  # 260 px
    "efficientnet_lite3": {"width_factor": 1.2, "depth_factor": 1.4},  # 280 px
    "efficientnet_lite4": {"width_factor": 1.4, "depth_factor": 1.8},  # 300 px
}
INIT = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
STEM, HEAD = 32, 1280  # channels
STAGES = (  # (repeats, channels, expansion, kernel size, stride of the first block)
    (1, 16, 1, 3, 1),
    (2, 24, 6, 3, 2),
    (2, 40, 6, 5, 2),
    (3, 80, 6, 3, 2),
    (3, 112, 6, 5, 1),
    (4, 192, 6, 5, 2),
    (1, 320, 6, 3, 1),
)


class EfficientNet(nn.Module):
    """Features of images, averaged over positions, in float32; or logits, given `num_classes`.

    The published ImageNet weights were trained on (RGB - 127) / 128 with RGB in 0..255.

    Attributes:
      dtype: of the convolutions and of what flows between them.
    """

    width_factor: float = 1.0
    depth_factor: float = 1.0
    num_classes: int | None = None
    dtype: Any = jnp.float32

    classifier = "fc"  # what files call the layer to `num_classes`

    @nn.compact
    def __call__(self, image: Float[Array, "B H W 3"], *, train: bool) -> Float[Array, "B C"]:
        x = convolution(STEM, 3, 2, self.dtype, "conv_stem")(image)
        x = jax.nn.relu6(batch_norm(self.dtype, "bn0")(x, use_running_average=not train))
        index = 0
        for stage, (repeats, channels, expansion, kernel, stride) in enumerate(STAGES):
            if 0 < stage < len(STAGES) - 1:
                repeats = math.ceil(repeats * self.depth_factor)
            for i in range(repeats):
                x = Block(
                    round_channels(channels * self.width_factor),
                    expansion,
                    kernel,
                    stride if i == 0 else 1,
                    self.dtype,
                    name=f"blocks_{index}",
                )(x, train=train)
                index += 1
        x = convolution(HEAD, 1, 1, self.dtype, "conv_head")(x)
        x = jax.nn.relu6(batch_norm(self.dtype, "bn1")(x, use_running_average=not train))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))
        return (
            x if self.num_classes is None else nn.Dense(self.num_classes, name=self.classifier)(x)
        )

    @property
    def width(self) -> int:
        """The number of features."""
        return HEAD


class Block(nn.Module):
    """An inverted residual: widen by 1x1, filter each channel by itself, project by 1x1."""

    channels: int
    expansion: int
    kernel: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B H2 W2 C2"]:
        shortcut, average = x, not train
        if self.expansion > 1:
            x = convolution(x.shape[-1] * self.expansion, 1, 1, self.dtype, "expand_conv")(x)
            x = jax.nn.relu6(batch_norm(self.dtype, "bn0")(x, use_running_average=average))
        x = Depthwise(self.kernel, self.stride, self.dtype, name="depthwise_conv")(x)
        x = jax.nn.relu6(batch_norm(self.dtype, "bn1")(x, use_running_average=average))
        x = convolution(self.channels, 1, 1, self.dtype, "project_conv")(x)
        x = batch_norm(self.dtype, "bn2")(x, use_running_average=average)
        return x + shortcut if x.shape == shortcut.shape else x


class Depthwise(nn.Module):
    """One filter for each channel."""

    size: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
        shape = (self.size, self.size, 1, x.shape[-1])
        kernel = self.param("kernel", INIT, shape).astype(self.dtype)
        return depthwise(x, kernel, self.stride)


def depthwise(
    x: Float[Array, "B H W C"], kernel: Float[Array, "K K 1 C"], stride: int
) -> Float[Array, "B H2 W2 C"]:
    """Each channel convolved with its own filter, padded as TensorFlow's SAME."""
    strides = (stride, stride)

    def grouped(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, strides, "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1],
        )  # fmt: skip

    # On CPUs, XLA's grouped convolution takes 7 to 40 times as long as this sum over the taps, and
    # its gradient 3 to 30 times. The barrier keeps every tap from padding again.
    def tap_by_tap(x, kernel):
        size = kernel.shape[0]
        pads = jax.lax.padtype_to_pads(x.shape[1:3], (size, size), strides, "SAME")
        x = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), *pads, (0, 0))))
        h, w = x.shape[1] - size + 1, x.shape[2] - size + 1
        return sum(
            x[:, i : i + h : stride, j : j + w : stride] * kernel[i, j, 0]
            for i in range(size)
            for j in range(size)
        )

    return jax.lax.platform_dependent(x, kernel, cpu=tap_by_tap, default=grouped)


def convolution(channels: int, kernel: int, stride: int, dtype: Any, name: str) -> nn.Conv:
    """A convolution without bias, padded as TensorFlow's SAME."""
    return nn.Conv(
        channels,
        (kernel, kernel),
        strides=(stride, stride),
        padding="SAME",
        use_bias=False,
        kernel_init=INIT,
        dtype=dtype,
        name=name,
    )


def batch_norm(dtype: Any, name: str) -> BatchNorm:
    """With TensorFlow's constants."""
    return BatchNorm(momentum=0.99, epsilon=1e-3, dtype=dtype, name=name)


def round_channels(channels: float) -> int:
    """The nearest multiple of 8 that takes away no more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8
