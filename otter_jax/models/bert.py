"""BERT (arXiv:1810.04805) and RoBERTa (arXiv:1907.11692) encoders with Hugging Face's names."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

# True: a token, false: padding. Or n: a token of the n-th text packed in the row, 0: padding.
Mask = Bool[Array, "B L"] | Int[Array, "B L"]

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The fields of a Hugging Face config.json that matter here; BERT-base's by default."""

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
        """The config of a parsed config.json; ValueError for what `Bert` could not compute."""
        positions = config.get("position_embedding_type", "absolute")
        if positions != "absolute":
            raise ValueError(f"position_embedding_type={positions!r} is not supported")
        if config.get("hidden_act", "gelu") not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"hidden_act={config['hidden_act']!r} is not supported; {known} are")
        if config.get("model_type") == "roberta":  # what its files may leave out
            config = {"vocab_size": 50265, "pad_token_id": 1} | config
        fields = {field.name for field in dataclasses.fields(cls)} & config.keys()
        return cls(
            **{name: config[name] for name in fields},
            roberta_positions=config.get("model_type") == "roberta",
        )

    def with_dropout(self, rate: float) -> "BertConfig":
        """The same with another dropout, of hidden states and attention alike."""
        return dataclasses.replace(
            self, hidden_dropout_prob=rate, attention_probs_dropout_prob=rate
        )

    @property
    def max_length(self) -> int:
        """The longest input, in tokens."""
        first = self.pad_token_id + 1 if self.roberta_positions else 0
        return self.max_position_embeddings - first


class Bert(nn.Module):
    """The last hidden states of texts; what stands at padding is meaningless.

    Dropout draws from the rng "dropout", in training only. There is no pooler: see `mean_pool`.

    Attributes:
      dtype: of the matrix products and of what flows between them; softmax and norms are float32.
    """

    config: BertConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, token_ids: Int[Array, "B L"], mask: Mask, *, train: bool
    ) -> Float[Array, "B L H"]:
        length, limit = token_ids.shape[1], self.config.max_length
        if length > limit:
            raise ValueError(f"texts of {length} tokens, but this encoder has {limit} positions")
        x = Embeddings(self.config, self.dtype, name="embeddings")(token_ids, mask, train=train)
        return Layers(self.config, self.dtype, name="encoder")(x, mask, train=train)

    @property
    def width(self) -> int:
        """The number of features."""
        return self.config.hidden_size

    def pool(
        self, hidden: Float[Array, "B L H"], token_ids: Int[Array, "B L"], mask: Mask
    ) -> Float[Array, "B H"]:
        """One vector a text, float32: the mean over its tokens."""
        return mean_pool(hidden, mask)

    def pool_packed(
        self,
        hidden: Float[Array, "G R T H"],
        mask: Int[Array, "G R T"],
        place: Int[Array, "G b"],
    ) -> tuple[Float[Array, "B H"], Bool[Array, " B"]]:
        """The same of packed texts, in the order of `place`, and whether each has a token."""
        return mean_pool_packed(hidden, mask, place)


def mean_pool(hidden: Float[Array, "B L H"], mask: Mask) -> Float[Array, "B H"]:
    """The mean over the tokens under the mask, in float32; 0 for a text without tokens."""
    hidden = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
    weight = mask.astype(hidden.dtype)[..., None]
    return (hidden * weight).sum(1) / jnp.maximum(weight.sum(1), 1)


def mean_pool_packed(
    hidden: Float[Array, "G R T H"], mask: Int[Array, "G R T"], place: Int[Array, "G b"]
) -> tuple[Float[Array, "B H"], Bool[Array, " B"]]:
    """`mean_pool` of texts that share rows; `place` is row * (T + 1) + n - 1 of a row's n-th text.

    B = G * b. Also whether a text has a token.
    """
    hidden = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
    groups, rows, length, width = hidden.shape
    # One slot more than a row has tokens: texts without any are looked for in the last.
    own = mask[:, :, None] == jnp.arange(1, length + 2)[:, None]
    tokens = own.sum(3)
    sums = jnp.einsum("grst,grth->grsh", own.astype(hidden.dtype), hidden, precision="highest")
    means = sums / jnp.maximum(tokens, 1)[..., None]
    slots = rows * (length + 1)
    pooled = jnp.take_along_axis(means.reshape(groups, slots, width), place[..., None], axis=1)
    there = jnp.take_along_axis(tokens.reshape(groups, slots), place, axis=1) > 0
    return pooled.reshape(-1, width), there.reshape(-1)


