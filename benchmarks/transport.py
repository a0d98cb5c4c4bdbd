"""Transport on a CPU: time and memory here, of the released algorithm, and of POT and ott-jax.

    python -m benchmarks.transport [--peers PYTHON] [--batch 4096 8192] [--rounds 3]

--peers is an interpreter with torch, POT and ott-jax; without it, this one. The first table is of
Sinkhorn alone, both directions, from one matrix of costs; the second of transport, loss and its
gradients from embeddings (D = 768). All in float32. Every measurement is a process of its own, and
the contenders take turns. Seconds are those of the process on all cores, medians over the rounds;
memory is the largest that is resident, over what was before.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

import numpy as np

D, EPSILON, ITERATIONS = 768, 0.15, 5
SINKHORN = "here", "POT", "ott-jax", "released"
WHOLE = "dense", "cached", "streaming", "released"
THERE = "POT", "ott-jax", "released"  # what needs the peers' interpreter


def embeddings(B: int) -> np.ndarray:
    """Of student and teacher, images and texts: random, of unit length, float32."""
    x = np.random.default_rng(0).standard_normal((4, B, D), dtype=np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def affinity_of(B: int) -> np.ndarray:
    """The teacher's affinity of images with texts, without its diagonal."""
    _, _, img, txt = embeddings(B)
    found = img @ img.T + txt @ txt.T + img @ txt.T
    np.fill_diagonal(found, -200)
    return found


# The contenders: each returns a function to measure, and what to say of its result ----------------


def sinkhorn_here(B):
    """Finds both vectors from the kernel, which takes the place of the costs."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from otter_jax import affinity as transport
    from otter_jax import mesh as meshes
    from otter_jax import panels
    from otter_jax.objective import METHODS

    otter = dataclasses.replace(METHODS["otter"], epsilon=EPSILON, num_iters=ITERATIONS)
    size = panels.rows_per_panel(B, meshes.make_mesh(1))
    kernel_of = jax.jit(lambda S: jnp.exp(S / EPSILON), donate_argnums=0)

    @jax.jit
    def solve(kernel):
        none = jnp.zeros((B, 1))
        matching = {"img": none, "txt": none, "kept": kernel.reshape(-1, size, B)}
        return transport.solve(transport.Affinity(otter, matching, size, None))[0]

    costs = affinity_of(B)
    held = [kernel_of(jnp.array(costs))]
    jax.block_until_ready(solve(held[0]))

    def prepare():
        held[:] = [jax.block_until_ready(jnp.array(costs))]

    def work():
        held[0] = kernel_of(held[0])
        held.append(jax.block_until_ready(solve(held[0])))

    def say():
        """Largest error of a target over its largest entry, against float64."""
        kernel = np.exp(costs.astype(np.float64) / EPSILON)
        columns = np.ones(B)
        for _ in range(ITERATIONS):
            columns = 1 / ((1 / (kernel @ columns)) @ kernel)
        exact = kernel * columns
        exact /= exact.sum(1, keepdims=True)
        ours = np.asarray(held[0]) * np.asarray(held[1]["image_columns"])
        ours /= ours.sum(1, keepdims=True)
        return f"error {np.abs(ours - exact).max() / exact.max():.0e} of the largest entry"

    return prepare, work, say


def sinkhorn_pot(B):
    """POT's ot.sinkhorn, for NumPy."""
    import ot

    cost, marginal = -affinity_of(B), np.full(B, 1 / B, np.float32)
    cost[np.diag_indices(B)] = 20  # as good as removed; it refuses what underflows
    options = {"reg": EPSILON, "numItermax": ITERATIONS, "stopThr": 0, "warn": False}

    def work():
        for c in (cost, cost.T):
            ot.sinkhorn(marginal, marginal, c, **options)

    return None, work, lambda: f"POT {ot.__version__}"


def sinkhorn_ott(B):
    """ott-jax's Sinkhorn on a matrix of costs, by scalings (its faster mode here)."""
    import jax
    import jax.numpy as jnp
    import ott
    from ott.geometry.geometry import Geometry
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.sinkhorn import Sinkhorn

    bound = {"min_iterations": ITERATIONS, "max_iterations": ITERATIONS}
    solver = Sinkhorn(lse_mode=False, inner_iterations=ITERATIONS, **bound)

    @jax.jit
    def both(cost):
        geometries = [Geometry(cost_matrix=c, epsilon=EPSILON) for c in (cost, cost.T)]
        return [solver(LinearProblem(g)).matrix for g in geometries]

    costs = -affinity_of(B)
    costs[np.diag_indices(B)] = 8
    cost = jnp.array(costs)
    jax.block_until_ready(both(cost))
    return None, lambda: jax.block_until_ready(both(cost)), lambda: f"ott-jax {ott.__version__}"


def sinkhorn_released(B):
    """The released algorithm."""
    import torch

    from benchmarks import released

    cost = torch.from_numpy(-affinity_of(B))

    def work():
        for c in (cost, cost.T):
            plan = released.sinkhorn(c, EPSILON, ITERATIONS)
            plan / plan.sum(1, keepdim=True)

    return None, work, lambda: f"torch {torch.__version__}"


