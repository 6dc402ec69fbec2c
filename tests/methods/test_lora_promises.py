"""What the LoRA family promises beside PEFT's numbers: ranks, rates, embeddings, norms without large matrices."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors import safe_open
from test_against_peft import first
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from deltatune import DeltatuneError, DoRA, Host, LoRA, PiSSA, Prompt, RsLoRA, VeRA, fit_budget, parse
from deltatune.methods.low_rank.dora import DoRADelta
from deltatune.methods.low_rank.pissa import Principal
from deltatune.store.adapter_folder import method_from_json, method_to_json
from deltatune.store.peft.peft_folder import save as save_peft
from deltatune.training import train
from support import models
from support.peft_training import losses
from support.runs import PLAIN, ROWS, TASK, host_with


def deltas(host):
    return {site.name: delta for _, site, delta in host.adapters["a"].entries() if site.kind != "head"}


# --- ranks of their own ---

RANKS = (("layers.0.attn.v", 2), ("*.ffn.*", 6))
PLACES = ("*.attn.{q,v}", "*.ffn.in")


@torch.no_grad()
def test_ranks_are_theirs_as_a_rank_pattern():
    host = Host(models.tiny("llama", "lm"))
    host.attach("a", LoRA(r=4, alpha=6, sites=PLACES, ranks=RANKS))
    pattern = {"layers.0.self_attn.v_proj": 2, "up_proj": 6}
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "up_proj"], rank_pattern=pattern)
    theirs = get_peft_model(models.tiny("llama", "lm"), config).eval()
    for name, delta in deltas(host).items():
        layer = theirs.base_model.model.get_submodule(host.sites[name].module)
        delta.B.normal_()
        layer.lora_A["default"].weight.copy_(delta.A)  # of the same rank, or this fails
        layer.lora_B["default"].weight.copy_(delta.B)
    batch = models.inputs("llama", "lm", padding="none")
    torch.testing.assert_close(first(host.model(**batch)), first(theirs(**batch)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [LoRA, RsLoRA, DoRA])
def test_a_rank_for_no_site_is_an_error_that_names_it(kind):
    host = Host(models.tiny("llama"))
    with pytest.raises(DeltatuneError, match=r"matches '\*\.ffn\.out'; it is at layers\.\*\.attn\.q"):
        host.attach("a", kind(ranks=(("*.attn.q", 2), ("*.ffn.out", 2))))


@pytest.mark.parametrize("ranks", [(("*.q",),), (("*.q", 0),), (("*.q", True),), ((3, "*.q"),), (("*.q", 2, 3),)])
def test_ranks_that_make_no_sense_are_refused(ranks):
    with pytest.raises(DeltatuneError, match="ranks"):
        LoRA(ranks=ranks)


def test_a_budget_keeps_the_proportion_of_ranks():
    sites = Host(models.tiny("llama")).sites
    method = LoRA(r=4, sites=PLACES, ranks=RANKS)
    assert method.sized(8).ranks == (("layers.0.attn.v", 4), ("*.ffn.*", 12))
    assert method.sized(1).ranks == (("layers.0.attn.v", 1), ("*.ffn.*", 2))
    fitted = fit_budget(method, sites, 5_000)
    assert fitted.count(sites) <= 5_000 < fitted.sized(fitted.r + 1).count(sites)
    limit = method.limit(sites)
    full = [
        all(sized.rank(s) >= min(s.width_in, s.width_out) for s in sized.pick(sites))
        for sized in (method.sized(limit - 1), method.sized(limit))
    ]
    assert full == [False, True]  # beyond it no site's update can become any richer


def test_text_and_fields_read_back_equal():
    for method in (LoRA(ranks=RANKS, ratio=4.0), DoRA(norm="exact"), PiSSA(alpha=4.0), PiSSA(), VeRA(), RsLoRA(r=3)):
        assert parse(repr(method)) == method
        assert method_from_json(json.loads(json.dumps(method_to_json(method))), Path("folder")) == method


# --- rates of their own ---


def test_lora_plus_is_theirs():
    host = Host(models.tiny("llama", "lm"))
    adapter = host.attach("a", LoRA(r=4, alpha=6, ratio=8.0))
    theirs = get_peft_model(models.tiny("llama", "lm"), LoraConfig(r=4, lora_alpha=6))
    with torch.no_grad():
        for name, delta in deltas(host).items():
            theirs.base_model.model.get_submodule(host.sites[name].module).lora_A["default"].weight.copy_(delta.A)
    rates = adapter.rates()
    mine = [{"params": [p], "lr": 5e-3 * rates.get(name, 1.0), "weight_decay": 0.0} for name, p in host.trainable("a")]
    wanted = create_loraplus_optimizer(theirs, torch.optim.AdamW, lr=5e-3, loraplus_lr_ratio=8.0).param_groups
    kept = [{key: group[key] for key in ("params", "lr", "weight_decay")} for group in wanted if group["params"]]
    assert {group["lr"] for group in mine} == {group["lr"] for group in kept} == {5e-3, 4e-2}
    found = losses(host.model, mine, "llama", "lm", steps=20)
    expected = losses(theirs, kept, "llama", "lm", steps=20)
    assert max(expected) - min(expected) > 0.05
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-4


def test_the_trainer_gives_b_its_own_rate():
    moved = {}
    for ratio in (1.0, 8.0):
        host = host_with(f"LoRA(r=4, ratio={ratio})")
        before = {name: p.detach().clone() for name, p in host.trainable("a")}
        settings = dataclasses.replace(PLAIN, max_steps=1, warmup=0.0, schedule="constant", learning_rate=1e-3)
        train(host, "a", TASK, ROWS, [], models.tiny_tokenizer(), settings)
        moved[ratio] = {name: float((p.detach() - before[name]).abs().max()) for name, p in host.trainable("a")}
    assert {name.rpartition(".")[2] for name in moved[1.0]} >= {"A", "B", "weight"}
    for name, step in moved[1.0].items():  # Adam's first step is the rate, in every element that has a gradient
        if not name.endswith(".A"):  # A has none as long as B is 0; it decays
            assert step == pytest.approx(1e-3, rel=0.05), name
        assert moved[8.0][name] == pytest.approx((8.0 if name.endswith(".B") else 1.0) * step, rel=0.02), name


# --- embeddings ---


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@torch.no_grad()
def test_lora_on_embeddings_is_theirs(kind):
    place = {"bert": "word_embeddings", "gpt2": "wte", "llama": "embed_tokens"}[kind]
    host = Host(models.tiny(kind))
    host.attach("a", LoRA(r=4, alpha=6, sites="embed"))
    theirs = get_peft_model(models.tiny(kind), LoraConfig(r=4, lora_alpha=6, target_modules=[place])).eval()
    layer = theirs.base_model.model.get_submodule(host.sites["embed"].module)
    delta = deltas(host)["embed"]
    assert not delta.A.any()
    assert float(delta.B.std()) == pytest.approx(1.0, abs=0.2)
    for mine, other in ((delta.A, layer.lora_embedding_A["default"]), (delta.B, layer.lora_embedding_B["default"])):
        assert mine.shape == other.shape
        nn.init.normal_(mine)
        other.copy_(mine)
    batch = models.inputs(kind, padding="none")
    torch.testing.assert_close(first(host.model(**batch)), first(theirs(**batch)), rtol=1e-5, atol=1e-5)
    host.merge_("a")
    table = host.model.get_submodule(host.sites["embed"].module).weight
    merged = theirs.merge_and_unload().get_submodule(host.sites["embed"].module).weight
    torch.testing.assert_close(table, merged, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_an_embedding_that_multiplies_multiplies_the_update_too():
    host = Host(models.tiny("bart", scale_embedding=True, tie_word_embeddings=False))
    host.attach("a", LoRA(r=4, sites="encoder.embed"))
    delta = deltas(host)["encoder.embed"]
    nn.init.normal_(delta.A)
    table = host.model.get_submodule(host.sites["encoder.embed"].module)
    ids = torch.arange(7)[None]
    live = table(ids)
    changed = delta.merge({"weight": table.weight})["weight"]
    torch.testing.assert_close(live, changed[ids] * 32**0.5, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_virtual_tokens_get_no_update_of_the_table():
    host = Host(models.tiny("llama"))
    host.attach("a", Prompt(length=3) + LoRA(r=4, sites="embed"))
    for _, _, delta in host.adapters["a"].entries():
        if hasattr(delta, "A"):
            nn.init.normal_(delta.A)
            ids = torch.tensor([[models.VOCABULARY + 1, 5]])
            change = delta(ids, torch.zeros(1, 2, 32))
            assert not change[0, 0].any()
            assert change[0, 1].any()


@torch.no_grad()
def test_lora_on_the_language_model_head_is_theirs():
    host = Host(models.tiny("llama", "lm", tie_word_embeddings=False))
    host.attach("a", LoRA(r=4, alpha=6, sites="lm_head"))
    base = models.tiny("llama", "lm", tie_word_embeddings=False)
    theirs = get_peft_model(base, LoraConfig(r=4, lora_alpha=6, target_modules=["lm_head"])).eval()
    delta, layer = deltas(host)["lm_head"], theirs.base_model.model.lm_head
    delta.B.normal_()
    layer.lora_A["default"].weight.copy_(delta.A)
    layer.lora_B["default"].weight.copy_(delta.B)
    batch = models.inputs("llama", "lm", padding="none")
    live = first(host.model(**batch))
    torch.testing.assert_close(live, first(theirs(**batch)), rtol=1e-5, atol=1e-5)
    host.merge_("a")
    torch.testing.assert_close(first(host.model(**batch)), live, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("site", ["embed", "lm_head"])
def test_a_tied_table_is_adapted_live_and_never_merged(site):
    host = Host(models.tiny("gpt2", "lm"))
    host.attach("a", LoRA(r=4, sites=site))
    with pytest.raises(DeltatuneError, match=f"the weight at {site} is tied to another module's"):
        host.merge_("a")


def test_dora_is_of_maps_alone():
    with pytest.raises(DeltatuneError, match="'embed'"):
        Host(models.tiny("llama")).attach("a", DoRA(sites="embed"))


# --- DoRA ---


class Made(TorchDispatchMode):
    """Shapes of all tensors that come into being, views of the base's parameters left out."""

    def __init__(self, model):
        super().__init__()
        self.base = {p.untyped_storage().data_ptr() for p in model.parameters() if not p.requires_grad}
        self.shapes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.base:
                self.shapes.add(tuple(tensor.shape))
        return out


