"""A model on this machine as an endpoint: a decoder of transformers, alone or in a Host with adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.models.architecture import family
from deltatune.prompting.endpoints.endpoint import (
    Completion,
    OnCompletion,
    PromptForm,
    Request,
    SamplingParams,
    by_params,
    texts_of,
)
from deltatune.tasks.collator import PaddingCollator
from deltatune.tasks.prompts.prompt_format import chat_prompt
from deltatune.tasks.tokenization import longest_input, padding_id

MIN_NEW_TOKENS = 32
"""Fewer free positions than this are an error: nearly every text would be truncated."""
STOP_WINDOW = 24
"""Number of last tokens that are searched for a stop string."""


@dataclass
class LocalModel:
    """Generates with a decoder of transformers; in a Host, with the adapters of the current route."""

    model: nn.Module | Host
    """A model with a language-model head, or its Host."""
    tokenizer: PreTrainedTokenizerBase
    """The model's tokenizer."""
    form: PromptForm = "plain"
    """plain: the model continues the prompt; chat: the prompt is a user message in the tokenizer's chat template."""
    batch_size: int = 8
    """Prompts per batch."""
    label: str = ""
    """Name in files and errors. Default: the path of the model and the active adapters."""
    positions: int | None = field(init=False)
    """Maximum number of tokens of prompt and generated text together."""

    def __post_init__(self) -> None:
        config: Any = self._module.config
        if family(config) != "decoder" or not hasattr(self._module, "generate"):
            raise DeltatuneError(
                f"{type(self._module).__name__} cannot continue a text; give a decoder with a language-model head, "
                "as AutoModelForCausalLM loads it"
            )
        if self.form not in ("plain", "chat"):
            raise DeltatuneError(f"form={self.form!r}: it is plain or chat")
        if self.form == "chat" and self.tokenizer.chat_template is None:
            raise DeltatuneError(f"the tokenizer of {self.name} has no chat template; use form='plain'")
        if self.batch_size < 1:
            raise DeltatuneError(f"batch_size must be at least 1, not {self.batch_size}")
        self.positions = longest_input(self._module)

    @property
    def _module(self) -> Any:
        return self.model.model if isinstance(self.model, Host) else self.model

    @property
    def name(self) -> str:
        """Name of the model and its active adapters."""
        if self.label:
            return self.label
        base = getattr(self._module, "name_or_path", "") or type(self._module).__name__
        if not isinstance(self.model, Host):
            return str(base)
        active = sorted(self.model.route.names)
        return f"{base} + {', '.join(active)}" if active else str(base)

    def __call__(self, prompts: list[str]) -> list[str]:
        return self.generate(prompts, SamplingParams())

    def generate(self, prompts: list[str], params: SamplingParams) -> list[str]:
        """Generate one text per prompt. Raises DeltatuneError if a prompt leaves too few positions."""
        return texts_of(self, prompts, params)

    def completions(self, requests: Sequence[Request], done: OnCompletion) -> None:
        """Complete every request, in batches of those with the same parameters."""
        device = next(self._module.parameters()).device
        for params, numbers in by_params(requests).items():
            rows = [self._encode(requests[number].prompt) for number in numbers]
            max_new_tokens = self._max_new_tokens(rows, params)
            with _seeded(params.seed, device), _eval_mode(self._module), torch.no_grad():
                for start in range(0, len(rows), self.batch_size):
                    batch = rows[start : start + self.batch_size]
                    made = self._batch(batch, params, max_new_tokens, device)
                    for number, completion in zip(numbers[start:], made, strict=False):
                        done(number, completion)

    def _encode(self, prompt: str) -> list[int]:
        if self.form == "chat":
            text = chat_prompt([{"role": "user", "content": prompt}], self.tokenizer)
            return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        ids = list(self.tokenizer(prompt, verbose=False)["input_ids"])
        ends = {self.tokenizer.eos_token_id, self.tokenizer.sep_token_id} - {None}
        while len(ids) > 1 and ids[-1] in ends:  # an end token after the prompt would end generation at once
            ids.pop()
        return ids

    def _max_new_tokens(self, rows: list[list[int]], params: SamplingParams) -> int:
        """Number of tokens that can follow the longest prompt, at most `params.max_tokens`."""
        if self.positions is None:
            return params.max_tokens
        virtual = max(self.model.prompts.values(), default=0) if isinstance(self.model, Host) else 0
        longest = max(map(len, rows))
        width = -(-longest // 8) * 8  # rows are padded to a multiple of 8
        free = self.positions - width - virtual
        if free < min(params.max_tokens, MIN_NEW_TOKENS):
            raise DeltatuneError(
                f"a prompt has {longest} tokens and {self.name} takes {self.positions}, too few are left to generate; "
                "show fewer or shorter tasks (seed_tasks, generated_tasks, example_tasks), or use a model with more "
                "positions"
            )
        return min(params.max_tokens, free)

    def _batch(
        self, rows: list[list[int]], params: SamplingParams, max_new_tokens: int, device: torch.device
    ) -> list[Completion]:
        collate = PaddingCollator({"input_ids": padding_id(self.tokenizer), "attention_mask": 0}, left=True)
        batch = collate([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows])
        batch = {name: tensor.to(device) for name, tensor in batch.items()}  # (B, T)
        stop = StoppingCriteriaList([_StopStrings(self.tokenizer, params.stop)] if params.stop else [])
        config = self._generation_config(params, max_new_tokens)
        out: Tensor = self.model.generate(**batch, generation_config=config, stopping_criteria=stop)  # type: ignore[operator]
        generated = out[:, batch["input_ids"].shape[1] :].tolist()
        return [self._decode(row, ids, params, max_new_tokens) for row, ids in zip(rows, generated, strict=True)]

    def _decode(self, row: list[int], ids: list[int], params: SamplingParams, max_new_tokens: int) -> Completion:
        """The text of a row up to its end, and the tokens that were read and generated."""
        ends = self._end_tokens()
        end = next((position for position, token in enumerate(ids) if token in ends), None)
        text = str(self.tokenizer.decode(ids[:end], skip_special_tokens=True))
        stopped = _find_stop(text, params.stop)
        cut = stopped is None and end is None and len(ids) >= max_new_tokens
        return Completion(text[:stopped], cut, len(row), len(ids) if end is None else end + 1)

    def _end_tokens(self) -> set[int]:
        configured: Any = getattr(getattr(self._module, "generation_config", None), "eos_token_id", None)
        tokens = {*(configured if isinstance(configured, list) else [configured]), self.tokenizer.eos_token_id}
        return {int(token) for token in tokens if token is not None}

    def _generation_config(self, params: SamplingParams, max_new_tokens: int) -> GenerationConfig:
        sampling = {"temperature": params.temperature, "top_p": params.top_p, "top_k": 0} if params.temperature else {}
        return GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=max_new_tokens,
            do_sample=bool(params.temperature),
            **sampling,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=sorted(self._end_tokens()) or None,
            pad_token_id=padding_id(self.tokenizer),
        )


class _StopStrings(StoppingCriteria):
    """Ends a row when its last tokens contain a stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.start: int | None = None
        """Position of the first generated token: after the prompt, virtual tokens included."""

    def __call__(self, input_ids: Tensor, scores: Any, **rest: Any) -> Any:
        if self.start is None:
            self.start = input_ids.shape[1] - 1
        first = max(self.start, input_ids.shape[1] - STOP_WINDOW)
        texts = self.tokenizer.batch_decode(input_ids[:, first:].tolist(), skip_special_tokens=True)
        if first == self.start:
            texts = [text.lstrip() for text in texts]
        done = [_find_stop(text, self.stop) is not None for text in texts]
        return torch.tensor(done, device=input_ids.device)  # (B,)


def _find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Position of the first stop string. Whitespace before the first word does not count."""
    lead = len(text) - len(text.lstrip())
    positions = [position for string in stop if (position := text.find(string, lead)) >= 0]
    return min(positions, default=None)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed sampling, and restore the global generators afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed % 2**63)
        yield


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluate without dropout, and restore the mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
