"""The public sets by name, each planned from the folder that holds it."""

import pathlib

from otter_jax.data.build.plan import Options, Plan
from otter_jax.data.public import cc3m, imagenet, open_images, wit, yfcc15m
from otter_jax.errors import UserError

LAYOUTS = {
    "cc3m": cc3m.plan,
    "wit": wit.plan,
    "yfcc15m": yfcc15m.plan,
    "open_images": open_images.plan,
    "imagenet1k": imagenet.plan_1k,
    "imagenet10k": imagenet.plan_10k,
    "imagenet10k_leaves": imagenet.plan_10k_leaves,
    "imagenet22k": imagenet.plan_22k,
}


def plan_of(layout: str, folder: pathlib.Path, name: str, options: Options) -> Plan:
    """Plans the set `name` from a public set's folder; `layout` is a key of LAYOUTS.

    Raises UserError if files are missing or not laid out as the set has them.
    """
    try:
        return LAYOUTS[layout](name, folder, options)
    except UserError:
        raise
    except (KeyError, ValueError, IndexError) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(
            f"A file in {folder} is not laid out as {layout} has it: "
            f"{type(error).__name__} {error}."
        ) from error
