"""BERT (arXiv:1810.04805) and RoBERTa (arXiv:1907.11692), with Hugging Face's names."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from otter_jax.models.linear import contract
from otter_jax.models.norm import LayerNorm
from otter_jax.models.pooling import Pooling, pool, pool_packed

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}

# After a projection, by PyTorch's names.
PROJECTED = {"Identity": jnp.asarray, "Tanh": jnp.tanh, "ReLU": jax.nn.relu,
             "GELU": ACTIVATIONS["gelu"], "Sigmoid": jax.nn.sigmoid}  # fmt: skip


class Projection(NamedTuple):
    """Describes a linear layer, with the activation after it, from pooled vectors to others."""

    width: int
    activation: str = "Identity"
    bias: bool = True


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The fields of a Hugging Face config.json that `Bert` needs; BERT-base's by default."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    pad_token_id: int = 0
    # RoBERTa numbers the positions from pad_token_id + 1 on, skipping the padding; BERT from 0.
    roberta_positions: bool = False

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> "BertConfig":
        """Takes the fields from a parsed config.json. Raises ValueError for another model."""
        positions = config.get("position_embedding_type", "absolute")
        if positions != "absolute":
            raise ValueError(f"position_embedding_type={positions!r} is not supported")
        if config.get("hidden_act", "gelu") not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"hidden_act={config['hidden_act']!r} is not supported; {known} are")
        if config.get("is_decoder") or config.get("add_cross_attention"):
            raise ValueError("is_decoder or add_cross_attention is true: it is no encoder")
        if config.get("model_type") == "roberta":  # its files may leave out these defaults
            config = {"vocab_size": 50265, "pad_token_id": 1} | config
        fields = {field.name for field in dataclasses.fields(cls)} & config.keys()
        return cls(
            **{name: config[name] for name in fields},
            roberta_positions=config.get("model_type") == "roberta",
        )

    def with_dropout(self, rate: float) -> "BertConfig":
        """Returns the config with another dropout rate, for hidden states and attention alike."""
        return dataclasses.replace(
            self, hidden_dropout_prob=rate, attention_probs_dropout_prob=rate
        )

    @property
    def max_length(self) -> int:
        """The most tokens that an input may have."""
        first = self.pad_token_id + 1 if self.roberta_positions else 0
        return self.max_position_embeddings - first


class Bert(nn.Module):
    """Encodes texts into the hidden states of the last layer; those at padding are meaningless.

    Dropout draws from the rng "dropout", in training only. A text's vector is `pool`'s, not that of
    BERT's own pooler.

    Attributes:
      dtype: of matrix products and activations; softmax and norms are computed in float32.
      pooling: how a text's hidden states become one vector.
      projections: the layers that this vector then goes through, in float32.
    """

    config: BertConfig
    dtype: Any = jnp.float32
    pooling: Pooling = "mean"
    projections: tuple[Projection, ...] = ()

    def setup(self):
        self.embeddings = Embeddings(self.config, self.dtype)
        self.encoder = Layers(self.config, self.dtype)
        self.dense = [
            nn.Dense(width, use_bias=bias, kernel_init=nn.initializers.normal(0.02))
            for width, _, bias in self.projections
        ]

    def __call__(
        self,
        token_ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"] | None = None,
        *,
        segment_ids: Int[Array, "B L"] | None = None,
        train: bool,
    ) -> Float[Array, "B L H"]:
        """Returns the hidden states of one text per row, or of several that do not see each other.

        Args:
          token_ids: rows of at most `config.max_length` tokens.
          mask: for one text per row, True at its tokens.
          segment_ids: in place of `mask` for packed rows: n at the tokens of a row's n-th text,
            0 at padding. Each text has positions of its own.
          train: whether there is dropout.
        """
        c, (_, length) = self.config, token_ids.shape
        if length > c.max_length:
            raise ValueError(
                f"texts of {length} tokens, but this encoder has {c.max_length} positions"
            )
        if (mask is None) == (segment_ids is None):
            raise TypeError("Bert takes either a mask or segment_ids.")
        if segment_ids is None:
            positions = position_ids(token_ids, c)
            sees = mask[:, None, :]
        else:
            positions = position_ids_packed(token_ids, segment_ids, c)
            same = segment_ids[:, None, :] == segment_ids[:, :, None]
            sees = same & (segment_ids > 0)[:, None, :]
        x = self.embeddings(token_ids, positions, train=train)
        hidden = self.encoder(x, sees, train=train)
        if self.is_initializing():  # so that the projections have weights
            self.project(hidden[:, 0], sees.any((1, 2)))
        return hidden

    @property
    def width(self) -> int:
        """The number of features of a text's vector."""
        return self.projections[-1].width if self.projections else self.config.hidden_size

    def pool(
        self,
        hidden: Float[Array, "B L H"],
        token_ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"],
    ) -> Float[Array, "B H2"]:
        """Returns one vector per text, float32; 0 for a text without tokens."""
        return self.project(pool(hidden, mask, self.pooling), mask.any(1))

    def pool_packed(
        self,
        hidden: Float[Array, "G R T H"],
        segment_ids: Int[Array, "G R T"],
        positions: Int[Array, "G b"],
    ) -> tuple[Float[Array, "B H2"], Bool[Array, " B"]]:
        """Returns one vector per packed text, in the order of `positions`, and if it has tokens."""
        pooled, there = pool_packed(hidden, segment_ids, positions, self.pooling)
        return self.project(pooled, there), there

    def project(
        self, pooled: Float[Array, "B H"], has_token: Bool[Array, " B"]
    ) -> Float[Array, "B H2"]:
        """Applies the projections to pooled vectors; 0 for a text without tokens."""
        if not self.projections:  # then this needs no variables, as `self.dense` would
            return pooled
        for layer, projection in zip(self.dense, self.projections, strict=True):
            pooled = PROJECTED[projection.activation](layer(pooled)) * has_token[:, None]
        return pooled


