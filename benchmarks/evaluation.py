"""Measures an evaluation on many classes: seconds of each part, and the memory of the whole.

    python benchmarks/evaluation.py [--classes 22843] [--images 10000] [--labels 5] [--pairs]

The encoders are next to nothing (a picture of 32 x 32 pixels times a matrix, a name's words times a
table), so that what is measured is the rest: names to tokens, decoding, comparing, metrics and
intervals. Every image has --labels random labels; with --pairs each has a text of its own instead.
"""

import argparse
import io
import pathlib
import resource
import tempfile
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from otter_jax import mesh as meshes
from otter_jax.configs import common
from otter_jax.data.captions import Tokenizer
from otter_jax.data.source import Source
from otter_jax.models.towers import unit
from otter_jax.run.console import make_console, progress_bar
from otter_jax.run.embedder import Embedder
from otter_jax.zeroshot.banks import Banks
from otter_jax.zeroshot.measures import intervals
from otter_jax.zeroshot.metrics import keeps_images, measured
from otter_jax.zeroshot.ranking import Ranker
from otter_jax.zeroshot.sets import EvalSet

DIM, SIZE, WORDS = 768, 32, 4_000


class Little(nn.Module):
    """Two encoders that cost next to nothing."""

    @nn.compact
    def embed_images(self, image):
        pixels = image.reshape(len(image), -1).astype(jnp.float32) - 128
        return unit(pixels @ self.param("img", nn.initializers.ones, (3 * SIZE * SIZE, DIM)))

    @nn.compact
    def embed_texts(self, token_ids, mask):
        table = self.param("txt", nn.initializers.ones, (WORDS, DIM))
        return unit((table[token_ids] * mask[..., None]).sum(axis=1))


def source(images):
    """So many different pictures of noise."""
    rng = np.random.default_rng(0)
    records = []
    for n in range(images):
        file = io.BytesIO()
        pixels = rng.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(file, "PNG")
        records.append({"image": file.getvalue(), "key": str(n).encode()})
    features = {"image": tfds.features.Image(), "key": tfds.features.Text()}
    return Source("noise:train", records, tfds.features.FeaturesDict(features))


def eval_set(classes, images, labels, pairs):
    """Pictures of noise with random labels, or with a text of their own each."""
    rng = np.random.default_rng(1)
    words = rng.integers(4, WORDS, (classes, 4))
    names = [" ".join(f"w{word}" for word in row) for row in words]
    first, step = rng.integers(0, classes, (images, 1)), rng.integers(1, classes // labels + 1)
    numbers = (first + step * np.arange(labels)) % classes  # of an image all different
    if pairs:
        names, numbers = names[:images], np.arange(min(images, classes))[:, None]
    return EvalSet(
        "noise", source(len(numbers)), names, numbers.astype(np.int32), ("a photo of {}.", "{}"),
        pictures=np.arange(len(numbers)) if pairs else None,
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("classes", 22_843), ("images", 10_000), ("labels", 5)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    parser.add_argument("--pairs", action="store_true")
    options = parser.parse_args()
    s = eval_set(options.classes, options.images, options.labels, options.pairs)
    config = common.get_config("infonce")
    config.data.resize = config.data.image_size = SIZE
    rng = np.random.default_rng(2)
    sizes = {"img": (3 * SIZE * SIZE, DIM), "txt": (WORDS, DIM)}
    variables = {"params": {k: rng.normal(size=v).astype(np.float32) for k, v in sizes.items()}}
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{n}" for n in range(4, WORDS))]
        (pathlib.Path(folder) / "vocab.txt").write_text("\n".join(vocabulary))
        tokenizer = Tokenizer(folder, 16)
    measure(s, config, tokenizer, variables)


def measure(s, config, tokenizer, variables):
    """Prints the seconds of each part, and the most memory that the process has had."""
    mesh, console = meshes.make_mesh(), make_console()
    embedder = Embedder(Little(), tokenizer, mesh, batch_size=config.eval.batch_size)
    ranker = Ranker(config, embedder, mesh)
    banks = Banks(embedder, console, batch_size=config.eval.batch_size)
    before, times = _memory(), [time.perf_counter()]

    def told(what):
        times.append(time.perf_counter())
        print(f"{what:30} {times[-1] - times[-2]:7.1f} s {_memory() - before:8.0f} MB", flush=True)

    print(f"{len(s.names):,} classes, {len(s.source):,} images, {meshes.count(mesh)}")
    with progress_bar(console) as bar:
        (bank,) = banks.of([s], variables, bar, lambda: None)
        told(f"{len(s.names) * len(s.templates):,} prompts")
        banks.of([s], variables, bar, lambda: None)
        told("the same again")
        seen = ranker.rank(
            s, "student", variables, bank, keep_images=keeps_images(s),
            check_stop=lambda: None, advance=lambda count: None,
        )  # fmt: skip
        told("ranking the classes")
        found = measured(seen, ranker, lambda: None)
        told("metrics")
        intervals(found)
        told("intervals")


def _memory():
    """Returns the largest resident size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    main()
