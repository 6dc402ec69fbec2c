"""Routes that write text: /v1/completions and /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from deltatune.serving.engine.requests import TokenEvent
from deltatune.serving.server.guard.bounds import Bounds
from deltatune.serving.server.guard.request_log import Call
from deltatune.serving.server.routes.error_answers import refusal_of
from deltatune.serving.server.routes.generation_answers import LAST_EVENT, AnswerForm, event, usage_of
from deltatune.serving.server.routes.generation_fields import (
    LARGEST_TOP,
    GenerationFields,
    read_generation,
    read_messages,
    read_prompts,
)
from deltatune.serving.server.routes.merged_streams import merged
from deltatune.serving.server.routes.request_fields import RequestFields
from deltatune.serving.server.routes.route_calls import answer_model, call_in, caller_of, json_answer, read_adapters
from deltatune.serving.service import Service
from deltatune.serving.texts.answer_stream import Answer, AnswerStream, Piece
from deltatune.serving.texts.invalid_request import InvalidRequest
from deltatune.serving.texts.prompt_forms import ModelPrompt
from deltatune.tasks.generation import Generate
from deltatune.tasks.in_context_generation import GenerateInContext
from deltatune.tasks.reasoning import Reason


@dataclass
class Writing:
    """A request whose answers are being written."""

    form: AnswerForm
    call: Call
    asked: GenerationFields
    prompts: Sequence[ModelPrompt]
    streams: Sequence[Answer]
    """Those of the first prompt first."""
    echo: bool = False
    best: int | None = None
    """Answers of each prompt that are kept, the likeliest ones."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(prompt.ids) for prompt in self.prompts)


def add_generation_routes(app: FastAPI, service: Service, bounds: Bounds) -> None:
    """Add the routes."""

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(await completion(RequestFields(await request.body()), call_in(request), service, bounds))

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await answer(await chat(RequestFields(await request.body()), call_in(request), service, bounds))


async def completion(fields: RequestFields, call: Call, service: Service, bounds: Bounds) -> Writing:
    """Read a request of /v1/completions and begin to answer it."""
    adapters = await read_adapters(fields, call, service)
    top = fields.integer("logprobs", 0, 0, LARGEST_TOP)
    asked = read_generation(
        fields,
        bounds,
        service.prompts.vocabulary,
        "max_tokens",
        None if fields.content.get("logprobs") is None else top,
    )
    echo, best_of = fields.flag("echo"), fields.integer("best_of", asked.choices, 1, bounds.choices)
    fields.refuse("suffix", "is not served: these models continue a text and fill no gap", "")
    rows = _inputs(fields, bounds.texts) if fields.content.get("input") is not None else None
    if rows is None:
        texts = read_prompts(fields, bounds.texts)
    elif fields.content.get("prompt") is not None:
        fields.wrong(
            "input", "and prompt exclude each other: a prompt is sent as it is, an input in the adapter's form"
        )
    fields.known.add("prompt")
    if echo and asked.logprobs:
        fields.wrong("echo", "with logprobs is not served: prompts have no log-probabilities here")
    if echo and rows is not None:
        fields.wrong("echo", "is for prompt; an input is put into the adapter's form")
    if best_of < asked.choices:
        fields.wrong("best_of", f"must be at least n={asked.choices}")
    if best_of > asked.choices and asked.stream:
        fields.wrong("best_of", "above n cannot be streamed: the best are known at the end")
    fields.finish()
    strip = False
    if rows is None:
        prompts = await service.raw_prompts(adapters, texts)
    else:
        task, prompts = await service.input_prompts(adapters, rows)
        if decodes_whole(task):
            return await _decoded(fields, asked, adapters, rows, prompts, call, service, bounds)
        asked, strip = _as_trained(asked, task), True
    chosen = replace(asked, sampling=_with_logprobs(asked, best_of), choices=best_of)
    form = AnswerForm("text", answer_model(adapters, fields, service.base), *_facts(service), asked.logprobs)
    writing = Writing(form, call, asked, prompts, (), echo, asked.choices if best_of > asked.choices else None)
    return await _begun(writing, chosen, adapters, service, bounds, strip)


