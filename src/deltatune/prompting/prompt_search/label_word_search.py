"""Search for label words: those that a model finds likely in the blank of each class, paired by training accuracy.

Gao et al. 2021, section 5.1, https://arxiv.org/abs/2012.15723
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from deltatune.core.errors import DeltatuneError
from deltatune.prompting.prompt_search.blank_readings import blank_words, class_numbers, read_blanks, rows_in_turn
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.label_words.verbalizer import Words, word_tokens
from deltatune.tasks.task import Row
from deltatune.training.session import Session

NUMBERS_AT_ONCE = 50_000_000
"""Numbers of a table of pairings by rows, which bounds memory."""
COMPARISONS = 200_000_000
"""Comparisons of two numbers for each class, which bounds the time of many classes."""
MOST_PAIRINGS = 20_000
"""Pairings that go on to the next class: two classes with a hundred words each are compared whole."""


class Pairing(NamedTuple):
    """One word for each class."""

    words: tuple[int, ...]
    """Columns of the words."""
    accuracy: float
    """Share of the training rows whose own word has the highest logit."""
    likelihood: float
    """Sum over the classes of the mean logit of the word in the class's rows, which decides between equal ones."""


def class_means(logits: NDArray[np.float32], labels: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Mean logits (C, W) of the rows of each class, from logits (N, W) and class numbers (N,)."""
    return np.stack([logits[labels == number].astype(np.float64).mean(0) for number in range(classes)])


def likely_words(means: NDArray[np.float64], most: int) -> list[list[int]]:
    """The `most` columns of the highest mean logits for each class, the highest first; equal ones in their order."""
    return [np.argsort(-row, kind="stable")[:most].tolist() for row in means]


def nearest_words(
    vectors: torch.Tensor, seeds: torch.Tensor, candidates: Sequence[Sequence[int]], most: int
) -> list[list[int]]:
    """The `most` candidates of each class whose vectors (W, D) are nearest by cosine to the class's seed (C, D)."""
    similarity = F.cosine_similarity(seeds.double()[:, None], vectors.double()[None], dim=-1)  # (C, W)
    return [
        sorted(listed, key=lambda word: -float(similarity[number, word]))[:most]
        for number, listed in enumerate(candidates)
    ]


def accuracy_of(logits: NDArray[np.float32], labels: NDArray[np.int64], words: Sequence[int]) -> float:
    """Share of the rows whose class's word has the highest of the logits (N, W) of these words; the first of equals."""
    return float((logits[:, list(words)].argmax(1) == labels).mean())


def best_pairings(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    candidates: Sequence[Sequence[int]],
    most: int,
    width: int = MOST_PAIRINGS,
) -> list[Pairing]:
    """The best pairings of one word for each class out of its candidates, by accuracy on the rows.

    Classes come in one after another; the best `width` pairings so far, by the accuracy among the classes so far, go
    on. So all pairings are compared where there are no more than `width` of them up to the last class but one: as in
    the paper, which takes fewer words where there are more classes. No word is of two classes.
    """
    means = class_means(logits, labels, len(candidates))
    words = np.zeros((1, 0), np.int64)  # (P, classes so far)
    likelihood = np.zeros(1)
    highest = np.full((1, len(labels)), -np.inf, np.float32)  # (P, N): the highest logit of the words so far
    own = highest.copy()  # (P, N): that of the row's own word, for the rows of the classes so far
    for number, listed in enumerate(candidates):
        columns = np.asarray(listed)
        scores = logits[:, columns]  # (N, K)
        correct = _numbers_correct(scores, labels, number, highest, own)  # (P, K)
        taken = (words[:, :, None] == columns).any(1)  # (P, K)
        sums = likelihood[:, None] + means[number, columns]
        order = np.lexsort((-sums.ravel(), -np.where(taken, -1, correct).ravel()))
        last = number + 1 == len(candidates)
        room = most if last else max(most, min(width, COMPARISONS // scores.size))
        owners, places = np.divmod(order[: min(room, int((~taken).sum()))], len(columns))
        if not len(owners):
            raise DeltatuneError(
                f"{len(candidates)} classes need a word each, and fewer different words are left; try more words"
            )
        words = np.concatenate([words[owners], columns[places][:, None]], 1)
        likelihood = sums[owners, places]
        added = scores[:, places].T  # (P', N)
        highest = np.maximum(highest[owners], added)
        own = np.where(labels == number, added, own[owners])
    accuracies = (own >= highest).mean(1)
    values = zip(words.tolist(), accuracies.tolist(), likelihood.tolist(), strict=True)
    return [Pairing(tuple(each), accuracy, total) for each, accuracy, total in values]


def _numbers_correct(
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    number: int,
    highest: NDArray[np.float32],
    own: NDArray[np.float32],
) -> NDArray[np.int64]:
    """Correct rows (P, K) of each pairing with each word of the class `number`, among the classes up to it."""
    before, new = labels < number, labels == number
    parts = []
    chunk = max(1, NUMBERS_AT_ONCE // scores.size)
    for start in range(0, len(own), chunk):
        some = slice(start, start + chunk)
        old_own = own[some][:, before]
        right = old_own >= highest[some][:, before]
        still = (right[:, :, None] & (old_own[:, :, None] >= scores[before])).sum(1)
        parts.append(still + (scores[new] >= highest[some][:, new][:, :, None]).sum(1))
    correct: NDArray[np.int64] = np.concatenate(parts)
    return correct


def search_label_words(
    session: Session, task: LabelWords, rows: Sequence[Row], tried: int = 100, most: int = 10, neighbors: int = 0
) -> list[tuple[Words, float]]:
    """The best words of the classes in the task's template, with their accuracy on the training rows without training.

    tried: likeliest words of each class that are paired; neighbors: of these only as many as are nearest to the task's
    own first word of the class, where it is above 0; most: pairings that are returned, the best first.
    Raises DeltatuneError for a class without rows, and for a blank with fewer words than there are classes.
    """
    template = task.templates[0]
    vocabulary = session.host.sites.facts.vocabulary
    words = blank_words(session.tokenizer, template, vocabulary)
    classes = len(task.labels)
    if len(words) < classes:
        raise DeltatuneError(
            f"{classes} classes need a word each, and this tokenizer has {len(words)} words of one token in the blank "
            f"of {template.text!r}; give the words (--words)"
        )
    chosen = rows_in_turn(task, rows)
    columns = list(words)
    own = replace(task, words=tuple((words[token],) for token in columns[:classes]))
    logits = read_blanks(session, own, chosen, columns).logits.numpy()
    labels = class_numbers(task, chosen).numpy()
    candidates = likely_words(class_means(logits, labels, classes), max(tried, classes))
    if neighbors:
        head = session.host.model.get_output_embeddings()  # type: ignore[operator]
        vectors = head.weight.detach().cpu()
        own_words = word_tokens(tuple(of_class[:1] for of_class in task.words), template, session.tokenizer)
        seeds = torch.stack([vectors[torch.tensor(ids)].mean(0) for ids in own_words])
        candidates = nearest_words(vectors[torch.tensor(columns)], seeds, candidates, max(neighbors, classes))
    return [
        (tuple((words[columns[column]],) for column in pairing.words), pairing.accuracy)
        for pairing in best_pairings(logits, labels, candidates, most)
    ]


def label_token_scores(weights: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Log-scores (C, W) of words for classes: log-softmax over the classes of the classifier's weights (C, D) times the
    output vectors (W, D) of the words. Shin et al. 2020, section 2.3, https://arxiv.org/abs/2010.15980"""
    return (weights.double() @ vectors.double().T).log_softmax(0)


def fit_classifier(
    states: torch.Tensor, labels: torch.Tensor, classes: int, steps: int = 500, rate: float = 1e-2
) -> torch.Tensor:
    """Weights (C, D) of a logistic regression from states (N, D) to classes (N,), by Adam on all rows from zero."""
    weights = torch.zeros(classes, states.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.Adam([weights, bias], lr=rate)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(states @ weights.T + bias, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return weights.detach()
