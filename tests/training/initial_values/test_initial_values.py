"""EVA and LoftQ: LoRA's initial values from data and from what quantisation has lost, beside PEFT's numbers."""

import copy
import functools

import peft
import pytest
import torch
from peft.utils.loftq_utils import _low_rank_decomposition

from deltatune import DeltatuneError, DoRA, Host, LoRA, RsLoRA, attach_eva, attach_loftq, quantize_
from deltatune.tasks import Head
from deltatune.training import Settings, train
from deltatune.training.initial_values.eva import PrincipalComponents
from support import models
from support.runs import ROWS, TASK


def batches(kind="llama", number=6, **options):
    return [models.inputs(kind, "lm", rows=8, length=14, seed=seed, **options) for seed in range(number)]


def eva_of_peft(monkeypatch, model, data, r, targets, fan_in_fan_out=False, **eva):
    """PEFT's EVA with exact singular vectors in place of random projections."""
    exact = functools.partial(peft.tuners.lora.eva.IncrementalPCA)

    def make(**options):
        return exact(**{**options, "lowrank": False})

    monkeypatch.setattr("peft.tuners.lora.eva.IncrementalPCA", make)
    config = peft.LoraConfig(
        r=r,
        lora_alpha=6,
        target_modules=targets,
        task_type="CAUSAL_LM",
        fan_in_fan_out=fan_in_fan_out,
        init_lora_weights="eva",
        eva_config=peft.EvaConfig(**eva),
    )
    theirs = peft.get_peft_model(model, config, low_cpu_mem_usage=True)
    peft.initialize_lora_eva_weights(theirs, data, show_progress_bar=False)
    return theirs


@pytest.mark.parametrize(
    ("kind", "sites", "targets", "options"),
    [
        ("llama", "*.{attn.q,attn.v,ffn.out}", ["q_proj", "v_proj", "down_proj"], {}),
        pytest.param(
            "llama", "*.attn.{q,o}", ["q_proj", "o_proj"], {"rho": 1.0, "whiten": True}, marks=pytest.mark.slow
        ),
        pytest.param("gpt2", "*.{attn.qkv,ffn.out}", ["c_attn", "mlp.c_proj"], {"tau": 0.9}, marks=pytest.mark.slow),
    ],
)
def test_eva_is_that_of_peft(kind, sites, targets, options, monkeypatch, tmp_path):
    data = batches(kind)
    theirs = eva_of_peft(monkeypatch, models.tiny(kind, "lm"), data, 4, targets, kind == "gpt2", **options)
    host = Host(models.tiny(kind, "lm"))
    adapter = attach_eva(host, "a", LoRA(r=4, alpha=6, sites=sites), data, **options)
    layers = {name: m for name, m in theirs.base_model.model.named_modules() if hasattr(m, "lora_A")}
    assert {site.module for _, site, _ in adapter.entries()} == set(layers)
    for _, site, delta in adapter.entries():
        layer = layers[site.module]
        torch.testing.assert_close(delta.A.detach(), layer.lora_A["default"].weight.detach(), rtol=2e-3, atol=2e-3)
        assert delta.scale == layer.scaling["default"]
        assert not delta.B.any()
    assert adapter.count == sum(p.numel() for n, p in theirs.named_parameters() if "lora_" in n)
    ranks = {len(delta.A) for _, _, delta in adapter.entries()}
    assert (adapter.method.scaling, len(ranks) > 1) == (("rank", False) if options.get("rho") == 1.0 else ("r", True))

    # The ranks and their scale hold in PEFT's folder, too.
    with torch.no_grad():
        for _, _, delta in adapter.entries():
            delta.B.normal_(std=0.3)
    batch = data[0]
    expected = host.model(**batch).logits.detach()
    host.save("a", tmp_path / "a")
    opened = peft.PeftModel.from_pretrained(models.tiny(kind, "lm"), str(tmp_path / "a")).eval()
    torch.testing.assert_close(opened(**batch).logits, expected, rtol=1e-4, atol=1e-4)
    (tmp_path / "a/adapter.json").unlink()
    again = Host(models.tiny(kind, "lm"))
    assert again.load(tmp_path / "a", name="a").method.scaling == adapter.method.scaling
    torch.testing.assert_close(again.model(**batch).logits, expected, rtol=1e-4, atol=1e-4)


def test_components_of_batches_are_those_of_all_vectors():
    X = torch.randn(600, 10, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 11) + 3
    pca = PrincipalComponents(10)
    for part in X.split(150):
        pca.update_(part)
    _, S, V = torch.linalg.svd(X - X.mean(0), full_matrices=False)
    assert (pca.components * V).sum(1).abs().min() > 1 - 1e-5
    torch.testing.assert_close(pca.singular, S, rtol=1e-4, atol=1e-3)
    assert pca.explained.sum() == pytest.approx(1, rel=1e-5)


def test_eva_leaves_padding_and_tokens_without_a_label_out():
    data = batches()
    for number, batch in enumerate(data):
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        batch["labels"][:, :3] = -100
        other = copy.deepcopy(batch)
        other["input_ids"][batch["attention_mask"] == 0] = 7 + number  # what stands in padding plays no part
        data[number] = (batch, other)
    found = []
    for part in (0, 1):
        host = Host(models.tiny("llama", "lm"))
        adapter = attach_eva(host, "a", LoRA(r=2, sites="layers.0.attn.q"), [pair[part] for pair in data])
        found.append(next(delta.A for _, _, delta in adapter.entries()))
    assert torch.equal(*found)


