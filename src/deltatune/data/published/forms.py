"""Published data sets known by their columns: which of them are text and label, and what is nested in them.

`find_form` looks at the columns alone, so that a set is read alike from the hub, from a folder and from a file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.data.columns.column_names import CHOSEN, PROMPT, PROMPTS, REJECTED
from deltatune.data.dataset import Row, Splits, TaskName, columns_of
from deltatune.data.formats.file_format import first_few
from deltatune.data.published import nested_columns as nested


@dataclass(frozen=True)
class PublishedForm:
    """One data set in the form in which it is published."""

    name: str
    has: tuple[str, ...]
    """The columns that together mean this set."""
    task: TaskName
    text: tuple[str, ...]
    label: str
    convert: Callable[[Row], list[Row]] | None = None
    """Makes plain columns of nested ones."""
    made: tuple[str, ...] = ()
    """The columns that `convert` makes."""
    objects: tuple[str, ...] = ()
    """The columns among `has` that hold an object."""
    several: bool = False
    """Whether a row becomes several."""
    absent: tuple[str, ...] = ()
    """Columns that mean another set."""
    marked: str = ""
    """What the label of the first row must hold, where the names of the columns do not tell."""
    metric: str = ""
    """The metric with which it is scored, where it is not the task's default."""
    note: str = ""
    """What to know of it."""


ONE_TEXT = "its choices are texts of one classification, so their order counts; it is not scored choice by choice"

FORMS = (
    PublishedForm(
        "WebNLG", ("modified_triple_sets", "lex"), "generate", ("triples",), "references", nested.webnlg,
        made=("triples", "references"),
    ),
    PublishedForm(
        "DART", ("tripleset", "annotations"), "generate", ("triples",), "references", nested.dart,
        made=("triples", "references"),
    ),
    PublishedForm(
        "WikiSQL", ("question", "table", "sql"), "generate", ("question", "columns"), "query", nested.wikisql,
        made=("columns", "query"), objects=("table", "sql"), metric="logical_form",
    ),
    PublishedForm(
        "GSM8K", ("question", "rationale", "final_answer"), "generate", ("question",), "answer", nested.gsm8k,
        made=("answer",), metric="final_answer", note="an answer is the rationale and, behind ####, the final answer",
    ),
    PublishedForm(
        "AQuA", ("question", "options", "rationale", "correct"), "generate", ("question", "choices"), "answer",
        nested.aqua, made=("choices", "answer"), metric="final_answer",
        note="an answer is the rationale and, behind ####, the letter: ChainOfThought(answer='choice')",
    ),
    PublishedForm(
        "GSM8K", ("question", "answer"), "generate", ("question",), "answer", marked="####", metric="final_answer",
        note="an answer is the rationale and, behind ####, the final answer",
    ),
    *(
        PublishedForm(
            "LAMA", ("obj_label", column), "generate", ("text",), "obj_label", nested.lama, made=("text",),
            metric="em", note="masked models fill in the blank: deltatune predict --task fill --label obj_label",
        )
        for column in ("template", "masked_sentence", "masked_sentences", "evidences")
    ),
    PublishedForm(
        "preferences without prompts", (CHOSEN, REJECTED), "prefer", (PROMPT,), CHOSEN, nested.preferences,
        made=(PROMPT, CHOSEN, REJECTED), absent=PROMPTS,
        note="a prompt is what both answers begin with",
    ),
    PublishedForm(
        "MultiRC", ("passage",), "classify", ("paragraph", "question", "answer"), "label", nested.multirc,
        made=("paragraph", "question", "answer", "label"), objects=("passage",), several=True,
    ),
    PublishedForm(
        "ReCoRD", ("passage", "qas"), "span", ("query", "passage"), "answers", nested.record,
        made=("query", "passage", "answers", "entities"), objects=("passage",), several=True,
    ),
    PublishedForm(
        "WSC", ("text", "target", "label"), "classify", ("text", "span1_text", "span2_text"), "label", nested.wsc,
        made=("span1_text", "span2_text"), objects=("target",),
    ),
    PublishedForm(
        "MultiRC", ("paragraph", "question", "answer", "label"), "classify", ("paragraph", "question", "answer"),
        "label",
    ),
    PublishedForm(
        "ReCoRD", ("passage", "query", "entities", "answers"), "span", ("query", "passage"), "answers",
        note="each answer is a mention in the passage; the entities are not used to restrict the answers",
    ),
    PublishedForm(
        "WSC", ("text", "span1_text", "span2_text", "label"), "classify", ("text", "span1_text", "span2_text"), "label"
    ),
    PublishedForm(
        "WiC", ("word", "sentence1", "sentence2", "label"), "classify", ("word", "sentence1", "sentence2"), "label"
    ),
    PublishedForm(
        "COPA", ("premise", "choice1", "choice2", "question", "label"), "classify",
        ("premise", "question", "choice1", "choice2"), "label", note=ONE_TEXT,
    ),
    PublishedForm(
        "CoNLL-2003", ("tokens", "pos_tags", "chunk_tags", "ner_tags"), "tag", ("tokens",), "ner_tags",
        note="--label pos_tags and --label chunk_tags take its other tags",
    ),
    PublishedForm(
        "TREC", ("text", "coarse_label", "fine_label"), "classify", ("text",), "coarse_label",
        note="--label fine_label takes the fine classes",
    ),
    PublishedForm(
        "TREC", ("text", "label-coarse", "label-fine"), "classify", ("text",), "label-coarse",
        note="--label label-fine takes the fine classes",
    ),
)  # fmt: skip
"""The forms, those with nested columns first."""


