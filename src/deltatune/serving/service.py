"""The service: text in, text out, on top of the engine. It knows tasks, templates and stop strings, but no HTTP."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from deltatune.serving.engine.engine import Engine
from deltatune.serving.engine.requests import DoneEvent, GenerateRequest, Request, RowsEvent, RowsRequest, Sampling
from deltatune.serving.engine.row_passes import PREDICTED
from deltatune.serving.engine.ticket import Ticket
from deltatune.serving.residency import Residency
from deltatune.serving.served_base import ServedBase
from deltatune.serving.serving_errors import EngineStopped, RequestTimeout
from deltatune.serving.texts.adapter_rows import common_task, rows_for
from deltatune.serving.texts.answer_stream import AnswerStream, WholeAnswer
from deltatune.serving.texts.detokenizer import TokenPieces
from deltatune.serving.texts.invalid_request import InvalidRequest
from deltatune.serving.texts.prompt_forms import ModelPrompt, PromptForms, shared_form
from deltatune.serving.texts.row_encoding import LONG, RowEncoder, characters, most_tokens, token_count
from deltatune.serving.texts.served_adapter import (
    COMPLETIONS,
    ServedAdapter,
    ServedAdapters,
    refuse_route,
    route_of,
)
from deltatune.tasks import Mixture, Task
from deltatune.tasks.generation import Generate
from deltatune.tasks.label_words.label_words import LabelWords

T = TypeVar("T")
Reserve = Callable[[int], None]
"""Told how many tokens a request will read before it is submitted; may refuse it."""
LONGEST_ANSWER = 1024
"""Tokens of an answer whose request does not say how many, if the model has room for them."""


@dataclass(frozen=True)
class Caller:
    """On whose behalf, and for how long, the engine works."""

    cache_key: str = ""
    """Callers with different keys share nothing of the prompt cache."""
    timeout: float | None = None
    """Seconds that a request may take."""


@dataclass(frozen=True)
class RowAnswers:
    """The answers for rows."""

    answers: list[dict[str, Any]]
    """One plain dict a row, as `Task.decode` makes them."""
    rows: list[dict[str, Any]]
    """The rows as the task read them."""
    task: Task
    tokens: int = 0
    """Tokens that were read."""
    truncated: int = 0
    """Rows that were longer than the task allows."""


class Service:
    """Texts for the engine, and its answers as texts. Its coroutines belong to one event loop."""

    def __init__(
        self,
        engine: Engine,
        residency: Residency,
        store: Any,
        tokenizer: PreTrainedTokenizerBase,
        base: ServedBase,
    ) -> None:
        """`store`: an AdapterStore, the same that `residency` reads."""
        self.engine, self.residency, self.store, self.base = engine, residency, store, base
        self.adapters = ServedAdapters(store, copy.deepcopy(tokenizer), base)
        most = base.positions or engine.limits.request_tokens
        self.prompts = PromptForms(self.adapters.tokenizer, base.family == "decoder", most)
        self.tokenizer = tokenizer = copy.deepcopy(tokenizer)  # one for each thread: they change while they cut texts
        self.token_pieces = TokenPieces(tokenizer)
        self.rows, self.long_rows = RowEncoder(tokenizer, base), RowEncoder(tokenizer, base)
        self._texts = ThreadPoolExecutor(1, "texts")
        self._files = ThreadPoolExecutor(4, "adapters")

    def close(self) -> None:
        """End its threads. The engine is the caller's."""
        self._texts.shutdown(wait=False, cancel_futures=True)
        for encoder in (self.rows, self.long_rows):
            encoder.close()
        self._files.shutdown(wait=False, cancel_futures=True)

    # ---- adapters

    async def files(self, work: Callable[[], T]) -> T:
        """Do something that may read files, without holding up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._files, work)

    async def adapter(self, name: str) -> ServedAdapter:
        """An adapter by its name. Raises UnknownAdapter, and DeltatuneError for one that is damaged."""
        return await self.files(lambda: self.adapters.of(name))

    def states(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Whether each adapter is in memory, how many requests use it now and have used it, and when the last did."""
        return {name: self._state(name) for name in names}

    async def load(self, name: str) -> None:
        """Bring an adapter into memory."""
        await asyncio.wrap_future(self.residency.load(name))

    async def unload(self, name: str) -> None:
        """Take an adapter out of memory once no request uses it."""
        await asyncio.wrap_future(self.residency.unload(name))

    async def reload(self, name: str) -> None:
        """Read an adapter anew."""
        await asyncio.wrap_future(self.residency.reload(name))

    # ---- text

    async def raw_prompts(self, adapters: Mapping[str, float], prompts: Sequence[str | list[int]]) -> list[ModelPrompt]:
        """Texts or token ids as they are."""
        await self.check_writes(adapters, COMPLETIONS)
        return await self._in_text(lambda: [self.prompts.raw(prompt) for prompt in prompts])

    async def chat_prompt(self, adapters: Mapping[str, float], messages: Sequence[Mapping[str, str]]) -> ModelPrompt:
        """A conversation in the form of its adapters, or in the model's chat template."""
        tasks = await self.check_writes(adapters, "/v1/chat/completions")
        name, task = shared_form(adapters, tasks, "messages")
        return await self._in_text(lambda: self.prompts.chat(messages, name, task))

    async def input_prompts(
        self, adapters: Mapping[str, float], rows: Sequence[str | Mapping[str, Any]]
    ) -> tuple[Generate, list[ModelPrompt]]:
        """Inputs in the form of their adapter's prompts, as `deltatune predict` makes them, and its task."""
        tasks = await self.check_writes(adapters, COMPLETIONS)
        name, task = shared_form(adapters, tasks, "input")
        if not isinstance(task, Generate):
            what = f"{name} has no form of prompts" if name else "the base has no form of prompts"
            raise InvalidRequest(f"{what}; send prompt instead of input", "input")
        if task.compares_texts:
            raise InvalidRequest(
                f"{name} chooses demonstrations for each input, as `deltatune predict` does; a prompt that all inputs "
                "share is served",
                "model",
            )
        named = rows_for(task, rows, name)
        form = task
        return task, await self._in_text(lambda: self.prompts.rows(form, named))

    async def check_writes(self, adapters: Mapping[str, float], route: str) -> list[Task | None]:
        """The adapters' tasks. Raises InvalidRequest if one of them, or the base, does not write text."""
        found = [await self.adapter(name) for name in adapters]
        for adapter in found:
            task = adapter.task
            if not isinstance(task, Mixture) and route_of(task) != COMPLETIONS:
                raise refuse_route(adapter.name, task, route)
        if not self.base.generates:
            raise InvalidRequest(
                f"{self.base.name} is an {self.base.family} and writes no text; POST /v1/embeddings, or ask an adapter "
                "for labels, tags or answers",
                "model",
                "wrong_route",
            )
        return [None if isinstance(adapter.task, Mixture) else adapter.task for adapter in found]

    async def default_tokens(self, adapters: Mapping[str, float], prompt: ModelPrompt) -> int:
        """Tokens that an answer may have whose request does not say: what the model has room for, within limits."""
        positions = self.base.positions
        if positions is None or self.base.family != "decoder":
            return LONGEST_ANSWER
        room = positions - len(prompt.ids)
        room -= sum([(await self.adapter(name)).length for name in adapters])
        return max(1, min(room, LONGEST_ANSWER))

    async def write(
        self,
        adapters: Mapping[str, float],
        prompt: ModelPrompt,
        sampling: Sampling,
        caller: Caller,
        *,
        stops: Sequence[str] = (),
        choices: int = 1,
        strip: bool = False,
    ) -> list[AnswerStream]:
        """Begin to write answers to one prompt. Raises what the engine refuses a request with.

        With a seed, the first choice is drawn from it and the others from seeds made of it.
        """
        sampling = replace(sampling, stop_ids=sampling.stop_ids | prompt.stops)
        streams: list[AnswerStream] = []
        try:
            for number in range(choices):
                seed = None if sampling.seed is None else choice_seed(sampling.seed, number)
                request = GenerateRequest(
                    prompt.ids, adapters, replace(sampling, seed=seed), caller.timeout, caller.cache_key
                )
                ticket = await self._submit(request)
                streams.append(AnswerStream(ticket, self.tokenizer, stops, strip))
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        return streams

    async def decode(
        self, adapters: Mapping[str, float], rows: Sequence[Any], caller: Caller, stops: Sequence[str]
    ) -> list[WholeAnswer]:
        """Answers to inputs as their adapter's task decodes them: with its beams, or by its chains of thought."""
        answers = await self.answer_rows(adapters, rows, COMPLETIONS, caller)
        texts = [str(answer["text"]) for answer in answers.answers]
        tokens = [len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts]
        return [WholeAnswer(text, count, stops) for text, count in zip(texts, tokens, strict=True)]

    # ---- rows

    async def answer_rows(
        self,
        adapters: Mapping[str, float],
        rows: Sequence[Any],
        route: str,
        caller: Caller,
        part: str | None = None,
        reserve: Reserve = lambda tokens: None,
    ) -> RowAnswers:
        """Labels, tags, spans or texts for rows, exactly as `deltatune predict` gives them.

        A row is an object with the task's columns, or what `_named` makes one of. Raises InvalidRequest for adapters
        whose task another route answers, and for adapters with different tasks. `reserve` is told of all tokens before
        the engine has any work with them.
        """
        found = [await self.adapter(name) for name in adapters]
        if not found:
            raise InvalidRequest(f"the base has no task of its own; {route} needs an adapter", "model", "wrong_route")
        tasks = [adapter.part(part) for adapter in found]
        for adapter, each in zip(found, tasks, strict=True):
            if each is None or route_of(each) != route:
                raise refuse_route(adapter.name, each, route)
        task = common_task([adapter.name for adapter in found], [each for each in tasks if each is not None])
        named = rows_for(task, rows, found[0].name)
        whole = isinstance(found[0].task, Mixture) or isinstance(task, (Generate, LabelWords))
        if whole and len(found) > 1:
            raise InvalidRequest(
                f"{found[0].name} answers with more than a head; give one adapter, not {len(found)}", "model"
            )
        asked: Task = found[0].task if isinstance(found[0].task, Mixture) else task
        encoder = self.long_rows if characters(named) > LONG else self.rows
        shaped = await encoder.run(lambda: encoder.shaped(task, named))
        encoded = await encoder.run(lambda: encoder.encode(task, shaped, PREDICTED if whole else None))
        reserve(token_count(encoded) if encoded else most_tokens(task, len(shaped)))
        if whole:
            request = RowsRequest(shaped, adapters, "task", caller.timeout, asked, part, encoded)
        else:
            request = RowsRequest(encoded[0], adapters, "logits", caller.timeout, asked)
        event = await self._rows(request)
        answers = event.values if whole else await encoder.run(lambda: task.collect(event.values, encoded[0]))
        read = encoded if event.encoded is None else [event.encoded]
        truncated = sum(each.truncated for each in read)
        return RowAnswers(task.decode(answers), shaped, task, token_count(read), truncated)

    async def embed(
        self,
        adapters: Mapping[str, float],
        inputs: Sequence[str | list[int]],
        caller: Caller,
        reserve: Reserve = lambda tokens: None,
    ) -> tuple[list[Any], int]:
        """A vector (D,) of length 1 for each text, the mean of its last hidden states; and the number of tokens."""
        for name in adapters:
            await self.adapter(name)
        rows = await self._in_text(lambda: [self.prompts.token_row(each) for each in inputs])
        tokens = sum(len(row["input_ids"]) for row in rows)
        reserve(tokens)
        event = await self._rows(RowsRequest(rows, adapters, "embedding", caller.timeout))
        return list(event.values), tokens

    # ---- inside

    def _state(self, name: str) -> dict[str, Any]:
        resident = self.residency.find(name)
        if resident is None:
            return {"state": "stored", "running": self.residency.pins(name), "requests": 0, "last_used": None}
        used = resident.last_used if resident.requests else None
        return {"state": "resident", "running": resident.pins, "requests": resident.requests, "last_used": used}

    async def _rows(self, request: RowsRequest) -> RowsEvent:
        ticket = await self._submit(request)
        answer: RowsEvent | None = None
        try:
            async for event in ticket:
                if isinstance(event, RowsEvent):
                    answer = event
                elif isinstance(event, DoneEvent) and event.error is not None:
                    raise event.error
                elif isinstance(event, DoneEvent) and event.reason == "timeout":
                    raise RequestTimeout("the request took longer than it may; send fewer rows, or try again later")
        finally:
            if ticket.done is None:
                ticket.cancel()
        if answer is None:
            raise EngineStopped("the server is about to stop and has ended the request; send it again")
        return answer

    async def _submit(self, request: Request) -> Ticket:
        """Submit a request; if its client goes meanwhile, it is cancelled."""
        pending = self._files.submit(self.engine.submit, request)
        try:
            return await asyncio.wrap_future(pending)
        except asyncio.CancelledError:
            pending.add_done_callback(_cancel_ticket)
            raise

    async def _in_text(self, work: Callable[[], T]) -> T:
        """Do something with the tokenizer of the prompts."""
        return await asyncio.get_running_loop().run_in_executor(self._texts, work)


def choice_seed(seed: int, number: int) -> int:
    """The seed of one of several choices: the first one's is the request's own."""
    return (seed + number * 0x9E3779B97F4A7C15) % 2**63 if number else seed


def _cancel_ticket(pending: Any) -> None:
    if not pending.cancelled() and pending.exception() is None:
        pending.result().cancel()
