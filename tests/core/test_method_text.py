"""Texts of methods that are wrong, absurd or hostile: one plain error each, in bounded time and memory."""

import math

import pytest

from deltatune import BitFit, LoRA, Prompt, parse
from deltatune.core.errors import DeltatuneError
from deltatune.core.union import MAX_MEMBERS, Union


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("LoRA(r=8, r=4)", r"LoRA has the option 'r' 2 times in the method .* \(r=8, r=4\); give it once"),
        ("BitFit() + LoRA(sites='a', r=8, sites='a')", "LoRA has the option 'sites' 2 times"),
        ("UniPELT(LoRA(r=1, r=1))", "LoRA has the option 'r' 2 times"),
        ("LoRA(8, r=4)", "multiple values for argument 'r'"),
        ("LoRA(r=" + "9" * 5000 + ")", "cannot read the method .*4300 digits"),
        (
            "LoRA(r=0x" + "f" * 6000 + ")",
            r"LoRA\(r=an integer of about 7,225 digits\): r must be a number of at most 64",
        ),
        ("LoRA(r=18446744073709551616)", "r must be a number of at most 64 bits"),
        ("LoRA(alpha=" + "9" * 400 + ")", "alpha must be a number of at most 64 bits"),
        ("LoRA(alpha=1e400)", r"LoRA\(alpha=inf\): alpha must be a finite number"),
        ("LoRA(alpha=1e308)", r"alpha must be a number that float32 can hold, up to 3.4e38"),
        ("LoRA(dropout=1)", r"LoRA\(dropout=1.0\) leaves nothing; dropout is a share below 1"),
        ("VeRA(dropout=2)", "share below 1"),
        ("Pfeiffer() + Bottleneck(dropout=1e9)", "share below 1"),
        ("LongLoRA(dropout=-1)", "dropout must be at least 0"),
        ("Embeddings(head='no')", r"Embeddings\(head='no'\): head must be True or False"),
        ("(" * 5000 + "LoRA()" + ")" * 4000, "too many nested parentheses"),
        ("LoRA(r=" + "-" * 9000 + "1)", "nested too deeply"),
        ("LoRA(sites=" + "(" * 150 + "'a'" + ",)" * 150 + ")", "sites must be"),
        (" + ".join(["BitFit()"] * 500), "joins 500 methods, at most 64"),
        (" + ".join(["BitFit()"] * 10_000), "has 109,997 characters"),
        ("UniPELT(" * 20 + "LoRA()" + ")" * 20, "nested more than 8 deep"),
        ("LoRA(r=8)\0", "null"),
        ("Prompt(init='\ud800')", "half of a surrogate pair"),
        ("Prompt(init='\\ud800')", "text without half of a surrogate pair"),
        ("LoRA(r=9**9**9)", "cannot read the value 9"),
        ("LoRA({[]: 1})", "cannot read the value"),
    ],
    ids=lambda value: value[:24],
)
def test_a_hostile_text_is_one_plain_error(text: str, message: str) -> None:
    with pytest.raises(DeltatuneError, match=message) as caught:
        parse(text)
    assert len(str(caught.value)) < 1000


def test_the_longest_union_is_read_back() -> None:
    union = parse(" + ".join(["BitFit()"] * MAX_MEMBERS))
    assert len(union.parts) == MAX_MEMBERS
    assert parse(repr(union)) == union
    with pytest.raises(DeltatuneError, match="a union of 65 methods"):
        union + BitFit()
    with pytest.raises(DeltatuneError, match="a union of 10,000 methods"):
        Union((BitFit(),) * 10_000)


def test_constructors_refuse_what_the_text_refuses() -> None:
    for make in (lambda: LoRA(alpha=math.nan), lambda: LoRA(alpha=-math.inf), lambda: LoRA(alpha=10**400)):
        with pytest.raises(DeltatuneError, match=r"alpha must be a (finite number|number of at most 64 bits)"):
            make()
    with pytest.raises(DeltatuneError, match="surrogate"):
        Prompt(init="\udfff")
