"""Transfer of a pretrained image encoder to labelled pictures, one group of its weights at a time.

    python -m otter_jax.transfer --config configs/transfer.py --workdir runs/birds
    python -m otter_jax.transfer --workdir runs/birds --export birds [--share 0.2]

The second line writes the trained network, its gates folded into its filters and the given share of
the filters pruned, for timm and for this project.
"""

import bisect
import contextlib
import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
from absl import flags
from flax import traverse_util
from jax.sharding import Mesh
from jaxtyping import Array, PyTree, UInt8
from ml_collections import ConfigDict

from otter_jax import (
    build,
    cluster,
    command,
    feed,
    filters,
    gates,
    labelled,
    loop,
    names,
    page,
    phased,
    pruning,
    record,
    weights,
)
from otter_jax import mesh as meshes
from otter_jax.checkpoint import Checkpoints, restore_best
from otter_jax.data import pipeline, store
from otter_jax.errors import UserError

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)  # of the filters, pruned for the report
SHOWN = 512  # pictures at most that the report looks through

EXPORT = flags.DEFINE_string("export", None, "Write a trained network into this new folder.")
SHARE = flags.DEFINE_float("share", 0.0, "With --export: the share of its filters to prune.")
BY = flags.DEFINE_enum(
    "by",
    "attention",
    ["attention", "magnitude"],
    "With --share: which filters go first, those with the least attention or the smallest kernel.",
)


def check(config: ConfigDict, devices: int) -> None:
    """Raises UserError for what cannot be, before any data is read."""
    meshes.check_divides("train.batch_size", config.train.batch_size, devices)
    meshes.check_divides("eval.batch_size", config.eval.batch_size, devices)
    phases = phased.parse(config.phases)
    if config.train.log_every <= 0:
        raise UserError(f"train.log_every={config.train.log_every}: must be more than 0.")
    if config.optim.schedule not in ("constant", "cosine"):
        raise UserError(f'optim.schedule={config.optim.schedule!r}: "constant" or "cosine".')
    gates.check(**config.gates)
    if config.eval.best not in ("", *(f"top-{k}" for k in labelled.KS)):
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


def network(config: ConfigDict, classes: int) -> tuple[nn.Module, PyTree, PyTree]:
    """The module with a classifier, its parameters and batch statistics; with gates of 1.

    What no weights are given for is drawn from config.seed.
    """
    m = config.model
    module, given = build.image_encoder(
        m.weights, arch=m.arch, dtype=m.dtype, mean=m.mean, std=m.std, ema=m.ema
    )
    module = module.clone(num_classes=classes)
    image, key = jnp.zeros((1, 64, 64, 3)), jax.random.key(config.seed)
    variables = build.complete(given, lambda: module.init(key, image, train=False))
    params = variables["params"]
    batch_stats = variables.get("batch_stats", {})
    if batch_stats and not m.weights and config.train.stored_statistics:
        raise UserError(
            "model.weights is empty, so that the batch norms have no statistics to normalise by: "
            "set --config.train.stored_statistics=False, or give weights."
        )
    if config.gates.shape:
        params = params | {"gates": gates.create(params, config.gates.shape)}
    return module, params, batch_stats


