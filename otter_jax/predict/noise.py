"""Measures how noisy image-caption pairs are, and finds where a caption belongs instead.

Pairs are looked at in random batches, as training sees them. In each a model's match, the softmax
of its scaled cosines, says how much of a picture's probability lies on its own caption: the
analysis of arXiv:2112.09445. Each pair then gets a score, of how badly caption and picture agree
with each other, and with those that transport matches them with.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float16, Float32, Int, Int64

from otter_jax import ot
from otter_jax.data.images import UnreadableImage
from otter_jax.data.in_flight import in_threads
from otter_jax.data.source import Source
from otter_jax.errors import UserError
from otter_jax.objective import METHODS, REMOVED
from otter_jax.predict.model import Model

HIGH = 0.2  # probability from which on the paper counts a match
BINS = 50  # of the histogram of probabilities
LAMBDA = 0.08  # entropic regularisation of the transport behind the score
ITERATIONS = 5


class Pairs(NamedTuple):
    """Holds the embeddings of pairs, of unit length.

    Attributes:
      img, txt: in files, since those of 15 million pairs fill 46 GB.
      numbers: of the records in their set.
      keys, captions: of the pairs.
      unreadable: (key, why) of each record whose picture cannot be read; it is no pair here.
    """

    img: Float16[np.ndarray, "N D"]
    txt: Float16[np.ndarray, "N D"]
    numbers: Int64[np.ndarray, " N"]
    keys: list[str]
    captions: list[str]
    unreadable: list[tuple[str, str]]


class Matches(NamedTuple):
    """Says how pairs match in batches of one size, by the softmax over a picture's captions.

    Attributes:
      batch: pairs in a batch.
      batches: that were looked at.
      on_diagonal: mean probability of a picture's own caption.
      off_mean: mean probability of each other caption.
      off_largest: mean over pictures of the largest of these.
      off_high: mean number of other captions with a probability of at least HIGH.
      effective: mean over pictures of e^entropy: among how many captions it is as good as even.
      own_counts, other_counts: how many probabilities lie in each of BINS equal parts of [0, 1].
    """

    batch: int
    batches: int
    on_diagonal: float
    off_mean: float
    off_largest: float
    off_high: float
    effective: float
    own_counts: Int64[np.ndarray, " bins"]
    other_counts: Int64[np.ndarray, " bins"]


class Judged(NamedTuple):
    """Holds what is known of each pair, in the order of `Pairs`.

    Attributes:
      score: 1 - the mean of three cosines: of the caption with its picture; with the captions that
        transport, its own pair left out, matches the picture with, weighted as it does; and of the
        picture with those that it matches the caption with. The larger, the noisier.
      cosine: of caption and picture alone.
      own: which part of the picture's and the caption's share stays within the pair, in the
        transport of cosines between pictures and captions at the model's temperature, the pair
        included; captions of the same words count as one.
      trust: which part of its share it keeps in training by `trust` (`Objective.teacher_plans`).
      caption, caption_share: the pair whose caption, of other words, gets most of the picture's
        share there, and how much.
      picture, picture_share: the pair whose picture gets most of the caption's, and how much.
    """

    score: Float32[np.ndarray, " N"]
    cosine: Float32[np.ndarray, " N"]
    own: Float32[np.ndarray, " N"]
    trust: Float32[np.ndarray, " N"]
    caption: Int64[np.ndarray, " N"]
    caption_share: Float32[np.ndarray, " N"]
    picture: Int64[np.ndarray, " N"]
    picture_share: Float32[np.ndarray, " N"]


def embed(
    model: Model, source: Source, folder: Path, advance: Callable[[int], None] = lambda count: None
) -> Pairs:
    """Embeds all pairs of a set; their vectors lie in files in `folder`.

    `advance` is called with the number of records done; it may raise to stop.

    Raises UserError for a set without captions, or without a readable picture.
    """
    source.check_has("caption")
    size, count = model.batch_size, len(source)

    def read(number: int):
        record = source[number]
        key = str(record.get("key", number))
        try:
            return key, record["caption"], model.read(record["image"]), ""
        except (UserError, UnreadableImage) as error:
            cause = error.__cause__
            return key, "", None, str(cause if isinstance(cause, UnreadableImage) else error)

    img, txt = (
        np.memmap(folder / f"{name}.f16", np.float16, "w+", shape=(count, model.dim))
        for name in ("img", "txt")
    )
    numbers: list[int] = []
    keys: list[str] = []
    captions: list[str] = []
    unreadable: list[tuple[str, str]] = []
    waiting: list[np.ndarray] = []

    def flush():
        first, last = len(captions) - len(waiting), len(captions)
        if waiting:
            img[first:last] = model.embed_pixels(np.stack(waiting))
            txt[first:last] = model.embed_texts(captions[first:])
            waiting.clear()

    since = 0
    for number, (key, caption, pixels, why) in in_threads(read, range(count), ahead=2 * size):
        since += 1
        if pixels is None:
            unreadable.append((key, why))
        else:
            numbers.append(number)
            keys.append(key)
            captions.append(caption)
            waiting.append(pixels)
        if len(waiting) == size:
            flush()
            advance(since)
            since = 0
    flush()
    advance(since)
    if not captions:
        raise UserError(f"{source.name}: none of its {count:,} pictures can be read.")
    kept = len(captions)
    return Pairs(img[:kept], txt[:kept], np.array(numbers), keys, captions, unreadable)


def matches(
    pairs: Pairs, batch: int, *, scale: float, advance: Callable[[int], None] = lambda count: None
) -> Matches:
    """Analyses the matches within random batches of one size.

    Pairs that are left over, fewer than a batch, are not looked at. `scale` multiplies cosines;
    `advance` is called with the number of pairs done, and may raise to stop.

    Raises UserError if there are fewer pairs than `batch`.
    """
    if len(pairs.captions) < batch:
        raise UserError(
            f"A batch of {batch:,} pairs is more than the {len(pairs.captions):,} there are: give "
            "--batch smaller numbers."
        )
    found, counts = [], np.zeros((2, BINS), np.int64)
    for rows in _batches(len(pairs.captions), batch):
        if len(rows) < batch:
            break
        img, txt = _rows(pairs, rows)
        numbers, own, other = jax.device_get(_match(img, txt, scale=scale))
        found.append(numbers)
        counts += np.stack([own, other])
        advance(batch)
    means = np.mean(found, axis=0, dtype=np.float64)
    return Matches(batch, len(found), *means.tolist(), *counts)


def judge(
    pairs: Pairs, batch: int, *, scale: float, advance: Callable[[int], None] = lambda count: None
) -> Judged:
    """Scores each pair within a random batch, and finds the best other caption and picture there.

    `scale` and `advance` are those of `matches`. Raises UserError for fewer pairs than `batch`.
    """
    count = len(pairs.captions)
    _, words = np.unique(np.array(pairs.captions, object), return_inverse=True)
    if count < batch:
        raise UserError(f"A batch of {batch:,} pairs is more than the {count:,} there are.")
    numbers = np.zeros((6, count), np.float32)
    others = np.zeros((2, count), np.int64)
    for rows in _batches(count, batch):
        # The last batch is filled with pairs that have their score already.
        full = np.concatenate([rows, _order(count)[: batch - len(rows)]])
        values, best = jax.device_get(
            _judge(*_rows(pairs, full), jnp.asarray(words[full]), scale=scale)
        )
        numbers[:, rows] = values[:, : len(rows)]
        others[:, rows] = full[best[:, : len(rows)]]
        advance(len(rows))
    score, cosine, own, trust, caption_share, picture_share = numbers
    return Judged(score, cosine, own, trust, others[0], caption_share, others[1], picture_share)


def noisiest(judged: Judged) -> Int64[np.ndarray, " N"]:
    """Returns the pairs' positions, the noisiest first."""
    return np.argsort(-judged.score, kind="stable")


