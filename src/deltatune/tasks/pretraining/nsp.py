"""Pairs of passages for next sentence prediction.

BERT, Devlin et al. 2018, https://arxiv.org/abs/1810.04805; which sentences go where is as in its
create_pretraining_data.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError
from deltatune.models.architecture import Loads
from deltatune.tasks.metrics.corpus_score import CorpusScore, mean_score
from deltatune.tasks.pretraining.masking import Choose, check_rate, words_by_marks
from deltatune.tasks.pretraining.mlm import hidden_row, mask_facts, masked_anew
from deltatune.tasks.pretraining.objective import Objective
from deltatune.tasks.pretraining.random_draws import fraction, fractions, integer
from deltatune.tasks.task import Encoded, Row, TokenRow, column
from deltatune.tasks.tokenization import check_length

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


@dataclass(frozen=True)
class NextSentence(Objective):
    """-log p(b follows a) - Σ log p(x_i | x̃)     Devlin et al. 2018, https://arxiv.org/abs/1810.04805

    Pairs of passages are made of documents once, by `seed`; what is masked in them is drawn anew in every epoch. Each
    of the two losses is a mean, and both count alike.
    """

    extra_labels: ClassVar[tuple[str, ...]] = ("pair_labels",)
    name: ClassVar[str] = "nsp"
    loads: ClassVar[Loads] = "pairs"
    known: ClassVar[tuple[str, ...]] = ("perplexity", "loss", "accuracy", "pair_accuracy", "pair_loss")
    least: ClassVar[int] = 5

    unit: Literal["token", "word"] = "token"
    """What is masked as a whole."""
    rate: float = 0.15
    """Share of the tokens that is chosen."""
    shares: tuple[float, ...] = (0.8, 0.1, 0.1)
    """Of the chosen: shares that become the mask, a random token, or stay."""
    choose: Choose = "count"
    """count: round(rate * tokens) of each input, as in BERT; each: every unit with the rate."""
    short: float = 0.1
    """Share of the documents that are cut into shorter pairs, of a random length."""
    copies: int = 1
    """How often all documents are paired, differently each time; BERT's code had 10."""

    def check(self) -> None:
        check_rate(self.rate, self.shares)
        if self.copies < 1 or not 0 <= self.short <= 1:
            raise DeltatuneError(f"copies={self.copies} must be 1 or more, and short={self.short} from 0 to 1")

    def encode(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        *,
        positions: int | None = None,
        positions_taken: int = 0,
        labelled: bool = True,
        joined: bool = True,
    ) -> Encoded:
        """Pair the documents' sentences and mask each pair once; a pair is a row of its own from here on.

        A text is read as BERT's code reads files: a sentence a line, and a blank line ends a document. A list of
        sentences is one document. Raises DeltatuneError for fewer than two documents, and what masking refuses.
        """
        check_length(self.max_length, positions, positions_taken)
        facts, frame = mask_facts(tokenizer), frame_of(tokenizer)
        documents = tokenised(sentences_of(column(rows, self.text[0])), tokenizer) if rows else []
        pairs: list[Pair] = []
        for copy in range(self.copies if rows else 0):
            generator = generator_for(self.seed, f"pairs.{copy}")
            pairs += pair_documents(documents, generator, self.max_length - frame.size, self.short)
        ids = [frame.ids(pair) for pair in pairs]
        words = words_by_marks(ids, tokenizer) if self.unit == "word" else [None] * len(ids)
        encoded = []
        for i, (pair, units) in enumerate(zip(pairs, words, strict=True)):
            tokens = {"input_ids": ids[i], "attention_mask": [1] * len(ids[i]), "token_type_ids": frame.types(pair)}
            row = hidden_row(tokens, frame.special(pair), units, facts) | {"pair_label": int(pair.is_random)}
            encoded.append(self.draw(row, generator_for(self.seed, f"draw.{i}")))
        nothing: list[Any] = [None] * len(pairs)
        return Encoded(encoded, 0, range(len(pairs)), nothing, nothing)

    def draw(self, row: TokenRow, generator: torch.Generator) -> TokenRow:
        """The pair with other tokens masked."""
        return masked_anew(row, generator, self.rate, self.shares, self.choose)

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> list[dict[str, Any]]:
        """What masked words say, and `{"pair_nll", "pair_right"}` of each pair."""
        found = super().collect(pieces, encoded)
        for one, (*_, nll, right) in zip(found, pieces, strict=True):
            one |= {"pair_nll": float(nll), "pair_right": int(right)}
        return found

    def decode(self, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What masked words say, and `{"pair_loss", "pair_right"}`."""
        pairs = [{"pair_loss": one["pair_nll"], "pair_right": bool(one["pair_right"])} for one in answers]
        return [{**words, **pair} for words, pair in zip(super().decode(answers), pairs, strict=True)]

    def model_loss(self, logits: Tensor, labels: Tensor, outputs: Any, extra_labels: Mapping[str, Tensor]) -> Tensor:
        """Masked tokens and pairs: the mean loss of the pairs counts as much as the mean loss of the tokens."""
        pair_loss = F.cross_entropy(outputs.seq_relationship_logits.float(), extra_labels["pair_labels"])
        return self.loss(logits, labels) + pair_loss * len(labels)

    def extra_statistics(self, outputs: Any, extra_labels: Mapping[str, Tensor]) -> Tensor | None:
        """Negative log-likelihood of each pair's label in nats, and 1 where it is the likelier label: (B, 2)."""
        logits, labels = outputs.seq_relationship_logits.float(), extra_labels["pair_labels"]  # (B, 2), (B,)
        return torch.stack([F.cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels], 1)

    def corpus_scores(
        self, answers: list[dict[str, Any]], references: Any = None, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """Every metric; references are not needed."""
        pairs = {"pair_accuracy": "pair_right", "pair_loss": "pair_nll"}
        pair_scores = {name: mean_score([answer[key] for answer in answers]) for name, key in pairs.items()}
        return {**super().corpus_scores(answers), **pair_scores}

    def asked(self) -> str:
        """What is asked for, in words."""
        return f"whether a passage follows another, and {self.rate:.0%} of the {self.unit}s,"


def sentences_of(values: Sequence[Any]) -> list[list[str]]:
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


def tokenised(documents: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase) -> list[list[list[int]]]:
    """Token ids of every sentence, without special tokens."""
    flat = [sentence for document in documents for sentence in document]
    found = iter(tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"] if flat else [])
    return [[next(found) for _ in document] for document in documents]


class Frame(NamedTuple):
    """The special tokens a tokenizer puts around a pair, and their segments."""

    before: list[tuple[int, int]]
    between: list[tuple[int, int]]
    behind: list[tuple[int, int]]
    second: int
    """Segment of the second passage."""

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.before) + len(self.between) + len(self.behind)

    def ids(self, pair: Pair) -> list[int]:
        """The whole input."""
        marks = [[id for id, _ in part] for part in self[:3]]
        return [*marks[0], *pair.a, *marks[1], *pair.b, *marks[2]]

    def types(self, pair: Pair) -> list[int]:
        """The segment of every token."""
        marks = [[kind for _, kind in part] for part in self[:3]]
        return [*marks[0], *[0] * len(pair.a), *marks[1], *[self.second] * len(pair.b), *marks[2]]

    def special(self, pair: Pair) -> list[bool]:
        """Whether each token is a special one."""
        marks = [[True] * len(part) for part in self[:3]]
        return [*marks[0], *[False] * len(pair.a), *marks[1], *[False] * len(pair.b), *marks[2]]


def frame_of(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """What a tokenizer puts around a pair, seen on one."""
    found = tokenizer("a", "a", return_token_type_ids=True)
    sides = found.sequence_ids(0)
    tokens = list(zip(found["input_ids"], found["token_type_ids"], strict=True))
    a, b = ([place for place, side in enumerate(sides) if side == which] for which in (0, 1))
    return Frame(tokens[: a[0]], tokens[a[-1] + 1 : b[0]], tokens[b[-1] + 1 :], tokens[b[0]][1])
