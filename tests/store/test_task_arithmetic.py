"""Task arithmetic on ΔW: sums are exact, the error of a rank is reported, TIES and DARE follow their papers."""

from __future__ import annotations

import itertools
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from deltatune import DeltatuneError, Host, parse
from deltatune.store.arithmetic.task_arithmetic import combine
from deltatune.store.arithmetic.ties_dare import disjoint_mean, drop_and_rescale, elect_signs, ties, trim
from deltatune.tasks.heads import Head, HeadConfig
from support import models

GOLDEN = Path(__file__).parents[1] / "golden"


def hosted(kind: str, *methods: str, head: str | None = None, scale: float = 0.1) -> Host:
    """A host with adapters a, b, c, ... of these methods, each with random values."""
    host = Host(models.tiny(kind, head))
    for name, method in zip("abcd", methods, strict=False):
        host.attach(name, parse(method))
        generator = torch.Generator().manual_seed(ord(name))
        with torch.no_grad():
            for _, parameter in host.trainable(name):
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    return host


@torch.no_grad()
def outputs_of(host: Host, kind: str, route) -> torch.Tensor:
    before = host.route
    host.use(route)
    output = host.model(**models.inputs(kind, "lm" if hasattr(host.model, "lm_head") else None))
    host.use(before.uniform)
    return output[0]


def weights_of(host: Host, name: str) -> dict[str, torch.Tensor]:
    """The change of the base's weights by a merged adapter."""
    base = {key: tensor.clone() for key, tensor in host.base.tensors()}
    host.use(None)
    host.merge_(name)
    merged = {key: p.detach().clone() for key, p in host.model.named_parameters() if not key.startswith("deltatune.")}
    host.unmerge_(name)
    return {key: merged[key] - base[key] for key in merged}


EXACT = [
    ("bert", ("LoRA(r=4)", "LoRA(r=4)"), "LoRA(r=8"),
    ("bert", ("LoRA(r=4)", "LoRA(r=2, alpha=7, sites=('*.attn.{q,k}', '*.ffn.out'))"), "ranks="),
    ("gpt2", ("LoRA(r=4, sites='*.attn.{q,v}')", "LoRA(r=3, sites='*.attn.qkv')"), "LoRA("),
    ("llama", ("LoRA(r=4, sites=('embed', '*.attn.q'))", "RsLoRA(r=4, sites='*.attn.q')"), "'embed'"),
    ("bert", ("PiSSA(r=3)", "LoRA(r=2)"), "LoRA(r=8"),
    ("llama", ("VeRA(r=5)", "LoRA(r=2)"), "LoRA(r=7"),
    ("bert", ("BitFit()", "BitFit(sites='*.attn.q')"), "BitFit("),
    ("llama", ("BitFit(missing='add')", "LoRA(r=2)"), "layers.*.attn.v')) + BitFit("),
    ("t5", ("IA3()", "IA3(sites='*.attn.k')"), "IA3("),
    ("gpt2", ("IA3()", "LoRA(r=2)", "BitFit()"), ") + IA3("),
    ("gpt2", ("IA3()", "LoRA(r=2, sites='*.ffn.out')"), ") + IA3("),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "methods", "text"), EXACT)
def test_a_sum_is_exact_and_equals_the_route(kind, methods, text):
    host = hosted(kind, *methods)
    weights = dict(zip("abc", (0.7, -0.4, 1.3), strict=False)) if len(methods) == 3 else {"a": 0.7, "b": -0.4}
    live = outputs_of(host, kind, weights)
    made = combine(host, "sum", weights)
    assert made.error == 0
    assert text in repr(made.adapter.method)
    assert parse(repr(made.adapter.method)) == made.adapter.method
    torch.testing.assert_close(outputs_of(host, kind, "sum"), live, rtol=1e-4, atol=2e-5)
    assert (live - outputs_of(host, kind, None)).abs().max() > 1e-3
    assert host.route.uniform == {"a": 1.0}, "combining changes no route"


