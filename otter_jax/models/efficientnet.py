"""EfficientNets (Tan & Le, arXiv:1905.11946) and their Lite form, with timm's names.

Lite has ReLU6 instead of swish, no squeeze-excitation, and a stem and head of fixed width. Those
trained in TensorFlow ("tf_") keep its padding and constants; the others have PyTorch's.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from otter_jax.models.convolution import INIT, Convolution, Depthwise, Padding, Pointwise
from otter_jax.models.norm import BatchNorm

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
) -> Convolution:
    """Makes a convolution over all channels, without bias."""
    return Convolution(channels, kernel, stride, padding, dtype, initializer=INIT, name=name)


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
