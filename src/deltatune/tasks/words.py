"""Words in methods: initial texts and label names as token ids of the model's own tokenizer."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from deltatune.core.method import Method


def worded(method: Method, tokenizer: PreTrainedTokenizerBase, task: Any = None) -> Method:
    """The method with its words as token ids; `task.labels`, if it has any, are the words of the labels."""

    def tokenize(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    return method.worded(tokenize, tuple(getattr(task, "labels", ()) or ()))
