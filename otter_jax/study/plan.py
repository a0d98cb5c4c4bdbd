"""What a study is: sets, settings, methods, and what is chosen on validation."""

import dataclasses
import itertools
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from otter_jax.objective import Objective
from otter_jax.study.linear import LINEAR

HEADS = "heads"
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
STRENGTH = "strength"  # of the regularisation of a closed form
COMMON = ("learning_rate", "log_scale")  # chosen for every method; not part of its objective


@dataclasses.dataclass(frozen=True)
class Image:
    """The image encoder, by the keys of a config's `model.img`."""

    arch: str
    weights: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Text:
    """The text encoder, by the keys of a config's `model.txt`."""

    weights: str
    pretrained: bool = True


@dataclasses.dataclass(frozen=True)
class Model:
    """Both encoders and the width of the common space."""

    dim: int
    img: Image
    txt: Text

    def section(self) -> dict[str, Any]:
        """Returns it as a config's section `model`, dropout off."""
        return dataclasses.asdict(self) | {
            "dtype": "float32",
            "txt": dataclasses.asdict(self.txt) | {"dropout": 0.0},
        }


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Concepts that are never trained on, and whose pictures are the validation set.

    Attributes:
      search: one of `data.search`, whose label says which concept a picture shows.
      sets: the training sets that have such labels.
      count: how many concepts.
      seed: they are drawn by.
    """

    search: str
    sets: tuple[str, ...]
    count: int
    seed: int = 1234


@dataclasses.dataclass(frozen=True)
class Names:
    """A question to pictures: which of some names do they show?

    Attributes:
      label: a field of the pairs' JSON.
      names: a file with one name per line; "": all labels of at least `least` pictures of the
        evaluation sets together.
      template: a prompt with {} where the name goes.
    """

    label: str
    names: str = ""
    least: int = 2
    template: str = "{}"


@dataclasses.dataclass(frozen=True)
class Data:
    """Sets of pairs as web-dataset tars, and how their pictures and texts are read.

    Attributes:
      train, eval: {name: tars}, relative to the folder on the command line.
      mixed: {name: names of sets in `train`} that are trained on together.
      image_size: pixels of a crop.
      resize: pixels of the shorter side before it; 0: as many as the crop.
      views: how many random crops of each training picture are kept, which epochs see in turn;
        0: training sees the middle of pictures, as evaluation always does.
      flip: mirror half of the random crops.
      dtype: of the features on disk and in memory, "float32" or "float16".
    """

    train: Mapping[str, tuple[str, ...]]
    eval: Mapping[str, tuple[str, ...]]
    search: Mapping[str, Names]
    held_out: HeldOut
    image_size: int = 224
    max_tokens: int = 60
    mixed: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    dtype: str = "float32"
    resize: int = 0
    views: int = 0
    flip: bool = False

    def parts(self, name: str) -> tuple[str, ...]:
        """Returns the sets in `train` that a setting's set is made of."""
        return self.mixed.get(name, (name,))


@dataclasses.dataclass(frozen=True)
class Train:
    """Says how long a run is, and how it is optimised, by the keys of a config where it has them.

    Attributes:
      pairs: that a run is shown in all, over all epochs; its steps are these / batch.
      trained: "heads", or the block that training begins with, such as "blocks_6_0".
    """

    pairs: int
    trained: str = HEADS
    name: str = "adamw"
    warmup_steps: int = 20
    momentum: float = 0.9
    weight_decay: float = 0.01
    clip_norm: float = 0.0
    ema_decay: float = 0.999


@dataclasses.dataclass(frozen=True)
class Choose:
    """Says what is chosen for a method in a setting, by the mean of `by` over `seeds` seeds.

    These seeds are no seeds of the main runs. Of one combination of values nothing is chosen.

    Attributes:
      learning_rate, log_scale: the grid, beside each method's own; the largest rate, and where the
        logarithms of both scales start.
      by: measures of the validation set.
    """

    learning_rate: tuple[float, ...]
    log_scale: tuple[float, ...]
    seeds: int = 3
    by: tuple[str, ...] = ("val/name@5", "val/name@10")


