"""TIES, DARE and loralib against values computed by reference implementations: see golden/README.md."""

import pytest
import torch
from safetensors.torch import save_file

from deltatune import Host, LoRA
from deltatune.store.arithmetic.task_arithmetic import combine
from deltatune.store.arithmetic.ties_dare import disjoint_mean, drop_and_rescale, elect_signs, trim
from deltatune.store.loralib import load_loralib
from support.golden_cases import PROVENANCE, base, close, run, tensors


def test_ties():
    t = tensors("ties")
    # Of 40 entries 20 % are 8; the reference keeps one more, the ninth.
    trimmed = [trim(change, 9 / 40) for change in t["input.tau"]]
    close(torch.stack(trimmed), t["output.trimmed"], "trimmed")
    kept = torch.stack([trim(change, 0.2) for change in t["input.tau"]])
    assert (kept != 0).sum(1).tolist() == [8, 8, 8]
    assert torch.equal(kept[kept != 0], t["output.trimmed"][kept != 0])
    signs = elect_signs(trimmed, "model")
    close(signs, t["output.sign"], "sign")
    close(disjoint_mean(trimmed, signs), t["output"])


def test_dare(monkeypatch):
    t = tensors("dare")
    monkeypatch.setattr(torch.Tensor, "bernoulli_", lambda self, p, generator: self.copy_(1 - t["input.dropped"]))
    close(drop_and_rescale(t["input.tau"], 1 - PROVENANCE["dare"]["settings"]["p"], torch.Generator()), t["output"])


@pytest.mark.parametrize(
    ("kind", "weights", "options"),
    [
        ("cat", (0.7, -0.4), {}),
        ("svd", (0.7, -0.4), {"how": "svd", "rank": 4}),
        ("ties_svd", (1.0, 1.0), {"how": "ties", "rank": "full", "density": 0.5, "scope": "tensor"}),
    ],
)
@torch.no_grad()
def test_merging_two_lora(kind, weights, options):
    host = Host(base("bert"))
    for name, alpha in PROVENANCE["bert_peft_merges"]["settings"]["alpha"].items():
        adapter = host.attach(name, LoRA(r=4, alpha=alpha, sites=("*.attn.q", "*.ffn.out")))
        given = tensors("bert_peft_merges", f"adapter.{name}.")
        adapter.load_tensors({f"lora.{key}": tensor for key, tensor in given.items()})
    merged = combine(host, "merged", dict(zip("ab", weights, strict=True)), **options).adapter
    changes = {site.name: delta.scale * delta.B @ delta.A for _, site, delta in merged.entries()}
    expected = tensors("bert_peft_merges", f"output.{kind}.")
    assert changes.keys() == expected.keys() - {"hidden"}
    for site, change in changes.items():
        close(change, expected[site], site)
    host.use("merged")
    close(run(host.model, "bert_peft_merges"), expected["hidden"])


@torch.no_grad()
def test_loralib_checkpoint(tmp_path):
    file = tmp_path / "lora.safetensors"
    save_file(tensors("gpt2_loralib", "adapter."), file)
    host = Host(base("gpt2"))
    load_loralib(host, file, alpha=PROVENANCE["gpt2_loralib"]["settings"]["alpha"])
    host.use("lora")
    real = tensors("gpt2_loralib", "input.")["mask"].bool()
    expected = tensors("gpt2_loralib")["output"][real]
    close(run(host.model, "gpt2_loralib")[real], expected)
    host.use(None)
    assert (run(host.model, "gpt2_loralib")[real] - expected).abs().max() > 0.05
