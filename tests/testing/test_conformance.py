"""The conformance suite has teeth: a method that breaks one law on purpose is caught by that law."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from deltatune import BitFit, LoRA
from deltatune.core.delta import Delta
from deltatune.methods.low_rank.lora import LowRank
from deltatune.testing import LAWS, check_method, demand


@dataclass(frozen=True, repr=False)
class _Broken(LoRA):  # a name with an underscore is not registered
    r: int = 2
    delta: ClassVar[type[Delta]] = LowRank

    def build(self, site):
        return self.delta(site.width_in, site.width_out, self.r, self.alpha / self.r)


def broken(delta):
    """A LoRA whose Delta is `delta`."""
    return type("_Broken", (_Broken,), {"delta": delta})()


class NotZero(LowRank):
    def init_(self, rng, base):
        super().init_(rng, base)
        nn.init.normal_(self.B, generator=rng("B"))


class Writes(LowRank):
    def init_(self, rng, base):
        super().init_(rng, base)
        base.weight.data.mul_(1.5)


class Unused(LowRank):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.extra = nn.Parameter(torch.zeros(1))


class LooksAcrossRows(LowRank):
    def forward(self, x, h):
        return super().forward(x - x.mean(0, keepdim=True), h)

    add = Delta.add


class LooksAcrossTokens(LowRank):
    def forward(self, x, h):
        return super().forward(x - x.mean(1, keepdim=True), h)

    add = Delta.add


class DrawsFreely(LowRank):
    def init_(self, rng, base):
        super().init_(rng, base)
        nn.init.normal_(self.A)


class WrongGradient(LowRank):
    def forward(self, x, h):
        return super().forward(x, h) + (super().forward(x, h) * 0.5).detach()

    add = Delta.add


class WrongFold(LowRank):
    def merge(self, base):
        return {"weight": base["weight"] + 0.5 * self.scale * self.B @ self.A}


class ForgetsTheWeight(LowRank):
    def add(self, h, x, weight=1.0):
        return h + self(x, h)


@pytest.mark.parametrize(
    ("delta", "law"),
    [
        (NotZero, "starts_as_the_base"),
        (Unused, "only_its_own_gets_gradients"),
        (Unused, "steps_move_everything"),
        (Unused, "counts_what_it_trains"),
        (Writes, "detaching_restores_the_base"),
        (Writes, "merging_equals_live"),
        (WrongFold, "merging_equals_live"),
        (LooksAcrossRows, "mixed_rows_equal_rows_alone"),
        (LooksAcrossRows, "mixed_gradients_equal_rows_alone"),
        (ForgetsTheWeight, "mixed_rows_equal_rows_alone"),
        (LooksAcrossTokens, "cached_equals_uncached"),
        (LooksAcrossTokens, "padding_changes_nothing"),
        (DrawsFreely, "the_order_of_attaching_is_free"),
        (WrongGradient, "gradients_are_exact"),
    ],
)
def test_a_broken_delta_is_caught(delta, law):
    demand(law, broken(LowRank), "gpt2")
    with pytest.raises((AssertionError, ValueError)):
        demand(law, broken(delta), "gpt2")


def test_a_wrong_claim_is_caught():
    claims = type("_Claims", (LoRA,), {"starts_as_base": False})()
    with pytest.raises(AssertionError, match="starts_as_base"):
        demand("starts_as_the_base", claims, "bert")


def test_a_wrong_budget_is_caught():
    shrinks = type("_Shrinks", (LoRA,), {"cost": lambda self, site: 1000 - self.r})()
    with pytest.raises(AssertionError):
        demand("a_budget_is_met_from_below", shrinks, "bert")


def test_check_method_takes_a_class_and_lists_every_broken_law():
    check_method(BitFit, models=["bert", "llama"])  # Llama has no biases: it is left out
    with pytest.raises(AssertionError) as caught:
        check_method(broken(NotZero), models=["bert"])
    assert "starts_as_the_base on bert" in str(caught.value)
    with pytest.raises(AssertionError, match=r"applies to none of the models[\s\S]*no biases"):
        check_method(BitFit, models=["llama", "t5"])


def test_every_law_says_what_it_demands():
    assert all((law.__doc__ or "").startswith("Law") for law in LAWS.values())
