"""Refusals to merge have a type of their own, whatever they say."""

import pytest
import torch

from deltatune import BitFit, Bottleneck, DeltatuneError, LoRA
from deltatune.core.errors import CannotMerge
from deltatune.core.merging import merge_obstacles
from deltatune.testing.fixtures import attach, make_host
from deltatune.testing.laws import adapter_laws


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (Bottleneck(size=2), "Bottleneck has no exact weight form"),
        (BitFit(missing="add"), "has no bias to merge into"),
        (LoRA(r=2, sites="lm_head"), "is tied to another module's"),
    ],
)
def test_refusals_are_typed_and_change_nothing(method, reason):
    host = make_host("gpt2" if "lm_head" in repr(method) else "llama", "lm")
    adapter = attach(host, "a", method)
    state = {key: tensor.clone() for key, tensor in host.model.state_dict().items()}
    assert any(reason in line for line in merge_obstacles(adapter))
    with pytest.raises(CannotMerge, match=reason) as error:
        host.merge_("a")
    assert isinstance(error.value, DeltatuneError)
    assert not host.merged
    assert all(torch.equal(tensor, state[key]) for key, tensor in host.model.state_dict().items())


def test_a_merge_that_changes_the_outputs_is_refused_and_undone(monkeypatch):
    host = make_host("bert")
    attach(host, "a", LoRA(r=2))
    state = {key: tensor.clone() for key, tensor in host.model.state_dict().items()}
    monkeypatch.setattr("deltatune.core.merging.rounding_tolerance", lambda unmerged, dtype: -1.0)
    with pytest.raises(CannotMerge, match=r"more than torch\.float32 rounding explains; it was undone"):
        host.merge_("a")
    assert not host.merged
    assert all(torch.equal(tensor, state[key]) for key, tensor in host.model.state_dict().items())


def test_the_law_of_merging_accepts_only_refusals_with_a_declared_reason(monkeypatch):
    adapter_laws.merging_equals_live(BitFit(missing="add"), "llama")  # refused: no biases, as merge_obstacles says

    def refuse(*args):
        raise CannotMerge("there is no bias to merge into, it is tied to another")

    monkeypatch.setattr("deltatune.core.host_parts.host_merging.check_merges", refuse)
    with pytest.raises(CannotMerge):
        adapter_laws.merging_equals_live(LoRA(r=2), "bert")
