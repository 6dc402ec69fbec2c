"""Final answers: the number, the choice, the yes or no, or the short text that a chain of thought ends in.

The order in which an answer is looked for in a generated text, and the first rule that finds one decides:

1. `#### 72`, GSM8K's mark (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168), where an answer follows at once;
2. `\\boxed{72}`, the last one;
3. the first match behind the last "the answer is" that has one. Where such words are and no match follows, there is no
   answer;
4. the last match of the whole text (Wei et al. 2022, https://arxiv.org/abs/2201.11903).

A text that was generated right behind a trigger such as "Therefore, the answer (arabic numerals) is" has as
its answer its first match (Kojima et al. 2022, https://arxiv.org/abs/2205.11916).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from deltatune.core.errors import raise_all
from deltatune.tasks.metrics.corpus_score import CorpusScore, mean_score
from deltatune.tasks.metrics.qa_scores import words

AnswerKind = Literal["number", "choice", "yes_no", "text"]
"""What an answer is: a number, a letter of a choice, yes or no (or true or false), or a short text."""

MARK = "####"
"""What stands before the answer in GSM8K."""
LONGEST_REFERENCE = 20
"""Words of a reference that can be a final answer itself; a longer one needs a mark."""
LONGEST_NUMBER = 300
"""Characters of a number that is compared by value."""
LISTED = 10

_CURRENCY = re.compile(r"\\?[$€£¥₹]")
_NUMBER = re.compile(
    r"(?:(?<![\w)\].])[-−])?"  # behind a word or a bracket a minus is a hyphen or a subtraction
    r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)?(?:(?<=\d)\.\d+|(?<![\d.])\.\d+)?(?<=\d)"
    r"(?:[eE][+-]?\d{1,3}(?!\w)|\s?/\s?[1-9]\d*(?!\d|\.\d|\s?/\s?\d))?"
)
_CHOICE = re.compile(r"\(([A-Ja-j])\)|(?<![\w.'’-])([B-HJ]|[AI](?!\s+[a-z]))(?![\w'’-])")
_YES_NO = re.compile(r"\b(yes|no|true|false)\b", re.IGNORECASE)
_UNIT = re.compile(r"\s*%?(?:\s*(?!a\.?m\b|p\.?m\b)[a-zµ°²³]+[a-zA-Z²³/]*(?:\s[a-z]+)?)?\.?", re.ASCII)
_STATED = re.compile(
    r"\banswer(?:\s+to\s[^.\n:]{0,80}?)?(?:\s*\([^)\n]{0,40}\))?(?:\s+is\b|\W{0,3}:)\W{0,3}?", re.IGNORECASE
)
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_SENTENCE_END = re.compile(r"(?<=[\w)\]]{3})[.!?]\s+(?=[A-Z(\"'])")
_ANNOTATION = re.compile(r"<<[^<>\n]*>>")


def find_answer(text: str, kind: AnswerKind, behind_trigger: bool = False) -> str:
    """The answer in a generated text, "" where there is none.

    behind_trigger: the text was generated right behind words such as "the answer is", so its first match counts.
    """
    text = _CURRENCY.sub("", text) if kind == "number" else text
    if behind_trigger:
        return _first(text, kind)
    for line in text.split(MARK)[1:]:
        if answer := _first(line, kind, at_start=True):
            return answer
    boxed = _BOXED.findall(text)
    if boxed and (answer := _first(boxed[-1], kind)):
        return answer
    stated = [match.end() for match in _STATED.finditer(text)]
    if stated:
        return next((answer for end in reversed(stated) if (answer := _first(text[end:], kind))), "")
    if kind == "text":
        lines = [line for line in text.splitlines() if line.strip()]
        return _first(lines[-1], kind) if lines else ""
    matches = _matches(text, kind)
    return matches[-1] if matches else ""


def reference_answer(reference: str) -> str:
    """The final answer of a reference: behind its last `####`, else behind its last "the answer is", else all of it."""
    if MARK in reference:
        return reference.rpartition(MARK)[2].strip()
    stated = [match.end() for match in _STATED.finditer(reference)]
    return reference[stated[-1] :].strip() if stated else reference.strip()


def reference_rationale(reference: str) -> str:
    """What stands before the final answer of a reference, without GSM8K's annotations for a calculator."""
    if MARK in reference:
        before = reference.rpartition(MARK)[0]
    else:
        stated = [match.start() for match in _STATED.finditer(reference)]
        before = reference[: stated[-1]] if stated else ""
        before = re.sub(r"\b(?:so|thus|therefore|hence)?,?\s*\bthe\s*(?:final\s*)?$", "", before, flags=re.IGNORECASE)
    return plain_steps(before).strip()


