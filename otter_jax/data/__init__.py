"""Image-text sets: built once with TFDS, read in batches with Grain. No TensorFlow anywhere."""

from otter_jax.data.captions import Tokenizer
from otter_jax.data.pipeline import Labels, eval_batches, train_batches
from otter_jax.data.store import Source, ensure, open_dataset

__all__ = [
    "Labels",
    "Source",
    "Tokenizer",
    "ensure",
    "eval_batches",
    "open_dataset",
    "train_batches",
]
