"""Traces some steps of a run, and tells where their time went.

Parts of a step have names (`jax.named_scope` in `step` and `embedding`), which the compiler keeps
beside every operation that it makes of them; operations of the backward pass are known by JAX's
own "transpose". A trace says when each operation ran.
"""

import collections
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import rich.console

from otter_jax.errors import UserError
from otter_jax.files import write_text
from otter_jax.run import cluster

FOLDER, TABLE = "profile", "where_time_goes.txt"  # in a run's directory
SCOPES = ("embedding", "loss", "teacher", "targets", "update")  # of several, the last counts
BACKWARD, INPUT, REST = "backward", "input wait", "rest"
ROWS = ("embedding", "teacher", "targets", "loss", BACKWARD, "update", INPUT, REST)
STEPS = "profiled steps"  # the event of a trace that is as long as what is looked at
WAITING, PAUSED = "waiting for a batch", "between steps"  # the loop's events beside operations
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*)$")
CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.-]+)")

Event = tuple[float, float, str]  # start, end, part


class Span(NamedTuple):
    """Holds the first and the last step to trace, as the log counts them: from 1."""

    first: int
    last: int


def check(span: Span, steps: int, start: int, console: rich.console.Console) -> Span | None:
    """Returns the steps that are left to trace after step `start`, None for none; says so.

    Raises UserError if the run ends before the last of them.
    """
    first, last = span
    if last > steps:
        raise UserError(
            f"--profile {first}:{last}: the run has {steps} steps; for its last ones "
            f"--profile {max(1, steps - last + first)}:{steps}."
        )
    if start < first:
        return span
    left = Span(start + 1, last) if start < last else None
    what = f"steps {left.first} to {last} are traced" if left else "nothing is traced"
    console.print(f"--profile {first}:{last}: the run goes on after step {start}, so {what}.")
    return left


def part_of(name: str) -> str:
    """Returns the part that an operation belongs to by its name in JAX, `REST` if it has none."""
    words = re.findall(r"\w+", name)
    found = [scope for scope in SCOPES if scope in words]
    if "transpose(" in name and "update" not in found:
        return BACKWARD
    return found[-1] if found else REST


def parts_of(text: str) -> dict[str, str]:
    """Returns the part of each operation in a compiled program's text.

    What the compiler made without a name, such as copies, belongs where the operations that it
    calls belong, else where its operands come from.
    """
    parts: dict[str, str] = {}
    within: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    computation = ""
    for line in text.splitlines():
        if begins := COMPUTATION.match(line):
            computation = begins[1]
        if not (found := INSTRUCTION.match(line)):
            continue
        operation, rest = found.groups()
        name = re.search(r'op_name="([^"]*)"', rest)
        part = part_of(name[1]) if name else REST
        if part == REST and (called := CALLED.search(rest)) and within[called[1]]:
            part = within[called[1]].most_common(1)[0][0]
        if part == REST:
            operands = re.findall(r"%([\w.-]+)", rest.partition("metadata=")[0])
            part = next((parts[o] for o in operands if parts.get(o, REST) != REST), REST)
        parts[operation] = part
        if part != REST:
            within[computation][part] += 1
    return parts


def innermost(events: Iterable[Event]) -> Iterator[Event]:
    """Cuts the nested events of one thread or stream into pieces that each belong to one event."""
    open_: list[tuple[float, str]] = []
    now = 0.0
    for start, end, part in sorted(events, key=lambda event: (event[0], -event[1])):
        while open_ and open_[-1][0] <= start:
            until, owner = open_.pop()
            if until > now:
                yield now, until, owner
            now = max(now, until)
        if open_ and start > now:
            yield now, start, open_[-1][1]
        now = max(now, start)
        open_.append((end, part))
    for until, owner in reversed(open_):
        if until > now:
            yield now, until, owner
        now = max(now, until)


