"""Language-supervised zero-shot recognition from few, noisy image-caption pairs, in JAX."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # at run time it would import JAX, and `import otter_jax` must be quick
    from otter_jax.predict.model import Model

__version__ = "0.1.0"
BEGAN = time.monotonic()  # what a run's time to its first step is counted from


def load(
    model: str | os.PathLike,
    *,
    weights: str | None = None,
    step: int | None = None,
    dtype: str | None = None,
    batch_size: int | None = None,
) -> Model:
    """Loads a trained model, to embed pictures and texts, and to name what pictures show.

        model = otter_jax.load("runs/first")
        for guesses in model.classify(["photo.jpg"], ["dog", "sofa"]):
            print(guesses[0].name, guesses[0].probability)

    Args:
      model: the directory of a run, a folder that `export` wrote, or a CLIP that transformers or
        open_clip wrote, by its folder or its name on the hub.
      weights: "student" (the default) or "ema", of a run.
      step: of a run: the checkpoint to take, by default the best by its eval.best, else the latest.
      dtype: of the computation, "float32" or "bfloat16"; by default float32 on CPUs, and elsewhere
        what the model was trained in.
      batch_size: the most pictures or texts that are computed at once, over all devices.

    Raises `otter_jax.errors.UserError` if it is none of these, damaged, or has no such weights or
    checkpoint.
    """
    from otter_jax.predict import loading

    return loading.load(model, weights=weights, step=step, dtype=dtype, batch_size=batch_size)