async def chat(fields: RequestFields, call: Call, service: Service, bounds: Bounds) -> Writing:
    """Read a request of /v1/chat/completions and begin to answer it."""
    adapters = await read_adapters(fields, call, service)
    wanted, top = fields.flag("logprobs"), fields.integer("top_logprobs", 0, 0, LARGEST_TOP)
    if fields.content.get("top_logprobs") is not None and not wanted:
        fields.wrong("top_logprobs", "needs logprobs: true")
    tokens = "max_tokens" if fields.content.get("max_completion_tokens") is None else "max_completion_tokens"
    fields.known.update(("max_tokens", "max_completion_tokens"))
    asked = read_generation(fields, bounds, service.prompts.vocabulary, tokens, top if wanted else None)
    messages = read_messages(fields, bounds.texts)
    _refuse_chat_fields(fields)
    fields.finish()
    prompt = await service.chat_prompt(adapters, messages)
    if not asked.tokens_given:
        room = min(await service.default_tokens(adapters, prompt), bounds.max_tokens)
        asked = replace(asked, sampling=replace(asked.sampling, max_tokens=room))
    form = AnswerForm("chat", answer_model(adapters, fields, service.base), *_facts(service), asked.logprobs)
    return await _begun(Writing(form, call, asked, [prompt], ()), asked, adapters, service, bounds, False)


def _refuse_chat_fields(fields: RequestFields) -> None:
    fields.refuse("modalities", "must be ['text']", ["text"])
    for name in ("audio", "prediction", "web_search_options", "reasoning_effort", "verbosity"):
        fields.refuse(name, "is not served")
    fields.ignore("parallel_tool_calls")


def decodes_whole(task: Generate) -> bool:
    """Whether the answers of a task come at once: those of beam search, of chains of thought and of a prompt alone."""
    return task.beams > 1 or task.no_repeat_ngram > 0 or isinstance(task, (Reason, GenerateInContext))


async def _decoded(
    fields: RequestFields,
    asked: GenerationFields,
    adapters: dict[str, float],
    rows: Sequence[Any],
    prompts: Sequence[ModelPrompt],
    call: Call,
    service: Service,
    bounds: Bounds,
) -> Writing:
    """Answers as an adapter's task decodes them, which leaves a request nothing to choose."""
    chosen = [
        name for name in ("max_tokens", "logprobs", "best_of", "logit_bias") if fields.content.get(name) is not None
    ]
    chosen += [*asked.given, *(["n"] if asked.choices > 1 else [])]
    if chosen:
        raise InvalidRequest(
            f"{', '.join(adapters)} decodes as its task says, with beams, in steps or behind its own prompt; leave out "
            f"{', '.join(sorted(chosen))}, or send prompt instead of input",
            chosen[0],
        )
    call.tokens_in = sum(len(prompt.ids) for prompt in prompts)
    call.reserve(call.tokens_in)
    answers = await service.decode(adapters, rows, caller_of(call, bounds.request_seconds), asked.stops)
    form = AnswerForm("text", answer_model(adapters, fields, service.base), *_facts(service))
    return Writing(form, call, asked, prompts, answers)


def _inputs(fields: RequestFields, most: int) -> list[Any]:
    """`input`: what the adapter's form of prompts is put around: a text, an object of columns, or a list of those."""
    value = fields.raw("input")
    rows = value if isinstance(value, list) else [value]
    if not rows or len(rows) > most or not all(isinstance(row, (str, dict)) for row in rows):
        fields.wrong("input", f"must be a text, an object with the adapter's columns, or a list of 1 to {most} of them")
    return rows


def _as_trained(asked: GenerationFields, task: Generate) -> GenerationFields:
    """What the request does not say is as the adapter's task has it."""
    trained = {"temperature": task.temperature, "top_p": task.top_p, "top_k": task.top_k, "seed": task.seed}
    values: dict[str, Any] = {name: value for name, value in trained.items() if name not in asked.given}
    tokens: dict[str, Any] = {} if asked.tokens_given else {"max_tokens": task.new_tokens}
    return replace(asked, sampling=replace(asked.sampling, **values, **tokens))


def _with_logprobs(asked: GenerationFields, best_of: int) -> Any:
    """The sampling, with log-probabilities where the best of several answers are chosen by them."""
    if best_of > asked.choices and asked.sampling.logprobs is None:
        return replace(asked.sampling, logprobs=0)
    return asked.sampling


def _facts(service: Service) -> tuple[str, Any]:
    return f"fp_{service.base.fingerprint}", service.token_pieces


