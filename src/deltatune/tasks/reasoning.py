"""Reason: chain of thought as a task form. The model writes its steps, and the answer is read from their end.

Zero-shot in two stages, Kojima et al. 2022, https://arxiv.org/abs/2205.11916; few-shot, Wei et al. 2022,
https://arxiv.org/abs/2201.11903; self-consistency, Wang et al. 2022, https://arxiv.org/abs/2203.11171
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.field_validation import check_fields
from deltatune.tasks.generation import Generate
from deltatune.tasks.metrics.corpus_score import CorpusScore, check_pairs, mean_score
from deltatune.tasks.metrics.generation.final_answer import (
    AnswerKind,
    answer_key,
    find_answer,
    kind_of,
    plain_steps,
    reference_answer,
    reference_rationale,
)
from deltatune.tasks.prompts.prompt_encoding import CHAT_COLUMN, PromptEncoder
from deltatune.tasks.prompts.prompt_format import chat_prompt, check_template, fill_template
from deltatune.tasks.row_columns import column, raise_listed, text_column
from deltatune.tasks.task import Encoded, Row, TokenRow
from deltatune.tasks.tokenization import check_length

ANSWER_TRIGGERS: dict[AnswerKind, str] = {
    "number": "Therefore, the answer (arabic numerals) is",
    "choice": "Therefore, among A through E, the answer is",
    "yes_no": "Therefore, the answer (Yes or No) is",
    "text": "Therefore, the answer is",
}
"""What is put behind the steps of a zero-shot chain, so that the answer follows."""
STATED = "The answer is"
"""What is put before the answer of a demonstration."""
SAMPLING_TEMPERATURE = 0.7
"""Of several chains where no temperature is given, as in Wang et al. 2022 for GPT-3."""
METRICS = ("final_answer", "answered", "agreement")
"""`answered` is the share of rows with an answer at all, `agreement` the share of equal chains."""


@dataclass(frozen=True)
class Reason(Generate):
    """An answer for a question, after steps that the model writes down.

    Without demonstrations the model continues `trigger`, and then its steps with the words that ask for the answer;
    with demonstrations it continues those. Of several samples the majority decides. Nothing is trained.
    """

    name: ClassVar[str] = "reason"
    metrics: ClassVar[tuple[str, ...]] = METRICS
    inference_fields: ClassVar[tuple[str, ...]] = (
        "new_tokens", "answer_tokens", "temperature", "top_p", "top_k", "seed", "metric", "samples",
    )  # fmt: skip
    added_fields: ClassVar[Mapping[str, Any]] = {}

    text: tuple[str, ...] = ("question",)
    """The columns of the question."""
    label: str = "answer"
    """The column of answers: the answer alone, or behind `####` or "The answer is"."""
    prompt: str = "plain"
    """plain ("Q: ...", then "A:"), chat (the same as a message of the user), or a template with the columns in braces,
    which ends where the answer begins."""
    max_length: int = 2048
    """Longest prompt and chain together in tokens."""
    new_tokens: int = 256
    """Longest chain of thought in tokens; 128 in Kojima et al."""
    metric: str = "final_answer"
    """Primary metric."""
    answer: AnswerKind = "number"
    """Kind of the answers: number, choice (a letter), yes_no, or text."""
    rationale: str = "rationale"
    """The column of steps in the rows for demonstrations; without it they are what the label has before its answer."""
    trigger: str = "Let's think step by step."
    """Beginning of a zero-shot chain; "" asks for the answer at once."""
    answer_trigger: str = ""
    """What asks for the answer of a zero-shot chain; by default the words for its kind of answer."""
    answer_tokens: int = 32
    """Longest answer of a zero-shot chain in tokens."""
    demonstrations: tuple[str, ...] = ()
    """Questions with their chains and answers, as the model reads them; the first ones are left out where they do not
    fit."""
    samples: int = 1
    """Chains of each question; of several, each sampled, the most frequent answer is taken (self-consistency)."""

    def __post_init__(self) -> None:
        check_fields(self)
        problems = self.metric_problems("reasoning")
        if self.prompt not in ("plain", "chat"):
            template = check_template(self.prompt, self.text)
            problems += [each.replace("presets: plain, alpaca, chat", "presets: plain, chat") for each in template]
        if not self.text or CHAT_COLUMN in self.text:
            problems.append("text must name the columns of a question, no conversation")
        lowest = {"new_tokens": 1, "answer_tokens": 1, "samples": 1, "top_k": 0, "temperature": 0}
        values = {name: getattr(self, name) for name in lowest}
        problems += [f"{n} must be at least {lowest[n]}, not {v}" for n, v in values.items() if v < lowest[n]]
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.beams != 1:
            problems.append(f"beams={self.beams}: chains are decoded greedily or sampled; leave beams out")
        if self.new_tokens + self.answer_tokens >= self.max_length:
            problems.append(
                f"new_tokens={self.new_tokens} and answer_tokens={self.answer_tokens} leave no room for a question in "
                f"max_length={self.max_length}"
            )
        raise_all(problems)

    @property
    def chain_temperature(self) -> float:
        """Sampling temperature of the chains; 0 decodes greedily."""
        return self.temperature or (SAMPLING_TEMPERATURE if self.samples > 1 else 0.0)

    @property
    def chain_tokens(self) -> int:
        """Longest text of the first stage in tokens, which without steps is the answer itself."""
        return self.new_tokens if self.demonstrations or self.trigger else self.answer_tokens

    @property
    def two_stages(self) -> bool:
        """Whether the answer is asked for after the chain."""
        return not self.demonstrations and bool(self.trigger)

    # ---- text

    def question(self, row: Row) -> str:
        """A question up to where its answer begins."""
        values = {name: str(row[name]) for name in self.text}
        if self.prompt in ("plain", "chat"):
            return "Q: " + "\n".join(text.strip() for text in values.values() if text.strip()) + "\nA:"
        return fill_template(self.prompt, values).rstrip()

    def demonstration(self, row: Row) -> str:
        """A row as a demonstration: its question, rationale and answer. Raises DeltatuneError where one is missing."""
        rationale, answer = self.rationale_and_answer(row)
        if not rationale or not answer:
            raise DeltatuneError(f"the row {str(dict(row))[:120]} has no rationale before its final answer")
        return f"{self.question(row)} {rationale} {STATED} {answer}."

    def rationale_and_answer(self, row: Row) -> tuple[str, str]:
        """The steps of a labelled row on one line and its final answer; "" for what it does not have."""
        whole = next(iter(row.get("references") or [row.get(self.label)]))
        whole = "" if whole is None else str(whole)
        rationale = row.get(self.rationale) or reference_rationale(whole)
        return " ".join(plain_steps(str(rationale)).split()), reference_answer(whole).rstrip(". ")

    def chain_prompt(self, row: Row, demonstrations: Sequence[str] | None = None) -> str:
        """What the model continues with its steps; `demonstrations` take the place of the task's."""
        shown = self.demonstrations if demonstrations is None else demonstrations
        if self.demonstrations:
            return "".join(f"{text}\n\n" for text in shown) + self.question(row)
        return f"{self.question(row)} {self.trigger or self._answer_trigger}"

    @property
    def _answer_trigger(self) -> str:
        return self.answer_trigger or ANSWER_TRIGGERS[self.answer]

    def answer_prompt(self, prompt: str, chain: str) -> str:
        """What the model continues with the answer, after a zero-shot chain."""
        return f"{prompt} {chain}\n{self._answer_trigger}"

    @property
    def stop_text(self) -> str:
        """What a chain ends before: the beginning of another question."""
        lead = "Q:" if self.prompt in ("plain", "chat") else self.prompt.partition("{")[0].strip()
        return "\n" + lead if lead else "\n\n\n"

    def finished(self, chain: str, answer: str = "") -> dict[str, str]:
        """One chain with its answer, which is `answer`, or "" where none was asked for, the chain itself."""
        if self.two_stages:
            found = find_answer(answer, self.answer, behind_trigger=True)
            return {"text": f"{chain}\n{self._answer_trigger} {answer}", "rationale": chain, "answer": found}
        found = find_answer(chain, self.answer, behind_trigger=not self.demonstrations)
        return {"text": chain, "rationale": reference_rationale(chain) if self.demonstrations else "", "answer": found}

    def vote(self, chains: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """The answer that most chains have, the first seen of equal ones, and the first chain that has it.

        Answers are compared by value; chains without an answer do not vote.
        """
        first: dict[str, Mapping[str, str]] = {}
        counts: dict[str, int] = {}
        for chain in chains:
            if key := answer_key(chain["answer"], self.answer):
                first.setdefault(key, chain)
                counts[key] = counts.get(key, 0) + 1
        order = sorted(counts, key=lambda key: -counts[key])  # those with as many votes as they were seen
        chosen = first[order[0]] if order else chains[0]
        votes = [{"answer": first[key]["answer"], "chains": counts[key]} for key in order]
        return {**chosen, "votes": votes, "chains": len(chains)}

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
        """Tokenise the prompts of the chains. Where there is no room for all demonstrations, the first go (counted).

        Raises DeltatuneError for missing columns, references without an answer of this kind, and questions that are too
        long, which are never cut.
        """
        check_length(self.max_length, positions, positions_taken)
        for name in self.text:
            text_column(rows, name)
        references = self.references(rows) if labelled else None
        encoder = PromptEncoder(self, tokenizer, joined)
        limit = self.max_length - self._later_tokens(encoder)
        encoded: list[TokenRow] = []
        facts, fewer = [], 0
        for i, row in enumerate(rows):
            shown = self.demonstrations
            while len(ids := self.prompt_ids(self.chain_prompt(row, shown), encoder)) > limit:
                if not shown:
                    raise DeltatuneError(
                        f"row {i}: the question has {len(ids)} tokens, more than the {limit} that max_length="
                        f"{self.max_length} leaves beside the chain and the answer; a question is never cut: shorten "
                        "it, or lower new_tokens"
                    )
                shown = shown[1:]
            fewer += len(shown) < len(self.demonstrations)
            encoded.append({"input_ids": ids, "attention_mask": [1] * len(ids)})
            facts.append({"prompt": ids, "text": self.chain_prompt(row, shown)})
        return Encoded(encoded, fewer, None, facts, references)

    def prompt_ids(self, prompt: str, encoder: PromptEncoder) -> list[int]:
        """The tokens of a prompt, in chat form as a message of the user."""
        if self.prompt == "chat":
            prompt = chat_prompt([{"role": "user", "content": prompt}], encoder.tokenizer)
        return encoder.ids(prompt, True)

    def answer_prompt_ids(self, prompt: str, chain: str, encoder: PromptEncoder) -> list[int]:
        """The tokens of the second stage's prompt; a chain that takes more tokens here than it did loses its end."""
        limit = self.max_length - (self.answer_tokens if encoder.joined else 0)
        words = chain.split(" ")
        while len(ids := self.prompt_ids(self.answer_prompt(prompt, " ".join(words)), encoder)) > limit and words:
            words = words[: -max(1, len(ids) - limit)]
        return ids[-limit:]

    def _later_tokens(self, encoder: PromptEncoder) -> int:
        """The tokens that follow a prompt in the same sequence: its chain, and the second stage."""
        if not self.two_stages:
            return self.chain_tokens if encoder.joined else 0
        second = len(encoder.ids(f"\n{self._answer_trigger}"))
        return self.new_tokens + second + (self.answer_tokens if encoder.joined else 0)

    def references(self, rows: Sequence[Row]) -> list[list[str]]:
        """The final answers of labelled rows. Raises DeltatuneError listing those that have none of this kind."""
        whole = [row.get("references") for row in rows]
        if not all(whole):
            labels = column(rows, self.label)
            whole = [given or [label] for given, label in zip(whole, labels, strict=True)]
        answers = [[reference_answer(str(text)) for text in row] for row in whole]  # type: ignore[union-attr]
        raise_listed(
            [
                f"row {i}: {self.label} is {answer[:80]!r}, which holds no answer of the kind {self.answer!r}; "
                f"it looks like {kind_of(answer)!r}"
                for i, row in enumerate(answers)
                for answer in row
                if not answer_key(answer, self.answer)
            ],
            "kinds of answers (answer=): number, choice, yes_no, text",
        )
        return answers

    # ---- answers and scores

    def decode(self, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`{"text", "answer", "rationale", "votes"}` per row; `votes` has the chains of each answer, most first."""
        names = ("text", "answer", "rationale", "votes")
        return [{name: answer[name] for name in names} for answer in answers]

    def corpus_scores(
        self, answers: list[dict[str, Any]], references: Any, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """The named metrics, by default all; agreement for several samples alone."""
        check_pairs(answers, references)
        keys = [answer_key(answer["answer"], self.answer) for answer in answers]
        right = [{answer_key(text, self.answer) for text in row} for row in references]
        scores = {
            "final_answer": mean_score([
                bool(key) and key in of_row for key, of_row in zip(keys, right, strict=True)
            ]),
            "answered": mean_score([bool(key) for key in keys]),
        }  # fmt: skip
        if any(answer["chains"] > 1 for answer in answers) or self.metric == "agreement":
            shares = [sum(vote["chains"] for vote in answer["votes"][:1]) / answer["chains"] for answer in answers]
            scores["agreement"] = mean_score(shares)
        return {name: scores[name] for name in names or METRICS if name in scores}

    def describe(self) -> str:
        """One line."""
        shown = f"after {len(self.demonstrations)} demonstrations" if self.demonstrations else f"after {self.trigger!r}"
        votes = f", the most frequent answer of {self.samples} chains" if self.samples > 1 else ""
        return (
            f"a {self.answer.replace('_', ' or ')} for {' and '.join(self.text)} by a chain of thought {shown}, up to "
            f"{self.new_tokens} tokens{votes}, scored by {self.metric}"
        )
