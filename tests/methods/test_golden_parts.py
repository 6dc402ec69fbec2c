"""Single Deltas and modules against numbers that implementations of others computed: see golden/README.md."""

import pytest
import torch
from torch.nn import functional as F

from deltatune import Adapter, Delta, LoRA
from deltatune.methods.adapters.compacter import PHM
from deltatune.methods.adapters.fusion import Fusion
from deltatune.methods.base_weights.fastfood import Fastfood
from deltatune.methods.base_weights.intrinsic import Subspace, SubspaceWeight
from deltatune.methods.combinations.unipelt import Gated
from deltatune.methods.low_rank.lora import LowRank, LowRankTable
from deltatune.methods.prompts.prefix import Reparametrised, Trunk
from deltatune.methods.prompts.ptuning import Encoder
from deltatune.methods.representations.reft import LowRankIntervention
from support.golden_cases import PROVENANCE, Tensors, close, tensors

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
        close(delta.merge({"weight": t["base.weight"]})["weight"], t["output.merged_weight"], "merged")


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
    close(F.embedding(ids, delta.merge({"weight": t["base.weight"]})["weight"]), t["output"], "merged")
    if "cotangent" in t:
        (out * t["cotangent"]).sum().backward()
        close(delta.A.grad, t["grad.A"], "A")
        close(delta.B.grad, t["grad.B"], "B")


def test_lora_plus_steps():
    t, settings = tensors("loraplus"), PROVENANCE["loraplus"]["settings"]
    method = LoRA(r=4, alpha=6, ratio=settings["ratio"])
    delta = method.with_rates(LowRank(12, 16, 4, 6 / 4))
    delta.load_state_dict({"A": t["adapter.A"], "B": t["adapter.B"]})
    adapter = Adapter(method, None, {})
    adapter.deltas["lin"] = delta
    optimizer = torch.optim.AdamW(adapter.parameter_groups(settings["lr"], 0.0))
    h = F.linear(t["input.x"], t["base.weight"], t["base.bias"])
    for step, expected in enumerate(t["output.losses"], 1):
        loss = F.mse_loss(delta.add(h, t["input.x"]), t["input.y"])
        close(loss, expected, "loss")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name in "AB":
            close(delta.get_parameter(name), t[f"output.{step}.{name}"], f"{name} after {step} steps")


def test_phm():
    t = tensors("phm")
    phm, A = PHM(16, 8, 4), t["adapter.phm_rule"].requires_grad_()
    phm.load_state_dict({"s": t["adapter.W_left"], "t": t["adapter.W_right"]})
    out = phm(t["input.x"], A) + t["adapter.b"]
    close(out, t["output"])
    (out * t["cotangent"]).sum().backward()
    for mine, name in ((A, "phm_rule"), (phm.s, "W_left"), (phm.t, "W_right")):
        close(mine.grad, t[f"grad.{name}"], name)


def test_gated_low_rank():
    t = tensors("unipelt_lora")
    delta = Gated(LowRank(12, 16, 4, 1.0), 12, causal=False)  # the gate takes the place of α/r
    given = tensors("unipelt_lora", "adapter.")
    mine = {name.removeprefix("inner."): p for name, p in delta.named_parameters()}
    assert mine.keys() == given.keys()
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(given[name].view_as(parameter))
    h = F.linear(t["input.x"], t["base.weight"], t["base.bias"])
    out = h + delta(t["input.x"], h)
    close(out, t["output"])
    (out * t["cotangent"]).sum().backward()
    for name, parameter in mine.items():
        gradient = t[f"grad.{name}"]
        close(parameter.grad.view_as(gradient), gradient, name)


@pytest.mark.parametrize(
    ("case", "form"),
    # The paper's DiReFT has a free R, which the reference calls NoDiReFT.
    [("loreft", "loreft"), ("direft", "direft"), ("nodireft", "direft")],
)
def test_reft(case, form):
    t = tensors(case)
    delta = LowRankIntervention(12, 3, form, "identity")
    delta.load_state_dict(tensors(case, "adapter."))
    out = t["input.h"] + delta(t["input.h"], t["input.h"])
    close(out, t["output"])
    (out * t["cotangent"]).sum().backward()
    for name in "Wb":
        close(delta.get_parameter(name).grad, t[f"grad.{name}"], name)


