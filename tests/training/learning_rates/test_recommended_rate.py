"""Recommended rates: a method's own for long runs, higher ones for short runs, in training and in comparisons."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltatune import parse
from deltatune.comparison.plans.candidates import Candidate, with_rates
from deltatune.prompting.zero_shot import as_prompt_method
from deltatune.training import train
from deltatune.training.learning_rates.recommended_rate import LONG, MOST, rates_around, recommended_rate, steps_of
from support import models
from support.runs import PLAIN, ROWS, TASK, host_with

METHODS = ["LoRA()", "Houlsby()", "Prefix()", "BitFit()", "Probe()", "Full()", "LoRA(ratio=16) + Prefix()"]


@given(st.sampled_from(METHODS), st.integers(1, 10**6), st.integers(1, 10**6))
def test_shorter_runs_have_higher_rates_within_bounds(text, one, other):
    method = parse(text)
    shorter, longer = recommended_rate(method, min(one, other)), recommended_rate(method, max(one, other))
    assert longer <= shorter
    assert 0.94 * method.learning_rate <= longer
    assert shorter <= 1.06 * MOST * method.learning_rate


def test_long_runs_have_the_rate_of_the_method():
    assert recommended_rate(parse("LoRA()"), LONG) == recommended_rate(parse("LoRA()"), 100 * LONG) == 2e-3
    assert recommended_rate(parse("LoRA()"), LONG // 4) == 4e-3
    assert recommended_rate(parse("Full()"), 1) == 3e-4


@pytest.mark.parametrize(("fields", "steps"), [({}, 10), ({"epochs": 2.5}, 13), ({"max_steps": 400}, 400)])
def test_a_run_without_a_rate_takes_that_of_its_steps(fields, steps):
    settings = dataclasses.replace(PLAIN, **fields)
    assert steps_of(settings, len(ROWS)) == steps
    host = host_with("BitFit()")
    if steps < LONG:
        outcome = train(host, "a", TASK, ROWS, None, models.tiny_tokenizer(), settings)
        assert outcome.history[-1][0] == steps
        assert outcome.learning_rate == recommended_rate(parse("BitFit()"), steps) > parse("BitFit()").learning_rate
    given = dataclasses.replace(settings, learning_rate=5e-4, max_steps=2)
    assert train(host, "a", TASK, ROWS, None, models.tiny_tokenizer(), given).learning_rate == 5e-4


def test_a_comparison_searches_around_it():
    candidates = [Candidate(parse("LoRA()"), (1.0, 2.0, 3.0), 10), Candidate(parse("Full()"), (1.0,), 10)]
    short, full = with_rates(candidates, 25)
    assert short.rates == rates_around(6e-3, 3) == (2e-3, 6e-3, 1.8e-2)
    assert full.rates == (3e-4,)
    assert with_rates(candidates, LONG)[0].rates == rates_around(2e-3, 3)
    prompting = Candidate(as_prompt_method("Cloze(LoRA())"), (1.0, 3.0), 10)
    assert with_rates([prompting], 25) == (prompting,), "no head starts from noise there"
