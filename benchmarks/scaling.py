"""What the objective costs a device: bytes held and bytes sent, by formula and as compiled.

    python -m benchmarks.scaling [--out docs/scaling.png]
    JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 python -m benchmarks.scaling --target benchmarks/h100.txtpb

Compiled, never run, is what a step of OTTER does between encoders and optimiser: the teacher's
plans and targets, the loss, its gradient with respect to the student's embeddings. By default XLA's
compiler for CPUs does that; with --target its compiler for GPUs, for the GPU that the file
describes, which need not be there (pip install -e ".[cuda12]"). What a program sends is counted as
rings send it: a device passes on each piece but one of what is gathered or scattered, and sums are
scattered, then gathered.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from matplotlib.figure import Figure

from benchmarks.hlo import collectives
from otter_jax import mesh as meshes
from otter_jax import panels, step
from otter_jax.models.bert import Bert, BertConfig
from otter_jax.models.resnet import RESNETS, ResNet
from otter_jax.models.towers import Towers
from otter_jax.objective import METHODS
from otter_jax.run.model import initialise
from otter_jax.training import compiling

D = 768
VOCABULARY = 31_090  # of DeCLUTR-Sci-base
OTTER = METHODS["otter"]
BATCHES = (512, 4096, 32768, 131072)
PANELS = 3  # held at once: of the affinity, of cosines, and of what is made of these
BY = "formula", "compiled", "released"

# By formula -------------------------------------------------------------------------------------


def held(B: float, P: int, form: str = "dense") -> float:
    """Bytes on one of P devices: rows of kernels, plans and cosines, and the embeddings.

    The embeddings of the batch are the student's, their gradient, and for a while the teacher's;
    by panels, half of the student's suffices, and a few panels of rows stand for the matrices.
    """
    b = B / P
    if form == "dense":
        return 4 * (6 * b * B + 3 * 2 * B * D + 3 * 2 * b * D)
    kept = b * B if form == "cached" else 0
    return 4 * (kept + PANELS * min(b * B, panels.PANEL_GPU) + 4 * B * D + 3 * 2 * b * D)


def held_released(B: float, P: int) -> float:
    """The same of the released code, in the transport of the second direction.

    Whole: both costs, the first plan, and two steps on the way to the second; by rows: four
    similarities, the diagonal, two without it, the student's cosines and their log-softmaxes.
    """
    b = B / P
    return 4 * (5 * B * B + 11 * b * B + 2 * B * D + 2 * 2 * b * D)


def sent(B: float, P: int, form: str = "dense") -> float:
    """Bytes that one of P devices sends a step, but for a dozen scalars.

    By panels the student's images stay where they are. Of vectors there are two an iteration, the
    sums of the texts' targets, and for both temperatures the columns' maxima and sums.
    """
    embeddings = 3 * 2 * B * D  # the teacher's, the student's, the gradient of the student's
    vectors = 2 * (OTTER.num_iters + 1)  # two more for the first maximum
    if form != "dense":
        embeddings, vectors = 2 * 2 * B * D, 2 * OTTER.num_iters + 1 + 2 * 2
    return 4 * (embeddings + 2 * B * vectors) * (P - 1) / P  # a sum is sent twice


def sent_released(B: float, P: int) -> float:
    """The same of the released code, which gathers both costs; its gradient stays where it is."""
    return 4 * (2 * 2 * B * D + 2 * B * B) * (P - 1) / P


def sent_of_encoders(params: int, channels: int, P: int) -> tuple[float, float]:
    """Bytes that one of P devices sends a step for gradients, and for sums of batch norm.

    Two sums a channel: forwards of student and teacher, backwards of the student.
    """
    twice = 2 * (P - 1) / P  # a sum is scattered, then gathered
    return 4 * params * twice, 4 * 6 * channels * twice


# As compiled ------------------------------------------------------------------------------------


def objective_part(mesh: Mesh, form: str = "dense") -> Any:
    """OTTER's metrics, and the gradient of its loss, of the embeddings of teacher and student."""

    def part(teacher, student, log_scale):
        targets, numbers = step.teach(OTTER, *teacher, mesh=mesh, form=form)

        def of_student(student, log_scale):
            return step.matching_loss(OTTER, *student, targets, log_scale, mesh=mesh, form=form)

        gradient = jax.value_and_grad(of_student, argnums=(0, 1), has_aux=True)
        (total, terms), (student, log_scale) = gradient(student, log_scale)
        return student, (total, terms, log_scale, numbers)

    copies, pieces = meshes.shardings(mesh)
    shardings = {"in_shardings": (pieces, pieces, copies), "out_shardings": (pieces, copies)}
    return jax.jit(part, **shardings)


def compiled(B: int, devices: Sequence[jax.Device], form: str = "dense") -> Any:
    """The program for a batch of B on these devices."""
    mesh = jax.make_mesh((len(devices),), (meshes.AXIS,), (AxisType.Auto,), devices=devices)
    one = jax.ShapeDtypeStruct((), jnp.float32)
    embeddings = (jax.ShapeDtypeStruct((B, D), jnp.float32),) * 2
    arguments = embeddings, embeddings, {"pairs": one, "teacher": one}
    return objective_part(mesh, form).lower(*arguments).compile()


