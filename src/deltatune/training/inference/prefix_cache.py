"""Label words of left-to-right models from a key-value cache: what many prompts begin with is read once.

Prompts that share demonstrations share their first tokens, whose keys and values are computed once and serve all of
them; words of several tokens are scored from the cached prompt. Adapters whose change of a token depends on the rest of
the text, and models whose cache is not one of plain keys and values, read each prompt whole (`plan` says so).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from deltatune.core.capabilities import Needs, combine
from deltatune.core.host import Host
from deltatune.models.architecture import family
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.label_words.prompt_batches import PromptCollator
from deltatune.tasks.task import TokenRow
from deltatune.training.forward import selected_states, token_logits
from deltatune.training.inference.batches import device_of
from deltatune.training.label_word_logits import label_word_logits

WORTH = 0.8
"""Prompts are cached where that leaves at most this share of the tokens to read."""
GROUP_COST = 64
"""Tokens that a group of prompts must save to be one: it has batches of its own."""
DEEPEST = 200
"""Branches of prompts that are followed in search of what they share."""
TOLERANCE = {False: 1e-3, True: 0.1}
"""Largest relative difference to scores without a cache, in float32 and in bfloat16, of a cache that is trusted."""


class SharedStart(NamedTuple):
    """Prompts that begin with the same tokens."""

    rows: list[int]
    """Their numbers."""
    length: int
    """The number of these tokens; 0 for prompts that share nothing worth keeping."""


@dataclass(frozen=True)
class PromptTokens:
    """One row's prompt and what follows it."""

    ids: list[int]
    answers: list[list[int]]
    """For each word its tokens and those of the text behind the blank."""
    given: list[int]
    """For each word how many of these tokens are given and not scored."""


def plan(host: Host, task: LabelWords, rows: Sequence[TokenRow], collate: PromptCollator) -> list[SharedStart] | None:
    """How the prompts of these rows share their starts; None where a cache is impossible or saves too little."""
    if not rows or not _may_cache(host):
        return None
    prompts = prompts_of(host, task, rows, collate)
    if not all(prompt.ids for prompt in prompts):  # channel: the word itself comes first
        return None
    groups = shared_starts([prompt.ids for prompt in prompts])
    plain = sum(map(_plain_tokens, prompts))
    read = sum(group.length for group in groups)
    read += sum(len(prompts[i].ids) - group.length for group in groups for i in group.rows)
    read += sum(len(answer) - 1 for prompt in prompts for answer in prompt.answers)
    check = 2 * sum(_plain_tokens(prompts[i]) for i in _tried(groups, prompts))
    return groups if read + check <= WORTH * plain else None


def _plain_tokens(prompt: PromptTokens) -> int:
    """The tokens that are read without a cache: the prompt for each word, or once if all words are one token."""
    if all(len(answer) == 1 for answer in prompt.answers):
        return len(prompt.ids)
    return sum(len(prompt.ids) + len(answer) - 1 for answer in prompt.answers)


def _may_cache(host: Host) -> bool:
    """Whether the model takes a cache and positions, and no active adapter looks at a text as a whole."""
    names = signature(host.model.forward).parameters
    if family(host.model.config) != "decoder" or not {"past_key_values", "use_cache", "position_ids"} <= names.keys():  # type: ignore[arg-type]
        return False
    needs = combine(Needs, [host.adapters[name].needs for name in host.route.names])
    return host.route.rows is None and not (needs.padding_mask or needs.answer_offsets or needs.prompt_ids)


def prompts_of(host: Host, task: LabelWords, rows: Sequence[TokenRow], collate: PromptCollator) -> list[PromptTokens]:
    """The prompts of the rows, with an adapter's virtual tokens, which the host puts in front of texts without them."""
    front = 0 if task.has_virtual_tokens else max(host.prompts.values(), default=0)
    first = collate.vocabulary
    virtual = list(range(first, first + front))
    return [
        PromptTokens(
            virtual + collate.with_virtual_ids(row["prompt"]),
            [[*ids, *row["after"]] for ids in row["words"]],
            [len(ids) if row.get("channel") else 0 for ids in row["words"]],
        )
        for row in rows
    ]


# ---- what prompts share


def shared_starts(prompts: Sequence[Sequence[int]]) -> list[SharedStart]:
    """Groups of prompts by the tokens that they begin with, so that as few tokens as possible are read.

    Each prompt keeps one token of its own, whose state predicts the word. The last group shares nothing.
    """
    order = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))
    groups = [group for group in _best_groups(prompts, order, 0)[1] if group.length]
    alone = set(order).difference(*(group.rows for group in groups))
    return [*groups, *([SharedStart(sorted(alone), 0)] if alone else [])]


