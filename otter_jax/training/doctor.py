"""Doctor: finds what would go wrong with a run, or make it slow, before it takes GPUs.

    otter-jax doctor --config pairs --config.data.name=mine

It runs on the machine that will train, for half a minute and the time to compile. It checks whether
the images can be read, how long captions are, whether labels and class names agree, whether the
step fits into memory, and whether the pipeline keeps up with it. It writes nothing, except a data
set that is still missing. The exit status is 1 if something is wrong.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator

import jax
import numpy as np
import rich.console
from ml_collections import ConfigDict

from otter_jax import mesh as meshes
from otter_jax.data import headers, images, pipeline, repeats
from otter_jax.data.captions import Tokenizer
from otter_jax.data.packing import Packed
from otter_jax.data.readings import Readings
from otter_jax.data.source import Source
from otter_jax.errors import UserError
from otter_jax.models.bert import Bert
from otter_jax.run import batches
from otter_jax.run.console import duration
from otter_jax.training import compiling, fitting
from otter_jax.training.contrastive import Setup
from otter_jax.zeroshot.prompts import look_at
from otter_jax.zeroshot.sets import EvalSet

LOOKED_AT = 500  # images
SECONDS = 6.0  # of reading, and of stepping, to measure their rates
STEPS = 20  # at most
REPEATED = 0.01  # of a batch's rows, that have the picture of another


@dataclasses.dataclass(frozen=True)
class Finding:
    """Holds one finding, a line; `level` is "ok", "warning" or "error"."""

    level: str
    what: str
    text: str


def findings(config: ConfigDict, *, step: bool) -> Iterator[Finding]:
    """Yields the findings in order, and stops after an error that prevents further checks."""
    try:
        setup = Setup.of(config)
    except UserError as error:
        yield Finding("error", "config", str(error))
        return
    B = config.train.batch_size
    devices = meshes.count(setup.mesh)
    yield Finding("ok", "config", f"{B} pairs on {devices}, {setup.length.steps} steps")
    for note in setup.notes:
        yield Finding("warning", "in doubt", note)
    yield from look_at_images(setup)
    yield from look_at_repeats(setup.source, B)
    yield from look_at_captions(setup)
    for name, spec in config.eval.sets.items():
        yield from look_at_classes(name, spec, config.data, setup.tokenizer, setup.source)
    yield from look_at_workers(config)
    try:
        supply = pipeline_rate(setup)
    except UserError as error:
        yield Finding("error", "pipeline", str(error))
        return
    yield Finding("ok", "pipeline", f"reads {supply:,.0f} pairs/s; {readers(config)}")
    if step:
        yield from look_at_step(setup, supply)


def look_at_images(setup: Setup) -> Iterator[Finding]:
    """Checks whether images can be read, and whether they are larger than they need be."""
    source, resize, exif = setup.source, setup.config.data.resize, setup.config.data.exif
    some = source.sample(LOOKED_AT)

    def read(number):
        try:
            data = source[number]["image"]
            return images.decode(data, exif=exif).shape[:2], headers.orientation(data)
        except images.UnreadableImage as error:
            return f"{source.key(number)} ({error})"

    with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        found = list(pool.map(read, some))
    bad = [text for text in found if isinstance(text, str)]
    readable = [(n, each) for n, each in zip(some, found, strict=True) if not isinstance(each, str)]
    sides = [min(shape) for _, (shape, _) in readable]
    tagged = [n for n, (_, tag) in readable if tag]
    if bad:
        level = "error" if len(bad) > len(some) // 10 else "warning"
        text = f"{len(bad)} of {len(some)} cannot be read, such as {bad[0]}; others replace them"
        yield Finding(level, "images", text)
    if sides:
        middle = int(np.median(sides))
        text = f"{len(sides)} of {len(some)} read; shorter side {middle} pixels in the middle"
        large = middle >= 2 * resize
        advice = f"; otter-jax prepare --resize {resize} makes reading several times faster"
        yield Finding("warning" if large else "ok", "images", text + (advice if large else ""))
    if tagged:
        name = source.key(tagged[0])
        text = f"{len(tagged)} of {len(some)} have an EXIF orientation, such as {name}"
        done = "it is ignored" if exif == "ignore" else "they are turned upright as they are read"
        yield Finding("ok", "images", f"{text}; {done} (data.exif={exif})")


def look_at_repeats(source: Source, batch_size: int) -> Iterator[Finding]:
    """Checks how often a batch has a picture twice; sets made elsewhere do not say."""
    expected = repeats.expected_repeats(source, batch_size)
    if expected is not None:
        level = "warning" if expected > REPEATED * batch_size else "ok"
        yield Finding(level, "pictures", repeats.repeats_line(expected, batch_size))


def look_at_captions(setup: Setup) -> Iterator[Finding]:
    """Checks how long captions are, and whether packing them is worth it."""
    limit, lengths = setup.tokenizer.max_tokens, setup.lengths
    cut, mean = float((lengths > limit).mean()), float(np.minimum(lengths, limit).mean())
    text = (
        f"{lengths.mean():.1f} tokens on average, 95 % at most {np.quantile(lengths, 0.95):.0f}, "
        f"{cut:.1%} cut at {limit}"
    )
    yield Finding("warning" if cut > 0.05 else "ok", "captions", text)
    unknown = np.flatnonzero(setup.tokenizer.known(setup.captions) == 0)
    if len(unknown):
        key = setup.source.key(setup.source.sample(len(lengths))[unknown[0]])
        text = (
            f"{len(unknown):,} of {len(lengths):,} hold nothing that the tokenizer knows, such as "
            f"{setup.captions[unknown[0]][:40]!r} ({key})"
        )
        yield Finding("warning", "captions", text)
    if isinstance(setup.annotation, Readings):
        yield Finding("ok", "captions", str(setup.annotation))
    elif isinstance(setup.annotation, Packed):
        yield Finding("ok", "captions", f"packed, {setup.annotation}")
    elif isinstance(setup.model.txt, Bert) and limit > 1.5 * mean:
        text = f"padding is {1 - mean / limit:.0%} of the tokens; data.packed=True spares most"
        yield Finding("warning", "captions", text)


def look_at_classes(
    name: str, spec: ConfigDict, data: ConfigDict, tokenizer: Tokenizer, training: Source
) -> Iterator[Finding]:
    """Checks whether a set can be evaluated on, and whether its classes can be told apart.

    Pictures that are trained on are a warning, unless all are: that must be meant.
    """
    try:
        found = EvalSet.open(name, spec, data.dir, exif=data.exif)
    except UserError as error:
        yield Finding("error", f"eval {name}", str(error))
        return
    without = int((found.labels < 0).all(axis=1).sum())
    idle = len(found.names) - len(np.unique(found.labels[found.labels >= 0]))
    text = f"{len(found.source):,} images, {len(found.names):,} names, {idle:,} of them never right"
    more = f"; {without:,} images have no label among the names and do not count"
    yield Finding("warning" if without else "ok", f"eval {name}", text + (more if without else ""))
    seen = repeats.trained_on(found.source, training)
    if seen:
        level = "warning" if seen < len(found.source) else "ok"
        line = repeats.trained_on_line(found.source, training)
        yield Finding(level, "seen", f"eval {name}: {line}")
    for line in look_at(tokenizer, found.names, found.templates).lines(tokenizer.max_tokens):
        yield Finding("warning", f"eval {name}", line)


def pipeline_rate(setup: Setup) -> float:
    """Measures how many pairs per second this machine's pipeline reads."""
    with contextlib.closing(_reader(setup)) as reader:
        next(reader)  # starts threads or processes
        began, read = time.monotonic(), 0
        while time.monotonic() - began < SECONDS:
            read += len(next(reader)["image"])
        return read / (time.monotonic() - began)


