"""Pairs of passages for next sentence prediction.

BERT, Devlin et al. 2018, https://arxiv.org/abs/1810.04805; which sentences go where is as in its
create_pretraining_data.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.objectives.drawing import fraction, fractions, integer

Sentence = Sequence[int]
"""Token ids, without special ones."""


class Pair(NamedTuple):
    """Two passages, and whether the second comes from another document (BERT's label 1) or follows the first (0)."""

    a: list[int]
    b: list[int]
    is_random: bool


def pair_documents(
    documents: Sequence[Sequence[Sentence]], generator: torch.Generator, max_tokens: int, short: float = 0.1
) -> list[Pair]:
    """Cut documents (sentences of token ids) into pairs of passages with at most `max_tokens` tokens in all.

    Sentences are gathered until they have max_tokens tokens or, with probability `short` for a document, a number
    drawn from 2 to max_tokens. The gathered are cut at a random place. Half of the time the second part is the second
    passage; otherwise, and always where one sentence fills the passage, that comes from a random place of another
    document, and the sentences of the unused part are put back and gathered again. What is too long loses tokens of
    its longer passage, from the front or the back at random. `max_tokens` does not count special tokens: BERT's 128
    are 125.

    One thing differs: the other document is never the same one, where BERT's code gives up after ten draws.
    """
    if max_tokens < 2:
        raise DeltatuneError(f"pairs of {max_tokens} tokens cannot be made; max_tokens must be 2 or more")
    filled = [document for document in ([s for s in d if len(s)] for d in documents) if document]
    if len(filled) < 2:
        raise DeltatuneError(
            f"there is {len(filled) or 'no'} document with text; pairs need two or more, of which the random "
            "passages are drawn (in a text file a blank line ends a document)"
        )
    return [pair for number in range(len(filled)) for pair in _pairs_of(filled, number, generator, max_tokens, short)]


def _pairs_of(
    documents: Sequence[Sequence[Sentence]], number: int, generator: torch.Generator, most: int, short: float
) -> list[Pair]:
    document = documents[number]
    target = integer(2, most, generator) if fraction(generator) < short else most
    pairs, gathered, at = [], list[Sentence](), 0
    while at < len(document):
        gathered.append(document[at])
        at += 1
        if at < len(document) and sum(map(len, gathered)) < target:
            continue
        cut = integer(1, len(gathered) - 1, generator) if len(gathered) > 1 else 1
        a = [token for sentence in gathered[:cut] for token in sentence]
        is_random = len(gathered) == 1 or fraction(generator) < 0.5
        if is_random:
            b = _elsewhere(documents, number, generator, target - len(a))
            at -= len(gathered) - cut  # they are put back
        else:
            b = [token for sentence in gathered[cut:] for token in sentence]
        pairs.append(Pair(*_truncated(a, b, most, generator), is_random))
        gathered = []
    return pairs


def _elsewhere(
    documents: Sequence[Sequence[Sentence]], number: int, generator: torch.Generator, wanted: int
) -> list[int]:
    """Sentences from a random place of another document on, until there are `wanted` tokens; at least one sentence."""
    other = integer(0, len(documents) - 2, generator)
    document = documents[other + (other >= number)]
    tokens: list[int] = []
    for sentence in document[integer(0, len(document) - 1, generator) :]:
        tokens += sentence
        if len(tokens) >= wanted:
            break
    return tokens


def _truncated(a: list[int], b: list[int], most: int, generator: torch.Generator) -> tuple[list[int], list[int]]:
    """Both passages without the tokens that are too many, each taken off an end of what is the longer one by then."""
    ends = ([0, len(a)], [0, len(b)])
    for drawn in fractions(max(0, len(a) + len(b) - most), generator):
        longer = ends[0] if ends[0][1] - ends[0][0] > ends[1][1] - ends[1][0] else ends[1]
        if drawn < 0.5:
            longer[0] += 1
        else:
            longer[1] -= 1
    return a[slice(*ends[0])], b[slice(*ends[1])]