@dataclasses.dataclass(frozen=True, order=True)
class Setting:
    """One kind of data and training that methods are compared in.

    Attributes:
      set: the pairs: a name in data.train or data.mixed.
      noise: part of the captions that are exchanged among themselves.
      share: part of the pairs that there are.
      batch: pairs in a batch.
    """

    set: str
    noise: float
    share: float
    batch: int

    def __str__(self) -> str:
        return f"{self.set}_noise{self.noise:g}_share{self.share:g}_batch{self.batch}"

    def fields(self) -> dict[str, Any]:
        """Returns its values by their names."""
        return dataclasses.asdict(self)

    def described(self) -> str:
        """Returns it in words."""
        pairs = "all pairs" if self.share == 1 else f"{self.share:g} of the pairs"
        return f"{self.set}: {self.noise:.0%} wrong captions, {pairs}, batch {self.batch}"


@dataclasses.dataclass(frozen=True)
class Keys:
    """A setting of whole runs: keys of their config, and their values."""

    values: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        text = "_".join(f"{name.rpartition('.')[2]}={value}" for name, value in self.values)
        return re.sub(r"[^\w.=+*-]", "-", text) or "as_it_is"

    @property
    def batch(self) -> int:
        """Runs with the same are compiled alike; 0 for that of the config."""
        return dict(self.values).get("train.batch_size", 0)

    def fields(self) -> dict[str, Any]:
        """Returns its values by their names."""
        return dict(self.values)

    def described(self) -> str:
        """Returns it in words."""
        return ", ".join(f"{name} {value}" for name, value in self.values) or "as the config says"


@dataclasses.dataclass(frozen=True)
class Method:
    """A line of METHODS, with other values of the objective; or a closed form.

    Attributes:
      base: a name in METHODS, or in `linear.LINEAR`.
      objective: what it is without the values that are chosen; of a closed form it is not used.
      choose: {field of the objective, or of `Choose`: values}, in place of those for all methods.
      train: how its runs are trained; of whole runs, keys of their config and their values.
    """

    name: str
    base: str
    objective: Objective
    choose: Mapping[str, tuple[Any, ...]]
    train: Train | Mapping[str, Any]

    @property
    def length(self) -> int:
        """Returns how many pairs a run is shown; 0 for what a config says."""
        return self.train.pairs if isinstance(self.train, Train) else 0

    @property
    def is_linear(self) -> bool:
        """Tells whether it is a closed form, which has one value to choose: its strength."""
        return self.base in LINEAR

    def grid(self, common: Choose) -> Iterator[dict[str, Any]]:
        """Yields each combination of the values that are chosen among."""
        lists = {"learning_rate": common.learning_rate, "log_scale": common.log_scale}
        lists = dict(self.choose) if self.is_linear else lists | self.choose
        for values in itertools.product(*lists.values()):
            yield dict(zip(lists, values, strict=True))

    def with_values(self, values: Mapping[str, Any]) -> Objective:
        """Returns the objective with chosen values; raises UserError for one out of its range."""
        own = {k: v for k, v in values.items() if k not in (*COMMON, STRENGTH)}
        return dataclasses.replace(self.objective, **own)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Holds what the files of all studies say."""

    path: pathlib.Path
    settings: tuple[Setting | Keys, ...]
    methods: Mapping[str, Method]
    choose: Choose
    seeds: int = 10
    baseline: str = "infonce"
    weights: str = "ema"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WholeStudy(Study):
    """A study of whole runs, as `train` makes them, of a config's name or path."""

    config: str

    def about(self) -> dict[str, Any]:
        """Returns what two studies in one folder must have in common."""
        return {"config": self.config}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenStudy(Study):
    """A study of runs on kept features."""

    model: Model
    data: Data
    train: Train

    def about(self) -> dict[str, Any]:
        """Returns all that features depend on, as JSON has it.

        What crops are is left out where it is not set, as in features that were made before.
        """
        crops = ("resize", "views", "flip")
        data = dataclasses.asdict(self.data)
        data = {k: value for k, value in data.items() if value or k not in crops}
        about = {"model": self.model.section(), "data": data, "trained": self.train.trained}
        return json.loads(json.dumps(about))