@pytest.mark.parametrize("norm", ["detached", "exact"])
def test_a_step_of_dora_makes_no_matrix_of_the_weights_size(norm):
    host = Host(models.tiny("llama"))
    host.attach("a", DoRA(r=3, norm=norm, sites="*.ffn.{in,out}"))
    with Made(host.model) as made:
        first(host.model(**models.inputs("llama", padding="none"))).square().sum().backward()
    assert (3, 32) in made.shapes  # A's gradient: both passes were seen
    assert not made.shapes & {(32, 48), (48, 32)}


def test_the_detector_sees_a_matrix_of_the_weights_size():
    host = Host(models.tiny("llama"))
    delta = host.attach("a", LoRA(r=3, sites="*.ffn.in")).deltas["lora/layers/0/ffn/in"]
    with Made(host.model) as made:
        _ = delta.B @ delta.A
    assert (48, 32) in made.shapes


def decomposed(dtype, dropout=0.0, exact=False, bias=True):
    """A DoRA Delta off its start beside a map of 256 to 192, and that map."""
    torch.manual_seed(0)
    host = Host(models.tiny("bert", hidden_size=256, intermediate_size=192).to(dtype))
    host.attach("a", DoRA(r=8, sites="layers.0.ffn.in", dropout=dropout, norm="exact" if exact else "detached"))
    delta = deltas(host)["layers.0.ffn.in"]
    with torch.no_grad():
        delta.B.normal_(std=0.05)
        delta.m.mul_(1 + 0.02 * torch.randn_like(delta.m))
    return host, delta, host.model.get_submodule(host.sites["layers.0.ffn.in"].module)


