"""Forms of prompts: texts, rows and conversations of requests to the token ids that a model continues.

A raw prompt is sent as it is. The input of an adapter that was trained on prompts of a certain form gets that form, as
`deltatune predict` gives it. A conversation gets the model's chat template, or the form of the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.serving.serving_errors import RequestTooLong
from deltatune.serving.texts.invalid_request import InvalidRequest
from deltatune.tasks.generation import Generate
from deltatune.tasks.in_context_generation import GenerateInContext
from deltatune.tasks.prompts.prompt_encoding import CHAT_COLUMN, Example, PromptEncoder
from deltatune.tasks.prompts.prompt_format import chat_prompt, check_chat
from deltatune.tasks.reasoning import Reason
from deltatune.tasks.row_inputs import row_inputs
from deltatune.tasks.task import Task, TokenRow

LONG_TOKEN = 8
"""Characters a token of the first part of a text whose tokens are counted; few texts have as many."""
MARGIN = 16
"""Tokens that a part of a text may have more than the same part of the whole: special ones, and words cut in two."""
CHAT = Generate(text=(CHAT_COLUMN,), label=CHAT_COLUMN, prompt="chat")
"""The task of a conversation, for models without an adapter."""


@dataclass(frozen=True)
class ModelPrompt:
    """What the engine continues."""

    ids: tuple[int, ...]
    stops: frozenset[int] = frozenset()
    """Tokens that end the answer, beside the model's own."""
    text: str = ""
    """The prompt as it was sent, for `echo`."""
    truncated: bool = False
    """Whether the form of an adapter had to leave a part of the input out."""


