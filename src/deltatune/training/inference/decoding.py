"""Text generation: greedy decoding, beam search or sampling, for batches of prompts of any lengths."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from deltatune.core.delta import generator_for
from deltatune.core.host import Host
from deltatune.models.architecture import family
from deltatune.tasks.collator import PaddingCollator
from deltatune.tasks.generation import Generate
from deltatune.tasks.prompts.prompt_encoding import PromptEncoder
from deltatune.tasks.reasoning import Reason
from deltatune.tasks.task import Encoded
from deltatune.tasks.tokenization import padding_id
from deltatune.training.inference.batches import device_of, length_sorted_batches
from deltatune.training.inference.likelihood import negative_log_likelihoods

STOP_WINDOW = 24
"""Number of last tokens that are searched for the text that ends an answer."""


def generate_answers(
    host: Host, task: Any, encoded: Encoded, tokenizer: PreTrainedTokenizerBase, batch_size: int, bfloat16: bool
) -> list[dict[str, Any]]:
    """`{"text"}` for each row; with references also `nll` and `tokens`: the first one's negative log-likelihood.

    Of chains of thought what `Reason.vote` makes of the row's chains.
    """
    if isinstance(task, Reason):
        return reasoned_answers(host, task, encoded, tokenizer, batch_size, bfloat16)
    prompts = [fact["prompt"] for fact in encoded.facts or ()]
    texts = generate_texts(host, task, prompts, tokenizer, batch_size, bfloat16)
    answers: list[dict[str, Any]] = [{"text": task.cut(text)} for text in texts]
    if "labels" in encoded.rows[0]:
        fill = {"input_ids": padding_id(tokenizer), "attention_mask": 0}
        owners = encoded.owners or range(len(answers))
        likelihoods = negative_log_likelihoods(host, task, encoded, PaddingCollator(fill), bfloat16)
        for owner, (nll, tokens, *_) in zip(owners, likelihoods, strict=True):
            answer = answers[owner]
            answer["nll"] = answer.get("nll", 0.0) + float(nll)
            answer["tokens"] = answer.get("tokens", 0) + int(tokens)
    return answers


def reasoned_answers(
    host: Host, task: Reason, encoded: Encoded, tokenizer: PreTrainedTokenizerBase, batch_size: int, bfloat16: bool
) -> list[dict[str, Any]]:
    """The voted answer of each row from its chains of thought, in one or two stages.

    A chain is drawn from (seed, prompt, number of the chain) alone, whatever rows share its batch.
    """
    facts, count = list(encoded.facts or ()), task.samples
    encoder = PromptEncoder(task, tokenizer, family(host.model.config) == "decoder")  # type: ignore[arg-type]
    first = replace(task, temperature=0.0, samples=1, new_tokens=task.chain_tokens)
    prompts = [fact["prompt"] for fact in facts for _ in range(count)]
    draws = [f"{number} {fact['text']}" for fact in facts for number in range(count)] if task.chain_temperature else []
    texts = generate_texts(host, first, prompts, tokenizer, batch_size, bfloat16, draws, task)
    chains = [task.cut(text) for text in texts]
    ends = [""] * len(chains)
    if task.two_stages:
        asked = [
            task.answer_prompt_ids(fact["text"], chains[row * count + number], encoder)
            for row, fact in enumerate(facts)
            for number in range(count)
        ]
        ends = generate_texts(
            host, replace(first, new_tokens=task.answer_tokens), asked, tokenizer, batch_size, bfloat16
        )
    finished = [task.finished(chain, task.cut(end)) for chain, end in zip(chains, ends, strict=True)]
    return [task.vote(finished[row * count : (row + 1) * count]) for row in range(len(facts))]


def generate_texts(
    host: Host,
    task: Generate,
    prompts: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 32,
    bfloat16: bool = False,
    draws: Sequence[str] = (),
    chains: Reason | None = None,
) -> list[str]:
    """The text that the model generates after each prompt (token ids), under the current route.

    A row ends with the task's `stop_text`, which is still in the text.

    draws: names of the rows' own random draws, by which they are sampled at the temperature of `chains`.
    chains: the task of these chains of thought.
    """
    decoder = family(host.model.config) == "decoder"  # type: ignore[arg-type]
    rows = [{"input_ids": prompt, "attention_mask": [1] * len(prompt)} for prompt in prompts]
    collate = PaddingCollator({"input_ids": padding_id(tokenizer), "attention_mask": 0}, left=decoder)
    stops = task.stops(tokenizer)
    config = generation_config(host, task, tokenizer, stops)
    texts = [""] * len(rows)
    with sampling_seed(task, device_of(host)), without_generation_defaults(host.model):
        for numbers, batch in length_sorted_batches(rows, collate, batch_size, device_of(host)):
            more: dict[str, Any] = {}
            if task.stop_text:
                start = batch["input_ids"].shape[1] if decoder else 1
                more["stopping_criteria"] = StoppingCriteriaList([EndOfAnswer(tokenizer, task.stop_text, start)])
            if draws and chains is not None:
                more["logits_processor"] = sampling_by_row(chains, [draws[number] for number in numbers])
            with torch.autocast(batch["input_ids"].device.type, torch.bfloat16, enabled=bfloat16):
                output_ids = host.generate(**batch, generation_config=config, **more)
            new_ids = output_ids[:, batch["input_ids"].shape[1] if decoder else 1 :].tolist()
            for number, ids in zip(numbers, new_ids, strict=True):
                texts[number] = str(tokenizer.decode(before_stop(ids, stops), skip_special_tokens=True)).strip()
    return texts


class EndOfAnswer(StoppingCriteria):
    """Ends a row when the model writes the text that follows an answer, such as the beginning of another question."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: str, start: int) -> None:
        self.tokenizer, self.stop, self.start = tokenizer, stop, start

    def __call__(self, input_ids: Tensor, scores: Any, **rest: Any) -> Any:
        first = max(self.start, input_ids.shape[1] - STOP_WINDOW)
        texts = self.tokenizer.batch_decode(input_ids[:, first:].tolist(), skip_special_tokens=True)
        return torch.tensor([self.stop in text for text in texts], device=input_ids.device)  # (B,)


