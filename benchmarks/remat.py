"""What train.remat saves: memory and operations of an image encoder's gradients, as compiled.

    python -m benchmarks.remat

Compiled for this machine's devices, in float32, and never run: an encoder's forward and backward
pass in training mode. Temporaries are activations, and the gradients of these and the parameters.
"""

import argparse

import jax
import jax.numpy as jnp
from flax import linen as nn

from benchmarks.scaling import amount
from otter_jax import mesh as meshes
from otter_jax.models.remat import forgetful
from otter_jax.models.resnet import RESNETS, ResNet
from otter_jax.models.vit import VITS, ViT
from otter_jax.training.compiling import jit_step

ENCODERS = {
    "resnet50": ResNet(**RESNETS["resnet50"]),
    "vit_small_patch16_224": ViT(**VITS["vit_small_patch16_224"]),
}
PIXELS = 224


class Tower(nn.Module):
    """An image encoder with the name that it has in `Towers`."""

    img: nn.Module

    def __call__(self, image):
        """The features of images."""
        return self.img(image, train=True)


def compiled(arch: str, remat: str, B: int) -> jax.stages.Compiled:
    """The program of the gradients for a batch of B, on one device."""
    model = Tower(ENCODERS[arch])
    images = jax.ShapeDtypeStruct((B, PIXELS, PIXELS, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def gradients(variables, images):
        def loss(params):
            with forgetful(remat):
                features, updated = model.apply(
                    variables | {"params": params}, images, mutable=["batch_stats"]
                )
            return jnp.square(features).mean(), updated

        return jax.grad(loss, has_aux=True)(variables["params"])

    jitted = jit_step(gradients, meshes.make_mesh(1), remat=bool(remat))
    return jitted.lower(variables, images).compile()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    print("| image encoder | train.remat | temporaries | operations |\n|---|---|---|---|")
    for arch in ENCODERS:
        for remat in ("", "img"):
            program = compiled(arch, remat, options.batch)
            held = amount(program.memory_analysis().temp_size_in_bytes)
            work = program.cost_analysis()["flops"] / 1e9
            print(f'| {arch} | `"{remat}"` | {held} | {work:,.0f}e9 |', flush=True)


if __name__ == "__main__":
    main()
