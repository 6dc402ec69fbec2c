"""The prompts of a task sent to an endpoint: answers as a model on this machine would give them, ready to be scored.

endpoint = CachedEndpoint(OpenAICompatible("http://localhost:8000/v1", "my-model"), "answers.jsonl")
task = ChainOfThought(shots=4).reason(data.text, data.label, data.train)
asked = ask(endpoint, task, data.test)
task.score(asked.answers, references(task, data.test))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deltatune.core.errors import DeltatuneError
from deltatune.prompting.endpoints.cached_endpoint import CachedEndpoint, EndpointCost
from deltatune.prompting.endpoints.endpoint import Completion, Request, SamplingParams
from deltatune.tasks.generation import Generate
from deltatune.tasks.in_context_generation import GenerateInContext
from deltatune.tasks.label_words.label_words import DEMONSTRATIONS, LabelWords
from deltatune.tasks.prompts.prompt_encoding import CHAT_COLUMN
from deltatune.tasks.prompts.prompt_format import alpaca_prompt, fill_template, plain_prompt
from deltatune.tasks.prompts.templates import Template
from deltatune.tasks.reasoning import Reason
from deltatune.tasks.row_columns import column, text_column
from deltatune.tasks.task import Row, Task

OnAnswer = Callable[[int, int], None]
"""Called with the number of requests that are answered and of all in this stage."""

BLANK = "____"
"""The blank in a prompt for a model that answers instead of continuing."""
WORD_TOKENS = 16
"""Tokens that a model may take for a label word, besides those of its letters."""
SHARE = 1e-3
"""What a class without any vote counts, so that its logit is finite."""
_LEAD = re.compile(
    r"(?:\W|_)*(?:(?:the\s+)?(?:correct\s+|right\s+|final\s+)?answer(?:\s+is|\s*:)(?:\W|_)*)?", re.IGNORECASE
)


@dataclass(frozen=True)
class Asked:
    """The answers of an endpoint."""

    answers: Any
    """What `Session.predict` returns: the input of `task.decode` and `task.score`."""
    cost: EndpointCost = field(default_factory=EndpointCost)
    """Calls, tokens and retries, of all that this endpoint was asked."""
    unmatched: int = 0
    """Texts that none of the label words begin; they are no vote for any class."""
    notes: tuple[str, ...] = ()
    """What a user must know, in sentences."""


def ask(endpoint: CachedEndpoint, task: Task, rows: Sequence[Row], progress: OnAnswer | None = None) -> Asked:
    """The answers for N rows of a task of label words, of reasoning or of generation.

    Raises DeltatuneError for other tasks, for prompts that no text can show (virtual tokens, calibrated scores), and
    where a request fails: what was answered is in the endpoint's cache.
    """
    if isinstance(task, LabelWords):
        return _label_words(endpoint, task, rows, progress)
    if isinstance(task, Reason):
        return _reasoned(endpoint, task, rows, progress)
    if isinstance(task, Generate):
        return _generated(endpoint, task, rows, progress)
    raise DeltatuneError(
        f"a server continues texts, and this task reads what it does not give: {task.describe()}. Tasks for an "
        "endpoint: classes by label words, chains of thought, generated texts"
    )


def references(task: Task, rows: Sequence[Row]) -> Any:
    """The references of labelled rows, as `task.score` reads them; no tokenizer is needed."""
    if isinstance(task, LabelWords):
        return np.asarray(task.class_numbers(column(rows, task.label)))
    if isinstance(task, Reason):
        return task.references(rows)
    return [list(row.get("references") or text_column([row], task.label)) for row in rows]


# ---- chains of thought and other texts


def _reasoned(endpoint: CachedEndpoint, task: Reason, rows: Sequence[Row], progress: OnAnswer | None) -> Asked:
    for name in task.text:
        text_column(rows, name)
    params = SamplingParams(
        max_tokens=task.chain_tokens,
        temperature=task.chain_temperature,
        top_p=task.top_p,
        stop=(task.stop_text,),
        seed=task.seed,
    )
    prompts = [task.chain_prompt(row) for row in rows]
    requests = [Request(prompt, params).sample(number) for prompt in prompts for number in range(task.samples)]
    chains = [task.cut(completion.text) for completion in _completed(endpoint, requests, progress)]
    ends = [""] * len(chains)
    if task.two_stages:
        second = SamplingParams(max_tokens=task.answer_tokens, stop=(task.stop_text,), seed=task.seed)
        asked = [
            Request(task.answer_prompt(prompts[i // task.samples], chain), second) for i, chain in enumerate(chains)
        ]
        ends = [task.cut(completion.text) for completion in _completed(endpoint, asked, progress)]
    finished = [task.finished(chain, end) for chain, end in zip(chains, ends, strict=True)]
    answers = [task.vote(finished[i * task.samples : (i + 1) * task.samples]) for i in range(len(rows))]
    notes = [f"top_k={task.top_k} is not part of the API and was not sent"] if task.top_k else []
    empty = sum(not answer["answer"] for answer in answers)
    if empty:
        notes.append(f"{empty} of {len(answers)} texts hold no answer of the kind {task.answer!r}; they count as wrong")
    return Asked(answers, endpoint.cost, notes=tuple(notes))


def _generated(endpoint: CachedEndpoint, task: Generate, rows: Sequence[Row], progress: OnAnswer | None) -> Asked:
    if CHAT_COLUMN in task.text:
        raise DeltatuneError("conversations cannot be sent to an endpoint, which takes one text; name columns of texts")
    if task.beams > 1 or task.no_repeat_ngram:
        raise DeltatuneError("an endpoint has no beams and no n-gram blocking; leave beams and no_repeat_ngram out")
    if task.metric == "perplexity":
        raise DeltatuneError(
            "perplexity needs the likelihood of the references, and a server gives texts; choose another"
        )
    columns = {name: text_column(rows, name) for name in task.text}
    values = [{name: columns[name][i] for name in task.text} for i in range(len(rows))]
    stop = (task.stop_text,) if task.stop_text else ()
    params = SamplingParams(task.new_tokens, task.temperature, task.top_p, stop, task.seed)
    requests = [Request(prompt_text(task, each), params) for each in values]
    texts = [task.cut(completion.text.strip()) for completion in _completed(endpoint, requests, progress)]
    notes = (f"top_k={task.top_k} is not part of the API and was not sent",) if task.top_k else ()
    return Asked([{"text": text} for text in texts], endpoint.cost, notes=notes)


def prompt_text(task: Generate, values: dict[str, str]) -> str:
    """The text before the answer; as a message where the endpoint has a chat form."""
    if isinstance(task, GenerateInContext):
        return task.prompt_of(values)
    if task.prompt == "alpaca":
        return alpaca_prompt(list(values.values()))
    if task.prompt in ("plain", "chat"):
        text = plain_prompt(list(values.values()))
        return text if task.prompt == "plain" else text.strip()
    return fill_template(task.prompt, values)


# ---- label words


def _label_words(endpoint: CachedEndpoint, task: LabelWords, rows: Sequence[Row], progress: OnAnswer | None) -> Asked:
    if task.calibration:
        raise DeltatuneError(
            "this prompt is calibrated, which needs the scores of the label words, and an endpoint gives a text; use a "
            "prompt without calibration"
        )
    chat = endpoint.form == "chat"
    prompts = [text for row in rows for text in prompts_of(task, row, chat)]
    words = [word for of_class in task.words for word in of_class]
    tokens = WORD_TOKENS + max(map(len, words)) // 2
    params = SamplingParams(max_tokens=tokens, stop=() if chat else ("\n",))
    texts = [each.text for each in _completed(endpoint, [Request(prompt, params) for prompt in prompts], progress)]
    classes = [matched_class(text, task.words) for text in texts]
    per_row = task.prompts if rows and len(prompts) == len(rows) * task.prompts else len(prompts) // max(1, len(rows))
    votes = np.zeros((len(rows), len(task.labels)), np.float32)
    for i, number in enumerate(classes):
        if number is not None:
            votes[i // per_row, number] += 1
    shares = (votes + SHARE) / (votes + SHARE).sum(-1, keepdims=True)
    answered = votes.sum(-1, keepdims=True) > 0
    unmatched = [text for text, number in zip(texts, classes, strict=True) if number is None]
    notes = []
    if unmatched:
        examples = ", ".join(repr(text.strip()[:40]) for text in list(dict.fromkeys(unmatched))[:3])
        notes.append(f"{len(unmatched)} of {len(texts)} texts begin with none of the label words ({examples})")
        notes.append(f"{int((~answered).sum())} of {len(rows)} rows have no answer, which counts as wrong")
    tied = int(((votes == votes.max(-1, keepdims=True)).sum(-1) > 1)[answered[:, 0]].sum())
    if tied:
        notes.append(
            f"{tied} of {len(rows)} rows have equal votes for several classes; the first of these classes counts"
        )
    logits = np.where(answered, np.log(shares), -np.inf).astype(np.float32)
    return Asked(logits, endpoint.cost, len(unmatched), tuple(notes))


def prompts_of(task: LabelWords, row: Row, chat: bool = False) -> list[str]:
    """The texts in which a row is asked: one for each template and each set of demonstrations.

    A model that continues gets the text up to its blank, without a space at its end; one that answers (`chat`) the text
    with the blank shown, and the words to choose from.
    """
    for name in task.text:
        column([row], name)
    own = row.get(DEMONSTRATIONS)
    sets = task.demonstrations if own is None else (tuple(own),)
    return [
        "".join(f"{text}{task.separator}" for text in shown) + _question(task, template, row, chat)
        for template in task.templates
        for shown in sets or ((),)
    ]


def _question(task: LabelWords, template: Template, row: Row, chat: bool) -> str:
    mark = "\ue000"
    before, _, after = template.fill(row, mark).partition(mark)
    if chat:
        words = ", ".join("/".join(of_class) for of_class in task.words)
        return f"{before}{BLANK}{after}\n\nWhich word fits into the blank? Answer with one of: {words}."
    if not before.strip() or re.search(r"\w", after):
        raise DeltatuneError(
            f"the template {template.text!r} has no text before its blank or some behind it, and a server continues a "
            "text: put {mask} at the end, or send the prompt as a message (form chat)"
        )
    return before.rstrip()


def matched_class(text: str, words: Sequence[Sequence[str]]) -> int | None:
    """The class whose label word begins a text, the longest word first; None where none does.

    Case, quotes and words such as "The answer is" before it do not count.
    """
    lead = _LEAD.match(text)
    starts = {0, re.match(r"(?:\W|_)*", text).end(), lead.end() if lead else 0}  # type: ignore[union-attr]
    by_length = sorted(
        ((word, i) for i, of_class in enumerate(words) for word in of_class), key=lambda each: -len(each[0])
    )
    for word, number in by_length:
        for start in sorted(starts):
            end = start + len(word)
            whole = not (word[-1:].isascii() and word[-1:].isalnum() and re.match(r"[A-Za-z0-9]", text[end:]))
            if word and text[start:end].casefold() == word.casefold() and whole:
                return number
    return None


def _completed(endpoint: CachedEndpoint, requests: Sequence[Request], progress: OnAnswer | None) -> list[Completion]:
    """The completions in the order of the requests."""
    completions: list[Any] = [None] * len(requests)
    count = 0

    def done(number: int, completion: Completion) -> None:
        nonlocal count
        completions[number] = completion
        count += 1
        if progress is not None:
            progress(count, len(requests))

    endpoint.completions(requests, done)
    return completions
