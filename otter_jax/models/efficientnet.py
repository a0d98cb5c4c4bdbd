"""EfficientNets (Tan & Le, arXiv:1905.11946) and their Lite form, with timm's names.

Lite has ReLU6 instead of swish, no squeeze-excitation, and a stem and head of fixed width. Those
trained in TensorFlow ("tf_") keep its padding and constants; the others have PyTorch's.
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
    """Encodes images into features averaged over positions; with `num_classes`, into logits.

    Both are float32.

    The published Lite weights were trained on (RGB - 127) / 128 with RGB in 0..255.

    Attributes:
      width_factor, depth_factor: multiply the channels and the repeats in `stages`.
      tensorflow: padding, epsilon and the momentum of batch norms as in TensorFlow's models.
      pruned: (block, number of its depthwise filters) for each pruned block.
      enter: the name of a block, such as "blocks_6_0": the input is what enters it (the
        intermediate "blocks_6_0_input"), and nothing before it exists. "" takes images.
      dtype: of convolutions and activations.
    """

    width_factor: float = 1.0
    depth_factor: float = 1.0
    lite: bool = False
    tensorflow: bool = False
    stages: tuple[Stage, ...] = STAGES
    pruned: tuple[tuple[str, int], ...] = ()
    enter: str = ""
    num_classes: int | None = None
    dtype: Any = jnp.float32

    classifier = "classifier"  # the name in files of the layer to `num_classes`

    @nn.compact
    def __call__(self, image: Float[Array, "B H W N"], *, train: bool) -> Float[Array, "B C"]:
        act = jax.nn.relu6 if self.lite else jax.nn.swish
        norm = batch_norm(self.tensorflow, self.dtype)
        x = image if self.enter else self._stem(image, act, norm, train=train)
        entered = not self.enter
        for stage, (size, row) in enumerate(zip(self.stage_sizes, self.stages, strict=True)):
            _, channels, expansion, kernel, stride = row
            for i in range(size):
                name = f"blocks_{stage}_{i}"
                entered = entered or name == self.enter
                if not entered:
                    continue
                self.sow("intermediates", f"{name}_input", x)  # kept on request only
                x = Block(
                    channels=round_channels(channels * self.width_factor),
                    hidden=x.shape[-1] * expansion,
                    kept=dict(self.pruned).get(name),
                    kernel=kernel,
                    stride=stride if i == 0 else 1,
                    squeeze=0 if self.lite else x.shape[-1] // 4,
                    act=act,
                    tensorflow=self.tensorflow,
                    dtype=self.dtype,
                    name=name,
                )(x, train=train)
        x = Pointwise(self.width, self.dtype, name="conv_head")(x)
        x = act(norm(name="bn2")(x, use_running_average=not train))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))
        return (
            x if self.num_classes is None else nn.Dense(self.num_classes, name=self.classifier)(x)
        )

    def _stem(self, image, act, norm, *, train):
        channels = STEM if self.lite else round_channels(STEM * self.width_factor)
        padding = padding_of(3, self.tensorflow)
        x = convolution(channels, 3, 2, padding, self.dtype, "conv_stem")(image)
        return act(norm(name="bn1")(x, use_running_average=not train))

    @property
    def blocks(self) -> list[str]:
        """The names of the blocks, in their order."""
        sizes = enumerate(self.stage_sizes)
        return [f"blocks_{stage}_{i}" for stage, size in sizes for i in range(size)]

    @property
    def stage_sizes(self) -> tuple[int, ...]:
        """The number of blocks in each stage; Lite does not scale the first and the last."""
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
      hidden: channels after widening; if the input has as many, nothing is widened.
      kept: how many of these are left after pruning; None for all.
      squeeze: channels in the middle of the squeeze-excitation; 0 for none.
      squeeze_act: the activation between its two layers; `gate` comes after both.
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
    kept: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B H2 W2 C2"]:
        shortcut, average = x, not train
        norm = batch_norm(self.tensorflow, self.dtype)
        # Files number the norms, and name the projection differently in a block that widens.
        index, project = 1, "conv_pw"
        if self.hidden > x.shape[-1]:
            x = Pointwise(self.kept or self.hidden, self.dtype, name="conv_pw")(x)
            x = self.act(norm(name="bn1")(x, use_running_average=average))
            index, project = 2, "conv_pwl"
        padding = padding_of(self.kernel, self.tensorflow)
        x = Depthwise(self.kernel, self.stride, padding, self.dtype, name="conv_dw")(x)
        x = self.act(norm(name=f"bn{index}")(x, use_running_average=average))
        if self.squeeze:
            x = SqueezeExcite(self.squeeze, self.squeeze_act, self.gate, self.dtype, name="se")(x)
        self.sow("intermediates", f"{project}_input", x)  # kept on request only
        x = Pointwise(self.channels, self.dtype, name=project)(x)
        x = norm(name=f"bn{index + 1}")(x, use_running_average=average)
        return x + shortcut if x.shape == shortcut.shape and self.stride == 1 else x


class SqueezeExcite(nn.Module):
    """Multiplies every channel by a gate that two layers compute from the means of all channels."""

    channels: int
    act: Callable
    gate: Callable
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        y = x.mean((1, 2), keepdims=True)
        y = self.act(Pointwise(self.channels, self.dtype, True, name="conv_reduce")(y))
        return x * self.gate(Pointwise(x.shape[-1], self.dtype, True, name="conv_expand")(y))


class Depthwise(nn.Module):
    """Convolves each channel with its own filter; the kernel is [K, K, 1, C]."""

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
    """Convolves each channel with its own filter, by the algorithm that is fast on the device."""
    strides = (stride, stride)

    def grouped(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, strides, padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1],
        )  # fmt: skip

    def shifted(x, kernel):
        pads = padding
        if pads == "SAME":
            pads = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, pads)
        return tap_by_tap(jnp.pad(x, ((0, 0), *pads, (0, 0))), kernel, stride)

    # XLA's grouped convolution takes 7 to 40 times as long on CPUs, its gradient 3 to 30 times.
    return jax.lax.platform_dependent(x, kernel, cpu=shifted, default=grouped)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def tap_by_tap(
    x: Float[Array, "B H W C"], kernel: Float[Array, "K K 1 C"], stride: int
) -> Float[Array, "B H2 W2 C"]:
    """Computes a depthwise convolution without padding as a sum of shifted images.

    Its gradient is written out, as the same kind of sum: that is 3 to 7 times as fast as automatic
    differentiation of the forward pass.
    """
    size = kernel.shape[0]
    x = jax.lax.optimization_barrier(x)  # otherwise every tap would compute it again
    h, w = x.shape[1] - size + 1, x.shape[2] - size + 1
    return sum(
        x[:, i : i + h : stride, j : j + w : stride] * kernel[i, j, 0]
        for i in range(size)
        for j in range(size)
    )


def _forward(x, kernel, stride):
    return tap_by_tap(x, kernel, stride), (x, kernel)


def _backward(stride, residuals, grad):
    x, kernel = residuals
    size, gap = kernel.shape[0], stride - 1
    # Zeros between the gradient's pixels where the stride left some out, and all around.
    ends = [n - (m - 1) * stride - 1 for n, m in zip(x.shape[1:3], grad.shape[1:3], strict=True)]
    around = [(0, 0, 0), *((size - 1, end, gap) for end in ends), (0, 0, 0)]
    spread = jax.lax.pad(grad, jnp.zeros((), grad.dtype), around)
    seen = (len(x), *((m - 1) * stride + 1 for m in grad.shape[1:3]), x.shape[3])

    def of_tap(number):  # one tap after the other, since all at once take too much memory
        part = jax.lax.dynamic_slice(x, (0, number // size, number % size, 0), seen)
        part = part[:, ::stride, ::stride].astype(jnp.promote_types(grad.dtype, jnp.float32))
        return (part * grad).sum((0, 1, 2))

    grad_kernel = jax.lax.map(of_tap, jnp.arange(size**2)).reshape(kernel.shape)
    return tap_by_tap(spread, kernel[::-1, ::-1], 1), grad_kernel.astype(kernel.dtype)


tap_by_tap.defvjp(_forward, _backward)


def padding_of(size: int, tensorflow: bool) -> Padding:
    """Returns the padding of a convolution: TensorFlow's or PyTorch's.

    TensorFlow's is as wide as the stride needs, and may be wider after than before; PyTorch's is
    the same on both sides.
    """
    return "SAME" if tensorflow else ((size // 2, size // 2),) * 2


def convolution(
    channels: int,
    kernel: int,
    stride: int,
    padding: Padding,
    dtype: Any,
    name: str,
) -> nn.Conv:
    """Makes a convolution over all channels, without bias."""
    return nn.Conv(
        channels,
        (kernel, kernel),
        strides=(stride, stride),
        padding=padding,
        use_bias=False,
        kernel_init=INIT,
        dtype=dtype,
        name=name,
    )


class Pointwise(nn.Module):
    """Computes a 1x1 convolution as a matrix product at each position.

    On CPUs the product takes half the time of XLA's convolution, and its kernel's gradient a third.
    """

    channels: int
    dtype: Any
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C2"]:
        kernel = self.param("kernel", INIT, (1, 1, x.shape[-1], self.channels))
        y = x.astype(self.dtype) @ kernel[0, 0].astype(self.dtype)
        if not self.use_bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (self.channels,)).astype(self.dtype)


def batch_norm(tensorflow: bool, dtype: Any) -> Callable[..., BatchNorm]:
    """Returns a maker of batch norms with TensorFlow's constants or PyTorch's; it takes a name.

    TensorFlow's include its momentum, 0.99, with which the statistics of those weights were made;
    timm's default is 0.9 for all.
    """
    momentum, epsilon = (0.99, 1e-3) if tensorflow else (0.9, 1e-5)
    return partial(BatchNorm, momentum=momentum, epsilon=epsilon, dtype=dtype)


def round_channels(channels: int | float, keep: float = 0.9) -> int:
    """Rounds to the nearest multiple of 8 that keeps at least the part `keep` of the channels."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= keep * channels else rounded + 8
