"""Next-sentence prediction: masked language modelling of pairs, and whether the second passage follows the first."""

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
from deltatune.tasks.pretraining.masking import Choose, check_rate, word_units_by_marks
from deltatune.tasks.pretraining.mlm import mask_facts, remasked, unmasked_row
from deltatune.tasks.pretraining.objective import Objective
from deltatune.tasks.pretraining.random_draws import random_integer, uniform, uniforms
from deltatune.tasks.task import Encoded, Row, TokenRow, column
from deltatune.tasks.tokenization import check_length

Sentence = Sequence[int]
"""Token ids, without special ones."""


@dataclass(frozen=True)
class NextSentence(Objective):
    """-log p(b follows a) - Σ log p(x_i | x̃)     Devlin et al. 2018, https://arxiv.org/abs/1810.04805

    Documents are split into pairs of passages once, by `seed`; masks are drawn again in every epoch. Each of the two
    losses is a mean, and both have the same weight.
    """

    name: ClassVar[str] = "nsp"
    loads: ClassVar[Loads] = "pairs"
    extra_labels: ClassVar[tuple[str, ...]] = ("pair_labels",)
    metric_names: ClassVar[tuple[str, ...]] = ("perplexity", "loss", "accuracy", "pair_accuracy", "pair_loss")
    shortest: ClassVar[int] = 5

    unit: Literal["token", "word"] = "token"
    """What is masked as a whole."""
    rate: float = 0.15
    """Share of the tokens that are chosen."""
    shares: tuple[float, ...] = (0.8, 0.1, 0.1)
    """Shares of the chosen tokens that become the mask token, become a random token, or stay."""
    choose: Choose = "count"
    """count: round(rate * tokens) of each input, as in BERT; each: every unit with probability rate."""
    short: float = 0.1
    """Share of the documents that are split into shorter pairs, of a random length."""
    copies: int = 1
    """How many times all documents are paired, each time differently; BERT's code had 10."""

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
        """Pair the documents' sentences and mask each pair once; each pair becomes a row of its own.

        A text has one sentence per line, and a blank line ends a document, as in the files of BERT's code. A list of
        sentences is one document. Raises DeltatuneError for fewer than two documents, and as masking does.
        """
        check_length(self.max_length, positions, positions_taken)
        facts, frame = mask_facts(tokenizer), pair_frame(tokenizer)
        documents = tokenise_sentences(split_sentences(column(rows, self.text[0])), tokenizer) if rows else []
        pairs: list[SentencePair] = []
        for copy in range(self.copies if rows else 0):
            generator = generator_for(self.seed, f"pairs.{copy}")
            pairs += pair_documents(documents, generator, self.max_length - frame.size, self.short)
        ids = [frame.ids(pair) for pair in pairs]
        words = word_units_by_marks(ids, tokenizer) if self.unit == "word" else [None] * len(ids)
        encoded = []
        for i, (pair, units) in enumerate(zip(pairs, words, strict=True)):
            tokens = {"input_ids": ids[i], "attention_mask": [1] * len(ids[i]), "token_type_ids": frame.types(pair)}
            row = unmasked_row(tokens, frame.special(pair), units, facts)
            encoded.append(row | {"pair_label": int(pair.is_random)})
        return self.drawn(encoded, range(len(pairs)), len(pairs))

    def draw(self, row: TokenRow, generator: torch.Generator) -> TokenRow:
        """The pair with other tokens masked."""
        return remasked(row, generator, self.rate, self.shares, self.choose)

    def model_loss(self, logits: Tensor, labels: Tensor, outputs: Any, extra_labels: Mapping[str, Tensor]) -> Tensor:
        """Masked tokens and pairs: the mean loss of the pairs counts as much as the mean loss of the tokens."""
        pair_loss = F.cross_entropy(outputs.seq_relationship_logits.float(), extra_labels["pair_labels"])
        return self.loss(logits, labels) + pair_loss * len(labels)

    def extra_statistics(self, outputs: Any, extra_labels: Mapping[str, Tensor]) -> Tensor | None:
        """Negative log-likelihood of each pair's label in nats, and 1 where it is the likelier label: (B, 2)."""
        logits, labels = outputs.seq_relationship_logits.float(), extra_labels["pair_labels"]  # (B, 2), (B,)
        return torch.stack([F.cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels], 1)

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> list[dict[str, Any]]:
        """The numbers of the masked tokens, and `{"pair_nll", "pair_right"}` of each pair."""
        answers = super().collect(pieces, encoded)
        for answer, (*_, nll, right) in zip(answers, pieces, strict=True):
            answer |= {"pair_nll": float(nll), "pair_right": int(right)}
        return answers

    def decode(self, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The scores of the masked tokens, and `{"pair_loss", "pair_right"}`."""
        return [
            {**tokens, "pair_loss": answer["pair_nll"], "pair_right": bool(answer["pair_right"])}
            for tokens, answer in zip(super().decode(answers), answers, strict=True)
        ]

    def corpus_scores(
        self, answers: list[dict[str, Any]], references: Any = None, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """Every metric; references are not needed."""
        keys = {"pair_accuracy": "pair_right", "pair_loss": "pair_nll"}
        pair_scores = {name: mean_score([answer[key] for answer in answers]) for name, key in keys.items()}
        return {**super().corpus_scores(answers), **pair_scores}

    def target(self) -> str:
        return f"whether a passage follows another, and {self.rate:.0%} of the {self.unit}s,"


# ---- pairs of passages


class SentencePair(NamedTuple):
    """Two passages, and whether the second comes from another document (BERT's label 1) or follows the first (0)."""

    a: list[int]
    b: list[int]
    is_random: bool


def pair_documents(
    documents: Sequence[Sequence[Sentence]], generator: torch.Generator, max_tokens: int, short: float = 0.1
) -> list[SentencePair]:
    """Split documents (sentences of token ids) into pairs of passages, as BERT's create_pretraining_data.py does.

    max_tokens: longest pair, special tokens not counted (BERT's 128 are 125).
    short: probability that a document has a shorter limit, drawn from 2 to max_tokens.
    Sentences are gathered up to the limit and split at a random sentence. Half of the time the rest is the second
    passage. Otherwise, and always where one sentence fills the limit, the second passage comes from a random position
    of another document, and the rest is gathered again. A pair that is too long loses tokens of its longer passage, at
    a random end each.

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
    return [pair for number in numbers for pair in _pairs_of(nonempty, number, generator, max_tokens, short)]


def _pairs_of(
    documents: Sequence[Sequence[Sentence]], number: int, generator: torch.Generator, longest: int, short: float
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
        is_random = len(gathered) == 1 or uniform(generator) < 0.5
        if is_random:
            b = _random_passage(documents, number, generator, limit - len(a))
            index -= len(gathered) - split  # the rest is gathered again
        else:
            b = [token for sentence in gathered[split:] for token in sentence]
        pairs.append(SentencePair(*_truncated(a, b, longest, generator), is_random))
        gathered = []
    return pairs


def _random_passage(
    documents: Sequence[Sequence[Sentence]], number: int, generator: torch.Generator, length: int
) -> list[int]:
    """Sentences from a random position of another document, until there are `length` tokens; at least one sentence."""
    other = random_integer(0, len(documents) - 2, generator)
    document = documents[other + (other >= number)]
    tokens: list[int] = []
    for sentence in document[random_integer(0, len(document) - 1, generator) :]:
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
