"""Our methods against numbers that implementations of others computed: see tests/golden/README.md."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    T5Config,
    T5Model,
)

from deltatune import Adapter, Bottleneck, Host, LoRA, Method, Prefix, Prompt
from deltatune.methods.fastfood import Fastfood
from deltatune.methods.intrinsic import Projected, Subspace
from deltatune.methods.lora import LowRank, LowRankTable
from deltatune.methods.prefix import Reparametrised, Trunk
from deltatune.methods.rslora import RsLoRA

FOLDER = Path(__file__).parent / "golden"
PROVENANCE: dict[str, Any] = json.loads((FOLDER / "provenance.json").read_text())
MODELS = {
    "bert": (BertModel, BertConfig),
    "gpt2": (GPT2Model, GPT2Config),
    "llama": (LlamaModel, LlamaConfig),
    "t5": (T5Model, T5Config),
}
TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
Tensors = dict[str, torch.Tensor]


def tensors(case: str, prefix: str = "") -> Tensors:
    """The tensors of a case, or those under a prefix, which is cut off."""
    found = load_file(FOLDER / PROVENANCE[case]["file"])
    return {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}


def base(kind: str) -> PreTrainedModel:
    """The tiny base of the whole-model cases, in eval mode."""
    cls, config = MODELS[kind]
    (settings,) = PROVENANCE[kind]["settings"].values()
    options = {"add_pooling_layer": False} if kind == "bert" else {}
    model = cls(config(**settings), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # a tensor that the case leaves out is all zero
    missing, unexpected = model.load_state_dict(tensors(kind, "base."), strict=False)
    assert not unexpected
    assert all(name in TIED or name in PROVENANCE[kind]["formula"] for name in missing)
    return model.eval()


def run(model: nn.Module, case: str) -> torch.Tensor:
    """Last hidden state (B, T, D) for a case's input."""
    given = tensors(case, "input.")
    more = {"decoder_input_ids": given["decoder_ids"]} if "decoder_ids" in given else {}
    out: torch.Tensor = model(input_ids=given["ids"], attention_mask=given["mask"], **more).last_hidden_state
    return out


def close(mine: torch.Tensor, theirs: torch.Tensor, what: str = "output") -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-5, msg=lambda m: f"{what}: {m}")


# ---- the folder


def test_every_case_is_there_as_described():
    assert {file.stem for file in FOLDER.glob("*.safetensors")} == set(PROVENANCE)
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 1_500_000
    for case, facts in PROVENANCE.items():
        assert {name: list(t.shape) for name, t in tensors(case).items()} == facts["tensors"], case
        assert facts["source"], case
        assert facts["used"], case


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_the_bases_are_the_same_here(kind):
    real = tensors(kind, "input.")["mask"].bool() if kind != "t5" else slice(None)
    close(run(base(kind), kind)[real], tensors(kind)["output"][real])


# ---- whole models

FFN = Bottleneck(size=4, form="houlsby", sites="*.ffn")
PARALLEL = Bottleneck(size=4, form="parallel", scale=4.0)
UNSHIFTED = Prefix(length=3, shift_positions=False)

