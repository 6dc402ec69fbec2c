"""A model on this machine as an endpoint: a decoder of transformers, bare or on a Host with adapters."""

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
from deltatune.prompting.endpoints.endpoint import SamplingParams, Truncated, PromptForm
from deltatune.tasks.collator import Collate
from deltatune.tasks.tokenization import longest_input, padding_id

LEAST_ROOM = 32
"""Fewer free positions than this are an error: what fits into them would nearly always be cut off."""
TAIL = 24
"""Last tokens in which the end of a text is looked for."""


@dataclass
class LocalModel:
    """Writes with a decoder of transformers; of a Host, with the adapters that its route names."""

    model: nn.Module | Host
    """A model with a language head, or the Host of one."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""
    form: PromptForm = "plain"
    """plain: the model goes on with the prompt; chat: the prompt is a message in the tokenizer's chat template."""
    batch_size: int = 8
    """Prompts that run at once."""
    label: str = ""
    """Its name in files and errors; by default where the model came from, and the adapters in use."""
    positions: int | None = field(init=False)
    """Most tokens of prompt and text together."""

    def __post_init__(self) -> None:
        config: Any = self._module.config
        if family(config) != "decoder" or not hasattr(self._module, "generate"):
            raise DeltatuneError(
                f"{type(self._module).__name__} does not go on with a text; give a decoder with a language head, "
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
        """What it is called."""
        if self.label:
            return self.label
        base = getattr(self._module, "name_or_path", "") or type(self._module).__name__
        if not isinstance(self.model, Host):
            return str(base)
        active = sorted(self.model.route.names)
        return f"{base} + {', '.join(active)}" if active else str(base)

    def __call__(self, prompts: list[str]) -> list[str]:
        return self.generate(prompts, SamplingParams())

    def generate(self, prompts: list[str], ask: SamplingParams) -> list[str]:
        """What the model writes after each prompt. Raises DeltatuneError for a prompt it has no positions for."""
        rows = [self._ids(prompt) for prompt in prompts]
        new = self._room(rows, ask)
        device = next(self._module.parameters()).device
        texts: list[str] = []
        with _seeded(ask.seed, device), _evaluating(self._module), torch.no_grad():
            for start in range(0, len(rows), self.batch_size):
                texts += self._batch(rows[start : start + self.batch_size], ask, new, device)
        return texts

    def _ids(self, prompt: str) -> list[int]:
        if self.form == "chat":
            turn = [{"role": "user", "content": prompt}]
            found = self.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
            return list(self.tokenizer(found, add_special_tokens=False, verbose=False)["input_ids"])
        ids = list(self.tokenizer(prompt, verbose=False)["input_ids"])
        ends = {self.tokenizer.eos_token_id, self.tokenizer.sep_token_id} - {None}
        while len(ids) > 1 and ids[-1] in ends:  # an end mark after the prompt would end the text before it begins
            ids.pop()
        return ids

    def _room(self, rows: list[list[int]], ask: SamplingParams) -> int:
        """Tokens that may be written after the longest prompt."""
        if self.positions is None:
            return ask.max_tokens
        virtual = max(self.model.prompts.values(), default=0) if isinstance(self.model, Host) else 0
        longest = max(map(len, rows))
        width = -(-longest // 8) * 8  # rows are padded to a multiple of 8
        free = self.positions - width - virtual
        if free < min(ask.max_tokens, LEAST_ROOM):
            raise DeltatuneError(
                f"a prompt has {longest} tokens and {self.name} takes {self.positions}, which leaves too few to write; "
                "show fewer or shorter tasks (human, own, cases), or take a model with more positions"
            )
        return min(ask.max_tokens, free)

    def _batch(self, rows: list[list[int]], ask: SamplingParams, new: int, device: torch.device) -> list[str]:
        collate = Collate({"input_ids": padding_id(self.tokenizer), "attention_mask": 0}, left=True)
        batch = collate([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows])
        batch = {name: tensor.to(device) for name, tensor in batch.items()}  # (B, T)
        stop = StoppingCriteriaList([_Stops(self.tokenizer, ask.stop)] if ask.stop else [])
        config = self._config(ask, new)
        out: Tensor = self.model.generate(**batch, generation_config=config, stopping_criteria=stop)  # type: ignore[operator]
        return [self._text(ids, ask, new) for ids in out[:, batch["input_ids"].shape[1] :].tolist()]

    def _text(self, ids: list[int], ask: SamplingParams, new: int) -> str:
        """The text up to its end; a Truncated where it has none."""
        ends = self._ends()
        ended = next((at for at, token in enumerate(ids) if token in ends), None)
        text = str(self.tokenizer.decode(ids[:ended], skip_special_tokens=True))
        stopped = _first(text, ask.stop)
        if stopped is not None:
            return text[:stopped]
        return Truncated(text) if ended is None and len(ids) >= new else text

    def _ends(self) -> set[int]:
        own: Any = getattr(getattr(self._module, "generation_config", None), "eos_token_id", None)
        found = {*(own if isinstance(own, list) else [own]), self.tokenizer.eos_token_id}
        return {int(token) for token in found if token is not None}

    def _config(self, ask: SamplingParams, new: int) -> GenerationConfig:
        sampled = {"temperature": ask.temperature, "top_p": ask.top_p, "top_k": 0} if ask.temperature else {}
        return GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=new,
            do_sample=bool(ask.temperature),
            **sampled,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=sorted(self._ends()) or None,
            pad_token_id=padding_id(self.tokenizer),
        )


class _Stops(StoppingCriteria):
    """Rows whose last tokens hold the end of a text are done."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.start: int | None = None
        """Where the written tokens begin: after the prompt, virtual tokens included."""

    def __call__(self, input_ids: Tensor, scores: Any, **rest: Any) -> Any:
        if self.start is None:
            self.start = input_ids.shape[1] - 1
        first = max(self.start, input_ids.shape[1] - TAIL)
        texts = self.tokenizer.batch_decode(input_ids[:, first:].tolist(), skip_special_tokens=True)
        if first == self.start:
            texts = [text.lstrip() for text in texts]
        done = [_first(text, self.stop) is not None for text in texts]
        return torch.tensor(done, device=input_ids.device)  # (B,)


def _first(text: str, stop: Sequence[str]) -> int | None:
    """Where the first of these ends a text; blanks before its first word are none of it."""
    lead = len(text) - len(text.lstrip())
    found = [at for word in stop if (at := text.find(word, lead)) >= 0]
    return min(found, default=None)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Sampling draws from the seed and leaves the global generators as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed % 2**63)
        yield


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, and afterwards as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
