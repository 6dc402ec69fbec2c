"""One round: prompts, what came back, what of it is kept and what is not."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from deltatune.prompting.endpoints.endpoint import SamplingParams, Endpoint, GenerateFunction, complete
from deltatune.prompting.self_instruct import instruction_prompts as parsing
from deltatune.prompting.self_instruct import instruction_prompts as prompts
from deltatune.prompting.self_instruct import quality_filters as filters
from deltatune.prompting.self_instruct import seed_tasks as shown
from deltatune.prompting.self_instruct.quality_filters import Pool
from deltatune.prompting.self_instruct.seed_tasks import Example, Row, Task
from deltatune.prompting.self_instruct.self_instruct_settings import SelfInstruct

KIND_TOKENS = 3
"""Most tokens of the answer whether a task is classification."""


@dataclass(frozen=True)
class Candidate:
    """An instruction that is unlike all others so far."""

    instruction: str
    similarity: float
    most_similar: str
    examples: tuple[Example, ...] = ()
    classification: bool | None = None


@dataclass
class Round:
    """What came of a round."""

    number: int
    kept: list[list[Row]] = field(default_factory=list)
    """Rows of each kept instruction."""
    rejected: list[Row] = field(default_factory=list)
    """What is not kept, each with its reason."""
    asked: int = 0
    """Prompts that were sent."""

    def reject_(self, reason: str, **what: object) -> None:
        """Note what is not kept; empty fields are left out."""
        self.rejected.append({"reason": reason, **{k: v for k, v in what.items() if v != ""}, "round": self.number})

    def reject_example_(self, reason: str, instruction: str, example: Example) -> None:
        """Note an example that is not kept."""
        self.reject_(reason, instruction=instruction, input=example.input, output=example.output)


@dataclass(frozen=True)
class RoundGenerator:
    """What all rounds share: the writer, the seeds and how it is done."""

    write: GenerateFunction | Endpoint
    seeds: Sequence[Task]
    settings: SelfInstruct

    def round(self, number: int, grown: Sequence[Task], pool: Pool) -> Round:
        """Run a round; it depends on its number, the seed, what was grown and what the writer answers."""
        found = Round(number)
        rng = random.Random(f"{self.settings.seed} {number}")  # so that a run that goes on draws the same
        chosen = [
            shown.demonstrations(self.seeds, grown, self.settings.human, self.settings.own, rng)
            for _ in range(self.settings.prompts)
        ]
        size = len(pool)
        steps = self.settings.mode == "steps"
        candidates = list(self._instructions(found, chosen, pool) if steps else self._whole(found, chosen, pool))
        pool.cut_(size)  # what has no usable example is not kept
        if steps:
            candidates = self._kinds(found, candidates, rng)
            candidates = self._examples(found, candidates, rng)
        for candidate in candidates:
            self._keep_(found, candidate)
        return found

    # ---- instructions

    def _instructions(self, found: Round, chosen: list[list[Task]], pool: Pool) -> Iterator[Candidate]:
        """The first step: instructions alone."""
        new = self.settings.new
        stop = ("\n\n", f"\n{len(chosen[0]) + 1 + new}.")
        texts = self._ask(found, [prompts.for_instructions(tasks) for tasks in chosen], self._freely(found, stop))
        for tasks, text in zip(chosen, texts, strict=True):
            lines, cut = parsing.instructions(text, len(tasks) + 1, new)
            for line in lines:
                yield from self._judged(found, line, pool)
            self._note_gaps(found, text, cut, bool(lines))

    def _whole(self, found: Round, chosen: list[list[Task]], pool: Pool) -> Iterator[Candidate]:
        """Instruction, input and output in one step."""
        new = self.settings.new
        asked = [prompts.for_whole_tasks(tasks, new) for tasks in chosen]
        texts = self._ask(found, asked, self._freely(found, (f"Task {len(chosen[0]) + 1 + new}",)))
        for text in texts:
            tasks, cut = parsing.whole_tasks(text, new)
            for task in tasks:
                if isinstance(task, str):
                    found.reject_(filters.MALFORMED, text=task)
                else:
                    yield from self._judged(found, task[0], pool, (task[1],))
            self._note_gaps(found, text, cut, bool(tasks))

    def _note_gaps(self, found: Round, text: str, cut: str | None, any_found: bool) -> None:
        if cut is not None:
            found.reject_(filters.CUT_OFF, text=cut)
        elif not any_found:
            found.reject_(filters.MALFORMED, text=text)

    def _judged(
        self, found: Round, instruction: str, pool: Pool, examples: tuple[Example, ...] = ()
    ) -> Iterable[Candidate]:
        """The instruction as a candidate, which the next ones must be unlike, or nothing."""
        given = {"input": examples[0].input, "output": examples[0].output} if examples else {}
        reason = filters.refuse_instruction(instruction, self.settings) if instruction else filters.TOO_SHORT
        if reason:
            found.reject_(reason, instruction=instruction, **given)
            return []
        similarity, most_similar = pool.most_similar(instruction)
        if similarity >= self.settings.similarity:
            about = {"similarity": round(similarity, 4), "most_similar": most_similar}
            found.reject_(filters.TOO_SIMILAR, instruction=instruction, **given, **about)
            return []
        pool.add_(instruction)
        return [Candidate(instruction, similarity, most_similar, examples)]

    # ---- kinds and examples

    def _kinds(self, found: Round, candidates: list[Candidate], rng: random.Random) -> list[Candidate]:
        """The second step: which instructions are classification."""
        cases = [shown.of_both_kinds(self.seeds, self.settings.cases, rng) for _ in candidates]
        asked = [prompts.for_kind(c.instruction, tasks) for c, tasks in zip(candidates, cases, strict=True)]
        answers = self._ask(found, asked, SamplingParams(KIND_TOKENS, stop=("\n",)))
        return [
            Candidate(c.instruction, c.similarity, c.most_similar, classification=parsing.is_yes(answer))
            for c, answer in zip(candidates, answers, strict=True)
        ]

    def _examples(self, found: Round, candidates: list[Candidate], rng: random.Random) -> list[Candidate]:
        """The third step: the label first for classification, so that labels differ; the input first elsewhere."""
        most = self.settings.examples
        asked = []
        for candidate in candidates:
            cases = shown.with_examples(self.seeds, bool(candidate.classification), self.settings.cases, rng)
            ask = prompts.for_labelled_examples if candidate.classification else prompts.for_examples
            asked.append(ask(candidate.instruction, cases))
        stop = (f"Example {most + 1}", "\nTask:")
        texts = self._ask(found, asked, SamplingParams(self.settings.example_tokens, stop=stop))
        return [self._with_examples(found, c, text) for c, text in zip(candidates, texts, strict=True)]

    def _with_examples(self, found: Round, candidate: Candidate, text: str) -> Candidate:
        read = parsing.labelled_examples if candidate.classification else parsing.examples
        examples, cut = read(text, self.settings.examples)
        if cut:
            found.reject_(filters.CUT_OFF, instruction=candidate.instruction, text=text)
        elif not examples:
            found.reject_(filters.MALFORMED, instruction=candidate.instruction, text=text)
        about = candidate.instruction, candidate.similarity, candidate.most_similar
        return Candidate(*about, tuple(examples), candidate.classification)

    def _keep_(self, found: Round, candidate: Candidate) -> None:
        examples, refused = filters.sift(candidate.examples)
        for reason, example in refused:
            found.reject_example_(reason, candidate.instruction, example)
        if examples:
            found.kept.append([_row(candidate, example, found.number) for example in examples])
        elif refused and candidate.classification is not None:  # with none at all, it was said why
            found.reject_(filters.NO_EXAMPLE, instruction=candidate.instruction)

    # ---- asking

    def _ask(self, found: Round, asked: list[str], ask: SamplingParams) -> list[str]:
        found.asked += len(asked)
        return complete(self.write, asked, ask)

    def _freely(self, found: Round, stop: tuple[str, ...]) -> SamplingParams:
        s = self.settings
        return SamplingParams(s.max_tokens, s.temperature, s.top_p, stop, seed=s.seed * 1_000_003 + found.number)


def _row(candidate: Candidate, example: Example, number: int) -> Row:
    kind = {} if candidate.classification is None else {"is_classification": candidate.classification}
    about = {"similarity": round(candidate.similarity, 4), "most_similar": candidate.most_similar, "round": number}
    return {"instruction": candidate.instruction, "input": example.input, "output": example.output, **kind, **about}
