"""A trained network as a folder."""

import pathlib
import shutil
from typing import Any

import flax.linen as nn
import jax
import rich.console
from jaxtyping import PyTree
from ml_collections import ConfigDict

from otter_jax import gates
from otter_jax import mesh as meshes
from otter_jax.data.source import open_dataset
from otter_jax.errors import UserError
from otter_jax.transfer import pruning
from otter_jax.transfer.labelled import Labelled
from otter_jax.transfer.network import attention_of, trained_network
from otter_jax.transfer.pruning import rankings
from otter_jax.transfer.validation import Validation
from otter_jax.weights import folders, naming


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
    names_of = open_dataset(config.data.dir, config.data.name, config.data.train).classes(
        config.data.label
    )
    model, params, batch_stats, step = trained_network(config, workdir, len(names_of))
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
        held_out = Labelled.open(config, "validation")
        validate = Validation(config, model, held_out, mesh, console)
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
    folders.write_timm(
        folder,
        naming.export(jax.device_get(variables), naming.families(model)[0]),
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
