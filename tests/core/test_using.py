"""Switching adapters for a moment: route, stacking order and modes come back exactly, for every public function."""

import threading

import pytest
import torch

import deltatune
from deltatune import LoRA
from deltatune.comparison.costs.inference_costs import inference_costs
from deltatune.core.errors import DeltatuneError
from deltatune.store.merged_model import save_merged
from deltatune.tasks.classification import Classify
from deltatune.training import Settings

ROUTES = {
    "bare": (None, False),
    "one": ("a", False),
    "weights": ({"a": 0.5, "b": -2.0}, False),
    "rows": (["a", None, {"a": 0.5, "b": 1.0}], False),
    "stacked": ({"a": 1.0, "b": 0.5}, True),
    "stacked rows": ([{"a": 1.0, "b": 0.5}, "b", None], True),
}


def state(host):
    route = host.route
    return route.uniform, route.rows, route.order, [module.training for module in host.model.modules()]


@pytest.fixture
def host(tiny_bert):
    """Two adapters with heads, off their initial values; dropout modules differ from the rest in mode."""
    model = tiny_bert()
    host = deltatune.Host(model)
    for seed, name in enumerate("ab"):
        adapter = host.attach(name, LoRA(r=2), head=Classify(labels=["x", "y"]).make_head(model.config))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.train()
    model.encoder.layer[0].eval()
    return host


@pytest.fixture(params=ROUTES)
def routed(request, host):
    route, stacked = ROUTES[request.param]
    host.use(route, stacked=stacked)
    return host


IDS = torch.arange(3 * 5).view(3, 5) % 13 + 5


def hidden(host):
    with torch.inference_mode():
        return host.model.eval()(input_ids=IDS).last_hidden_state


@pytest.mark.parametrize("inside", [None, "a", {"b": 2.0}, ["a", "b", None]])
def test_using_restores_everything(routed, inside):
    before = state(routed)
    with routed.using(inside, training=False):
        assert not any(module.training for module in routed.model.modules())
        assert routed.route.names == ({"a", "b"} if isinstance(inside, list) else set(inside or ()))
    assert state(routed) == before


def test_using_restores_outputs(routed):
    before = hidden(routed)
    with routed.using("b"):
        other = hidden(routed)
    torch.testing.assert_close(hidden(routed), before, rtol=0, atol=0)
    if routed.route.names:
        assert not torch.equal(other, before)


def test_modes_stay_unless_asked_for(routed):
    modes = state(routed)[-1]
    with routed.using("a"):
        assert [module.training for module in routed.model.modules()] == modes
    with routed.using("a", training=True):
        assert all(module.training for module in routed.model.modules())
    assert state(routed)[-1] == modes


def test_restored_after_an_error(routed):
    before = state(routed)
    with pytest.raises(ZeroDivisionError), routed.using("a", training=False):
        raise ZeroDivisionError
    with pytest.raises(DeltatuneError, match="no adapter is called 'c'"), routed.using("c", training=False):
        pass
    assert state(routed) == before


def test_nested(routed):
    before = state(routed)
    with routed.using(None):
        with routed.using({"a": 1.0, "b": 1.0}, stacked=True):
            assert routed.route.order == ("a", "b")
        assert not routed.route.names
    assert state(routed) == before


def test_an_adapter_detached_inside_is_left_out(host):
    host.use({"a": 1.0, "b": 0.5}, stacked=True)
    with host.using(None):
        host.detach("a")
    assert host.route.uniform == {"b": 0.5}
    assert host.route.order == ("b",)


def test_use_takes_a_route_as_it_is(routed):
    before, route = state(routed), routed.route
    routed.use("a")
    routed.use(route)
    assert state(routed) == before
    routed.use(None)
    routed.detach("b")
    if "b" in route.names:
        with pytest.raises(DeltatuneError, match="no adapter is called 'b'"):
            routed.use(route)


ROWS = [{"text": text} for text in ("the cat sat", "on the mat", "a dog")]


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "switch",
    ["predict", "ensemble", "combine", "save_merged", "costs", "merge", "failing load", "failing fuse", "train"],
)
def test_public_functions_put_back_the_route(routed, switch, tiny_tokenizer, tmp_path):
    task = Classify(labels=["x", "y"], max_length=16)
    host, before = routed, state(routed)
    match switch:
        case "predict":
            deltatune.predict(host, "a", task, ROWS, tiny_tokenizer)
        case "ensemble":
            deltatune.ensemble(host, ["a", "b"], task, ROWS, tiny_tokenizer)
        case "combine":
            deltatune.combine(host, "c", {"a": 0.5, "b": 0.5}, head="a")
            before = *before[:3], state(host)[-1]  # its modules are new
        case "save_merged":
            save_merged(host, "a", tmp_path / "merged")
        case "costs":
            inference_costs(host, "a", {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}, False)
        case "merge":
            if host.route.rows is not None or host.route.names - {"a"}:
                pytest.skip("an adapter outside the weights cannot act on a merged base")
            host.merge_("a")
            host.unmerge_("a")
        case "failing load":
            host.save("a", tmp_path / "a")
            with pytest.raises(DeltatuneError):
                host.load(tmp_path / "a", name="b")
        case "failing fuse":
            with pytest.raises(DeltatuneError):
                deltatune.fuse(host, "f", ["a", "b"])
        case "train":
            rows = [{**row, "label": "xy"[i % 2]} for i, row in enumerate(ROWS * 2)]
            settings = Settings(batch_size=2, epochs=1, learning_rate=1e-2)
            deltatune.train(host, "a", task, rows, None, tiny_tokenizer, settings)
    assert state(host) == before


@pytest.mark.parametrize("ends", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (0, 2, 1)])
def test_blocks_that_end_out_of_turn_give_the_first_route_back(ends, host):
    """As those of several threads do, or of generators that are not exhausted."""
    host.use("a")
    blocks = [host.disabled(), host.using("b"), host.disabled()]
    for block in blocks:
        block.__enter__()
    for end in ends[:2]:
        blocks[end].__exit__(None, None, None)
        if 2 not in ends[: ends.index(end) + 1]:
            assert host.route.uniform == {}, "the block that began last still holds"
    blocks[ends[2]].__exit__(None, None, None)
    assert host.route.uniform == {"a": 1.0}


def test_threads_that_switch_the_adapter_off_leave_it_on(host):
    host.use("a")
    before = hidden(host)

    def ask():
        for _ in range(10):
            with host.disabled():
                hidden(host)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(hidden(host), before)