def _reader(setup: Setup) -> Iterator[pipeline.Batch]:
    return batches.training(setup.config, setup.source, setup.annotation, 0)


def readers(config: ConfigDict) -> str:
    """Returns the number of processes or threads that read, as text."""
    workers = config.data.num_workers
    cores = os.cpu_count() or 1
    return f"{workers} processes" if workers else f"threads of this process, on {cores} cores"


def look_at_workers(config: ConfigDict) -> Iterator[Finding]:
    """Checks that there are not more processes that read than cores."""
    cores = os.cpu_count() or 1
    if config.data.num_workers > cores:
        text = f"data.num_workers={config.data.num_workers}, and there are {cores} cores"
        yield Finding("warning", "pipeline", f"{text}: more workers than cores slow each other")


def look_at_step(setup: Setup, supply: float) -> Iterator[Finding]:
    """Checks whether the step fits into memory, and whether it waits for the pipeline."""
    whole, _ = meshes.shardings(setup.mesh)
    try:
        state = jax.device_put(setup.state(), whole)
        shapes = batches.shapes(setup.config, setup.annotation, setup.mesh)
        began = time.monotonic()
        program = setup.train_step().lower(state, shapes).compile()
    except jax.errors.JaxRuntimeError as error:
        yield Finding("error", "step", f"cannot be compiled: {str(error).splitlines()[0]}")
        return
    compiled = duration(time.monotonic() - began)
    need, limit = compiling.need_of(program), compiling.memory_of()
    text = f"compiled in {compiled}; it needs {need or compiling.UNKNOWN} of {limit / 2**20:,.0f}"
    if need is not None and need.total > compiling.TIGHT * limit:
        text += f". {fitting.remedies(need, setup.config, setup.mesh)}"
        yield Finding("error" if need.total > limit else "warning", "step", text)
        if need.total > limit:
            return
    else:
        yield Finding("ok", "step", text)
    try:
        demand = step_rate(setup, program, state)
    except jax.errors.JaxRuntimeError as error:
        yield Finding("error", "step", f"cannot be run: {str(error).splitlines()[0]}")
        return
    text = f"takes {demand:,.0f} pairs/s on {setup.mesh.devices.flat[0].device_kind}"
    share = supply * jax.process_count() / demand
    if share < 1:
        text += (
            f": devices will wait {1 - share:.0%} of the time. More cores, data.num_workers, or "
            "otter-jax prepare help"
        )
        yield Finding("warning", "step", text)
    else:
        yield Finding("ok", "step", f"{text}, the pipeline reads {share:.1f} times that")


def step_rate(setup: Setup, program, state) -> float:
    """Measures how many pairs per second the step takes when it need not wait for a batch."""
    with contextlib.closing(_reader(setup)) as reader:
        rows = {k: v for k, v in next(reader).items() if k not in ("replaced", "cut")}
    batch = meshes.put_batch(rows, setup.mesh)
    state, _ = jax.block_until_ready(program(state, batch))
    began, steps = time.monotonic(), 0
    while steps < STEPS and (not steps or time.monotonic() - began < SECONDS):
        state, metrics = program(state, batch)
        jax.block_until_ready(metrics)
        steps += 1
    return steps * setup.config.train.batch_size / (time.monotonic() - began)


def print_findings(config: ConfigDict, *, step: bool, console: rich.console.Console) -> bool:
    """Prints the findings; returns False if one of them is an error."""
    good = True
    for finding in findings(config, step=step):
        console.print(f"{finding.level:8}{finding.what:15} {finding.text}")
        good &= finding.level != "error"
    return good
