"""Folders of quantised models that were changed, damaged or asked for otherwise: one error, or the same values."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.methods.low_rank.lora import LoRA
from deltatune.models.loading import load_backbone
from deltatune.models.quantization.quantize_model import dequantize_, quantize_
from deltatune.store.quantized_model import save_quantized
from support.models import tiny, tiny_tokenizer
from support.quantized_folders import assert_equal, logits, written


def test_a_stored_scheme_may_be_named_and_no_other(tmp_path):
    model = written(tmp_path)
    assert_equal(model, load_backbone(str(tmp_path), answers="text", quantize="nf4")[0])
    for other in ("fp4", "int8", "NF4(double=False)"):
        with pytest.raises(DeltatuneError, match="quantised already, as nf4"):
            load_backbone(str(tmp_path), answers="text", quantize=other)


def changed(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> str:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DeltatuneError) as caught:
        load_backbone(str(folder), answers="text")
    return str(caught.value)


MAP = "model.layers.0.mlp.up_proj.weight"
FACTS = f"{MAP}.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize("part", ["", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"])
def test_a_missing_tensor_is_named(part, tmp_path):
    written(tmp_path)
    assert MAP + part in changed(tmp_path, lambda state: state.__delitem__(MAP + part))


def test_codes_without_the_text_are_named(tmp_path):
    written(tmp_path)
    assert FACTS in changed(tmp_path, lambda state: state.__delitem__(FACTS))


@pytest.mark.parametrize("part", ["", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"])
def test_a_misshapen_tensor_is_named(part, tmp_path):
    written(tmp_path)
    assert MAP + part in changed(tmp_path, lambda state: state.update({MAP + part: state[MAP + part][:-1].clone()}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("scheme", ["nf4", "NF4(double=False)", "int8"])
def test_damaged_magnitudes_are_named(scheme, value, tmp_path):
    """Attention on a CPU turns NaN into 0, so that a damaged file would give answers."""
    written(tmp_path, scheme=scheme)
    part = {"nf4": f"{MAP}.nested_absmax", "int8": MAP.replace("weight", "SCB")}.get(scheme, f"{MAP}.absmax")
    problem = changed(tmp_path, lambda state: state[part].fill_(value))
    assert MAP in problem
    assert "magnitudes" in problem


def test_integers_whose_scales_are_lost_are_no_weights(tmp_path):
    written(tmp_path, scheme="int8")
    assert MAP in changed(tmp_path, lambda state: state.__delitem__(MAP.replace("weight", "SCB")))


def test_codes_of_what_is_no_linear_map_are_named(tmp_path):
    written(tmp_path)

    def change(state: dict[str, Tensor]) -> None:
        for name in [name for name in state if name.startswith(MAP)]:
            state[name.replace(MAP, "model.norm.weight")] = state[name].clone()

    assert "model.norm is no linear map" in changed(tmp_path, change)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_codes_of_16_bit_weights_are_dequantised_and_merged_in_the_type_of_the_rest(dtype, tmp_path):
    model = tiny("llama", "lm").to(dtype)
    quantize_(model, "nf4")
    save_quantized(model, tmp_path, tiny_tokenizer())
    loaded, _ = load_backbone(str(tmp_path), answers="words")
    before = logits(loaded, "llama")
    plain = copy.deepcopy(loaded)
    dequantize_(plain)
    assert torch.equal(logits(plain, "llama"), before)
    host = Host(loaded)
    adapter = host.attach("a", LoRA(r=2), head=False)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(std=0.1)
    changed_outputs = logits(loaded, "llama")
    assert host.merge_("a") < 1e-5
    assert torch.allclose(logits(loaded, "llama"), changed_outputs, atol=1e-5)
    host.unmerge_("a")
    host.use(None)
    assert torch.equal(logits(loaded, "llama"), before)


@pytest.mark.parametrize("part", [".quant_map", ".nested_quant_map"])
def test_another_table_is_refused(part, tmp_path):
    written(tmp_path)
    assert MAP + part in changed(tmp_path, lambda state: state.update({MAP + part: state[MAP + part] * 2}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSON"),
        ("[1]", "no JSON object"),
        ("[" * 3000, "deep"),
        ('{"shape": [48, 32]}', "blocksize"),
        ({"shape": [48, 33]}, "entries"),
        ({"shape": [10**18, 32]}, "shape"),
        ({"shape": [-48, -32]}, "shape"),
        ({"shape": "48"}, "shape"),
        ({"shape": [32, 48]}, "needs (48, 32)"),
        ({"blocksize": 7}, "blocksize"),
        ({"blocksize": 32}, "entries"),
        ({"blocksize": True}, "blocksize"),
        ({"dtype": ["float32"]}, "dtype"),
        ({"quant_type": "fp4"}, "type"),
        ({"nested_blocksize": 64}, "magnitudes"),
        ({"nested_offset": "1"}, "nested_offset"),
        ({"nested_offset": None}, "nested_offset"),
    ],
)
def test_a_hostile_text_is_one_error(text, words, tmp_path):
    written(tmp_path)

    def change(state: dict[str, Tensor]) -> None:
        facts = json.loads(bytes(state[FACTS].tolist()))
        said = text if isinstance(text, str) else json.dumps({**facts, **text})
        state[FACTS] = torch.tensor(list(said.encode()), dtype=torch.uint8)

    assert words in changed(tmp_path, change)


@pytest.mark.parametrize(
    "entry",
    [
        {"bnb_4bit_quant_type": "fp4"},
        {"bnb_4bit_use_double_quant": False},
        {"load_in_4bit": False, "load_in_8bit": True},
        {"bnb_4bit_quant_type": "nf3"},
    ],
)
def test_a_config_that_contradicts_the_codes_is_refused(entry, tmp_path):
    written(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] |= entry
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DeltatuneError, match="says that its weights are"):
        load_backbone(str(tmp_path), answers="text")


def test_a_config_without_codes_is_refused_and_codes_without_a_config_load(tmp_path):
    model = written(tmp_path / "q")
    config = json.loads((tmp_path / "q/config.json").read_text())
    entry = config.pop("quantization_config")
    (tmp_path / "q/config.json").write_text(json.dumps(config))
    assert_equal(model, load_backbone(str(tmp_path / "q"), answers="text")[0])
    tiny("llama", "lm").save_pretrained(tmp_path / "plain")
    (tmp_path / "plain/config.json").write_text(json.dumps({**config, "quantization_config": entry}))
    with pytest.raises(DeltatuneError, match="hold no codes"):
        load_backbone(str(tmp_path / "plain"), answers="text")


def test_another_method_without_its_package_names_the_package(tmp_path):
    tiny("llama", "lm").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    entry = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": entry}))
    with pytest.raises(DeltatuneError, match="quantised already, by gptq"):
        load_backbone(str(tmp_path), answers="text", quantize="nf4")
    with pytest.raises(DeltatuneError, match="pip install"):
        load_backbone(str(tmp_path), answers="text")