@functools.lru_cache(1)
def _order(count: int) -> Int64[np.ndarray, " N"]:
    return np.random.default_rng(0).permutation(count)


def _batches(count: int, batch: int) -> Iterator[Int64[np.ndarray, " B"]]:
    """Yields the positions of each batch's pairs, the last maybe fewer."""
    order = _order(count)
    for first in range(0, count, batch):
        yield order[first : first + batch]


def _rows(pairs: Pairs, rows: Int64[np.ndarray, " B"]) -> Iterator[Float[Array, "B D"]]:
    """Returns the embeddings of these pairs, of length 1 again after their rounding."""
    for values in (pairs.img, pairs.txt):
        exact = np.asarray(values[rows], np.float32)
        yield jnp.asarray(exact / np.linalg.norm(exact, axis=1, keepdims=True))


def _dot(a, b):
    return jnp.matmul(a, b.T, precision=lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnames="scale")  # one model has one
def _match(
    img: Float[Array, "B D"], txt: Float[Array, "B D"], scale: float
) -> tuple[Float[Array, "5"], Int[Array, " bins"], Int[Array, " bins"]]:
    """Returns the five means of `Matches`, and the counts of own and other probabilities."""
    match = jax.nn.softmax(scale * _dot(img, txt))
    size = match.shape[0]
    is_own = jnp.eye(size, dtype=bool)
    own, other = jnp.diagonal(match), jnp.where(is_own, 0.0, match)
    entropy = -jax.scipy.special.xlogy(match, match).sum(axis=1)
    numbers = jnp.stack(
        [
            own.mean(),
            other.sum() / (size * (size - 1)),
            other.max(axis=1).mean(),
            (other >= HIGH).sum(axis=1).mean(),
            jnp.exp(entropy).mean(),
        ]
    )
    bins = jnp.minimum((match * BINS).astype(jnp.int32), BINS - 1)
    every = jnp.bincount(bins.ravel(), length=BINS)
    own_counts = jnp.bincount(jnp.diagonal(bins), length=BINS)
    return numbers, own_counts, every - own_counts


