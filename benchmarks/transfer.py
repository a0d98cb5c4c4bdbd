"""Filter attention beside its baselines: learn seven artists' drawings, name an eighth's.

    python -m benchmarks.transfer --pictures DIR --out runs/transfer [--seeds 3]

DIR holds web-dataset tars train_emoji-*.tar and eval_seen-*.tar whose JSON gives "group", "concept"
and "style". Each group is a fine-grained set: a class a concept, its training pictures from seven
artists and its one validation picture from another. Every method has as many epochs and the same
batches; its learning rate is chosen among RATES on the first group with one of the seven artists
(`--tuned-on`) held out for that, by `--tune`. Runs that are done are not done again. What comes out
is printed, and stands in OUT: table.md, transfer.png, results.json.
"""

import argparse
import collections
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tarfile

from matplotlib.figure import Figure

from otter_jax.run import directory
from otter_jax.run.console import millions
from otter_jax.transfer import network, phases

REPO = pathlib.Path(__file__).parent.parent
GROUPS = {"smileys": 0, "animals": 3, "travel": 5, "objects": 7}  # Unicode's groups of emoji
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
LOWER = (1e-4, 3e-4, 1e-3, 3e-3)  # where kernels move, too
METHODS = {  # name: (variant of configs/transfer.py, what is set besides)
    "from scratch": ("scratch", {}),
    "classifier only": ("classifier", {}),
    "full fine-tuning": ("full", {}),
    "batch norm": ("norm", {}),
    "per filter, l2": ("filter", {}),
    "per filter, l1": ("filter", {"gates.penalty": "l1"}),
    "per slice, l2": ("slice", {}),
    "per slice, l1": ("slice", {"gates.penalty": "l1"}),
}

# The other penalty has the rate of the first: it hardly changes a step.
SHARED = {"per filter, l1": "per filter, l2", "per slice, l1": "per slice, l2"}


def make_tree(pictures: pathlib.Path, root: pathlib.Path, group: int, held_out: str = "") -> None:
    """Writes ROOT/{train,validation}/CONCEPT/KEY.webp of a group.

    Validated is on the eighth artist; or, to choose settings, on `held_out` of the seven.
    """
    if root.exists():
        return
    sides = collections.defaultdict(lambda: collections.defaultdict(list))
    for tar in sorted(pictures.glob("train_emoji-*.tar")) + sorted(
        pictures.glob("eval_seen-*.tar")
    ):
        with tarfile.open(tar) as archive:
            files = {member.name: archive.extractfile(member).read() for member in archive}
        for name in files:
            if name.endswith(".json"):
                about, key = json.loads(files[name]), name.removesuffix(".json")
                eighth = tar.name.startswith("eval_seen")
                if about["group"] != group or (held_out and eighth):
                    continue
                validated = about["style"] == held_out if held_out else eighth
                side = sides["validation" if validated else "train"]
                side[about["concept"].replace("/", "_")].append((key, files[key + ".webp"]))
    both = sides["train"].keys() & sides["validation"].keys()
    scratch = root.with_name(root.name + ".tmp")
    for side, classes in sides.items():
        for concept in both:
            folder = scratch / side / concept
            folder.mkdir(parents=True, exist_ok=True)
            for key, content in classes[concept]:
                (folder / f"{key}.webp").write_bytes(content)
    scratch.replace(root)


def common(out: pathlib.Path, tree: pathlib.Path, size: int) -> dict:
    """What all runs on a tree set in the config."""
    return {
        "data.name": tree.name,
        "data.folder": tree,
        "data.dir": out / "sets",
        "data.image_size": size,
        "data.resize": size * 9 // 8,
        "report": False,
    }


def train(workdir: pathlib.Path, variant: str, settings: dict) -> dict:
    """Runs the program once, unless it has; its last validation, and how fast it was."""
    done = workdir / "done"
    if not done.exists():
        command = [sys.executable, "-m", "otter_jax", "transfer", "--workdir", str(workdir)]
        command += ["--config", f"configs/transfer.py:{variant}"]
        command += [f"--config.{key}={value}" for key, value in settings.items()]
        workdir.mkdir(parents=True, exist_ok=True)
        with open(workdir / "log", "a") as log:
            subprocess.run(command, cwd=REPO, check=True, stdout=log, stderr=log)
        done.touch()
    last = json.loads(sorted((workdir / "results").glob("*.json"))[-1].read_text())
    return last | {"images_per_second": speed(workdir), "workdir": str(workdir)}


def run(
    out: pathlib.Path, tree: pathlib.Path, method: str, rate: float, seed: int, size: int
) -> dict:
    """`train` of a method, in a directory of its own."""
    variant, own = METHODS[method]
    name = method.replace(", ", "_").replace(" ", "_")
    settings = common(out, tree, size) | {"seed": seed, "optim.learning_rate": rate} | own
    return train(out / tree.name / name / f"{rate:g}_{seed}", variant, settings)


