"""Convolutions and pooling of images, by the algorithms that are fast on the device.

On CPUs XLA takes up to six times as long as a matrix product for the gradients of 1x1 convolutions,
up to three times as long as products with windows for those of other kernels, 7 to 40 times as long
as a sum of shifted images for depthwise ones, and twenty times as long as a comparison of shifted
images for the gradient of a maximum. Elsewhere all are XLA's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from otter_jax.models.linear import product

Padding = Literal["SAME"] | tuple[tuple[int, int], tuple[int, int]]
CACHE = 8 * 2**20  # bytes of a processor's last cache to work in
INIT = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Convolution(nn.Module):
    """Convolves over all channels; the kernel is [K, K, C, C2].

    Attributes:
      channels: of the output.
      size: side of the kernel, K.
    """

    channels: int
    size: int
    stride: int
    padding: Padding
    dtype: Any
    use_bias: bool = False
    initializer: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
        shape = (self.size, self.size, x.shape[-1], self.channels)
        kernel = self.param("kernel", self.initializer, shape, jnp.float32)
        x, kernel = (jnp.asarray(each, self.dtype) for each in (x, kernel))
        y = convolve(x, kernel, self.stride, self.padding)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), jnp.float32)
        return y + bias.astype(self.dtype)


class Pointwise(nn.Module):
    """Computes a 1x1 convolution as a matrix product at each position, on every device."""

    channels: int
    dtype: Any
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C2"]:
        kernel = self.param("kernel", INIT, (1, 1, x.shape[-1], self.channels))
        y = product(*(jnp.asarray(each, self.dtype) for each in (x, kernel[0, 0])))
        if not self.use_bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (self.channels,)).astype(self.dtype)


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


def by_device(on_cpu: Callable, elsewhere: Callable) -> Callable:
    """Returns the function that is `on_cpu` on CPUs and `elsewhere` on other devices.

    So is its gradient. The forward pass keeps the arguments alone; the backward pass computes what
    else it needs again, which is nothing for a convolution.
    """

    def forward(*arrays):
        return jax.lax.platform_dependent(*arrays, cpu=on_cpu, default=elsewhere)

    def backward(arrays, grad):
        def pull(function, grad, *arrays):
            return jax.vjp(function, *arrays)[1](grad)

        return jax.lax.platform_dependent(
            grad, *arrays, cpu=partial(pull, on_cpu), default=partial(pull, elsewhere)
        )

    chosen = jax.custom_vjp(forward)
    chosen.defvjp(lambda *arrays: (forward(*arrays), arrays), backward)
    return chosen


def convolve(
    x: Float[Array, "B H W C"], kernel: Float[Array, "K K C C2"], stride: int, padding: Padding
) -> Float[Array, "B H2 W2 C2"]:
    """Convolves over all channels."""
    size, unpadded = len(kernel), padding == ((0, 0), (0, 0))
    tiles = size == stride and not (x.shape[1] % size or x.shape[2] % size)

    def multiply(x, kernel):
        if size == 1:
            windows = x[:, ::stride, ::stride]
        else:
            rows, columns = x.shape[1] // size, x.shape[2] // size
            windows = x.reshape(len(x), rows, size, columns, -1).swapaxes(2, 3)
        flat = kernel.reshape(-1, kernel.shape[-1])
        return product(windows.reshape(*windows.shape[:3], len(flat)), flat)

    def by_windows(x, kernel):
        return convolve_by_windows(x, kernel, stride, pads_of(x, kernel, stride, padding))

    on_cpu = multiply if unpadded and (size == 1 or tiles) else by_windows
    return by_device(on_cpu, partial(convolve_by_xla, stride=stride, padding=padding))(x, kernel)


def pads_of(x, kernel, stride, padding):
    """Returns how many pixels a padding adds before and after rows and columns."""
    if padding == "SAME":
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride,) * 2, "SAME")
    return tuple(padding)


def convolve_by_xla(x, kernel, *, stride, padding, groups=1):
    """Convolves by XLA's own operation."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_by_windows(
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "K K C C2"],
    stride: int,
    pads: tuple[tuple[int, int], ...],
) -> Float[Array, "B H2 W2 C2"]:
    """Convolves by XLA's own operation.

    The kernel's gradient is written out: the windows that outputs saw, multiplied with the outputs'
    gradients. In ResNet-50 it takes half of the time of XLA's.
    """
    return convolve_by_xla(x, kernel, stride=stride, padding=pads)


def _convolve_by_windows(x, kernel, stride, pads):
    return convolve_by_windows(x, kernel, stride, pads), (x, kernel)


def _convolve_by_windows_back(stride, pads, residuals, grad):
    x, kernel = residuals
    of_x = partial(convolve_by_xla, kernel=kernel, stride=stride, padding=pads)
    (grad_x,) = jax.vjp(of_x, x)[1](grad)
    return grad_x, _kernel_gradient(x, kernel, grad, stride, pads)


convolve_by_windows.defvjp(_convolve_by_windows, _convolve_by_windows_back)


