"""Budgets of single methods: `Houlsby()@3%`."""

import pytest

from deltatune import DeltatuneError
from deltatune.core.budget import split_budget


@pytest.mark.parametrize(
    ("text", "method", "budget"),
    [
        ("LoRA()", "LoRA()", None),
        ("LoRA", "LoRA", None),
        ("Houlsby()@3%", "Houlsby()", "3%"),
        ("Prefix@0.1%", "Prefix", "0.1%"),
        (" LoRA(r=2) @ 300k ", "LoRA(r=2)", "300k"),
        ("LoRA() + Prefix()@1,200", "LoRA() + Prefix()", "1,200"),
        ("Cloze(LoRA())@3%", "Cloze(LoRA())", "3%"),
        ("Prompt(init='mail me@home')", "Prompt(init='mail me@home')", None),
        ("Prompt(init='it\\'s me@home (')@3%", "Prompt(init='it\\'s me@home (')", "3%"),
        ('Prompt(init="(@3%")@1.5M', 'Prompt(init="(@3%")', "1.5M"),
    ],
)
def test_a_budget_stands_behind_the_method(text, method, budget):
    assert split_budget(text) == (method, budget)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("LoRA()@", "no size behind the @"),
        ("@3%", "no method before the @"),
        ("@", "no method before the @"),
        ("LoRA()@3%@2%", "it has 2 budgets"),
        ("LoRA()@3% + Prefix()@1%", "it has 2 budgets"),
        ("LoRA()@3% + Prefix()", "stands behind its last method"),
        ("Cloze(LoRA()@3%)", "stands behind it, as in Cloze(LoRA())@3%"),
        ("LoRA()@lots", "'lots' is no size"),
        ("LoRA()@-3%", "'-3%' is no size"),
        ("LoRA()@nan", "'nan' is no size"),
        ("LoRA()@3 percent", "such as LoRA()@0.5%"),
    ],
)
def test_mistakes_name_the_text_and_the_fix(text, words):
    with pytest.raises(DeltatuneError) as caught:
        split_budget(text)
    assert words in str(caught.value)
    assert text in str(caught.value)