def run(config: ConfigDict, workdir: pathlib.Path, *, console: rich.console.Console) -> None:
    """Trains through all phases, from the newest checkpoint in `workdir` if there is one.

    Validates and saves after each phase; at the end writes the report. SIGTERM or Ctrl-C saves
    after the step that is running, and raises Stopped. Raises UserError for what the config or the
    data get wrong, before anything is compiled, and when a number is no longer finite.
    """
    mesh = meshes.make_mesh()
    check(config, mesh.size)
    phases = phased.parse(config.phases)
    train, validation = labelled.open_splits(config)
    ends = phase_ends(len(phases), len(train.labels), config.train.batch_size)
    model, params, batch_stats = network(config, len(train.names))
    cluster.agree(
        lambda: {
            "data.name": cluster.fingerprint((train.labels, validation.labels)),
            "model's weights": cluster.fingerprint((params, batch_stats)),
        }
    )
    build.check_image_size(config.data.image_size, model, config.model.arch)
    state = phased.create_state(params, batch_stats, phases, model)
    whole, rows = meshes.shardings(mesh)
    validate = labelled.Validation(config, model, validation, mesh, console)
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
        batches = closing(feed.train_batches(config, train.source, labels, start))

        def evaluate(now, state):
            measured = validate(state.params, state.batch_stats, stop.check)
            phase = bisect.bisect_left(ends, now)
            result = {"step": now, "epoch": phase + 1, "phase": phases[phase], **measured}
            if cluster.is_first():
                record.write_json(record.results(workdir, now), result)
            shown = ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
            of = f"{phase + 1}/{len(phases)} ({phases[phase]})"
            console.print(f"epoch {of} | validation {shown}")
            return measured

        @functools.cache
        def compiled(groups):
            jitted = jax.jit(
                functools.partial(
                    phased.transfer_step,
                    model=model,
                    groups=groups,
                    learning_rate=schedule,
                    normalise=labelled.normaliser(config),
                    penalty=config.gates.penalty,
                    strength=config.gates.strength,
                    stored_statistics=config.train.stored_statistics,
                ),
                donate_argnums=0, in_shardings=(whole, rows), out_shardings=whole,
            )  # fmt: skip
            shapes = feed.batch_shapes(config, labels, mesh)
            return loop.compiled(jitted, like, shapes, name=f"phase {groups}", console=console)

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
    state: phased.TransferState,
    model: nn.Module,
    train: labelled.Labelled,
    validation: labelled.Labelled,
    ends: list[int],
    mesh: Mesh,
    start: int,
) -> str:
    """What is about to happen, in a few lines, before it costs anything."""
    groups = phased.sizes(state.params, model)
    used = phased.trained(phased.parse(config.phases))
    trained = "; ".join(f"{g} {phased.GROUPS[g]}: {record.millions(groups[g])}" for g in used)
    share = np.bincount(validation.labels).max() / len(validation.labels)
    m = config.model
    lines = [
        f"network     {m.arch}, weights {m.weights or 'random'}",
        f"phases      {config.phases}: an epoch each",
        f"trained     {trained}; of {record.millions(sum(groups.values()))} values in all",
        f"data        {train.source.name}, {len(train.labels):,} images, "
        f"{len(train.names)} classes",
        f"validation  {validation.source.name}, {len(validation.labels):,} images; always the "
        f"commonest class: top-1 {share:.3f}",
        f"batch       {config.train.batch_size} over {mesh.size} device{'s' * (mesh.size > 1)}",
        f"length      {ends[-1]} steps" + (f", going on from step {start}" if start else ""),
    ]
    return "\n".join(lines)


def log_line(now: int, m: loop.Metrics, phases: list[str], ends: list[int]) -> str:
    """What is said of a step."""
    return (
        f"step {now}/{ends[-1]} epoch {m['epoch']:.1f} ({phases[bisect.bisect_left(ends, now)]}) | "
        f"loss {m['loss']:.3f} | accuracy {m['accuracy']:.3f} | {m['images_per_second']:.0f} "
        f"images/s, waiting for data {m['data_wait']:.0%} | left "
        f"{record.duration(m['seconds_left'])}"
    )


def trained(
    config: ConfigDict, workdir: pathlib.Path, classes: int
) -> tuple[nn.Module, PyTree, PyTree, int]:
    """A run's network, its gated parameters and batch statistics, and which step it is.

    The step is the best by eval.best, else the latest. Raises UserError if there is none, or it is
    of another network than the config's.
    """
    m = config.model
    model = build.image_module(m.weights, arch=m.arch, dtype=m.dtype).clone(num_classes=classes)
    like = weights.shapes(model, jnp.zeros((1, 64, 64, 3)))
    if config.gates.shape:
        own = {
            "gates": jax.eval_shape(lambda p: gates.create(p, config.gates.shape), like["params"])
        }
        like = like | {"params": like["params"] | own}
    like = {"batch_stats": {}} | like
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    found, step = restore_best(workdir, like, here, best=config.eval.best)
    return model, found["params"], found["batch_stats"], step


def gates_of(params: PyTree) -> dict[filters.Path, np.ndarray]:
    """The gates A, by the path of their convolution; {} without gates."""
    flat = traverse_util.flatten_dict(params.get("gates", {}))
    return {path[:-1]: np.asarray(gate) for path, gate in flat.items()}


def attention_of(params: PyTree) -> dict[filters.Path, np.ndarray]:
    """The attention to each filter, by the path of its convolution; {} without gates."""
    found = gates.attention(params.get("gates", {}))
    return {path[:-1]: np.asarray(values) for path, values in found.items()}