def positions_in_text(mask: Int[Array, "B L"], token: Bool[Array, "B L"]) -> Int[Array, "B L"]:
    """How many tokens of its text there are up to each place; `mask` has the texts' numbers."""
    begins = jnp.pad(mask[:, 1:] != mask[:, :-1], ((0, 0), (1, 0)))
    counted = token.astype(mask.dtype).cumsum(axis=1)
    return counted - jax.lax.cummax(jnp.where(begins, counted - token, 0), axis=1)


class Embeddings(nn.Module):
    """Words + positions + token type 0."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, token_ids: Int[Array, "B L"], mask: Mask, *, train: bool
    ) -> Float[Array, "B L H"]:
        c = self.config
        positions = jnp.arange(token_ids.shape[1])[None]
        if mask.dtype != bool:
            token = mask > 0
            if c.roberta_positions:
                token &= token_ids != c.pad_token_id
            positions = positions_in_text(mask, token)
            if c.roberta_positions:
                positions = positions * token + c.pad_token_id
            else:
                positions = jnp.maximum(positions - 1, 0)
        elif c.roberta_positions:
            token = (token_ids != c.pad_token_id).astype(token_ids.dtype)
            positions = token.cumsum(1) * token + c.pad_token_id

        def embed(name, size, ids):
            init = nn.initializers.normal(0.02)
            return nn.Embed(size, c.hidden_size, self.dtype, embedding_init=init, name=name)(ids)

        x = embed("word_embeddings", c.vocab_size, token_ids)
        x += embed("position_embeddings", c.max_position_embeddings, positions)
        x += embed("token_type_embeddings", c.type_vocab_size, jnp.zeros((1, 1), int))
        x = layer_norm(c, self.dtype)(x)
        return nn.Dropout(c.hidden_dropout_prob, deterministic=not train)(x)


class Layers(nn.Module):
    """The stack of transformer layers."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L H"], mask: Mask, *, train: bool
    ) -> Float[Array, "B L H"]:
        for i in range(self.config.num_hidden_layers):
            x = Layer(self.config, self.dtype, name=f"layer_{i}")(x, mask, train=train)
        return x


class Layer(nn.Module):
    """Attention, then a two-layer perceptron; each ends with a residual sum and a norm."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L H"], mask: Mask, *, train: bool
    ) -> Float[Array, "B L H"]:
        c = self.config
        x = Attention(c, self.dtype, name="attention")(x, mask, train=train)
        inner = Intermediate(c, self.dtype, name="intermediate")(x)
        return Output(c, self.dtype, name="output")(inner, x, train=train)


class Attention(nn.Module):
    """Self-attention with its output projection."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L H"], mask: Mask, *, train: bool
    ) -> Float[Array, "B L H"]:
        attended = SelfAttention(self.config, self.dtype, name="self")(x, mask, train=train)
        return Output(self.config, self.dtype, name="output")(attended, x, train=train)


class SelfAttention(nn.Module):
    """Every token's mixture of the values of the tokens under the mask."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L H"], mask: Mask, *, train: bool
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
        seen = mask[:, None, :]
        if mask.dtype != bool:  # tokens of the same text only
            seen = (seen == mask[:, :, None]) & (seen > 0)
        # Not -inf: a text without tokens then attends evenly instead of to NaN.
        scores = jnp.where(seen[:, None], scores, jnp.finfo(exact).min)
        weights = jax.nn.softmax(scores).astype(self.dtype)
        weights = nn.Dropout(c.attention_probs_dropout_prob, deterministic=not train)(weights)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)


class Intermediate(nn.Module):
    """The perceptron's inner layer."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B L H"]) -> Float[Array, "B L I"]:
        c = self.config
        return ACTIVATIONS[c.hidden_act](dense(c.intermediate_size, self.dtype, "dense")(x))


class Output(nn.Module):
    """A projection, added to the residual and normalised."""

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
    """A linear layer, initialised as BERT's."""
    return nn.Dense(width, dtype=dtype, kernel_init=nn.initializers.normal(0.02), name=name)


def layer_norm(config: BertConfig, dtype: Any) -> nn.LayerNorm:
    """The norm that ends every part."""
    return nn.LayerNorm(config.layer_norm_eps, dtype=dtype, name="LayerNorm")
