"""Text generation: an output text for each input, on decoders and encoder-decoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import raise_all
from deltatune.core.input_validation.field_validation import check_fields
from deltatune.data import LabelKind
from deltatune.models.architecture import Answers, Family
from deltatune.tasks.metrics.corpus_score import CorpusScore
from deltatune.tasks.metrics.generation import generation_metrics, text_scores
from deltatune.tasks.metrics.generation.final_answer import MARK
from deltatune.tasks.metrics.likelihood_scores import likelihood_scores
from deltatune.tasks.prompts.prompt_encoding import CHAT_COLUMN, PromptEncoder
from deltatune.tasks.prompts.prompt_format import PRESETS, check_template
from deltatune.tasks.task import Encoded, LanguageModelTask, Row

METRICS = (*(name for name in generation_metrics.METRICS if name not in generation_metrics.ON_REQUEST), "perplexity")
"""Metrics that are reported for every data set; others where they are the primary one."""


@dataclass(frozen=True)
class Generate(LanguageModelTask):
    """A text for a text; the loss is on the answer alone.

    The prompt has the input: `plain` (one column per line), `alpaca`, `chat` (the tokenizer's chat template), or a
    custom template such as `"Question: {question}\\nSQL:"`.
    """

    name: ClassVar[str] = "generate"
    answers: ClassVar[Answers] = "text"
    metrics: ClassVar[tuple[str, ...]] = (*METRICS, *generation_metrics.ON_REQUEST)
    label_kind: ClassVar[LabelKind] = "text"
    families: ClassVar[tuple[Family, ...]] = ("decoder", "encoder-decoder")
    inference_fields: ClassVar[tuple[str, ...]] = (
        "new_tokens", "beams", "length_penalty", "no_repeat_ngram", "temperature", "top_p", "top_k", "seed", "metric",
        "characters", "metric_model", "metric_layer",
    )  # fmt: skip
    added_fields: ClassVar[Mapping[str, Any]] = {"metric_model": "", "metric_layer": 0}

    text: tuple[str, ...] = ("input",)
    """The input's columns; `messages` is a conversation, and every turn of the assistant is learned."""
    label: str = "output"
    """The column of answers. A row's `references`, if it has any, are used for scores instead."""
    prompt: str = "plain"
    """plain, alpaca, chat, or a template with the columns in braces."""
    max_length: int = 512
    """Longest prompt and answer together in tokens; for encoder-decoders the longest prompt."""
    new_tokens: int = 64
    """Longest generated answer in tokens. The prompt is limited to max_length less these."""
    beams: int = 1
    """Number of beams; 1 is greedy decoding."""
    length_penalty: float = 1.0
    """For beam search: values above 0 favour longer answers."""
    no_repeat_ngram: int = 0
    """No n-gram of this length is generated twice; 0 allows all."""
    temperature: float = 0.0
    """Sampling temperature; 0 takes the likeliest token."""
    top_p: float = 1.0
    """For sampling: the likeliest tokens whose probabilities sum to this."""
    top_k: int = 0
    """For sampling: this many of the likeliest tokens; 0 takes all."""
    seed: int = 0
    """Random seed for sampling."""
    metric: str = "rougeL"
    """Primary metric."""
    characters: bool = False
    """Whether metrics count characters as words, for languages without spaces such as Chinese."""
    sentinel: str = ""
    """First token of every answer, such as <extra_id_0>: a T5 without LM adaptation always starts with one.

    "Span corruption + sentinel" of Lester et al. 2021, https://arxiv.org/abs/2104.08691"""
    metric_model: str = ""
    """Model of the metrics bertscore and mover (an encoder) and bleurt: a folder, or a name on the hub."""
    metric_layer: int = 0
    """Its layer; 0 takes the one that the package bert-score uses, or the last."""

    def __post_init__(self) -> None:
        check_fields(self)
        problems = self.metric_problems("generation")
        if self.prompt not in PRESETS:
            problems += check_template(self.prompt, self.text)
        if not self.text:
            problems.append("text must name at least one column")
        if CHAT_COLUMN in self.text and (len(self.text) > 1 or self.prompt not in ("plain", "chat")):
            problems.append(f"{CHAT_COLUMN!r} is a whole conversation: it must be the only column, with prompt='chat'")
        lowest = {"new_tokens": 1, "beams": 1, "no_repeat_ngram": 0, "top_k": 0, "temperature": 0}
        values = {name: getattr(self, name) for name in lowest}
        problems += [f"{n} must be at least {lowest[n]}, not {v}" for n, v in values.items() if v < lowest[n]]
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.new_tokens >= self.max_length:
            problems.append(f"new_tokens={self.new_tokens} leaves no room for a prompt in max_length={self.max_length}")
        raise_all(problems)

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
        """Tokenise prompts and answers; `joined`: both are one sequence, as for decoders.

        A prompt that is too long loses the end of its longest column, and a conversation its oldest turns (counted).
        The first new_tokens of the answer are always kept. Raises DeltatuneError for missing columns, empty answers,
        conversations without an answer, a max_length that the model has no positions for, and a metric that lacks its
        encoder.
        """
        if labelled:
            generation_metrics.check_metric(self.metric, self.metric_model, self.metric_layer)
        encoded = self.prompt_encoder(tokenizer, joined).encode(rows, positions, positions_taken, labelled)
        if labelled:
            generation_metrics.check_references(self.metric, encoded.references)
        return encoded

    def prompt_encoder(self, tokenizer: PreTrainedTokenizerBase, joined: bool) -> PromptEncoder:
        """What makes tokens of its prompts and answers; `joined`: both are one sequence, as for decoders."""
        return PromptEncoder(self, tokenizer, joined)

    @property
    def stop_text(self) -> str:
        """The text before which an answer ends, besides the tokens that end it; "" where there is none."""
        return ""

    def cut(self, text: str) -> str:
        """A generated text up to `stop_text`."""
        return text.partition(self.stop_text)[0].strip() if self.stop_text else text

    def stops(self, tokenizer: PreTrainedTokenizerBase) -> set[int]:
        """Ids of the tokens that end generation."""
        return self.prompt_encoder(tokenizer, True).stop_ids()

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> list[dict[str, Any]]:
        """No answers: texts are generated, not collected from logits."""
        return []

    def decode(self, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`{"text"}` per row."""
        return [{"text": answer["text"]} for answer in answers]

    def corpus_scores(
        self, answers: list[dict[str, Any]], references: Any, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """The named metrics, by default all: some take long. Perplexity needs the likelihood of the references."""
        if names is None:
            names = METRICS if self.metric in METRICS else (self.metric, *METRICS)
        texts = [answer["text"] for answer in answers]
        text_names = [name for name in names if name not in ("perplexity", "final_answer")]
        scores = dict(self._text_scores(texts, references, text_names)) if text_names else {}
        if "final_answer" in names:  # a chain of thought, in a comparison, says itself what its answer is
            finals = [f"{MARK} {each['answer']}" if "answer" in each else each["text"] for each in answers]
            scores |= self._text_scores(finals, references, ["final_answer"])
        if "perplexity" in names and answers and all("nll" in answer for answer in answers):
            scores |= likelihood_scores(answers, ("perplexity",))
        return {name: scores[name] for name in names if name in scores}

    def _text_scores(self, texts: list[str], references: Any, names: Sequence[str]) -> Mapping[str, CorpusScore]:
        return text_scores(texts, references, names, self.characters, self.metric_model, self.metric_layer)

    def describe(self) -> str:
        """One line."""
        decoding = f"{self.beams} beams" if self.beams > 1 else "sampled" if self.temperature else "greedy"
        answer = f"the {self.label} for {' and '.join(self.text)}, up to {self.new_tokens} tokens, {decoding}"
        return f"{answer}, at most {self.max_length} tokens in all, scored by {self.metric}"
