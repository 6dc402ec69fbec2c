"""A passage in windows of tokens that overlap, and the best span in one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.plain import raise_listed
from deltatune.tasks.task import TokenRow


@dataclass(frozen=True)
class Window:
    """One window of a passage behind its question."""

    owner: int
    """Number of the row."""
    first: bool
    """Whether it is the row's first."""
    tokens: TokenRow
    offsets: list[tuple[int, int] | None]
    """Characters of the passage that each token covers; None for the question's, special ones and lone spaces."""

    def place(self, answer: tuple[int, int] | None) -> list[int]:
        """Tokens at which an answer (characters) starts and ends; [0, 0] if it is not whole in this window."""
        if answer is None:
            return [0, 0]
        start, end = answer
        inside = [i for i, where in enumerate(self.offsets) if where and where[0] < end and where[1] > start]
        whole = inside and self.offsets[inside[0]][0] <= start and self.offsets[inside[-1]][1] >= end  # type: ignore[index]
        return [inside[0], inside[-1]] if whole else [0, 0]


class Found(NamedTuple):
    """A span of a passage in characters; the larger score is the better one."""

    score: float
    start: int
    end: int


def windows(
    pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int
) -> list[Window]:
    """All windows of all rows (question, passage), in order.

    Raises DeltatuneError for passages without tokens and questions that leave less than the stride and one token.
    """
    if not pairs:
        return []
    questions, passages = (list(side) for side in zip(*pairs, strict=True))
    lengths = [len(ids) for ids in tokenizer(questions, add_special_tokens=False, verbose=False)["input_ids"]]
    most = max_length - stride - tokenizer.num_special_tokens_to_add(pair=True) - 1
    raise_listed([
        f"row {i}: a question of {length} tokens leaves no room for the passage in windows of {max_length}"
        for i, length in enumerate(lengths)
        if length > most
    ])  # fmt: skip
    found = tokenizer(
        questions, passages, truncation="only_second", max_length=max_length, stride=stride, verbose=False,
        return_overflowing_tokens=True, return_offsets_mapping=True, return_attention_mask=True,
    )  # fmt: skip
    owners = found["overflow_to_sample_mapping"]
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in found]
    result = []
    for i, owner in enumerate(owners):
        sides = found.sequence_ids(i)
        offsets = [
            trimmed(passages[owner], *where) if side == 1 else None
            for where, side in zip(found["offset_mapping"][i], sides, strict=True)
        ]
        tokens: TokenRow = {name: found[name][i] for name in names}
        result.append(Window(owner, i == 0 or owners[i - 1] != owner, tokens, offsets))
    empty = {window.owner for window in result} - {w.owner for w in result if any(w.offsets)}
    if empty:
        raise DeltatuneError(f"row {min(empty)}: the passage has no tokens")
    return result


def trimmed(passage: str, start: int, end: int) -> tuple[int, int] | None:
    """The characters of a token without the space that it may bring; None where nothing is left."""
    text = passage[start:end]
    start += len(text) - len(text.lstrip())
    return (start, start + len(text.strip())) if text.strip() else None


def best_span(logits: NDArray[Any], window: Window, longest: int) -> Found:
    """The best span of at most `longest` tokens: logits (T, 2) of starts and ends."""
    if not np.isfinite(logits).all():
        raise DeltatuneError("a window has logits that are not finite; was the rate too high?")
    there = [i for i, where in enumerate(window.offsets) if where]
    if not there:
        return Found(-np.inf, 0, 0)
    first, last = there[0], there[-1] + 1
    real = np.array([where is not None for where in window.offsets[first:last]])
    start = np.where(real, logits[first:last, 0], -np.inf)[:, None]  # (t, 1)
    end = np.where(real, logits[first:last, 1], -np.inf)[None]
    scores = start + end  # (t, t): from row to column
    allowed = np.triu(np.ones_like(scores, bool)) & ~np.triu(np.ones_like(scores, bool), longest)
    at, to = np.unravel_index(np.where(allowed, scores, -np.inf).argmax(), scores.shape)
    begins, ends = window.offsets[first + int(at)], window.offsets[first + int(to)]
    assert begins is not None
    assert ends is not None
    return Found(float(scores[at, to]), begins[0], ends[1])
