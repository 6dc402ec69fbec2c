"""Routes that read texts: /v1/embeddings, /v1/classify, /v1/tag and /v1/answer."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from deltatune.core.input_validation.field_validation import shortened
from deltatune.serving.server.guard.bounds import Bounds
from deltatune.serving.server.routes.generation_fields import IGNORED, read_texts
from deltatune.serving.server.routes.request_fields import RequestFields
from deltatune.serving.server.routes.route_calls import answer_model, call_in, caller_of, json_answer, read_adapters
from deltatune.serving.service import RowAnswers, Service
from deltatune.serving.texts.served_adapter import ANSWER, CLASSIFY, TAG
from deltatune.serving.texts.tag_spans import tag_spans
from deltatune.tasks.tagging import Tag

ReadRows = Callable[[RequestFields, int], Sequence[Any]]
Shape = Callable[[RowAnswers, int], dict[str, Any]]


def add_row_routes(app: FastAPI, service: Service, bounds: Bounds) -> None:
    """Add the routes."""

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        return await embedded(RequestFields(await request.body()), request, service, bounds)

    for path, read, shape in ((CLASSIFY, _inputs, _labels), (TAG, _words, _tags), (ANSWER, _questions, _span)):
        app.add_api_route(path, _route(path, read, shape, service, bounds), methods=["POST"])


async def embedded(fields: RequestFields, request: Request, service: Service, bounds: Bounds) -> Response:
    """Vectors of texts."""
    call = call_in(request)
    adapters = await read_adapters(fields, call, service)
    texts = read_texts(fields, bounds.texts)
    form = fields.choice("encoding_format", ("float", "base64"))
    size = fields.integer("dimensions", 0, 1, 2**31)
    fields.ignore(*IGNORED)
    fields.finish()
    vectors, tokens = await service.embed(adapters, texts, caller_of(call, bounds.request_seconds), call.reserve)
    call.tokens_in = tokens
    if size and any(len(vector) != size for vector in vectors):
        width = len(vectors[0])
        fields.wrong(
            "dimensions", f"must be {width}, or left out: the first parts of these vectors mean nothing by themselves"
        )
        fields.finish()
    data = [
        {"object": "embedding", "index": number, "embedding": _encoded(vector, form)}
        for number, vector in enumerate(vectors)
    ]
    content = {
        "object": "list",
        "data": data,
        "model": answer_model(adapters, fields, service.base),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return json_answer(content)


def _encoded(vector: Any, form: str) -> Any:
    values = np.asarray(vector, dtype="<f4")
    return base64.b64encode(values.tobytes()).decode() if form == "base64" else values.tolist()


def _route(path: str, read: ReadRows, shape: Shape, service: Service, bounds: Bounds) -> Callable[..., Any]:
    """A route whose adapters answer rows by their task."""

    async def rows_route(request: Request) -> Response:
        call, fields = call_in(request), RequestFields(await request.body())
        adapters = await read_adapters(fields, call, service)
        rows = read(fields, bounds.texts)
        part = fields.text("part") if fields.content.get("part") is not None else None
        fields.known.add("part")
        fields.ignore(*IGNORED)
        fields.finish()
        caller = caller_of(call, bounds.request_seconds)
        answers = await service.answer_rows(adapters, rows, path, caller, part, call.reserve)
        call.tokens_in = answers.tokens
        content = {
            "object": "list",
            "model": answer_model(adapters, fields, service.base),
            "data": [{"index": number, **shape(answers, number)} for number in range(len(answers.answers))],
            "usage": {"prompt_tokens": answers.tokens, "total_tokens": answers.tokens},
            "truncated": answers.truncated,
        }
        return json_answer(content)

    return rows_route


# ---- rows of requests


def _inputs(fields: RequestFields, most: int) -> Sequence[Any]:
    """`input`: a text, an object of columns, or a list of texts, objects or pairs."""
    return _several(fields, "input", most, (str, dict, list))


def _words(fields: RequestFields, most: int) -> Sequence[Any]:
    """`input`: a text or texts, split at blanks; or `tokens`: the words of a text, or of several."""
    tokens = fields.raw("tokens")
    if tokens is None:
        return _several(fields, "input", most, (str, dict))
    if fields.raw("input") is not None:
        fields.wrong("tokens", "and input exclude each other")
    several = tokens if isinstance(tokens, list) and tokens and isinstance(tokens[0], list) else [tokens]
    good = len(several) <= most and all(
        isinstance(words, list) and words and all(isinstance(word, str) for word in words) for words in several
    )
    if not good:
        fields.wrong("tokens", f"must be a list of words, or 1 to {most} such lists")
        return []
    return several


def _questions(fields: RequestFields, most: int) -> Sequence[Any]:
    """`question` and `context`; or `input`: a list of objects or pairs of the two."""
    question, context = fields.raw("question"), fields.raw("context")
    if question is None and context is None:
        return _several(fields, "input", most, (dict, list))
    if fields.raw("input") is not None:
        fields.wrong("input", "and question exclude each other")
    for name, value in (("question", question), ("context", context)):
        if not isinstance(value, str):
            fields.wrong(name, f"must be a text, not {shortened(value)}" if value is not None else "is missing")
    return [[question, context]]


def _several(fields: RequestFields, name: str, most: int, kinds: tuple[type, ...]) -> Sequence[Any]:
    value = fields.raw(name)
    if value is None:
        fields.wrong(name, "is missing")
        return []
    rows = value if isinstance(value, list) else [value]
    if not rows or len(rows) > most or not all(isinstance(row, kinds) for row in rows):
        texts = "a text, an object of columns, or a list" if str in kinds else "an object of columns, or a list"
        fields.wrong(name, f"must be {texts} of 1 to {most} of them")
        return []
    return rows


# ---- answers


def _labels(answers: RowAnswers, number: int) -> dict[str, Any]:
    """`label`, `score` and `scores` of a class; `labels` and `scores` of several; `score` of a number."""
    answer = answers.answers[number]
    return {"score": answer["value"]} if "value" in answer else answer


def _tags(answers: RowAnswers, number: int) -> dict[str, Any]:
    """The words, a tag for each, and the entities that the tags mark."""
    task, tags = answers.task, answers.answers[number]["tags"]
    assert isinstance(task, Tag)
    words: Any = answers.rows[number][task.text[0]]
    return {"tokens": words, "tags": tags, "spans": tag_spans(words, tags, task.tags)}


def _span(answers: RowAnswers, number: int) -> dict[str, Any]:
    """The answer, where it starts and ends in the context, in characters, and its score."""
    return answers.answers[number]
