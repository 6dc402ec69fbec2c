"""Label words after demonstrations: prompts that begin alike are read once, relative to a forward of each whole prompt.

A float32 Llama of 6 layers with LoRA, rows of 16 to 47 tokens behind demonstrations of 320, two classes. Row by row is
one forward for each row with the whole prompt (and each word, where words have three tokens); batched is the same in
batches of rows of similar length; cached reads the demonstrations once. All have the same scores.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import deltatune
from benchmarks.measure import interleaved_times, options, report
from deltatune.tasks import Encoded
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.label_words.prompt_batches import PromptCollator
from deltatune.tasks.task import TokenRow
from deltatune.training.inference.batches import device_of, row_logits
from deltatune.training.inference.prefix_cache import cached_scores, plan
from deltatune.training.label_word_logits import label_word_logits

VOCABULARY = 8192
WORDS = {"one token": ([5], [6]), "three tokens": ([5, 7, 8], [6, 9, 10])}
BOUNDS = {("cached", "row by row"): 1 / 3}


def main() -> None:
    arguments = options("label_words", turns=5, rows=64, demonstrations=320, batch=32, width=384, layers=6)
    host = llama_host(arguments)
    for name, words in WORDS.items():
        times = interleaved_times(cases(host, arguments, words), arguments, warmup=1)
        report(f"label_words, words of {name}", times, "row by row", BOUNDS, arguments)


def llama_host(arguments: Namespace) -> deltatune.Host:
    config = LlamaConfig(
        hidden_size=arguments.width,
        intermediate_size=1024,
        num_hidden_layers=arguments.layers,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=1024,
    )
    torch.manual_seed(0)
    host = deltatune.Host(LlamaForCausalLM(config).eval())
    host.attach("a", deltatune.LoRA(r=8), head=False)
    return host


def cases(
    host: deltatune.Host, arguments: Namespace, words: tuple[list[int], list[int]]
) -> dict[str, Callable[[], Any]]:
    """The three ways, after a check that their scores are equal."""
    task = LabelWords(labels=("a", "b"), template="{text} {mask}", words=(("a",), ("b",)))
    rows = Encoded(rows_of(arguments, words))
    collate = PromptCollator({"input_ids": 0, "attention_mask": 0}, vocabulary=VOCABULARY)

    @torch.inference_mode()
    def plain(batch_size: int) -> Any:
        return row_logits(
            rows, collate, batch_size, device_of(host), lambda batch: label_word_logits(host, task, batch)
        )

    @torch.inference_mode()
    def cached() -> Any:
        groups = plan(host, task, rows, collate)
        assert groups is not None
        return cached_scores(host, task, rows, groups, collate, arguments.batch, False)

    ways = {"row by row": lambda: plain(1), "batched": lambda: plain(arguments.batch), "cached": cached}
    scores = [torch.tensor(np.stack(way())) for way in ways.values()]
    for other in scores[1:]:
        torch.testing.assert_close(other, scores[0], atol=1e-5, rtol=1e-5)
    return ways


def rows_of(arguments: Namespace, words: tuple[list[int], list[int]]) -> list[TokenRow]:
    """Random prompts that share their demonstrations."""
    generator = torch.Generator().manual_seed(0)

    def tokens(length: int) -> list[int]:
        ids: list[int] = torch.randint(20, VOCABULARY, (length,), generator=generator).tolist()
        return ids

    shared, rows = tokens(arguments.demonstrations), []
    for number in range(arguments.rows):
        prompt = [*shared, *tokens(16 + number % 32)]
        ids = [*prompt, *words[0][:-1]]
        row: TokenRow = {"form": "left-to-right", "words": words, "prompt": prompt, "blank": len(prompt), "after": []}
        rows.append({**row, "input_ids": ids, "attention_mask": [1] * len(ids)})
    return rows


if __name__ == "__main__":
    main()
