"""The values that every key of a config may have, checked before anything is read.

What depends on the data, the model or the devices is checked where these are known.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from otter_jax.errors import UserError
from otter_jax.run.directory import command_of

MANY = 2**31 - 1  # steps, pairs: what an int32 holds


class Range(NamedTuple):
    """Holds a test of a value, and what must be true of it: "must be ..."."""

    holds: Callable[[Any], bool]
    what: str


def whole(least: int, most: int = MANY) -> Range:
    """Allows whole numbers from `least` to `most`."""

    def holds(value):
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    return Range(holds, f"a whole number from {least} to {most}")


def number(
    least: float = 0.0, most: float = math.inf, *, above: bool = False, below: bool = False
) -> Range:
    """Allows numbers from `least` to `most`; `above` and `below` leave these out. NaN is none."""

    def holds(value):
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not math.isfinite(value)
        ):
            return False
        return (least < value if above else least <= value) and (
            value < most if below else value <= most
        )

    low = f"{'more than' if above else 'at least'} {least:g}"
    high = f" and {'less than' if below else 'at most'} {most:g}" if most < math.inf else ""
    return Range(holds, f"a finite number, {low}{high}")


def one_of(*known: str) -> Range:
    """Allows these words."""
    return Range(lambda value: value in known, f"one of {', '.join(map(repr, known))}")


def tuple_of(each: Range, what: str, *, length: int = 0, least: int = 0) -> Range:
    """Allows tuples whose elements are in `each`; of `length`, or of at least so many."""

    def holds(value):
        right = isinstance(value, tuple | list) and all(map(each.holds, value))
        return right and (len(value) == length if length else len(value) >= least)

    return Range(holds, what)


def _is_pattern(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError, RecursionError):
        return False
    return True


def _is_name(value: Any) -> bool:
    """Tells whether every set of a mixture is a relative path without `..`."""
    if not isinstance(value, str) or "\0" in value:
        return False
    terms = [term.rpartition("*")[2].strip() for term in value.split("+")]
    return all(not t.startswith(("/", "~", "-")) and ".." not in t.split("/") for t in terms)


TRUTH = Range(lambda value: isinstance(value, bool), "True or False")
TEXT = Range(lambda value: isinstance(value, str) and "\0" not in value, "a text")
SOME_TEXT = Range(lambda value: TEXT.holds(value) and bool(value.strip()), "a text, not empty")
FOLDER = Range(
    lambda value: SOME_TEXT.holds(value) and "://" not in value,
    "a folder of a file system (mount what has an address, such as gs://)",
)
PATTERN = Range(_is_pattern, "a regular expression")
NAME = Range(_is_name, "the name of a set (or of several, a+b), without / before it and without ..")
TARS = Range(
    lambda value: (
        isinstance(value, str)
        or (isinstance(value, tuple | list) and all(map(SOME_TEXT.holds, value)))
        or (
            isinstance(value, Mapping | ConfigDict) and all(TARS.holds(value[key]) for key in value)
        )
    ),
    "paths, as in ('/data/mine-*.tar',)",
)
COLOURS = "three numbers in 0..255, one per channel"
SHARE = number(0.0, 1.0)
PERIOD = whole(0)

# Keys of one meaning in both kinds of configs.
SHARED = {
    "seed": whole(0, 2**32 - 1),
    "model.dtype": one_of("float32", "bfloat16"),
    "data.dir": FOLDER,
    "data.name": NAME,
    "data.resize": whole(1, 16_384),
    "data.image_size": whole(1, 16_384),
    "data.exif": one_of("apply", "ignore"),
    "data.flip": TRUTH,
    "data.min_area": SHARE,
    "data.jitter": SHARE,
    "data.num_workers": whole(0, 1_024),
    "train.batch_size": whole(1),
    "train.log_every": whole(1),
    "optim.learning_rate": number(above=True),
    "gates.shape": one_of("", "filter", "slice"),
    "gates.penalty": one_of("", "l1", "l2"),
    "gates.strength": number(),
    "eval.batch_size": whole(1),
    "eval.best": TEXT,
    "checkpoint.every": PERIOD,
    "checkpoint.keep_every": PERIOD,
}
TRAIN = SHARED | {
    "method": TEXT,
    "objective.alpha": SHARE,
    "objective.smoothing": number(0.0, 1.0, below=True),
    "objective.teacher": one_of("none", "softmax", "transport"),
    "objective.teacher_scale": number(),
    "objective.epsilon": number(above=True),
    "objective.num_iters": whole(1, 10_000),
    "objective.image_weight": number(),
    "objective.text_weight": number(),
    "objective.cross_weight": number(),
    "objective.diagonal": one_of("remove", "keep", "per_process"),
    "objective.negatives_gradient": TRUTH,
    "objective.num_processes": whole(1, 1_000_000),
    "objective.trust": one_of("", "transport", "softmax", "small_loss"),
    "objective.trust_epsilon": number(above=True),
    "objective.trust_limit": number(1.0),
    "objective.trust_share": number(0.0, 1.0, above=True),
    "objective.match": one_of("softmax", "sigmoid"),
    "objective.temperatures": whole(1, 2),
    "objective.log_scale": number(0.0, 4.6),
    "model.dim": whole(1, 65_536),
    "model.img.arch": SOME_TEXT,
    "model.img.weights": TEXT,
    "model.img.mean": tuple_of(number(0.0, 255.0), COLOURS, length=3),
    "model.img.std": tuple_of(number(0.0, 255.0, above=True), f"{COLOURS}, more than 0", length=3),
    "model.txt.weights": SOME_TEXT,
    "model.txt.pretrained": TRUTH,
    "model.txt.dropout": number(0.0, 1.0, below=True),
    "data.split": SOME_TEXT,
    "data.tars": TARS,
    "data.max_tokens": whole(1, 65_536),
    "data.packed": TRUTH,
    "train.epochs": number(above=True),
    "train.microbatch": whole(0),
    "train.remat": one_of("", "img", "txt", "both"),
    "train.matching": one_of("auto", "dense", "cached", "streaming"),
    "optim.name": one_of("sgd", "adamw"),
    "optim.schedule": one_of("step", "epoch"),
    "optim.warmup_steps": PERIOD,
    "optim.momentum": number(0.0, 1.0, below=True),
    "optim.weight_decay": number(),
    "optim.clip_norm": number(),
    "optim.clamp_scales": TRUTH,
    "optim.freeze": PATTERN,
    "teacher.ema_decay": SHARE,
    "teacher.checkpoint": TEXT,
    "eval.every": PERIOD,
}
EVAL_SET = {
    "data": NAME,
    "split": SOME_TEXT,
    "tars": TARS,
    "folder": TEXT,
    "label": SOME_TEXT,
    "names": TEXT,
    "probe": TEXT,
    "templates": Range(
        lambda value: TEXT.holds(value) or tuple_of(SOME_TEXT, "", least=1).holds(value),
        "texts, as in ('a photo of {}.',), or a file of them",
    ),
}
TRANSFER = SHARED | {
    "phases": SOME_TEXT,
    "model.arch": SOME_TEXT,
    "model.weights": TEXT,
    "model.ema": TRUTH,
    "model.mean": TRAIN["model.img.mean"],
    "model.std": TRAIN["model.img.std"],
    "data.folder": TEXT,
    "data.train": SOME_TEXT,
    "data.validation": SOME_TEXT,
    "data.label": SOME_TEXT,
    "train.stored_statistics": TRUTH,
    "optim.schedule": one_of("constant", "cosine"),
    "report": TRUTH,
}
TABLES = {"train": TRAIN, "transfer": TRANSFER}


def check(config: ConfigDict) -> None:
    """Raises UserError for the first value that is out of its range, and for an unknown key."""
    table = TABLES.get(command_of(config))
    if table is None:
        return  # of another program; the command says so
    sets = config.eval.sets if "sets" in config.get("eval", {}) else {}
    for key, value in _leaves(config):
        if key in table:
            _check(key, value, table[key])
        elif not key.startswith("eval.sets."):
            near = difflib.get_close_matches(key, table, n=1)
            raise UserError(
                f"The config has a key {key} that this program does not know"
                f"{f'; did you mean {near[0]}?' if near else '.'}"
            )
    for name in sets:
        if not isinstance(sets[name], ConfigDict):
            raise UserError(
                f"eval.sets.{name}={sets[name]!r}: must be made by common.evaluation(...)."
            )
        for key, value in sets[name].items():
            if key in EVAL_SET:
                _check(f"eval.sets.{name}.{key}", value, EVAL_SET[key])


def _check(key: str, value: Any, known: Range) -> None:
    if not known.holds(value):
        shown = repr(value)
        raise UserError(f"{key}={shown[:80]}{'...' * (len(shown) > 80)}: must be {known.what}.")


def _leaves(config: ConfigDict, prefix: str = "") -> list[tuple[str, Any]]:
    """Returns every key, as "a.b", and its value; those of eval.sets and data.tars as one."""
    found = []
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, ConfigDict) and key not in ("eval.sets", "data.tars"):
            found += _leaves(value, f"{key}.")
        elif key != "eval.sets":
            found.append((key, value))
    return found
