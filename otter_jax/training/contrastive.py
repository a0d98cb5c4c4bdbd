"""Contrastive training of two towers, by any method, as a task of the loop."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32, PyTree
from ml_collections import ConfigDict
from rich.console import Console

from otter_jax import freezing, gates, step
from otter_jax import mesh as meshes
from otter_jax.data import repeats
from otter_jax.data.captions import Tokenizer, visible
from otter_jax.data.ensure import ensure
from otter_jax.data.packing import Packed
from otter_jax.data.pipeline import Annotation
from otter_jax.data.readings import Readings
from otter_jax.data.source import Source, open_dataset
from otter_jax.errors import UserError
from otter_jax.objective import Objective
from otter_jax.optimizer import Schedule, learning_rate, make_optimizer
from otter_jax.run import batches, cluster, model, trained
from otter_jax.run.console import in_columns, millions
from otter_jax.run.watched import WatchedPairs
from otter_jax.training import doubts, fitting, logline, texts
from otter_jax.training.compiling import compiled, jit_step, shapes_of
from otter_jax.training.loop import Step, is_multiple, train
from otter_jax.training.meters import Metrics
from otter_jax.training.profiling import Span
from otter_jax.zeroshot.evaluator import Evaluator
from otter_jax.zeroshot.sets import EvalSet

SAMPLE = 5_000  # captions whose lengths are looked at before training
TEACHERS = {"none": "none", "softmax": "softmax", "transport": "optimal transport"}
TRUSTS = TEACHERS | {"small_loss": "small loss"}


def run(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    from_step: int | None = None,
    anyway: bool = False,
    profile: Span | None = None,
    console: Console,
) -> bool:
    """Trains to the last step of `config`, from the newest checkpoint in `workdir` if there is one.

    `from_step`, `anyway`, `profile` and what is returned are those of `loop.train`. SIGTERM or
    Ctrl-C saves after the current step, and raises Stopped. Raises UserError for a mistake in
    config or data, before anything is compiled, and when a number is no longer finite.
    """
    console.print(f"Opening the data set {config.data.name} and both encoders")
    setup = Setup.of(config)
    console.print("Opening the sets to evaluate on")
    evaluator = Evaluator(config, setup.model, setup.tokenizer, setup.mesh, workdir, console)
    watched = WatchedPairs(config, setup.source, evaluator.embedder, workdir, console)
    task = Contrastive(setup, evaluator, watched, console)
    how = {"from_step": from_step, "anyway": anyway, "profile": profile}
    return train(task, workdir, console=console, **how)


@dataclasses.dataclass(frozen=True)
class Length:
    """Holds the length of a run."""

    pairs: int
    steps: int
    steps_per_epoch: float  # not whole: a batch may belong to two epochs

    @classmethod
    def of(cls, config: ConfigDict, pairs: int) -> "Length":
        """Returns the length of config.train.epochs epochs of so many pairs."""
        B = config.train.batch_size
        steps = max(1, round(config.train.epochs * pairs / B))
        return cls(pairs, steps, pairs / B)


@dataclasses.dataclass
class Setup:
    """Holds everything a training step needs: model, data, optimiser, mesh.

    Attributes:
      variables: initial {"params", "batch_stats"}; None once `state` has taken them.
      contents: number and fingerprint of the set's pairs.
      captions, lengths: a sample of the set, evenly over it, and how many tokens each has uncut.
      notes: sentences on weights, tokenizer and config that the user should see.
      annotation: makes the captions of a batch: padded, packed or read once (`texts`).
      schedule: the learning rate over steps.
    """

    config: ConfigDict
    mesh: Mesh
    source: Source
    length: Length
    model: nn.Module
    variables: PyTree | None
    tokenizer: Tokenizer
    contents: str
    captions: list[str]
    lengths: Int32[np.ndarray, "_"]
    notes: list[str]
    annotation: Annotation
    schedule: Schedule
    tx: Any

    @classmethod
    def of(cls, config: ConfigDict) -> "Setup":
        """Sets up training on all devices by a config. Makes the data set if it is missing.

        Raises UserError for mistakes in the config or the data, before anything is compiled.
        """
        mesh = meshes.make_mesh()
        check_config(config, mesh.size)
        fitting.check(config, mesh)
        with cluster.first_before_others():
            ensure(config.data.name, config.data.dir, config.data.tars, exif=config.data.exif)
        source = open_dataset(config.data.dir, config.data.name, config.data.split)
        source.check_has("image")
        source.check_has(Tokenizer.feature)
        length = Length.of(config, len(source))
        notes: list[str] = []
        module, variables, tokenizer_folder = trained.fresh(
            config, key=jax.random.key(config.seed), tell=notes.append
        )
        tokenizer = Tokenizer(tokenizer_folder, config.data.max_tokens)
        model.check_sizes(config, module, tokenizer)
        captions = [source[i][Tokenizer.feature] for i in source.sample(SAMPLE)]
        notes += model.check_captions(config, module.txt, tokenizer_folder, tokenizer, captions)
        contents = f"{len(source):,} pairs, {cluster.fingerprint(captions)}"
        cluster.agree(
            lambda: {
                "data.name": f"{source.name}, {contents}",
                "model's weights": cluster.fingerprint(variables),
                "train.matching": fitting.form_of(config, mesh),
            }
        )
        lengths = tokenizer.lengths(captions)
        annotation = texts.annotation_of(
            config, mesh, module, variables["params"], tokenizer, lengths, len(source)
        )
        schedule, tx = optimizer(config, variables["params"], length)
        notes += doubts.of(config, variables["params"], length.steps)
        return cls(
            config, mesh, source, length, module, variables, tokenizer, contents, captions,
            lengths, notes, annotation, schedule, tx,
        )  # fmt: skip

    def state(self) -> step.TrainState:
        """Returns the state before step 1; can be called once."""
        variables, self.variables = self.variables, None
        # As one program: a copy or a zero of each shape would be compiled for itself.
        create = jax.jit(functools.partial(step.create_state, tx=self.tx))
        return create(variables["params"], variables["batch_stats"])

    def train_step(self) -> Any:
        """Returns the jitted `train_step`; it donates its state argument."""
        config = self.config
        one_step = functools.partial(
            step.train_step,
            model=self.model,
            tx=self.tx,
            objective=Objective(**config.objective),
            mesh=self.mesh,
            key=jax.random.key(config.seed),
            freeze=config.optim.freeze,
            gate_penalty=config.gates.penalty,
            gate_strength=config.gates.strength,
            ema_decay=None if config.teacher.checkpoint else config.teacher.ema_decay,
            clamp_scales=config.optim.clamp_scales,
            form=fitting.form_of(config, self.mesh),
            microbatch=config.train.microbatch,
            remat=config.train.remat,
        )
        return jit_step(one_step, self.mesh, remat=bool(config.train.remat))


class Contrastive:
    """Trains two towers to match images with their captions; a `training.loop.Task`."""

    unit = "pairs"
    remedy = "A lower optim.learning_rate, a longer optim.warmup_steps or optim.clip_norm=1"

    def __init__(self, setup: Setup, evaluator: Evaluator, watched: WatchedPairs, console: Console):
        self.config, self.mesh, self.source = setup.config, setup.mesh, setup.source
        self.steps, self.contents = setup.length.steps, setup.contents
        self._setup, self._console = setup, console
        self._evaluator, self._watched = evaluator, watched
        self._learning_rate = jax.jit(setup.schedule)
        self._like: PyTree = None  # the state's shapes
        self._compiled: Step | None = None

    def initial_state(self, start: int) -> step.TrainState:
        """Returns the state before step 1, with a fixed teacher if the config has one."""
        teacher = None
        if self.config.teacher.checkpoint and not start:
            teacher = trained.fixed_teacher(self.config, self._setup.variables)
        state = self._setup.state()
        if teacher is not None:
            state = state.replace(teacher=teacher)
        self._like = shapes_of(state)
        return state

    def begin(self, state: step.TrainState, start: int) -> None:
        """Prints what is in doubt, then method, model, data and length of the run in few lines."""
        for note in self._setup.notes:
            self._console.print(f"Note: {note}")
        fields = _summary(self._setup, state, start) | _seen(self._evaluator.sets, self.source)
        self._console.print(in_columns(fields))
        self._watched.begin(start, state.teacher)
        setup, size = self._setup, self.config.eval.batch_size
        if isinstance(setup.annotation, Readings):
            embedder = texts.embedder(setup.model, setup.tokenizer, self.mesh, size)
            texts.read(setup.annotation, self.source, embedder, state, self._console)

    def batches(self, start: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields this process's rows of the batches from step `start` on."""
        return batches.training(self.config, self.source, self._setup.annotation, start)

    def step_at(self, now: int) -> Step:
        """Returns the compiled step; all steps are alike."""
        if self._compiled is None:
            shapes = batches.shapes(self.config, self._setup.annotation, self.mesh)
            self._compiled, need = compiled(
                self._setup.train_step(), self._like, shapes, name="the step", console=self._console
            )
            fitting.check_need(need, self.config, self.mesh)
        return self._compiled

    def is_evaluated(self, now: int) -> bool:
        """Tells whether an evaluation follows step `now`, other than the last."""
        return is_multiple(now, self.config.eval.every)

    def evaluate(self, now: int, state: step.TrainState, check_stop: Callable[[], None]) -> Metrics:
        """Evaluates student and EMA teacher on all sets of the config."""
        self._watched.keep(now, state.teacher)
        variables = {"student": {"params": state.params, "batch_stats": state.batch_stats}}
        if "ema" in trained.kept_weights(self.config):
            variables["ema"] = state.teacher
        return self._evaluator(now, variables, check_stop, whole=now == self.steps)

    def numbers(self, now: int) -> Metrics:
        """Returns the learning rate of step `now`, and how many epochs are done after it."""
        return {
            "learning_rate": float(self._learning_rate(now - 1)),
            "epoch": now * self.config.train.batch_size / self._setup.length.pairs,
        }

    def line(self, now: int, recorded: Metrics) -> str:
        """Returns the log line: loss and terms, scales, the targets' health, speed, time left."""
        return logline.of(now, self.steps, recorded)


