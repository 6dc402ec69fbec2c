"""Pairs of passages for next-sentence prediction: documents to sentences, to pairs, to inputs with special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.pretraining.random_draws import random_integer, uniform, uniforms

Sentence = Sequence[int]
"""Token ids, without special ones."""


class SentencePair(NamedTuple):
    """Two passages, and whether the second follows the first (0), is from another document (1), or lies apart (2)."""

    a: list[int]
    b: list[int]
    label: int

    @property
    def is_random(self) -> bool:
        """Whether the second comes from another document: BERT's label 1."""
        return self.label == 1


def pair_documents(
    documents: Sequence[Sequence[Sentence]],
    generator: torch.Generator,
    max_tokens: int,
    short: float = 0.1,
    classes: Literal[2, 3] = 2,
) -> list[SentencePair]:
    """Split documents (sentences of token ids) into pairs of passages, as BERT's create_pretraining_data.py does.

    max_tokens: longest pair, special tokens not counted (BERT's 128 are 125).
    short: probability that a document has a shorter limit, drawn from 2 to max_tokens.
    Sentences are gathered up to the limit and split at a random sentence. Half of the time the rest is the second
    passage. Otherwise, and always where one sentence fills the limit, the second passage comes from a random position
    of another document, and the rest is gathered again. A pair that is too long loses tokens of its longer passage, at
    a random end each.
    With three classes a third of the second passages are of the same document and apart: before or behind the first
    passage, with at least one sentence between. Where there is no such place, and where nothing follows, the other
    relations share its part alike.

    One difference: the other document is never the same one, while BERT's code gives up after ten draws.
    """
    if max_tokens < 2:
        raise DeltatuneError(f"pairs of {max_tokens} tokens cannot be made; max_tokens must be 2 or more")
    nonempty = [document for document in ([s for s in d if len(s)] for d in documents) if document]
    if len(nonempty) < 2:
        raise DeltatuneError(
            f"there is {len(nonempty) or 'no'} document with text; pairs need two or more, since random passages come "
            "from another document (in a text file a blank line ends a document)"
        )
    numbers = range(len(nonempty))
    return [pair for number in numbers for pair in _pairs_of(nonempty, number, generator, max_tokens, short, classes)]


def _pairs_of(
    documents: Sequence[Sequence[Sentence]],
    number: int,
    generator: torch.Generator,
    longest: int,
    short: float,
    classes: int,
) -> list[SentencePair]:
    document = documents[number]
    limit = random_integer(2, longest, generator) if uniform(generator) < short else longest
    pairs, gathered, index = [], list[Sentence](), 0
    while index < len(document):
        gathered.append(document[index])
        index += 1
        if index < len(document) and sum(map(len, gathered)) < limit:
            continue
        split = random_integer(1, len(gathered) - 1, generator) if len(gathered) > 1 else 1
        a = [token for sentence in gathered[:split] for token in sentence]
        first = index - len(gathered)
        places = _apart(document, first, first + split) if classes == 3 else []
        label = _relation(len(gathered) > 1, places, classes, generator)
        if label == 0:
            b = [token for sentence in gathered[split:] for token in sentence]
        else:
            b = (
                _random_passage(documents, number, generator, limit - len(a))
                if label == 1
                else _passage(places[random_integer(0, len(places) - 1, generator)], limit - len(a))
            )
            index -= len(gathered) - split  # the rest is gathered again
        pairs.append(SentencePair(*_truncated(a, b, longest, generator), label))
        gathered = []
    return pairs


def _relation(follows: bool, places: Sequence[object], classes: int, generator: torch.Generator) -> int:
    """The label of a pair: of those that are possible, all are equally likely."""
    if classes == 2:
        return int(not follows or uniform(generator) < 0.5)
    possible = [0] * follows + [1] + [2] * bool(places)
    return possible[random_integer(0, len(possible) - 1, generator)] if len(possible) > 1 else possible[0]


def _apart(document: Sequence[Sentence], first: int, end: int) -> list[Sequence[Sentence]]:
    """The sentences from every place where a passage apart from sentences `first` to `end` (excluded) can begin."""
    before = [document[start : first - 1] for start in range(first - 1)]
    return before + [document[start:] for start in range(end + 1, len(document))]


