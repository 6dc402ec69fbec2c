"""What is not kept, and why: the rules of Self-Instruct and Alpaca."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import cache

from deltatune.prompting.growing.seeds import Example
from deltatune.prompting.growing.settings import Growth
from deltatune.tasks.written.words import IDEOGRAPH

PUNCTUATION = frozenset(string.punctuation + "。，、；：！？…")

CUT_OFF = "cut off"
MALFORMED = "not in the form"
TOO_SHORT = "too short"
TOO_LONG = "too long"
AVOIDED_WORD = "asks for what text cannot do"
AVOIDED_START = "begins as it must not"
ODD_START = "begins with punctuation"
TOO_SIMILAR = "too similar"
NO_OUTPUT = "no output"
REPEATS_INPUT = "output repeats the input"
ENDS_OPEN = "ends with a colon"
CONTRADICTION = "one input, several outputs"
DUPLICATE = "example written twice"
NO_EXAMPLE = "no usable example"
OVER = "more than the total"


def refuse_instruction(text: str, settings: Growth) -> str | None:
    """Why an instruction is not kept, whatever the others are; None if nothing speaks against it."""
    length = words(text)
    if length < settings.shortest:
        return TOO_SHORT
    if length > settings.longest:
        return TOO_LONG
    if settings.avoid and avoided(settings.avoid).search(text):
        return AVOIDED_WORD
    if text.lower().startswith(tuple(start.lower() for start in settings.avoid_starts)):
        return AVOIDED_START
    return ODD_START if text[0] in PUNCTUATION else None


def words(text: str) -> int:
    """Words between spaces; each Chinese or Japanese character counts as one."""
    return len(IDEOGRAPH.sub(" x ", text).split())


@cache
def avoided(names: tuple[str, ...]) -> re.Pattern[str]:
    """Finds whole words, and words of scripts without spaces anywhere."""
    return re.compile("|".join(re.escape(n) if IDEOGRAPH.search(n) else rf"\b{re.escape(n)}\b" for n in names), re.I)


def refuse_example(example: Example) -> str | None:
    """Why an example is not kept; None if nothing speaks against it."""
    if not example.output:
        return NO_OUTPUT
    if example.input == example.output:
        return REPEATS_INPUT
    return ENDS_OPEN if example.input.endswith((":", "：")) or example.output.endswith((":", "：")) else None


def sift(examples: Sequence[Example]) -> tuple[list[Example], list[tuple[str, Example]]]:
    """The examples to keep of one instruction, and the others with the reason.

    Two outputs for one input mean that the instruction is not clear, so none of its examples is kept.
    """
    kept: list[Example] = []
    refused: list[tuple[str, Example]] = []
    for example in examples:
        reason = refuse_example(example) or (DUPLICATE if example in kept else None)
        if reason:
            refused.append((reason, example))
        else:
            kept.append(example)
    outputs: dict[str, set[str]] = {}
    for example in kept:
        if example.input:
            outputs.setdefault(example.input, set()).add(example.output)
    if any(len(found) > 1 for found in outputs.values()):
        return [], refused + [(CONTRADICTION, example) for example in kept]
    return kept, refused
