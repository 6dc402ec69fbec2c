"""Checkpoints of microsoft/LoRA: outputs by its formula, from tensors with its names."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltatune import DeltatuneError, Host
from deltatune.store.loralib import load_loralib
from support import models

GOLDEN = Path(__file__).parents[1] / "golden"


def random_tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@torch.no_grad()
def assert_computes(host: Host, changes: dict[str, torch.Tensor], kind: str, head: str | None) -> None:
    """Assert that the host computes the same as a base with these changes of its parameters."""
    model = models.tiny(kind, head)
    for name, change in changes.items():
        model.get_parameter(name).add_(change)
    batch = models.inputs(kind, head)
    torch.testing.assert_close(host.model(**batch)[0], model(**batch)[0], rtol=1e-4, atol=1e-5)
    assert (models.tiny(kind, head)(**batch)[0] - model(**batch)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("prefix", ["", "module.", "transformer."])
@pytest.mark.parametrize("enabled", [(True, False, True), (True, True, True), (False, True, False)])
def test_gpt2_with_a_pair_for_each_slice(prefix, enabled, tmp_path):
    """ΔW of part j is (α/r) B_j A_j; the other rows of the fused weight stay."""
    r, parts = 3, sum(enabled)
    tensors, changes = {}, {}
    for layer in range(2):
        a, b = random_tensor(parts * r, 32, seed=layer), random_tensor(parts * 32, r, seed=layer)
        path = f"transformer.h.{layer}.attn.c_attn"
        there = path.removeprefix("transformer.") if prefix == "transformer." else prefix + path
        tensors |= {f"{there}.lora_A": a, f"{there}.lora_B": b}
        whole, j = torch.zeros(96, 32), 0
        for part, on in enumerate(enabled):
            if on:
                whole[32 * part : 32 * (part + 1)] = 2.0 * b[32 * j : 32 * (j + 1)] @ a[r * j : r * (j + 1)]
                j += 1
        changes[f"{path}.weight"] = whole.T  # GPT-2 stores (in, out)
    save_file(tensors, tmp_path / "e2e.safetensors")
    host = Host(models.tiny("gpt2", "lm"))
    adapter = load_loralib(host, tmp_path / "e2e.safetensors", alpha=6, enabled=enabled)
    assert_computes(host, changes, "gpt2", "lm")
    assert list(host.adapters) == ["e2e"]
    assert adapter.method.alpha == 6
    assert (adapter.method.sites == ("layers.*.attn.q", "layers.*.attn.v")) == (enabled == (True, False, True))


def test_the_reference_stacks_its_parts_the_same_way():
    """`loralib_merged_linear` was computed by loralib: part j has rows j·r of A and j·out/3 of B."""
    golden = load_file(GOLDEN / "loralib_merged_linear.safetensors")
    a, b, r = golden["adapter.lora_A"], golden["adapter.lora_B"], 3
    merged = golden["base.weight"].clone()
    for j, part in enumerate((0, 2)):
        merged[8 * part : 8 * (part + 1)] += 2.0 * b[8 * j : 8 * (j + 1)] @ a[r * j : r * (j + 1)]
    torch.testing.assert_close(merged, golden["output.merged_weight"], rtol=1e-5, atol=1e-6)


def test_a_classifier_with_biases_and_its_head(tmp_path):
    """`bias="lora_only"`: the biases of the adapted maps were trained; the head is in the file too."""
    base = models.tiny("bert", "classify").state_dict()
    tensors, changes = {}, {}
    for layer in range(2):
        for j, name in enumerate(("query", "value")):
            path = f"bert.encoder.layer.{layer}.attention.self.{name}"
            a, b = random_tensor(4, 32, seed=j), random_tensor(32, 4, seed=layer + j)
            moved = base[f"{path}.bias"] + random_tensor(32, seed=j)
            tensors |= {f"{path}.lora_A": a, f"{path}.lora_B": b, f"{path}.bias": moved}
            changes |= {f"{path}.weight": 4.0 * b @ a, f"{path}.bias": random_tensor(32, seed=j)}
    for name in ("weight", "bias"):
        change = random_tensor(*base[f"classifier.{name}"].shape)
        tensors[f"classifier.{name}"] = base[f"classifier.{name}"] + change
        changes[f"classifier.{name}"] = change
    tensors["bert.embeddings.position_ids"] = torch.arange(9)
    tensors["bert.embeddings.LayerNorm.weight"] = base["bert.embeddings.LayerNorm.weight"].clone()
    save_file(tensors, tmp_path / "mnli.safetensors")
    host = Host(models.tiny("bert", "classify"))
    adapter = load_loralib(host, tmp_path / "mnli.safetensors", alpha=16, name="a")
    assert_computes(host, changes, "bert", "classify")
    assert repr(adapter.method).startswith("LoRA(r=4, sites=('layers.*.attn.q', 'layers.*.attn.v')) + BitFit(")


def test_embeddings(tmp_path):
    a, b = random_tensor(3, models.VOCABULARY), random_tensor(32, 3)
    path = "model.embed_tokens"
    save_file({f"{path}.lora_A": a, f"{path}.lora_B": b}, tmp_path / "a.safetensors")
    host = Host(models.tiny("llama", "lm"))
    load_loralib(host, tmp_path / "a.safetensors", alpha=3)
    assert_computes(host, {f"{path}.weight": (b @ a).T}, "llama", "lm")


def test_a_pickle_is_refused_with_a_command_to_convert_it(tmp_path):
    tensors = {
        f"transformer.h.{layer}.attn.c_attn.lora_{letter}": tensor
        for layer in range(2)
        for letter, tensor in (("A", random_tensor(6, 32)), ("B", random_tensor(64, 3)))
    }
    torch.save({"model_state_dict": tensors}, tmp_path / "model.pt")
    host = Host(models.tiny("gpt2", "lm"))
    with pytest.raises(DeltatuneError, match="is a pickle") as caught:
        load_loralib(host, tmp_path / "model.pt", alpha=6)
    words = shlex.split(str(caught.value).splitlines()[1])
    assert words[0] == "python"
    subprocess.run([sys.executable, *words[1:]], check=True)
    load_loralib(host, tmp_path / "model.safetensors", alpha=6)
    assert host.adapters["model"].count == 2 * 2 * 3 * 64


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"h.0.attn.c_attn.lora_B": random_tensor(60, 3)}, "do not fit a map of 32 to 96"),
        ({"h.0.attn.c_attn.lora_A": random_tensor(9, 32)}, "do not fit a map of 32 to 96"),
        ({"h.7.attn.c_attn.lora_A": random_tensor(6, 32)}, "h.7.attn.c_attn has no lora_B"),
        (
            {"h.7.attn.c_attn.lora_A": random_tensor(6, 32), "h.7.attn.c_attn.lora_B": random_tensor(64, 3)},
            "which is not a linear map",
        ),
        ({"h.0.ln_1.weight": random_tensor(32)}, "has another base, or more than LoRA was trained"),
        ({"h.0.ln_9.weight": random_tensor(32)}, "is not a tensor of this GPT2LMHeadModel"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, words, tmp_path):
    tensors = {"h.0.attn.c_attn.lora_A": random_tensor(6, 32), "h.0.attn.c_attn.lora_B": random_tensor(64, 3)}
    save_file({**tensors, **change}, tmp_path / "a.safetensors")
    host = Host(models.tiny("gpt2", "lm"))
    with pytest.raises(DeltatuneError, match=words):
        load_loralib(host, tmp_path / "a.safetensors", alpha=6)
    assert host.adapters == {}


def test_a_file_without_pairs(tmp_path):
    save_file({"h.0.ln_1.weight": models.tiny("gpt2").h[0].ln_1.weight.data}, tmp_path / "a.safetensors")
    with pytest.raises(DeltatuneError, match="no pair lora_A, lora_B"):
        load_loralib(Host(models.tiny("gpt2")), tmp_path / "a.safetensors", alpha=6)