def _random_passage(
    documents: Sequence[Sequence[Sentence]], number: int, generator: torch.Generator, length: int
) -> list[int]:
    """Sentences from a random position of another document, until there are `length` tokens; at least one sentence."""
    other = random_integer(0, len(documents) - 2, generator)
    document = documents[other + (other >= number)]
    return _passage(document[random_integer(0, len(document) - 1, generator) :], length)


def _passage(sentences: Sequence[Sentence], length: int) -> list[int]:
    """The tokens of sentences until there are `length`; at least one sentence."""
    tokens: list[int] = []
    for sentence in sentences:
        tokens += sentence
        if len(tokens) >= length:
            break
    return tokens


def _truncated(a: list[int], b: list[int], longest: int, generator: torch.Generator) -> tuple[list[int], list[int]]:
    """Both passages with at most `longest` tokens; each surplus token is cut off an end of the longer one."""
    ends = ([0, len(a)], [0, len(b)])
    for draw in uniforms(max(0, len(a) + len(b) - longest), generator):
        longer = ends[0] if ends[0][1] - ends[0][0] > ends[1][1] - ends[1][0] else ends[1]
        if draw < 0.5:
            longer[0] += 1
        else:
            longer[1] -= 1
    return a[slice(*ends[0])], b[slice(*ends[1])]


# ---- sentences and special tokens


def split_sentences(values: Sequence[Any]) -> list[list[str]]:
    """Documents as lists of sentences."""
    documents: list[list[str]] = []
    for i, value in enumerate(values):
        if not isinstance(value, str):
            if not isinstance(value, (list, tuple)) or not all(isinstance(sentence, str) for sentence in value):
                raise DeltatuneError(f"row {i}: {value!r} is neither a text nor a list of sentences")
            documents.append([sentence for sentence in value if sentence.strip()])
            continue
        documents.append([])
        for line in value.splitlines():
            if line.strip():
                documents[-1].append(line.strip())
            elif documents[-1]:
                documents.append([])
    return [document for document in documents if document]


def tokenise_sentences(documents: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase) -> list[list[list[int]]]:
    """Token ids of every sentence, without special tokens."""
    flat = [sentence for document in documents for sentence in document]
    ids = iter(tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"] if flat else [])
    return [[next(ids) for _ in document] for document in documents]


class PairFrame(NamedTuple):
    """The special tokens around the passages of a pair, each with its segment."""

    before: list[tuple[int, int]]
    between: list[tuple[int, int]]
    after: list[tuple[int, int]]
    second: int
    """Segment of the second passage."""

    @property
    def size(self) -> int:
        """Number of special tokens."""
        return len(self.before) + len(self.between) + len(self.after)

    def ids(self, pair: SentencePair) -> list[int]:
        """The whole input."""
        before, between, after = ([id for id, _ in part] for part in self[:3])
        return [*before, *pair.a, *between, *pair.b, *after]

    def types(self, pair: SentencePair) -> list[int]:
        """The segment of every token."""
        before, between, after = ([segment for _, segment in part] for part in self[:3])
        return [*before, *[0] * len(pair.a), *between, *[self.second] * len(pair.b), *after]

    def special(self, pair: SentencePair) -> list[bool]:
        """Whether each token is a special one."""
        before, between, after = ([True] * len(part) for part in self[:3])
        return [*before, *[False] * len(pair.a), *between, *[False] * len(pair.b), *after]


def pair_frame(tokenizer: PreTrainedTokenizerBase) -> PairFrame:
    """The special tokens that a tokenizer puts around a pair, from an example."""
    encoding = tokenizer("a", "a", return_token_type_ids=True)
    sides = encoding.sequence_ids(0)
    tokens = list(zip(encoding["input_ids"], encoding["token_type_ids"], strict=True))
    a, b = ([i for i, side in enumerate(sides) if side == which] for which in (0, 1))
    return PairFrame(tokens[: a[0]], tokens[a[-1] + 1 : b[0]], tokens[b[-1] + 1 :], tokens[b[0]][1])