class RowNoise(LogitsProcessor):
    """Adds Gumbel noise from a generator of each row: the largest sum is a sample of the row's distribution.

    Gumbel 1954; a row's draws do not depend on the rows beside it, as those of one generator for a batch would.
    """

    def __init__(self, seed: int, names: Sequence[str]) -> None:
        self.generators = [generator_for(seed, name) for name in names]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=each) for each in self.generators])
        return scores.float() - noise.log().to(scores.device)  # (B, V)


def sampling_by_row(task: Reason, names: Sequence[str]) -> LogitsProcessorList:
    """What makes greedy decoding sample: temperature, top-k and top-p, then the noise of each row."""
    processors: list[Any] = [TemperatureLogitsWarper(task.chain_temperature)]
    processors += [TopKLogitsWarper(task.top_k)] if task.top_k else []
    processors += [TopPLogitsWarper(task.top_p)] if task.top_p < 1 else []
    return LogitsProcessorList([*processors, RowNoise(task.seed, names)])


def before_stop(ids: list[int], stops: Collection[int]) -> list[int]:
    """Token ids before the first stop token, which need not be a special token."""
    return ids[: next((i for i, token in enumerate(ids) if token in stops), len(ids))]


@contextmanager
def without_generation_defaults(model: Any) -> Iterator[None]:
    """Within this context the model's own generation_config is empty: generate() would take defaults from it."""
    config = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = config


def generation_config(
    host: Host, task: Generate, tokenizer: PreTrainedTokenizerBase, stops: Collection[int]
) -> GenerationConfig:
    """The task's decoding parameters and the model's special tokens, ignoring the model's default generation_config."""
    defaults: Any = getattr(host.model, "generation_config", None)
    config: Any = host.model.config
    start = getattr(defaults, "decoder_start_token_id", None)
    sampling = {"temperature": task.temperature, "top_p": task.top_p, "top_k": task.top_k} if task.temperature else {}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=task.new_tokens,
        num_beams=task.beams,
        length_penalty=task.length_penalty,
        no_repeat_ngram_size=task.no_repeat_ngram or None,
        do_sample=bool(task.temperature),
        **sampling,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(stops),
        pad_token_id=padding_id(tokenizer),
        forced_bos_token_id=getattr(defaults, "forced_bos_token_id", None),  # the target language of a translator
        decoder_start_token_id=start if start is not None else getattr(config, "decoder_start_token_id", None),
    )


@contextmanager
def sampling_seed(task: Generate, device: torch.device) -> Iterator[None]:
    """Within this context sampling draws from the task's seed; the global generators are restored."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(task.seed)
        yield
