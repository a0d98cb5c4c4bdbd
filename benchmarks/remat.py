"""What train.remat saves: memory and operations of a whole training step, as compiled.

    python -m benchmarks.remat
    JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 python -m benchmarks.remat --target benchmarks/h100.txtpb

Compiled, never run, are OTTER's steps of an image encoder with BERT-base, in float32 by XLA's
compiler for CPUs, or in bfloat16 for the GPU that --target describes, which need not be there.
Temporaries are activations, their gradients, and those of the parameters.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from benchmarks.scaling import VOCABULARY, D, amount, devices_of
from otter_jax import mesh as meshes
from otter_jax import optimizer, step
from otter_jax.models.bert import Bert, BertConfig
from otter_jax.models.remat import TOWERS
from otter_jax.models.resnet import RESNETS, ResNet
from otter_jax.models.towers import Towers
from otter_jax.models.vit import VITS, ViT
from otter_jax.objective import METHODS
from otter_jax.run.model import initialise
from otter_jax.training.compiling import jit_step

ENCODERS = {
    "resnet50": ResNet(**RESNETS["resnet50"]),
    "vit_small_patch16_224": ViT(**VITS["vit_small_patch16_224"]),
}
PIXELS, TOKENS = 224, 60


def compiled(arch: str, remat: str, B: int, device: jax.Device) -> jax.stages.Compiled:
    """The program of a step for one device."""
    dtype = jnp.float32 if device.platform == "cpu" else jnp.bfloat16
    text = Bert(BertConfig(vocab_size=VOCABULARY), dtype)
    model = Towers(ENCODERS[arch].clone(dtype=dtype), text, D, D, (127.0,) * 3, (128.0,) * 3)
    tx = optimizer.make_optimizer("sgd", lambda _: 3e-3)
    mesh = jax.make_mesh((1,), (meshes.AXIS,), (AxisType.Auto,), devices=[device])

    def create():
        variables = {"batch_stats": {}} | initialise(model, jax.random.key(0))
        return step.create_state(variables["params"], variables["batch_stats"], tx)

    batch = {
        "image": jax.ShapeDtypeStruct((B, PIXELS, PIXELS, 3), jnp.uint8),
        "token_ids": jax.ShapeDtypeStruct((B, TOKENS), jnp.int32),
        "mask": jax.ShapeDtypeStruct((B, TOKENS), bool),
    }
    how = {"model": model, "tx": tx, "objective": METHODS["otter"], "mesh": mesh, "form": "cached"}
    one = functools.partial(step.train_step, key=jax.random.key(1), remat=remat, **how)
    return jit_step(one, mesh, remat=bool(remat)).lower(jax.eval_shape(create), batch).compile()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--target", type=pathlib.Path, help="a GPU to compile for")
    options = parser.parse_args()
    (device,) = devices_of(1, options.target.read_text() if options.target else "")
    print("| image encoder | train.remat | temporaries | operations |\n|---|---|---|---|")
    for arch in ENCODERS:
        for remat in TOWERS:
            program = compiled(arch, remat, options.batch, device)
            held = amount(program.memory_analysis().temp_size_in_bytes)
            work = program.cost_analysis()["flops"] / 1e12
            print(f'| {arch} | `"{remat}"` | {held} | {work:.2f}e12 |', flush=True)


if __name__ == "__main__":
    main()
