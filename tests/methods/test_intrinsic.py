"""DID and SAID: the Fastfood projection against written-out matrices, the weight seam that shows computed weights."""

import json
import math
from functools import partial

import pytest
import scipy.linalg
import torch
from torch.autograd import gradcheck, gradgradcheck

from deltatune import DeltatuneError, Host, parse
from deltatune.core.delta import generator_for
from deltatune.methods.base_weights.fastfood import Fastfood, factors, hadamard, sylvester
from deltatune.methods.base_weights.intrinsic import DID, SAID
from deltatune.testing import check_method, inputs
from deltatune.testing import tiny as tiny_model


def rng(name, seed=0):
    return generator_for(seed, name)


def drawn(d, size, LL, seed=0, dtype=torch.float64):
    made = Fastfood(d, size, LL)
    made.draw_(partial(rng, seed=seed))
    return made.to(dtype)


def matrix(fastfood, d):
    """P (D, d), written out from the definition: no Hadamard transform, no shortcut."""
    LL = fastfood.LL
    H = torch.tensor(scipy.linalg.hadamard(LL), dtype=torch.float64)
    pad = torch.eye(LL, d, dtype=torch.float64)  # crops where LL < d
    signs = torch.cat([fastfood.B, torch.ones(LL - len(fastfood.B))]).double()
    Pi = torch.zeros(LL, LL, dtype=torch.float64)
    permuted = torch.randperm(LL, generator=rng("Π"), dtype=torch.int32)
    Pi[torch.arange(LL), permuted.long()] = 1
    G = fastfood.G.double()
    norm = math.sqrt(LL * float(G.square().sum())) * math.sqrt(fastfood.D / LL)
    return (H @ torch.diag(G) @ Pi @ H @ torch.diag(signs) @ pad)[: fastfood.D] / norm


# ---- the transform


@pytest.mark.parametrize("bits", [0, 1, 2, 5, 6, 7, 12, 13])
def test_the_transform_is_the_walsh_hadamard_matrix(bits):
    size = 2**bits
    x = torch.randn(size, dtype=torch.float64)
    if size <= 4096:
        H = torch.tensor(scipy.linalg.hadamard(size), dtype=torch.float64)
        assert torch.allclose(hadamard(x), H @ x, atol=1e-9)
    assert torch.allclose(hadamard(hadamard(x)), size * x, atol=1e-8)
    assert math.prod(factors(size)) == size


def test_the_written_out_factor_is_sylvesters():
    assert torch.equal(
        sylvester(64, torch.float64, torch.device("cpu")),
        torch.tensor(scipy.linalg.hadamard(64), dtype=torch.float64),
    )


