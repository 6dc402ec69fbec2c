"""Laws 1, 4, 6, 9 and the text form, over random configurations: sizes, places, forms, unions, seeds."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from deltatune import BitFit, Bottleneck, DeltatuneError, LoRA, Prefix, Prompt, Unfreeze, fit_budget, parse
from deltatune.testing import MODELS, inputs
from deltatune.testing.fixtures import attach, make_host, outputs, real_rows, row_alone

small = st.integers(1, 6)
numbers = st.floats(0.25, 8, width=32).map(lambda number: round(number, 3))

PLACES = ["*.attn.{q,v}", "*.attn.q", "*.{q,k,v,o}", "*.ffn.*", "layers.1.*", "*.0.attn.o", "*.1.ffn.{in,out}"]
loras = st.builds(LoRA, r=small, alpha=numbers, sites=st.sampled_from(PLACES))
bottlenecks = st.builds(
    Bottleneck,
    size=small,
    form=st.sampled_from(["houlsby", "pfeiffer", "parallel"]),
    activation=st.sampled_from(["relu", "gelu", "swish", "tanh"]),
    scale=numbers,
    init=st.sampled_from(["identity", "small"]),
    norms=st.booleans(),
    sites=st.sampled_from(["", "*.ffn", "*.attn", ("*.0.ffn", "*.1.attn")]),
)
prefixes = st.builds(Prefix, length=small, mlp=st.sampled_from([0, 0, 3, 8]), shift_positions=st.booleans())
given_ids = st.lists(st.integers(0, 100) | st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=1, max_size=3)
prompts = st.builds(Prompt, length=small, init=st.sampled_from(["vocabulary", "uniform"])) | given_ids.flatmap(
    lambda ids: st.builds(Prompt, length=st.integers(len(ids), 6), init=st.just("ids"), ids=st.just(tuple(ids)))
)
biases = st.builds(BitFit, missing=st.just("add"), sites=st.sampled_from(["", "*.attn.{q,v}", "*.ffn.in"]))

single = loras | bottlenecks | prefixes | prompts | biases
mixable = single | st.lists(single, min_size=2, max_size=3).map(lambda members: sum(members[1:], members[0]))
methods = mixable | st.builds(Unfreeze, layers=st.sampled_from([None, 0, 1, 2]))
kinds = st.sampled_from(MODELS)
seeds = st.integers(0, 2**31)


def fresh(method, kind, head=None):
    """A host that the method applies to; other examples are dropped."""
    host = make_host(kind, head)
    try:
        method.pick(host.sites)
    except DeltatuneError:
        assume(False)
    return host


@given(methods, kinds, seeds)
def test_starts_as_the_base_if_it_says_so(method, kind, seed):
    assume(method.starts_as_base)
    host, batch = fresh(method, kind, "classify"), inputs(kind, "classify", seed=seed)
    before = outputs(host, batch)
    host.attach("a", method, seed=seed)
    assert torch.allclose(outputs(host, batch), before, atol=1e-6)


@given(methods, kinds, seeds)
def test_initial_values_depend_on_the_seed_alone(method, kind, seed):
    first, second, other = (fresh(method, kind) for _ in range(3))
    other.attach("before", LoRA(r=1))
    torch.rand(1)
    wanted = first.attach("a", method, seed=seed).tensors()
    for host in (second, other):
        found = host.attach("a", method, seed=seed).tensors()
        assert list(found) == list(wanted)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@given(methods, kinds, seeds)
def test_files_keep_it(method, kind, seed):
    host, batch = fresh(method, kind, "classify"), inputs(kind, "classify", seed=seed)
    attach(host, "a", method, seed=seed)
    again = make_host(kind, "classify")
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "first", Path(folder) / "second"
        host.save("a", first)
        loaded = again.load(first, name="a")
        again.save("a", second)
        assert [file.name for file in sorted(first.iterdir())] == [file.name for file in sorted(second.iterdir())]
        for file in first.iterdir():
            assert file.read_bytes() == (second / file.name).read_bytes(), file.name
    assert loaded.method == method.without_reparametrisation()
    assert torch.allclose(outputs(again, batch), outputs(host, batch), atol=1e-5)


@given(st.data(), kinds, seeds)
def test_mixed_rows_equal_rows_alone(data, kind, seed):
    host = None
    names = ["a", "b"]
    for name in names:
        method = data.draw(mixable, label=name)
        host = fresh(method, kind) if host is None else host
        try:
            attach(host, name, method, seed=seed)
        except DeltatuneError:
            assume(False)
    weights = st.sampled_from([1.0, 0.5, -0.75, 2.0])
    entry = st.none() | st.sampled_from(names) | st.dictionaries(st.sampled_from(names), weights, max_size=2)
    route = data.draw(st.lists(entry, min_size=2, max_size=4), label="route")
    batch = inputs(kind, rows=len(route), length=6, seed=seed, padding="right")
    host.use(route)
    together = real_rows(host, outputs(host, batch))
    for row, wanted in enumerate(route):
        host.use(wanted)
        alone = real_rows(host, outputs(host, row_alone(batch, row)))[0]
        scale = max(1.0, float(alone.abs().max()))
        assert torch.allclose(together[row], alone, atol=2e-5 * scale), f"row {row}"


@given(methods, kinds)
def test_the_count_is_the_number_of_parameters(method, kind):
    host = fresh(method, kind)
    adapter = host.attach("a", method)
    assert method.count(host.sites) == adapter.count == sum(p.numel() for _, p in host.trainable("a"))
    assert adapter.head_count == 0


@given(mixable, kinds, st.integers(1, 30_000))
def test_a_budget_is_met_from_below_by_the_largest(method, kind, budget):
    sites = fresh(method, kind).sites
    if method.size is None:
        assert fit_budget(method, sites, budget) == method
        return
    if method.sized(1).count(sites) > budget:
        with pytest.raises(DeltatuneError, match="budget"):
            fit_budget(method, sites, budget)
        return
    fitted = fit_budget(method, sites, budget)
    assert fitted.count(sites) <= budget
    larger = method.sized(fitted.size + 1)
    assert larger.count(sites) > budget or fitted.size >= method.limit(sites)


@given(methods)
def test_the_text_form_reads_back_equal(method):
    assert parse(repr(method)) == method
    assert repr(parse(repr(method))) == repr(method)
    assert parse(f"  {method!r} ") == method