WHOLE: list[tuple[str, Method]] = [
    ("bert_lora", LoRA(r=4, alpha=6)),
    ("bert_peft_lora", LoRA(r=4, alpha=6, sites=("*.attn.{q,v}", "*.ffn.in"))),
    ("bert_peft_rslora", RsLoRA(r=4, alpha=6)),
    ("bert_houlsby", Bottleneck(size=4, form="houlsby", activation="swish")),
    ("bert_pfeiffer", Bottleneck(size=4, form="pfeiffer")),
    ("bert_parallel", PARALLEL),
    ("bert_adapterdrop", Bottleneck(size=4, form="pfeiffer", sites="layers.1.ffn")),
    ("gpt2_houlsby_ffn", FFN),
    # In blocks that normalise first nothing is normalised after the FFN, and `pfeiffer` reads its output.
    ("gpt2_houlsby_ffn", Bottleneck(size=4, form="pfeiffer")),
    ("t5_houlsby_ffn", FFN),
    ("bert_prefix", UNSHIFTED),
    ("bert_prefix_mlp", Prefix(length=3, mlp=6, shift_positions=False)),
    ("bert_peft_prefix", Prefix(length=3)),
    ("gpt2_prefix", UNSHIFTED),
    ("gpt2_peft_prefix", Prefix(length=3)),
    ("t5_prefix", Prefix(length=3)),
    ("bert_peft_prompt", Prompt(length=3)),
    ("gpt2_peft_prompt", Prompt(length=3)),
    ("bert_mam", Prefix(length=3, mlp=6, shift_positions=False) + PARALLEL),
]


def by_place(adapter: Adapter) -> Tensors:
    """An adapter's parameters as the cases name them: `layers.0.attn.q.A`, and `trunk.` for a prefix's shared part."""
    found: Tensors = {}
    for name, parameter in adapter.named_parameters():
        owner, path = name.removeprefix("deltas.").replace("/", ".").split(".", 1)
        place = f"trunk.{path.split('.', 1)[1]}" if owner == "shared" else path.replace(".inner.", ".")
        assert place not in found
        found[place] = parameter
    return found


@pytest.mark.parametrize(("case", "method"), WHOLE, ids=[f"{case}-{method!r}" for case, method in WHOLE])
def test_whole_models(case, method):
    host = Host(base(PROVENANCE[case]["base"]))
    adapter = host.attach("a", method)
    given, mine = tensors(case, "adapter."), by_place(adapter)
    assert given.keys() == mine.keys()
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(given[name].view_as(parameter) if ".gate." in name else given[name])

    out, expected = run(host.model, case), tensors(case)
    weight = expected["cotangent"]
    there = weight != 0  # not the padding of decoders
    close(out[there], expected["output"][there])

    (out * weight).sum().backward()
    for name, gradient in tensors(case, "grad.").items():
        close(mine[name].grad.view_as(gradient), gradient, name)

    if out.shape[1] == run(base(PROVENANCE[case]["base"]), case).shape[1]:
        host.use(None)
        assert (run(host.model, case)[there] - expected["output"][there]).abs().max() > 0.05


# ---- single maps


@pytest.mark.parametrize(
    ("case", "A", "B", "scale"),
    [("lora", "A", "B", 6 / 4), ("rslora", "A", "B", 6 / 2), ("loralib_linear", "lora_A", "lora_B", 6 / 4)],
)
def test_low_rank(case, A, B, scale):
    t = tensors(case)
    delta = LowRank(12, 16, 4, scale)
    with torch.no_grad():
        delta.A.copy_(t[f"adapter.{A}"])
        delta.B.copy_(t[f"adapter.{B}"])
    h = F.linear(t["input.x"], t["base.weight"], t["base.bias"])
    for out in (h + delta(t["input.x"], h), delta.add(h, t["input.x"])):
        close(out, t["output"])
        if "cotangent" in t:
            for parameter, name in ((delta.A, A), (delta.B, B)):
                (gradient,) = torch.autograd.grad((out * t["cotangent"]).sum(), parameter, retain_graph=True)
                close(gradient, t[f"grad.{name}"], name)
    if "output.merged_weight" in t:
        close(delta.fold({"weight": t["base.weight"]})["weight"], t["output.merged_weight"], "folded")


