"""A few test rows with what the methods answered, right and wrong side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltatune.comparison.metric_scales import LOWER_IS_BETTER
from deltatune.comparison.plan import Plan
from deltatune.comparison.records import Records
from deltatune.data.splits import texts

METHODS = 6
"""At most so many methods are shown."""
EACH = 4
"""Rows of each sort: what all get right, what they differ on, what none gets right."""
LOOKED_AT = 400
"""Test rows among which the samples are chosen."""
LONGEST = 400
"""Characters of a text that are shown."""


def samples(plan: Plan, finals: Mapping[str, list[dict[str, Any]]], records: Records) -> list[dict[str, Any]]:
    """Rows as `{"input", "reference", "answers": [{"method", "text", "right", "score"}]}`.

    `right` is None where an answer is not simply right or wrong; of a written text `score` is the row's own.
    """
    first = {text: each[0] for text, each in finals.items() if each}
    names = sorted(first, key=lambda text: -_signed(plan, first[text]))[:METHODS]
    rows = plan.data.test[:LOOKED_AT]
    if not names or not rows:
        return []
    answers = {name: records.answers(first[name]["cell"])[: len(rows)] for name in names}
    references = plan.splits["test"].references[: len(rows)]
    judged = np.stack([_judged(plan, answers[name], references) for name in names])  # (M, N)
    shown = {name: _said(plan, answers[name], rows) for name in names}
    kind = plan.data.kind
    plain = kind not in ("text", "number", "raw")
    return [
        {
            "input": cut(" ⏎ ".join(texts(rows[i], plan.data.text))),
            "reference": wanted(plan, rows[i]),
            "answers": [
                {
                    "method": name,
                    "text": cut(shown[name][i]),
                    "right": bool(judged[m, i] == 1) if plain else None,
                    "score": float(judged[m, i]) if kind == "text" else None,
                }
                for m, name in enumerate(names)
            ],
        }
        for i in chosen(judged)
    ]


def chosen(judged: NDArray[Any]) -> list[int]:
    """Numbers of the rows to show: the best, those on which methods (M, N) differ most, and the worst; each once."""
    mean, spread = judged.mean(0), judged.std(0)
    order = [np.argsort(-mean, kind="stable"), np.argsort(-spread, kind="stable"), np.argsort(mean, kind="stable")]
    found: list[int] = []
    for kind in order:
        new = [int(i) for i in kind if int(i) not in found]
        found += new[:EACH]
    return found


def _signed(plan: Plan, record: Mapping[str, Any]) -> float:
    score = float(record["scores"]["test"][plan.task.metric])
    return -score if plan.task.metric in LOWER_IS_BETTER else score


def _judged(plan: Plan, answers: Any, references: Any) -> NDArray[Any]:
    """How good each answer is (N,): 1 is right; of numbers and documents, how little is lost."""
    task: Any = plan.task
    kind = plan.data.kind
    if kind == "classes":
        return np.asarray(task.predictions(answers) == references, float)
    if kind == "many":
        return np.asarray((task.predictions(answers) == (np.asarray(references) > 0.5)).all(1), float)
    if kind == "number":
        return np.asarray(-np.abs(task.predictions(answers) - references), float)
    if kind == "raw":
        return np.array([-one["loss"] for one in task.decode(answers)])
    if kind == "tags":
        return np.array([float(one == other) for one, other in zip(answers, references, strict=True)])
    return np.asarray(_tally(task, kind, answers, references).resampled(np.eye(len(answers))), float)


def _tally(task: Any, kind: str, answers: Any, references: Any) -> Any:
    """A metric that says something of a single row."""
    if kind == "span":
        return task.tallies(answers, references)["em"]
    metric = "rougeL" if task.metric in ("perplexity", "nist", "cider", "ter") else task.metric
    return task.tallies(answers, references, (metric,))[metric]


def _said(plan: Plan, answers: Any, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [said(plan, one, row) for one, row in zip(plan.task.decode(answers), rows, strict=True)]


def said(plan: Plan, answer: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """An answer as a reader wants to see it."""
    kind = plan.data.kind
    if kind == "tags":
        return tagged(row[plan.data.text[0]], answer["tags"], plan.data.labels[0])
    if kind == "number":
        return f"{answer['value']:.3g}"
    if kind == "raw":
        return f"perplexity {answer['perplexity']:.1f}"
    if kind == "many":
        return ", ".join(answer["labels"]) or "–"
    if kind == "span":
        return str(answer["answer"]) or "(no answer)"
    return str(answer.get("label", answer.get("text", "")))


def wanted(plan: Plan, row: Mapping[str, Any]) -> str:
    """The reference as a reader wants to see it; "" where the text is its own."""
    kind, value = plan.data.kind, row.get(plan.data.label)
    if kind == "raw":
        return ""
    if kind == "tags":
        return cut(tagged(row[plan.data.text[0]], row[plan.data.label], plan.data.labels[0]))
    if kind == "span":
        return cut(" / ".join(dict.fromkeys(str(one["text"]) for one in row[plan.data.label])) or "(no answer)")
    if kind == "text":
        return cut(" / ".join(row["references"]))
    if kind == "many":
        return cut(", ".join(row[plan.data.label]) or "–")
    return cut(str(value))


def tagged(words: Sequence[str], tags: Sequence[str], outside: str) -> str:
    """The words that have a tag of their own: `Paris [B-location]`."""
    found = [f"{word} [{tag}]" for word, tag in zip(words, tags, strict=True) if tag != outside]
    return "  ".join(found) or f"all {outside}"


def cut(text: str) -> str:
    """A text of bearable length."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
