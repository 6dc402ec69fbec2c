"""One round of Self-Instruct: prompts are sent, answers parsed, instructions and examples kept or rejected."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from deltatune.prompting.endpoints.endpoint import Endpoint, GenerateFunction, SamplingParams, complete
from deltatune.prompting.self_instruct import instruction_prompts as prompts
from deltatune.prompting.self_instruct import quality_filters as filters
from deltatune.prompting.self_instruct import seed_tasks as sampling
from deltatune.prompting.self_instruct.quality_filters import InstructionPool
from deltatune.prompting.self_instruct.seed_tasks import InstructionExample, InstructionTask, Row
from deltatune.prompting.self_instruct.self_instruct_settings import SelfInstruct

YES_NO_TOKENS = 3
"""Maximum number of tokens of the answer whether a task is classification."""


@dataclass(frozen=True)
class InstructionCandidate:
    """An instruction that is dissimilar to all earlier ones."""

    instruction: str
    similarity: float
    most_similar: str
    examples: tuple[InstructionExample, ...] = ()
    classification: bool | None = None


@dataclass
class RoundResult:
    """Kept rows and rejected texts of one round."""

    number: int
    kept: list[list[Row]] = field(default_factory=list)
    """Rows of each kept instruction."""
    rejected: list[Row] = field(default_factory=list)
    """Rejected texts, each with its reason."""
    prompts: int = 0
    """Number of prompts sent."""

    def reject_(self, reason: str, **fields: object) -> None:
        """Record a rejected text; empty fields are left out."""
        nonempty = {name: value for name, value in fields.items() if value != ""}
        self.rejected.append({"reason": reason, **nonempty, "round": self.number})

    def reject_example_(self, reason: str, instruction: str, example: InstructionExample) -> None:
        """Record a rejected example."""
        self.reject_(reason, instruction=instruction, input=example.input, output=example.output)


@dataclass(frozen=True)
class RoundGenerator:
    """Generates rounds with one endpoint, one set of seed tasks and one set of settings."""

    endpoint: GenerateFunction | Endpoint
    seeds: Sequence[InstructionTask]
    settings: SelfInstruct

    def generate(self, number: int, generated: Sequence[InstructionTask], pool: InstructionPool) -> RoundResult:
        """Run a round. It depends on its number, the seed, the generated tasks and the endpoint alone."""
        result, settings = RoundResult(number), self.settings
        rng = random.Random(f"{settings.seed} {number}")  # so that a resumed run draws the same tasks
        demonstrations = [
            sampling.demonstrations(self.seeds, generated, settings.seed_tasks, settings.generated_tasks, rng)
            for _ in range(settings.prompts)
        ]
        size = len(pool)
        if settings.mode == "steps":
            candidates = list(self._new_instructions(result, demonstrations, pool))
        else:
            candidates = list(self._new_whole_tasks(result, demonstrations, pool))
        pool.truncate_(size)  # instructions without a usable example are not kept
        if settings.mode == "steps":
            candidates = self._classify(result, candidates, rng)
            candidates = self._add_examples(result, candidates, rng)
        for candidate in candidates:
            self._keep(result, candidate)
        return result

    # ---- new instructions

    def _new_instructions(
        self, result: RoundResult, demonstrations: list[list[InstructionTask]], pool: InstructionPool
    ) -> Iterator[InstructionCandidate]:
        """Step 1: instructions alone."""
        new = self.settings.new_tasks
        stop = ("\n\n", f"\n{len(demonstrations[0]) + 1 + new}.")
        sent = [prompts.for_instructions(tasks) for tasks in demonstrations]
        texts = self._complete(result, sent, self._sampled(result, stop))
        for tasks, text in zip(demonstrations, texts, strict=True):
            lines, truncated = prompts.parse_instructions(text, len(tasks) + 1, new)
            for line in lines:
                yield from self._candidate(result, line, pool)
            self._reject_unparsed(result, text, truncated, bool(lines))

    def _new_whole_tasks(
        self, result: RoundResult, demonstrations: list[list[InstructionTask]], pool: InstructionPool
    ) -> Iterator[InstructionCandidate]:
        """Instruction, input and output in one step."""
        new = self.settings.new_tasks
        sent = [prompts.for_whole_tasks(tasks, new) for tasks in demonstrations]
        stop = (f"Task {len(demonstrations[0]) + 1 + new}",)
        for text in self._complete(result, sent, self._sampled(result, stop)):
            tasks, truncated = prompts.parse_whole_tasks(text, new)
            for task in tasks:
                if isinstance(task, str):
                    result.reject_(filters.MALFORMED, text=task)
                else:
                    yield from self._candidate(result, task[0], pool, (task[1],))
            self._reject_unparsed(result, text, truncated, bool(tasks))

    def _reject_unparsed(self, result: RoundResult, text: str, truncated: str | None, any_parsed: bool) -> None:
        if truncated is not None:
            result.reject_(filters.TRUNCATED, text=truncated)
        elif not any_parsed:
            result.reject_(filters.MALFORMED, text=text)

    def _candidate(
        self,
        result: RoundResult,
        instruction: str,
        pool: InstructionPool,
        examples: tuple[InstructionExample, ...] = (),
    ) -> Iterable[InstructionCandidate]:
        """Return the instruction as a candidate and add it to the pool, or reject it and return nothing."""
        fields = {"input": examples[0].input, "output": examples[0].output} if examples else {}
        reason = filters.reject_instruction(instruction, self.settings) if instruction else filters.TOO_SHORT
        if reason:
            result.reject_(reason, instruction=instruction, **fields)
            return []
        similarity, most_similar = pool.most_similar(instruction)
        if similarity >= self.settings.similarity:
            nearest = {"similarity": round(similarity, 4), "most_similar": most_similar}
            result.reject_(filters.TOO_SIMILAR, instruction=instruction, **fields, **nearest)
            return []
        pool.add_(instruction)
        return [InstructionCandidate(instruction, similarity, most_similar, examples)]

    # ---- kinds and examples

    def _classify(
        self, result: RoundResult, candidates: list[InstructionCandidate], rng: random.Random
    ) -> list[InstructionCandidate]:
        """Step 2: which instructions are classification."""
        shown = [sampling.sample_both_kinds(self.seeds, self.settings.example_tasks, rng) for _ in candidates]
        sent = [prompts.for_kind(c.instruction, tasks) for c, tasks in zip(candidates, shown, strict=True)]
        answers = self._complete(result, sent, SamplingParams(YES_NO_TOKENS, stop=("\n",)))
        return [
            replace(candidate, classification=prompts.parse_yes(answer))
            for candidate, answer in zip(candidates, answers, strict=True)
        ]

    def _add_examples(
        self, result: RoundResult, candidates: list[InstructionCandidate], rng: random.Random
    ) -> list[InstructionCandidate]:
        """Step 3: examples. The label comes first for classification, so that labels differ; else the input does."""
        settings = self.settings
        sent = []
        for candidate in candidates:
            classification = bool(candidate.classification)
            shown = sampling.sample_with_examples(self.seeds, classification, settings.example_tasks, rng)
            prompt_for = prompts.for_labelled_examples if classification else prompts.for_examples
            sent.append(prompt_for(candidate.instruction, shown))
        stop = (f"Example {settings.examples + 1}", "\nTask:")
        texts = self._complete(result, sent, SamplingParams(settings.example_tokens, stop=stop))
        return [self._with_examples(result, c, text) for c, text in zip(candidates, texts, strict=True)]

    def _with_examples(self, result: RoundResult, candidate: InstructionCandidate, text: str) -> InstructionCandidate:
        parse = prompts.parse_labelled_examples if candidate.classification else prompts.parse_examples
        examples, truncated = parse(text, self.settings.examples)
        if truncated:
            result.reject_(filters.TRUNCATED, instruction=candidate.instruction, text=text)
        elif not examples:
            result.reject_(filters.MALFORMED, instruction=candidate.instruction, text=text)
        return replace(candidate, examples=tuple(examples))

    def _keep(self, result: RoundResult, candidate: InstructionCandidate) -> None:
        examples, rejected = filters.filter_examples(candidate.examples)
        for reason, example in rejected:
            result.reject_example_(reason, candidate.instruction, example)
        if examples:
            result.kept.append([_row(candidate, example, result.number) for example in examples])
        elif rejected and candidate.classification is not None:  # without any example the reason is already recorded
            result.reject_(filters.NO_EXAMPLE, instruction=candidate.instruction)

    # ---- the endpoint

    def _complete(self, result: RoundResult, sent: list[str], params: SamplingParams) -> list[str]:
        result.prompts += len(sent)
        return complete(self.endpoint, sent, params)

    def _sampled(self, result: RoundResult, stop: tuple[str, ...]) -> SamplingParams:
        s = self.settings
        return SamplingParams(s.max_tokens, s.temperature, s.top_p, stop, seed=s.seed * 1_000_003 + result.number)


def _row(candidate: InstructionCandidate, example: InstructionExample, number: int) -> Row:
    kind = {} if candidate.classification is None else {"is_classification": candidate.classification}
    nearest = {"similarity": round(candidate.similarity, 4), "most_similar": candidate.most_similar, "round": number}
    return {"instruction": candidate.instruction, "input": example.input, "output": example.output, **kind, **nearest}