def test_whole_weights_add_up(tmp_path):
    host = hosted("bert", "TopLayers(1)", "Full()")
    changes = [weights_of(host, name) for name in "ab"]
    host.use("b")  # the base's own weights are swapped out at this moment
    made = combine(host, "sum", {"a": 2.0, "b": -1.0})
    assert repr(made.adapter.method) == "Full()"
    for key, change in weights_of(host, "sum").items():
        torch.testing.assert_close(change, 2 * changes[0][key] - changes[1][key], rtol=1e-4, atol=1e-5)
    top = combine(host, "top", {"a": 0.5})
    assert repr(top.adapter.method) == "TopLayers(1)"


@pytest.mark.parametrize(
    "method", ["LoRA(r=4)", "RsLoRA(r=4, alpha=7)", "BitFit()", "IA3()", "LoRA(r=4, sites='*.ffn.*')"]
)
def test_one_adapter_of_weight_one_stays_equal_to_the_bit(method):
    """Other libraries get this wrong for rsLoRA."""
    host = hosted("bert", method)
    combine(host, "again", {"a": 1.0})
    assert torch.equal(outputs_of(host, "bert", "again"), outputs_of(host, "bert", "a"))


def test_the_sum_of_factors_is_not_the_factors_of_the_sum():
    """Concatenating factors gives Σ ΔW; adding the factors (`linear` of other libraries) has cross terms."""
    host = hosted("bert", "LoRA(r=4)", "LoRA(r=4)")
    a, b = (weights_of(host, name) for name in "ab")
    combine(host, "sum", {"a": 1.0, "b": 1.0})
    key = "encoder.layer.0.attention.self.query.weight"
    torch.testing.assert_close(weights_of(host, "sum")[key], a[key] + b[key], rtol=1e-5, atol=1e-6)
    tensors = [host.adapters[name].tensors() for name in "ab"]
    crossed = (
        4.0 * sum(t["lora.layers.0.attn.q.B"] for t in tensors) @ sum(t["lora.layers.0.attn.q.A"] for t in tensors)
    )
    assert (crossed - a[key] - b[key]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("rank", [None, 3, 100])
def test_svd_is_the_best_of_its_rank_and_reports_its_error(kind, rank):
    host = hosted(kind, "LoRA(r=4, sites=('*.attn.{q,o}', '*.ffn.in'))", "LoRA(r=2, sites='*.attn.{q,k}')")
    made = combine(host, "small", {"a": 0.5, "b": 0.5}, how="svd", rank=rank)
    combine(host, "whole", {"a": 0.5, "b": 0.5})
    lost = total = 0.0
    tensors, whole = made.adapter.tensors(), host.adapters["whole"].tensors()
    for site, error in made.errors.items():
        small, full = (
            host.adapters[name].deltas[f"lora/{site.replace('.', '/')}"].scale
            * one[f"lora.{site}.B"]
            @ one[f"lora.{site}.A"]
            for name, one in (("small", tensors), ("whole", whole))
        )
        best = torch.linalg.svdvals(full.double())[rank or 4 :].square().sum().sqrt()
        assert float((small - full).norm()) == pytest.approx(float(best), abs=1e-5)
        assert error == pytest.approx(float(best / full.norm()), abs=1e-5)
        lost, total = lost + float((small - full).norm()) ** 2, total + float(full.norm()) ** 2
    assert made.error == pytest.approx((lost / total) ** 0.5, abs=1e-5)
    assert (made.error > 0.05) == (rank != 100)
    assert made.adapter.extra["combined"]["error"] == made.error


MATRICES = [
    ("bert", ("DoRA(r=3)", "LoRA(r=2)")),
    ("gpt2", ("DoRA(r=3)", "LoRA(r=3, sites='*.attn.qkv')")),
    ("llama", ("IA3()", "DoRA(r=3, sites='*.attn.v')")),
    ("bert", ("BitFit()", "DoRA(r=3)")),
    ("llama", ("LoRA(r=2, sites='embed')", "DoRA(r=2)")),
    ("gpt2", ("LoRA(r=2, sites='*.attn.qkv')", "LoRA(r=3)")),
]


@pytest.mark.parametrize(("kind", "methods"), MATRICES)
def test_any_methods_with_a_weight_form_add_up_at_full_rank(kind, methods):
    host = hosted(kind, *methods)
    weights = {"a": 0.8, "b": -0.5}
    live = outputs_of(host, kind, weights)
    made = combine(host, "sum", weights, rank="full")
    assert made.error == 0
    torch.testing.assert_close(outputs_of(host, kind, "sum"), live, rtol=1e-3, atol=5e-5)
    small = combine(host, "small", weights, rank=2)
    assert 0.01 < small.error < 1
    assert small.adapter.count < made.adapter.count


@pytest.mark.parametrize("transposed", [False, True])
def test_a_lora_from_whole_weights(transposed):
    """Task vectors of full fine-tuning, where only matrices changed, brought to a rank."""
    kind = "gpt2" if transposed else "bert"
    host = hosted(kind, "Full()", scale=0.0)
    with torch.no_grad():
        for key, _, delta in host.adapters["a"].entries():
            if (
                delta.value.dim() == 2
                and "emb" not in key
                and "wte" not in key
                and "wpe" not in key
                and "pooler" not in key
            ):
                delta.value += 0.1 * torch.randn(delta.value.shape, generator=torch.Generator().manual_seed(len(key)))
    live = outputs_of(host, kind, "a")
    made = combine(host, "low", {"a": 1.0}, rank="full")
    host.use(None)
    torch.testing.assert_close(outputs_of(host, kind, "low"), live, rtol=1e-3, atol=5e-5)
    assert type(made.adapter.method).__name__ == "LoRA"
    with torch.no_grad():
        next(d for k, _, d in host.adapters["a"].entries() if "ln" in k.lower() or "norm" in k.lower()).value += 1
    with pytest.raises(DeltatuneError, match="has no rank"):
        combine(host, "low2", {"a": 1.0}, rank=4)


def test_ties_step_by_step():
    """By hand: 10 entries, the largest 4 of each, signs of the sums, the mean of entries that agree."""
    a = torch.tensor([5.0, -4, 3, 2, 0.1, 0.2, 0.3, 0.1, 0, 0])
    b = torch.tensor([-1.0, -6, 4, 0.5, 7, 0, 0, 0, 0, 0])
    assert trim(a, 0.4).tolist() == [5, -4, 3, 2, 0, 0, 0, 0, 0, 0]
    found = ties([a, b], 0.4, "tensor")
    assert found.tolist() == [5, -5, 3.5, 2, 7, 0, 0, 0, 0, 0]


def test_ties_equals_the_reference():
    golden = load_file(GOLDEN / "ties.safetensors")
    tau = list(golden["input.tau"])
    trimmed = [trim(one, 9 / 40) for one in tau]  # the reference keeps one more than 20 % of 40
    assert torch.equal(torch.stack(trimmed), golden["output.trimmed"])
    signs = elect_signs(trimmed, "model")
    assert torch.equal(signs, golden["output.sign"])
    torch.testing.assert_close(disjoint_mean(trimmed, signs), golden["output"])
    torch.testing.assert_close(ties(tau, 9 / 40, "model"), golden["output"])


def test_a_sum_of_zero():
    even = [torch.tensor([1.0, -2, -3]), torch.tensor([-1.0, -2, -3])]
    assert elect_signs(even, "model").tolist() == [-1, -1, -1]
    assert elect_signs(even, "tensor").tolist() == [1, -1, -1]


def test_dare_keeps_the_mean_and_a_share():
    golden = load_file(GOLDEN / "dare.safetensors")
    tau, gone = golden["input.tau"], golden["input.dropped"].bool()
    torch.testing.assert_close(golden["output"], torch.where(gone, 0, tau / 0.6))
    ones = torch.ones(200, 200)
    found = drop_and_rescale(ones, 0.3, torch.Generator().manual_seed(0))
    assert found.unique().tolist() == [0.0, pytest.approx(1 / 0.3)]
    assert float(found.mean()) == pytest.approx(1, abs=0.03)
    assert torch.equal(found, drop_and_rescale(ones, 0.3, torch.Generator().manual_seed(0)))


def test_ties_over_the_whole_model_and_tensor_by_tensor():
    host = hosted("bert", "BitFit()", "BitFit()")
    with torch.no_grad():
        for name in "ab":  # one site with large changes: over the whole model it takes most of what is kept
            for key, _, delta in host.adapters[name].entries():
                delta.b *= 10 if "ffn.in" in key else 1
    own = {name: {k.removeprefix("bitfit."): t for k, t in host.adapters[name].tensors().items()} for name in "ab"}
    whole = combine(host, "whole", {"a": 1.0, "b": 1.0}, how="ties", scale=2.0)
    flat = [torch.cat([t.flatten() for t in own[name].values()]) for name in "ab"]
    expected = 2 * ties(flat, 0.2, "model")
    found = {k.removeprefix("bitfit."): t for k, t in whole.adapter.tensors().items()}
    torch.testing.assert_close(torch.cat([found[key].flatten() for key in own["a"]]), expected)
    each = combine(host, "each", {"a": 1.0, "b": 1.0}, how="ties", scope="tensor", density=0.5)
    found = {k.removeprefix("bitfit."): t for k, t in each.adapter.tensors().items()}
    for key in own["a"]:
        torch.testing.assert_close(found[key], ties([own["a"][key], own["b"][key]], 0.5, "tensor"))
    assert each.error == 0


def test_a_negative_weight_votes_against():
    host = hosted("bert", "BitFit(sites='*.attn.q')", "BitFit(sites='*.attn.q')")
    made = combine(host, "c", {"a": 1.0, "b": -1.0}, how="ties", density=1.0, scope="tensor")
    a, b = (host.adapters[name].tensors()["bitfit.layers.0.attn.q.b"] for name in "ab")
    torch.testing.assert_close(made.adapter.tensors()["bitfit.layers.0.attn.q.b"], ties([a, -b], 1.0, "tensor"))


@pytest.mark.parametrize("how", ["dare", "dare_ties"])
def test_dare_depends_on_the_seed(how):
    host = hosted("bert", "LoRA(r=4)", "LoRA(r=4)")
    options = {"how": how, "density": 0.5, "rank": "full"}
    made = {seed: combine(host, f"s{i}", {"a": 0.5, "b": 0.5}, seed=seed, **options) for i, seed in enumerate((1, 2))}
    again = combine(host, "again", {"a": 0.5, "b": 0.5}, seed=1, **options)
    for key, tensor in again.adapter.tensors().items():
        assert torch.equal(tensor, made[1].adapter.tensors()[key])
    assert any(not torch.equal(t, made[2].adapter.tensors()[k]) for k, t in again.adapter.tensors().items())
    a = weights_of(host, "a")["encoder.layer.0.attention.self.query.weight"]
    b = weights_of(host, "b")["encoder.layer.0.attention.self.query.weight"]
    both = weights_of(host, "again")["encoder.layer.0.attention.self.query.weight"]
    assert float((both != 0).float().mean()) == pytest.approx(1 - 0.5**2, abs=0.05)  # 0 where both were dropped
    if how == "dare":  # every entry is one of the four sums
        sums = torch.stack([i * a + j * b for i, j in itertools.product((0.0, 1.0), repeat=2)])
        assert float((sums - both).abs().min(0).values.max()) < 1e-5


def peft_pair(host: Host) -> peft.PeftModel:
    """The host's adapters a and b in PEFT."""
    targets = ["query", "value"]
    theirs = peft.get_peft_model(
        models.tiny("bert"), peft.LoraConfig(r=4, lora_alpha=16, target_modules=targets), adapter_name="one"
    )
    theirs.add_adapter("two", peft.LoraConfig(r=4, lora_alpha=16, target_modules=targets))
    with torch.no_grad():
        for name, there in (("a", "one"), ("b", "two")):
            for _, site, delta in host.adapters[name].entries():
                layer = theirs.base_model.model.get_submodule(site.module)
                layer.lora_A[there].weight.copy_(delta.A)
                layer.lora_B[there].weight.copy_(delta.B)
    return theirs


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        ({"combination_type": "cat"}, {}),
        ({"combination_type": "svd", "svd_rank": 3}, {"how": "svd", "rank": 3}),
        (
            {"combination_type": "ties_svd", "svd_rank": 5, "density": 0.4},
            {"how": "ties", "scope": "tensor", "rank": 5, "density": 0.4},
        ),
    ],
)
def test_peft_on_the_weights_gives_the_same(theirs, mine):
    host = hosted("bert", "LoRA(r=4)", "LoRA(r=4)")
    other = peft_pair(host)
    other.base_model.add_weighted_adapter(["one", "two"], [0.5, 0.5], "both", **theirs)
    combine(host, "c", {"a": 0.5, "b": 0.5}, **mine)
    changes = weights_of(host, "c")
    for name in ("query", "value"):
        path = f"encoder.layer.1.attention.self.{name}"
        layer = other.base_model.model.get_submodule(path)
        torch.testing.assert_close(changes[f"{path}.weight"], layer.get_delta_weight("both"), rtol=1e-4, atol=1e-5)