class Member(Delta):
    """Adds what it was told to."""

    def __init__(self, change: torch.Tensor) -> None:
        super().__init__()
        self.change = change

    def forward(self, x, h):
        return self.change


def test_fusion():
    t = tensors("fusion")
    delta = Fusion(12, 12, [Member(u) for u in t["input.adapters"].unbind(2)])
    names = {"Q": "query.weight", "b": "query.bias", "K": "key.weight", "V": "value.weight"}
    delta.load_state_dict({mine: t[f"adapter.{theirs}"] for mine, theirs in names.items()})
    out = delta.add(t["input.residual"], t["input.query"])
    close(out, t["output"])
    (out * t["cotangent"]).sum().backward()
    for mine, theirs in names.items():
        close(delta.get_parameter(mine).grad, t[f"grad.{theirs}"], mine)


# ---- prefixes


@pytest.mark.parametrize(
    ("case", "embedding", "mlp"),
    [("prefix_li", "wte", "control_trans"), ("prefix_mlp_peft", "embedding", "transform")],
)
@torch.no_grad()
def test_the_reparametrisation_of_a_prefix(case, embedding, mlp):
    t, expected = tensors(case, "adapter."), tensors(case, "output")
    trunk = Trunk(5, 8, 6)
    given = {"embedding": f"{embedding}.weight", "weight": f"{mlp}.0.weight", "bias": f"{mlp}.0.bias"}
    trunk.load_state_dict({mine: t[theirs] for mine, theirs in given.items()})
    weights, biases = t[f"{mlp}.2.weight"].chunk(2), t[f"{mlp}.2.bias"].chunk(2)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        delta = Reparametrised(5, 8, 0, 6)
        delta.load_state_dict({"weight": weight, "bias": bias})
        delta.trunk = [trunk]
        for i, (mine, name) in enumerate(zip(delta.prefix(), ("keys", "values"), strict=True)):
            if case == "prefix_li":  # (rows, heads, P, K)
                theirs = expected[f".layers.{layer}.{name}"][1].transpose(0, 1).flatten(1)
            else:  # (P, 2 L D)
                theirs = expected[""].chunk(4, dim=1)[2 * layer + i]
            close(mine, theirs, name)


@pytest.mark.parametrize(("case", "hidden"), [("ptuning_lama", 4), ("ptuning_fewshot", 8)])
def test_p_tuning(case, hidden):
    def ours(name: str) -> str:
        for theirs, mine in {"embedding.weight": "embedding", "lstm_head.": "lstm.", "mlp_head.0.": "inner."}.items():
            name = name.replace(theirs, mine)
        return name.replace("mlp_head.2.", "outer.")

    encoder = Encoder(length=6, width=8, hidden=hidden, layers=2, dropout=0.0)
    encoder.load_state_dict({ours(name): tensor for name, tensor in tensors(case, "adapter.").items()})
    out, expected = encoder(), tensors(case)
    close(out, expected["output"])
    (out * expected["cotangent"]).sum().backward()
    for name, gradient in tensors(case, "grad.").items():
        close(encoder.get_parameter(ours(name)).grad, gradient, name)


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
    deltas = {name: SubspaceWeight(t[f"base.{name}"].numel(), "first") for name in names}
    for name, delta in deltas.items():
        delta.join(subspace, name)
    subspace.init_(lambda name: name)
    subspace.load_state_dict({"theta": t["adapter.theta"], "scales": t["adapter.lambda"], "drawn": subspace.drawn})
    weights = {name: delta.weight(t[f"base.{name}"]) for name, delta in deltas.items()}
    for name, weight in weights.items():
        close(weight, t[f"output.{name}"], name)
    inner = torch.tanh(F.linear(t["input.x"], weights["0.weight"], weights["0.bias"]))
    close(F.linear(inner, weights["2.weight"], weights["2.bias"]), t["output"])
