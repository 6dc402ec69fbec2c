"""Generation: an input and the text to write for it, for decoders and encoder-decoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import raise_all
from deltatune.core.validation import check_fields
from deltatune.data import LabelKind
from deltatune.models.architecture import Answers, Family
from deltatune.tasks.metrics.corpus_score import CorpusScore
from deltatune.tasks.metrics.generation import generation_metrics, text_scores
from deltatune.tasks.metrics.likelihood_scores import likelihood_scores
from deltatune.tasks.prompts.prompt_encoding import CHAT, Answering, encode_rows
from deltatune.tasks.prompts.prompt_format import PRESETS, check_template
from deltatune.tasks.task import Encoded, LanguageModelTask, Row

METRICS = (*(name for name in generation_metrics.METRICS if name not in generation_metrics.ON_REQUEST), "perplexity")


@dataclass(frozen=True)
class Generate(LanguageModelTask):
    """A text for a text, learnt on the answer alone.

    The input is put into a prompt: `plain` (its columns, a line each), `alpaca`, `chat` (the tokenizer's own chat
    template), or a template of one's own such as `"Question: {question}\\nSQL:"`.
    """

    name: ClassVar[str] = "generate"
    answers: ClassVar[Answers] = "text"
    families: ClassVar[tuple[Family, ...]] = ("decoder", "encoder-decoder")
    """Encoders do not write."""

    inference_fields: ClassVar[tuple[str, ...]] = (
        "new_tokens", "beams", "length_penalty", "no_repeat_ngram", "temperature", "top_p", "top_k", "seed", "metric",
        "characters",
    )  # fmt: skip
    """Fields that may be others when a trained adapter is used."""

    text: tuple[str, ...] = ("input",)
    """The input's columns; `messages` is a conversation, whose every assistant turn is learnt."""
    label: str = "output"
    """The column of answers; `references`, where a row has them, are what the answer is compared with."""
    prompt: str = "plain"
    """plain, alpaca, chat, or a template with the columns in braces."""
    max_length: int = 512
    """Longest prompt and answer in tokens together; of an encoder-decoder longest prompt."""
    new_tokens: int = 64
    """Tokens that are written at most. The prompt is kept to max_length less these."""
    beams: int = 1
    """Beams of the search; 1 is greedy."""
    length_penalty: float = 1.0
    """Of the beams: above 0 favours longer answers."""
    no_repeat_ngram: int = 0
    """Sequences of so many tokens are never written twice; 0 allows them."""
    temperature: float = 0.0
    """Above 0, words are drawn by chance; 0 takes the likeliest."""
    top_p: float = 1.0
    """Of sampling: the likeliest words that have this probability together."""
    top_k: int = 0
    """Of sampling: so many of the likeliest words; 0 takes all."""
    seed: int = 0
    """Of sampling."""
    metric: str = "rougeL"
    """Primary metric."""
    characters: bool = False
    """Whether metrics count characters as words, for texts without spaces such as Chinese."""

    sentinel: str = ""
    """Token that every answer begins with, such as <extra_id_0>: a T5 without LM adaptation writes nothing else first.

    "Span corruption + sentinel" of Lester et al. 2021, https://arxiv.org/abs/2104.08691"""

    def __post_init__(self) -> None:
        check_fields(self)
        problems = self.metric_problems("generation", METRICS)
        if self.prompt not in PRESETS:
            problems += check_template(self.prompt, self.text)
        if not self.text:
            problems.append("text must name at least one column")
        if CHAT in self.text and (len(self.text) > 1 or self.prompt not in ("plain", "chat")):
            problems.append(f"{CHAT!r} is a whole conversation: it stands alone in text, with the prompt 'chat'")
        low = {"new_tokens": 1, "beams": 1, "no_repeat_ngram": 0, "top_k": 0, "temperature": 0}
        problems += [
            f"{n} must be at least {v}, not {getattr(self, n)}" for n, v in low.items() if getattr(self, n) < v
        ]
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.new_tokens >= self.max_length:
            problems.append(f"new_tokens={self.new_tokens} leaves no room for a prompt in max_length={self.max_length}")
        raise_all(problems)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What papers report of written text, and how likely the model found the references."""
        return METRICS

    @property
    def label_kind(self) -> LabelKind:
        """A text per row."""
        return "text"

    def encode(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        *,
        positions: int | None = None,
        room: int = 0,
        labelled: bool = True,
        joined: bool = True,
    ) -> Encoded:
        """Tokenise prompts and answers; `joined`: the model reads both as one text, as decoders do.

        A prompt that is too long loses the end of its longest column, a conversation its oldest turns (counted);
        the answer's first new_tokens are always kept. Raises DeltatuneError for missing columns, empty answers,
        conversations without an answer and a max_length the model has no positions for.
        """
        return encode_rows(Answering(self, tokenizer, joined), rows, positions, room, labelled)

    def stops(self, tokenizer: PreTrainedTokenizerBase) -> set[int]:
        """Token ids at which writing ends."""
        return Answering(self, tokenizer, True).stops()

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> list[dict[str, Any]]:
        """Texts are written, not collected from logits: this is the answer of no rows."""
        return []

    def decode(self, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`{"text"}` a row."""
        return [{"text": one["text"]} for one in answers]

    def corpus_scores(
        self, answers: list[dict[str, Any]], references: Any, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """The named metrics, by default all: some take long. Perplexity needs the likelihood of the references."""
        names = METRICS if names is None else names
        texts = [answer["text"] for answer in answers]
        text_names = [name for name in names if name != "perplexity"]
        scores = dict(text_scores(texts, references, text_names, self.characters)) if text_names else {}
        if "perplexity" in names and answers and all("nll" in answer for answer in answers):
            scores |= likelihood_scores(answers, ("perplexity",))
        return {name: scores[name] for name in names if name in scores}

    def describe(self) -> str:
        """One line."""
        how = f"{self.beams} beams" if self.beams > 1 else "sampled" if self.temperature else "greedy"
        what = f"the {self.label} for {' and '.join(self.text)}, up to {self.new_tokens} tokens, {how}"
        return f"{what}, at most {self.max_length} tokens in all, judged by {self.metric}"
