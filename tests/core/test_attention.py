"""The attention seam: prefixes under every dense attention, beside masks and caches, and refused elsewhere."""

import pytest
import torch

from deltatune import DeltatuneError, Host, LoRA, Prefix
from deltatune.testing import MODELS
from deltatune.testing.fixtures import attach, make_host, outputs, row_alone
from support import models


def with_prefix(kind, attention, head=None):
    model = models.tiny(kind, head)
    model.set_attn_implementation(attention)
    host = Host(model)
    attach(host, "a", Prefix(length=3))
    attach(host, "b", LoRA(r=2), seed=1)
    return host


@pytest.mark.parametrize("route", ["a", ["a", "b", {"a": 0.5, "b": 0.5}]], ids=["alone", "mixed"])
@pytest.mark.parametrize("kind", [*MODELS, "gpt_neox", "bart"])
def test_eager_equals_sdpa(kind, route):
    batch = models.inputs(kind)
    found = []
    for attention in ("eager", "sdpa"):
        host = with_prefix(kind, attention)
        host.use(route)
        found.append(outputs(host, batch))
        host.use("b")
        assert host.model.config._attn_implementation == attention, "the seam is open only while a prefix acts"
    kept = torch.ones(found[0].shape[:2]) if kind in models.ENCODER_DECODERS else batch["attention_mask"]
    assert torch.allclose(found[0][kept.bool()], found[1][kept.bool()], atol=2e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_no_mask_is_a_mask_of_ones(kind):
    """Without a mask, SDPA would use its own causal flag, which is wrong once there are more keys than queries."""
    host, batch = with_prefix(kind, "sdpa"), models.inputs(kind, padding="none")
    wanted = outputs(host, batch)
    assert torch.allclose(outputs(host, {"input_ids": batch["input_ids"]}), wanted, atol=1e-5)
    early = outputs(host, {"input_ids": batch["input_ids"][:, :4]})
    assert torch.allclose(early, wanted[:, :4], atol=1e-5), "a later token was seen"


def test_padding_is_not_attended():
    host, batch = with_prefix("bert", "sdpa"), models.inputs("bert")
    alone = outputs(host, row_alone(batch, 1))[0]
    assert torch.allclose(outputs(host, batch)[1, : len(alone)], alone, atol=1e-5)


def test_attention_weights_show_the_prefix():
    host = with_prefix("bert", "eager")
    with torch.no_grad():
        weights = host.model(**models.inputs("bert"), output_attentions=True).attentions[0]
    assert weights.shape == (3, 4, 7, 3 + 7)
    assert torch.allclose(weights.sum(-1), torch.ones(3, 4, 7), atol=1e-5)


@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_a_prefix_is_not_in_the_cache(cache):
    host, batch = with_prefix("llama", "sdpa", "lm"), models.inputs("llama", padding="left")
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    wanted = host.generate(**batch, use_cache=False, **options)
    found = host.generate(**batch, cache_implementation=cache, disable_compile=True, **options)
    assert torch.equal(found, wanted)


def test_attention_without_a_dense_mask_is_refused():
    host = make_host("llama")
    host.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(DeltatuneError, match=r"'sdpa' or 'eager', this model runs 'flash_attention_2'"):
        host.attach("a", Prefix(length=2))
    assert not host.adapters
    host.attach("a", LoRA(r=2))


def test_attention_cannot_be_changed_under_a_prefix():
    host = with_prefix("bert", "sdpa")
    host.model.set_attn_implementation("eager")
    with pytest.raises(DeltatuneError, match="would drop the prefix"):
        host.model(**models.inputs("bert"))


@pytest.mark.parametrize("kind", ["bert", "roberta", "opt", "gpt2"])
def test_a_prefix_that_exceeds_the_positions_is_explained(kind):
    host = Host(models.tiny(kind))
    host.attach("a", Prefix(length=4))
    longest = {"input_ids": torch.full((1, models.POSITIONS - 4), 7)}
    host.model(**longest)
    with pytest.raises(DeltatuneError, match="exceed the model's"):
        host.model(input_ids=torch.full((1, models.POSITIONS - 3), 7))