def speed(workdir: pathlib.Path) -> float:
    """Images a second in the phase that a run has most of; the fastest stretch between two logs.

    What else a machine does only slows. Stretches that reach into another phase do not count.
    """
    config = directory.config_of(workdir, needs="phases")
    parsed = phases.parse(config.phases)
    ((own, _),) = collections.Counter(parsed).most_common(1)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    speeds = []
    for row in rows:
        if "images_per_second" in row:
            end = row["epoch"]
            start = end * (row["step"] - config.train.log_every) / row["step"]
            if set(parsed[int(start) : math.ceil(end)]) == {own}:
                speeds.append(row["images_per_second"])
    return max(speeds)


def trainable(workdir: pathlib.Path) -> int:
    """How many values a run ever trains."""
    config = directory.config_of(workdir, needs="phases")
    classes = len(list((pathlib.Path(config.data.folder) / "train").iterdir()))
    fresh = network.fresh(config, classes)
    groups = phases.sizes(fresh.params, fresh.model)
    return sum(groups[g] for g in phases.groups_of(phases.parse(config.phases)))


def cell(values: list[float]) -> str:
    """Mean ± standard deviation of shares, in per cent."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * spread:.1f}"


def table(rows: list[dict]) -> str:
    """Markdown: a line a method, mean ± standard deviation over seeds of each group's accuracy."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    by = {(row["group"], row["method"]): row for row in rows}
    methods = [m for m in METHODS if all((group, m) in by for group in groups)]

    def fastest(method):
        return max(
            run["images_per_second"] for group in groups for run in by[group, method]["runs"]
        )

    best = max(map(fastest, methods))
    lines = [
        f"| method | rate | {' | '.join(groups)} | mean top-1 | mean top-3 | trained values | "
        "time an epoch (fastest: 1) |",
        "|---|---|" + "---|" * (len(groups) + 4),
    ]
    for method in methods:
        cells, means = [], {"top-1": [], "top-3": []}
        for group in groups:
            runs = by[group, method]["runs"]
            for name, found in means.items():
                found.append(statistics.mean(run[name] for run in runs))
            cells.append(cell([run["top-1"] for run in runs]))
        cells += [f"{100 * statistics.mean(found):.1f}" for found in means.values()]
        cells.append(millions(by[groups[0], method]["trainable"]))
        cells.append(f"{best / fastest(method):.1f}")
        lines.append(f"| {method} | {by[groups[0], method]['rate']:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: list[dict]) -> Figure:
    """A panel a group, a line a method, a point a seed."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    there = [name for name in METHODS if any(row["method"] == name for row in rows)]
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for panel, group in zip(panels, groups, strict=True):
        for row in (row for row in rows if row["group"] == group):
            place = -there.index(row["method"])
            found = [100 * run["top-1"] for run in row["runs"]]
            panel.plot([statistics.mean(found)], [place], "|", color="black", markersize=14)
            panel.plot(found, [place] * len(found), "o", alpha=0.6, markersize=5)
        panel.set(title=f"{group}, {row['classes']} classes", xlabel="top-1, %", xlim=(0, None))
        panel.grid(axis="x", linewidth=0.3)
    panels[0].set_yticks([-place for place in range(len(there))], there)
    return figure


def main() -> None:
    """Tunes, trains, and prints the table of what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pictures", required=True, type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tuned-on", default="noto", help="the artist held out to choose rates")
    parser.add_argument("--tune", action="store_true", help="choose the rates, and stop")
    parser.add_argument("--size", type=int, default=64, help="of the images, pixels")
    options = parser.parse_args()
    out = options.out.expanduser().absolute()
    rates_file = out / "rates.json"
    rates = json.loads(rates_file.read_text()) if rates_file.exists() else {}
    if options.tune:
        tree = out / "trees" / f"{options.groups[0]}_tuning"
        make_tree(options.pictures, tree, GROUPS[options.groups[0]], options.tuned_on)
        for method in (method for method in options.methods if method not in SHARED):
            found = {}
            for rate in LOWER if METHODS[method][0] in ("full", "scratch") else RATES:
                found[rate] = run(out, tree, method, rate, 0, options.size)["top-1"]
                print(f"{method}, rate {rate:g}: top-1 {found[rate]:.3f}", flush=True)
            # Of equal ones the smallest: it moves least away from what was given.
            rates[method] = {"rate": max(found, key=found.get), "tried": found}
            rates_file.write_text(json.dumps(rates, indent=2))
        return
    rows = []
    for group in options.groups:
        tree = out / "trees" / group
        make_tree(options.pictures, tree, GROUPS[group])
        classes = len(list((tree / "train").iterdir()))
        for method in options.methods:
            rate = rates[SHARED.get(method, method)]["rate"]
            runs = []
            for seed in range(options.seeds):
                runs.append(run(out, tree, method, rate, seed, options.size))
                print(f"{group}, {method}, seed {seed}: top-1 {runs[-1]['top-1']:.3f}", flush=True)
            about = {"group": group, "method": method, "rate": rate, "classes": classes}
            about["trainable"] = trainable(pathlib.Path(runs[0]["workdir"]))
            rows.append(about | {"runs": runs})
    (out / "results.json").write_text(json.dumps(rows, indent=2))
    (out / "table.md").write_text(table(rows) + "\n")
    plot(rows).savefig(out / "transfer.png", dpi=110)
    print(table(rows))


if __name__ == "__main__":
    main()
