"""Retrieval on a set of pairs: the texts of a picture among all texts, and the other way round.

A picture is what has the same bytes; a text, what is spelled the same. Both may belong to several
of the other, and one of these among the K best is a hit, as in CLIP_benchmark.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from otter_jax import mesh as meshes
from otter_jax.zeroshot.hits import expected_hit, hit_probability
from otter_jax.zeroshot.measures import Measure, mean_of, over_groups

KS = (1, 5, 10)
BLOCK = 2**23  # scores of queries and answers that exist at once, 32 MB over all devices
TEXT, IMAGE = "text", "image"  # what is found, by the other


class Pairs(NamedTuple):
    """Holds which texts belong to which pictures.

    Attributes:
      of: the picture of each record.
      records: for each picture the first record that has it.
      texts: the class number of each text that belongs to a picture.
      picture, text: the picture and the text of each pair, as numbers in the above; none is twice.
    """

    of: Int[np.ndarray, "N"]
    records: Int[np.ndarray, "P"]
    texts: Int[np.ndarray, "T"]
    picture: Int[np.ndarray, "E"]
    text: Int[np.ndarray, "E"]


def pairs_of(pictures: Int[np.ndarray, "N"], labels: Int[np.ndarray, "N M"]) -> Pairs:
    """Returns the pairs of records, whose `pictures` are equal if they have the same picture."""
    _, records, which = np.unique(pictures, return_index=True, return_inverse=True)
    rows, columns = np.nonzero(labels >= 0)
    texts, text = np.unique(labels[rows, columns], return_inverse=True)
    picture, text = np.unique(np.stack([which[rows], text], axis=1), axis=0).T
    return Pairs(which, records, texts, picture, text)


def in_blocks(
    place: Callable[..., jax.Array],
    queries: Float[np.ndarray, "Q D"],
    answers: Float[np.ndarray, "A D"],
    right: tuple[Int[np.ndarray, "E"], Int[np.ndarray, "E"]],
    mesh: Mesh,
    check_stop: Callable[[], None] = lambda: None,
) -> Int[np.ndarray, "Q 4"]:
    """Returns how the best right answer of each query stands among all answers (`standing`).

    `place(answers, queries, right)` is compiled, for some queries at a time, so that no more than
    `BLOCK` scores exist at once; `right` has the query and an answer of each pair. All processes
    make the same call, and get the whole result.
    """
    query, answer = right
    order = np.argsort(query, kind="stable")
    query, answer = query[order], answer[order]
    size = rows_at_once(len(queries), len(answers), mesh.size)
    whole = meshes.put_whole(answers, mesh)
    own, processes = jax.process_index(), jax.process_count()
    found = []
    for start in range(0, len(queries), size):
        check_stop()
        some = slice(*np.searchsorted(query, (start, start + size)))
        marks = np.zeros((size, len(answers)), bool)
        marks[query[some] - start, answer[some]] = True
        part = queries[start : start + size]
        part = np.pad(part, ((0, size - len(part)), (0, 0)))
        rows = {"queries": part, "right": marks}
        rows = {name: np.split(each, processes)[own] for name, each in rows.items()}
        rows = meshes.put_batch(rows, mesh)
        found.append(np.asarray(place(whole, rows["queries"], rows["right"])))
    return np.concatenate(found)[: len(queries)]


def rows_at_once(queries: int, answers: int, devices: int) -> int:
    """Returns how many queries are compared at once: as `BLOCK` allows, over all devices."""
    each = min(BLOCK // max(answers, 1) // devices, -(-queries // devices))
    return max(each, 1) * devices


def recalls(
    pairs: Pairs, images: Int[np.ndarray, "P 4"], texts: Int[np.ndarray, "T 4"], answers: int
) -> dict[str, Measure]:
    """Returns text@K and image@K: R@K of the texts of a picture, and of the pictures of a text.

    `images` and `texts` are the standings of pictures among `answers` texts, and of texts among the
    pictures. Gradients are by the weight of pictures; a text of several weighs equally on each.
    """
    found = {}
    of_pairs = 1 / np.bincount(pairs.text)[pairs.text]
    for k in KS:
        if k <= answers:
            found[f"{TEXT}@{k}"] = mean_of(hit_probability(*images.T[:3], k))
    for k in KS:
        if k <= len(images):
            measure = mean_of(hit_probability(*texts.T[:3], k))
            shares = Measure(measure.value, measure.gradient[pairs.text] * of_pairs)
            found[f"{IMAGE}@{k}"] = over_groups(shares, pairs.picture, len(images))
    return found


def chance(pairs: Pairs, answers: int) -> dict[str, float]:
    """Returns text@K and image@K of a random order of all answers."""
    found = {}
    for name, query, among in (
        (TEXT, pairs.picture, answers),
        (IMAGE, pairs.text, len(pairs.records)),
    ):
        own = np.bincount(query)
        ks = [k for k in KS if k <= among]
        hits = expected_hit(0 * own, np.full(len(own), among), own, ks)
        found |= {f"{name}@{k}": value for k, value in hits.items()}
    return found
