"""Embeddings(head=False): the input embeddings alone, as the first stage of Chinese-LLaMA."""

import pytest
import torch

from deltatune import DeltatuneError, Embeddings, Host, Unfreeze, parse
from support import models

INPUT = Embeddings(head=False)


def trained(host):
    return {site.name for _, site, _ in host.adapters["a"].entries() if site.kind == "weight"}


UNTIED = {
    "llama": "model.embed_tokens.weight",
    "gpt2": "transformer.wte.weight",
    "t5": "shared.weight",
    "opt": "model.decoder.embed_tokens.weight",
    "bert": "bert.embeddings.word_embeddings.weight",
}


@pytest.mark.parametrize(("kind", "name"), UNTIED.items())
def test_the_table_is_trained_and_the_head_is_the_bases(kind, name):
    model = models.tiny(kind, "lm", tie_word_embeddings=False)
    output = model.get_output_embeddings()
    output.weight = torch.nn.Parameter(output.weight.detach().clone())  # T5 ties them whatever its config says
    host = Host(model)
    assert output.weight is not host.model.get_input_embeddings().weight
    adapter = host.attach("a", INPUT)
    assert [site.module + ".weight" for _, site, _ in adapter.entries()] == [name]
    assert INPUT.count(host.sites) == host.model.get_input_embeddings().weight.numel()
    head, table = output.weight.clone(), host.model.get_input_embeddings().weight.clone()
    batch = models.inputs(kind, "lm")
    optimiser = torch.optim.SGD([p for _, p in host.trainable("a")], lr=0.5)
    host.model(**batch).logits.square().mean().backward()
    optimiser.step()
    assert host.merge_("a") < 1e-3
    assert torch.equal(output.weight, head), "the head was trained too"
    assert not torch.equal(host.model.get_input_embeddings().weight, table)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bert", "bart"])
def test_one_tensor_for_both_is_refused_in_words(kind):
    host = Host(models.tiny(kind, "lm", tie_word_embeddings=True))
    with pytest.raises(DeltatuneError, match=r"are one tensor.*Embeddings\(\)"):
        host.attach("a", INPUT)
    host.attach("a", Embeddings())


def test_a_body_has_no_head_to_leave_alone():
    host = Host(models.tiny("llama"))
    adapter = host.attach("a", INPUT)
    assert [site.module for _, site, _ in adapter.entries()] == ["embed_tokens"]


def test_its_text():
    assert repr(INPUT) == "Embeddings(head=False)"
    assert parse("Embeddings(head=False)") == INPUT == Unfreeze(part="input-embeddings")
    assert parse("Embeddings()") == Embeddings() == Unfreeze(part="embeddings")
    assert repr(Embeddings()) == "Embeddings()"
    assert INPUT.label == "Input embeddings"
    assert INPUT.learning_rate == Embeddings().learning_rate
    with pytest.raises(DeltatuneError, match="belong to no layer"):
        Unfreeze(layers=1, part="input-embeddings")