def check_config(config: ConfigDict, devices: int) -> None:
    """Raises UserError for impossible values of a config, before any data is read."""
    B = config.train.batch_size
    meshes.check_divides("train.batch_size", B, devices)
    if B < 2:
        raise UserError(
            "train.batch_size=1 has no negatives: every loss would be 0. Take 2 or more."
        )
    meshes.check_divides("eval.batch_size", config.eval.batch_size, devices)
    Objective(**config.objective)
    gates.check_gates(**config.gates)
    for key, value in (
        ("train.epochs", config.train.epochs),
        ("train.log_every", config.train.log_every),
    ):
        if value <= 0:
            raise UserError(f"{key}={value}: must be more than 0.")
    processes = config.objective.num_processes
    if B % processes:
        raise UserError(
            f"objective.num_processes={processes} does not divide train.batch_size={B}."
        )
    if config.teacher.checkpoint and not Objective(**config.objective).has_teacher:
        raise UserError(
            f"teacher.checkpoint={config.teacher.checkpoint!r}, but method {config.method!r} has "
            "no teacher. Choose kd or otter, or leave it empty."
        )


def optimizer(config: ConfigDict, params: PyTree, length: Length) -> tuple[Schedule, Any]:
    """Returns the learning rate over steps, and the optimiser that config.optim asks for."""
    o = config.optim
    if o.schedule not in ("step", "epoch"):
        raise UserError(f'optim.schedule={o.schedule!r}: "step" or "epoch".')
    schedule = learning_rate(
        o.learning_rate,
        total_steps=length.steps,
        warmup_steps=o.warmup_steps,
        steps_per_epoch=length.steps_per_epoch if o.schedule == "epoch" else 1.0,
    )
    tx = make_optimizer(
        o.name,
        schedule,
        momentum=o.momentum,
        weight_decay=o.weight_decay,
        clip_norm=o.clip_norm,
        frozen=freezing.frozen_mask(params, config.optim.freeze),
    )
    return schedule, tx


