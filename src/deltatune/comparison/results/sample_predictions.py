"""Sample predictions: a few test rows with the answers of the methods, right and wrong side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltatune.comparison.plans.plan import Plan
from deltatune.comparison.results.records import Records
from deltatune.data.dataset import texts
from deltatune.tasks.metrics.metric_facts import lower_is_better

METHODS = 6
"""Most methods to show."""
EACH = 4
"""Rows to show of each group: those all methods get right, those they differ on, those none gets right."""
CONSIDERED = 400
"""Test rows among which the samples are chosen."""
LONGEST = 400
"""Characters to show of a text."""


def samples(plan: Plan, finals: Mapping[str, Sequence[dict[str, Any]]], records: Records) -> list[dict[str, Any]]:
    """Rows as `{"input", "reference", "answers": [{"method", "text", "right", "score"}]}`.

    `right` is None for answers that are not simply right or wrong; `score` is the row's own, for generated texts.
    """
    if plan.data.kind == "mixture":  # whose rows have answers of different kinds
        return []
    first = {text: runs[0] for text, runs in finals.items() if runs}
    methods = sorted(first, key=lambda text: -_signed(plan, first[text]))[:METHODS]
    rows = plan.data.test[:CONSIDERED]
    if not methods or not rows:
        return []
    answers = {method: records.answers(first[method]["cell"])[: len(rows)] for method in methods}
    references = plan.splits["test"].references[: len(rows)]
    scores = np.stack([_row_scores(plan, answers[method], references) for method in methods])  # (M, N)
    shown = {method: _answer_texts(plan, answers[method], rows) for method in methods}
    kind = plan.data.kind
    right_or_wrong = kind not in ("text", "number", "raw")
    return [
        {
            "input": cut(" ⏎ ".join(texts(rows[i], plan.data.text))),
            "reference": reference_text(plan, rows[i]),
            "answers": [
                {
                    "method": method,
                    "text": cut(shown[method][i]),
                    "right": bool(scores[m, i] == 1) if right_or_wrong else None,
                    "score": float(scores[m, i]) if kind == "text" else None,
                }
                for m, method in enumerate(methods)
            ],
        }
        for i in chosen_rows(scores)
    ]


def chosen_rows(scores: NDArray[Any]) -> list[int]:
    """Indices of the rows to show: the best, those on which methods (M, N) differ most, and the worst; each once."""
    mean, deviation = scores.mean(0), scores.std(0)
    orders = [np.argsort(-mean, kind="stable"), np.argsort(-deviation, kind="stable"), np.argsort(mean, kind="stable")]
    chosen: list[int] = []
    for order in orders:
        new = [int(i) for i in order if int(i) not in chosen]
        chosen += new[:EACH]
    return chosen


def _signed(plan: Plan, record: Mapping[str, Any]) -> float:
    metric = plan.session.task.metric
    score = float(record["scores"]["test"][metric])
    return -score if lower_is_better(metric) else score


def _row_scores(plan: Plan, answers: Any, references: Any) -> NDArray[Any]:
    """A score for each answer (N,): 1 is right; for numbers and documents the negative error or loss."""
    task: Any = plan.session.task
    kind = plan.data.kind
    if kind == "classes":
        return np.asarray(task.predictions(answers) == references, float)
    if kind == "many":
        return np.asarray((task.predictions(answers) == (np.asarray(references) > 0.5)).all(1), float)
    if kind == "number":
        return np.asarray(-np.abs(task.predictions(answers) - references), float)
    if kind == "raw":
        return np.array([-answer["loss"] for answer in task.decode(answers)])
    if kind == "tags":
        return np.array([float(answer == tags) for answer, tags in zip(answers, references, strict=True)])
    return np.asarray(_additive_score(task, kind, answers, references).resampled(np.eye(len(answers))), float)


def _additive_score(task: Any, kind: str, answers: Any, references: Any) -> Any:
    """A metric that is meaningful for a single row."""
    if kind == "span":
        return task.corpus_scores(answers, references)["em"]
    metric = "rougeL" if task.metric in ("perplexity", "nist", "cider", "ter") else task.metric
    return task.corpus_scores(answers, references, (metric,))[metric]


def _answer_texts(plan: Plan, answers: Any, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    decoded = plan.session.task.decode(answers)
    return [answer_text(plan, answer, row) for answer, row in zip(decoded, rows, strict=True)]


def answer_text(plan: Plan, answer: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """A decoded answer for people."""
    kind = plan.data.kind
    if kind == "tags":
        return tagged(row[plan.data.text[0]], answer["tags"], plan.data.labels[0])
    if kind == "number":
        return f"{answer['value']:.3g}"
    if kind == "pairs":
        return f"{answer['preferred']}, by {abs(answer['margin']):.2f}"
    if kind == "raw":
        return f"perplexity {answer['perplexity']:.1f}"
    if kind == "many":
        return ", ".join(answer["labels"]) or "–"
    if kind == "span":
        return str(answer["answer"]) or "(no answer)"
    return str(answer.get("label", answer.get("text", "")))


def reference_text(plan: Plan, row: Mapping[str, Any]) -> str:
    """The reference for people; "" for raw text, which is its own reference."""
    kind, value = plan.data.kind, row.get(plan.data.label)
    if kind == "raw":
        return ""
    if kind == "tags":
        return cut(tagged(row[plan.data.text[0]], row[plan.data.label], plan.data.labels[0]))
    if kind == "span":
        return cut(" / ".join(dict.fromkeys(str(span["text"]) for span in row[plan.data.label])) or "(no answer)")
    if kind == "text":
        return cut(" / ".join(row["references"]))
    if kind == "many":
        return cut(", ".join(row[plan.data.label]) or "–")
    return cut(str(value))


def tagged(words: Sequence[str], tags: Sequence[str], outside: str) -> str:
    """The words with a tag other than the `outside` one: `Paris [B-location]`."""
    marked = [f"{word} [{tag}]" for word, tag in zip(words, tags, strict=True) if tag != outside]
    return "  ".join(marked) or f"all {outside}"


def cut(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
