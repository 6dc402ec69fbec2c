"""SQuAD's nested JSON, 1.1 and 2.0 -> one row a question."""

from __future__ import annotations

from typing import Any


def is_squad(value: Any) -> bool:
    """Whether a JSON object has SQuAD's form: data, in it paragraphs."""
    articles = value.get("data") if isinstance(value, dict) else None
    return isinstance(articles, list) and bool(articles) and all(_has(article, "paragraphs") for article in articles)


def rows(value: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows {"id", "title", "question", "context", "answers"}, and problems that name the article.

    Answers are [{"text", "start"}], none where the question is marked as impossible.
    """
    found: list[dict[str, Any]] = []
    problems = []
    for number, article in enumerate(value["data"], start=1):
        for paragraph in article["paragraphs"]:
            if not _has(paragraph, "qas") or not isinstance(paragraph.get("context"), str):
                problems.append(f"article {number} has a paragraph without context or qas")
                continue
            for question in paragraph["qas"]:
                if not isinstance(question, dict) or "question" not in question:
                    problems.append(f"article {number} has an entry in qas without question")
                    continue
                found.append(_row(question, paragraph["context"], article.get("title", "")))
    return found, problems


def _row(question: dict[str, Any], context: str, title: str) -> dict[str, Any]:
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
        return answer  # whoever reads the row says what is wrong with it
    return {"text": answer.get("text"), "start": answer["answer_start"]}


def _has(value: Any, name: str) -> bool:
    return isinstance(value, dict) and isinstance(value.get(name), list)
