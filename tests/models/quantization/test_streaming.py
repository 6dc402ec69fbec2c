"""Loading quantised: weights come one at a time, and the model is that which is quantised after loading."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from deltatune.core.errors import DeltatuneError
from deltatune.core.quantization.quantized_linear import QuantizedLinear
from deltatune.models.loading import load_backbone
from deltatune.models.quantization.quantize_model import quantize_
from support.models import tiny, tiny_tokenizer

FAMILIES = ("bert", "distilbert", "gpt2", "llama", "gpt_neox", "opt", "t5", "bart", "falcon-7b", "mixtral", "phi3")


def stored(model: PreTrainedModel, folder: Path, shard: str = "20KB") -> str:
    model.save_pretrained(folder, max_shard_size=shard)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def assert_same(one: PreTrainedModel, other: PreTrainedModel) -> None:
    """The same tensors, bit by bit, in the same places."""
    for first, second in (
        (one.state_dict(), other.state_dict()),
        (dict(one.named_buffers()), dict(other.named_buffers())),
    ):
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            assert tensor.dtype == second[name].dtype, name
            assert torch.equal(tensor, second[name]), name
    trained = [
        {name for name, parameter in model.named_parameters() if parameter.requires_grad} for model in (one, other)
    ]
    assert trained[0] == trained[1]
    assert one.config.to_dict() == other.config.to_dict()
    assert vars(one).keys() == vars(other).keys()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("answers", ["row", "words"])
def test_streamed_equals_quantised_after_loading(kind, answers, tmp_path):
    folder = stored(tiny(kind, None if answers == "row" else "lm"), tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    after, _ = load_backbone(folder, answers=answers)
    done = quantize_(after, "nf4")
    streamed, _ = load_backbone(folder, answers=answers, quantize="nf4")
    assert_same(after, streamed)
    assert [path for path, module in streamed.named_modules() if isinstance(module, QuantizedLinear)] == list(
        done.modules
    )


@pytest.mark.parametrize("scheme", ["fp4", "NF4(double=False, block=128)", "int8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_of_any_scheme_and_stored_type(scheme, dtype, tmp_path):
    folder = stored(tiny("gpt2", "lm").to(dtype), tmp_path)
    after, _ = load_backbone(folder, answers="text")
    quantize_(after, scheme, "*.ffn.*")
    streamed, _ = load_backbone(folder, answers="text", quantize=scheme, sites="*.ffn.*")
    assert_same(after, streamed)


def test_a_base_loads_from_a_folder_with_a_head_and_back(tmp_path):
    folder = stored(tiny("bert", "lm"), tmp_path)
    after, _ = load_backbone(folder)
    quantize_(after, "nf4")
    assert_same(after, load_backbone(folder, quantize="nf4")[0])


def test_the_generation_config_of_the_folder_is_kept(tmp_path):
    folder = stored(tiny("llama", "lm"), tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.25, "do_sample": True}))
    model, _ = load_backbone(folder, answers="text", quantize="nf4")
    assert model.generation_config.temperature == 0.25


def test_values_that_are_not_finite_are_named(tmp_path):
    model = tiny("llama", "lm")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
        model.model.layers[0].self_attn.q_proj.weight[0, 0] = float("inf")
    folder = stored(model, tmp_path)
    with pytest.raises(DeltatuneError) as caught:
        load_backbone(folder, answers="text", quantize="nf4")
    for path in ("model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"):
        assert path in str(caught.value)


def test_missing_and_misshapen_tensors_are_named(tmp_path):
    folder = stored(tiny("llama", "lm"), tmp_path, "1GB")
    file = tmp_path / "model.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(file).items()}  # the file is written over below
    save_file({name: tensor for name, tensor in state.items() if "layers.1.mlp.up" not in name}, file, {"format": "pt"})
    with pytest.raises(DeltatuneError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        load_backbone(folder, answers="text", quantize="nf4")
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        save_file({**state, name: state[name][:16].clone()}, file, {"format": "pt"})
        with pytest.raises(DeltatuneError, match=re.escape(name)):
            load_backbone(folder, answers="text", quantize="nf4")


def test_damaged_indices_and_files_are_one_error(tmp_path):
    folder = stored(tiny("llama", "lm"), tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shard = sorted(tmp_path.glob("*.safetensors"))[0]
    held = shard.read_bytes()
    for damage in (held[:100], b"", held[:8] + b"x" * 50):
        shard.write_bytes(damage)
        with pytest.raises(DeltatuneError, match="cannot be read"):
            load_backbone(folder, answers="text", quantize="nf4")
    shard.unlink()
    with pytest.raises(DeltatuneError, match=re.escape(shard.name)):
        load_backbone(folder, answers="text", quantize="nf4")
    for damage in (
        "[1]",
        "{",
        '{"weight_map": {}}',
        '{"weight_map": {"x": 3}}',
        '{"weight_map": {"x": "../y.safetensors"}}',
    ):
        index.write_text(damage)
        with pytest.raises(DeltatuneError, match=r"model\.safetensors\.index\.json"):
            load_backbone(folder, answers="text", quantize="nf4")
    index.write_text(json.dumps(content))


GROWTH = """
import re, sys
from pathlib import Path
import torch
from transformers.models.llama import modeling_llama
from deltatune.core.quantization.stored_weights import stored_bytes
from deltatune.models.loading import load_backbone
from deltatune.models.quantization.quantize_model import quantize_

def resident(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

torch.set_num_threads(1)
folder, streamed, limit = sys.argv[1], sys.argv[2] == "streamed", int(sys.argv[3])
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
if streamed:
    model, _ = load_backbone(folder, answers="text", quantize="nf4")
else:
    model, _ = load_backbone(folder, answers="text")
    quantize_(model, "nf4")
growth = resident("VmHWM") - before
print(stored_bytes(model), growth)
sys.exit(0 if growth <= limit else 3)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_of_loading_is_the_quantised_model_and_a_few_tensors(dtype, tmp_path):
    """A model of 672 MB in bfloat16, in shards: streaming stays below a limit that loading first exceeds."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 2048, "intermediate_size": 5504, "num_attention_heads": 16, "num_key_value_heads": 16}
    config = LlamaConfig(vocab_size=2000, num_hidden_layers=6, **sizes)
    stored(LlamaForCausalLM(config).to(dtype), tmp_path, "200MB")
    largest = 4 * 5504 * 2048
    quantized = 6 * (4 * 2048**2 + 3 * 5504 * 2048) * 4.13 / 8 + 2 * 2000 * 2048 * 4
    limit = int(quantized + 3 * largest)  # the tensor as it is read and as float32, and what it takes to quantise it

    def loaded(way: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", GROWTH, str(tmp_path), way, str(limit)], capture_output=True, text=True, check=False
        )

    done = loaded("streamed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) < 1.01 * quantized
    assert loaded("whole").returncode == 3
