"""Decoder or encoder is decided by one rule, for a configuration and for a loaded model alike."""

import pytest
from transformers import BertConfig, BertGenerationConfig, BertGenerationEncoder, BertLMHeadModel, BertModel

from deltatune import find_sites
from deltatune.core.sites.blocks import is_causal, is_decoder
from deltatune.models.architecture import family
from deltatune.testing.coverage import families
from support import models

BERT = {
    "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32
}  # fmt: skip


@pytest.mark.parametrize(
    ("make", "config", "decoder"),
    [
        (BertModel, BertConfig(**BERT), False),
        (BertModel, BertConfig(**BERT, is_decoder=True), True),
        (BertLMHeadModel, BertConfig(**BERT, is_decoder=True), True),
        # transformers has a causal and no masked language model of this type, but it reads both ways unless told
        (BertGenerationEncoder, BertGenerationConfig(**BERT), False),
        (BertGenerationEncoder, BertGenerationConfig(**BERT, is_decoder=True), True),
    ],
    ids=["bert", "bert decoder", "bert language model", "bert-generation", "bert-generation decoder"],
)
def test_a_configuration_that_says_so_is_a_decoder(make, config, decoder):
    assert is_decoder(config) == decoder
    assert family(config) == ("decoder" if decoder else "encoder")
    assert find_sites(make(config)).facts.decoder == decoder


@pytest.mark.parametrize("kind", families())
def test_configuration_and_model_agree(kind):
    model = models.tiny(kind)
    facts = find_sites(model).facts
    assert facts.decoder == is_decoder(model.config) == (family(model.config) == "decoder")
    assert facts.encoder_decoder == (family(model.config) == "encoder-decoder")


def test_causal_modules_count_where_the_type_is_not_known():
    """A model of a type that transformers has no language model for: its attention says which way it reads."""
    model = models.tiny("vit")
    assert not is_causal(model)
    next(module for module in model.modules() if hasattr(module, "is_causal")).is_causal = True
    assert is_causal(model)
    assert not is_decoder(model.config)