def _best_groups(prompts: Sequence[Sequence[int]], order: list[int], depth: int) -> tuple[int, list[SharedStart]]:
    """The tokens that grouping these prompts, in order, saves, and the groups."""
    if len(order) < 2 or depth > DEEPEST:
        return 0, []
    first, last = prompts[order[0]], prompts[order[-1]]
    common = min(len(first), len(last))
    differs = next((i for i in range(common) if first[i] != last[i]), common)
    length = min(differs, min(len(prompts[i]) for i in order) - 1)
    saved = (len(order) - 1) * length - GROUP_COST
    parts: list[list[int]] = []
    for i in order:
        key = tuple(prompts[i][length : length + 1])
        if parts and tuple(prompts[parts[-1][0]][length : length + 1]) == key and len(prompts[i]) > length + 1:
            parts[-1].append(i)
        else:
            parts.append([i])
    if len(parts) > 1:
        best = [_best_groups(prompts, part, depth + 1) for part in parts]
        if sum(value for value, _ in best) > saved:
            return sum(value for value, _ in best), [group for _, groups in best for group in groups]
    return (saved, [SharedStart(list(order), length)]) if saved > 0 else (0, [])


# ---- scores


def cached_scores(
    host: Host,
    task: LabelWords,
    rows: Sequence[TokenRow],
    groups: Sequence[SharedStart],
    collate: PromptCollator,
    batch_size: int,
    bfloat16: bool,
) -> list[NDArray[Any]] | None:
    """Scores of the classes (C,) of each row under the current route; None for a model whose cache is not exact."""
    reader = CachedReader(host, task, prompts_of(host, task, rows, collate), batch_size, bfloat16)
    tried = _tried(groups, reader.prompts)
    trial = reader.group(SharedStart(tried, groups[0].length))
    if trial is None:
        return None
    batch = {name: tensor.to(device_of(host)) for name, tensor in collate([rows[i] for i in tried]).items()}
    batch.pop("labels", None)
    plain = label_word_logits(host, task, batch, bfloat16)
    difference = (torch.stack([trial[i] for i in tried]) - plain).abs().amax()
    if not bool(difference <= TOLERANCE[bfloat16] * plain.abs().amax().clamp(min=1)):
        return None
    scores: dict[int, Tensor] = {}
    for group in groups:
        scores |= reader.group(group) or {}
    return [np.asarray(scores[i].float().cpu().numpy()) for i in range(len(rows))]


def _tried(groups: Sequence[SharedStart], prompts: Sequence[PromptTokens]) -> list[int]:
    """The longest and the shortest prompt of the first group: padding and different lengths are part of the trial."""
    by_length = sorted(groups[0].rows, key=lambda i: len(prompts[i].ids))
    return list(dict.fromkeys([by_length[-1], by_length[0]]))