def _kernel_gradient(x, kernel, grad, stride, pads):
    size, channels = len(kernel), grad.shape[-1]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    exact = jnp.promote_types(grad.dtype, jnp.float32)

    def of_piece(x, grad):
        windows = jnp.concatenate(taps(x, size, stride), axis=-1).reshape(len(grad), -1)
        rows = (((0,), (0,)), ((), ()))
        return jax.lax.dot_general(windows, grad, rows, preferred_element_type=exact)

    held = grad.nbytes // channels * kernel.size // channels + grad.nbytes
    return sum_of_pieces(of_piece, x, grad, held).reshape(kernel.shape).astype(kernel.dtype)


def depthwise(
    x: Float[Array, "B H W C"], kernel: Float[Array, "K K 1 C"], stride: int, padding: Padding
) -> Float[Array, "B H2 W2 C"]:
    """Convolves each channel with its own filter."""
    grouped = partial(convolve_by_xla, stride=stride, padding=padding, groups=x.shape[-1])

    def shifted(x, kernel):
        pads = pads_of(x, kernel, stride, padding)
        return tap_by_tap(jnp.pad(x, ((0, 0), *pads, (0, 0))), kernel, stride)

    return by_device(shifted, grouped)(x, kernel)


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
    weights = kernel.reshape(-1, kernel.shape[-1])
    return sum(tap * weight for tap, weight in zip(taps(x, size, stride), weights, strict=True))


def _tap_by_tap(x, kernel, stride):
    return tap_by_tap(x, kernel, stride), (x, kernel)


def _tap_by_tap_back(stride, residuals, grad):
    x, kernel = residuals
    size, gap = kernel.shape[0], stride - 1
    # Zeros between the gradient's pixels where the stride left some out, and all around.
    ends = [n - (m - 1) * stride - 1 for n, m in zip(x.shape[1:3], grad.shape[1:3], strict=True)]
    around = [(0, 0, 0), *((size - 1, end, gap) for end in ends), (0, 0, 0)]
    spread = jax.lax.pad(grad, jnp.zeros((), grad.dtype), around)
    exact = jnp.promote_types(grad.dtype, jnp.float32)

    def of_piece(x, grad):  # as rows: of arrays of two axes XLA's sums are faster
        rows = (tap.reshape(grad.shape).astype(exact) for tap in taps(x, size, stride))
        return jnp.stack([(tap * grad).sum(0) for tap in rows])

    grad_kernel = sum_of_pieces(of_piece, x, grad, x.nbytes + grad.nbytes).reshape(kernel.shape)
    return tap_by_tap(spread, kernel[::-1, ::-1], 1), grad_kernel.astype(kernel.dtype)


tap_by_tap.defvjp(_tap_by_tap, _tap_by_tap_back)


def taps(x: Float[Array, "B H W C"], size: int, stride: int) -> list[Float[Array, "B H2 W2 C"]]:
    """Returns what each entry of a kernel sees of padded images, row by row of the kernel."""
    h, w = x.shape[1] - size + 1, x.shape[2] - size + 1
    return [x[:, i : i + h : stride, j : j + w : stride] for i in range(size) for j in range(size)]


def sum_of_pieces(
    work: Callable, x: Float[Array, "B H W C"], grad: Float[Array, "B H2 W2 C2"], held: int
) -> Array:
    """Sums what `work` makes of some images at a time and of their gradients as rows.

    So what it holds of the batch, `held` bytes, lies in the processor's cache. The images of a
    piece are not neighbours: of a batch that is spread over devices each has some of every device.
    """
    count = pieces(len(x), held, jax.device_count())
    xs, grads = (each.reshape(len(x) // count, count, *each.shape[1:]) for each in (x, grad))

    def of(number):
        return work(xs[:, number], grads[:, number].reshape(-1, grad.shape[-1]))

    first = jax.eval_shape(of, 0)
    zeros = jnp.zeros(first.shape, first.dtype)
    return jax.lax.fori_loop(0, count, lambda number, total: total + of(number), zeros)


def pieces(images: int, size: int, devices: int) -> int:
    """Returns the fewest equal pieces of a batch, `size` bytes, that the devices' caches hold.

    If one image is too much, it is one of each device; a batch that devices cannot share evenly
    lies on all of them.
    """
    if images % devices:
        devices = 1
    most = max(1, images // devices)
    fitting = (n for n in range(1, most) if most % n == 0 and size <= n * CACHE * devices)
    return next(fitting, most)


def max_pool(
    x: Float[Array, "B H W C"], size: int, stride: int, padding: tuple[tuple[int, int], ...]
) -> Float[Array, "B H2 W2 C"]:
    """Takes the maximum of each window. The gradient goes to the first of equal ones."""

    def windows(x):
        return nn.max_pool(x, (size, size), (stride, stride), padding)

    def shifted(x):
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
        most, *others = taps(x, size, stride)
        for tap in others:
            most = jnp.where((tap > most) | jnp.isnan(tap), tap, most)
        return most

    return by_device(shifted, windows)(x)
