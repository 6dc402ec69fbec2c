"""Answers as texts: the model writes on, greedily, by beams or by chance, for batches of prompts of any lengths."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from deltatune.core.host import Host
from deltatune.models.architecture import family
from deltatune.tasks.collator import Collate
from deltatune.tasks.generation import Generate
from deltatune.tasks.task import Encoded
from deltatune.tasks.tokenization import padding_id
from deltatune.training.inference.batches import batches, device_of
from deltatune.training.inference.likelihood import surprise


def write_answers(
    host: Host, task: Any, encoded: Encoded, tokenizer: PreTrainedTokenizerBase, batch_size: int, bfloat16: bool
) -> list[dict[str, Any]]:
    """One `{"text"}` a row, and where the rows have answers `nll` and `tokens`: how likely the first reference is."""
    prompts = [fact["prompt"] for fact in encoded.facts or ()]
    texts = write(host, task, prompts, tokenizer, batch_size, bfloat16)
    found: list[dict[str, Any]] = [{"text": text} for text in texts]
    if "labels" in encoded.rows[0]:
        fill = {"input_ids": padding_id(tokenizer), "attention_mask": 0}
        owners = encoded.owners or range(len(found))
        likelihoods = surprise(host, task, encoded, Collate(fill), bfloat16)
        for owner, (nll, tokens, *_) in zip(owners, likelihoods, strict=True):
            before = found[owner].get("nll", 0.0), found[owner].get("tokens", 0)
            found[owner] |= {"nll": before[0] + float(nll), "tokens": before[1] + int(tokens)}
    return found


def write(
    host: Host,
    task: Generate,
    prompts: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 32,
    bfloat16: bool = False,
) -> list[str]:
    """What the model writes after each prompt (token ids), under the current route."""
    decoder = family(host.model.config) == "decoder"  # type: ignore[arg-type]
    rows = [{"input_ids": prompt, "attention_mask": [1] * len(prompt)} for prompt in prompts]
    fill = {"input_ids": padding_id(tokenizer), "attention_mask": 0}
    stops = task.stops(tokenizer)
    config = generation_config(host, task, tokenizer, stops)
    texts = [""] * len(rows)
    with seeded(task, device_of(host)), no_habits(host.model):
        for members, batch in batches(rows, Collate(fill, left=decoder), batch_size, device_of(host)):
            with torch.autocast(batch["input_ids"].device.type, torch.bfloat16, enabled=bfloat16):
                out = host.generate(**batch, generation_config=config)
            found = out[:, batch["input_ids"].shape[1] if decoder else 1 :].tolist()
            for row, ids in zip(members, found, strict=True):
                texts[row] = str(tokenizer.decode(until(ids, stops), skip_special_tokens=True)).strip()
    return texts


def until(ids: list[int], stops: Collection[int]) -> list[int]:
    """What stands before the first token that ends an answer: such a token need not be a special one."""
    return ids[: next((i for i, token in enumerate(ids) if token in stops), len(ids))]


@contextmanager
def no_habits(model: Any) -> Iterator[None]:
    """While this lasts, the model's own generation settings are empty: generate() would fill in ours from them."""
    own = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = own


def generation_config(
    host: Host, task: Generate, tokenizer: PreTrainedTokenizerBase, stops: Collection[int]
) -> GenerationConfig:
    """The task's way of decoding with the model's own special tokens; nothing else of the model's habits."""
    own: Any = getattr(host.model, "generation_config", None)
    config: Any = host.model.config
    start = getattr(own, "decoder_start_token_id", None)
    sampled = {"temperature": task.temperature, "top_p": task.top_p, "top_k": task.top_k} if task.temperature else {}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=task.new_tokens,
        num_beams=task.beams,
        length_penalty=task.length_penalty,
        no_repeat_ngram_size=task.no_repeat_ngram or None,
        do_sample=bool(task.temperature),
        **sampled,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(stops),
        pad_token_id=padding_id(tokenizer),
        forced_bos_token_id=getattr(own, "forced_bos_token_id", None),  # the language that a translator writes
        decoder_start_token_id=start if start is not None else getattr(config, "decoder_start_token_id", None),
    )


@contextmanager
def seeded(task: Generate, device: torch.device) -> Iterator[None]:
    """Sampling draws from the task's seed and leaves the global generators as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(task.seed)
        yield
