"""Folders of quantised models: written here or by transformers with bitsandbytes, read by both."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.quantization import kernels
from deltatune.core.quantization.quantized_linear import QuantizedLinear
from deltatune.core.quantization.schemes import NF4, Int8
from deltatune.models.loading import load_backbone
from deltatune.models.quantization.quantize_model import quantize_
from deltatune.store.fingerprint import base_identity
from deltatune.store.quantized_model import save_quantized
from support.models import tiny, tiny_tokenizer
from support.quantized_folders import assert_equal, logits, written

SCHEMES = ("nf4", "NF4(double=False)", "NF4(block=128)", "NF4(nested='fp8')", "fp4", "int8")
EVEN: dict[str, dict[str, int]] = {
    "bert": {"hidden_size": 128, "intermediate_size": 256},
    "gpt2": {"n_embd": 128, "n_inner": 256},
    "llama": {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32},
}
"""Widths that are whole numbers of blocks, as bitsandbytes' kernel for the CPU needs."""


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("kind", "scheme"),
    [
        *(("gpt2", scheme) for scheme in SCHEMES),
        *((kind, scheme) for kind in ("bert", "t5", "falcon-7b", "mixtral") for scheme in ("nf4", "int8")),
    ],
)
def test_what_is_saved_is_loaded_bit_by_bit(kind, scheme, tmp_path):
    model = written(tmp_path / "q", kind, scheme)
    loaded, _ = load_backbone(str(tmp_path / "q"), answers="words")
    assert_equal(model, loaded)
    assert torch.equal(logits(model, kind), logits(loaded, kind))
    assert {module.scheme.text for module in loaded.modules() if isinstance(module, QuantizedLinear)} == {scheme}
    assert not hasattr(loaded.config, "quantization_config")
    again = tmp_path / "again"
    save_quantized(loaded, again, tiny_tokenizer())
    for file in ("config.json", "model.safetensors"):
        assert (again / file).read_bytes() == (tmp_path / "q" / file).read_bytes()


def test_without_bitsandbytes_the_folder_loads_and_computes_the_same(tmp_path, monkeypatch):
    model = written(tmp_path, **EVEN["llama"])
    expected = logits(model, "llama")
    kernels._kernel.cache_clear()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    try:
        loaded, _ = load_backbone(str(tmp_path), answers="text")
        assert kernels._kernel() is None
        assert torch.equal(logits(loaded, "llama"), expected)
    finally:
        kernels._kernel.cache_clear()
    assert_equal(model, loaded)


@pytest.mark.slow
def test_a_process_that_never_had_bitsandbytes_loads_the_folder(tmp_path):
    model = written(tmp_path / "q", **EVEN["llama"])
    program = """
import sys
sys.modules["bitsandbytes"] = None
import torch
from deltatune.models.loading import load_backbone
model, _ = load_backbone(sys.argv[1], answers="text")
with torch.no_grad():
    torch.save([model(input_ids=torch.arange(12)[None])[0], model.state_dict()], sys.argv[2])
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "q"), str(tmp_path / "out")], check=True)
    output, state = torch.load(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(output, model(input_ids=torch.arange(12)[None])[0])
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_the_saved_base_is_the_same_base(tiny_folder, tmp_path):
    """An adapter trained with --quantize fits the folder that was saved, the pooler dropped or not."""
    model, tokenizer = load_backbone(str(tiny_folder), quantize="nf4")
    save_quantized(model, tmp_path, tokenizer)
    identities = [base_identity(Host(base)) for base in (model, load_backbone(str(tmp_path))[0])]
    assert identities[0] | {"name": ""} == identities[1] | {"name": ""}


def from_transformers(folder: Path, kind: str, **more: Any) -> PreTrainedModel:
    """The model as transformers loads it with bitsandbytes, whose repacking for some processors is switched off."""
    pytest.importorskip("bitsandbytes")
    model = type(tiny(kind, "lm")).from_pretrained(folder, **more)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    loaded: PreTrainedModel = model.eval()
    return loaded


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", sorted(EVEN))
@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "int8"])
def test_transformers_with_bitsandbytes_computes_the_same(kind, scheme, tmp_path):
    model = written(tmp_path, kind, scheme, **EVEN[kind])
    other = from_transformers(tmp_path, kind)
    maps = {path for path, module in other.named_modules() if type(module).__name__ == "Linear4bit"}
    assert maps == {path for path, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    assert torch.equal(logits(model, kind), logits(other, kind))


def test_transformers_reads_int8_and_computes_nearly_the_same(tmp_path):
    """bitsandbytes also rounds the activations to 8 bits, deltatune does not."""
    model = written(tmp_path, "llama", "int8", **EVEN["llama"])
    other = from_transformers(tmp_path, "llama")
    codes = other.model.layers[0].mlp.up_proj
    assert torch.equal(codes.weight.data, model.model.layers[0].mlp.up_proj.codes)
    expected = logits(model, "llama")
    assert (logits(other, "llama") - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("kind", sorted(EVEN))
@pytest.mark.parametrize(
    "fields",
    [
        {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        {"bnb_4bit_quant_type": "fp4"},
        {"bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "bfloat16"},
    ],
)
def test_folders_of_transformers_load_without_bitsandbytes(kind, fields, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    tiny(kind, "lm", **EVEN[kind]).save_pretrained(tmp_path / "plain")
    config = BitsAndBytesConfig(load_in_4bit=True, **fields)
    other = from_transformers(tmp_path / "plain", kind, quantization_config=config)
    other.save_pretrained(tmp_path / "q")
    tiny_tokenizer().save_pretrained(tmp_path / "q")
    loaded, _ = load_backbone(str(tmp_path / "q"), answers="words")
    for path, module in other.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            ours = loaded.get_submodule(path)
            assert isinstance(ours, QuantizedLinear)
            assert torch.equal(ours.codes, module.weight.data.view(torch.uint8).reshape(-1))
    assert torch.equal(logits(loaded, kind), logits(other, kind))


def test_a_folder_of_transformers_in_8_bits_loads(tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    tiny("gpt2", "lm", **EVEN["gpt2"]).save_pretrained(tmp_path / "plain")
    other = from_transformers(tmp_path / "plain", "gpt2", quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    other.save_pretrained(tmp_path / "q")
    tiny_tokenizer().save_pretrained(tmp_path / "q")
    loaded, _ = load_backbone(str(tmp_path / "q"), answers="words")
    maps = {path: module for path, module in other.named_modules() if isinstance(module, bitsandbytes.nn.Linear8bitLt)}
    assert maps
    for path, module in maps.items():
        ours = loaded.get_submodule(path)
        assert isinstance(ours, QuantizedLinear)
        assert ours.scheme == Int8()
        assert torch.equal(ours.codes, module.weight.data)


def test_only_quantised_models_of_one_scheme_are_saved(tmp_path):
    model = tiny("llama", "lm")
    with pytest.raises(DeltatuneError, match="no weights that quantize_ made"):
        save_quantized(model, tmp_path / "q")
    quantize_(model, "nf4", "*.attn.*")
    first = model.model.layers[0].self_attn
    first.q_proj = QuantizedLinear.of(first.q_proj.weight, NF4(double=False))
    with pytest.raises(DeltatuneError, match="several ways"):
        save_quantized(model, tmp_path / "q")
    assert not (tmp_path / "q").exists()
