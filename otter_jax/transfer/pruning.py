"""Prunes networks: removes the filters with the least attention.

A pruned filter has the gate 0; the norm behind it turns its output into a constant. Inside a
residual block the filter can be removed, together with its norm and the next convolution's weights
for its output (`smaller`); the constant moves behind that convolution. Where it cannot move (the
convolution is padded with zeros, or squeeze-and-excitation scales its input), scale and bias of the
norm are set to 0, too, and the constant is 0. Elsewhere the filter stays as a kernel of zeros:
between blocks, where others write to the same channels, and in stem and head.
"""

import functools
import itertools
import re
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Bool, Float, PyTree

from otter_jax.errors import UserError
from otter_jax.models.efficientnet import EfficientNet
from otter_jax.models.mobilenet import MobileNet
from otter_jax.models.resnet import ResNet
from otter_jax.weights.encoders import variable_shapes

Path = tuple[str, ...]
Attention = Mapping[Path, Float[np.ndarray, "_"]]  # by the path of a convolution
Pairs = tuple[tuple[str, str], ...]

REPEATS = 5  # passes of each network, in turn, when speeds are compared

# Pairs of a convolution and the batch norm behind it, in the order in which they are applied; a
# pair counts for a network that has both.
STEM: Pairs = (
    ("conv1", "bn1"),  # ResNet
    ("conv1_0", "conv1_1"), ("conv1_3", "conv1_4"), ("conv1_6", "bn1"),  # ResNet-D
    ("conv_stem", "bn1"),  # EfficientNet, MobileNet
)  # fmt: skip
HEAD: Pairs = (("conv_head", "bn2"),)  # EfficientNet
RESIDUAL: Pairs = (
    ("downsample_0", "downsample_1"), ("downsample_1", "downsample_2"),  # the second in ResNet-D
    ("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"),
)  # fmt: skip
WIDENED: Pairs = (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3"))
NOT_WIDENED: Pairs = (("conv_dw", "bn1"), ("conv_pw", "bn2"))
LAST: Pairs = (("conv", "bn1"),)  # MobileNet's last stage


class Inner(NamedTuple):
    """The channels inside a block that nothing outside of it reads.

    Attributes:
      block: its name.
      made_by: the convolutions that each have one filter per channel.
      used_by: those that read the channels.
      moves: whether a constant in them can move behind the convolutions in `used_by`.
    """

    block: str
    made_by: tuple[Path, ...]
    used_by: tuple[Path, ...]
    moves: bool


@functools.cache
def norms(model: nn.Module) -> dict[Path, Path]:
    """Returns {path of a convolution: path of the batch norm that it feeds}.

    They are in the order in which the network applies them; {} for a network of another kind.
    """
    if not isinstance(model, ResNet | EfficientNet | MobileNet):
        return {}
    params = variable_shapes(model, jnp.zeros((1, 64, 64, 3)))["params"]
    blocks = [name for name in params if name.startswith(("layer", "blocks_"))]
    blocks.sort(key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    layers = [((), params, STEM)]
    for name in blocks:
        of_inverted = WIDENED if "conv_pwl" in params[name] else NOT_WIDENED
        pairs = RESIDUAL if isinstance(model, ResNet) else of_inverted + LAST
        layers.append(((name,), params[name], pairs))
    layers.append(((), params, HEAD))
    return {
        (*path, convolution): (*path, norm)
        for path, there, pairs in layers
        for convolution, norm in pairs
        if convolution in there and norm in there
    }


def inner(model: nn.Module, params: PyTree) -> list[Inner]:
    """Lists the channels that can be removed, block by block."""
    found = []
    for block, layers in params.items():
        if isinstance(model, ResNet) and block.startswith("layer"):
            convolutions = [(block, name) for name in sorted(layers) if name.startswith("conv")]
            for one, other in itertools.pairwise(convolutions):
                moves = layers[other[1]]["kernel"].shape[:2] == (1, 1)
                found.append(Inner(block, (one,), (other,), moves))
        elif isinstance(model, EfficientNet | MobileNet) and "conv_pwl" in layers:
            made, used = [(block, "conv_pw"), (block, "conv_dw")], [(block, "conv_pwl")]
            if "se" in layers:
                made.append((block, "se", "conv_expand"))
                used.append((block, "se", "conv_reduce"))
            found.append(Inner(block, tuple(made), tuple(used), "se" not in layers))
    return found


def magnitude(model: nn.Module, params: PyTree) -> dict[Path, Float[np.ndarray, "_"]]:
    """Returns the l2 norm of each filter's kernel, for all convolutions that feed a norm."""
    flat = traverse_util.flatten_dict(params)
    kernels = {path: np.asarray(flat[*path, "kernel"]) for path in norms(model)}
    return {p: np.linalg.norm(k.reshape(-1, k.shape[-1]), axis=0) for p, k in kernels.items()}


def lowest(
    attention: Attention, share: float, model: nn.Module, params: PyTree
) -> dict[Path, Bool[np.ndarray, "_"]]:
    """Returns which filters stay when the lowest-ranked `share` goes.

    All filters that feed a norm are ranked together; the best of each convolution always stays.
    Where several convolutions make one channel of a block, they lose it together, by the mean of
    their attention to it. `attention` is by the path of the convolution, and may be any other
    measure of filters. Raises UserError unless 0 <= share < 1.
    """
    if not 0 <= share < 1:
        raise UserError(f"share={share}: how much is pruned, from 0 to less than 1.")
    ranked = {path: np.asarray(attention[path]) for path in norms(model) if path in attention}
    if not ranked:
        raise UserError(f"A {type(model).__name__} has no filter that feeds a batch norm.")
    # Convolutions that make a block's channels together are one unit: they lose a channel at once.
    alone, units = dict(ranked), []  # (the convolutions, their common channels' attention)
    for channels in inner(model, params):
        made_by = [path for path in channels.made_by if path in ranked]
        units.append((made_by, np.mean([alone.pop(path) for path in made_by], axis=0)))
    units += [([path], values) for path, values in alone.items()]
    # One order for all channels; a channel counts as many filters as make it.
    values = np.concatenate([values for _, values in units])
    filters = np.concatenate([np.full(len(values), len(paths)) for paths, values in units])
    order = np.argsort(values, kind="stable")
    stays = np.ones(len(values), bool)
    stays[order[np.cumsum(filters[order]) <= share * filters.sum()]] = False
    # Back to convolutions; none may lose its last filter, or the network would be cut through.
    keep, start = {}, 0
    for paths, values in units:
        part = stays[start : start + len(values)]
        part[values.argmax()] = True
        keep |= dict.fromkeys(paths, part)
        start += len(values)
    return keep


def mask(variables: PyTree, keep: Mapping[Path, Bool[np.ndarray, "_"]], model: nn.Module) -> PyTree:
    """Sets the pruned filters to 0; the variables keep their shapes.

    Where the constant that remains cannot move, scale and bias of their norms are 0, too.
    """
    flat = traverse_util.flatten_dict(variables)
    behind = norms(model)
    silent = {
        path
        for channels in inner(model, variables["params"])
        if not channels.moves
        for path in channels.made_by
    }
    for path, stays in keep.items():
        leaves = [("params", *path, "kernel")]
        if path in silent:
            leaves.append(("params", *path, "bias"))
            leaves += [("params", *behind[path], name) for name in ("scale", "bias")]
            leaves.append(("batch_stats", *behind[path], "mean"))
        for leaf in leaves:
            if leaf in flat:
                flat[leaf] = flat[leaf] * stays
    return traverse_util.unflatten_dict(flat)


@functools.partial(jax.jit, static_argnames=("model", "paths"))
def inputs(variables: PyTree, *, model: nn.Module, paths: tuple[Path, ...]) -> dict[str, Array]:
    """Returns the input of the convolutions at these paths, per channel, at one pixel.

    In a pruned channel every pixel of every picture has that value. The networks' blocks sow the
    inputs of their convolutions.
    """
    picture = jnp.zeros((1, 64, 64, 3))
    _, sown = model.apply(variables, picture, train=False, mutable=["intermediates"])
    seen = traverse_util.flatten_dict(sown["intermediates"])
    return {
        "/".join((*block, name)): seen[*block, f"{name}_input"][0][0, 0, 0]
        for *block, name in paths
    }


def smaller(
    model: nn.Module, variables: PyTree, keep: Mapping[Path, Bool[np.ndarray, "_"]]
) -> tuple[nn.Module, PyTree]:
    """Makes a network, and its weights, that computes the same as the masked one in fewer channels.

    Raises UserError if the encoder's blocks have no channels of their own.
    """
    masked = mask(variables, keep, model)
    flat = dict(traverse_util.flatten_dict(masked))
    behind, pruned = norms(model), {}
    blocks = inner(model, variables["params"])
    if not blocks:
        raise UserError(f"There is no smaller form of a {type(model).__name__}; mask it.")
    readers = tuple(channels.used_by[0] for channels in blocks if channels.moves)
    held = inputs(masked, model=model, paths=readers)
    for channels in blocks:
        stays = keep[next(path for path in channels.made_by if path in keep)]
        stay = np.flatnonzero(stays)
        # A removed constant would have added the same to every input of the next norm.
        if channels.moves:
            (reader,) = channels.used_by
            kernel = flat["params", *reader, "kernel"][0, 0]
            constant = np.where(stays, 0, held["/".join(reader)]).astype(np.float32) @ kernel
            mean = ("batch_stats", *behind[reader], "mean")
            flat[mean] = flat[mean] - constant
        # Filters go with their norms, and with the weights that read their channels.
        for path in channels.made_by:
            layers = [("params", *path)]
            if path in behind:
                layers += [("params", *behind[path]), ("batch_stats", *behind[path])]
            for layer in layers:
                for leaf in [leaf for leaf in flat if leaf[:-1] == layer]:
                    flat[leaf] = flat[leaf][..., stay]
        for path in channels.used_by:
            leaf = ("params", *path, "kernel")
            flat[leaf] = flat[leaf][:, :, stay]
        pruned.setdefault(channels.block, []).append(len(stay))
    is_resnet = isinstance(model, ResNet)
    kept = tuple((block, tuple(n) if is_resnet else n[0]) for block, n in pruned.items())
    return model.clone(pruned=kept), traverse_util.unflatten_dict(flat)


def forward(
    model: nn.Module, variables: PyTree, images: Float[Array, "B H W 3"]
) -> Callable[[], None]:
    """Compiles one forward pass; calling the result runs it and waits."""
    jitted = jax.jit(functools.partial(model.apply, train=False))
    compiled = jitted.lower(variables, images).compile()

    def run():
        jax.block_until_ready(compiled(variables, images))

    run()  # the first pass is slower
    return run


def faster(whole: Callable[[], None], fewer: Callable[[], None]) -> float:
    """Returns how many times as fast `fewer` is, by the best of REPEATS passes of each, in turn."""
    best = [float("inf"), float("inf")]
    for _ in range(REPEATS):
        for number, run in enumerate((whole, fewer)):
            began = time.perf_counter()
            run()
            best[number] = min(best[number], time.perf_counter() - began)
    return best[0] / best[1]


def rankings(
    model: nn.Module, attention: Attention, params: PyTree, seed: int
) -> dict[str, Attention]:
    """Returns three measures of filters: attention, size of the folded kernel, random numbers."""
    random = np.random.default_rng(seed)
    return {
        "attention": attention,
        "magnitude": magnitude(model, params),
        "random": {path: random.random(len(values)) for path, values in attention.items()},
    }
