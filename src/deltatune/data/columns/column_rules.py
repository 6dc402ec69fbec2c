"""How the text columns and the label column of each task are found: by their names, else by their values.

A task is added to `RULES` with a description of its columns for errors, and with up to three functions that find them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from deltatune.data.columns import column_names as known
from deltatune.data.columns.column_names import is_id, normalised
from deltatune.data.columns.column_values import is_chat, is_strings, looks_like_label, looks_like_text, sample_parsed
from deltatune.data.dataset import Row, TaskName
from deltatune.data.media.media_files import kind_of

Candidate = tuple[tuple[str, ...], str]
"""Text columns and label column; "" for no label."""


@dataclass(frozen=True)
class ColumnRules:
    """How the columns of one task are found, and how errors speak of them."""

    texts: str
    """What the text columns hold."""
    label: str
    """What the label column holds; "" for a task without labels."""
    needed: str
    """The text columns that a task takes."""
    text_option: str = "--text NAME"
    """How the text columns are named on the command line."""
    fewest: int = 1
    """Text columns at least."""
    most: int = 1
    """Text columns at most."""
    candidates: Callable[[Sequence[Row], dict[str, str]], Iterator[Candidate]] = lambda rows, names: iter(())
    """Columns whose names together mean this task, the likeliest first, from the rows and normalised name -> name."""
    find_label: Callable[[Sequence[Row], dict[str, str]], str] = lambda rows, names: ""
    """The label among the columns that are not named as text, or ""."""
    find_texts: Callable[[Sequence[Row], dict[str, str]], tuple[str, ...]] = lambda rows, names: ()
    """The texts among the columns that are not the label, or ()."""


# --- classification and regression ---


def find_class_label(rows: Sequence[Row], names: dict[str, str]) -> str:
    """A well-known name, else the only column with few different values or with continuous ones, else ""."""
    for label in known.LABELS:
        if label in names:
            return names[label]
    likely = [n for n in names.values() if not is_id(n) and looks_like_label([row.get(n) for row in rows])]
    return likely[0] if len(likely) == 1 else ""


def _class_texts(rows: Sequence[Row], names: dict[str, str]) -> tuple[str, ...]:
    """Well-known names, else the only column of images or sounds, else the only column of texts, else ()."""
    for texts in (*known.TEXT_PAIRS, *((single,) for single in known.SINGLE_TEXTS)):
        if all(name in names for name in texts):
            return tuple(names[name] for name in texts)
    media = media_columns(rows, list(names.values()))
    return (media[0],) if len(media) == 1 else _only_text(rows, names)


def media_columns(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """The columns that hold images, or sounds."""
    return [name for name in names if kind_of(row.get(name) for row in rows) != "text"]


def _only_text(rows: Sequence[Row], names: dict[str, str]) -> tuple[str, ...]:
    likely = [n for n in names.values() if not is_id(n) and looks_like_text([row.get(n) for row in rows])]
    return (likely[0],) if len(likely) == 1 else ()


# --- tagging and extractive QA ---


def _tagging_candidates(rows: Sequence[Row], names: dict[str, str]) -> Iterator[Candidate]:
    """A column of tokens and one of tags: lists, or strings with as many words."""
    for tokens in _present(known.TOKENS, names):
        for tags in _present(known.TAGS, names):
            if are_parallel(rows, tokens, tags):
                yield (tokens,), tags


def are_parallel(rows: Sequence[Row], tokens: str, tags: str, strings: bool = True) -> bool:
    """Whether most rows have lists in both columns, or (with `strings`) as many words in both, more than one."""
    pairs = sample_parsed(rows, tokens, tags)
    lists = sum(isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) for a, b in pairs)
    words = [(a.split(), b.split()) for a, b in pairs if isinstance(a, str) and isinstance(b, str)]
    equal = sum(len(a) == len(b) for a, b in words)
    several = strings and any(len(a) > 1 for a, _ in words)
    return 2 * lists > len(pairs) or (several and 2 * equal > len(pairs))


def _tag_label(rows: Sequence[Row], names: dict[str, str]) -> str:
    """The only column with the name of tags; "tags" wins over others."""
    present = _present(known.TAGS, names)
    return present[0] if len(present) == 1 or (present and normalised(present[0]) == "tags") else ""


def _qa_candidates(rows: Sequence[Row], names: dict[str, str]) -> Iterator[Candidate]:
    """question, context and answers."""
    if all(name in names for name in ("question", "context", "answers")):
        yield (names["question"], names["context"]), names["answers"]


def _qa_texts(rows: Sequence[Row], names: dict[str, str]) -> tuple[str, ...]:
    columns = (*_present(known.QUESTIONS, names)[:1], *_present(known.CONTEXTS, names)[:1])
    return columns if len(columns) == 2 else ()


def _only(columns: list[str]) -> str:
    return columns[0] if len(columns) == 1 else ""


# --- generation ---


def _generation_candidates(rows: Sequence[Row], names: dict[str, str]) -> Iterator[Candidate]:
    """A chat, or inputs and an output whose names mean that one is written from the others."""
    for chat in _present(known.CHATS, names):
        values = [value for (value,) in sample_parsed(rows, chat)]
        if 2 * sum(map(is_chat, values)) > len(values):
            yield (chat,), chat
    for inputs, output in known.INPUT_OUTPUT:
        if output in names and all(name in names for name in inputs):
            yield tuple(names[name] for name in inputs), names[output]
    if any(output in names for _, output in known.INPUT_OUTPUT):
        return
    for references in _present(known.REFERENCE_LISTS, names):
        if any(is_strings(value) and value for (value,) in sample_parsed(rows, references)):
            yield from (((column,), references) for column in _present(known.INPUTS, names))


def _output_label(rows: Sequence[Row], names: dict[str, str]) -> str:
    """The only column with the name of an output, else the only one with the name of references."""
    return _only(_present(known.OUTPUTS, names) or _present(known.REFERENCE_LISTS, names))


def _input_texts(rows: Sequence[Row], names: dict[str, str]) -> tuple[str, ...]:
    """The only column with the name of an input; where there are several, none: it could be one of them, or all."""
    present = _present(known.INPUTS, names)
    return tuple(present) if len(present) == 1 else () if present else _only_text(rows, names)


def holds_chats(rows: Sequence[Row], column: str) -> bool:
    """Whether some of the first rows have a chat in this column."""
    return any(is_chat(value) for (value,) in sample_parsed(rows, column))


# --- language modelling ---


def _document_candidates(rows: Sequence[Row], names: dict[str, str]) -> Iterator[Candidate]:
    """One column of texts, with nothing but metadata beside it."""
    text = next(iter(_present(known.DOCUMENTS, names)), None)
    others = {key: name for key, name in names.items() if name != text}
    if text is not None:
        strings = all(isinstance(row.get(text), (str, type(None))) for row in rows)
        if (
            strings
            and all(key in known.METADATA or is_id(key) for key in others)
            and not find_class_label(rows, others)
        ):
            yield (text,), ""
        return
    content = [name for key, name in names.items() if not is_id(key)]
    if len(content) == 1 and looks_like_text([row.get(content[0]) for row in rows]):
        yield (content[0],), ""


def _document_texts(rows: Sequence[Row], names: dict[str, str]) -> tuple[str, ...]:
    return tuple(_present(known.DOCUMENTS, names)[:1]) or _only_text(rows, names)


def _present(wanted: Sequence[str], names: dict[str, str]) -> list[str]:
    """The columns that have one of the wanted names, in the order of these."""
    return [names[name] for name in wanted if name in names]


# --- preferences ---


def _preference_candidates(rows: Sequence[Row], names: dict[str, str]) -> Iterator[Candidate]:
    """A prompt, a chosen answer, and a rejected one beside it."""
    for chosen, rejected in known.PREFERENCES:
        if chosen in names and rejected in names:
            for prompt in _present(known.PROMPTS, names)[:1]:
                yield (prompt,), names[chosen]


_CLASSIFICATION = ColumnRules(
    texts="the text",
    label="the label",
    needed="one text, a pair of texts, or up to eight",
    text_option="--text NAME, twice for a pair of texts",
    most=8,
    find_label=find_class_label,
    find_texts=_class_texts,
)

RULES: dict[TaskName, ColumnRules] = {
    "prefer": ColumnRules(
        texts="the prompt",
        label="the chosen answer, beside a column of rejected ones",
        needed="one to eight text columns",
        text_option="--text NAME, more than once for several",
        most=8,
        candidates=_preference_candidates,
        find_label=lambda rows, names: next((names[name] for name, _ in known.PREFERENCES if name in names), ""),
        find_texts=lambda rows, names: tuple(_present(known.PROMPTS, names)[:1]),
    ),
    "tag": ColumnRules(
        texts="the tokens",
        label="the tags",
        needed="one text column",
        candidates=_tagging_candidates,
        find_label=_tag_label,
        find_texts=lambda rows, names: tuple(_present(known.TOKENS, names)[:1]),
    ),
    "span": ColumnRules(
        texts="the question and the context",
        label="the answers",
        needed="the question's and the context's column",
        text_option="--text QUESTION --text CONTEXT",
        fewest=2,
        most=2,
        candidates=_qa_candidates,
        find_label=lambda rows, names: _only(_present(known.ANSWERS, names)),
        find_texts=_qa_texts,
    ),
    "generate": ColumnRules(
        texts="the input",
        label="the output",
        needed="one to eight text columns",
        text_option="--text NAME, more than once for several",
        most=8,
        candidates=_generation_candidates,
        find_label=_output_label,
        find_texts=_input_texts,
    ),
    "lm": ColumnRules(
        texts="the text",
        label="",
        needed="one text column",
        candidates=_document_candidates,
        find_texts=_document_texts,
    ),
    "classify": _CLASSIFICATION,
    "regression": _CLASSIFICATION,
}
"""The rules of each task, in the order in which tasks are inferred."""
