"""How a batch fits into memory: the form of its B x B matrices, the pairs embedded at once."""

import bisect

from jax.sharding import Mesh
from ml_collections import ConfigDict

from otter_jax import mesh as meshes
from otter_jax import panels
from otter_jax.errors import UserError
from otter_jax.models.remat import TOWERS
from otter_jax.training.compiling import Need, largest_batch, memory_of, shortage

AUTO = "auto"
SHARE = 1 / 8  # of a device's memory that a kept matrix may take
MATRICES = {"dense": 6, "cached": 1, "streaming": 0}  # of B / devices rows by B, held at once
PANELS = 3  # held at once, but in the dense form


def form_of(config: ConfigDict, mesh: Mesh) -> str:
    """Returns which of panels.FORMS a run takes: what it asks for, else the fastest that fits.

    That follows from the batch and the size of a device's memory, not from what is free of it, so
    that a run resumed on such a machine takes the same.
    """
    if config.train.matching != AUTO:
        return config.train.matching
    kept = matrices("cached", config.train.batch_size, mesh.size)
    return "cached" if kept <= SHARE * memory_of() else "streaming"


def matrices(form: str, B: int, devices: int) -> float:
    """Returns the bytes of a device's rows of the B x B matrices that a form holds at once."""
    return 4 * MATRICES[form] * B * B / devices


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Raises UserError for a batch that no memory fits, or parts that do not divide it.

    Looks at matrices and embeddings alone, before anything is compiled; what encoders need,
    `check_need` knows later.
    """
    B, D, P = config.train.batch_size, config.model.dim, mesh.size
    form, limit = form_of(config, mesh), memory_of()

    def needed(form, B):
        return matrices(form, B, P) + 4 * 6 * B * D

    if needed(form, B) <= limit:
        check_panels(form, B, mesh)
        check_microbatch(config.train.microbatch, B, P)
        return
    fits = bisect.bisect_right(range(P, B, P), limit, key=lambda n: needed(form, n)) * P
    other = "streaming"
    helps = form != other and needed(other, B) <= limit
    raise UserError(
        f"train.batch_size={B} needs {needed(form, B) / 1e9:,.1f} GB of a device for matrices and "
        f"embeddings (train.matching: {form}), and there are {limit / 1e9:,.1f} GB. "
        + (f'train.matching="{other}" would fit; ' if helps else "")
        + f"about train.batch_size={fits} fits."
    )


def check_panels(form: str, B: int, mesh: Mesh) -> None:
    """Raises UserError for a batch whose rows have no divisor that makes panels small enough."""
    rows = panels.rows_per_panel(B, mesh)
    held, limit = 4 * PANELS * rows * B, memory_of()
    if form == "dense" or held <= limit:
        return
    each = 64 * mesh.size
    below = B // each * each
    raise UserError(
        f"train.batch_size={B} does not divide into small panels: one would have {rows} rows, and "
        f"{PANELS} of them need {held / 1e9:,.1f} GB of the {limit / 1e9:,.1f} GB that there are. "
        f"Nearest that does: {below} or {below + each}."
    )


def check_microbatch(microbatch: int, B: int, devices: int) -> None:
    """Raises UserError, naming the nearest that work, unless it cuts a batch into equal parts."""
    if not microbatch or (B % microbatch == 0 and microbatch % devices == 0):
        return
    work = _microbatches(B, devices)
    below = [m for m in work if m < microbatch][-1:]
    above = [m for m in work if m > microbatch][:1]
    nearest = " or ".join(map(str, below + above))
    raise UserError(
        f"train.microbatch={microbatch} does not cut train.batch_size={B} into equal parts that "
        f"divide over {devices} device{'s' * (devices > 1)}; nearest: {nearest} (0: all at once)."
    )


def _microbatches(B, devices):
    return [m for m in range(devices, B + 1, devices) if B % m == 0]


def check_need(need: Need | None, config: ConfigDict, mesh: Mesh) -> None:
    """Raises UserError if a step cannot fit into a device's memory, with what would."""
    if short := shortage(need):
        raise UserError(f"{short} {remedies(need, config, mesh)}")


def remedies(need: Need, config: ConfigDict, mesh: Mesh) -> str:
    """Returns a sentence on what makes a step's program smaller, by about how much."""
    B, P = config.train.batch_size, mesh.size
    most = largest_batch(need, config.train.microbatch or B, P)
    parts = [m for m in _microbatches(B, P) if m <= most]
    fits = largest_batch(need, B, P)
    found = [f"train.microbatch={m} (the loss is still the batch's)" for m in parts[-1:]]
    found += [f"train.batch_size={fits}"] * (fits > 0)
    about = f"About {' or '.join(found)} would fit" if found else "No batch would fit"
    others = ["more devices"]
    if config.train.remat != "both":
        others.append("train.remat=both")
    if config.model.dtype == "float32":
        others.append("model.dtype=bfloat16")
    return f"{about}; {', '.join(others)} or a smaller model help, too."


def pairs_per_group(config: ConfigDict, mesh: Mesh) -> int:
    """Returns how many captions are packed together: those that a device embeds at once."""
    return (config.train.microbatch or config.train.batch_size) // mesh.size


def summary(config: ConfigDict, mesh: Mesh) -> dict[str, str]:
    """Returns, as text, how a batch is computed."""
    B, m = config.train.batch_size, config.train.microbatch
    said = {"batch": f"{B} over {meshes.count(mesh)}: {B - 1} negatives per row"}
    if m and m < B:
        said["batch"] += f"; embedded {m} at a time, and batch norm is over those"
    if config.train.remat:
        said["batch"] += "; blocks computed twice: " + " and ".join(TOWERS[config.train.remat])
    form = form_of(config, mesh)
    kept = matrices(form, B, mesh.size) / 2**20
    how = {
        "dense": f"{kept:,.0f} MiB of matrices per device",
        "cached": f"one matrix kept, {kept:,.0f} MiB per device",
        "streaming": f"panels of {panels.rows_per_panel(B, mesh)} rows, made anew in each sweep",
    }
    return said | {"matching": f"{form}: {how[form]}"}