def test_a_combined_adapter_is_saved_like_any_other(tmp_path):
    host = hosted("llama", "LoRA(r=4)", "LoRA(r=2, sites='*.attn.k')")
    combine(host, "c", {"a": 0.5, "b": 0.25})
    host.save("c", tmp_path / "c")
    other = Host(models.tiny("llama"))
    adapter = other.load(tmp_path / "c")
    assert adapter.extra["combined"]["of"]["b"] == {"weight": 0.25, "method": "LoRA(r=2, sites='*.attn.k')"}
    assert torch.equal(outputs_of(other, "llama", "c"), outputs_of(host, "llama", "c"))
    assert (tmp_path / "c/adapter_config.json").exists(), "PEFT can hold it too"


def headed(outputs: tuple[int, int] = (3, 3)) -> Host:
    host = Host(models.tiny("bert"))
    for name, number in zip("ab", outputs, strict=True):
        head = Head(HeadConfig(outputs=number, width=32), seed=ord(name))
        host.attach(name, parse("LoRA(r=2)"), head=head, extra={"task": {"labels": number}})
    return host


def test_the_head_must_be_chosen():
    host = headed()
    with pytest.raises(DeltatuneError, match="have a head each"):
        combine(host, "c", {"a": 1, "b": 1})
    taken = combine(host, "c", {"a": 1, "b": 1}, head="b").adapter
    assert torch.equal(next(taken.head.parameters()), next(host.adapters["b"].head.parameters()))
    assert taken.head is not host.adapters["b"].head
    assert taken.extra["task"] == {"labels": 3}
    mean = combine(host, "d", {"a": 3, "b": 1}, head="mean").adapter
    heads = [next(host.adapters[name].head.parameters()) for name in "ab"]
    torch.testing.assert_close(next(mean.head.parameters()), 0.75 * heads[0] + 0.25 * heads[1])
    assert combine(host, "e", {"a": 1, "b": 1}, head=False).adapter.head is None
    with pytest.raises(DeltatuneError, match="adapters that have one: a, b"):
        combine(host, "f", {"a": 1, "b": 1}, head="x")
    with pytest.raises(DeltatuneError, match="sum to 0"):
        combine(host, "f", {"a": 1, "b": -1}, head="mean")
    with pytest.raises(DeltatuneError, match="differ in shape"):
        combine(headed((3, 2)), "f", {"a": 1, "b": 1}, head="mean")


