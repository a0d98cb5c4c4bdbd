"""Maps variables to tensor names and axes in weight files, in both directions.

There is a table per kind of encoder (`FAMILIES`), with `LEAVES` and `KERNEL_AXES` for all of them.
`convert` reads by them, strictly, and `export` writes by them.
"""

import re
from collections.abc import Set
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from otter_jax.errors import UserError
from otter_jax.models.bert import Bert
from otter_jax.models.clip import ClipText
from otter_jax.models.efficientnet import EfficientNet
from otter_jax.models.mobilenet import MobileNet
from otter_jax.models.resnet import ResNet
from otter_jax.models.vit import ViT
from otter_jax.weights.tensors import Tensors, check_finite

Rules = tuple[tuple[str, str], ...]  # (pattern, replacement), all applied in turn
VariablePath = tuple[str, ...]  # (collection, module, ..., variable)


class Family(NamedTuple):
    """Describes how a family of files names the tensors of one kind of module.

    Attributes:
      rename: from the path of a layer in the module, joined by dots, to its name in a file.
      aliases: from names in some of these files to the names in most of them.
      ignore: patterns of full names that a file may hold and the module does not.
      parts: (layer, its parts): the last component of a layer's name, and the layers that a file
        has in its place, whose outputs are concatenated.
    """

    rename: Rules
    aliases: Rules = ()
    ignore: tuple[str, ...] = ()
    parts: tuple[tuple[str, tuple[str, ...]], ...] = ()


NUMBERED = (r"_(\d+)(?=[._]|$)", r".\1")  # layer1_0.conv1 -> layer1.0.conv1

TIMM_BLOCKS = Family(
    rename=(NUMBERED,),  # blocks_1_0.bn1 -> blocks.1.0.bn1
    ignore=(r".*\.num_batches_tracked", r"classifier\..*"),
)

CLIP_BLOCKS: Rules = (
    (r"^blocks_", "encoder.layers."),
    (r"\.norm(\d)$", r".layer_norm\1"),
    (r"\.attn\.", ".self_attn."),
    (r"\.proj$", ".out_proj"),
)
CLIP_PARTS = (("qkv", ("q_proj", "k_proj", "v_proj")),)
CLIP_REST = (r".*_projection\.weight", r"logit_scale", r".*\.position_ids")