class PromptForms:
    """Makes prompts for one base. Not for two threads at once: fast tokenizers change while they cut texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, joined: bool, most: int | None = None) -> None:
        """`joined`: prompt and answer are one sequence (decoders), not an encoder's and a decoder's input.

        `most`: tokens that the model can read; None without a limit.
        """
        self.tokenizer, self.joined, self.most = tokenizer, joined, most
        self.vocabulary = max(tokenizer.get_vocab().values()) + 1
        self._chat_stops: dict[str, frozenset[int]] = {}

    def raw(self, prompt: str | Sequence[int]) -> ModelPrompt:
        """A text with the special tokens that the model wants before it, or token ids. Raises InvalidRequest."""
        if not isinstance(prompt, str):
            wrong = [token for token in prompt if token >= self.vocabulary]
            if wrong:
                raise InvalidRequest(
                    f"token {wrong[0]} is not in the vocabulary of {self.vocabulary:,} tokens", "prompt"
                )
            return ModelPrompt(tuple(prompt), text=str(self.tokenizer.decode(list(prompt), skip_special_tokens=True)))
        self.check_length(prompt)
        ids: list[int] = self.tokenizer(prompt, verbose=False)["input_ids"]
        ends = {self.tokenizer.eos_token_id, self.tokenizer.sep_token_id}
        if self.joined and ids and ids[-1] in ends:
            plain = self.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
            if plain[-1:] != ids[-1:]:
                ids = ids[:-1]  # what the tokenizer puts behind every text would end the answer before it begins
        if not ids:
            start = self.tokenizer.bos_token_id
            if start is None:
                raise InvalidRequest("the prompt has no tokens; give it some text", "prompt")
            ids = [int(start)]
        return ModelPrompt(tuple(ids), text=prompt)

    def token_row(self, given: str | list[int]) -> TokenRow:
        """A text or token ids as a row to embed. Raises InvalidRequest for a text without tokens."""
        tokenizer = self.tokenizer
        if isinstance(given, str):
            self.check_length(given)
            encoding = tokenizer(given, verbose=False)
            row: TokenRow = {name: list(encoding[name]) for name in encoding}
        else:
            row = {"input_ids": list(self.raw(given).ids)}
            if "token_type_ids" in tokenizer.model_input_names:
                row["token_type_ids"] = [0] * len(given)
        if not row["input_ids"]:
            raise InvalidRequest(f"the text {given!r} has no tokens", "input")
        return {"attention_mask": [1] * len(row["input_ids"]), **row}

    def rows(self, task: Generate, rows: Sequence[Mapping[str, Any]]) -> list[ModelPrompt]:
        """Rows in the form that the task's prompts have, as `deltatune predict` gives them to the model."""
        stops = frozenset(task.stops(self.tokenizer))
        prompts = []
        for row in row_inputs(task, rows):
            encoded = task.encode([row], self.tokenizer, labelled=False, joined=self.joined)
            ids = (encoded.facts or ())[0]["prompt"]
            prompts.append(ModelPrompt(tuple(ids), stops, truncated=bool(encoded.truncated)))
        return prompts

    def chat(self, messages: Sequence[Mapping[str, str]], name: str, task: Task | None) -> ModelPrompt:
        """A conversation in the form of the adapter `name` with this task, else in the model's chat template.

        Raises InvalidRequest for a form that cannot hold the conversation, and for a model without a template.
        """
        if isinstance(task, Generate) and task.prompt != "chat" and CHAT_COLUMN not in task.text:
            return self._in_form(messages, name, task)
        try:
            check_chat(self.tokenizer)
            text = chat_prompt(messages, self.tokenizer)
        except DeltatuneError as error:
            if not self.tokenizer.chat_template:
                raise InvalidRequest(
                    "the tokenizer of this model has no chat template; POST /v1/completions with a prompt", "messages"
                ) from None
            raise InvalidRequest(str(error), "messages") from None
        self.check_length(text)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ModelPrompt(tuple(ids), self.chat_stops(), text)

    def check_length(self, text: str) -> None:
        """Raise RequestTooLong for a text of which a part alone is too long for the model, without reading the rest."""
        size = LONG_TOKEN * (self.most or len(text) + 1)
        while size < len(text):
            tokens = len(self.tokenizer(text[:size], add_special_tokens=False, verbose=False)["input_ids"])
            if tokens > (self.most or tokens) + MARGIN:
                raise RequestTooLong(
                    f"the text has more than {tokens - MARGIN:,} tokens; this model's maximum context length is "
                    f"{self.most:,} tokens"
                )
            size *= 4

    def chat_stops(self) -> frozenset[int]:
        """The tokens that end an answer in the model's chat template."""
        template = str(self.tokenizer.chat_template)
        if template not in self._chat_stops:
            self._chat_stops[template] = frozenset(PromptEncoder(CHAT, self.tokenizer, self.joined).stop_ids())
        return self._chat_stops[template]

    def _in_form(self, messages: Sequence[Mapping[str, str]], name: str, task: Generate) -> ModelPrompt:
        """One message of the user as the input of an adapter that was trained without a chat template."""
        optional = task.prompt == "alpaca"  # its other columns may be empty
        if len(messages) != 1 or messages[0]["role"] != "user":
            raise InvalidRequest(
                f"{name} was trained on prompts of the form {task.prompt!r}, which hold one message of a user, not a "
                f"conversation of {len(messages)}; send one, or POST /v1/completions",
                "messages",
            )
        if len(task.text) > 1 and not optional:
            raise InvalidRequest(
                f"{name} was trained on prompts with the columns {', '.join(task.text)}; POST /v1/completions with "
                "input, an object with these names",
                "messages",
            )
        values = {**dict.fromkeys(task.text, ""), task.text[0]: messages[0]["content"]}
        encoder = PromptEncoder(task, self.tokenizer, self.joined)
        text = encoder.prompt_text(Example(values, (), None))
        return ModelPrompt(tuple(encoder.ids(text, True)), frozenset(task.stops(self.tokenizer)), text)


def shared_form(adapters: Mapping[str, float], tasks: Sequence[Task | None], param: str) -> tuple[str, Task | None]:
    """The form of prompts that the adapters share: the name of one and its task. Raises InvalidRequest."""
    if not tasks:
        return "", None
    forms = {(task.prompt, task.text, type(task)) if isinstance(task, Generate) else None for task in tasks}
    if len(forms) > 1:
        raise InvalidRequest(
            f"{', '.join(adapters)} were trained on prompts of different forms; POST /v1/completions with prompt",
            param,
        )
    if isinstance(tasks[0], Reason) and param == "messages":
        raise InvalidRequest(
            f"{next(iter(adapters))} writes chains of thought, which `deltatune predict` reads; send prompt", param
        )
    if isinstance(tasks[0], GenerateInContext) and param == "messages":
        raise InvalidRequest(
            f"{next(iter(adapters))} answers behind a prompt of its own; POST /v1/completions with input, an object "
            f"with the columns {', '.join(tasks[0].text)}",
            param,
        )
    return next(iter(adapters)), tasks[0]