@dataclass
class CachedReader:
    """Reads prompts and their words from a growing cache of keys and values."""

    host: Host
    task: LabelWords
    prompts: Sequence[PromptTokens]
    batch_size: int
    bfloat16: bool
    starts: dict[tuple[int, ...], Any] = field(default_factory=dict)
    """The caches of shared starts that were read."""

    def group(self, group: SharedStart) -> dict[int, Tensor] | None:
        """Scores of the classes (C,) by row; None for a model with a cache of another kind."""
        start, cache = self.prompts[group.rows[0]].ids[: group.length], None
        if start:
            cache = self.starts.pop(tuple(start), None)
            cache = cache or self._read([start], [[]], None, [(0, len(start) - 1)])[1]
            if not _grows(cache):
                return None
            if not self.starts:  # the first group's, which is tried before it is used
                self.starts[tuple(start)] = cache
        scores: dict[int, Tensor] = {}
        order = sorted(group.rows, key=lambda i: len(self.prompts[i].ids), reverse=True)
        for first in range(0, len(order), self.batch_size):
            rows = order[first : first + self.batch_size]
            values = self._batch([self.prompts[i] for i in rows], start, cache)
            if values is None:
                return None
            scores |= dict(zip(rows, values, strict=True))
        return scores

    def _batch(self, prompts: Sequence[PromptTokens], start: list[int], cache: Any) -> Tensor | None:
        """Scores of the classes (B, C) of prompts with the same start, whose keys and values are cached."""
        rests = [prompt.ids[len(start) :] for prompt in prompts]
        ends = [(i, len(rest) - 1) for i, rest in enumerate(rests)]
        before = [[1] * len(start)] * len(prompts)
        logits, cache = self._read(rests, before, _repeated(cache, len(prompts), expand=True), ends)
        values = self._values(logits)  # (B, V)
        firsts = torch.tensor([[answer[0] for answer in prompt.answers] for prompt in prompts], device=values.device)
        given = torch.tensor([prompt.given for prompt in prompts], device=values.device)  # (B, W)
        words = values.gather(1, firsts).masked_fill(given > 0, 0)  # (B, W)
        longer = [n for n in range(firsts.shape[1]) if any(len(prompt.answers[n]) > 1 for prompt in prompts)]
        if longer and not _grows(cache):
            return None
        width = max(map(len, rests))
        seen = [[*ones, *[1] * len(rest), *[0] * (width - len(rest))] for ones, rest in zip(before, rests, strict=True)]
        for some in _chunks(longer, max(1, self.batch_size // len(prompts))):
            words = words + self._continued(prompts, some, seen, cache)
        tokens = torch.tensor([[len(answer) for answer in prompt.answers] for prompt in prompts], device=words.device)
        return self.task.class_scores(words, tokens - given)

    def _continued(self, prompts: Sequence[PromptTokens], some: list[int], seen: list[list[int]], cache: Any) -> Tensor:
        """Scores (B, W) of the tokens behind the first one of some words; 0 for the other words."""
        answers = [prompt.answers[n] for prompt in prompts for n in some]
        places = [(i, place) for i, answer in enumerate(answers) for place in range(len(answer) - 1)]
        before = [ones for ones in seen for _ in some]
        logits, _ = self._read([answer[:-1] for answer in answers], before, _repeated(cache, len(some)), places)
        values = self._values(logits)  # (M, V)
        ids = torch.tensor([answers[i][place + 1] for i, place in places], device=values.device)
        given = [prompt.given[n] for prompt in prompts for n in some]
        counted = torch.tensor([place + 1 >= given[i] for i, place in places], device=values.device)
        scored = values[torch.arange(len(places), device=values.device), ids] * counted
        count = len(prompts[0].answers)
        word_of = [(i // len(some)) * count + some[i % len(some)] for i, _ in places]
        sums = scored.new_zeros(len(prompts) * count)
        return sums.index_add(0, torch.tensor(word_of, device=scored.device), scored).view(-1, count)

    def _values(self, logits: Tensor) -> Tensor:
        return logits if self.task.scoring == "logit" else logits.log_softmax(-1)

    def _read(
        self, ids: Sequence[list[int]], before: Sequence[list[int]], cache: Any, places: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Any]:
        """Logits (M, V) at places (sequence, position) of the ids behind a cache, and the longer cache.

        before: the mask of what is cached, 0 at its padding.
        """
        device, width = device_of(self.host), max(map(len, ids))
        index = torch.tensor(places, device=device)
        gaps = [width - len(each) for each in ids]
        mask = [[*ones, *[1] * len(each), *[0] * gap] for ones, each, gap in zip(before, ids, gaps, strict=True)]
        positions = torch.tensor([sum(ones) for ones in before])[:, None] + torch.arange(width)  # (B, T)
        last = torch.tensor([sum(ones) + max(1, len(each)) - 1 for ones, each in zip(before, ids, strict=True)])
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16)
        with selected_states(self.host.model, lambda states: states[index[:, 0], index[:, 1]][None]), autocast:
            outputs = self.host.model(
                input_ids=torch.tensor([[*each, *[0] * gap] for each, gap in zip(ids, gaps, strict=True)]).to(device),
                attention_mask=torch.tensor(mask).to(device),
                position_ids=positions.clamp(max=last[:, None]).to(device),  # padding has no position of its own
                past_key_values=cache,
                use_cache=True,
            )
        return token_logits(outputs), outputs.past_key_values


def _grows(cache: Any) -> bool:
    """Whether a cache holds the keys and values of all tokens in every layer, and nothing else."""
    layers: Any = getattr(cache, "layers", ())
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _repeated(cache: Any, times: int, expand: bool = False) -> Any:
    """A cache of the same keys and values `times` times, each row's behind one another; the old one stays as it is."""
    if cache is None:
        return None
    repeated = copy(cache)
    repeated.layers = [copy(layer) for layer in cache.layers]
    for layer in repeated.layers:
        for name in ("keys", "values"):
            tensor = getattr(layer, name)
            more = tensor.expand(times, -1, -1, -1) if expand else tensor.repeat_interleave(times, 0)
            setattr(layer, name, more)
    return repeated


def _chunks(numbers: list[int], size: int) -> list[list[int]]:
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]