def whole_here(B, form):
    """Targets, loss and gradients in one form."""
    import jax
    import jax.numpy as jnp

    from otter_jax import mesh as meshes
    from otter_jax import step
    from otter_jax.objective import METHODS

    otter, where = METHODS["otter"], {"mesh": meshes.make_mesh(1), "form": form}

    @jax.jit
    def part(x, y, v, t, scales):
        targets, numbers = step.teach(otter, v, t, **where)

        def loss(x, y, scales):
            return step.matching_loss(otter, x, y, targets, scales, **where)

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(x, y, scales), numbers

    x = [jnp.array(e) for e in embeddings(B)]
    scales = {"pairs": jnp.float32(3.9), "teacher": jnp.float32(3.9)}
    program = part.lower(*x, scales).compile()
    found = [None]

    def work():
        found[0] = jax.block_until_ready(program(*x, scales))

    temporary = program.memory_analysis().temp_size_in_bytes / 1e6

    def say():
        return f"loss {float(found[0][0][0][0]):.5f}; XLA: {temporary:,.0f} MB of temporaries"

    return None, work, say


def whole_released(B):
    """The same by the released algorithm and autograd."""
    import torch

    from benchmarks import released

    x, y, v, t = map(torch.from_numpy, embeddings(B))
    leaves = [x.requires_grad_(), y.requires_grad_()]
    leaves += [torch.tensor(3.9, requires_grad=True) for _ in range(2)]
    found = [None]

    def work():
        loss = released.loss(x, y, released.teach(v, t), leaves[2:])
        torch.autograd.grad(loss, leaves)
        found[0] = loss.item()

    return None, work, lambda: f"loss {found[0]:.5f}; torch {torch.__version__}"


# Measuring --------------------------------------------------------------------------------------


def resident(what: str) -> float:
    """Megabytes of this process: "VmRSS" now, "VmHWM" at most."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(what)) * 1024 / 1e6


def measure(part: str, who: str, B: int) -> dict:
    """CPU and wall seconds, and memory, of one contender in this process."""
    if part == "sinkhorn":
        known = dict(
            zip(
                SINKHORN,
                (sinkhorn_here, sinkhorn_pot, sinkhorn_ott, sinkhorn_released),
                strict=True,
            )
        )
        prepare, work, say = known[who](B)
    else:
        prepare, work, say = whole_released(B) if who == "released" else whole_here(B, who)
    best = {}
    for _ in range(3):
        if prepare:
            prepare()
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the largest begins anew
        before, cpu, wall = resident("VmRSS"), time.process_time(), time.perf_counter()
        work()
        now = {
            "cpu": time.process_time() - cpu,
            "wall": time.perf_counter() - wall,
            "MB": resident("VmHWM") - before,
        }
        # The first call warms up; of the others the quicker, and the memory of the first.
        best = {k: min(best.get(k, v), v) for k, v in now.items()} | {
            "MB": max(best.get("MB", 0), now["MB"])
        }
    return best | {"note": say()}


def run(python: str, part: str, who: str, B: int) -> dict:
    """`measure`, in a process of its own."""
    command = [python, "-m", "benchmarks.transport", "--one", part, who, str(B)]
    found = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in found.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {"failed": found.stderr[-300:]}


def table(part: str, contenders: tuple[str, ...], B: int, rounds: int, peers: str) -> None:
    """Prints the rows of one part and batch size."""
    found: dict[str, list[dict]] = {who: [] for who in contenders}
    for _ in range(rounds):
        for who in contenders:
            found[who].append(run(peers if who in THERE else sys.executable, part, who, B))
    base = None
    for who in reversed(contenders):  # the released algorithm is the last
        good = [each for each in found[who] if "failed" not in each]
        if not good:
            print(f"| {part} | {B:,} | {who} | failed: {found[who][0]['failed'][-120:]!r} |")
            continue
        cpu, wall, held = (statistics.median(x[k] for x in good) for k in ("cpu", "wall", "MB"))
        base = base or (cpu, held)
        cells = f"{cpu:.3f}", f"{cpu / base[0]:.2f}", f"{wall:.2f}", f"{held:,.0f}"
        share = f"{held / base[1]:.2f}"
        print(f"| {part} | {B:,} | {who} | {' | '.join(cells)} | {share} | {good[0]['note']} |")
        sys.stdout.flush()


def main() -> None:
    """Prints machine, load and both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default=sys.executable, help="interpreter with torch, POT, ott")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        part, who, B = options.one
        print(json.dumps(measure(part, who, int(B))))
        return
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{platform.processor() or platform.machine()}, {cores} cores, load {load:.1f} before\n")
    print("| part | B | | CPU s | of released | wall s | MB | of released | |")
    print("|---" * 9 + "|")
    table("sinkhorn", SINKHORN, options.batch[0], options.rounds, options.peers)
    for B in options.batch:
        table("whole", WHOLE, B, options.rounds, options.peers)
    print(f"\nload {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