def test_eva_reads_an_encoder_decoder():
    host = Host(models.tiny("t5", "lm"))
    data = [models.inputs("t5", "lm", rows=8, length=14, seed=seed) for seed in range(5)]
    adapter = attach_eva(host, "a", LoRA(r=2, sites=("*.attn.{q,v}", "*.cross.k")), data, tau=0.8)
    assert sum(len(delta.A) for _, _, delta in adapter.entries()) == 2 * 10
    norms = torch.cat([delta.A.detach().norm(dim=1) for _, _, delta in adapter.entries()])
    torch.testing.assert_close(norms, torch.ones(20))


def test_components_that_explain_nothing_need_not_settle():
    host = Host(models.tiny("bert"))
    ids = torch.tensor([[2, 7, 7, 7, 7, 7, 7, 7, 7, 3]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    adapter = attach_eva(host, "a", LoRA(r=4, sites="layers.0.attn.q"), [batch])
    assert adapter.method.r == 4


def test_a_lora_from_eva_learns(tmp_path):
    host = Host(models.tiny("bert"))
    tokenizer = models.tiny_tokenizer()
    batch = tokenizer([row["text"] for row in ROWS], return_tensors="pt", padding=True)
    adapter = attach_eva(host, "a", LoRA(r=2), [dict(batch)], head=Head(TASK.head_config(host.model.config)))
    assert adapter.count == 2 * 2 * 2 * (32 + 32)
    settings = Settings(epochs=8, batch_size=16, precision="float32", learning_rate=2e-2)
    outcome = train(host, "a", TASK, ROWS, ROWS[:16], tokenizer, settings)
    assert outcome.history[-1][1] < outcome.history[0][1] - 0.1
    host.save("a", tmp_path / "a")
    again = Host(models.tiny("bert"))
    again.load(tmp_path / "a", name="a")
    with torch.no_grad():
        assert torch.equal(again.model(**batch)[0], host.model(**batch)[0])


def test_eva_says_what_it_cannot_do():
    host = Host(models.tiny("llama", "lm"))
    cases = [
        ({"batches": []}, "there are none"),
        (
            {"batches": [models.inputs("llama", "lm", rows=1, length=4)], "method": LoRA(r=8)},
            "needs at least 16 tokens",
        ),
        ({"rho": 0.5, "tau": 2.0}, "rho=0.5 must be at least 1"),
        ({"method": LoRA(sites="embed")}, "reads token ids"),
        ({"method": "LoRA()"}, "starts a LoRA"),
    ]
    for options, words in cases:
        with pytest.raises(DeltatuneError, match=words):
            attach_eva(host, "a", **{"method": LoRA(r=2), "batches": batches(), **options})
    assert host.adapters == {}
    assert not host.model.training


@pytest.mark.parametrize("kind", ["gpt2", *(pytest.param(k, marks=pytest.mark.slow) for k in ("bert", "llama"))])
@torch.no_grad()
def test_loftq_makes_up_for_the_first_singular_vectors(kind, tmp_path):
    plain = models.tiny(kind, "lm" if kind != "bert" else "classify")
    plain.save_pretrained(tmp_path / "plain")
    sites = ("*.attn.{q,o}", "*.ffn.in")
    for method in (LoRA(r=4, alpha=4, sites=sites), RsLoRA(r=3, alpha=7, sites=sites)):
        for original in (plain, tmp_path / "plain"):
            quantised = copy.deepcopy(plain)
            quantize_(quantised, "nf4")
            host = Host(quantised)
            adapter = attach_loftq(host, "a", method, original)
            for _, site, delta in adapter.entries():
                if site.kind == "head":
                    continue
                whole = Host(copy.deepcopy(plain)).sites[site.name]
                W = plain.get_submodule(site.module).weight
                W = W.T if whole.transposed else W
                W = W[: whole.width_out] if whole.slice else W  # q comes first
                lost = W - delta.base.weight
                theirs = _low_rank_decomposition(lost, reduced_rank=method.r)
                torch.testing.assert_close(
                    delta.scale * delta.B @ delta.A, theirs["L"] @ theirs["R"], rtol=1e-4, atol=1e-5
                )
                if method.scale(method.r) == 1:
                    sign = (delta.A * theirs["R"]).sum(1).sign()
                    torch.testing.assert_close(sign[:, None] * delta.A, theirs["R"], rtol=1e-3, atol=1e-4)
                left = (lost - delta.scale * delta.B @ delta.A).norm() / lost.norm()
                assert left < 0.95


def test_loftq_says_what_it_cannot_do(tmp_path):
    plain = models.tiny("llama", "lm")
    quantised = copy.deepcopy(plain)
    quantize_(quantised, "nf4")
    cases = [
        (plain, LoRA(), plain, "layers.0.attn.q is not quantised"),
        (quantised, LoRA(), models.tiny("bert", None), "the original has no model.layers.0.self_attn.q_proj.weight"),
        (quantised, LoRA(r=40), plain, "fewer than its rank 40"),
        (quantised, DoRA(), plain, "LoftQ starts a LoRA or RsLoRA"),
    ]
    another = copy.deepcopy(plain)
    torch.nn.init.normal_(another.model.layers[1].self_attn.q_proj.weight)
    cases.append((quantised, LoRA(r=2), another, "model.layers.1.self_attn.q_proj.weight of the original differs by"))
    for model, method, original, words in cases:
        host = Host(model)
        with pytest.raises(DeltatuneError, match=words):
            attach_loftq(host, "a", method, original)
        assert host.adapters == {}