def devices_of(P: int, target: str) -> Sequence[jax.Device]:
    """P virtual CPU devices; or P of the GPU that `target` describes, eight a machine."""
    if not target:
        return jax.devices("cpu")[:P]
    shape = f"1x{-(-P // 8)}x{min(P, 8)}"
    return topologies.get_topology_desc("", "cuda", topology=shape, target_config=target).devices


def towers(dtype: Any = jnp.float32) -> Towers:
    """ResNet-50 with BERT-base, CC3M's."""
    return Towers(
        img=ResNet(**RESNETS["resnet50"], dtype=dtype),
        txt=Bert(BertConfig(vocab_size=VOCABULARY), dtype=dtype),
        dim=D,
        txt_width=D,
        mean=(127.0,) * 3,
        std=(64.0,) * 3,
    )


def sizes() -> tuple[int, int]:
    """Parameters of these towers, and channels that batch norm normalises."""
    like = jax.eval_shape(lambda: initialise(towers(), jax.random.key(0)))
    count = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in like.items()}
    return count["params"], count["batch_stats"] // 2  # a mean and a variance each


# The page ---------------------------------------------------------------------------------------


def amount(number: float) -> str:
    """Bytes, in three digits or so."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            digits = max(0, 2 - int(np.log10(number / size)))
            return f"{number / size:,.{digits}f} {unit}"
    return f"{number / 1e3:.0f} kB"


def plot(measured: dict[tuple[int, int], tuple[int, float]], out: pathlib.Path) -> None:
    """Bytes held and sent over B: formulas as lines, compiled programs as points."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    B = np.geomspace(256, 524288, 200)
    colours = {"released": "tab:red", "here": "tab:blue"}
    titles = "held by a device", "sent by a device, a step"
    formulas = {"released": (held_released, sent_released), "here": (held, sent)}
    looks = dict(zip(sorted({P for _, P in measured}), ("-o", "--s", ":^"), strict=False))
    for i, (ax, title) in enumerate(zip(axes, titles, strict=True)):
        for who, both in formulas.items():
            for P, look in looks.items():
                label = f"{who}, {P} GPUs"
                ax.plot(B, both[i](B, P), look[:-1], color=colours[who], label=label)
        for P, look in looks.items():
            points = {size: both[i] for (size, devices), both in measured.items() if devices == P}
            colour, label = colours["here"], f"as compiled, {P} GPUs"
            ax.plot([*points], [*points.values()], look[-1], color=colour, mfc="white", label=label)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_ylim(3e5, 3e13)
        ticks = [2**n for n in range(9, 20, 2)]
        ax.set_xticks(ticks, [f"{n // 1024}k" if n >= 1024 else f"{n}" for n in ticks])
        ax.set_yticks([1e6, 1e9, 1e12], ["1 MB", "1 GB", "1 TB"])
        ax.set_yticks([10**n for n in range(6, 14)], [], minor=True)
        ax.set_xlabel("batch size")
        ax.set_title(f"OTTER's objective: bytes {title}", fontsize=11)
        ax.grid(alpha=0.3, which="both")
    for memory in (80, 141):
        axes[0].axhline(memory * 1e9, color="grey", lw=0.8)
        axes[0].text(260, memory * 1.1e9, f"{memory} GB", color="grey", fontsize=8)
    axes[1].legend(frameon=False, loc="upper left")
    figure.savefig(out, dpi=150)


def main() -> None:
    """Prints the table, draws the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--form", choices=panels.FORMS, default="dense")
    parser.add_argument("--devices", type=int, nargs="+", default=(8, 64))
    parser.add_argument("--target", type=pathlib.Path, help="a GPU to compile for")
    parser.add_argument("--out", type=pathlib.Path, help="a plot")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(options.devices))
    target = options.target.read_text() if options.target else ""
    columns = "devices", "B", *(f"{what} {by}" for what in ("held:", "sent:") for by in BY)
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    measured = {}
    for P in options.devices:
        devices = devices_of(P, target)
        for B in options.batch:
            program = compiled(B, devices, options.form)
            traffic = sum(c.sent(P) for c in collectives(program.as_text()))
            measured[B, P] = compiling.need_of(program).total, traffic
            numbers = (
                (held(B, P, options.form), measured[B, P][0], held_released(B, P)),
                (sent(B, P, options.form), traffic, sent_released(B, P)),
            )
            cells = f"{P}", f"{B:,}", *(amount(n) for three in numbers for n in three)
            print(f"| {' | '.join(cells)} |", flush=True)
    params, channels = sizes()
    print(f"\n{params:,} parameters, batch norm of {channels:,} channels; sent a step:")
    for P in options.devices:
        gradients, sums = (amount(n) for n in sent_of_encoders(params, channels, P))
        print(f"{P} devices: {gradients} for gradients, {sums} for batch norm")
    if options.out:
        plot(measured, options.out)


if __name__ == "__main__":
    main()
