"""What an adapter is for: its task, read from its folder, and the route that fits it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.core.union import Union
from deltatune.serving.served_base import ServedBase, public_name
from deltatune.serving.serving_errors import AdapterUnavailable, UnknownAdapter
from deltatune.serving.texts.invalid_request import InvalidRequest
from deltatune.store.adapter_store import AdapterStore
from deltatune.store.adapter_store.store_entry import Entry
from deltatune.store.peft.peft_folder import StoredPeft
from deltatune.store.stored_adapter import StoredAdapter
from deltatune.tasks import Mixture, Task, task_from_json
from deltatune.tasks.classification import Classify
from deltatune.tasks.extractive_qa import ExtractiveQA
from deltatune.tasks.generation import Generate
from deltatune.tasks.language_modeling import LanguageModel
from deltatune.tasks.tagging import Tag
from deltatune.training.open_session import check_tokenizer

COMPLETIONS, CLASSIFY, TAG, ANSWER = "/v1/completions", "/v1/classify", "/v1/tag", "/v1/answer"
EMBEDDINGS = "/v1/embeddings"


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter as requests see it."""

    name: str
    revision: str
    method: str
    """The method's text, such as LoRA(r=8)."""
    task: Task | None
    """None for adapters that were not trained by `deltatune train`, such as PEFT's."""
    length: int = 0
    """Positions of the model that its virtual tokens and prefixes may take."""

    def part(self, name: str | None) -> Task | None:
        """Its task, or that of one part of a mixture. Raises InvalidRequest for a part that there is not."""
        if not isinstance(self.task, Mixture):
            if name is not None:
                raise InvalidRequest(f"{self.name} has one task, no mixture; leave part out", "part")
            return self.task
        if name is None:
            parts = ", ".join(self.task.parts)
            raise InvalidRequest(f"{self.name} has several tasks; name one with part: {parts}", "part")
        try:
            return self.task.part(name)
        except DeltatuneError as error:
            raise InvalidRequest(str(error), "part") from None


def kind_of(task: Task | None) -> str:
    """The kind of a task in one word: classify, regression, tag, span, generate, lm, mixture, or the task's name."""
    if task is None:
        return "unknown"
    if isinstance(task, Classify) and not task.labels:
        return "regression"
    return "classify" if isinstance(task, Classify) else task.name


def noun_of(task: Task) -> str:
    """What an adapter for a task is, with its article."""
    nouns = {
        "classify": "a classifier", "regression": "a regression", "tag": "a tagger", "span": "a question answerer",
        "generate": "a text generator", "reason": "a text generator", "generate-in-context": "a text generator",
        "lm": "a language model", "mixture": "a mixture", "prefer": "a text generator",
    }  # fmt: skip
    return nouns.get(kind_of(task), f"for the task {task.name!r}")


def route_of(task: Task | None) -> str:
    """The route that answers what the task is for; "" where there is none."""
    if task is None or isinstance(task, (Generate, LanguageModel)):
        return COMPLETIONS
    routes: Sequence[tuple[type[Task], str]] = ((Classify, CLASSIFY), (Tag, TAG), (ExtractiveQA, ANSWER))
    return next((route for kind, route in routes if isinstance(task, kind)), "")


def refuse_route(name: str, task: Task | None, route: str) -> InvalidRequest:
    """The error for a request on a route that does not fit the adapter's task; it names the one that does."""
    if task is None:
        why = f"{name} does not say what it was trained for, so that it has no labels to answer with"
        return InvalidRequest(f"{why}; POST {COMPLETIONS} or {EMBEDDINGS}", "model", "wrong_route")
    fits = route_of(task) or EMBEDDINGS
    return InvalidRequest(f"{name} is {noun_of(task)}; POST {fits} instead of {route}", "model", "wrong_route")


class ServedAdapters:
    """The adapters of a store, each read when it is first asked for, and again when it was replaced."""

    def __init__(self, store: AdapterStore, tokenizer: PreTrainedTokenizerBase, base: ServedBase) -> None:
        self.store, self.tokenizer, self.base = store, tokenizer, base
        self._read: dict[str, ServedAdapter] = {}
        self._guard = threading.Lock()

    def of(self, name: str) -> ServedAdapter:
        """An adapter by its name. Raises UnknownAdapter, and DeltatuneError for one that is damaged."""
        if name not in self.store:
            with self._guard:
                self._read.pop(name, None)
            raise UnknownAdapter(f"there is no adapter {name!r}")
        revision = self.store.revision(name)
        with self._guard:
            known = self._read.get(name)
        if known is not None and known.revision == revision:
            return known
        try:
            stored = self.store.read(name)
            adapter = self._adapter(name, revision, stored)
        except DeltatuneError as error:
            if name not in self.store:
                raise UnknownAdapter(f"there is no adapter {name!r}") from None
            raise AdapterUnavailable(str(error)) from error
        with self._guard:
            self._read[name] = adapter
        return adapter

    def _adapter(self, name: str, revision: str, stored: StoredAdapter | StoredPeft) -> ServedAdapter:
        if not isinstance(stored, StoredAdapter):  # what it is depends on the model that it is fitted to
            return ServedAdapter(name, revision, "PEFT", None)
        check_tokenizer(name, self.tokenizer, stored.extra)
        task, method = stored.extra.get("task"), stored.method
        members = method.members if isinstance(method, Union) else (method,)
        length = sum(int(getattr(member, "length", 0)) for member in members)
        return ServedAdapter(name, revision, repr(method), None if task is None else task_from_json(task), length)

    def has(self, name: str) -> bool:
        """Whether there is an adapter of this name. Raises InvalidRequest for one of another base."""
        if name not in self.store:
            return False
        entry = self.store.entry(name)
        if not self.base.fits(entry):
            raise InvalidRequest(
                f"{name} was trained on another base, {public_name(entry.base.name) or 'without a name'}, and is not "
                f"served on {self.base.name}",
                "model",
                "other_base",
                404,
            )
        return True

    def entries(self, text: str | None = None, task: str | None = None) -> list[Entry]:
        """What the store knows of this base's adapters, or of those of a kind of task with every word of `text`."""
        return [entry for entry in self.store.list(text=text or None, task=task or None) if self.base.fits(entry)]