@functools.partial(jax.jit, static_argnames="scale")  # one model has one
def _judge(
    img: Float[Array, "B D"],
    txt: Float[Array, "B D"],
    words: Int[Array, " B"],
    scale: float,
) -> tuple[Float[Array, "6 B"], Int[Array, "2 B"]]:
    """Returns score, cosine, own, trust and both shares of `Judged`, and where both others are."""
    size = img.shape[0]
    is_own = jnp.eye(size, dtype=bool)
    cosines = _dot(img, txt)
    both = jnp.stack([cosines, cosines.T])  # pictures over captions, captions over pictures
    within = jnp.stack([_dot(img, img), _dot(txt, txt)])
    plans = ot.sinkhorn(REMOVED * is_own - within - both, epsilon=LAMBDA, num_iters=ITERATIONS)
    rows = plans / plans.sum(axis=-1, keepdims=True)
    cosine = jnp.diagonal(cosines)
    meant = (jnp.matmul(rows[0], txt, precision=lax.Precision.HIGHEST) * txt).sum(axis=1)
    shown = (jnp.matmul(rows[1], img, precision=lax.Precision.HIGHEST) * img).sum(axis=1)

    plans = ot.sinkhorn(-both, epsilon=1 / scale, num_iters=ITERATIONS)
    shares = plans / plans.sum(axis=-1, keepdims=True)
    same = words[:, None] == words[None]
    own = jnp.where(same, shares, 0.0).sum(axis=-1).mean(axis=0)
    others = jnp.where(same, 0.0, shares)
    best = others.argmax(axis=-1)
    trust = METHODS["trust"].teacher_plans(img, txt)["trust"]
    numbers = [1 - (cosine + meant + shown) / 3, cosine, own, trust, *others.max(axis=-1)]
    return jnp.stack(numbers), best
