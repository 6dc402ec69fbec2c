"""The laws of banks × every registered method and the configurations of `test_laws` × the tiny models."""

import pytest
from test_laws import CASES

from deltatune import parse
from deltatune.testing import BANK_LAWS, demand

QUICK = [
    ("Houlsby()", "bert"),
    ("LoRA()", "llama"),
    ("DoRA()", "gpt2"),
    ("Prefix()", "t5"),
    ("Prompt()", "gpt2"),
    ("VeRA(r=7, d_initial=0.5, save_projection=False, sites='*.{attn.v,ffn.in}')", "gpt2"),
    ("IDPG()", "bert"),
]
"""What the quick suite tries; the slow one tries all."""


@pytest.mark.parametrize(("text", "kind"), QUICK)
@pytest.mark.parametrize("law", BANK_LAWS)
def test_bank_law(law, text, kind):
    demand(law, parse(text), kind)


@pytest.mark.slow
@pytest.mark.parametrize(("text", "kind"), [case for case in CASES if case not in QUICK])
@pytest.mark.parametrize("law", BANK_LAWS)
def test_every_method_keeps_the_laws_of_banks(law, text, kind):
    demand(law, parse(text), kind)
