"""EfficientNets (Tan & Le, arXiv:1905.11946) and their Lite form, with timm's names.

Lite has ReLU6 for swish, no squeeze-excitation, and a stem and head that do not grow. The ones that
were trained in TensorFlow ("tf_") keep its padding and constants; the others have PyTorch's.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from otter_jax.models.norm import BatchNorm

Padding = Literal["SAME"] | tuple[tuple[int, int], tuple[int, int]]

SIZES = {  # width and depth factor, and the image size it was designed for
    "b0": (1.0, 1.0),  # 224 px
    "b1": (1.0, 1.1),  # 240 px
    "b2": (1.1, 1.2),  # 260 px
    "b3": (1.2, 1.4),  # 300 px
    "lite0": (1.0, 1.0),  # 224 px
    "lite1": (1.0, 1.1),  # 240 px
    "lite2": (1.1, 1.2),  # 260 px
    "lite3": (1.2, 1.4),  # 280 px
    "lite4": (1.4, 1.8),  # 300 px
}
# The arguments of `EfficientNet` that make each architecture.
EFFICIENTNETS = {
    f"{prefix}efficientnet_{size}": {
        "width_factor": width,
        "depth_factor": depth,
        "lite": size.startswith("lite"),
        "tensorflow": prefix == "tf_",
    }
    for prefix in ("", "tf_")
    for size, (width, depth) in SIZES.items()
}
INIT = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
STEM, HEAD = 32, 1280  # channels
Stage = tuple[int, int, int, int, int]
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

    The published Lite weights were trained on (RGB - 127) / 128 with RGB in 0..255.

    Attributes:
      width_factor, depth_factor: of the channels and repeats in `stages`.
      tensorflow: padding, epsilon and the momentum of batch norms as in TensorFlow's models.
      dtype: of the convolutions and of what flows between them.
    """

    width_factor: float = 1.0
    depth_factor: float = 1.0
    lite: bool = False
    tensorflow: bool = False
    stages: tuple[Stage, ...] = STAGES
    num_classes: int | None = None
    dtype: Any = jnp.float32

    classifier = "classifier"  # what files call the layer to `num_classes`

    @nn.compact
    def __call__(self, image: Float[Array, "B H W 3"], *, train: bool) -> Float[Array, "B C"]:
        act = jax.nn.relu6 if self.lite else jax.nn.swish
        norm = batch_norm(self.tensorflow, self.dtype)
        stem = STEM if self.lite else round_channels(STEM * self.width_factor)
        x = convolution(stem, 3, 2, padding_of(3, self.tensorflow), self.dtype, "conv_stem")(image)
        x = act(norm(name="bn1")(x, use_running_average=not train))
        for stage, (size, row) in enumerate(zip(self.stage_sizes, self.stages, strict=True)):
            _, channels, expansion, kernel, stride = row
            for i in range(size):
                x = Block(
                    channels=round_channels(channels * self.width_factor),
                    hidden=x.shape[-1] * expansion,
                    kernel=kernel,
                    stride=stride if i == 0 else 1,
                    squeeze=0 if self.lite else x.shape[-1] // 4,
                    act=act,
                    tensorflow=self.tensorflow,
                    dtype=self.dtype,
                    name=f"blocks_{stage}_{i}",
                )(x, train=train)
        x = pointwise(self.width, self.dtype, "conv_head")(x)
        x = act(norm(name="bn2")(x, use_running_average=not train))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))
        return (
            x if self.num_classes is None else nn.Dense(self.num_classes, name=self.classifier)(x)
        )

    @property
    def stage_sizes(self) -> tuple[int, ...]:
        """The number of blocks in each stage; Lite keeps the first and the last as they are."""
        last = len(self.stages) - 1
        return tuple(
            repeats if self.lite and i in (0, last) else math.ceil(repeats * self.depth_factor)
            for i, (repeats, *_) in enumerate(self.stages)
        )

    @property
    def width(self) -> int:
        """The number of features."""
        return HEAD if self.lite else round_channels(HEAD * self.width_factor)