def position_ids(token_ids: Int[Array, "B L"], config: BertConfig) -> Int[Array, "#B L"]:
    """Returns the number of each token's position embedding, for one text per row.

    BERT numbers the positions of the row. RoBERTa numbers the tokens from pad_token_id + 1 on; its
    padding has pad_token_id.
    """
    if not config.roberta_positions:
        return jnp.arange(token_ids.shape[1])[None]
    token = (token_ids != config.pad_token_id).astype(token_ids.dtype)
    return token.cumsum(1) * token + config.pad_token_id


def position_ids_packed(
    token_ids: Int[Array, "B L"], segment_ids: Int[Array, "B L"], config: BertConfig
) -> Int[Array, "B L"]:
    """Returns `position_ids` for packed rows, counted from the beginning of each text."""
    token = segment_ids > 0
    if config.roberta_positions:
        token &= token_ids != config.pad_token_id
    begins = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))
    counted = token.astype(segment_ids.dtype).cumsum(axis=1)
    # Counted from 1 within each text, by subtracting the count before its first token.
    count = counted - jax.lax.cummax(jnp.where(begins, counted - token, 0), axis=1)
    if config.roberta_positions:
        return count * token + config.pad_token_id
    return jnp.maximum(count - 1, 0)


class Embeddings(nn.Module):
    """Adds the embeddings of word, position and the first token type, and normalises the sum."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, token_ids: Int[Array, "B L"], positions: Int[Array, "#B L"], *, train: bool
    ) -> Float[Array, "B L H"]:
        c = self.config

        def embed(name, size, ids):
            init = nn.initializers.normal(0.02)
            return nn.Embed(size, c.hidden_size, self.dtype, embedding_init=init, name=name)(ids)

        x = embed("word_embeddings", c.vocab_size, token_ids)
        x += embed("position_embeddings", c.max_position_embeddings, positions)
        x += embed("token_type_embeddings", c.type_vocab_size, jnp.zeros((1, 1), int))
        x = layer_norm(c, self.dtype)(x)
        return nn.Dropout(c.hidden_dropout_prob, deterministic=not train)(x)


class Layers(nn.Module):
    """Applies the transformer layers one after the other."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L H"], sees: Bool[Array, "B #L L"], *, train: bool
    ) -> Float[Array, "B L H"]:
        for i in range(self.config.num_hidden_layers):
            x = Layer(self.config, self.dtype, name=f"layer_{i}")(x, sees, train=train)
        return x


class Layer(nn.Module):
    """Attention, then a two-layer perceptron; each ends with a residual sum and a norm."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L H"], sees: Bool[Array, "B #L L"], *, train: bool
    ) -> Float[Array, "B L H"]:
        c = self.config
        x = Attention(c, self.dtype, name="attention")(x, sees, train=train)
        inner = Intermediate(c, self.dtype, name="intermediate")(x)
        return Output(c, self.dtype, name="output")(inner, x, train=train)


class Attention(nn.Module):
    """Applies self-attention with its output projection, residual sum and norm."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L H"], sees: Bool[Array, "B #L L"], *, train: bool
    ) -> Float[Array, "B L H"]:
        attended = SelfAttention(self.config, self.dtype, name="self")(x, sees, train=train)
        return Output(self.config, self.dtype, name="output")(attended, x, train=train)


class SelfAttention(nn.Module):
    """Averages for each token the values of those that it sees; `sees` has a row per token."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L H"], sees: Bool[Array, "B #L L"], *, train: bool
    ) -> Float[Array, "B L H"]:
        c = self.config
        heads = (*x.shape[:2], c.num_attention_heads, -1)
        query, key, value = (
            dense(c.hidden_size, self.dtype, name)(x).reshape(heads)
            for name in ("query", "key", "value")
        )
        exact = jnp.promote_types(self.dtype, jnp.float32)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=exact)
        scores /= jnp.sqrt(jnp.array(query.shape[-1], exact))
        # Not -inf: a text without tokens then attends evenly instead of to NaN.
        scores = jnp.where(sees[:, None], scores, jnp.finfo(exact).min)
        weights = jax.nn.softmax(scores).astype(self.dtype)
        weights = nn.Dropout(c.attention_probs_dropout_prob, deterministic=not train)(weights)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)


class Intermediate(nn.Module):
    """Applies the inner layer of the perceptron."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B L H"]) -> Float[Array, "B L I"]:
        c = self.config
        return ACTIVATIONS[c.hidden_act](dense(c.intermediate_size, self.dtype, "dense")(x))


class Output(nn.Module):
    """Projects, adds the residual and normalises."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L I"], residual: Float[Array, "B L H"], *, train: bool
    ) -> Float[Array, "B L H"]:
        c = self.config
        x = dense(c.hidden_size, self.dtype, "dense")(x)
        x = nn.Dropout(c.hidden_dropout_prob, deterministic=not train)(x)
        return layer_norm(c, self.dtype)(x + residual)


def dense(width: int, dtype: Any, name: str) -> nn.Dense:
    """Makes a linear layer with BERT's initialisation."""
    init = nn.initializers.normal(0.02)
    return nn.Dense(width, dtype=dtype, kernel_init=init, dot_general=contract, name=name)


def layer_norm(config: BertConfig, dtype: Any) -> LayerNorm:
    """Makes the norm that ends embeddings, attention and perceptron."""
    return LayerNorm(config.layer_norm_eps, dtype, name="LayerNorm")
