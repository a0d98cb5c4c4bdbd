"""Zero-shot recognition: classes are known by their names alone.

Comes in: embeddings, class names, labelled sets. Goes out: ranked classes and hits. May import run
and below; knows nothing of training.
"""

from otter_jax.zeroshot.bank import class_bank
from otter_jax.zeroshot.hits import flat_hit

__all__ = ["class_bank", "flat_hit"]
