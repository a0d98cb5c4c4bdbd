"""Exports a trained network as folders, pruned on request."""

import pathlib
from typing import Any

import flax.linen as nn
import jax
import rich.console
from jaxtyping import PyTree
from ml_collections import ConfigDict

from otter_jax import mesh as meshes
from otter_jax.data.source import open_dataset
from otter_jax.errors import UserError
from otter_jax.run import directory
from otter_jax.transfer import pruning
from otter_jax.transfer.labelled import Labelled
from otter_jax.transfer.network import Network, attention_of, trained
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
    step: int | None = None,
    console: rich.console.Console,
) -> list[pathlib.Path]:
    """Writes the trained network into the new folder `out`, gates folded into its filters.

    out/network is for timm, with all channels of its architecture. With share > 0, out/smaller
    computes the same with fewer channels, for this project (`--config.model.weights=out/smaller`),
    and the loss of validation accuracy is printed. The filters with the least attention are
    pruned, or those with the smallest folded kernels (by="magnitude"). Returns the folders. Raises
    UserError if `out` exists, or for by="attention" if the network has no gates.
    """
    with directory.new_folder(out) as folder:
        train = open_dataset(config.data.dir, config.data.name, config.data.train)
        names = train.classes(config.data.label)
        network = trained(config, workdir, len(names), step=step)
        console.print(f"Exporting {workdir}, step {network.step}")
        networks = {"network": (network.model, network.folded())}
        if share:
            networks = _pruned(config, network, share, by, console)
            console.print(f"To train on: --config.model.weights={out / 'smaller'}")
        for name, (model, variables) in networks.items():
            write(folder / name, model, variables, config, label_names=names, step=network.step)
    return [out / name for name in networks]


def _pruned(
    config: ConfigDict, network: Network, share: float, by: str, console: rich.console.Console
) -> dict[str, tuple[nn.Module, PyTree]]:
    """Returns the masked network and its smaller equal; prints the accuracy before and after."""
    attention = attention_of(network.params)
    if by == "attention" and not attention:
        raise UserError(
            "--share ranks filters by their gates, and this network has none; "
            "--by magnitude ranks them by the size of their kernels."
        )
    model, variables = network.model, network.folded()
    ranked = rankings(model, attention, variables["params"], config.seed)[by]
    keep = pruning.lowest(ranked, share, model, variables["params"])
    masked = pruning.mask(variables, keep, model)
    mesh = meshes.make_mesh(1)
    validate = Validation(config, model, Labelled.open(config, "validation"), mesh, console)
    before, after = (validate(**meshes.put_whole(tree, mesh)) for tree in (variables, masked))
    console.print(
        f"{share:.0%} of the filters pruned by {by}: validation top-1 {before['top-1']:.3f} "
        f"before, {after['top-1']:.3f} after, and nothing trained since."
    )
    return {"network": (model, masked), "smaller": pruning.smaller(model, variables, keep)}


def write(
    folder: pathlib.Path,
    model: nn.Module,
    variables: PyTree,
    config: ConfigDict,
    *,
    label_names: list[str],
    **more: Any,
) -> None:
    """Writes a network without gates as a timm folder; `more` goes into its config.json."""
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
        exif=config.data.exif,
        **more,
    )
