"""Results as CSV, LaTeX, Markdown or JSON: of a comparison a row for each method, of a study also its averages."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.method_results import MethodResult, method_results
from deltatune.comparison.report.study_results import StudyResults
from deltatune.comparison.results.finished_run import FinishedRun
from deltatune.comparison.results.recommend import percent
from deltatune.core.input_validation.strict_json import dumps
from deltatune.tasks.metrics.metric_facts import lower_is_better

Format = Literal["csv", "latex", "markdown", "json"]
COSTS = (
    "params",
    "share",
    "adapter_bytes",
    "train_seconds",
    "examples_per_second",
    "peak_memory_bytes",
    "latency_ratio",
    "latency_ratio_merged",
    "writing_ratio",
    "tokens",
    "learning_rate",
)
"""Numbers of a method's entry that a row has, after its score."""
Cell = tuple[str, bool]
"""Text of a cell of a printed table, and whether it is bold: the best, and what is not told apart from it."""


def export(run: FinishedRun, to: Format) -> str:
    """The results of a run as text that ends with a newline.

    CSV and JSON hold every number unrounded: a row for each method, in a study for each method of each comparison.
    LaTeX (booktabs) and Markdown hold a table to print.
    """
    if to in ("csv", "json"):
        rows = rows_of(run)
        return _csv(rows) if to == "csv" else dumps(rows, nonfinite="null", indent=2) + "\n"
    head, body = _study_table(run.content) if run.kind == "study" else _comparison_table(run.content)
    return _latex(head, body) if to == "latex" else _markdown(head, body)


def rows_of(run: FinishedRun) -> list[dict[str, Any]]:
    """A flat row for each method, the same keys in each; of a study for each method of each comparison."""
    if run.kind == "comparison":
        return _filled(_rows(run.content, {}))
    rows = []
    for each in StudyResults(run.content).comparisons:
        if each.summary is not None:
            rows += _rows(each.summary, dict(each.at))
    return _filled(rows)


def _rows(summary: Mapping[str, Any], at: Mapping[str, Any]) -> list[dict[str, Any]]:
    results = method_results(summary)
    best = best_score(summary, results)
    rows = []
    for result in results:
        low, high = result.interval or (None, None)
        row: dict[str, Any] = {**at, "method": result.row["method"], "asked": result.row.get("asked")}
        row |= {"metric": summary["metric"], "score": result.score, "ci_low": low, "ci_high": high}
        row |= {"verdict": verdict(result, best), **{name: _number(result, name) for name in COSTS}}
        row["reference"] = result.reference
        row["seeds"] = len(result.row.get("seed_scores") or ())
        for split, scores in (("test", result.row.get("scores") or {}), *(result.row.get("more_scores") or {}).items()):
            row |= {f"{split}_{name}": value for name, value in scores.items()}
        rows.append(row)
    return rows


def _number(result: MethodResult, name: str) -> float | int | None:
    """A number as it was stored: counts stay whole."""
    value = result.row.get(name)
    return value if isinstance(value, int) else result.number(name)


def _filled(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with all keys of any of them, in order."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


def best_score(summary: Mapping[str, Any], results: Sequence[MethodResult]) -> float | None:
    """The best score of a comparison."""
    scores = [result.score for result in results if result.score is not None]
    return (min if lower_is_better(summary["metric"]) else max)(scores, default=None)


def verdict(result: MethodResult, best: float | None) -> str:
    """Against the best: `best`, `tied`, `worse`; `failed` without a score."""
    if result.score is None:
        return "failed"
    return "best" if result.score == best else "tied" if result.row.get("tied_with_best") else "worse"


# ---- printed tables


def _comparison_table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[Cell]]]:
    results = method_results(summary)
    best = best_score(summary, results)
    sign = -1 if lower_is_better(summary["metric"]) else 1
    results = sorted(results, key=lambda result: (result.score is None, -sign * (result.score or 0.0)))
    tokens = any(result.number("tokens") for result in results)
    head = ["method", str(summary["metric"]), "95 % interval", "verdict", "trained", "share", "training", "latency"]
    head += ["merged", *(["tokens"] if tokens else []), "learning rate"]
    body = []
    for result in results:
        standing = verdict(result, best)
        bold = standing in ("best", "tied")
        interval = result.interval
        share = result.number("share")
        cells: list[Cell] = [
            (str(result.row["method"]), bold),
            (formats.score(result.score), bold),
            (f"{formats.score(interval[0])} to {formats.score(interval[1])}" if interval else formats.MISSING, False),
            (standing, False),
            (formats.count(result.number("params")), False),
            (formats.MISSING if share is None else percent(share), False),
            (formats.seconds(result.number("train_seconds")), False),
            (formats.ratio(result.number("latency_ratio")), False),
            (formats.ratio(result.number("latency_ratio_merged")), False),
            *([(formats.count(result.number("tokens")), False)] if tokens else []),
            (formats.rate(result.number("learning_rate")), False),
        ]
        body.append(cells)
    return head, body


