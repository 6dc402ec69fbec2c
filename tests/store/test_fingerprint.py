"""Identities of bases: of the whole model, of the body under a language-model head, of quantised weights."""

import copy

import pytest
import torch

from deltatune import DeltatuneError, Host, parse
from deltatune.core.quantization.quantized_linear import QuantizedLinear
from deltatune.models.quantization.quantize_model import quantize_
from deltatune.store.fingerprint import base_identity, compare_bases
from deltatune.tasks import Classify
from deltatune.tasks.heads import Heads, HeadsConfig
from support import models

TASK = Classify(labels=("bad", "good"))


def bodies(kind):
    """A language model with a head of its own weights, and the bare transformer with the same weights."""
    whole = models.tiny(kind, "lm", tie_word_embeddings=False)
    return Host(whole), Host(copy.deepcopy(whole.base_model))


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_classifier_is_the_same_folder_on_a_bare_transformer_and_on_a_language_model(kind, tmp_path):
    whole, bare = bodies(kind)
    assert base_identity(whole)["shapes"] != base_identity(bare)["shapes"]
    for host, other in ((whole, bare), (bare, whole)):
        host.attach("a", parse("LoRA(r=2)"), head=TASK.make_head(host.model.config))
        host.save("a", tmp_path / "a")
        assert other.load(tmp_path / "a", name="b").tensors().keys() == host.adapters["a"].tensors().keys()
        other.detach("b"), host.detach("a")


@pytest.mark.parametrize("change", ["lm", "at the head", "mixture"])
def test_what_reads_the_language_model_head_needs_it(change, tmp_path):
    whole, bare = bodies("llama")
    head = TASK.make_head(whole.model.config)
    if change == "mixture":
        head = Heads(HeadsConfig({"one": head.config}))
    whole.attach("a", parse("LoRA(r=2)" + " + BitFit(sites='lm_head', missing='add')" * (change == "at the head")),
                 head=False if change == "lm" else head)  # fmt: skip
    whole.save("a", tmp_path / "a")
    with pytest.raises(DeltatuneError, match=r"it was trained on another base: .*CausalLM.* this is .*Model"):
        bare.load(tmp_path / "a")


@pytest.mark.parametrize("scheme", ["nf4", "NF4(double=False)", "int8"])
def test_a_base_with_equal_codes_and_other_scales_is_another_one(scheme, tmp_path):
    hosts = []
    for factor in (1.0, 1.0, 2.0):
        model = models.tiny("bert", hidden_size=64, intermediate_size=128)
        with torch.no_grad():
            model.encoder.layer[1].output.dense.weight *= factor
        quantize_(model, scheme)
        hosts.append(Host(model))
    assert len([m for m in hosts[0].model.modules() if isinstance(m, QuantizedLinear)]) > 4
    first, same, doubled = hosts
    assert base_identity(first)["content"] == base_identity(doubled)["content"]
    first.attach("a", parse("LoRA(r=2)"))
    first.save("a", tmp_path / "a")
    same.load(tmp_path / "a")
    with pytest.raises(DeltatuneError, match="the right shapes but other weights"):
        doubled.load(tmp_path / "a")
    doubled.load(tmp_path / "a", other_base=True)
    doubled.detach("a")
    old = {key: value for key, value in base_identity(first).items() if key != "scales"}
    assert compare_bases(old, first, other_base=False) == []  # written by an earlier version