async def _begun(
    writing: Writing,
    asked: GenerationFields,
    adapters: dict[str, float],
    service: Service,
    bounds: Bounds,
    strip: bool,
) -> Writing:
    """Submit all answers; if one is refused, none runs."""
    call, prompts = writing.call, writing.prompts
    answers = len(prompts) * asked.choices
    if answers > bounds.texts:
        raise InvalidRequest(f"{answers:,} answers are asked for; at most {bounds.texts} are written together", "n")
    call.tokens_in = writing.prompt_tokens
    call.reserve(writing.prompt_tokens + answers * asked.sampling.max_tokens)
    streams: list[AnswerStream] = []
    caller = caller_of(call, bounds.request_seconds)
    try:
        for prompt in prompts:
            streams += await service.write(
                adapters, prompt, asked.sampling, caller, stops=asked.stops, choices=asked.choices, strip=strip
            )
    except BaseException:
        for stream in streams:
            stream.cancel()
        raise
    writing.streams = streams
    return writing


# ---- answers


async def answer(writing: Writing) -> Response:
    """The answers as one JSON object, or as a stream of events."""
    events = _counted(writing)
    if not writing.asked.stream:
        return json_answer(await _whole(writing, events))
    first = await anext(events, None)  # an error before the first part still has a status of its own
    return StreamingResponse(_chunks(writing, first, events), media_type="text/event-stream; charset=utf-8")


async def _counted(writing: Writing) -> AsyncIterator[tuple[int, Piece | None]]:
    """The pieces of all answers; tokens are counted as they come."""
    counted = 0
    async for number, piece in merged(writing.streams):
        written = sum(stream.generated for stream in writing.streams)
        if written > counted:
            writing.call.token_(written - counted)
            counted = written
        yield number, piece


async def _whole(writing: Writing, events: AsyncIterator[tuple[int, Piece | None]]) -> dict[str, Any]:
    texts = ["" for _ in writing.streams]
    tokens: list[list[tuple[int, TokenEvent]]] = [[] for _ in writing.streams]
    async for number, piece in events:
        if piece is not None:
            texts[number] += piece.text
            tokens[number] += piece.tokens
    each = len(writing.streams) // len(writing.prompts)
    groups = [range(start, start + each) for start in range(0, len(writing.streams), each)]
    kept = list(chain.from_iterable(_likeliest(writing, group) for group in groups))
    choices = [
        writing.form.choice(
            place, _echo(writing, number, each) + texts[number], tokens[number], writing.streams[number].reason
        )
        for place, number in enumerate(kept)
    ]
    cut = sum(prompt.truncated for prompt in writing.prompts)
    more = {"truncated": cut} if cut else {}
    return writing.form.whole(choices, usage_of(writing.prompt_tokens, writing.streams), **more)


def _likeliest(writing: Writing, group: range) -> list[int]:
    """The numbers of the answers that are kept: those with the highest mean log-probability of a token."""
    if writing.best is None:
        return list(group)
    means = {n: writing.streams[n].logprob / max(1, writing.streams[n].generated) for n in group}
    return sorted(group, key=lambda n: -means[n])[: writing.best]


def _echo(writing: Writing, number: int, each: int) -> str:
    return writing.prompts[number // each].text if writing.echo else ""


async def _chunks(
    writing: Writing, first: tuple[int, Piece | None] | None, events: AsyncIterator[tuple[int, Piece | None]]
) -> AsyncIterator[str]:
    """The events of a stream. An error in the middle is an event of its own, and the last one."""
    form, with_usage = writing.form, writing.asked.usage_in_stream
    each = len(writing.streams) // len(writing.prompts)
    try:
        for number in range(len(writing.streams)):
            if form.kind == "chat":
                yield form.chunk([form.delta(number, None, role=True)], None, with_usage)
            elif writing.echo:
                yield form.chunk([form.delta(number, Piece(_echo(writing, number, each)))], None, with_usage)
        pending = first
        while pending is not None:
            number, piece = pending
            reason = writing.streams[number].reason if piece is None else None
            yield form.chunk([form.delta(number, piece, reason)], None, with_usage)
            pending = await anext(events, None)
        if with_usage:
            yield form.chunk([], usage_of(writing.prompt_tokens, writing.streams), True)
        yield LAST_EVENT
    except Exception as error:
        refusal = refusal_of(error)
        writing.call.error = refusal.code or type(error).__name__
        yield event({
            "error": {
                "message": refusal.message, "type": refusal.type, "param": refusal.param, "code": refusal.code
            }
        })  # fmt: skip
        if refusal.status == 500:
            raise  # a bug: the guard writes it into the log
    finally:
        for stream in writing.streams:
            stream.cancel()