def plain_steps(text: str) -> str:
    """The steps of a rationale without GSM8K's annotations for a calculator, such as `<<48/2=24>>`."""
    return _ANNOTATION.sub("", text)


def kind_of(answer: str) -> AnswerKind:
    """What kind of answer a reference is: a number may have a currency, a percent sign or a unit in lower case."""
    plain = _CURRENCY.sub("", answer).strip()
    number = _NUMBER.match(plain)
    if number and number.group() and _UNIT.fullmatch(plain[number.end() :]):
        return "number"
    if re.fullmatch(r"\([A-Ja-j]\)\.?|[A-J][.)]?", answer.strip()):
        return "choice"
    return "yes_no" if _YES_NO.fullmatch(answer.strip().rstrip(".")) else "text"


def answer_key(answer: str, kind: AnswerKind) -> str:
    """What two equal answers share: a number's value, a letter, or a text's words as in SQuAD; "" for none."""
    found = _first(_CURRENCY.sub("", answer) if kind == "number" else answer, kind)
    if not found or kind == "choice":
        return found
    if kind == "number":
        return str(Fraction(found)) if len(found) <= LONGEST_NUMBER else found
    return found.lower() if kind == "yes_no" else " ".join(words(found)) or found


def final_answer(
    predictions: Sequence[str], references: Sequence[Sequence[str]], characters: bool = False
) -> CorpusScore:
    """Share of the texts whose final answer equals that of one of their references.

    The kind of an answer is that of its reference. Numbers are equal by value (1,000 and 1000.0, 0.75 and 3/4), 50% is
    the number 50, texts are compared as in SQuAD. Raises DeltatuneError for references without a final answer.
    """
    check_answers(references)
    return mean_score([
        any(_agrees(text, reference_answer(reference)) for reference in row)
        for text, row in zip(predictions, references, strict=True)
    ])  # fmt: skip


def check_answers(references: Sequence[Sequence[str]]) -> None:
    """Raise DeltatuneError listing references without a final answer: empty ones, and long texts without a mark."""
    problems = []
    for i, row in enumerate(references):
        for reference in row:
            answer = reference_answer(reference)
            if not answer_key(answer, kind_of(answer)):
                problems.append(f"row {i}: the reference {reference[-80:]!r} has no final answer")
            elif len(answer.split()) > LONGEST_REFERENCE:
                problems.append(
                    f"row {i}: the reference {reference[:80]!r} is a text of {len(answer.split())} words; its final "
                    f"answer has to follow '{MARK}' or 'The answer is'"
                )
    raise_all([*problems[:LISTED], *([f"and {len(problems) - LISTED} more"] if len(problems) > LISTED else [])])


def _agrees(text: str, answer: str) -> bool:
    kind = kind_of(answer)
    return answer_key(find_answer(text, kind), kind) == answer_key(answer, kind)


def _first(text: str, kind: AnswerKind, at_start: bool = False) -> str:
    """The first match in a text, "" without one; `at_start`: only where it stands at the start."""
    lead = text.lstrip(" \t\n*:=([\"'`_")
    if kind == "text":
        line = lead.split("\n", 1)[0]
        return _SENTENCE_END.split(line, maxsplit=1)[0].strip().strip("*\"'`_").rstrip(".!").strip()
    if kind == "choice" and (letter := re.fullmatch(r"\(?([A-Ja-j])\)?[.:,)\s]*", text.strip())):
        return letter.group(1).upper()
    matches = _matches(lead[:LONGEST_NUMBER] if at_start else text, kind, at_start)
    return matches[0] if matches else ""


def _matches(text: str, kind: AnswerKind, at_start: bool = False) -> list[str]:
    """All matches in a text, in a plain form: a number without commas, a letter as a capital."""
    pattern = {"number": _NUMBER, "choice": _CHOICE, "yes_no": _YES_NO}[kind]
    found = [match for match in pattern.finditer(text) if match.group() and (not at_start or match.start() == 0)]
    if kind == "number":
        return [re.sub(r"[,\s]", "", match.group()).replace("−", "-") for match in found]
    if kind == "choice":
        return [str(match.group(1) or match.group(2)).upper() for match in found]
    return [match.group() for match in found]
