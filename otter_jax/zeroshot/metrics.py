"""The metrics of a set: which it has, their values under some weights, and those of chance."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int

from otter_jax.zeroshot import hits, retrieval
from otter_jax.zeroshot.hits import KS, by_name
from otter_jax.zeroshot.measures import Measure, flat_hits, mean_recalls, over_groups
from otter_jax.zeroshot.precision import average_precisions
from otter_jax.zeroshot.ranking import Ranker, Seen
from otter_jax.zeroshot.sets import EvalSet

# Means over classes, and what they are called in a table of the classes.
EACH = {"recall@1": "recall@1", "recall@5": "recall@5", "mAP": "AP"}


def has_precision(s: EvalSet) -> bool:
    """Tells whether mAP is measured: on images with several labels that are no captions."""
    return s.several and s.pictures is None


def has_accuracy(labels: Int[np.ndarray, "N M"]) -> bool:
    """Tells whether FH@1 is top-1 accuracy, as every image has one label."""
    return bool(((labels >= 0).sum(axis=1) == 1).all())


def keeps_images(s: EvalSet) -> bool:
    """Tells whether metrics of a set need the embeddings of all its images at once."""
    return has_precision(s) or s.pictures is not None or s.learned is not None


def metrics_of(s: EvalSet) -> list[str]:
    """Names the metrics that a set has, accuracy apart."""
    kinds = ("FH",) if s.pictures is not None else ("FH", "recall")
    names = [f"{kind}@{k}" for kind in kinds for k in KS if k <= len(s.names)]
    if has_precision(s):
        names.append("mAP")
    if s.pictures is not None:
        names += [f"{retrieval.TEXT}@{k}" for k in retrieval.KS if k <= len(s.names)]
        names += [f"{retrieval.IMAGE}@{k}" for k in retrieval.KS if k <= s.pictures.max() + 1]
    return names


def of_hits(
    above: Int[np.ndarray, "N M"],
    level: Int[np.ndarray, "N M"],
    labels: Int[np.ndarray, "N M"],
    classes: int,
) -> dict[str, Measure]:
    """Returns FH@K, and accuracy where every image has one label: then FH@1 is that."""
    found = flat_hits(above, level, [k for k in KS if k <= classes])
    return found | ({"accuracy": found["FH@1"]} if has_accuracy(labels) else {})


def of_classes(
    above: Int[np.ndarray, "N M"],
    level: Int[np.ndarray, "N M"],
    labels: Int[np.ndarray, "N M"],
    classes: int,
) -> dict[str, Measure]:
    """Returns FH@K, accuracy and recall@K."""
    recalls = mean_recalls(above, level, labels, [k for k in KS if k <= classes])
    return of_hits(above, level, labels, classes) | recalls


def of_pairs(seen: Seen, ranker: Ranker, check_stop: Callable[[], None]) -> dict[str, Measure]:
    """Returns FH@K, text@K and image@K, each over the set's different pictures."""
    ranked = seen.ranked
    pairs = retrieval.pairs_of(seen.s.pictures[seen.counted], seen.labels)
    found = {
        name: over_groups(measure, pairs.of, len(pairs.records))
        for name, measure in of_hits(
            ranked.above, ranked.level, seen.labels, len(seen.bank)
        ).items()
    }
    return found | ranker.retrieve(seen, pairs, check_stop)


def measured(seen: Seen, ranker: Ranker, check_stop: Callable[[], None]) -> dict[str, Measure]:
    """Returns all metrics of a set under some weights."""
    if seen.s.pictures is not None:
        return of_pairs(seen, ranker, check_stop)
    ranked = seen.ranked
    found = of_classes(ranked.above, ranked.level, seen.labels, len(seen.bank))
    if has_precision(seen.s):
        found["mAP"] = average_precisions(ranked.images, seen.bank, seen.labels)
    return found


def of_each_class(
    metrics: Mapping[str, Measure], pictures: int
) -> dict[str, Float[np.ndarray, "C"]]:
    """Returns what the metrics that are means over classes are of each, NaN without pictures."""
    return {
        EACH[name]: metrics[name].marks.means(np.ones((pictures, 1)))[:, 0]
        for name in EACH
        if name in metrics
    }


def chance(seen: Seen) -> dict[str, float]:
    """Returns FH@K, mAP and retrieval of a random order of all classes, texts and images."""
    labels, classes = seen.labels, len(seen.bank)
    found = by_name(hits.chance(labels, classes))
    if has_precision(seen.s):
        images = np.bincount(labels[labels >= 0], minlength=classes)
        found["mAP"] = float(images[images > 0].mean() / len(labels))
    if seen.s.pictures is not None:
        pairs = retrieval.pairs_of(seen.s.pictures[seen.counted], labels)
        found |= retrieval.chance(pairs, classes)
    return found
