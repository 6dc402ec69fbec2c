"""Adapters of the bare transformer on a model with a language-model head, and back: the same outputs and folders."""

import copy

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM

import deltatune
from deltatune import DeltatuneError, Host
from deltatune.models.quantization.quantize_model import quantize_
from deltatune.store.adapter_folder import read_stored
from deltatune.store.fingerprint import base_identity
from deltatune.tasks import Classify
from support import models

METHODS = [
    "LoRA(r=2)", "LoRA(r=2, sites='*.{attn.q,ffn.in}')", "BitFit(missing='add')", "IA3()", "Pfeiffer(size=4)",
    "Houlsby(size=4)", "Compacter(size=8)", "Prefix(length=3)", "Prompt(length=3)", "PTuning(length=3)", "ReFT(r=2)",
    "DoRA(r=2)", "PiSSA(r=2)", "VeRA(r=4)", "LongLoRA(r=2)", "LNTuning()", "MAM(length=3, size=4)",
    "UniPELT(r=2, length=3, size=4)", "Unified()", "IDPG()", "Full()", "TopLayers(1)", "Embeddings()",
    "Embeddings(head=False)", "Probe()", "DID(dimension=20)", "SAID(dimension=20)",
    "SAID(dimension=60, scales='tensor')", "LoRA(r=2) + BitFit(missing='add')", "LoRA(r=2) + TopLayers(1)",
]  # fmt: skip
FAMILIES = [
    "llama", "mistral", "qwen2", "gpt2", "gpt_neox", "opt", "bert", "roberta", "distilbert", "mpnet", "t5", "bart",
    "albert", "electra", "deberta-v2", "modernbert",
]  # fmt: skip
MASKED = {"albert", "electra", "deberta-v2", "modernbert"}
FILES = ("adapter.json", "adapter.safetensors")
TASK = Classify(labels=("bad", "good"))


def bodies(kind, **config):
    """A language model and the bare transformer with the same weights."""
    if kind in MASKED:
        whole = AutoModelForMaskedLM.from_config(models.tiny(kind, **config).config).eval()
    else:
        whole = models.tiny(kind, "lm", **config)
    bare = copy.deepcopy(whole.base_model)
    if whole.base_model is whole:  # T5
        bare = AutoModel.from_config(whole.config).eval()
        assert not bare.load_state_dict(whole.state_dict(), strict=False).missing_keys
    return whole, bare


def states(host, kind):
    """The last hidden states of the bare transformer, under a head or not."""
    batch = models.inputs(kind, "lm")
    with torch.no_grad():
        out = host.model(**batch, output_hidden_states=True)
    if "last_hidden_state" in out:
        return out.last_hidden_state
    return (out.decoder_hidden_states if host.model.config.is_encoder_decoder else out.hidden_states)[-1]


def trained(host, text, **options):
    """An adapter whose tensors have moved."""
    adapter = host.attach("a", deltatune.parse(text), **options)
    with torch.no_grad():
        for i, parameter in enumerate(p for p in adapter.parameters() if p.requires_grad):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    host.remove_reparametrisation_("a")
    return adapter


def check_both(kind, text, folder, whole, bare):
    """Train on the bare transformer; attach, put into the bank, and save again on the language model."""
    host = Host(bare)
    trained(host, text, head=False)
    wanted = states(host, kind)
    host.save("a", folder / "a")
    host.detach("a")
    served = Host(whole)
    plain = states(served, kind)
    served.load(folder / "a", name="b")
    served.use("b")
    torch.testing.assert_close(states(served, kind), wanted, rtol=0, atol=1e-5)
    assert served.adapters["b"].count == deltatune.parse(text).without_reparametrisation().count(host.sites)
    served.save("b", folder / "b")
    for name in FILES:
        assert (folder / "b" / name).read_bytes() == (folder / "a" / name).read_bytes(), name
    stored, bank = read_stored(folder / "a"), served.bank()
    if stored.can_go_into(bank):
        stored.put_into(bank, "c")
        served.use("c")
        torch.testing.assert_close(states(served, kind), wanted, rtol=0, atol=1e-5)
    served.use(None)
    assert torch.equal(states(served, kind), plain)


