"""Transfer of a pretrained image encoder to labelled pictures, one group of its weights at a time.

    python -m otter_jax.transfer --config configs/transfer.py --workdir runs/birds
    python -m otter_jax.transfer --workdir runs/birds --export birds [--share 0.2]

The second line writes the trained network, its gates folded into its filters and the given share of
the filters pruned, for timm and for this project.
"""

import bisect
import contextlib
import functools
import pathlib
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
import optax
import rich.console
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from otter_jax import gates
from otter_jax import mesh as meshes
from otter_jax.data import pipeline
from otter_jax.errors import UserError
from otter_jax.report.transfer import report
from otter_jax.run import cluster, directory
from otter_jax.run.batches import batch_shapes, train_batches
from otter_jax.run.checkpoint import Checkpoints
from otter_jax.run.console import duration, millions
from otter_jax.run.model import check_image_size
from otter_jax.training import compiling, loop, meters
from otter_jax.transfer import phases
from otter_jax.transfer.labelled import Labelled, open_splits
from otter_jax.transfer.network import network
from otter_jax.transfer.step import TransferState, create_state, transfer_step
from otter_jax.transfer.validation import KS, Validation, normaliser


def check(config: ConfigDict, devices: int) -> None:
    """Raises UserError for what cannot be, before any data is read."""
    meshes.check_divides("train.batch_size", config.train.batch_size, devices)
    meshes.check_divides("eval.batch_size", config.eval.batch_size, devices)
    phases = phases.parse(config.phases)
    if config.train.log_every <= 0:
        raise UserError(f"train.log_every={config.train.log_every}: must be more than 0.")
    if config.optim.schedule not in ("constant", "cosine"):
        raise UserError(f'optim.schedule={config.optim.schedule!r}: "constant" or "cosine".')
    gates.check(**config.gates)
    if config.eval.best not in ("", *(f"top-{k}" for k in KS)):
        raise UserError(f'eval.best={config.eval.best!r}: "top-1", "top-3" or "".')
    gated = any("a" in groups for groups in phases)
    if gated and not config.gates.shape:
        raise UserError(
            f"phases={config.phases!r} train the gates (a), but gates.shape is empty: "
            '"filter" or "slice".'
        )
    if config.gates.shape and not gated:
        raise UserError(
            f"gates.shape={config.gates.shape!r}, but phases={config.phases!r} never train the "
            'gates (a): add such a phase, or set gates.shape="".'
        )


def run(config: ConfigDict, workdir: pathlib.Path, *, console: rich.console.Console) -> None:
    """Trains through all phases, from the newest checkpoint in `workdir` if there is one.

    Validates and saves after each phase; at the end writes the report. SIGTERM or Ctrl-C saves
    after the step that is running, and raises Stopped. Raises UserError for what the config or the
    data get wrong, before anything is compiled, and when a number is no longer finite.
    """
    mesh = meshes.make_mesh()
    check(config, mesh.size)
    phases = phases.parse(config.phases)
    train, validation = open_splits(config)
    ends = phase_ends(len(phases), len(train.labels), config.train.batch_size)
    model, params, batch_stats = network(config, len(train.names))
    cluster.agree(
        lambda: {
            "data.name": cluster.fingerprint((train.labels, validation.labels)),
            "model's weights": cluster.fingerprint((params, batch_stats)),
        }
    )
    check_image_size(config.data.image_size, model, config.model.arch)
    state = create_state(params, batch_stats, phases, model)
    whole, rows = meshes.shardings(mesh)
    validate = Validation(config, model, validation, mesh, console)
    schedule = learning_rate(config, ends[-1])

    with contextlib.ExitStack() as stack:

        def closing(thing):
            return stack.enter_context(contextlib.closing(thing))

        keep_every = config.checkpoint.keep_every
        checkpoints = closing(Checkpoints(workdir, best=config.eval.best, keep_every=keep_every))
        start = checkpoints.latest or 0
        cluster.agree(lambda: {"latest checkpoint": start})
        if start > ends[-1]:
            raise UserError(
                f"{workdir} is at step {start}, but {config.phases!r} end at step {ends[-1]}: give "
                "the phases that it was trained by, or another --workdir."
            )
        if checkpoints.latest is not None:
            state = checkpoints.restore(start, state, whole)
        else:
            state = meshes.put_whole(state, mesh)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        labels = pipeline.Labels(config.data.label)
        batches = closing(train_batches(config, train.source, labels, start))

        def evaluate(now, state):
            measured = validate(state.params, state.batch_stats, stop.check)
            phase = bisect.bisect_left(ends, now)
            result = {"step": now, "epoch": phase + 1, "phase": phases[phase], **measured}
            if cluster.is_first():
                directory.write_json(directory.results(workdir, now), result)
            shown = ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
            of = f"{phase + 1}/{len(phases)} ({phases[phase]})"
            console.print(f"epoch {of} | validation {shown}")
            return measured

        @functools.cache
        def compiled(groups):
            jitted = jax.jit(
                functools.partial(
                    transfer_step,
                    model=model,
                    groups=groups,
                    learning_rate=schedule,
                    normalise=normaliser(config),
                    penalty=config.gates.penalty,
                    strength=config.gates.strength,
                    stored_statistics=config.train.stored_statistics,
                ),
                donate_argnums=0, in_shardings=(whole, rows), out_shardings=whole,
            )  # fmt: skip
            shapes = batch_shapes(config, labels, mesh)
            return compiling.compiled(jitted, like, shapes, name=f"phase {groups}", console=console)

        scalars = stack.enter_context(loop.recorded(workdir, config, start))
        stop = stack.enter_context(cluster.Stop())
        training = loop.Loop(
            workdir=workdir,
            last=ends[-1],
            batch_size=config.train.batch_size,
            unit="images",
            log_every=config.train.log_every,
            evaluated=lambda now: now in ends,
            saved=loop.every(config.checkpoint.every, config.checkpoint.keep_every),
            step_at=lambda now: compiled(phases[bisect.bisect_left(ends, now)]),
            evaluate=evaluate,
            numbers=lambda now: {
                "learning_rate": float(schedule(now - 1)),
                "epoch": now * config.train.batch_size / len(train.labels),
            },
            line=functools.partial(log_line, phases=phases, ends=ends),
            remedy="A lower optim.learning_rate or gates.strength",
            checkpoints=checkpoints,
            scalars=scalars,
            stop=stop,
            source=train.source,
            mesh=mesh,
            console=console,
        )
        training.make_up(start, state)
        del params, batch_stats
        if start < ends[-1]:
            if cluster.is_first():
                (workdir / "report.html").unlink(missing_ok=True)  # of fewer phases
            console.print(summary(config, state, model, train, validation, ends, mesh, start))
            training.run(start, state, batches)
        else:
            console.print(f"Done already: {start} of {ends[-1]} steps are in {workdir}.")
    reported = cluster.stack(np.array((workdir / "report.html").exists()))[0]
    if config.report and not reported:
        report(config, workdir, validate, console=console)
        console.print(f"The report is in {workdir / 'report.html'}.")


