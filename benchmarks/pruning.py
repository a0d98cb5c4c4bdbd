"""What a network loses with its least attended filters, and what training on brings back.

    python -m benchmarks.pruning --pictures DIR --out OUT [--seeds 3]

DIR and OUT are those of `benchmarks.transfer`, whose networks with a gate a filter on GROUP are
taken (trained, if they are not there). First, top-1 by the share of the filters that goes, without
training: those with the least attention, with the smallest folded kernel, or at random. Then SHARE
of them goes by each of these rankings, and the smaller network is trained on, its batch norms and a
new classifier; so is the whole one. What comes out stands in OUT: pruning.md, .png and .json.
"""

import argparse
import json
import pathlib
import statistics

import rich.console

from benchmarks import transfer as benchmark
from otter_jax import mesh as meshes
from otter_jax.report.transfer import plot_pruning, prune_points
from otter_jax.run import directory
from otter_jax.run.console import millions
from otter_jax.transfer import export, network, pruning
from otter_jax.transfer.labelled import Labelled
from otter_jax.transfer.validation import Validation

GROUP, METHOD = "smileys", "per filter, l2"
SHARE = 0.3  # of the filters, before training on
PHASES = "[bf]" * 6


def measure(work: pathlib.Path, workdir: pathlib.Path, settings: dict, seed: int) -> dict:
    """Of a trained network, accuracy by share before training on, and by ranking after it."""
    config = directory.config_of(workdir, needs="phases")
    held_out = Labelled.open(config, "validation")
    trained = network.trained(config, workdir, len(held_out.names))
    model, variables = trained.model, trained.folded()
    attention = network.attention_of(trained.params)
    before = work / "before.json"
    if not before.exists():
        work.mkdir(parents=True, exist_ok=True)
        console = rich.console.Console()
        validate = Validation(config, model, held_out, meshes.make_mesh(1), console)
        points = prune_points(config, model, variables, attention, validate, console)
        directory.write_json(before, points)
    networks = {"nothing": (model, variables)}
    for name, ranked in pruning.rankings(model, attention, variables["params"], seed).items():
        keep = pruning.lowest(ranked, SHARE, model, variables["params"])
        networks[name] = pruning.smaller(model, variables, keep)
    after = {}
    for name, pruned in networks.items():
        folder = work / name
        if not folder.exists():
            export.write(folder, *pruned, config, label_names=list(held_out.names))
        own = {"model.weights": folder, "phases": PHASES, "seed": seed}
        after[name] = benchmark.train(work / f"{name}_trained", "norm", settings | own)["top-1"]
        print(f"seed {seed}, pruned: {name}; trained on, top-1 {after[name]:.3f}", flush=True)
    return {"before": json.loads(before.read_text()), "after": after}


def table(found: list[dict]) -> str:
    """Markdown: before training on by share, mean ± standard deviation of the seeds; and after."""
    cell = benchmark.cell
    lines = [
        "| share pruned | least attention | smallest kernel | at random | values | speed |",
        "|---|---|---|---|---|---|",
    ]
    for points in zip(*(one["before"] for one in found), strict=True):
        cells = [cell([p[key] for p in points]) for key in ("top-1", "magnitude", "random")]
        values = statistics.mean(p["values"] for p in points)
        speed = statistics.mean(p["speed"] for p in points)
        cells += [millions(round(values)), f"{speed:.2f}"]
        lines.append(f"| {points[0]['share']:g} | {' | '.join(cells)} |")
    lines += ["", f"| {SHARE:g} pruned by | top-1 after training on |", "|---|---|"]
    for name in found[0]["after"]:
        lines.append(f"| {name} | {cell([one['after'][name] for one in found])} |")
    return "\n".join(lines)


def main() -> None:
    """Prunes, trains on, and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pictures", required=True, type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=64, help="of the images, pixels")
    options = parser.parse_args()
    out = options.out.expanduser().absolute()
    rates = json.loads((out / "rates.json").read_text())
    tree = out / "trees" / GROUP
    benchmark.make_tree(options.pictures, tree, benchmark.GROUPS[GROUP])
    settings = benchmark.common(out, tree, options.size)
    settings["optim.learning_rate"] = rates["batch norm"]["rate"]
    found = []
    for seed in range(options.seeds):
        run = benchmark.run(out, tree, METHOD, rates[METHOD]["rate"], seed, options.size)
        work = out / "pruning" / str(seed)
        found.append(measure(work, pathlib.Path(run["workdir"]), settings, seed))
    directory.write_json(out / "pruning.json", found)
    (out / "pruning.md").write_text(table(found) + "\n")
    every = zip(*(one["before"] for one in found), strict=True)
    means = [
        {key: statistics.mean(p[key] for p in points) for key in points[0]} for points in every
    ]
    plot_pruning(means).savefig(out / "pruning.png", dpi=110)
    print(table(found))


if __name__ == "__main__":
    main()
