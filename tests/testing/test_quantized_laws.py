"""The laws on a quantised base: every registered method, on each tiny model with its weights in 4 or 8 bits."""

import pytest
import torch
from test_laws import VARIANTS, defaults

from deltatune import DeltatuneError, Host, LoRA, parse
from deltatune.core.quantization.schemes import NF4
from deltatune.models.quantization.quantize_model import dequantize_, quantize_
from deltatune.testing import LAWS, MODELS, SLOW_LAWS, applies, check_method, demand, inputs, tiny
from deltatune.testing.fixtures import attach, make_host, outputs, quantized_bases

SCHEME = "NF4(block=32)"
"""Blocks that the tiny matrices' rows are whole numbers of, so that bitsandbytes' kernel runs where it is installed."""
QUICK = [("LoRA()", "gpt2", "nf4"), ("DoRA()", "llama", SCHEME), ("MAM()", "bert", "FP4(double=False)")]
TRAIN_THE_BASE = ("Full()", "DID()", "SAID()", "TopLayers()", "Unfreeze()")


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("text", "kind", "scheme"), QUICK)
@pytest.mark.parametrize("law", LAWS)
def test_law_on_a_quantised_base(law, text, kind, scheme):
    demand(law, parse(text), kind, scheme)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("text", defaults())
def test_laws_on_a_quantised_base(text, kind):
    if applies(parse(text), kind, SCHEME) is None:
        check_method(parse(text), models=[kind], quantize=SCHEME)


@pytest.mark.slow
@pytest.mark.parametrize("text", VARIANTS)
def test_laws_of_variants_on_a_quantised_base(text):
    for kind in VARIANTS[text]:
        if applies(parse(text), kind, "nf4") is None:
            check_method(parse(text), models=[kind], quantize="nf4")


@pytest.mark.slow
@pytest.mark.parametrize("text", ["LoRA()", "Houlsby()", "Prefix()", "ReFT()", "BitFit(missing='add')"])
def test_laws_on_a_base_in_eight_bits(text):
    check_method(parse(text), quantize="int8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch asks; computed weights
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch's own doing
@pytest.mark.parametrize("text", ["LoRA()", "DoRA()", "Houlsby()", "Prefix()"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("law", SLOW_LAWS)
def test_slow_law_on_a_quantised_base(law, kind, text):
    demand(law, parse(text), kind, "nf4")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("text", defaults())
def test_a_method_is_refused_only_if_it_trains_weights_that_are_codes(text, kind):
    plain, quantised = applies(parse(text), kind), applies(parse(text), kind, "nf4")
    if plain is None and text in TRAIN_THE_BASE:
        assert quantised is not None
        for part in ("nf4", "codes", "LoRA()", "without quantisation"):
            assert part in quantised
    else:
        assert quantised == plain


@pytest.mark.parametrize("text", TRAIN_THE_BASE)
def test_a_refusal_leaves_the_quantised_model_alone(text):
    with quantized_bases("nf4"):
        host = make_host("bert")
    before = outputs(host, inputs("bert"))
    with pytest.raises(DeltatuneError, match="stored in nf4"):
        host.attach("a", parse(text))
    assert not host.adapters
    assert torch.equal(outputs(host, inputs("bert")), before)
    host.attach("a", LoRA())


@pytest.mark.parametrize("kind", MODELS)
def test_plain_upper_layers_above_quantised_ones_can_be_trained(kind):
    model = tiny(kind, "lm" if kind == "t5" else None, dropout=False)
    quantize_(model, "nf4", sites=["encoder.layers.0.*", "decoder.layers.0.*"] if kind == "t5" else "layers.0.*")
    host = Host(model)
    host.attach("a", parse("TopLayers(layers=1)"))
    trained = dict(host.trainable("a"))
    assert trained
    batch = inputs(kind)
    before = outputs(host, batch)
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    host.model.train()
    host.model(**batch)[0].square().sum().backward()
    optimizer.step()
    host.model.eval()
    assert not torch.equal(outputs(host, batch), before)
    host.detach("a")
    assert torch.equal(outputs(host, batch), before)


@pytest.mark.parametrize("text", ["DoRA(r=2)", "DoRA(r=2, norm='exact')", "PiSSA(r=2)"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_methods_that_read_the_weight_read_the_dequantised_one(text, kind):
    """The same adapter on a plain model of exactly the values that the codes stand for computes the same."""
    with quantized_bases("nf4"):
        quantised = make_host(kind)
    plain = Host(_plain(kind))
    for host in (quantised, plain):
        attach(host, "a", parse(text))
    for key, tensor in plain.adapters["a"].tensors().items():
        torch.testing.assert_close(quantised.adapters["a"].tensors()[key], tensor, rtol=1e-5, atol=1e-6, msg=key)
    torch.testing.assert_close(outputs(quantised, inputs(kind)), outputs(plain, inputs(kind)), rtol=1e-5, atol=1e-5)


def _plain(kind):
    model = tiny(kind, dropout=False)
    quantize_(model, "nf4")
    dequantize_(model)
    return model


def test_dora_computes_its_norms_once_at_inference(monkeypatch):
    made = []
    dequantize = NF4.dequantize
    monkeypatch.setattr(NF4, "dequantize", lambda *given: made.append(1) or dequantize(*given))
    with quantized_bases("nf4"):
        host = make_host("llama")
    maps = sum("codes" in name for name, _ in host.model.named_buffers())
    attach(host, "a", parse("DoRA(r=2)"))
    outputs(host, inputs("llama"))
    made.clear()
    outputs(host, inputs("llama"))
    assert len(made) == maps  # once for each product, none for norms