def test_copies_of_the_models_own_head():
    host = Host(models.tiny("bert", "classify"))
    for name in "ab":
        host.attach(name, parse("LoRA(r=2)"))
        with torch.no_grad():
            host.adapters[name].deltas["head/head"].module.weight += ord(name)
    made = combine(host, "c", {"a": 1, "b": 1}, head="mean").adapter
    expected = sum(host.adapters[name].tensors()["head.head.module.weight"] for name in "ab") / 2
    torch.testing.assert_close(made.tensors()["head.head.module.weight"], expected)


@pytest.mark.parametrize(
    ("methods", "options", "words"),
    [
        (("Bottleneck(size=4)", "LoRA(r=2)"), {}, r"Bottleneck has no weight form"),
        (("Prefix(length=4)", "LoRA(r=2)"), {}, r"use them together, unmerged: host.use\(\{'a': 1, 'b': 1\}\)"),
        (("LoRA(r=2)", "LoRA(r=2)"), {"how": "ties"}, "set a rank, such as rank=8"),
        (("DoRA(r=2)", "LoRA(r=2)"), {}, "set a rank, such as rank=8"),
        (("IA3()", "LoRA(r=2, sites='*.ffn.out')"), {"rank": 2}, "which is not a sum"),
        (("DoRA(r=2)", "DoRA(r=2)"), {"how": "svd"}, "svd of DoRA needs a rank"),
        (("BitFit()", "BitFit()"), {"how": "svd"}, "have no rank"),
        (("BitFit()", "BitFit()"), {"rank": 3}, "have no rank"),
        (("Full()", "LoRA(r=2)"), {}, "only add up at a rank"),
        (("LoRA(r=2)", "LoRA(r=2)"), {"how": "dare"}, "needs a density"),
        (("LoRA(r=2)", "LoRA(r=2)"), {"density": 0.5}, "linear keeps every entry"),
        (("LoRA(r=2)", "LoRA(r=2)"), {"how": "ties", "density": 1.5}, "above 0 and at most 1"),
        (("LoRA(r=2)", "LoRA(r=2)"), {"how": "tie"}, "did you mean 'ties'"),
        (("LoRA(r=2)", "LoRA(r=2)"), {"rank": 0}, "a number from 1"),
        (("LoRA(r=2)", "LoRA(r=2)"), {"scope": "layer"}, "model or tensor"),
    ],
)
def test_impossible_combinations_say_why(methods, options, words):
    host = hosted("bert", *methods)
    with pytest.raises(DeltatuneError, match=words):
        combine(host, "c", {"a": 1, "b": 1}, **options)
    assert set(host.adapters) == {"a", "b"}
    assert host.route.uniform == {"a": 1.0}


def test_unknown_names_and_broken_weights():
    host = hosted("bert", "LoRA(r=2)")
    with pytest.raises(DeltatuneError, match="no adapter is called 'x'"):
        combine(host, "c", {"a": 1, "x": 1})
    with pytest.raises(DeltatuneError, match="weight of 'a' is nan"):
        combine(host, "c", {"a": float("nan")})
    with pytest.raises(DeltatuneError, match="attached already"):
        combine(host, "a", {"a": 1})
    with pytest.raises(DeltatuneError, match="name the adapters"):
        combine(host, "c", {})
    assert isinstance(host.model, nn.Module)


@pytest.mark.parametrize("weight", ["x", None, True, [1]])
def test_a_weight_that_is_no_number_is_named(weight):
    host = Host(models.tiny("bert"))
    host.attach("a", parse("LoRA(r=2)"), head=False)
    with pytest.raises(DeltatuneError, match=r"the weight of 'a' is .*, it must be a number"):
        combine(host, "b", {"a": weight})
