"""Norms, ranks and overlaps of adapters: those of the dense change, by numpy's SVD."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from deltatune import Host, parse
from deltatune.store.arithmetic.adapter_analysis import (
    changes_in,
    changes_of,
    cosine,
    overlaps_of,
    total_cosine,
    total_norm,
)
from deltatune.testing.tiny_models import tiny


def host_with(kind: str, *methods: str) -> Host:
    """A host whose adapters a, b, ... are moved away from their start."""
    host = Host(tiny(kind))
    for i, (name, method) in enumerate(zip("abc", methods, strict=False)):
        host.attach(name, parse(method), head=False, seed=i)
        generator = torch.Generator().manual_seed(i)
        with torch.no_grad():
            for _, parameter in host.trainable(name):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return host


def dense(host: Host, name: str) -> dict[tuple[str, str], np.ndarray]:
    """The change of each base parameter, by merging: (out, in) at every site that the model stores whole."""
    before = {path: tensor.detach().double().numpy().copy() for path, tensor in host.base.tensors()}
    host.use(None)
    host.merge_(name)
    after = dict(host.model.state_dict())
    changed = {path: after[path].double().numpy() - value for path, value in before.items()}
    host.unmerge_(name)
    return {path: change for path, change in changed.items() if np.abs(change).max() > 0}


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("method", ["LoRA(r=3)", "PiSSA(r=3)", "VeRA(r=6)", "DoRA(r=3)", "TopLayers(1)", "IA3()"])
def test_norms_and_singular_values_are_those_of_the_dense_change(kind, method):
    host = host_with(kind, method)
    changes = [change for change in changes_of(host, "a") if change.form != "tensor"]
    total = np.sqrt(sum(float((change**2).sum()) for change in dense(host, "a").values()))
    assert total_norm(changes) == pytest.approx(total, rel=1e-4)
    for change in changes:
        if change.svd is None:
            assert change.singular_values is None
            continue
        U, S, Vh = change.svd
        whole = (U * S) @ Vh
        expected = np.linalg.svd(whole.numpy(), compute_uv=False)
        values = np.array(change.singular_values)
        np.testing.assert_allclose(values, expected[: len(values)], atol=1e-10)
        assert change.norm == pytest.approx(float(np.linalg.norm(whole.numpy())), rel=1e-6)
        shares = values[values > 0] / values.sum()
        assert change.effective_rank == pytest.approx(float(np.exp(-(shares * np.log(shares)).sum())))
        assert change.stable_rank == pytest.approx(float((values**2).sum() / values[0] ** 2))
        assert change.stable_rank >= 1
        assert 1 <= change.effective_rank <= len(values)


def test_factors_give_the_singular_values_of_the_product():
    host = host_with("bert", "LoRA(r=3, alpha=5)")
    site = next(change for change in changes_of(host, "a") if change.site == "layers.0.attn.q")
    delta = next(delta for _, site, delta in host.adapters["a"].entries() if site.name == "layers.0.attn.q")
    product = (5 / 3) * (delta.B.detach().double() @ delta.A.detach().double()).numpy()
    np.testing.assert_allclose(site.singular_values, np.linalg.svd(product, compute_uv=False)[:3], atol=1e-10)
    weight = host.model.get_submodule("encoder.layer.0.attention.self.query").weight.detach().double().numpy()
    assert site.relative == pytest.approx(np.linalg.norm(product) / np.linalg.norm(weight))
    assert site.shape == product.shape


def test_overlap_is_that_of_the_paper():
    host = host_with("bert", "LoRA(r=3)", "LoRA(r=5)")
    first, second = changes_of(host, "a"), changes_of(host, "b")
    for overlap, one, other in zip(overlaps_of(first, second), first, second, strict=True):
        matrices = [(c.factors[1] @ c.factors[0]).numpy() for c in (one, other)]
        (_, _, V1), (_, _, V2) = (np.linalg.svd(matrix) for matrix in matrices)
        assert (len(overlap.inputs), len(overlap.inputs[0])) == (3, 5)
        for i in (1, 2, 3):
            for j in (1, 3, 5):
                expected = np.linalg.norm(V1[:i] @ V2[:j].T) ** 2 / min(i, j)
                assert overlap.inputs[i - 1][j - 1] == pytest.approx(expected)
        flat = [matrix.ravel() for matrix in matrices]
        expected = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
        assert overlap.cosine == pytest.approx(expected)
        assert overlap.chance == (3 / 32, 3 / 32)


def test_an_adapter_agrees_with_itself_and_not_with_its_opposite():
    host = host_with("bert", "LoRA(r=3)")
    changes = changes_of(host, "a")
    for overlap in overlaps_of(changes, changes):
        assert overlap.cosine == pytest.approx(1)
        assert overlap.inputs[2][2] == pytest.approx(1)
        assert overlap.outputs[2][2] == pytest.approx(1)
    opposite = [replace(change, factors=(change.factors[0], -change.factors[1])) for change in changes]
    assert total_cosine(changes, opposite) == pytest.approx(-1)
    assert cosine(changes[0], opposite[0]) == pytest.approx(-1)


def test_a_change_of_nothing_has_no_rank_and_no_direction():
    host = Host(tiny("bert"))
    host.attach("a", parse("LoRA(r=3)"), head=False)
    changes = changes_of(host, "a")
    assert {change.norm for change in changes} == {0.0}
    assert {change.effective_rank for change in changes} == {None}
    assert {overlap.cosine for overlap in overlaps_of(changes, changes)} == {None}
    assert total_cosine(changes, changes) is None


@pytest.mark.parametrize("method", ["Prefix(length=4)", "Bottleneck(size=4)", "Prompt(length=3)", "PTuning()"])
def test_methods_without_a_weight_form_have_the_norms_of_their_tensors(method):
    host = host_with("bert", method)
    changes = changes_of(host, "a")
    stored = host.adapters["a"].without_reparametrisation()
    norms = sorted(float(p.detach().double().norm()) for p in stored.parameters())
    assert sorted(change.norm for change in changes) == pytest.approx(norms)
    assert {change.relative for change in changes} == {None}


@pytest.mark.parametrize("method", ["LoRA(r=3, alpha=7)", "RsLoRA(r=4)", "PiSSA(r=3)", "DoRA(r=2)", "Prefix(length=3)"])
def test_without_the_base_the_norms_are_the_same_and_absolute(method, tmp_path):
    host = host_with("llama", method)
    host.save("a", tmp_path / "saved")
    alone = changes_in(tmp_path / "saved", "a")
    assert {change.relative for change in alone} == {None}
    if method.startswith(("DoRA", "Prefix")):
        assert {change.form for change in alone} == {"tensor"}
        return
    for change, whole in zip(alone, sorted(changes_of(host, "a"), key=lambda c: c.site), strict=True):
        assert change.site == whole.site
        assert change.norm == pytest.approx(whole.norm, rel=1e-6)
        np.testing.assert_allclose(change.singular_values, whole.singular_values, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("LoRA(r=2) + LoRA(r=3, sites='*.attn.{q,k}')", "LoRA(r=4)"),
        ("LoRA(r=2) + DoRA(r=2, sites='*.attn.v')", "LoRA(r=2)"),
        ("Full()", "LoRA(r=3)"),
        ("Full()", "DoRA(r=3)"),
        ("TopLayers(1)", "LoRA(r=2) + LoRA(r=3, sites='*.attn.{q,k}')"),
        ("LoRA(r=3, sites='*.ffn.out')", "IA3()"),
        ("Embeddings()", "LoRA(r=2, sites='embed')"),
    ],
)
def test_norms_and_cosines_are_those_of_the_merged_weights_whatever_the_sites(kind, one, other):
    host = host_with(kind, one, other)
    dense_one, dense_other = dense(host, "a"), dense(host, "b")
    first, second = changes_of(host, "a"), changes_of(host, "b")
    norms = [np.sqrt(sum(float((change**2).sum()) for change in each.values())) for each in (dense_one, dense_other)]
    assert [total_norm(first), total_norm(second)] == pytest.approx(norms, rel=1e-4)
    inner = sum(float((dense_one[path] * dense_other[path]).sum()) for path in dense_one.keys() & dense_other.keys())
    assert total_cosine(first, second) == pytest.approx(inner / norms[0] / norms[1], rel=1e-3, abs=1e-6)
    places = [(change.site, change.parameter) for change in first]
    assert len(places) == len(set(places))  # what several methods change together is one row


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_full_fine_tuning_and_lora_meet_at_their_sites(kind):
    host = host_with(kind, "Full()", "LoRA(r=3)")
    overlaps = overlaps_of(changes_of(host, "a"), changes_of(host, "b"))
    assert [overlap.site for overlap in overlaps] == [
        f"layers.{layer}.attn.{role}" for layer in range(2) for role in "qv"
    ]


def test_a_union_is_summed_without_its_base_too(tmp_path):
    host = host_with("bert", "LoRA(r=2) + LoRA(r=3, sites='*.attn.{q,k}')")
    host.save("a", tmp_path / "a")
    assert total_norm(changes_in(tmp_path / "a", "a")) == pytest.approx(total_norm(changes_of(host, "a")))
