"""Mutated texts of methods: a plain error, or a method whose `repr` reads back equal."""

import pytest

from deltatune import parse
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method
from support.fuzz import mutations, outcome

TEXTS = (
    "LoRA(r=8, alpha=16.0, sites=('*.attn.{q,v}', '*.ffn.in')) + Prefix(length=30, mlp=512)",
    "UniPELT(LoRA(r=8) + Prefix(length=10) + Bottleneck(size=48, form='pfeiffer'))",
    "Prompt(length=20, init='text') + BitFit() + VeRA(r=256, d_initial=1e-1)",
    "PiSSA(r=16, niter=4) + Houlsby(size=64)",
)


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_texts_are_refused_or_read_back(count: int) -> None:
    for seed, text in enumerate(TEXTS):
        for name, content in mutations(text.encode(), seed, count // len(TEXTS)):
            shown = content.decode("utf-8", "surrogateescape")
            method = outcome(lambda shown=shown: parse(shown), f"{name}: {shown[:200]!a}", 5)
            if not isinstance(method, DeltatuneError):
                assert isinstance(method, Method)
                assert parse(repr(method)) == method, name
