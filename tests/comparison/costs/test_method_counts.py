"""Counts from a config alone are those of real models: parameters, files, and bytes kept for the backward pass."""

import json
import re
from pathlib import Path

import pytest
import torch

from deltatune import Host, parse
from deltatune.comparison.costs.method_counts import CountingHost, MethodCount, all_methods
from deltatune.comparison.costs.training_memory import CountedTraining
from deltatune.core.errors import DeltatuneError
from deltatune.models.loading import empty_backbone
from deltatune.models.shape_run import LiveMemory, kept_for_backward
from deltatune.store.tensors import write_tensors
from deltatune.tasks.heads import Head, HeadConfig
from deltatune.testing.tiny_models import tiny
from deltatune.training.forward import adapter_logits
from deltatune.training.scaling.gradient_checkpointing import gradient_checkpointing

FAMILIES = ["bert", "gpt2", "llama", "t5", "distilbert", "bart", "opt"]
LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
STEP = CountedTraining(batch_size=3, max_length=11, classes=4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with nothing but a config.json for each family."""
    made = {}
    for kind in FAMILIES:
        made[kind] = tmp_path_factory.mktemp(kind)
        tiny(kind).config.save_pretrained(made[kind])
    return made


def real_host(kind: str, method: str) -> Host:
    """A real model of the family with the method's adapter and a head."""
    model = tiny(kind)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    host = Host(model)
    host.attach("adapter", parse(method), head=Head(HeadConfig(outputs=4, width=32)))
    return host


def loss_of(host: Host) -> torch.Tensor:
    """The loss of the step that is counted."""
    ids = torch.full((STEP.batch_size, STEP.max_length), 7)
    ids[:, -1] = 2
    logits = adapter_logits(host, "adapter", {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return torch.nn.functional.cross_entropy(logits, torch.zeros(len(ids), dtype=torch.long))


def tensors_of(host: Host) -> list[torch.Tensor]:
    return [*dict(host.base.tensors()).values(), *host.model.parameters(), *host.model.buffers()]


@pytest.mark.parametrize(
    "kind", ["llama", *(pytest.param(k, marks=pytest.mark.slow) for k in FAMILIES if k != "llama")]
)
@pytest.mark.slow
def test_counts_and_files_are_those_of_the_real_model(kind, folders, tmp_path):
    counting = CountingHost(str(folders[kind]), STEP)
    taken = 0
    slow = ("DID", "SAID") if kind != "bert" else ()
    for method in dict.fromkeys(each for each in all_methods() if not each.startswith(slow or "-")):
        counted = counting.count(method)
        assert counted.method == method
        if counted.problem is not None:
            with pytest.raises(DeltatuneError, match=re.escape(counted.problem)):
                real_host(kind, method)
            continue
        host = real_host(kind, method)
        taken += 1
        adapter = host.adapters["adapter"]
        assert (counted.trained, counted.head) == (adapter.count, adapter.head_count), method
        assert counted.share == adapter.count / host.sites.base_params
        write_tensors(tmp_path / "saved", adapter.without_reparametrisation().tensors())
        assert counted.file_bytes == (tmp_path / "saved").stat().st_size, method
    assert taken > 15


def test_the_file_is_that_of_a_saved_adapter(folders, tmp_path):
    counted = CountingHost(str(folders["bert"]), STEP).count("PTuning()")
    real_host("bert", "PTuning()").save("adapter", tmp_path / "saved")
    assert counted.file_bytes == (tmp_path / "saved/adapter.safetensors").stat().st_size


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", ["bert", "llama", "t5", "bart", "opt"])
def test_bytes_kept_for_the_backward_pass_are_those_of_a_real_step(kind, folders):
    counting = CountingHost(str(folders[kind]), STEP)
    for method in ("LoRA(r=3)", "Bottleneck(size=5)", "Prefix(length=4)", "Prompt(length=4)", "Full()", "IA3()"):
        counted = counting.count(method)
        host = real_host(kind, method)
        host.model.train()
        kept = kept_for_backward(lambda host=host: loss_of(host), tensors_of(host))
        assert counted.memory is not None, counted.problem
        assert counted.memory.activations == pytest.approx(kept, rel=0.005), method


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_is_that_of_a_real_step(folders, checkpointing):
    for kind in ("bert", "llama"):
        training = CountedTraining(batch_size=3, max_length=11, classes=4, checkpointing=checkpointing)
        counted = CountingHost(str(folders[kind]), training).count("LoRA(r=3)")
        host = real_host(kind, "LoRA(r=3)")
        host.model.train()
        with gradient_checkpointing(host.model, checkpointing), LiveMemory() as live:
            loss_of(host).backward()
        memory = counted.memory
        assert memory is not None
        made = memory.peak - memory.weights - memory.adapter - memory.optimizer
        assert made == pytest.approx(live.peak, rel=0.05)


def test_the_peak_is_that_of_torchs_allocator(folders):
    counted = CountingHost(str(folders["bert"]), STEP).count("LoRA(r=3)")
    host = real_host("bert", "LoRA(r=3)")
    host.model.train()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        loss_of(host).backward()
    live, peak = 0, 0
    for event in profile.profiler.kineto_results.events():
        live += event.nbytes() if event.name() == "[memory]" else 0
        peak = max(peak, live)
    memory = counted.memory
    assert memory is not None
    assert memory.peak - memory.weights - memory.adapter - memory.optimizer == pytest.approx(peak, rel=0.05)


def test_checkpointing_and_a_gpu_keep_less(folders):
    def kept(**changes):
        training = CountedTraining(batch_size=3, max_length=11, **changes)
        counted = CountingHost(str(folders["bert"]), training).count("LoRA(r=3)")
        assert counted.memory is not None
        return counted.memory

    assert kept(checkpointing=True).peak < kept().peak
    assert kept(device="cuda").activations < kept().activations  # attention's dropout keeps no products there
    assert kept(dtype="bfloat16").weights == pytest.approx(kept().weights / 2, rel=0.05)  # some buffers are numbers


def test_methods_that_a_model_cannot_take_say_why(folders):
    counting = CountingHost(str(folders["llama"]))
    counted = counting.count("BitFit()")
    assert counted == MethodCount("BitFit()", problem=counted.problem)
    assert "no biases" in str(counted.problem)
    assert counting.count("BitFit(missing='add')").trained
    with pytest.raises(DeltatuneError, match="no method is called 'LoRAX'"):
        counting.count("LoRAX()")
    assert "only a head" in str(
        CountingHost(str(folders["llama"]), CountedTraining(task="lm")).count("Probe()").problem
    )


@pytest.mark.parametrize(("kind", "words"), [("vit", "reads pixel_values"), ("qwen3_moe", "without values")])
def test_where_memory_cannot_be_forecast_counts_stay(kind, words, tmp_path):
    tiny(kind).config.save_pretrained(tmp_path)
    counted = CountingHost(str(tmp_path), STEP).count("LoRA(r=2)")
    assert counted.trained
    assert counted.file_bytes
    assert counted.memory is None
    assert words in str(counted.memory_problem)


def test_a_budget_sets_the_size(folders):
    counted = CountingHost(str(folders["bert"])).count("LoRA(r=64)", "2%")
    assert 0.01 < (counted.share or 0) <= 0.02
    assert "raise the budget" in str(CountingHost(str(folders["bert"])).count("LoRA()", 10).problem)


def test_a_model_of_seven_billion_parameters_is_counted_from_its_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_7B))
    counting = CountingHost(
        str(tmp_path), CountedTraining("lm", batch_size=1, max_length=512, dtype="bfloat16", device="cuda")
    )
    assert {tensor.device.type for tensor in counting.host.model.parameters()} == {"meta"}
    assert counting.model.params == 6_738_415_616
    assert counting.model.file_bytes == 2 * 6_738_415_616
    lora = counting.count("LoRA(r=8)")
    assert lora.trained == 32 * 2 * 8 * (4096 + 4096)
    assert lora.memory is not None
    assert lora.memory.optimizer == 2 * 4 * 4_194_304
    assert empty_backbone(str(tmp_path)).device.type == "meta"