def _study_table(study: Mapping[str, Any]) -> tuple[list[str], list[list[Cell]]]:
    """A row for each method, a column for each comparison, then mean and rank."""
    results = StudyResults(study)
    head = ["method", *(_column(results, i) for i in range(len(results.comparisons))), "mean", "rank"]
    body = []
    for method in results.methods:
        cells: list[Cell] = [(method.asked, False)]
        for each in results.comparisons:
            entry, score = each.entries.get(method.asked) or {}, results.score(method, each)
            bold = score is not None and (score == each.best or bool(entry.get("tied_with_best")))
            cells.append((formats.score(score), bold))
        cells.append((formats.score(method.mean), False))
        cells.append((formats.MISSING if method.rank is None else f"{method.rank:.1f}", False))
        body.append(cells)
    return head, body


def _column(results: StudyResults, i: int) -> str:
    each = results.comparisons[i]
    return results.label(each) if results.varying else results.value_text("data", each.at.get("data"))


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
    rows = list(rows)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]) if rows else ["method", "score"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _markdown(head: Sequence[str], body: Sequence[Sequence[Cell]]) -> str:
    lines = [f"| {' | '.join(map(_markdown_text, head))} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for (name, bold), *cells in body:
        first = f"**{_code(name)}**" if bold else _code(name)
        rest = [f"**{_markdown_text(text)}**" if strong else _markdown_text(text) for text, strong in cells]
        lines.append(f"| {' | '.join([first, *rest])} |")
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """Code in a cell: a fence longer than any run of backticks in it; pipes end a cell even in code."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{_one_line(text).replace('|', chr(92) + '|')}{space}{fence}"


def _markdown_text(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", _one_line(text)).replace("&", "&amp;")


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}",
    "×": r"$\times$", "−": "$-$", "±": r"$\pm$", "–": "--", "…": r"\dots{}", "α": r"$\alpha$", "³": "$^3$", "²": "$^2$",
}  # fmt: skip
"""Characters that mean something in LaTeX, or that its fonts lack, and what prints them."""


def _latex(head: Sequence[str], body: Sequence[Sequence[Cell]]) -> str:
    r"""A tabular with the rules of booktabs, for `\usepackage{booktabs,textcomp}` with the T1 encoding."""

    def cell(text: str, bold: bool) -> str:
        return rf"\textbf{{{_latex_text(text)}}}" if bold else _latex_text(text)

    lines = [
        r"% \usepackage[T1]{fontenc}  \usepackage{booktabs,textcomp}",
        r"% Bold: the best, and methods that are not told apart from it.",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        f"{' & '.join(map(_latex_text, head))} \\\\",
        r"\midrule",
    ]
    for (name, bold), *cells in body:
        code = rf"\texttt{{{_latex_text(name)}}}"
        first = rf"\textbf{{{code}}}" if bold else code
        lines.append(f"{' & '.join([first, *(cell(*each) for each in cells)])} \\\\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_text(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in _one_line(text))


def _one_line(text: str) -> str:
    """Without line breaks and control characters, which end a row of a table."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
