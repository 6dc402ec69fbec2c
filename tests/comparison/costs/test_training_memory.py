"""The forecast of a training step is what a real step takes: of PyTorch's allocator, and of the whole process."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from deltatune import Host, parse
from deltatune.comparison.costs import training_memory
from deltatune.comparison.costs.memory_fit import DeepModel, quantized_bits
from deltatune.comparison.costs.method_counts import CountingHost
from deltatune.comparison.costs.training_memory import CountedTraining, Memory
from deltatune.core.errors import DeltatuneError
from deltatune.models.quantization.quantize_model import quantize_
from deltatune.models.shape_run import LiveMemory
from deltatune.tasks.classification import Classify
from deltatune.testing.tiny_models import tiny
from deltatune.training.scaling.gradient_checkpointing import gradient_checkpointing
from deltatune.training.task_model import TaskModel

ROWS, TOKENS = 5, 24
SIZES = {"7B": (32, 4096, 11008), "13B": (40, 5120, 13824), "33B": (60, 6656, 17920), "65B": (80, 8192, 22016)}
"""Blocks, width and inner width of LLaMA's sizes, whose vocabulary has 32,000 tokens."""
PARAMS = {"7B": 6_738_415_616, "13B": 13_015_864_320, "33B": 32_528_943_616, "65B": 65_285_660_672}


BOUNDS = [("7B", 8.0), ("13B", 12.0), ("33B", 24.0), ("65B", 48.0)]
"""The most that each size takes, in GB."""


def llama_folder(folder, layers, width, inner, **more):
    """A folder with the config.json of a Llama."""
    shape = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    heads = {"num_attention_heads": max(1, width // 128), "vocab_size": 32000, "max_position_embeddings": 4096}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **shape, **heads, **more}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def real_peak(kind, method, training):
    """Bytes that the operations of a real step make at most, by what torch really allocates."""
    model = tiny(kind)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    quantize_(model, training.quantize)
    host = Host(model)
    task = Classify(labels=("a", "b"), max_length=64)
    host.attach("a", parse(method), head=task.make_head(model.config, 0))
    module = TaskModel(host, "a", task, training.autocast)
    ids = torch.full((ROWS, TOKENS), 7)
    host.use("a")
    module.train()
    with gradient_checkpointing(host.model, training.checkpointing), LiveMemory() as live:
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        module(labels=torch.zeros(ROWS, dtype=torch.long), **batch)["loss"].backward()
    return live.peak


@pytest.mark.one_in(3)
@pytest.mark.parametrize("quantize", ["none", "nf4", pytest.param("int8", marks=pytest.mark.slow)])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_peak_under_bfloat16_autocast_is_that_of_a_real_step(kind, checkpointing, quantize, tmp_path):
    tiny(kind).config.save_pretrained(tmp_path)
    training = CountedTraining(
        batch_size=ROWS, max_length=TOKENS, precision="bfloat16", quantize=quantize, checkpointing=checkpointing
    )
    host = CountingHost(str(tmp_path), training)
    for method in ("LoRA(r=3)", "Bottleneck(size=5)"):
        memory = host.count(method).memory
        assert memory is not None
        made = memory.peak - memory.weights - memory.adapter - memory.optimizer
        assert made == pytest.approx(real_peak(kind, method, training), rel=0.06), method


def forecast(folder, method="LoRA(r=8)", **fields) -> Memory:
    memory = CountingHost(folder, CountedTraining(**fields)).count(method).memory
    assert memory is not None
    return memory


def test_quantised_weights_are_those_that_quantise_makes(tmp_path):
    model = tiny("llama")
    model.config.save_pretrained(tmp_path)
    for scheme in ("nf4", "NF4(double=False)", "fp4", "int8"):
        quantized = tiny("llama")
        done = quantize_(quantized, scheme)
        plain = sum(p.numel() * p.element_size() for p in model.parameters())
        buffers = sum(b.numel() * b.element_size() for b in model.buffers())
        expected = plain + buffers - 4 * done.params + done.bytes
        assert forecast(str(tmp_path), quantize=scheme).weights == expected, scheme


def test_each_setting_takes_what_it_should(tmp_path):
    tiny("bert").config.save_pretrained(tmp_path)
    folder, sizes = str(tmp_path), {"batch_size": 16, "max_length": 24}
    plain = forecast(folder, **sizes)
    assert forecast(folder, **sizes, accumulation=4).peak < plain.peak
    assert forecast(folder, **sizes, offload_activations=True).activations < plain.activations
    assert forecast(folder, **sizes, optimizer="paged-adamw").optimizer == 0
    assert forecast(folder, "Full()", **sizes, optimizer="adamw-8bit").optimizer < 8 * sum(
        parameter.numel() for parameter in tiny("bert").parameters()
    )
    assert plain.total == plain.peak + plain.fixed


@pytest.mark.parametrize(("quantize", "takes"), [("none", False), ("int8", False), ("nf4", True), ("fp4", True)])
def test_4_bits_count_bitsandbytes_where_it_is_installed(quantize, takes, tmp_path, monkeypatch):
    folder, fixed = llama_folder(tmp_path, 2, 64, 128), {}
    for installed in (True, False):
        monkeypatch.setattr(training_memory, "find_spec", lambda name, there=installed: object() if there else None)
        fixed[installed] = forecast(folder, quantize=quantize, batch_size=2, max_length=16).fixed
    assert fixed[False] == training_memory.PROCESS
    assert fixed[True] - fixed[False] == (training_memory.BITSANDBYTES if takes else 0)


def test_wrong_settings_are_one_error():
    with pytest.raises(DeltatuneError, match=r"accumulation must be at least 1(.|\n)*optimizer must be one of adamw"):
        CountedTraining(accumulation=0, optimizer="sgd")
    with pytest.raises(DeltatuneError, match="not a quantisation"):
        CountedTraining(quantize="nf5")


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields", [{}, pytest.param({"quantize": "nf4", "checkpointing": True}, marks=pytest.mark.slow)]
)
def test_a_deep_model_is_extrapolated_exactly(tmp_path, fields):
    folder = llama_folder(tmp_path, 9, 128, 256)
    training = CountedTraining("lm", batch_size=2, max_length=32, precision="bfloat16", **fields)
    for method in ("LoRA(r=4)", "AdapterDrop()"):
        quick, whole = (
            each.count(method, training) if isinstance(each, DeepModel) else each.count(method)
            for each in (DeepModel(folder), CountingHost(folder, training))
        )
        assert quick.problem == whole.problem
        if whole.memory is not None:
            assert quick.memory is not None
            for name, value in dataclasses.asdict(whole.memory).items():
                assert getattr(quick.memory, name) == pytest.approx(value, rel=0.01), (method, name)


LARGE = CountedTraining(
    "lm",
    batch_size=1,
    max_length=512,
    device="cuda",
    precision="bfloat16",
    quantize="nf4",
    checkpointing=True,
    optimizer="paged-adamw",
)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "most"), BOUNDS)
def test_the_sizes_of_qlora_fit_as_it_says(size, most, tmp_path):
    """65B with LoRA of rank 64 on all linear maps and a paged optimizer, in 48 GB: https://arxiv.org/abs/2305.14314"""
    folder = llama_folder(tmp_path, *SIZES[size])
    memory = DeepModel(folder).count("LoRA(r=64, sites='*.{attn,ffn}.*')", LARGE).memory
    assert memory is not None
    assert memory.total < most * 1e9
    layers, width, inner = SIZES[size]
    matrices = layers * (4 * width**2 + 3 * width * inner)
    assert PARAMS[size] == matrices + 2 * 32000 * width + (2 * layers + 1) * width
    assert memory.weights == pytest.approx(matrices * 4.127 / 8 + (PARAMS[size] - matrices) * 4, rel=0.001)