def find_form(rows: Sequence[Row]) -> PublishedForm | None:
    """The published form of these rows, or None."""
    names = set(columns_of(rows[:100]))
    for form in FORMS if rows else ():
        if names.issuperset(form.has) and not names & set(form.absent) and _has_objects(form, rows[0]):
            return form
    return None


def _has_objects(form: PublishedForm, row: Row) -> bool:
    if form.convert is nested.multirc:
        return isinstance(row.get("passage"), Mapping) and "questions" in row["passage"]
    if form.marked and form.marked not in str(row.get(form.label)):
        return False
    return all(isinstance(row.get(column), Mapping) for column in form.objects)


def plain_rows(form: PublishedForm, rows: Sequence[Row], where: str) -> list[Row]:
    """The rows with the plain columns of a form. Raises DeltatuneError naming the rows that have another form."""
    if form.convert is None:
        return list(rows)
    plain: list[Row] = []
    problems: dict[str, list[int]] = {}
    for number, row in enumerate(rows, start=1):
        try:
            plain += form.convert(row)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            problems.setdefault(_reason(error), []).append(number)
    raise_all([
        f"{where}: {len(numbers)} rows ({first_few([str(number) for number in numbers])}) are not in the form of "
        f"{form.name}, of which the columns {', '.join(form.has)} are: {reason}"
        for reason, numbers in problems.items()
    ])  # fmt: skip
    return plain


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"there is no {error}"
    return str(error) if isinstance(error, ValueError) else f"a value has another type ({error})"


def plain_splits(form: PublishedForm, splits: Splits) -> tuple[Splits, list[str]]:
    """All splits with the plain columns of a form, and notes."""
    problems: list[str] = []
    plain: Splits = {}
    for split, rows in splits.items():
        try:
            plain[split] = plain_rows(form, rows, split)
        except DeltatuneError as error:
            problems.append(str(error))
    problems += [f"{split}: in the form of {form.name} it holds no rows." for split, rows in plain.items() if not rows]
    raise_all(problems)
    notes = [f"the columns are those of {form.name}" + (f": {form.note}" if form.note else "")]
    if form.made:
        made = [name for name in form.made if name not in form.has]
        notes[0] = f"the columns are those of {form.name}; made of them: {', '.join(made)}"
        notes += [f"{form.name}: {form.note}"] if form.note else []
    if form.convert is nested.webnlg:
        return _with_seen(plain), notes + _about_texts(plain)
    return plain, notes


def _with_seen(splits: Splits) -> Splits:
    """Rows of WebNLG with `seen`: whether train has their category."""
    categories = {str(row.get("category")) for row in splits["train"]}

    def seen(row: Row) -> Row:
        return row if "seen" in row else {**row, "seen": "seen" if str(row.get("category")) in categories else "unseen"}

    return {split: [seen(row) for row in rows] for split, rows in splits.items()}


def _about_texts(splits: Splits) -> list[str]:
    """Notes on the texts of WebNLG: those that its annotators did not find good, and several languages."""
    rows = [row for part in splits.values() for row in part]
    texts = [text for row in rows for text in nested.objects_of(row["lex"])]
    left_out = len(texts) - sum(len(row["references"]) for row in rows)
    languages = Counter(text["lang"] for text in texts if text.get("lang"))
    notes = [f"{left_out} texts whose comment is not 'good' are not used"] if left_out else []
    if len(languages) > 1:
        listed = ", ".join(f"{language} {count}" for language, count in languages.most_common())
        notes.append(f"the texts are in several languages ({listed}), and all of them are used: keep one in `lex`")
    return notes


def with_plain_columns(rows: Sequence[Row], text: Sequence[str], where: str, several: bool = True) -> list[Row]:
    """Rows for an adapter, with the plain columns that it reads made of the nested ones of a published form.

    Rows that have the columns, or that are of no such form, are unchanged. `several`: a row may become several.
    """
    form = find_form(rows)
    names = columns_of(rows)
    if form is None or not set(text) & set(form.made) or (form.several and not several):
        return list(rows)
    if all(column in names and not _is_nested(rows[0].get(column)) for column in text):
        return list(rows)
    return plain_rows(form, rows, where)


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping)