def _summary(setup: Setup, state: step.TrainState, start: int) -> dict[str, str]:
    """Returns the lines that describe a run before it starts, by their headings."""
    config, length, mesh = setup.config, setup.length, setup.mesh
    B = config.train.batch_size
    objective = Objective(**config.objective)
    fixed = config.teacher.checkpoint
    kind = f" (fixed, {fixed})" if fixed else " (EMA)"
    averaged = f"all parameters, EMA decay up to {config.teacher.ema_decay:g}"
    fields = {
        "method": f"{config.method}: alpha {objective.alpha:g}, teacher "
        f"{_looks(objective)}{kind if objective.has_teacher else ''}",
        "trained": _trained(config, state.params),
        "frozen": config.optim.freeze or "nothing",
        "averaged": "nothing (the teacher is fixed)" if fixed else averaged,
        "texts": model.read_as(setup.model.txt),
        "data": f"{setup.source.name}, {length.pairs:,} pairs",
        **_pictures(setup.source, B),
        "captions": _captions(setup),
    }
    if isinstance(setup.annotation, Packed):
        fields["packed"] = str(setup.annotation)
    if isinstance(setup.annotation, Readings):
        fields["texts"] += f"; {setup.annotation}"
    return fields | {
        **fitting.summary(config, mesh),
        **_chance(objective, B),
        "length": f"{length.steps} steps = {config.train.epochs:g} epochs"
        + (f", going on from step {start}" if start else ""),
    }