def report(
    config: ConfigDict,
    workdir: pathlib.Path,
    validate: labelled.Validation,
    *,
    console: rich.console.Console,
) -> None:
    """Writes WORKDIR/report.html with its pictures in report/, and filters.json, the ranking."""
    model, params, batch_stats, _ = trained(config, workdir, len(validate.data.names))
    epochs = [json.loads(path.read_text()) for path in sorted((workdir / "results").glob("*.json"))]
    figures = {"Accuracy": filters.plot_epochs(epochs)}
    groups = phased.sizes(params, model)
    used = phased.trained(phased.parse(config.phases))
    parts: list[tuple[str, Any]] = [
        ("Epochs", epochs),
        ("What was trained", [{"group": phased.GROUPS[g], "values": groups[g]} for g in used]),
    ]
    attention = attention_of(params)
    results: dict[str, Any] = {}
    if attention:
        results["filters.json"] = filters.ranking(attention)
        parts.append(
            ("The filters ranked (all of them: filters.json)", filters.extremes(attention))
        )
        variables = {"params": gates.fold(params), "batch_stats": batch_stats}
        figures["Gates"] = filters.plot_histograms(gates_of(params))
        points = prune_points(config, model, variables, attention, validate, console)
        results["pruning.json"] = points
        if points:
            figures["Pruning"] = filters.plot_pruning(points)
            parts.append(("Pruning", points))
        shown = filters.excite(
            model,
            variables,
            attention,
            some_images(config, validate.data),
            normalise=labelled.normaliser(config),
            batch_size=config.eval.batch_size,
        )
        figures["What excites the most and least attended filters"] = filters.plot_excitement(shown)
    if not cluster.is_first():  # it has helped to measure
        return
    for name, result in results.items():
        record.write_json(workdir / name, result)
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    for number, (heading, figure) in enumerate(figures.items()):
        figure.savefig(folder / f"{number}.png", dpi=150)
        parts.append((heading, pathlib.Path("report") / f"{number}.png"))
    title = f"Transfer of {config.model.arch} to {config.data.name}, {config.phases}"
    record.write_text(workdir / "report.html", page.page(title, parts))


def some_images(config: ConfigDict, data: labelled.Labelled) -> UInt8[np.ndarray, "N S S 3"]:
    """The first pictures of a split, as the network sees them; the same in every process."""
    found = []
    with contextlib.closing(feed.eval_batches(config, data.source, shared=False)) as batches:
        for batch in batches:
            found += list(batch["image"][batch["valid"]])
            if len(found) >= SHOWN:
                break
    return np.stack(found[:SHOWN])


def prune_points(
    config: ConfigDict,
    model: nn.Module,
    variables: PyTree,
    attention: Mapping[filters.Path, np.ndarray],
    validate: labelled.Validation,
    console: rich.console.Console,
) -> list[dict[str, Any]]:
    """Accuracy in validation, size and speed of the network, by the share of its filters pruned.

    Nothing is trained in between. Beside it the accuracy when those with the smallest folded kernel
    go first ("magnitude"), and when as many go at random: what the ranking is worth. `values` are
    those of the smaller network, `speed` how many times as fast it is as the whole one, here and on
    a batch of training.
    """
    if not pruning.norms(model):
        return []
    images = some_images(config, validate.data)[: config.train.batch_size]
    images = labelled.normaliser(config)(images)
    whole = pruning.forward(model, variables, images)

    def measure(keep):
        masked = meshes.put_whole(pruning.mask(variables, keep, model), validate.mesh)
        return validate(masked["params"], masked["batch_stats"])

    by = rankings(model, attention, variables["params"], config.seed)
    points = []
    with record.progress_bar(console) as bar:
        for share in bar.track((0.0, *SHARES), description="pruning"):
            keeps = {
                name: pruning.lowest(ranked, share, model, variables["params"])
                for name, ranked in by.items()
            }
            measured = {name: measure(keep) for name, keep in keeps.items()}
            small, fewer = pruning.smaller(model, variables, keeps["attention"])
            points.append(
                {
                    "share": share,
                    **measured["attention"],
                    "magnitude": measured["magnitude"]["top-1"],
                    "random": measured["random"]["top-1"],
                    "values": sum(leaf.size for leaf in jax.tree.leaves(fewer["params"])),
                    "speed": pruning.faster(whole, pruning.forward(small, fewer, images)),
                }
            )
    return points


