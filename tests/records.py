"""Records of small pictures whose pixels tell their number, and batches of them."""

import io
import itertools

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from otter_jax.data.captions import Tokenizer
from otter_jax.data.pipeline import train_batches

N, SIZE, TOKENS = 24, 8, 6
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(N))]
SETTINGS = {"seed": 3, "batch_size": 8, "image_size": SIZE, "resize": 10, "flip": True}


def picture(number):
    """12 x 10 pixels: no two windows are alike, and blue tells the number."""
    y, x = np.mgrid[:10, :12]
    pixels = np.stack([y * 20, x * 20, np.full_like(x, number)], -1)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def records(bad=(), empty=()):
    """N records; the pictures of some cannot be read, the captions of some are empty."""
    return [
        {
            "image": b"no picture" if n in bad else picture(n),
            "caption": b"" if n in empty else str(n).encode(),
            "key": f"key{n}".encode(),
        }
        for n in range(N)
    ]


def features(*more):
    """The features of such records, and texts of these names."""
    texts = {name: tfds.features.Text() for name in ("caption", "key", *more)}
    return tfds.features.FeaturesDict({"image": tfds.features.Image(), **texts})


def make_tokenizer(folder):
    """The tokenizer of captions that are numbers."""
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return Tokenizer(folder, TOKENS)


def take(source, tokenizer, steps, **changes):
    """So many batches of training."""
    stream = train_batches(source, tokenizer, **{"start_step": 0, **SETTINGS, **changes})
    batches = list(itertools.islice(stream, steps))
    stream.close()
    return batches


def joined(parts):
    """Batches as one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def numbers(batch):
    """The numbers of a batch's pictures."""
    return batch["image"][:, 0, 0, 2].tolist()


def assert_same(batches, others):
    """That batches are equal to others, bit for bit."""
    assert len(batches) == len(others)
    for a, b in zip(batches, others, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