class Block(nn.Module):
    """An inverted residual: widen by 1x1, filter each channel by itself, project by 1x1.

    Attributes:
      hidden: channels of the filters; as many as come in: there is nothing to widen.
      squeeze: channels in the middle of the squeeze-excitation; 0: there is none.
      squeeze_act: between its two layers; `gate` comes after both.
    """

    channels: int
    hidden: int
    kernel: int
    stride: int
    squeeze: int
    act: Callable
    squeeze_act: Callable = jax.nn.swish
    gate: Callable = jax.nn.sigmoid
    tensorflow: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B H2 W2 C2"]:
        shortcut, average = x, not train
        norm = batch_norm(self.tensorflow, self.dtype)
        # Files count the norms, and call the projection otherwise where something was widened.
        index, project = 1, "conv_pw"
        if self.hidden > x.shape[-1]:
            x = pointwise(self.hidden, self.dtype, "conv_pw")(x)
            x = self.act(norm(name="bn1")(x, use_running_average=average))
            index, project = 2, "conv_pwl"
        padding = padding_of(self.kernel, self.tensorflow)
        x = Depthwise(self.kernel, self.stride, padding, self.dtype, name="conv_dw")(x)
        x = self.act(norm(name=f"bn{index}")(x, use_running_average=average))
        if self.squeeze:
            x = SqueezeExcite(self.squeeze, self.squeeze_act, self.gate, self.dtype, name="se")(x)
        x = pointwise(self.channels, self.dtype, project)(x)
        x = norm(name=f"bn{index + 1}")(x, use_running_average=average)
        return x + shortcut if x.shape == shortcut.shape and self.stride == 1 else x


class SqueezeExcite(nn.Module):
    """Every channel times a gate, which two layers make of the means of all channels."""

    channels: int
    act: Callable
    gate: Callable
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        y = x.mean((1, 2), keepdims=True)
        y = self.act(pointwise(self.channels, self.dtype, "conv_reduce", use_bias=True)(y))
        return x * self.gate(pointwise(x.shape[-1], self.dtype, "conv_expand", use_bias=True)(y))


class Depthwise(nn.Module):
    """One filter for each channel."""

    size: int
    stride: int
    padding: Padding
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
        shape = (self.size, self.size, 1, x.shape[-1])
        kernel = self.param("kernel", INIT, shape).astype(self.dtype)
        return depthwise(x, kernel, self.stride, self.padding)


def depthwise(
    x: Float[Array, "B H W C"], kernel: Float[Array, "K K 1 C"], stride: int, padding: Padding
) -> Float[Array, "B H2 W2 C"]:
    """Each channel convolved with its own filter."""
    strides = (stride, stride)

    def grouped(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, strides, padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1],
        )  # fmt: skip

    # On CPUs, XLA's grouped convolution takes 7 to 40 times as long as this sum over the taps, and
    # its gradient 3 to 30 times. The barrier keeps every tap from padding again.
    def tap_by_tap(x, kernel):
        size, pads = kernel.shape[0], padding
        if pads == "SAME":
            pads = jax.lax.padtype_to_pads(x.shape[1:3], (size, size), strides, pads)
        x = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), *pads, (0, 0))))
        h, w = x.shape[1] - size + 1, x.shape[2] - size + 1
        return sum(
            x[:, i : i + h : stride, j : j + w : stride] * kernel[i, j, 0]
            for i in range(size)
            for j in range(size)
        )

    return jax.lax.platform_dependent(x, kernel, cpu=tap_by_tap, default=grouped)


def padding_of(size: int, tensorflow: bool) -> Padding:
    """Around an image: TensorFlow's, as wide as a stride needs and wider after than before,
    or PyTorch's, alike on both sides.
    """
    return "SAME" if tensorflow else ((size // 2, size // 2),) * 2


def convolution(
    channels: int,
    kernel: int,
    stride: int,
    padding: Padding,
    dtype: Any,
    name: str,
    *,
    use_bias: bool = False,
) -> nn.Conv:
    """A convolution over all channels."""
    return nn.Conv(
        channels,
        (kernel, kernel),
        strides=(stride, stride),
        padding=padding,
        use_bias=use_bias,
        kernel_init=INIT,
        dtype=dtype,
        name=name,
    )


def pointwise(channels: int, dtype: Any, name: str, *, use_bias: bool = False) -> nn.Conv:
    """A convolution of 1x1: a linear layer at each position."""
    return convolution(channels, 1, 1, "SAME", dtype, name, use_bias=use_bias)


def batch_norm(tensorflow: bool, dtype: Any) -> Callable[..., BatchNorm]:
    """Makes batch norms, given a name, with TensorFlow's constants or PyTorch's.

    With TensorFlow's goes its momentum, 0.99, which those weights' statistics were made with;
    timm's default is 0.9 for all.
    """
    momentum, epsilon = (0.99, 1e-3) if tensorflow else (0.9, 1e-5)
    return partial(BatchNorm, momentum=momentum, epsilon=epsilon, dtype=dtype)


def round_channels(channels: int | float, keep: float = 0.9) -> int:
    """The nearest multiple of 8 that leaves at least this part of the channels."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= keep * channels else rounded + 8
