"""Merged models of a quantised base: plain files with exactly its codes' values, and files of codes within a bound."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import deltatune
from deltatune.core.errors import CannotMerge, DeltatuneError
from deltatune.core.quantization.stored_weights import stored_weight, weight_of
from deltatune.models.quantization.streaming import load_streamed
from deltatune.store.merged_model import save_merged
from deltatune.store.quantized_model import save_quantized
from support import models
from support.language_models import randomize_, wide_llama


def quantized_host(kind="llama", method="LoRA(r=4)", scheme="nf4", std=0.1):
    model = models.tiny(kind, "lm", dropout=False)
    if scheme:
        deltatune.quantize_(model, scheme)
    host = deltatune.Host(model)
    host.attach("a", deltatune.parse(method), head=False)
    randomize_(host, std=std)
    return host


def logits(model, kind="llama"):
    with torch.no_grad():
        return model(**models.inputs(kind, "lm"))["logits"]


def codes(host):
    return {path: module for path, module in host.model.named_modules() if stored_weight(module) is not None}


def read_codes(folder, host):
    kind = type(host.model)
    return load_streamed(kind, str(folder), kind.config_class.from_pretrained(folder), None)[0].eval()


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("llama", "LoRA(r=4)"),
        ("gpt2", "IA3()"),
        *(pytest.param("t5", method, marks=pytest.mark.slow) for method in ("LoRA(r=4)", "IA3()")),
        *(pytest.param(kind, "DoRA(r=4)", marks=pytest.mark.slow) for kind in ("llama", "gpt2", "t5")),
    ],
)
def test_a_merged_quantised_base_is_a_plain_model(kind, method, tmp_path):
    host = quantized_host(kind, method)
    unmerged, before = logits(host.model, kind), {name: t.clone() for name, t in host.model.state_dict().items()}
    base = {path: weight_of(module) for path, module in codes(host).items()}
    done = save_merged(host, "a", tmp_path / "out")
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    again = auto.from_pretrained(tmp_path / "out")
    assert not any(stored_weight(module) is not None for module in again.modules())
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    torch.testing.assert_close(logits(again, kind), unmerged, rtol=1e-4, atol=1e-4)
    assert done.error < 1e-4
    touched = {site.module for site in host.adapters["a"].sites.values()}
    for path, weight in base.items():
        equal = torch.equal(again.get_submodule(path).weight, weight)
        assert equal != (path in touched), "other maps have exactly the values of their codes"
    after = host.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()), "the host is as it was"
    record = json.loads((tmp_path / "out/merge.json").read_text())
    assert record["base"] == ["nf4"]
    assert record["error"] == done.error


def test_the_loss_of_coarser_types_is_measured(tmp_path):
    host = quantized_host()
    errors = [
        save_merged(host, "a", tmp_path / "out", dtype=dtype).error
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ]
    assert errors[0] < 1e-4 < errors[1] < errors[2] < 0.1
    small = save_merged(host, "a", tmp_path / "out", dtype=torch.bfloat16, weight=0.01).error
    assert small > 10 * errors[2], "the smaller the change, the more of it rounding takes"


@pytest.mark.parametrize("kind", ["llama", "gpt2", pytest.param("t5", marks=pytest.mark.slow)])
@pytest.mark.parametrize("base", ["nf4", None])
def test_codes_are_written_within_the_bound(kind, base, tmp_path):
    host = quantized_host(kind, "LoRA(r=4, sites='*.attn.v')" if kind != "gpt2" else "LoRA(r=4)", base, std=0.5)
    unmerged, before = logits(host.model, kind), {name: t.clone() for name, t in host.model.state_dict().items()}
    kept = {path: dict(module.stored_state()) for path, module in codes(host).items()}
    done = save_merged(host, "a", tmp_path / "out", quantize="nf4", bound=1.0)
    assert 0.001 < done.error < 1.0
    again = read_codes(tmp_path / "out", host)
    held = {path for path, module in again.named_modules() if stored_weight(module) is not None}
    assert held >= {site.module for site in host.adapters["a"].sites.values()}
    assert not kept or held == set(kept)
    norm = (logits(again, kind) - unmerged).norm()
    host.use(None)
    assert 0 < norm < 2 * (logits(host.model, kind) - unmerged).norm()
    touched = {site.module for site in host.adapters["a"].sites.values()}
    for path, tensors in kept.items():
        if path not in touched:
            written = again.get_submodule(path).stored_state()
            assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items()), (
                "no codes are made twice"
            )
    after = host.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()), "the host is as it was"
    entry = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert entry["bnb_4bit_quant_type"] == "nf4"
    assert json.loads((tmp_path / "out/merge.json").read_text())["quantize"] == "nf4"


def test_too_much_loss_is_refused_with_the_figure(tmp_path):
    host = quantized_host(std=0.02)
    before = {name: t.clone() for name, t in host.model.state_dict().items()}
    with pytest.raises(
        CannotMerge, match=r"stored in nf4, the model is \d+\.\d\d times .* bound of 0.25 .*--bound"
    ) as error:
        save_merged(host, "a", tmp_path / "out", quantize="nf4")
    assert "Keep the adapter apart" in str(error.value)
    assert not list(tmp_path.iterdir())
    assert not host.merged
    assert all(torch.equal(host.model.state_dict()[name], tensor) for name, tensor in before.items())
    eight = save_merged(host, "a", tmp_path / "out", quantize="int8", bound=9.0).error
    four = save_merged(host, "a", tmp_path / "out", quantize="nf4", bound=9.0).error
    assert eight < four / 2


def test_an_adapter_without_effect_is_refused_in_codes_alone(tmp_path):
    host = quantized_host(std=0.0)
    assert save_merged(host, "a", tmp_path / "plain").error is None
    with pytest.raises(CannotMerge, match="changes nothing on the verification inputs"):
        save_merged(host, "a", tmp_path / "out", quantize="nf4")
    with pytest.raises(DeltatuneError, match="'nf5' is not a quantisation"):
        save_merged(host, "a", tmp_path / "out", quantize="nf5")


def test_a_damaged_file_of_codes_is_not_kept(tmp_path, monkeypatch):
    from deltatune.store import merged_model

    def wrong(model, dtype, scheme):
        state = real(model, dtype, scheme)
        name = "model.layers.0.mlp.down_proj.weight"
        return {**state, name: state[name] ^ 0x70}

    real = merged_model.weights_of
    monkeypatch.setattr(merged_model, "weights_of", wrong)
    with pytest.raises(DeltatuneError, match=r"read back, differs by .* nothing was written"):
        save_merged(quantized_host(), "a", tmp_path / "out", quantize="nf4", bound=9.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "scheme", ["nf4", "int8", *(pytest.param(each, marks=pytest.mark.slow) for each in ("NF4(double=False)", "fp4"))]
)
def test_transformers_and_bitsandbytes_read_the_codes(scheme, tmp_path):
    pytest.importorskip("bitsandbytes")
    model = wide_llama()
    deltatune.quantize_(model, "nf4")
    host = deltatune.Host(model)
    host.attach("a", deltatune.parse("LoRA(r=4)"), head=False)
    randomize_(host)
    save_merged(host, "a", tmp_path / "out", quantize=scheme, bound=9.0)
    ours = logits(read_codes(tmp_path / "out", host))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert any("bitsandbytes" in type(module).__module__ for module in theirs.modules())
    within = 0.05 if scheme == "int8" else 2e-2  # their products round activations to 8 bits, or magnitudes to bfloat16
    torch.testing.assert_close(logits(theirs).float(), ours, rtol=within, atol=within * float(ours.abs().max()))


@pytest.mark.parametrize("kind", ["nf4", pytest.param("fp4", marks=pytest.mark.slow), "int8"])
def test_a_base_that_bitsandbytes_quantised_is_merged_exactly_or_refused(kind, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    wide_llama(tmp_path / "base")
    options = {"load_in_8bit": True} if kind == "int8" else {"load_in_4bit": True, "bnb_4bit_quant_type": kind}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=BitsAndBytesConfig(**options), dtype=torch.float32
    )
    host = deltatune.Host(model)
    host.attach("a", deltatune.parse("LoRA(r=4)"), head=False)
    randomize_(host)
    unmerged, attributes, config = logits(model), set(vars(model)), model.config.to_dict()
    base = {path: weight_of(module).clone() for path, module in codes(host).items()}
    if kind == "int8":  # their product rounds what it reads, too
        with pytest.raises(CannotMerge, match=r"Maps in bitsandbytes int8 may round .* dequantize_\(model\) before"):
            save_merged(host, "a", tmp_path / "out")
    else:
        assert save_merged(host, "a", tmp_path / "out").error < 1e-3
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert not any("bitsandbytes" in type(module).__module__ for module in again.modules())
        torch.testing.assert_close(logits(again), unmerged, rtol=1e-3, atol=1e-4)
        path = "model.layers.0.mlp.up_proj"
        assert torch.equal(again.get_submodule(path).weight, base[path])
    assert set(vars(model)) == attributes
    assert model.config.to_dict() == config
    assert torch.equal(logits(model), unmerged)
    assert all(torch.equal(weight_of(module), base[path]) for path, module in codes(host).items())


def test_a_base_from_a_folder_of_codes_is_merged_like_one_quantised_here(tmp_path):
    model = wide_llama()
    deltatune.quantize_(model, "nf4")
    save_quantized(model, tmp_path / "codes")
    loaded = read_codes(tmp_path / "codes", deltatune.Host(wide_llama()))
    folders = []
    for base in (model, loaded):
        host = deltatune.Host(base)
        host.attach("a", deltatune.parse("LoRA(r=4)"), head=False)
        randomize_(host)
        folders.append(save_merged(host, "a", tmp_path / f"out{len(folders)}").folder)
    first, second = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("method", ["MAM()", "Prefix(length=3)", "Bottleneck(size=4)", "BitFit(missing='add')"])
def test_what_has_no_weight_form_is_refused_and_the_codes_stay(method, tmp_path):
    host = quantized_host("llama", method)
    paths = set(codes(host))
    for options in ({}, {"quantize": "nf4"}):
        with pytest.raises(CannotMerge, match=r"no exact weight form|no bias to merge into"):
            save_merged(host, "a", tmp_path / "out", **options)
    assert set(codes(host)) == paths
    assert not list(tmp_path.iterdir())


def test_a_scaled_adapter_is_merged_with_its_weight(tmp_path):
    host = quantized_host("gpt2")
    host.use({"a": 0.5})
    half = logits(host.model, "gpt2")
    save_merged(host, "a", tmp_path / "out", weight=0.5)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(again, "gpt2"), half, rtol=1e-4, atol=1e-4)
