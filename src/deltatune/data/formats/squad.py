"""SQuAD's nested JSON, versions 1.1 and 2.0: one row for each question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation import strict_json
from deltatune.data.dataset import Row
from deltatune.data.formats.file_format import FileFormat, raise_malformed, read_text

FIX = "Each paragraph needs a context and qas; each of these a question, and answers unless it is impossible."


def read_squad(path: Path) -> list[Row] | None:
    """One row for each question, or None where the file is other JSON."""
    text = read_text(path)
    if not text.lstrip().startswith("{"):  # spares parsing a long list of rows twice
        return None
    try:
        value = strict_json.loads(text, path)
    except DeltatuneError:  # the reader of lists names what is wrong
        return None
    if not is_squad(value):
        return None
    rows, problems = parse(value)
    raise_malformed(path, problems, FIX)
    return rows


def is_squad(value: Any) -> bool:
    """Whether a JSON object has `data`, a list of articles that have `paragraphs`."""
    articles = value.get("data") if isinstance(value, dict) else None
    return isinstance(articles, list) and bool(articles) and all(_has_list(a, "paragraphs") for a in articles)


def parse(value: dict[str, Any]) -> tuple[list[Row], list[str]]:
    """Rows {"id", "title", "question", "context", "answers"}, and problems that name the article.

    Answers are [{"text", "start"}]; the list is empty where the question is marked as impossible.
    """
    rows: list[Row] = []
    problems = []
    for number, article in enumerate(value["data"], start=1):
        for paragraph in article["paragraphs"]:
            if not _has_list(paragraph, "qas") or not isinstance(paragraph.get("context"), str):
                problems.append(f"article {number} has a paragraph without context or qas")
                continue
            for question in paragraph["qas"]:
                if not isinstance(question, dict) or "question" not in question:
                    problems.append(f"article {number} has an entry in qas without question")
                    continue
                impossible = question.get("is_impossible", False)
                if not isinstance(impossible, bool) or (impossible and question.get("answers")):
                    fault = "is_impossible is neither true nor false"
                    if impossible is True:
                        fault = "it is marked as impossible and has answers"
                    problems.append(f"article {number}, question {str(question['question'])[:60]!r}: {fault}")
                    continue
                rows.append(_row(question, paragraph["context"], article.get("title", "")))
    return rows, problems


def _row(question: dict[str, Any], context: str, title: str) -> Row:
    answers = [] if question.get("is_impossible") else question.get("answers")
    if isinstance(answers, list):
        answers = [_answer(answer) for answer in answers]
    return {
        "id": question.get("id", ""),
        "title": title,
        "question": question["question"],
        "context": context,
        "answers": answers,
    }


def _answer(answer: Any) -> Any:
    if not isinstance(answer, dict) or "answer_start" not in answer:
        return answer  # the check of the rows reports it with its row number
    return {"text": answer.get("text"), "start": answer["answer_start"]}


def _has_list(value: Any, name: str) -> bool:
    return isinstance(value, dict) and isinstance(value.get(name), list)


FORMATS = (FileFormat(read_squad, (".json",), by_content=True),)
