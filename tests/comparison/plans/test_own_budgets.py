"""Methods of a comparison with budgets of their own: `LoRA()@2%`."""

import pytest

from deltatune.comparison.plans.make_plan import make_plan
from deltatune.core.errors import DeltatuneError
from deltatune.data import read
from support.command_line import review_folder


@pytest.fixture
def plan_of(tiny_folder, tmp_path):
    review_folder(tmp_path / "data")

    def make(*methods, **more):
        return make_plan(
            read(str(tmp_path / "data")),
            model=str(tiny_folder),
            methods=methods,
            max_length=16,
            out=tmp_path / "run",
            **more,
        )

    return make


def test_each_method_has_its_own_budget_or_that_of_all(plan_of):
    plan = plan_of("LoRA()@8%", "LoRA@3%", "Bottleneck()", "BitFit()", budget="4%")
    base = plan.session.host.sites.base_params
    params = {candidate.asked: candidate.params / base for candidate in plan.candidates}
    assert 0.03 < params["LoRA()@8%"] <= 0.08
    assert 0 < params["LoRA@3%"] <= 0.03
    assert 0 < params["Bottleneck()"] <= 0.04
    assert "BitFit()" in params


def test_budgets_that_cannot_hold_are_named_at_once(plan_of):
    with pytest.raises(DeltatuneError) as caught:
        plan_of("LoRA()@", "BitFit()@3%", "LoRA()@1", "LoRA()@3%@2%", budget=None)
    for words in ("no size behind the @", "leave @3% out", "more than the budget 1", "it has 2 budgets"):
        assert words in str(caught.value)


def test_a_method_that_is_there_twice_is_named_with_the_other_and_the_remedy(plan_of):
    with pytest.raises(DeltatuneError, match=r"- LoRA\(r=2\): it is named twice; leave one of them out"):
        plan_of("LoRA(r=2)", "LoRA(r=2)", budget=None)
    both = (
        r"- LoRA\(r=4\): it is LoRA\(r=\d+\) at the budget 4%, which sets its size, as is LoRA\(r=2\); .*the budget out"
    )
    with pytest.raises(DeltatuneError, match=both):
        plan_of("LoRA(r=2)", "LoRA(r=4)", budget="4%")
    with pytest.raises(DeltatuneError, match=r"it is LoRA\(r=2\), as is LoRA\(r=2\); leave one of them out$"):
        plan_of("LoRA(r=2)", "LoRA(r=2|4)", budget=None)