def phase_ends(phases: int, images: int, batch_size: int) -> list[int]:
    """The last step of each phase, an epoch long; a batch may belong to two epochs."""
    ends = [round((i + 1) * images / batch_size) for i in range(phases)]
    if ends[0] < 1 or images < batch_size:
        raise UserError(
            f"train.batch_size={batch_size} is more than the {images} pictures: make it smaller."
        )
    return ends


def learning_rate(config: ConfigDict, steps: int) -> Callable[[Array | int], Array | float]:
    """The rate of Adam after so many steps."""
    rate = config.optim.learning_rate
    if config.optim.schedule == "constant":
        return lambda _: rate
    return optax.cosine_decay_schedule(rate, steps)


def summary(
    config: ConfigDict,
    state: TransferState,
    model: nn.Module,
    train: Labelled,
    validation: Labelled,
    ends: list[int],
    mesh: Mesh,
    start: int,
) -> str:
    """What is about to happen, in a few lines, before it costs anything."""
    groups = phases.sizes(state.params, model)
    used = phases.groups_of(phases.parse(config.phases))
    trained_network = "; ".join(f"{g} {phases.GROUPS[g]}: {millions(groups[g])}" for g in used)
    share = np.bincount(validation.labels).max() / len(validation.labels)
    m = config.model
    lines = [
        f"network     {m.arch}, weights {m.weights or 'random'}",
        f"phases      {config.phases}: an epoch each",
        f"trained     {trained_network}; of {millions(sum(groups.values()))} values in all",
        f"data        {train.source.name}, {len(train.labels):,} images, "
        f"{len(train.names)} classes",
        f"validation  {validation.source.name}, {len(validation.labels):,} images; always the "
        f"commonest class: top-1 {share:.3f}",
        f"batch       {config.train.batch_size} over {mesh.size} device{'s' * (mesh.size > 1)}",
        f"length      {ends[-1]} steps" + (f", going on from step {start}" if start else ""),
    ]
    return "\n".join(lines)


def log_line(now: int, m: meters.Metrics, phases: list[str], ends: list[int]) -> str:
    """What is said of a step."""
    return (
        f"step {now}/{ends[-1]} epoch {m['epoch']:.1f} ({phases[bisect.bisect_left(ends, now)]}) | "
        f"loss {m['loss']:.3f} | accuracy {m['accuracy']:.3f} | {m['images_per_second']:.0f} "
        f"images/s, waiting for data {m['data_wait']:.0%} | left "
        f"{duration(m['seconds_left'])}"
    )