def _chance(objective: Objective, batch_size: int) -> dict[str, str]:
    """Returns, as text, the pairs term of guessing; nothing for a sigmoid: its bias decides."""
    nats = math.log(batch_size)
    said = {"chance": f"pairs term {2 * nats:.3f}: ln B = {nats:.3f} each way"}
    return said if objective.match == "softmax" else {}


def _looks(objective: Objective) -> str:
    """Returns, as text, what a teacher does: the targets that it sets, whom it trusts."""
    trust = f"trust in pairs by {TRUSTS[objective.trust]}" if objective.trust else ""
    said = trust if objective.teacher == "none" else TEACHERS[objective.teacher]
    return f"{said}, {trust}" if trust and said != trust else said or "none"


def _trained(config: ConfigDict, params: PyTree) -> str:
    """Returns, as text, how many parameters of each part are trained, and how many it has."""
    mask = freezing.frozen_mask(params, config.optim.freeze)
    sizes = jax.tree.map(lambda x: x.size, params)
    parts = []
    for name in sorted(sizes):
        leaves = zip(*map(jax.tree.leaves, (sizes[name], mask[name])), strict=True)
        frozen = sum(size for size, is_frozen in leaves if is_frozen)
        total = sum(jax.tree.leaves(sizes[name]))
        parts.append(f"{name} {millions(total - frozen)} of {millions(total)}")
    return f"{'; '.join(parts)} parameters"


def _pictures(source: Source, batch_size: int) -> dict[str, str]:
    """Returns how often a batch has a picture twice, as text; nothing for sets made elsewhere."""
    expected = repeats.expected_repeats(source, batch_size)
    return {} if expected is None else {"pictures": repeats.repeats_line(expected, batch_size)}


def _seen(sets: Sequence[EvalSet], training: Source) -> dict[str, str]:
    """Returns how many pictures of each set are trained on, as text; nothing of those without."""
    lines = {s.name: repeats.trained_on_line(s.source, training) for s in sets}
    said = "; ".join(f"eval {name}: {line}" for name, line in lines.items() if line)
    return {"seen": said} if said else {}


def _captions(setup: Setup) -> str:
    """Returns, as text, how long sampled captions are, and how many are cut, empty or unknown."""
    limit, lengths = setup.tokenizer.max_tokens, setup.lengths
    cut = (lengths > limit).mean()
    empty = sum(not visible(text) for text in setup.captions)
    unknown = int((setup.tokenizer.known(setup.captions) == 0).sum())
    return (
        f"{lengths.mean():.1f} tokens on average, {cut:.1%} cut at {limit}, "
        f"{empty} empty, {unknown} of unknown tokens alone, of {len(setup.captions):,} looked at"
    )
