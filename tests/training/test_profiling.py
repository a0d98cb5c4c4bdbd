"""Where the time of traced steps goes: operations by their parts, times that add up, the table."""

import io

import jax
import jax.numpy as jnp
import pytest
import rich.console

from otter_jax.commands import flags, train
from otter_jax.errors import UserError
from otter_jax.training import profiling
from otter_jax.training.profiling import PAUSED, WAITING, Span

PROGRAM = """HloModule jit_train_step, is_scheduled=true

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %exp = f32[8]{0} exponential(%p), metadata={op_name="jit(train_step)/teacher/embedding/exp"}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0), metadata={op_name="state.params['img']"}
  %dot.1 = f32[8]{0} dot(%x, %x), metadata={op_name="jit(train_step)/jvp(embedding)/img/dot"}
  %copy.7 = f32[8]{0} copy(%dot.1)
  %dot.2 = f32[8]{0} dot(%x, %x), metadata={op_name="jit(train_step)/transpose(jvp(loss))/dot"}
  %fusion.3 = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused
  %sort = f32[8]{0} sort(%x), metadata={op_name="jit(train_step)/targets/while/body/sort"}
  %log = f32[8]{0} log(%x), metadata={op_name="jit(train_step)/jvp(loss)/log"}
  %t = f32[8]{0} transpose(%x), metadata={op_name="jit(train_step)/jvp(embedding)/transpose"}
  ROOT %add.9 = f32[8]{0} add(%x, %x), metadata={op_name="jit(train_step)/update/add"}
}
"""


def said():
    return rich.console.Console(file=io.StringIO(), width=200)


def test_an_operation_belongs_to_the_part_that_named_it_or_that_it_comes_from():
    found = profiling.parts_of(PROGRAM)
    assert {name: part for name, part in found.items() if name not in ("p", "exp")} == {
        "x": "rest",
        "dot.1": "embedding",
        "copy.7": "embedding",
        "dot.2": "backward",
        "fusion.3": "teacher",
        "sort": "targets",
        "log": "loss",
        "t": "embedding",
        "add.9": "update",
    }


def test_times_add_up_to_the_window():
    """Nested events count once, what runs at once shares, and a pause is left out."""
    threads = [
        [(0.0, 40.0, "embedding"), (10.0, 20.0, "loss"), (40.0, 50.0, "update")],
        [(30.0, 40.0, "teacher"), (95.0, 120.0, "update")],
        [(45.0, 70.0, WAITING), (80.0, 90.0, PAUSED), (60.0, 65.0, WAITING)],
    ]
    found = profiling.shares(threads, (0.0, 100.0))
    assert found == {
        "embedding": 25,
        "loss": 10,
        "teacher": 5,
        "update": 15,
        "input wait": 20,
        "rest": 15,
    }


class Named:
    """An event, a line or a plane of a trace."""

    def __init__(self, name, **fields):
        self.name = name
        self.__dict__.update(fields)


def event(name, start, length, **stats):
    return Named(name, start_ns=float(start), duration_ns=float(length), stats=list(stats.items()))


def test_of_gpus_the_first_is_looked_at_and_kernels_of_graphs_are_known_by_name():
    host = Named("python", events=[event(profiling.STEPS, 0, 100), event(WAITING, 50, 20)])
    stream = [
        event("ampere_gemm", 10, 30, hlo_op="dot.1"),
        event("fusion_3", 40, 10),
        event("MemcpyD2D", 70, 10),
    ]
    other = [event("ampere_gemm", 0, 100, hlo_op="add.9")]
    trace = Named(
        "",
        planes=[
            Named("/device:GPU:1", lines=[Named("Stream #7", events=other)]),
            Named("/device:GPU:0", lines=[Named("Stream #7", events=stream)]),
            Named("/host:CPU", lines=[host]),
        ],
    )
    lines, window = profiling.lines_of(trace, profiling.parts_of(PROGRAM))
    assert profiling.shares(lines, window) == {
        "embedding": 30,
        "teacher": 10,
        "input wait": 20,
        "rest": 40,
    }


def test_the_table_has_ten_lines():
    text = profiling.table({"embedding": 3e9, "rest": 1e9}, Span(10, 13))
    lines = text.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("steps 10 to 13")
    assert lines[1].split() == ["embedding", "0.7500", "75.0"]
    assert lines[-1].split() == ["together", "1.0000", "100.0"]


def test_steps_of_a_loop_are_traced(tmp_path):
    @jax.jit
    def step(x):
        with jax.named_scope("embedding"):
            x = x @ x
        with jax.named_scope("update"):
            return jnp.tanh(x)

    console, x = said(), jnp.ones((500, 500))
    program = step.lower(x).compile()
    with profiling.Profile(Span(2, 3), tmp_path, console) as profile:
        for now in range(1, 5):
            profile.before(now, x)
            x = program(x)
            profile.after(now, x, program)
    text = (tmp_path / profiling.FOLDER / profiling.TABLE).read_text()
    assert text in console.file.getvalue()
    rows = {line.split()[0]: float(line.split()[-1]) for line in text.splitlines()[1:]}
    assert rows["embedding"] > 0
    assert rows["update"] > 0
    assert rows["teacher"] == rows["backward"] == 0
    assert list((tmp_path / profiling.FOLDER).rglob("*.trace.json.gz"))  # for Perfetto


def test_a_loop_that_ends_early_ends_the_trace(tmp_path):
    console = said()
    with profiling.Profile(Span(1, 3), tmp_path, console) as profile:
        profile.before(1, jnp.ones(()))
        profile.after(1, jnp.ones(()), None)
    assert "before its last step" in console.file.getvalue()
    with jax.profiler.trace(tmp_path / "another"):  # would fail within the first
        pass


@pytest.mark.parametrize("text", ["x", "15:10", "0:3", "10", "1:2:3", "-1:2", ""])
def test_what_is_no_span_of_steps_is_told_with_an_example(text):
    argv = ["--config", "quickstart", "--workdir", "runs/a", f"--profile={text}"]
    with pytest.raises(UserError, match="first and the last step to trace, such as 10:15"):
        flags.parse(train.parser(), argv)


def test_steps_beyond_the_end_are_refused_with_the_last_ones():
    with pytest.raises(UserError, match="the run has 12 steps; .* --profile 7:12"):
        profiling.check(Span(10, 15), 12, 0, said())


@pytest.mark.parametrize(
    ("start", "left", "words"),
    [(0, (10, 15), ""), (12, (13, 15), "13 to 15 are"), (15, None, "after step 15, so nothing")],
)
def test_a_run_that_goes_on_says_which_steps_are_left_to_trace(start, left, words):
    console = said()
    assert profiling.check(Span(10, 15), 20, start, console) == left
    assert words in console.file.getvalue()
    assert bool(words) == bool(console.file.getvalue())