@pytest.mark.parametrize("kept", [1, 63, 64, 65, 1000, 4096])
def test_a_cropped_transform_is_the_beginning_of_the_whole(kept):
    x = torch.randn(4096, dtype=torch.float64)
    first = factors(4096)[0]
    rows = -(-kept // (4096 // first))
    found = hadamard(x, columns=rows, first=first)
    assert torch.allclose(found[:kept], hadamard(x)[:kept])
    padded = torch.zeros(4096, dtype=torch.float64)
    padded[:kept] = x[:kept]
    short = padded[: rows * (4096 // first)]
    assert torch.allclose(hadamard(short, rows=rows, first=first), hadamard(padded))


@pytest.mark.parametrize(("d", "size", "LL"), [(3, 6, 8), (8, 8, 8), (5, 3, 8), (1, 7, 8), (20, 100, 128), (12, 5, 8)])
def test_it_is_the_papers_matrix_and_its_gradient_is_exact(d, size, LL):
    made = drawn(d, size, LL)
    P = matrix(made, d)
    v = torch.randn(d, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(made(v), P @ v, atol=1e-12)
    g = torch.randn(size, dtype=torch.float64)
    (back,) = torch.autograd.grad(made(v), v, g)
    assert torch.allclose(back, P.T @ g, atol=1e-12)
    assert gradcheck(made, (v,))
    assert gradgradcheck(lambda v: made(v) ** 2, (v,))


def test_the_gradient_has_no_factor_of_the_size():
    """Known from elsewhere: a backward that divides by LL gives tensors of other sizes other step lengths."""
    v = torch.randn(10, dtype=torch.float64, requires_grad=True)
    for size, LL in ((50, 64), (4000, 4096)):
        made = drawn(10, size, LL)
        g = torch.randn(size, dtype=torch.float64)
        (back,) = torch.autograd.grad(made(v), v, g)
        assert torch.isclose(back @ v, g @ made(v))


@pytest.mark.parametrize(("d", "size", "LL"), [(50, 384, 512), (50, 20, 64), (64, 3000, 4096)])
def test_the_norm_is_kept_on_average(d, size, LL):
    v = torch.randn(d, dtype=torch.float64)
    squares = [float(drawn(d, size, LL, seed)(v).square().sum() / v.square().sum()) for seed in range(300)]
    error = torch.tensor(squares).std() / math.sqrt(len(squares))
    assert abs(sum(squares) / len(squares) - 1) < 4 * float(error) < 0.2


def test_it_is_linear_and_sees_every_coordinate():
    made = drawn(100, 30, 128)
    a, b = torch.randn(2, 100, dtype=torch.float64)
    assert torch.allclose(made(2 * a - 3 * b), 2 * made(a) - 3 * made(b))
    assert (made(torch.eye(100, dtype=torch.float64)[77]) != 0).all()
    assert torch.linalg.matrix_rank(torch.stack([made(row) for row in torch.eye(100, dtype=torch.float64)])) == 30


def test_seed_and_name_decide():
    v = torch.randn(10, dtype=torch.float64)
    assert torch.equal(drawn(10, 40, 64)(v), drawn(10, 40, 64)(v))
    assert not torch.allclose(drawn(10, 40, 64)(v), drawn(10, 40, 64, seed=1)(v))


def test_half_precision_around_it_does_not_reach_it():
    made = drawn(10, 40, 64, dtype=torch.float32)
    v = torch.randn(10, requires_grad=True)
    plain = made(v)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(v), plain)


# ---- the methods


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("method", "models"),
    [
        (DID(dimension=20), ["bert", "t5"]),
        (SAID(dimension=50, scales="tensor"), ["gpt2", "t5"]),
        (DID(reach="first"), ["bert", "llama"]),
    ],
    ids=repr,
)
def test_laws(method, models):
    check_method(method, models)


def test_what_is_counted():
    sites = Host(tiny_model("t5")).sites
    assert DID(dimension=77).count(sites) == 77
    assert SAID(dimension=77).count(sites) == 77
    host = Host(tiny_model("t5"))
    adapter = host.attach("a", SAID(dimension=77))
    shapes = {name: tuple(p.shape) for name, p in adapter.named_parameters()}
    assert sorted(shapes.values()) == [(6,), (71,)]  # two encoder and two decoder blocks, what is below, what is above
    assert adapter.count == 77


def test_the_rate_falls_with_the_length_of_a_step():
    rates = [DID(dimension=d).learning_rate for d in (1, 100, 400, 10_000)]
    assert rates == [0.03, 0.03, 0.015, 0.003]


def test_a_layers_weights_have_one_scale():
    host = Host(tiny_model("t5"))
    adapter = host.attach("a", SAID(dimension=50))
    places = {}
    for _, site, delta in adapter.entries():
        places.setdefault(delta.place, set()).add(".".join(site.name.split(".")[:3]))
    assert {"encoder.block.1"} in places.values()
    assert {"decoder.block.0"} in places.values()
    scales = dict(adapter.named_parameters())["shared.said.scales"]
    with torch.no_grad():
        dict(adapter.named_parameters())["shared.said.theta"].normal_()
        scales.zero_()
        scales[places_of(adapter, "encoder.block.1")] = 2.0
    before = {name: tensor.clone() for name, tensor in host.base.tensors()}
    host.merge_("a")
    moved = {name for name, p in host.model.named_parameters() if name in before and not torch.equal(p, before[name])}
    assert moved == {name for name in before if name.startswith("encoder.block.1.")}


def places_of(adapter, prefix):
    return next(delta.place for _, site, delta in adapter.entries() if site.name.startswith(prefix))


def test_every_weight_moves_by_about_the_norm_of_theta():
    host = Host(tiny_model("bert"))
    host.attach("a", DID(dimension=200))
    with torch.no_grad():
        for _, parameter in host.trainable("a"):
            parameter.normal_()
            length = float(parameter.norm())
    before = {name: tensor.clone() for name, tensor in host.base.tensors()}
    host.merge_("a")
    now = dict(host.model.named_parameters())
    ratios = {name: float((now[name] - before[name]).norm()) / length for name in before}
    assert len(ratios) == len(host.sites.weights)
    assert all(0.4 < ratio < 1.8 for ratio in ratios.values()), ratios


@pytest.mark.parametrize(
    ("text", "words"),
    [("SAID(dimension=4)", "5 to"), ("DID(dimension=10000000)", "1 to"), ("SAID(dimension=4, scales='tensor')", "λ")],
)
def test_dimensions_that_cannot_be_had(text, words):
    host = Host(tiny_model("bert"))
    with pytest.raises(DeltatuneError, match="the dimension must be") as caught:
        host.attach("a", parse(text))
    assert words in str(caught.value)
    assert not host.adapters


def test_one_weight_is_not_replaced_twice():
    host = Host(tiny_model("bert"))
    with pytest.raises(DeltatuneError, match="twice"):
        host.attach("a", parse("DID(dimension=20) + Full()"))


# ---- files


def test_a_model_and_the_same_model_with_a_head_have_the_same_projections(tmp_path):
    bare, headed = Host(tiny_model("bert")), Host(tiny_model("bert", "classify"))
    for path, tensor in bare.base.tensors():
        with torch.no_grad():
            dict(headed.base.tensors())[f"bert.{path}"].copy_(tensor)
    batch = inputs("bert")
    adapter = bare.attach("a", DID(dimension=30), seed=5)
    with torch.no_grad():
        dict(adapter.named_parameters())["shared.did.theta"].normal_()
        bare.model.eval()
        wanted = bare.model(**batch)[0]
        bare.save("a", tmp_path / "a")
        headed.load(tmp_path / "a", name="a")
        assert torch.equal(headed.model.bert(**batch)[0], wanted)  # a part of the model, called by itself


def test_only_the_subspace_is_stored_and_another_seed_is_noticed(tmp_path):
    host = Host(tiny_model("bert"))
    host.attach("a", DID(dimension=30), seed=5)
    host.save("a", tmp_path / "a")
    assert (tmp_path / "a/adapter.safetensors").stat().st_size < 1000
    other = Host(tiny_model("bert"))
    adapter = other.attach("a", DID(dimension=30), seed=6)
    adapter.load_tensors(host.adapters["a"].tensors())  # as if this torch drew other numbers for the seed
    with pytest.raises(DeltatuneError, match="projections drawn here are not those"):
        other.model(**inputs("bert"))
    assert json.loads((tmp_path / "a/adapter.json").read_text())["seed"] == 5


# ---- the seam


@pytest.fixture
def moved():
    """A host on T5 with a DID adapter whose θ_d is not 0."""
    host = Host(tiny_model("t5", "lm", dropout=False))
    adapter = host.attach("a", DID(dimension=40))
    with torch.no_grad():
        dict(adapter.named_parameters())["shared.did.theta"].normal_(0, 0.3)
    host.model.eval()
    return host, dict(adapter.named_parameters())["shared.did.theta"]


def test_generation_that_runs_the_encoder_alone_sees_the_weights(moved):
    host, _ = moved
    batch = {name: inputs("t5")[name] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "output_logits": True}
    options["return_dict_in_generate"] = True
    live = torch.stack(host.generate(**batch, **options).logits)
    host.use(None)
    bare = torch.stack(host.generate(**batch, **options).logits)
    host.merge_("a")
    merged = torch.stack(host.generate(**batch, **options).logits)
    assert torch.allclose(live, merged, atol=1e-5)
    assert not torch.allclose(live, bare, atol=1e-2)


def test_nothing_stale_is_used(moved):
    host, theta = moved
    batch = inputs("t5")
    with torch.no_grad():
        first = host.model(**batch)[0]
        assert torch.equal(host.model(**batch)[0], first)
        theta.data.mul_(2)  # a write that leaves the version as it was
        second = host.model(**batch)[0]
        assert not torch.allclose(second, first)
        next(host.model.get_encoder().parameters()).mul_(1.5)  # the base's own weight
        assert not torch.allclose(host.model(**batch)[0], second)
    live = host.model(**batch)[0]
    live.sum().backward()
    with torch.inference_mode():
        assert torch.allclose(host.model(**batch)[0], live, atol=1e-4)
    host.model(**batch)[0].sum().backward()  # and gradients again, after inference mode
    assert float(theta.grad.abs().sum()) > 0


def test_without_gradients_weights_are_computed_once(moved, monkeypatch):
    host, theta = moved
    calls = []
    real = Fastfood.project
    monkeypatch.setattr(Fastfood, "project", lambda self, v: calls.append(1) or real(self, v))
    batch, weights = inputs("t5"), len(host.sites.weights)
    with torch.no_grad():
        host.model(**batch)
        host.model(**batch)
        assert len(calls) == weights
        theta.add_(0.1)
        host.model(**batch)
        assert len(calls) == 2 * weights
    host.model(**batch)  # the encoder and the decoder are parts of this forward: they compute nothing again
    assert len(calls) == 3 * weights


def test_the_model_keeps_its_own_parameters_while_computed_weights_act(moved):
    host, theta = moved
    before = {name: id(p) for name, p in host.model.named_parameters()}
    host.model.train()
    host.model(**inputs("t5"))[0].sum().backward()
    assert {name: id(p) for name, p in host.model.named_parameters()} == before
    host.model.zero_grad()  # warns, and a warning is an error here, if it meets a tensor that is no leaf
    assert theta.grad is None
    assert not any(p.grad is not None for p in host.model.parameters())


def test_a_failed_forward_leaves_the_next_one_right(moved):
    host, theta = moved
    batch = inputs("t5")
    wanted = host.model(**batch)[0].detach()
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        host.model(input_ids=batch["input_ids"])
    with torch.no_grad():
        theta.zero_()
    assert not torch.allclose(host.model(**batch)[0], wanted)


@pytest.mark.parametrize("text", ["DID(dimension=40)", "Full()"])
def test_beside_a_base_in_bfloat16_the_model_sees_bfloat16(text):
    host = Host(tiny_model("bert").to(torch.bfloat16))
    adapter = host.attach("a", parse(text))
    seen = []
    module = host.model.get_submodule("encoder.layer.0.attention.self.query")
    module.register_forward_hook(lambda module, args, out: seen.append(module.weight.dtype))
    host.model.train()
    host.model(**inputs("bert"))[0].float().square().sum().backward()
    assert seen == [torch.bfloat16]
    assert all(p.dtype == torch.float32 and p.grad is not None for p in adapter.parameters() if p.requires_grad) or (
        text == "Full()"  # without a head nothing reads the pooler
    )
    host.detach("a")
    assert module.weight is dict(host.base.tensors())["encoder.layer.0.attention.self.query.weight"]
