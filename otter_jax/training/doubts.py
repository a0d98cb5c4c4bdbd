"""What a user should hear before a training begins, although nothing is wrong."""

from collections.abc import Iterator

import jax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from otter_jax import freezing

LONG = 1 / 3  # of a run's steps, from which on a warm-up is said


def of(config: ConfigDict, params: PyTree, steps: int) -> list[str]:
    """Returns sentences on what a config asks of a run of so many steps with these parameters."""
    return [*_frozen_at_random(config, params), *_long_warmup(config, steps)]


def _frozen_at_random(config: ConfigDict, params: PyTree) -> Iterator[str]:
    """Yields a sentence for each tower that has no weights, and that nothing trains."""
    mask = freezing.frozen_mask(params, config.optim.freeze)
    weights = {"img": config.model.img.weights, "txt": config.model.txt.pretrained}
    for tower, given in weights.items():
        if not given and all(jax.tree.leaves(mask[tower])):
            yield (
                f"optim.freeze={config.optim.freeze!r} keeps all of {tower} as it is, and that is "
                f"random: model.{tower} has no weights."
            )


def _long_warmup(config: ConfigDict, steps: int) -> Iterator[str]:
    """Yields a sentence if the learning rate rises for much of the run."""
    warmup = config.optim.warmup_steps
    if warmup > LONG * steps:
        yield (
            f"The learning rate rises for optim.warmup_steps={warmup} of the run's {steps} steps. "
            f"For so short a run: --config.optim.warmup_steps={steps // 10}, or more epochs."
        )