def rankings(
    model: nn.Module, attention: filters.Attention, params: PyTree, seed: int
) -> dict[str, filters.Attention]:
    """What filters can be ranked by for pruning: attention, size of the folded kernel, chance."""
    random = np.random.default_rng(seed)
    return {
        "attention": attention,
        "magnitude": pruning.magnitude(model, params),
        "random": {path: random.random(len(values)) for path, values in attention.items()},
    }


def export(
    config: ConfigDict,
    workdir: pathlib.Path,
    out: pathlib.Path,
    *,
    share: float,
    by: str = "attention",
    console: rich.console.Console,
) -> list[pathlib.Path]:
    """Writes the trained network into the new folder `out`, gates folded into its filters.

    out/network is for timm, as large as its architecture; with share > 0, out/smaller is the same
    function with fewer channels, for this project (`--config.model.weights=out/smaller`), and what
    that costs in validation is printed. The filters with the least attention go, or those with the
    smallest folded kernel (by="magnitude"). Returns the folders. Raises UserError if `out` is
    there, or for attention in a network without gates.
    """
    if out.exists():
        raise UserError(f"--export {out} is there already; give a new folder.")
    names_of = store.open_dataset(config.data.dir, config.data.name, config.data.train).classes(
        config.data.label
    )
    model, params, batch_stats, step = trained(config, workdir, len(names_of))
    attention = attention_of(params)
    variables = {"params": gates.fold(params), "batch_stats": batch_stats}
    networks = {"network": (model, variables)}
    if share:
        if by == "attention" and not attention:
            raise UserError(
                "--share ranks filters by their gates, and this network has none; "
                "--by magnitude ranks them by the size of their kernels."
            )
        ranked = rankings(model, attention, variables["params"], config.seed)[by]
        keep = pruning.lowest(ranked, share, model, variables["params"])
        masked = pruning.mask(variables, keep, model)
        networks["network"] = (model, masked)
        networks["smaller"] = pruning.smaller(model, variables, keep)
        mesh = meshes.make_mesh(1)
        held_out = labelled.Labelled.open(config, "validation")
        validate = labelled.Validation(config, model, held_out, mesh, console)
        before, after = (validate(**meshes.put_whole(tree, mesh)) for tree in (variables, masked))
        console.print(
            f"{share:.0%} of the filters pruned by {by}: validation top-1 {before['top-1']:.3f} "
            f"before, {after['top-1']:.3f} after, and nothing trained since. To train on: "
            f"--config.model.weights={out / 'smaller'}"
        )
    scratch = out.with_name(out.name + ".tmp")  # so that `out` is never half an export
    shutil.rmtree(scratch, ignore_errors=True)
    for name, (network_, variables_) in networks.items():
        write(scratch / name, network_, variables_, config, label_names=names_of, step=step)
    scratch.replace(out)
    return [out / name for name in networks]


def write(
    folder: pathlib.Path,
    model: nn.Module,
    variables: PyTree,
    config: ConfigDict,
    *,
    label_names: list[str],
    **more: Any,
) -> None:
    """A network without gates as timm's folder; `more` goes into its config.json."""
    weights.write_timm(
        folder,
        names.export(jax.device_get(variables), names.families(model)[0]),
        model,
        arch=config.model.arch,
        classes=len(label_names),
        size=config.data.image_size,
        resize=config.data.resize,
        mean=config.model.mean,
        std=config.model.std,
        label_names=label_names,
        **more,
    )


def main(_: list[str]) -> None:
    """Runs what the flags ask for."""
    workdir, console = command.workdir(), command.console()
    if EXPORT.value is None:
        if SHARE.value:
            raise UserError("--share goes with --export.")
        config = command.config(saved_in=None, needs="phases")
        command.join(config, workdir)
        command.say_differences(workdir, config, console)
        run(config, workdir, console=console)
        return
    config = command.config(saved_in=workdir, needs="phases")
    out = pathlib.Path(EXPORT.value).expanduser()
    made = export(config, workdir, out, share=SHARE.value, by=BY.value, console=console)
    for folder in made:
        console.print(f"Written: {folder}")


if __name__ == "__main__":
    command.run(main)
