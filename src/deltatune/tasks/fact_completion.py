"""Fact completion: the object of a fact, one token at the blank of a wording that names its subject."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.field_validation import check_fields
from deltatune.data import LabelKind
from deltatune.data.columns.column_names import REFERENCES
from deltatune.models.architecture import Answers, Loads
from deltatune.tasks.blanks import (
    LONG,
    NO_CANDIDATE,
    SUBJECT,
    Blank,
    blank_of,
    object_ids,
    sentinels_of,
    wording_problems,
)
from deltatune.tasks.metrics.corpus_score import CorpusScore, ratio_score
from deltatune.tasks.metrics.likelihood_scores import likelihood_scores
from deltatune.tasks.pretraining.span_corruption import sentinel_ids
from deltatune.tasks.prompts.template_tokens import Rendered
from deltatune.tasks.prompts.templates import Template
from deltatune.tasks.row_columns import raise_listed, text_column
from deltatune.tasks.task import IGNORED, Encoded, LanguageModelTask, Row, TokenRow
from deltatune.tasks.tokenization import not_words, word_of

RANKED_ROWS = 64
"""Rows whose scores over the vocabulary are compared at once, which takes several times their memory."""
LENGTHS = ("input_ids", "decoder_input_ids")
"""Inputs that the model has positions for."""


@dataclass(frozen=True)
class FactCompletion(LanguageModelTask):
    """-log p(object | wording with the subject)     Petroni et al. 2019, https://arxiv.org/abs/1909.01066

    The object is one token. It is ranked among the candidates, or among all tokens that are words: P@k is the share of
    the rows whose object is among the k likeliest. Virtual tokens in the wording are what OptiPrompt and P-tuning train
    (Zhong et al. 2021, https://arxiv.org/abs/2104.05240; Liu et al. 2021, https://arxiv.org/abs/2103.10385).
    `fact_task` fills in what the model and the tokenizer decide.
    """

    name: ClassVar[str] = "fact"
    answers: ClassVar[Answers] = "likelihood"
    label_kind: ClassVar[LabelKind] = "text"
    loads: ClassVar[Loads] = "words"
    inference_fields: ClassVar[tuple[str, ...]] = ("metric", "top")

    template: str = "{subject} is {mask}."
    """The wording: {subject} the subject, {mask} the object; virtual tokens as in `Template`."""
    text: tuple[str, ...] = (SUBJECT,)
    """The column of subjects."""
    label: str = "object"
    """The column of objects."""
    blank: Blank = "mask"
    """How the model sees the blank."""
    start: int = 0
    """Id that the decoder of an encoder-decoder reads first."""
    vocabulary: int = 0
    """Rows of the model's token embedding; the ids of virtual tokens begin there."""
    candidates: tuple[int, ...] = ()
    """Ids of the tokens that are ranked, in order; empty for all that are words."""
    not_words: tuple[int, ...] = ()
    """Ids that are never ranked: special tokens, and rows of the embedding without a token."""
    over: Literal["vocabulary", "candidates"] = "vocabulary"
    """What the probability in the loss is shared by: the whole vocabulary, or the candidates."""
    top: int = 10
    """k of P@k."""
    metric: str = "p@1"
    """Primary metric."""

    def __post_init__(self) -> None:
        check_fields(self)
        problems = self.metric_problems("fact completion") + self.text_problems("subjects")
        problems += wording_problems(self.template, self.blank)
        if self.top < 1:
            problems.append(f"top must be at least 1, not {self.top}")
        if self.over == "candidates" and not self.candidates:
            problems.append("over='candidates' needs candidates")
        if list(self.candidates) != sorted(set(self.candidates)) or min(self.candidates, default=0) < 0:
            problems.append("candidates must be token ids in order, each once")
        raise_all(problems)

    @property
    def has_virtual_tokens(self) -> bool:
        """Whether the wording itself places an adapter's virtual tokens."""
        return any(part.kind == "virtual" for part in Template(self.template).parts)

    @property
    def metrics(self) -> tuple[str, ...]:
        """P@1, P@k, the mean reciprocal rank, and the loss in nats."""
        return tuple(dict.fromkeys(("p@1", f"p@{self.top}", "mrr", "loss")))

    # ---- rows to tokens

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
        """Tokenise rows. Raises DeltatuneError listing those that cannot be scored: see `encode_scorable`."""
        encoded, problems = self.encode_scorable(rows, tokenizer, positions, positions_taken, labelled)
        raise_listed(
            [
                f"row {i}: {_objects(rows[i], self.label)} of {rows[i].get(self.text[0])!r}: {reason}"
                for i, reason in problems.items()
            ],
            "an object is one token of this tokenizer, and one of the candidates if there are any; `deltatune facts` "
            "leaves other rows out and counts them",
        )
        return encoded

    def encode_scorable(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        positions: int | None = None,
        positions_taken: int = 0,
        labelled: bool = True,
    ) -> tuple[Encoded, dict[int, str]]:
        """The rows that can be scored as tokens, and by row number why the others cannot.

        Those are objects of several tokens, unknown ones and ones that are no candidates, and rows that are longer than
        the model's positions: rows are not truncated.
        """
        subjects = text_column(rows, self.text[0])
        objects: list[Sequence[str]] = [()] * len(rows)
        if labelled:
            one = text_column(rows, self.label)
            objects = [row.get(REFERENCES) or (answer,) for row, answer in zip(rows, one, strict=True)]
        template = Template(self.template)
        known = object_ids((each for several in objects for each in several), tokenizer, template.spaced_blank)
        candidates = frozenset(self.candidates)
        problems: dict[int, str] = {}
        for i, several in enumerate(objects):
            for id in (known[each] for each in several):
                if not isinstance(id, int):
                    problems[i] = id
                elif candidates and id not in candidates:
                    problems[i] = NO_CANDIDATE
        shown, own = self._shown(tokenizer), len(template.initial_ids(tokenizer))
        # virtual tokens that are in the row are not in front of it, too
        room = None if positions is None else positions - max(0, positions_taken - own)
        left = [i for i in range(len(rows)) if i not in problems]
        filled = [{SUBJECT: subjects[i]} for i in left]
        pieces: list[TokenRow] = []
        owners: list[int] = []
        kept: list[int] = []
        texts = template.render_rows(filled, tokenizer, self.vocabulary, None, shown)
        for i, rendered in zip(left, texts, strict=True):
            assert not isinstance(rendered, str)  # that is for rows beyond a length, and none is given
            ids = [known[each] for each in objects[i]] if labelled else [0]
            made = [self._tokens(rendered, int(id), shown, tokenizer) for id in ids]
            if room is not None and max(len(made[0][name]) for name in LENGTHS if name in made[0]) > room:
                problems[i] = LONG
                continue
            pieces += made
            owners += [len(kept)] * len(made)
            kept.append(i)
        references = [list(objects[i]) for i in kept] if labelled else None
        encoded = Encoded(pieces, 0, owners, [(tokenizer, labelled)] * len(kept), references)
        return encoded, dict(sorted(problems.items()))

    def _tokens(
        self, rendered: Rendered, id: int, shown: Sequence[int], tokenizer: PreTrainedTokenizerBase
    ) -> TokenRow:
        """One row, with `id` as the label at the blank, where `shown` stands."""
        ids = rendered.input_ids
        if self.blank == "next":  # the model reads the wording up to the blank
            ids = [*ids[: rendered.blank], id]
            return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORED] * (len(ids) - 1) + [id]}
        row: TokenRow = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        if self.blank == "mask":
            types = {"token_type_ids": rendered.token_type_ids} if has_token_types(tokenizer) else {}
            labels = [IGNORED] * len(ids)
            labels[rendered.blank] = id
            return {**row, **types, "labels": labels}
        # the decoder writes the span after its sentinel, or repeats the text up to the blank; it has no virtual tokens
        read = shown if self.blank == "sentinel" else [i for i in ids[: rendered.blank] if i < self.vocabulary]
        return {**row, "decoder_input_ids": [self.start, *read], "labels": [IGNORED] * len(read) + [id]}

    def _shown(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """What stands at the blank in the text that is read."""
        if self.blank == "next":
            return []
        return [sentinel_ids(tokenizer)[0] if self.blank == "sentinel" else int(tokenizer.mask_token_id)]

    # ---- logits to a loss and to ranks

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy summed over the objects, over the vocabulary or the candidates: (M, V), (M,) -> scalar."""
        if self.over == "vocabulary":
            return super().loss(logits, labels)
        ranked = torch.tensor(self.candidates, device=logits.device)  # (C,), in order
        return F.cross_entropy(logits.float()[:, ranked], torch.searchsorted(ranked, labels), reduction="sum")

    def extra_statistics(self, outputs: Any, extra_labels: Mapping[str, Tensor]) -> Tensor | None:
        """The object's rank from 1, the id of the likeliest token that is ranked, and its log-probability: (B, 3).

        Of tokens with equal scores the first in the vocabulary is the likelier, so that no two share a rank.
        """
        labels, logits = extra_labels["labels"], outputs.get("logits")[0]  # (B,), (B, V)
        parts = zip(torch.split(logits, RANKED_ROWS), torch.split(labels, RANKED_ROWS), strict=True)
        return torch.cat([self._ranks(scores.float(), some) for scores, some in parts])

    def _ranks(self, scores: Tensor, labels: Tensor) -> Tensor:
        ranked = torch.tensor(self.candidates, device=scores.device)  # (C,)
        if not self.candidates:
            is_word = torch.ones(scores.shape[-1], dtype=torch.bool, device=scores.device)
            is_word[torch.tensor(self.not_words, dtype=torch.long, device=scores.device)] = False
            ranked = is_word.nonzero()[:, 0]
        own, chosen = scores.gather(1, labels[:, None]), scores[:, ranked]  # (B, 1), (B, C)
        before = (chosen > own) | ((chosen == own) & (ranked < labels[:, None]))
        best = ranked[(chosen == chosen.amax(1, keepdim=True)).float().argmax(1)]  # (B,)
        likely = scores.log_softmax(-1).gather(1, best[:, None])[:, 0]
        return torch.stack([1 + before.sum(1).double(), best.double(), likely.double()], 1)

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> list[dict[str, Any]]:
        """`{"word", "probability"}` of each row, the likeliest word; where it has objects `ranks`, `nll`, `tokens`."""
        answers: list[dict[str, Any]] = [{} for _ in encoded.facts or ()]
        for owner, (nll, tokens, _, rank, best, likely) in zip(encoded.owners or (), pieces, strict=True):
            tokenizer, labelled = (encoded.facts or ())[owner]
            answer = answers[owner]
            answer |= {"word": word_of(tokenizer, int(best)), "probability": math.exp(likely)}
            if labelled:
                answer["ranks"] = [*answer.get("ranks", ()), int(rank)]
                answer["nll"] = answer.get("nll", 0.0) + float(nll)
                answer["tokens"] = answer.get("tokens", 0) + int(tokens)
        return answers

    def decode(self, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`{"word", "probability"}` per row, and `ranks` where it has objects."""
        return [{key: answer[key] for key in ("word", "probability", "ranks") if key in answer} for answer in answers]

    def corpus_scores(
        self, answers: list[dict[str, Any]], references: Any = None, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """Every metric; the answers know their objects. Each object of a row counts, as in LAMA."""
        ranks = [answer["ranks"] for answer in answers]
        sizes = [len(each) for each in ranks]
        found = {k: [sum(rank <= k for rank in each) for each in ranks] for k in (1, self.top)}
        hits = {f"p@{k}": ratio_score(counts, sizes) for k, counts in found.items()}
        reciprocal = ratio_score([sum(1 / rank for rank in each) for each in ranks], sizes)
        return {**hits, "mrr": reciprocal, **likelihood_scores(answers, ("loss",))}

    def describe(self) -> str:
        """One line."""
        among = f"{len(self.candidates):,} candidates" if self.candidates else "all words"
        return f"the {self.label} in {self.template!r}, ranked among {among}, scored by {self.metric}"


def fact_task(
    template: str,
    config: PretrainedConfig,
    vocabulary: int,
    tokenizer: PreTrainedTokenizerBase,
    candidates: Iterable[str] | None = None,
    **fields: Any,
) -> FactCompletion:
    """The task of one wording for a model with this config, `vocabulary` rows of its token embedding, and a tokenizer.

    candidates: words that are ranked; those that are not one token are left out. `fields` are the task's others.
    Raises DeltatuneError for a wording that the model cannot read, and where no candidate is one token.
    """
    blank = blank_of(config, tokenizer)
    excluded = {*not_words(tokenizer, vocabulary), *(sentinels_of(tokenizer) if blank == "sentinel" else ())}
    ids: set[int] = set()
    if candidates is not None:
        known = object_ids(candidates, tokenizer, Template(template).spaced_blank)
        ids = {id for id in known.values() if isinstance(id, int)} - excluded
        if not ids:
            raise DeltatuneError(f"none of the {len(known):,} candidates is one token of this tokenizer")
    start = getattr(config, "decoder_start_token_id", None)
    return FactCompletion(
        template=template, blank=blank, start=start if isinstance(start, int) else 0, vocabulary=vocabulary,
        candidates=tuple(sorted(ids)), not_words=() if ids else tuple(sorted(excluded)), **fields,
    )  # fmt: skip


def has_token_types(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer makes token types, which BERT reads."""
    return "token_type_ids" in tokenizer.model_input_names


def _objects(row: Row, label: str) -> str:
    """The objects of a row, for messages."""
    return " or ".join(map(repr, row.get(REFERENCES) or [row.get(label)]))
