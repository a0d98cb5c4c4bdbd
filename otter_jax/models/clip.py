"""CLIP's text transformer (arXiv:2103.00020), with Hugging Face's names."""

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from otter_jax.models.norm import LayerNorm
from otter_jax.models.vit import ACTIVATIONS, Block


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
    """The fields of a Hugging Face config.json that `ClipText` needs; ViT-B/32's by default."""

    vocab_size: int = 49408
    hidden_size: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    max_position_embeddings: int = 77
    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"
    attention_dropout: float = 0.0
    eos_token_id: int = 49407

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> "ClipTextConfig":
        """Takes the fields from a parsed config.json, of the text side or of a whole CLIP.

        That of a whole CLIP omits fields that are as in ViT-B/32. Raises ValueError for another
        kind of model.
        """
        if config.get("model_type") == "clip":
            # In old files text_config_dict repeats some fields, and its values are the right ones.
            config = {
                **(config.get("text_config") or {}),
                **(config.get("text_config_dict") or {}),
            }
        activation = config.get("hidden_act", cls.hidden_act)
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"hidden_act={activation!r} is not supported; {known} are")
        end = config.get("eos_token_id", cls.eos_token_id)
        if not isinstance(end, int):
            raise ValueError(f"eos_token_id={end!r} is not supported; a number is")
        fields = {field.name for field in dataclasses.fields(cls)} & config.keys()
        return cls(**{name: config[name] for name in fields})

    def with_dropout(self, rate: float) -> "ClipTextConfig":
        """Returns the config with another dropout rate, which CLIP has in the attention only."""
        return dataclasses.replace(self, attention_dropout=rate)

    @property
    def max_length(self) -> int:
        """The most tokens that an input may have."""
        return self.max_position_embeddings


class ClipText(nn.Module):
    """Encodes texts into the hidden states of the last layer; a token sees those before it.

    Hidden states at padding are meaningless.

    Attributes:
      dtype: of matrix products and activations; softmax and norms are computed in float32.
    """

    config: ClipTextConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, token_ids: Int[Array, "B L"], mask: Bool[Array, "B L"], *, train: bool
    ) -> Float[Array, "B L H"]:
        c, length = self.config, token_ids.shape[1]
        if length > c.max_length:
            raise ValueError(
                f"texts of {length} tokens, but this encoder has {c.max_length} positions"
            )
        init = nn.initializers.normal(0.02)
        embed = partial(nn.Embed, features=c.hidden_size, dtype=self.dtype, embedding_init=init)
        x = embed(c.vocab_size, name="token_embedding")(token_ids)
        x += embed(c.max_position_embeddings, name="position_embedding")(jnp.arange(length)[None])
        sees = jnp.tril(jnp.ones((length, length), bool)) & mask[:, None, :]
        block = partial(
            Block,
            c.num_attention_heads,
            c.intermediate_size,
            c.hidden_act,
            c.layer_norm_eps,
            c.attention_dropout,
            self.dtype,
        )
        for i in range(c.num_hidden_layers):
            x = block(name=f"blocks_{i}")(x, sees, train=train)
        return LayerNorm(c.layer_norm_eps, self.dtype, name="final_layer_norm")(x)

    @property
    def width(self) -> int:
        """The number of features."""
        return self.config.hidden_size

    def pool(
        self,
        hidden: Float[Array, "B L H"],
        token_ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"],
    ) -> Float[Array, "B H"]:
        """Returns one vector per text, float32: at its first closing token; 0 without tokens."""
        if self.config.eos_token_id == 2:
            # Configs up to 2023 wrongly say 2; with them it is the largest token id.
            end = jnp.where(mask, token_ids, -1).argmax(1)
        else:
            end = (mask & (token_ids == self.config.eos_token_id)).argmax(1)
        pooled = jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0]
        pooled = pooled.astype(jnp.promote_types(pooled.dtype, jnp.float32))
        return jnp.where(mask.any(1)[:, None], pooled, 0)
