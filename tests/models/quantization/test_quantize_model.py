"""`quantize_` and `dequantize_`: which matrices, what stays, and what a quantised model still can do."""

import copy
import io

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.quantization.quantized_linear import QuantizedLinear
from deltatune.core.quantization.schemes import NF4
from deltatune.core.quantization.stored_weights import stored_bytes
from deltatune.methods.low_rank.lora import LoRA
from deltatune.models.quantization.quantize_model import dequantize_, quantize_
from deltatune.store.fingerprint import base_identity
from support.models import inputs, tiny

FAMILIES = ("bert", "gpt2", "llama", "t5", "falcon-7b", "mixtral", "vit", "albert")


def logits(model: nn.Module, kind: str, head: str | None = "lm") -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(**inputs(kind, head))[0]
    return output


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_matrix_is_quantised_or_named(kind):
    model = tiny(kind, None if kind in ("vit", "albert") else "lm")
    matrices = {
        name.removesuffix(".weight")
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.dim() > 1
    }
    done = quantize_(model, "nf4")
    skipped = {name.removesuffix(".weight") for name in done.skipped}
    assert {*done.modules} | skipped == matrices
    assert not {*done.modules} & skipped
    assert all(isinstance(model.get_submodule(path), QuantizedLinear) for path in done.modules)
    dequantize_(model)
    assert not [path for path, module in model.named_modules() if isinstance(module, QuantizedLinear)]


def test_reasons_say_what_a_matrix_is():
    model = tiny("gpt2", "lm")
    skipped = quantize_(model, "nf4", "*.attn.o").skipped
    assert "tied to transformer.wte" in skipped["lm_head"]
    assert "embedding" in skipped["transformer.wpe"]
    assert "not among the sites" in skipped["transformer.h.0.mlp.c_fc"]
    assert "experts" in quantize_(tiny("mixtral", "lm"), "nf4").skipped["model.layers.0.mlp.experts.gate_up_proj"]
    assert "convolution" in quantize_(tiny("vit"), "nf4").skipped["embeddings.patch_embeddings.projection"]


def test_bits_a_parameter_are_counted_from_the_tensors():
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=1, **sizes))
    plain = stored_bytes(model)
    done = quantize_(model, NF4(double=True))
    assert done.bits == pytest.approx(4.127, abs=5e-4)
    assert plain - stored_bytes(model) == pytest.approx(4 * done.params - done.bytes, abs=64)


def test_a_module_of_another_class_or_with_hooks_is_left_alone():
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = tiny("bert")
    layer = model.encoder.layer[0]
    own = Doubled(32, 32)
    layer.attention.self.query = own
    layer.attention.self.key.register_forward_hook(lambda module, args, output: output)
    nn.utils.parametrize.register_parametrization(layer.attention.self.value, "weight", nn.Identity())
    done = quantize_(model, "nf4")
    for part, words in (("query", "Doubled has a forward of its own"), ("key", "hooks"), ("value", "parametrize")):
        assert words in done.skipped[f"encoder.layer.0.attention.self.{part}"]
    assert layer.attention.self.query is own


def test_tied_maps_of_blocks_are_left_and_named():
    model = tiny("llama", "lm")
    first, second = (layer.mlp for layer in model.model.layers)
    second.up_proj.weight = first.up_proj.weight
    second.down_proj = first.down_proj
    done = quantize_(model, "int8")
    assert done.skipped["model.layers.0.mlp.up_proj"] == "its weight is tied to model.layers.1.mlp.up_proj"
    assert "layers.0.mlp.down_proj" in done.skipped["model.layers.1.mlp.down_proj"]
    assert second.down_proj is first.down_proj


