"""Adapter folders: equal outputs after loading, PEFT in both directions, damaged and foreign folders are refused."""

from __future__ import annotations

import json
import os

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deltatune import DeltatuneError, Host, parse
from deltatune.core.adapter_formats import formats
from deltatune.store import atomic_files as atomic
from deltatune.tasks.heads import Head, HeadConfig
from support import models

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 0, 0]])
BATCH = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}


def randomize_(host: Host, name: str) -> None:
    """Randomize an adapter, as if it were trained."""
    torch.manual_seed(3)
    for _, parameter in host.trainable(name):
        parameter.data += 0.05 * torch.randn_like(parameter)


@torch.no_grad()
def outputs(model: nn.Module) -> torch.Tensor:
    return model(**BATCH)[0]


def hosted(kind: str, method: str, head: str | None = None) -> Host:
    host = Host(models.tiny(kind, head))
    host.attach("a", parse(method))
    randomize_(host, "a")
    return host


@pytest.mark.parametrize(
    ("kind", "method", "head"),
    [
        ("bert", "LoRA(r=4)", "classify"),
        ("bert", "LoRA(sites='*.ffn.{in,out}')", None),
        ("gpt2", "LoRA(r=4)", "lm"),
        ("gpt2", "LoRA(sites='*.attn.qkv')", "lm"),
        ("gpt2", "LoRA(sites='*.{attn.v,ffn.in,attn.o}', alpha=3)", None),
        ("llama", "LoRA(sites=('*.attn.{q,k,o}', '*.ffn.*'))", None),
        ("gpt_neox", "LoRA()", None),
    ],
)
def test_peft_opens_a_lora_folder(kind, method, head, tmp_path):
    host = hosted(kind, method, head)
    host.save("a", tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(models.tiny(kind, head), str(tmp_path / "a")).eval()
    torch.testing.assert_close(outputs(theirs), outputs(host.model), rtol=1e-5, atol=1e-6)
    assert (outputs(theirs) - outputs(models.tiny(kind, head))).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "targets", "head"),
    [("bert", ["query", "value"], "classify"), ("gpt2", ["c_attn"], "lm"), ("llama", "all-linear", None)],
)
@pytest.mark.parametrize("rslora", [False, True])
def test_a_peft_folder_loads_here(kind, targets, head, rslora, tmp_path):
    task = {"classify": "SEQ_CLS", "lm": "CAUSAL_LM", None: None}[head]
    config = peft.LoraConfig(
        r=4, lora_alpha=12, target_modules=targets, init_lora_weights=False, task_type=task, use_rslora=rslora,
        fan_in_fan_out=kind == "gpt2",
    )  # fmt: skip
    theirs = peft.get_peft_model(models.tiny(kind, head), config).eval()
    if head == "classify":
        nn.init.normal_(theirs.base_model.model.classifier.modules_to_save["default"].weight)
    theirs.save_pretrained(tmp_path / "theirs")
    host = Host(models.tiny(kind, head))
    host.load(tmp_path / "theirs")
    torch.testing.assert_close(outputs(host.model), outputs(theirs), rtol=1e-4, atol=1e-5)
    assert list(host.adapters) == ["theirs"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "has tensors A, B, A, B, m are required"),
        ({"use_qalora": True}, "use_qalora"),
        ({"peft_type": "HRA"}, "HRA"),
        ({"bias": "all"}, "biases"),
        ({"init_lora_weights": "pissa"}, "changed the base's weights"),
    ],
)
def test_unsupported_peft_settings_are_refused(change, words, tmp_path):
    hosted("bert", "LoRA(r=4)").save("a", tmp_path / "a")
    for name in ("adapter.json", "adapter.safetensors", "manifest.json"):
        (tmp_path / "a" / name).unlink()
    path = tmp_path / "a/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DeltatuneError, match=words):
        Host(models.tiny("bert")).load(tmp_path / "a")


def test_a_task_head_is_saved_with_its_adapter(tmp_path):
    host = Host(models.tiny("bert"))
    config = HeadConfig(outputs=3, width=32, dense=True)
    host.attach("a", parse("BitFit()"), head=Head(config, seed=1), extra={"labels": ["x", "y", "z"]})
    randomize_(host, "a")
    host.save("a", tmp_path / "a", extra={"note": 1})
    other = Host(models.tiny("bert"))
    adapter = other.load(tmp_path / "a")
    assert adapter.head.config == config
    assert adapter.extra == {"labels": ["x", "y", "z"], "note": 1}
    for name, tensor in host.adapters["a"].tensors().items():
        assert torch.equal(tensor, adapter.tensors()[name])