@pytest.mark.parametrize("text", ["BitFit(missing='add')", "Houlsby(size=4)", "TopLayers(1)", "DID(dimension=20)"])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_adapters_of_the_bare_transformer_act_on_it_alone_under_a_language_model_head(kind, text, tmp_path):
    check_both(kind, text, tmp_path, *bodies(kind))


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_method_on_every_family(kind, tied, tmp_path):
    whole, bare = bodies(kind, tie_word_embeddings=tied)
    ran = 0
    for i, text in enumerate(METHODS):
        try:
            Host(copy.deepcopy(bare)).attach("a", deltatune.parse(text), head=False)
        except DeltatuneError:  # no such sites in this family
            continue
        check_both(kind, text, tmp_path / str(i), copy.deepcopy(whole), copy.deepcopy(bare))
        ran += 1
    assert ran > 20


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["nf4", "int8"])
@pytest.mark.parametrize("kind", ["llama", "bert", "t5"])
def test_quantised_bases(kind, scheme, tmp_path):
    whole, bare = bodies(kind, tie_word_embeddings=False)
    for model in (whole, bare):
        quantize_(model, scheme)
    for i, text in enumerate(["LoRA(r=2)", "BitFit(missing='add')", "Houlsby(size=4)", "DoRA(r=2)"]):
        check_both(kind, text, tmp_path / str(i), copy.deepcopy(whole), copy.deepcopy(bare))


def test_a_quantised_language_model_head_is_no_part_of_the_bare_identity():
    whole, bare = bodies("llama", tie_word_embeddings=False)
    quantize_(whole, "nf4", sites=["*.attn.*", "lm_head"])
    quantize_(bare, "nf4", sites="*.attn.*")
    under, alone = base_identity(Host(whole), bare=True), base_identity(Host(bare))
    assert under == alone


@pytest.mark.parametrize(
    ("kind", "text"), [("gpt2", "Full()"), ("llama", "TopLayers(1)"), ("gpt2", "DID(dimension=20)")]
)
def test_classifiers_trained_under_a_head_load_on_the_bare_transformer(kind, text, tmp_path):
    whole, bare = bodies(kind)
    host, alone = Host(whole), Host(bare)
    trained(host, text, head=TASK.make_head(whole.config))
    wanted = states(host, kind)
    host.save("a", tmp_path / "a")
    alone.load(tmp_path / "a")
    torch.testing.assert_close(states(alone, kind), wanted, rtol=0, atol=1e-5)
    alone.save("a", tmp_path / "b")
    host.load(tmp_path / "b", name="b")
    host.use("b")
    torch.testing.assert_close(states(host, kind), wanted, rtol=0, atol=1e-5)
    host.save("b", tmp_path / "c")
    for name in FILES:
        content = (tmp_path / "a" / name).read_bytes()
        assert content == (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes(), name


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_adapters_of_a_tied_language_model_keep_their_part_at_its_head(kind, tmp_path):
    whole, bare = bodies(kind, tie_word_embeddings=True)
    host, alone = Host(whole), Host(bare)
    trained(host, "BitFit(missing='add')", head=False)
    host.save("a", tmp_path / "a")
    again = host.load(tmp_path / "a", name="b")
    assert "bitfit.lm_head" in again.sites
    host.save("b", tmp_path / "b")
    assert (tmp_path / "a" / FILES[0]).read_bytes() == (tmp_path / "b" / FILES[0]).read_bytes()
    with pytest.raises(DeltatuneError, match=r"sites has bitfit\.lm_head, where"):
        alone.load(tmp_path / "a")


def test_a_bank_holds_adapters_of_the_whole_model_and_of_its_body_side_by_side(tmp_path):
    whole, bare = bodies("llama")
    host, alone = Host(whole), Host(bare)
    stored = {}
    for name, of in (("whole", host), ("body", alone)):
        trained(of, "BitFit(missing='add')", head=False)
        of.save("a", tmp_path / name)
        of.detach("a")
        stored[name] = read_stored(tmp_path / name)
        stored[name].put_into(host.bank(), name)
    batch = models.inputs("llama", "lm", rows=2, padding="none")
    with torch.no_grad():
        single = {}
        for name in stored:
            host.use(name)
            single[name] = host.model(**batch).logits
        host.use(["whole", "body"])
        mixed = host.model(**batch).logits
    torch.testing.assert_close(mixed[0], single["whole"][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[1], single["body"][1], rtol=0, atol=1e-5)
    assert not torch.allclose(mixed[0], single["body"][0], atol=1e-3)


def test_a_changed_folder_is_told_in_the_names_that_it_has(tmp_path):
    whole, bare = bodies("llama")
    host = Host(bare)
    trained(host, "TopLayers(1)", head=False)
    host.save("a", tmp_path / "a")
    stored = read_stored(tmp_path / "a")
    lacking = dict(stored.tensors)
    del lacking["unfreeze.norm.weight.value"]
    object.__setattr__(stored, "tensors", lacking)
    with pytest.raises(DeltatuneError, match=r"tensor unfreeze\.norm\.weight\.value is missing"):
        stored.attach_to(Host(whole), "b")
