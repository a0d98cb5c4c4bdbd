"""Rematerialisation: of an encoder's blocks only the inputs are kept for the backward pass.

What a block computes on the way is computed again there, which costs a second forward pass and
saves most of the memory that grows with the batch. No number changes (Chen et al.,
arXiv:1604.06174).
"""

import flax.linen as nn

from otter_jax.models import bert, efficientnet, resnet, vit

BLOCKS = (resnet.Block, efficientnet.Block, vit.Block, bert.Layer)
TOWERS = {"": (), "img": ("img",), "txt": ("txt",), "both": ("img", "txt")}


def forgetful(which: str):
    """Makes the blocks of some towers, a key of `TOWERS`, forget what they compute.

    Returns a context; modules that are applied in it need no code for this, and their variables
    stay where they are.
    """
    inside = []  # the block that is being traced: its own call comes here a second time

    def interceptor(call, args, kwargs, context):
        block = context.module
        if inside or context.method_name != "__call__" or not isinstance(block, BLOCKS):
            return call(*args, **kwargs)
        if block.path[0] not in TOWERS[which]:
            return call(*args, **kwargs)

        def again(block, *args):
            return block(*args, **kwargs)  # `train` is no array

        inside.append(block)
        try:
            return nn.remat(again)(block, *args)
        finally:
            inside.clear()

    return nn.intercept_methods(interceptor)
