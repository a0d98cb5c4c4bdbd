"""What CC3M costs on a pod: a step's memory, arithmetic and traffic, compiled for GPUs unseen.

    pip install -e ".[cuda12]"
    JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 XLA_FLAGS=--xla_gpu_enable_triton_gemm=false \
        python -m benchmarks.pod --target benchmarks/h100.txtpb

The step is that of `--config cc3m`: ResNet-50 and BERT-base in bfloat16, OTTER, SGD, captions of
14.4 tokens packed in rows of 128. Nothing is run. Operations are counted by XLA, bytes from its
program's text; each over its rate as measured on one card (--flops, --copy; docs/performance.md),
the longer of the two is a time that the step cannot be shorter than. What devices send each other
is counted as rings send it and set against --link: much of it hides behind the backward pass.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from benchmarks.hlo import bytes_moved, collectives
from benchmarks.scaling import devices_of, towers
from otter_jax import mesh as meshes
from otter_jax import optimizer, step
from otter_jax.objective import METHODS
from otter_jax.run.model import initialise
from otter_jax.training import compiling

PIXELS, TOKENS = 224, 128
ROWS_OF = 9 / 64  # packed rows of 128 tokens a pair (docs/data.md)


def program(B: int, devices, form: str):
    """The step for a batch of B, lowered for these devices."""
    P = len(devices)
    mesh = jax.make_mesh((P,), (meshes.AXIS,), (AxisType.Auto,), devices=devices)
    model, tx = towers(jnp.bfloat16), optimizer.make_optimizer("sgd", lambda _: 3e-3)
    whole, pieces = meshes.shardings(mesh)

    def of(shape, dtype, sharding):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    rows = (P, round(B / P * ROWS_OF), TOKENS)
    batch = {
        "image": of((B, PIXELS, PIXELS, 3), jnp.uint8, pieces),
        "token_ids": of(rows, jnp.int32, pieces),
        "segment_ids": of(rows, jnp.int32, pieces),
        "positions": of((P, B // P), jnp.int32, pieces),
    }

    def create(key):
        variables = initialise(model, key)
        return step.create_state(variables["params"], variables["batch_stats"], tx)

    like = jax.eval_shape(create, jax.random.key(0))
    like = jax.tree.map(lambda x: of(x.shape, x.dtype, whole), like)

    def make_step(state, batch):
        options = {"model": model, "tx": tx, "objective": METHODS["otter"], "mesh": mesh}
        return step.train_step(state, batch, key=jax.random.key(1), form=form, **options)

    return compiling.jit_step(make_step, mesh).lower(like, batch)


def main() -> None:
    """Prints a row for each batch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=(512, 2048))
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--form", default="cached")
    parser.add_argument("--pairs", type=float, default=2_911_810, help="of an epoch")
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--flops", type=float, default=885e12, help="measured, bfloat16")
    parser.add_argument("--copy", type=float, default=2625e9, help="measured, bytes a second")
    parser.add_argument("--link", type=float, default=450e9, help="NVLink, one direction")
    parser.add_argument("--target", type=pathlib.Path, help="a GPU to compile for")
    options = parser.parse_args()
    P = options.devices
    jax.config.update("jax_num_cpu_devices", P)
    devices = devices_of(P, options.target.read_text() if options.target else "")
    arithmetic = program(64, jax.devices("cpu")[:1], options.form).cost_analysis()["flops"] / 64
    print(f"{arithmetic / 1e9:.1f}e9 operations a pair")
    print("| B | a device holds | reads and writes | sends | at least, a step | all epochs |")
    print("|---|---|---|---|---|---|")
    for B in options.batch:
        compiled = program(B, devices, options.form).compile()
        text = compiled.as_text()
        moved, sent = bytes_moved(text), sum(c.sent(P) for c in collectives(text))
        seconds = max(arithmetic * B / P / options.flops, moved / options.copy)
        hours = options.pairs * options.epochs / B * seconds / 3600
        print(
            f"| {B:,} | {compiling.need_of(compiled).total / 1e9:.1f} GB | {moved / 1e9:.1f} GB "
            f"| {sent / 1e9:.2f} GB: {1e3 * sent / options.link:.1f} ms "
            f"| {1e3 * seconds:.1f} ms: {B / seconds:,.0f} pairs/s | {60 * hours:.0f} min |",
            flush=True,
        )


if __name__ == "__main__":
    main()