@pytest.mark.parametrize("scheme", ["nf4", "NF4(double=False)", "int8"])
def test_on_the_meta_device_there_are_shapes_and_bytes(scheme):
    real = tiny("gpt2", "lm")
    with torch.device("meta"):
        empty = type(real)(copy.deepcopy(real.config))
    done, counted = quantize_(real, scheme), quantize_(empty, scheme)
    assert (done.modules, done.params, done.bytes) == (counted.modules, counted.params, counted.bytes)
    held, shapes = real.state_dict(), empty.state_dict()
    assert {name: (t.shape, t.dtype) for name, t in held.items() if "quant_state" not in name} == {
        name: (t.shape, t.dtype) for name, t in shapes.items() if "quant_state" not in name
    }


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("scheme", ["nf4", "fp4", "int8"])
def test_values_that_are_not_finite_are_refused_before_anything_changes(value, scheme):
    model = tiny("llama", "lm")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = value
    with pytest.raises(DeltatuneError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        quantize_(model, scheme)
    assert not [module for module in model.modules() if isinstance(module, QuantizedLinear)]


def test_what_is_quantised_already_and_patterns_without_matches_are_refused():
    model = tiny("llama", "lm")
    with pytest.raises(DeltatuneError, match="attn"):
        quantize_(model, "nf4", "*.atn.q")
    quantize_(model, "nf4", "*.attn.*")
    with pytest.raises(DeltatuneError, match="quantised already"):
        quantize_(model, "nf4")
    host = Host(tiny("bert"))
    host.attach("adapter", LoRA(r=2))
    with pytest.raises(DeltatuneError, match="Host"):
        quantize_(host.model, "nf4")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_copies_pickles_and_moves_keep_every_bit(kind, scheme):
    model = tiny(kind, "lm")
    quantize_(model, scheme)
    before = logits(model, kind)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False), model.share_memory().to("cpu")):
        assert torch.equal(logits(other, kind), before)
    module = next(module for module in model.modules() if isinstance(module, QuantizedLinear))
    assert module.codes.is_shared()
    stored = {name: tensor.clone() for name, tensor in module.tensors.items()}
    model.to(torch.bfloat16).to(torch.float32)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in module.tensors.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_16_bits_is_quantised_from_its_values(dtype):
    model, wide = tiny("llama", "lm").to(dtype), tiny("llama", "lm").to(dtype).float()
    quantize_(model, "nf4")
    quantize_(wide, "nf4")
    path = "model.layers.0.self_attn.q_proj"
    narrow, same = model.get_submodule(path), wide.get_submodule(path)
    assert narrow.weight.dtype == dtype
    assert all(torch.equal(tensor, same.tensors[name]) for name, tensor in narrow.tensors.items())


def test_the_base_is_the_same_whatever_the_number_of_threads():
    """The mean of the magnitudes depends on it in its last bit; the codes, which identify a base, do not."""
    sizes = {"hidden_size": 512, "intermediate_size": 4224, "num_attention_heads": 8, "num_key_value_heads": 8}
    plain = LlamaModel(LlamaConfig(vocab_size=16, num_hidden_layers=1, **sizes))
    before, identities, offsets = torch.get_num_threads(), [], []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            model = copy.deepcopy(plain)
            quantize_(model, "nf4", "*.ffn.out")
            identities.append(base_identity(Host(model)))
            offsets.append(model.layers[0].mlp.down_proj.offset)
    finally:
        torch.set_num_threads(before)
    assert identities[0] == identities[1]
    assert identities[0]["quantized"] == ["nf4"]
    torch.testing.assert_close(*offsets, rtol=1e-6, atol=0)


def test_another_quantisation_is_another_base():
    contents = set()
    for scheme in ("none", "nf4", "fp4", "int8"):
        model = tiny("llama")
        quantize_(model, scheme)
        contents.add(base_identity(Host(model))["content"])
    assert len(contents) == 4


def test_other_biases_are_another_base(tmp_path):
    """BitFit, merged into a base, changes biases alone: its codes are those of the base."""
    hosts = []
    for shift in (0.0, 0.5):
        model = tiny("gpt2", "lm")
        with torch.no_grad():
            model.transformer.h[1].mlp.c_proj.bias.add_(shift)
        quantize_(model, "nf4")
        hosts.append(Host(model))
    first, other = hosts
    assert base_identity(first)["content"] != base_identity(other)["content"]
    first.attach("a", LoRA(r=2), head=False)
    first.save("a", tmp_path / "a")
    with pytest.raises(DeltatuneError, match="other weights"):
        other.load(tmp_path / "a")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5"])
def test_no_weight_is_dequantised_until_the_model_runs_and_then_once(kind, monkeypatch, tmp_path):
    """On a model of billions of parameters each needless reading of all weights takes minutes."""
    read: list[QuantizedLinear] = []
    dequantise = NF4.dequantize

    def counted(scheme, tensors, shape, dtype):
        read.append(scheme)
        return dequantise(scheme, tensors, shape, dtype)

    monkeypatch.setattr(NF4, "dequantize", counted)
    model = tiny(kind, "lm")
    done = quantize_(model, "nf4")
    host = Host(model)
    host.attach("a", LoRA(r=2), head=False)
    host.describe()
    host.save("a", tmp_path / "a")
    host.load(tmp_path / "a", name="b")
    assert not read
    if kind == "t5":  # transformers asks its maps `wo` for the type of their weight
        return
    with torch.no_grad():
        model(**inputs(kind, "lm"))
    assert len(read) == len(done.modules)


def test_a_model_with_a_host_is_refused_also_without_adapters():
    model = tiny("bert", hidden_size=64)
    Host(model)
    with pytest.raises(DeltatuneError, match="this model has a Host, which knows its weights"):
        quantize_(model, "nf4")