@pytest.mark.parametrize(("case", "prefix"), [("lora_embedding", ""), ("loralib_embedding", "lora_")])
def test_low_rank_embedding(case, prefix):
    t = tensors(case)
    delta = LowRankTable(20, 16, 4, 6 / 4)
    with torch.no_grad():
        delta.A.copy_(t[f"adapter.{prefix}A"])
        delta.B.copy_(t[f"adapter.{prefix}B"])
    ids = t["input.ids"]
    h = F.embedding(ids, t["base.weight"])
    out = h + delta(ids, h)
    close(out, t["output"])
    close(F.embedding(ids, delta.fold({"weight": t["base.weight"]})["weight"]), t["output"], "folded")
    if "cotangent" in t:
        (out * t["cotangent"]).sum().backward()
        close(delta.A.grad, t["grad.A"], "A")
        close(delta.B.grad, t["grad.B"], "B")


# ---- prefixes


@torch.no_grad()
def test_the_reparametrisation_of_a_prefix():
    t = tensors("prefix_li", "adapter.")
    trunk = Trunk(5, 8, 6)
    given = {"embedding": "wte.weight", "weight": "control_trans.0.weight", "bias": "control_trans.0.bias"}
    trunk.load_state_dict({mine: t[theirs] for mine, theirs in given.items()})
    weights, biases = t["control_trans.2.weight"].chunk(2), t["control_trans.2.bias"].chunk(2)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        delta = Reparametrised(5, 8, 0, 6)
        delta.load_state_dict({"weight": weight, "bias": bias})
        delta.trunk = [trunk]
        for mine, name in zip(delta.prefix(), ("keys", "values"), strict=True):
            theirs = tensors("prefix_li")[f"output.layers.{layer}.{name}"]  # (rows, heads, P, K)
            close(mine, theirs[1].transpose(0, 1).flatten(1), name)


# ---- random subspaces


@pytest.fixture
def drawn_as(monkeypatch):
    """`drawn_as({"B": ..., "Π": ..., "G": ...})` makes these the random numbers; a generator is then only a name."""

    def patch(fixed: Tensors) -> None:
        monkeypatch.setattr(
            torch, "randint", lambda low, high, size, generator: (fixed[generator] > 0).long()[: size[0]]
        )
        monkeypatch.setattr(torch, "randperm", lambda size, generator, dtype: fixed[generator].to(dtype))
        monkeypatch.setattr(torch, "randn", lambda size, generator: fixed[generator])

    return patch


@pytest.mark.parametrize("case", ["0", "1", "2"])
def test_fastfood(case, drawn_as):
    t, size = tensors("fastfood", f"{case}."), PROVENANCE["fastfood"]["settings"][case]
    drawn_as({"B": t["input.B"], "Π": t["input.Pi"], "G": t["input.G"]})
    fastfood = Fastfood(size["d"], size["D"], len(t["input.G"]))
    fastfood.draw_(lambda name: name)
    theta = t["input.theta"].requires_grad_()
    out = fastfood(theta)
    close(out, t["output"])
    (out * t["cotangent"]).sum().backward()
    close(theta.grad, t["grad.theta"], "gradient")


@torch.no_grad()
def test_said(drawn_as):
    t, names = tensors("said"), PROVENANCE["said"]["settings"]["order of lambda"]
    parts = {"B": "B", "Pi": "Π", "G": "G"}
    drawn_as({f"{n}.{mine}": t[f"fixed.{n}.{theirs}"] for n in names for theirs, mine in parts.items()})
    subspace = Subspace(5 + len(names), {name: i for i, name in enumerate(names)}, [])
    deltas = {name: Projected(t[f"base.{name}"].numel(), "first") for name in names}
    for name, delta in deltas.items():
        delta.join(subspace, name)
    subspace.init_(lambda name: name)
    subspace.load_state_dict({"theta": t["adapter.theta"], "scales": t["adapter.lambda"], "drawn": subspace.drawn})
    weights = {name: delta.weight(t[f"base.{name}"]) for name, delta in deltas.items()}
    for name, weight in weights.items():
        close(weight, t[f"output.{name}"], name)
    inner = torch.tanh(F.linear(t["input.x"], weights["0.weight"], weights["0.bias"]))
    close(F.linear(inner, weights["2.weight"], weights["2.bias"]), t["output"])