FAMILIES: dict[type[nn.Module], tuple[Family, ...]] = {
    ResNet: (
        Family(
            rename=(NUMBERED,),
            ignore=(r".*\.num_batches_tracked", r"fc\..*"),
        ),
    ),
    EfficientNet: (TIMM_BLOCKS,),
    MobileNet: (TIMM_BLOCKS,),
    Bert: (
        Family(
            rename=(NUMBERED,),
            # TensorFlow's BERTs had gamma and beta.
            aliases=((r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
            ignore=(r"pooler\..*", r"embeddings\.position_ids", r"cls\..*", r"lm_head\..*"),
        ),
    ),
    ViT: (
        Family(
            rename=((r"^patch_embed$", "patch_embed.proj"), NUMBERED),
            ignore=(r"head\..*",),
        ),
        Family(  # the image side of Hugging Face's CLIP
            rename=(
                (r"^cls_token$", "embeddings.class_embedding"),
                (r"^pos_embed$", "embeddings.position_embedding.weight"),
                (r"^patch_embed$", "embeddings.patch_embedding"),
                (r"^norm_pre$", "pre_layrnorm"),  # spelled like this there
                (r"^norm$", "post_layernorm"),
                *CLIP_BLOCKS,
                (r"^", "vision_model."),
            ),
            # CLIPVisionModel by itself is written without the prefix since transformers 5.
            aliases=((r"^(?=embeddings|encoder|pre_layrnorm|post_layernorm)", "vision_model."),),
            ignore=(r"text_model\..*", *CLIP_REST),
            parts=CLIP_PARTS,
        ),
    ),
    ClipText: (
        Family(
            rename=(
                (r"^(?=token_embedding|position_embedding)", "embeddings."),
                *CLIP_BLOCKS,
                (r"^", "text_model."),
            ),
            aliases=((r"^(?=embeddings|encoder|final_layer_norm)", "text_model."),),
            ignore=(r"vision_model\..*", *CLIP_REST),
            parts=CLIP_PARTS,
        ),
    ),
}

# Attributes that programs wrap a model in: their names come before those of its tensors, in any
# combination. The second kind may also stand within a name.
WRAPPERS = {
    "module", "model", "_orig_mod", "net", "network", "backbone", "encoder", "base_model",
    "transformer", "bert", "roberta", "auto_model", "image_encoder", "text_encoder", "visual", "0",
    "timm_model", "trunk",
}  # fmt: skip
INNER = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
COUNTERS = (r"n_averaged",)  # of torch.optim.swa_utils.AveragedModel, beside its module
LISTED = 50  # names in a message

LEAVES = {  # a layer's (collection, variable) -> its name in a file
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "embedding"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}

# By rank: files hold (out, in) and (out, in, height, width); flax has (in, out) and (height, width,
# in, out).
KERNEL_AXES = {2: (1, 0), 4: (2, 3, 1, 0)}


def families(module: nn.Module) -> tuple[Family, ...]:
    """Returns the families of files that hold such a module; the first one is exported."""
    found = FAMILIES[type(module)]
    if isinstance(module, EfficientNet) and module.tensorflow:
        return (*found, lukemelas(module.stage_sizes))
    return found


def lukemelas(stage_sizes: tuple[int, ...]) -> Family:
    """Returns the naming of EfficientNet-PyTorch (lukemelas) for TensorFlow's EfficientNets.

    Blocks are numbered through all stages, and layers have the same names in each. Norms count from
    0 in a block that widens its input, else from 1.
    """
    blocks = [f"blocks_{stage}_{i}" for stage, size in enumerate(stage_sizes) for i in range(size)]
    return Family(
        rename=(
            (r"^(blocks_0_\d+\.)conv_pw$", r"\1project_conv"),
            (r"^(blocks_[1-9]_\d+\.)?bn1$", r"\1bn0"),
            (r"^(blocks_[1-9]_\d+\.)?bn2$", r"\1bn1"),
            (r"^(blocks_[1-9]_\d+\.)bn3$", r"\1bn2"),
            (r"\.conv_pw$", ".expand_conv"),
            (r"\.conv_dw$", ".depthwise_conv"),
            (r"\.conv_pwl$", ".project_conv"),
            (r"\.se\.conv_", ".se_"),
            (r"^classifier$", "fc"),
            *((rf"^{block}\.", f"blocks.{n}.") for n, block in enumerate(blocks)),
            (r"(^|\.)(?=[a-z])", r"\1_"),  # blocks.1.bn0 -> _blocks.1._bn0
        ),
        aliases=((r"^module\.", ""),),
        ignore=(r".*\.num_batches_tracked", r"_fc\..*"),
    )


def file_names(path: VariablePath, family: Family) -> tuple[str, ...]:
    """Returns the names of the tensors that make up the variable at `path`, usually one."""
    if is_bare(path):
        return (substitute(".".join(path[1:]), family.rename),)
    collection, *modules, variable = path
    leaf = LEAVES[collection, variable]
    layer = substitute(".".join(modules), family.rename)
    above, dot, last = layer.rpartition(".")
    parts = dict(family.parts).get(last, (last,))
    return tuple(f"{above}{dot}{part}.{leaf}" for part in parts)


def is_bare(path: VariablePath) -> bool:
    """Tells whether the variable is a module's own, such as a class token, and not a layer's."""
    return (path[0], path[-1]) not in LEAVES


def file_axes(path: VariablePath, rank: int) -> tuple[int, ...]:
    """Returns the order of a file's axes in the variable at `path`, as for `transpose`."""
    return KERNEL_AXES[rank] if path[-1] == "kernel" else tuple(range(rank))


def substitute(name: str, rules: Rules) -> str:
    """Applies all the rules to a name, one after the other."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def convert(
    tensors: Tensors, like: dict[str, Any], families: tuple[Family, ...], *, source: str | Path
) -> dict[str, Any]:
    """Turns a file's tensors into float32 variables shaped as `like`; every tensor must be used.

    Of several families it takes the one with the fewest missing tensors. `source` names the file
    in messages.

    Raises:
      UserError: tensors are missing, unexpected, of another shape or of integers; it lists them.
        Or some hold NaN or infinity, or numbers beyond float32's.
    """
    outcomes = [_convert(tensors, like, family) for family in families]
    best = min(range(len(families)), key=lambda i: len(outcomes[i][1]["missing"]))
    variables, problems = outcomes[best]
    if not (variables or problems["of another shape"] or problems["no floating-point numbers"]):
        raise UserError(
            f"{source} does not hold the weights of this model, not one of them: "
            f"{listing('missing', problems['missing'], 6)}; "
            f"{listing('there', list(tensors), 6)}. Is it the file of another architecture?"
        )
    if any(problems.values()):
        found = "; ".join(listing(kind, names) for kind, names in problems.items() if names)
        raise UserError(
            f"{source} does not hold the weights of this model: {found}. "
            "Is it the file of another architecture?"
        )
    named = {file_names(path, families[best])[0]: value for path, value in variables.items()}
    check_finite(named, str(source))
    return traverse_util.unflatten_dict(
        {path: np.array(value, np.float32, order="C") for path, value in variables.items()}
    )


def _convert(
    tensors: Tensors, like: dict[str, Any], family: Family
) -> tuple[dict[VariablePath, np.ndarray], dict[str, list[str]]]:
    """Reads by one family's names; returns variables by path, and problems by kind."""
    shapes = traverse_util.flatten_dict(like)
    expected = {name for path in shapes for name in file_names(path, family)}
    ignored = re.compile("|".join((*family.ignore, *COUNTERS)))
    called = [own_name(name, family.aliases, expected, ignored) for name in tensors]
    left = dict(zip(called, tensors.values(), strict=True))
    twice = [name for name in left if called.count(name) > 1] if len(left) < len(called) else []
    variables, missing, misshapen, integers = {}, [], [], []
    for path, leaf in shapes.items():
        names = file_names(path, family)
        absent = [name for name in names if name not in left]
        if absent:
            missing += absent
            continue
        # Shapes are compared in the file's order of axes, before anything is transposed.
        found = [left.pop(name) for name in names]
        axes = file_axes(path, leaf.ndim)
        shape = tuple(leaf.shape[axis] for axis in np.argsort(axes))
        if len(names) > 1:
            shape = (shape[0] // len(names), *shape[1:])
        elif is_bare(path) and _without_ones(found[0].shape) == _without_ones(shape):
            found = [found[0].reshape(shape)]  # a class token is (1, 1, H) or (H,)
        wrong = [
            f"{name} {tensor.shape} for {shape}"
            for name, tensor in zip(names, found, strict=True)
            if tensor.shape != shape
        ]
        kinds = [tensor.dtype for tensor in found if not jnp.issubdtype(tensor.dtype, jnp.floating)]
        if wrong or kinds:
            misshapen += wrong
            integers += [f"{name} {kind}" for name, kind in zip(names, kinds, strict=False)]
            continue
        variables[path] = (np.concatenate(found) if len(found) > 1 else found[0]).transpose(axes)
    unexpected = [name for name in left if not ignored.fullmatch(name)]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    return variables, problems | {"there twice": twice, "no floating-point numbers": integers}


def own_name(name: str, aliases: Rules, expected: Set[str], ignored: re.Pattern[str]) -> str:
    """Returns a tensor's name in its model: without the prefixes of what the model was wrapped in.

    They are stripped until a name is expected or ignored; one that never is stays as it is.
    """
    called = INNER.sub("", name)
    while True:
        own = substitute(called, aliases)
        if own in expected or ignored.fullmatch(own):
            return own
        first, dot, called = called.partition(".")
        if not dot or first not in WRAPPERS:
            return substitute(name, aliases)


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    """Returns the shape without axes of length 1."""
    return [n for n in shape if n != 1]


def export(variables: dict[str, Any], family: Family) -> Tensors:
    """Turns variables into the tensors of a file of `family`: the reverse of `convert`."""
    tensors = {}
    for path, leaf in traverse_util.flatten_dict(variables).items():
        names = file_names(path, family)
        tensor = np.asarray(leaf).transpose(np.argsort(file_axes(path, leaf.ndim)))
        parts = np.split(tensor, len(names)) if len(names) > 1 else [tensor]
        for name, part in zip(names, parts, strict=True):
            tensors[name] = np.array(part, order="C")
    return tensors


def listing(kind: str, names: list[str], most: int = LISTED) -> str:
    """Returns the number of names of this kind, and the first of them, as text."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} {kind} ({', '.join(names[:most])}{more})"