def test_a_parameter_takes_4_127_bits(tmp_path):
    host = CountingHost(llama_folder(tmp_path, *SIZES["65B"]), LARGE, layers=2)
    assert round(quantized_bits(host), 3) == 4.127
    assert host.model.params == PARAMS["65B"] - 78 * (4 * 8192**2 + 3 * 8192 * 22016 + 2 * 8192)


CHILD = """
import json, sys
from deltatune.core.host import Host
from deltatune.core.registry import parse
from deltatune.models.hardware import return_freed_memory_
from deltatune.models.loading import load_backbone
from deltatune.tasks.classification import Classify
from deltatune.tasks.task import Encoded
from deltatune.training import Settings, train
asked = json.loads(sys.argv[1])
model, tokenizer = load_backbone("builtin", quantize=asked["quantize"])
host, task, length = Host(model), Classify(labels=("a", "b"), max_length=128), asked["max_length"]
host.attach("a", parse(asked["method"]), head=task.make_head(model.config, 0))
rows = [
    {"input_ids": [(37 * i + 101 * j) % 30000 for j in range(length)], "attention_mask": [1] * length, "label": i % 2}
    for i in range(4 * asked["batch_size"])
]
settings = Settings(
    max_steps=3, batch_size=asked["batch_size"], precision=asked["precision"], checkpointing=asked["checkpointing"],
    learning_rate=1e-4,
)
return_freed_memory_()
print(train(host, "a", task, Encoded(rows), None, tokenizer, settings).peak_memory_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("LoRA(r=8)", {"precision": "float32"}),
        ("LoRA(r=8)", {"precision": "bfloat16", "quantize": "nf4", "checkpointing": True}),
        ("Bottleneck()", {"precision": "bfloat16", "quantize": "nf4"}),
        ("Prefix()", {"precision": "bfloat16"}),
        ("Full()", {"precision": "float32", "checkpointing": True}),
    ],
)
def test_the_whole_process_is_within_a_tenth_of_the_forecast(method, fields):
    training = CountedTraining(batch_size=16, max_length=128, **fields)
    memory = CountingHost("builtin", training).count(method).memory
    assert memory is not None
    asked = json.dumps({**dataclasses.asdict(training), "method": method})
    done = subprocess.run([sys.executable, "-c", CHILD, asked], capture_output=True, text=True, check=True)
    assert memory.total == pytest.approx(int(done.stdout), rel=0.1)
