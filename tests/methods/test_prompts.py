"""Soft prompts: their initial vectors."""

import pytest
import torch

from deltatune import DeltatuneError, Host, Prompt, parse
from support import models


def vectors(method, kind="llama", seed=0):
    host = Host(models.tiny(kind, "lm"))
    adapter = host.attach("a", method, seed=seed)
    [(_, _, delta)] = list(adapter.entries())
    return host, delta.prompt.detach()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_a_normal_prompt_has_the_spread_of_the_table(kind):
    host, prompt = vectors(Prompt(length=64, init="normal"), kind)
    table = host.model.get_input_embeddings().weight
    spread = table.std().item()
    assert prompt.std().item() == pytest.approx(spread, rel=0.06)
    assert abs(prompt.mean().item()) < 0.1 * spread
    tails = (prompt.abs() > 2 * spread).float().mean().item()
    assert tails == pytest.approx(0.0455, abs=0.02)


def test_an_embedding_that_multiplies_has_wider_vectors():
    host = Host(models.tiny("gemma3_text", "lm"))
    adapter = host.attach("a", Prompt(length=64, init="normal"))
    table = host.model.get_input_embeddings()
    with host.using(None):
        seen = table(torch.arange(len(table.weight))).std().item()
    [(_, _, delta)] = list(adapter.entries())
    assert float(table.embed_scale) > 2
    assert delta.prompt.std().item() == pytest.approx(seen, rel=0.06)


def test_a_normal_prompt_depends_on_its_seed_alone_and_others_are_as_before():
    method = Prompt(length=5, init="normal")
    assert torch.equal(vectors(method, seed=2)[1], vectors(method, seed=2)[1])
    assert not torch.equal(vectors(method, seed=2)[1], vectors(method, seed=3)[1])
    assert parse(repr(method)) == method
    uniform = vectors(Prompt(length=500, init="uniform"))[1]
    assert 0.49 < uniform.abs().max().item() <= 0.5
    with pytest.raises(DeltatuneError, match="takes no ids"):
        Prompt(init="normal", ids=(3,))
