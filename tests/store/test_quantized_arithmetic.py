"""Combining, analysing and exchanging adapters of a quantised base, which reads one weight at a time."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import deltatune
from deltatune import Host, combine, parse, quantize_
from deltatune.core.errors import DeltatuneError
from deltatune.core.quantization.stored_weights import stored_weight
from deltatune.store.arithmetic.adapter_analysis import changes_of, overlaps_of
from deltatune.testing.fixtures import attach, outputs
from deltatune.testing.tiny_models import inputs, tiny
from support.language_models import wide_llama


def hosts(kind, *methods):
    """The same adapters on a quantised base and on the plain model of the same values."""
    both = []
    for plain in (False, True):
        model = tiny(kind, "lm", dropout=False)
        quantize_(model, "nf4")
        if plain:
            deltatune.dequantize_(model)
        host = Host(model)
        for seed, (name, method) in enumerate(zip("ab", methods, strict=False)):
            attach(host, name, parse(method), seed=seed)
        both.append(host)
    return both


@pytest.fixture
def reads(monkeypatch):
    """Grows by one each time a weight is dequantised."""
    from deltatune.core.quantization.quantized_linear import QuantizedLinear

    made = []
    matrix = QuantizedLinear.matrix
    monkeypatch.setattr(QuantizedLinear, "matrix", lambda self, dtype: made.append(1) or matrix(self, dtype))
    return made


@pytest.mark.parametrize("kind", ["gpt2", "llama", pytest.param("t5", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("methods", "options"),
    [
        (("LoRA(r=2)", "LoRA(r=3)"), {}),
        (("LoRA(r=2)", "DoRA(r=2)"), {"how": "ties", "rank": 4}),
        (("PiSSA(r=2)", "VeRA(r=4)"), {"how": "dare", "density": 0.5, "rank": "full"}),
        (("IA3()", "IA3()"), {}),
    ],
)
def test_combinations_are_those_of_the_plain_model(kind, methods, options):
    made = []
    for host in hosts(kind, *methods):
        combined = combine(host, "c", {"a": 0.6, "b": -0.3}, head=False, **options)
        host.use("c")
        made.append((combined.error, combined.adapter.tensors(), outputs(host, inputs(kind, "lm"))))
    (error, tensors, out), (plain_error, plain_tensors, plain_out) = made
    assert error == pytest.approx(plain_error, abs=1e-6)
    assert tensors.keys() == plain_tensors.keys()
    if not any(method.startswith(("PiSSA", "DoRA")) for method in methods):
        assert all(torch.equal(tensor, plain_tensors[name]) for name, tensor in tensors.items())
    torch.testing.assert_close(out, plain_out, rtol=1e-3, atol=1e-3)


def test_exact_sums_read_no_weight(reads):
    host = hosts("gpt2", "LoRA(r=2)", "LoRA(r=3)")[0]
    reads.clear()
    combine(host, "c", {"a": 1.0, "b": 1.0}, head=False)
    assert not reads


@pytest.mark.parametrize("kind", ["gpt2", pytest.param("t5", marks=pytest.mark.slow)])
def test_the_analysis_is_that_of_the_plain_model(kind):
    pairs = [[changes_of(host, name) for name in "ab"] for host in hosts(kind, "LoRA(r=2)", "DoRA(r=2)")]
    for ours, plain in zip(*pairs, strict=True):
        assert [(c.site, c.parameter, c.form, c.place, c.shape) for c in ours] == [
            (c.site, c.parameter, c.form, c.place, c.shape) for c in plain
        ]
        for one, other in zip(ours, plain, strict=True):
            assert one.norm == pytest.approx(other.norm, rel=1e-5)
            assert one.relative == pytest.approx(other.relative, rel=1e-5)
    for one, other in zip(overlaps_of(*pairs[0]), overlaps_of(*pairs[1]), strict=True):
        assert one.cosine == pytest.approx(other.cosine, abs=1e-5)


def test_a_sum_of_whole_weights_over_a_partly_quantised_base():
    model = tiny("bert", "classify", dropout=False)
    quantize_(model, "nf4", "layers.0.*")
    host = Host(model)
    for name in "ab":
        attach(host, name, parse("TopLayers(1)"), seed=ord(name))
    combine(host, "c", {"a": 1.0, "b": 0.0}, head=False)
    changed = {change.site: change.norm for change in changes_of(host, "c") if change.form == "weight"}
    original = {change.site: change.norm for change in changes_of(host, "a") if change.form == "weight"}
    assert changed == pytest.approx(original)
    assert changed


def test_weights_of_a_loralib_checkpoint_are_not_compared_with_codes(tmp_path):
    from safetensors.torch import save_file

    host = hosts("llama")[0]
    path = "model.layers.0.self_attn.q_proj"
    tensors = {f"{path}.lora_A": torch.randn(2, 32), f"{path}.lora_B": torch.randn(32, 2)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert deltatune.load_loralib(host, tmp_path / "a.safetensors", alpha=4).count
    norm = {"model.norm.weight": host.base.tensor("model.norm.weight").detach().clone()}
    save_file({**tensors, **norm}, tmp_path / "b.safetensors")
    assert deltatune.load_loralib(host, tmp_path / "b.safetensors", alpha=4).count
    save_file({**tensors, f"{path}.weight": torch.randn(32, 32)}, tmp_path / "c.safetensors")
    with pytest.raises(
        DeltatuneError, match=r"q_proj.weight cannot be compared .* stored in nf4: load the model without"
    ):
        deltatune.load_loralib(host, tmp_path / "c.safetensors", alpha=4)


def bitsandbytes_model(folder):
    from transformers import BitsAndBytesConfig

    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=options, dtype=torch.float32)
    for module in model.modules():  # on some processors it repacks weights and rounds their scales when it is run
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model.eval()


def our_host(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    quantize_(model, "nf4")
    return Host(model.eval())


@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, pytest.param({"use_rslora": True}, marks=pytest.mark.slow)]
)
def test_an_adapter_that_peft_trained_on_linear4bit_loads_here(options, tmp_path):
    pytest.importorskip("bitsandbytes")
    peft = pytest.importorskip("peft")
    folder, batch = tmp_path / "base", inputs("llama", "lm")
    wide_llama(folder)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], **options)
    theirs = peft.get_peft_model(bitsandbytes_model(folder), config).eval()
    assert "Linear4bit" in {type(module).__name__ for module in theirs.modules()}
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        expected = theirs(**batch).logits
    theirs.save_pretrained(tmp_path / "adapter")
    host = our_host(folder)
    host.load(tmp_path / "adapter", name="a")
    torch.testing.assert_close(outputs(host, batch), expected, rtol=1e-4, atol=1e-4)
    assert host.merge_("a") < 1e-4
    torch.testing.assert_close(outputs(host, batch), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "method",
    [
        "LoRA(r=4)",
        "PiSSA(r=4)",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("DoRA(r=4)", "IA3()", "VeRA(r=8)")),
    ],
)
def test_an_adapter_of_a_quantised_base_loads_in_peft_on_linear4bit(method, tmp_path):
    pytest.importorskip("bitsandbytes")
    peft = pytest.importorskip("peft")
    folder, batch = tmp_path / "base", inputs("llama", "lm")
    wide_llama(folder)
    host = our_host(folder)
    attach(host, "a", parse(method))
    expected = outputs(host, batch)
    host.save("a", tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/adapter.json").read_text())["base"]["quantized"] == ["nf4"]
    theirs = peft.PeftModel.from_pretrained(bitsandbytes_model(folder), tmp_path / "adapter").eval()
    assert any(stored_weight(module) is not None for module in theirs.modules())
    with torch.no_grad():
        torch.testing.assert_close(theirs(**batch).logits, expected, rtol=1e-4, atol=1e-4)