def test_a_custom_module_as_head(tmp_path):
    host = Host(models.tiny("bert"))
    host.attach("a", parse("BitFit()"), head=nn.Linear(32, 2))
    host.save("a", tmp_path / "a")
    with pytest.raises(DeltatuneError, match=r"load it with head="):
        Host(models.tiny("bert")).load(tmp_path / "a")
    mine = nn.Linear(32, 2)
    Host(models.tiny("bert")).load(tmp_path / "a", head=mine)
    assert torch.equal(mine.weight, host.adapters["a"].head.weight)


def test_another_base_is_refused(tmp_path):
    hosted("bert", "LoRA()").save("a", tmp_path / "a")
    other = models.tiny("bert")
    with torch.no_grad():
        next(iter(other.parameters())).mul_(1.5)
    with pytest.raises(DeltatuneError, match="other weights"):
        Host(other).load(tmp_path / "a")
    host = Host(other)
    host.load(tmp_path / "a", other_base=True)
    with pytest.raises(DeltatuneError, match="trained on another base"):
        Host(models.tiny("llama")).load(tmp_path / "a", other_base=True)
    assert list(host.adapters) == ["a"]


def test_the_base_is_recognised_with_and_without_a_head(tmp_path):
    headed = models.tiny("bert", "classify")
    plain = models.tiny("bert")
    headed.bert.load_state_dict(plain.state_dict())
    host = Host(plain)
    host.attach("a", parse("LoRA()"))
    host.save("a", tmp_path / "a")
    Host(headed).load(tmp_path / "a")


def test_a_flipped_bit_is_detected(tmp_path):
    hosted("bert", "LoRA()").save("a", tmp_path / "a")
    path = tmp_path / "a/adapter.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DeltatuneError, match=r"adapter\.safetensors was changed or damaged"):
        Host(models.tiny("bert")).load(tmp_path / "a")


def test_missing_extra_and_misshapen_tensors_are_listed_at_once(tmp_path):
    hosted("bert", "LoRA()").save("a", tmp_path / "a")
    path = tmp_path / "a/adapter.safetensors"
    tensors = load_file(path)
    del tensors["lora.layers.0.attn.q.A"]
    tensors["lora.layers.0.attn.q.C"] = torch.zeros(2)
    tensors["lora.layers.1.attn.v.B"] = torch.zeros(3, 3)
    save_file(tensors, path)
    manifest = json.loads((tmp_path / "a/manifest.json").read_text())
    manifest["files"]["adapter.safetensors"] = atomic.digest(path)
    (tmp_path / "a/manifest.json").write_text(json.dumps(manifest))
    host = Host(models.tiny("bert"))
    with pytest.raises(DeltatuneError) as caught:
        host.load(tmp_path / "a")
    assert "q.A is missing" in str(caught.value)
    assert "q.C is not one of this adapter's" in str(caught.value)
    assert "has shape (3, 3)" in str(caught.value)
    assert host.adapters == {}
    assert host.route.names == set()


def test_an_unfinished_write_keeps_the_old_folder(tmp_path, monkeypatch):
    host = hosted("bert", "LoRA()")
    host.save("a", tmp_path / "a")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    randomize_(host, "a")
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)  # as on other systems than Linux
    for call in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, lambda *a: (_ for _ in ()).throw(OSError("no space left")))
            with pytest.raises(OSError, match="no space"):
                host.save("a", tmp_path / "a")
        assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["a"], "no temporary folder is left"


def test_foreign_folders_are_not_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    with pytest.raises(DeltatuneError, match="not written here"):
        hosted("bert", "LoRA()").save("a", tmp_path / "mine")
    with pytest.raises(DeltatuneError, match="holds no adapter"):
        Host(models.tiny("bert")).load(tmp_path / "mine")
    with pytest.raises(DeltatuneError, match="no adapter folder"):
        Host(models.tiny("bert")).load(tmp_path / "nowhere")


def test_empty_or_infinite_tensors_are_not_saved(tmp_path):
    host = hosted("bert", "LoRA()")
    host.trainable("a")[0][1].data[0, 0] = float("nan")
    with pytest.raises(DeltatuneError, match="not finite"):
        host.save("a", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_unknown_methods_and_options_of_a_folder_are_named(tmp_path):
    hosted("bert", "LoRA()").save("a", tmp_path / "a")
    path = tmp_path / "a/adapter.json"
    config = json.loads(path.read_text())
    for change, words in (({"name": "Lora2"}, "method is not installed"), ({"sparkle": 3}, "sparkle")):
        path.write_text(json.dumps(config | {"method": config["method"] | change}))
        manifest = json.loads((tmp_path / "a/manifest.json").read_text())
        manifest["files"]["adapter.json"] = atomic.digest(path)
        (tmp_path / "a/manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(DeltatuneError, match=words):
            Host(models.tiny("bert")).load(tmp_path / "a")


def test_formats_come_from_entry_points():
    assert list(formats()) == ["deltatune", "peft"]