@torch.no_grad()
def test_norms_in_bfloat16_are_as_good_as_the_weights():
    _, delta, linear = decomposed(torch.bfloat16)
    whole = linear.weight.double() + delta.scale * (delta.B.double() @ delta.A.double())
    wanted = whole.norm(dim=1)
    assert float((delta.norm().double() / wanted - 1).abs().max()) < 5e-4  # bfloat16 rounds by up to 4e-3
    assert float((wanted / linear.weight.double().norm(dim=1) - 1).abs().max()) > 0.02  # the update is no small one


@torch.no_grad()
def test_outputs_in_bfloat16_lose_no_more_than_the_result_does():
    host, delta, linear = decomposed(torch.bfloat16)
    x = torch.randn(64, 256).bfloat16()
    host.model.train()  # the road of training, without dropout in this map
    weight = delta.merge({"weight": linear.weight.double()})["weight"]
    exact = torch.nn.functional.linear(x.double(), weight, linear.bias.double())
    live = linear(x).double()
    host.use(None)
    plain = torch.nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double())
    error, floor = (live - exact).norm() / exact.norm(), (linear(x).double() - plain).norm() / plain.norm()
    assert floor > 1e-4
    assert error < 2.5 * floor


def test_the_exact_gradient_is_the_full_one_and_the_detached_one_is_the_papers():
    for exact in (True, False):
        _, delta, linear = decomposed(torch.float64, exact=exact)
        x = torch.randn(5, 256, dtype=torch.float64)
        (linear(x) ** 2).sum().backward()
        A, B, m = (t.detach().clone().requires_grad_() for t in (delta.A, delta.B, delta.m))
        whole = linear.weight + delta.scale * B @ A
        norm = whole.norm(dim=1)
        W = (m / (norm if exact else norm.detach()))[:, None] * whole
        (torch.nn.functional.linear(x, W, linear.bias) ** 2).sum().backward()
        for mine, wanted in ((delta.A, A), (delta.B, B), (delta.m, m)):
            torch.testing.assert_close(mine.grad, wanted.grad, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_norms_kept_for_decoding_follow_the_weights():
    host, delta, linear = decomposed(torch.float32)
    x = torch.randn(1, 256)
    calls = []
    norm = delta.norm
    delta.norm = lambda: (calls.append(1), norm())[1]
    one = linear(x)
    assert torch.equal(linear(x), one)
    assert len(calls) == 1
    for change in (lambda: delta.B.mul_(2), lambda: delta.A.mul_(3), lambda: linear.weight.add_(0.1), host.model.train):
        change()
        before = len(calls)
        got = linear(x)
        assert len(calls) == before + 1
        weight = delta.merge({"weight": linear.weight.double()})["weight"]
        if change != host.model.train:  # the square of the frozen weight is taken once, when the adapter is made
            delta.square = linear.weight.square().sum(1)
            delta.cached = None
            got = linear(x)
        wanted = torch.nn.functional.linear(x.double(), weight, linear.bias.double())
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_row_of_zeros_stays_one():
    model = models.tiny("bert")
    model.encoder.layer[0].attention.self.query.weight[3] = 0
    host = Host(model)
    bare = first(model(**models.inputs("bert")))
    host.attach("a", DoRA())
    assert torch.equal(first(model(**models.inputs("bert"))), bare)


@torch.no_grad()
def test_dropout_is_before_a_alone():
    host, delta, linear = decomposed(torch.float32, dropout=0.999999)
    x = torch.randn(4, 256)
    host.model.train()
    ratio = delta.m / delta.norm()  # with A's input dropped, what is left is the base, its rows scaled
    wanted = torch.nn.functional.linear(x, ratio[:, None] * linear.weight, linear.bias)
    torch.testing.assert_close(linear(x), wanted, rtol=1e-4, atol=1e-4)


# --- PiSSA ---


@pytest.mark.parametrize("alpha", [None, 6.0])
@torch.no_grad()
def test_pissa_starts_with_their_principal_part_and_residual(alpha):
    host = Host(models.tiny("llama", "lm"))
    host.attach("a", PiSSA(r=4, alpha=alpha, sites="*.attn.{q,v}"))
    config = LoraConfig(r=4, lora_alpha=alpha or 4, target_modules=["q_proj", "v_proj"], init_lora_weights="pissa")
    theirs = get_peft_model(models.tiny("llama", "lm"), config)
    for name, delta in deltas(host).items():
        layer = theirs.base_model.model.get_submodule(host.sites[name].module)
        ours, W = delta.scale * delta.B @ delta.A, delta.base.weight
        torch.testing.assert_close(ours, layer.get_delta_weight("default"), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(W - ours, layer.base_layer.weight, rtol=1e-4, atol=1e-5)
        rest = torch.linalg.svdvals(W - ours)[0]  # no rank-4 matrix comes nearer to W
        assert float(rest) == pytest.approx(float(torch.linalg.svdvals(W)[4]), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_pissa_starts_as_the_base_bit_for_bit(dtype):
    host = Host(models.tiny("gpt2").to(dtype))
    batch = models.inputs("gpt2")
    bare = first(host.model(**batch))
    host.attach("a", PiSSA(r=8, sites="*.{attn.q,ffn.in}"))
    assert torch.equal(first(host.model(**batch)), bare)


@torch.no_grad()
def test_a_randomised_svd_finds_the_same_part():
    rest, parts = {}, {}
    for niter in (0, 1, 16):
        host = Host(models.tiny("bert", hidden_size=128))
        host.attach("a", PiSSA(r=4, niter=niter, sites="layers.0.attn.q"))
        delta = deltas(host)["layers.0.attn.q"]
        parts[niter] = delta.B @ delta.A
        rest[niter] = float((delta.base.weight - parts[niter]).norm())
    assert rest[0] <= rest[16] < rest[0] * (1 + 1e-4)
    assert rest[16] < rest[1] < rest[0] * (1 + 1e-2)
    assert not torch.equal(parts[16], parts[0])


def test_pissa_of_too_large_a_rank_is_refused_by_name():
    host = Host(models.tiny("llama"))
    with pytest.raises(DeltatuneError, match=r"layers\.0\.attn\.v has only 16 singular values"):
        host.attach("a", PiSSA(r=20))
    assert PiSSA(r=20).limit(host.sites) == 16


# --- VeRA ---


@torch.no_grad()
def test_vera_without_its_projection_draws_it_again(tmp_path):
    batch = models.inputs("bert")
    sizes = {}
    for save in (True, False):
        host = Host(models.tiny("bert"))
        host.attach("a", VeRA(r=64, save_projection=save), seed=7)
        for delta in deltas(host).values():
            nn.init.normal_(delta.b)
        live = first(host.model(**batch))
        folder = host.save("a", tmp_path / f"{save}")
        again = Host(models.tiny("bert"))
        again.load(folder, name="b")
        assert torch.equal(first(again.model(**batch)), live)
        with safe_open(folder / "adapter.safetensors", "pt") as file:
            sizes[save] = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118
    assert sizes[True] - sizes[False] == 2 * 64 * 32
    assert sizes[False] == VeRA(r=64).count(again.sites)


def test_vera_shares_one_projection_that_is_not_trained():
    host = Host(models.tiny("llama"))
    adapter = host.attach("a", VeRA(r=16, sites="*.{attn.v,ffn.out}"))
    shapes = {name: tuple(t.shape) for name, t in adapter.tensors().items() if name.startswith("shared")}
    assert shapes == {"shared.vera.A": (16, 48), "shared.vera.B": (32, 16)}
    assert {name.rpartition(".")[2] for name, _ in host.trainable("a")} == {"d", "b"}
    assert [float(d.d.detach().unique()) for d in deltas(host).values()] == pytest.approx([0.1] * 4)


def test_the_family_is_what_it_says():
    host = Host(models.tiny("bert"))
    kinds = {LoRA: "LowRank", RsLoRA: "LowRank", DoRA: DoRADelta.__name__, PiSSA: Principal.__name__}
    for method, name in kinds.items():
        host.attach("a", method(r=4))
        assert {type(delta).__name__ for delta in deltas(host).values()} == {name}
        assert {round(delta.scale, 6) for delta in deltas(host).values()} == {
            {LoRA: 4.0, RsLoRA: 8.0, DoRA: 4.0, PiSSA: 1.0}[method]
        }
        host.detach("a")


# --- a Gaussian start ---


@pytest.mark.parametrize("kind", [LoRA, RsLoRA, DoRA])
def test_a_gaussian_start_is_pefts(kind):
    host = Host(models.tiny("llama", "lm"))
    host.attach("a", kind(r=16, init="gaussian", sites="*.ffn.{in,out}"), seed=1)
    named = {LoRA: {}, RsLoRA: {"use_rslora": True}, DoRA: {"use_dora": True}}[kind]
    config = LoraConfig(r=16, target_modules=["up_proj", "down_proj"], init_lora_weights="gaussian", **named)
    theirs = get_peft_model(models.tiny("llama", "lm"), config)
    mine = torch.cat([delta.A.flatten() for delta in deltas(host).values()])
    layers = [theirs.base_model.model.get_submodule(host.sites[name].module) for name in deltas(host)]
    peer = torch.cat([layer.lora_A["default"].weight.flatten() for layer in layers])
    assert len(mine) == len(peer) > 2000
    for drawn in (mine.detach(), peer.detach()):  # N(0, 1/r²): spread, centre, and the tails that a uniform lacks
        assert drawn.std().item() == pytest.approx(1 / 16, rel=0.05)
        assert abs(drawn.mean().item()) < 0.005
        assert (drawn.abs() > 2 / 16).float().mean().item() == pytest.approx(0.0455, abs=0.015)
    assert all(not delta.B.any() for delta in deltas(host).values())


def test_a_gaussian_start_depends_on_seed_and_name_alone_and_the_default_is_as_before():
    def down(method, seed, name="layers.1.attn.q"):
        host = Host(models.tiny("llama", "lm"))
        host.attach("a", method, seed=seed)
        return deltas(host)[name].A

    both, one = LoRA(r=4, init="gaussian"), LoRA(r=4, init="gaussian", sites="layers.1.attn.q")
    assert torch.equal(down(both, 3), down(one, 3))
    assert not torch.equal(down(both, 3), down(both, 4))
    assert not torch.equal(down(both, 3), down(both, 3, "layers.0.attn.q"))
    plain = LoRA(r=4)
    assert torch.equal(down(plain, 3), down(LoRA(r=4, init="kaiming"), 3))
    assert repr(plain) == "LoRA(r=4)"
    assert repr(both) == "LoRA(r=4, init='gaussian')"
    assert parse("LoRAPlus(r=4, init='gaussian')").init == "gaussian"


@pytest.mark.parametrize("kind", [LoRA, RsLoRA, DoRA])
def test_peft_files_say_how_it_started(kind, tmp_path):
    host = Host(models.tiny("llama", "lm"))
    host.attach("a", kind(r=4, init="gaussian"))
    host.attach("b", kind(r=4))
    for name, written in (("a", "gaussian"), ("b", True)):
        save_peft(host, name, tmp_path / name, {})
        assert json.loads((tmp_path / name / "adapter_config.json").read_text())["init_lora_weights"] == written
        loaded = host.load(tmp_path / name, name=f"{name}2")
        assert loaded.method.init == host.adapters[name].method.init


def test_ranks_have_a_spread_of_their_own():
    host = Host(models.tiny("llama", "lm"))
    host.attach("a", LoRA(r=16, init="gaussian", sites="*.ffn.in", ranks=(("layers.1.*", 4),)))
    spread = {name: delta.A.std().item() for name, delta in deltas(host).items()}
    assert spread["layers.0.ffn.in"] == pytest.approx(1 / 16, rel=0.1)
    assert spread["layers.1.ffn.in"] == pytest.approx(1 / 4, rel=0.15)