def shares(lines: Iterable[Iterable[Event]], window: tuple[float, float]) -> dict[str, float]:
    """Returns how much of a window of time each part took; they add up to it.

    `lines` are the events of each thread or stream. What ran at once shares the time. While nothing
    ran, the time is `INPUT` if the loop waited for a batch, else `REST`; what is `PAUSED` is left
    out.
    """
    changes = [(time, 0, "") for time in window]
    for line in lines:
        for start, end, part in innermost(line):
            changes += [(start, 1, part), (end, -1, part)]
    totals: dict[str, float] = collections.defaultdict(float)
    active: collections.Counter[str] = collections.Counter()
    before = window[0]
    for time, change, part in sorted(changes):
        until = min(max(time, before), window[1])
        running = {p: n for p, n in active.items() if n and p not in (WAITING, PAUSED)}
        if active[PAUSED]:
            running = {}
        elif not running:
            running = {INPUT if active[WAITING] else REST: 1}
        for owner, count in running.items():
            totals[owner] += (until - before) * count / sum(running.values())
        active[part] += change
        before = until
    return {part: time for part, time in totals.items() if time}


def lines_of(
    trace: Any, parts: Mapping[str, str]
) -> tuple[list[list[Event]], tuple[float, float] | None]:
    """Returns the events of a trace by thread or stream, and the window of the profiled steps.

    `trace` is a `jax.profiler.ProfileData`, `parts` the part of each operation. On GPUs the events
    of the first device are taken; a kernel in a graph has no operation but in its own name.
    """
    kernels = {re.sub(r"\W", "_", operation): part for operation, part in parts.items()}
    planes = {plane.name: plane for plane in trace.planes}
    devices = sorted(name for name in planes if name.startswith("/device:"))
    used = [name for name in ("/host:CPU", *devices[:1]) if name in planes]
    lines, window = [], None
    for name in used:
        for line in planes[name].lines:
            events = []
            for event in line.events:
                start, end = event.start_ns, event.start_ns + event.duration_ns
                if event.name == STEPS:
                    window = start, end
                elif event.name in (WAITING, PAUSED):
                    events.append((start, end, event.name))
                elif "hlo_op" in (stats := dict(event.stats)):
                    events.append((start, end, parts.get(str(stats["hlo_op"]), REST)))
                elif name in devices and event.duration_ns:
                    events.append((start, end, kernels.get(event.name, REST)))
            lines.append(events)
    return lines, window


def table(totals: Mapping[str, float], span: Span) -> str:
    """Returns ten lines: seconds a step and per cent of each part, from nanoseconds in all."""
    steps, whole = span.last - span.first + 1, max(sum(totals.values()), 1)
    lines = [f"{f'steps {span.first} to {span.last}':14} seconds a step  per cent"]
    for name in (*ROWS, "together"):
        spent = whole if name == "together" else totals.get(name, 0.0)
        lines.append(f"{name:14} {spent / steps / 1e9:14.4f}  {100 * spent / whole:8.1f}")
    return "\n".join(lines)


class Profile:
    """Traces the steps of `span` in a training loop; a context, which ends the trace early."""

    def __init__(self, span: Span | None, workdir: pathlib.Path, console: rich.console.Console):
        """Traces nothing if `span` is None; of several processes, only the first traces."""
        self._span = span if cluster.is_first() else None
        self._folder, self._console = workdir / FOLDER, console
        self._steps: Any = None  # the event, while there is a trace

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._steps is not None:
            self._end()
            self._console.print("The trace ends before its last step, so there is no table of it.")

    def before(self, now: int, state: Any) -> None:
        """Begins the trace if `now` is the first of the steps; `state` is that before it."""
        if self._span is None or now != self._span.first:
            return
        jax.block_until_ready(state)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # Python's own calls slow the loop down
        jax.profiler.start_trace(self._folder, profiler_options=options)
        self._steps = jax.profiler.TraceAnnotation(STEPS)
        self._steps.__enter__()

    def after(self, now: int, state: Any, program: Any) -> None:
        """Ends the trace after the last step; prints and writes where its time went."""
        if self._steps is None or now != self._span.last:
            return
        jax.block_until_ready(state)
        self._end()
        newest = max(self._folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        trace = jax.profiler.ProfileData.from_file(str(newest))
        lines, window = lines_of(trace, parts_of(program.as_text()))
        text = table(shares(lines, window or (0.0, 0.0)), self._span)
        write_text(self._folder / TABLE, f"{text}\n")
        self._console.print(f"{text}\nThe trace is in {newest.parent}.")

    def _end(self) -> None:
        self._steps.__exit__(None, None, None)
        self._steps = None
        jax.profiler.stop_trace()
