"""Files of random weights, as timm, PyTorch and Hugging Face write them."""

import jax
import numpy as np

from otter_jax.weights import encoders, naming

VALUES = np.arange(8, dtype=np.float32)
ROBERTA = {
    "model_type": "roberta",
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 10,
    "type_vocab_size": 1,
    "pad_token_id": 1,
}


def in_a_file(module, *inputs, dtype=np.float32):
    """Random tensors as a file names and shapes them, for a module's variables."""
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(dtype), encoders.variable_shapes(module, *inputs)
    )
    return naming.export(variables, naming.families(module)[0])
