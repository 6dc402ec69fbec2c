"""Settings of Self-Instruct."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deltatune.core.errors import raise_all
from deltatune.core.input_validation.field_validation import check_fields

BLOCKED_WORDS = (
    "image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot",
    "go to", "video", "audio", "music", "flowchart", "diagram",
)  # fmt: skip
"""Self-Instruct's words for what a language model cannot do, and those that Alpaca added."""


@dataclass(frozen=True)
class SelfInstruct:
    """Instruction data that a model generates from seed tasks: Wang et al. 2022, https://arxiv.org/abs/2212.10560."""

    total: int = 200
    """Number of instructions to generate; one may have several examples, each of them a row."""
    mode: Literal["steps", "whole"] = "steps"
    """steps: instructions first, then whether they are classification, then examples (Self-Instruct); whole: one
    prompt for instruction, input and output together (Alpaca)."""
    seed_tasks: int = 6
    """Seed tasks shown in a prompt."""
    generated_tasks: int = 2
    """Generated tasks shown in a prompt; seed tasks take their place while there are none."""
    new_tasks: int = 8
    """New tasks requested in a prompt."""
    example_tasks: int = 6
    """Tasks shown in a prompt for examples; twice as many in a prompt for the kind of a task."""
    examples: int = 5
    """Maximum number of examples per instruction; with whole there is always one."""
    similarity: float = 0.7
    """An instruction is kept if its ROUGE-L with every other instruction is below this."""
    prompts: int = 5
    """Prompts per round."""
    min_words: int = 4
    """Minimum number of words of an instruction."""
    max_words: int = 150
    """Maximum number of words of an instruction."""
    blocked_words: tuple[str, ...] = BLOCKED_WORDS
    """Words that reject an instruction, because they ask for what a language model cannot do."""
    blocked_starts: tuple[str, ...] = ("Write a program",)
    """Phrases that reject an instruction that starts with one."""
    temperature: float = 0.7
    """Sampling temperature for new tasks; with steps, examples are decoded greedily."""
    top_p: float = 0.5
    """Nucleus sampling for new tasks: the most likely tokens with this total probability."""
    max_tokens: int = 1024
    """Maximum number of tokens generated for new tasks per prompt."""
    example_tokens: int = 350
    """Maximum number of tokens generated for the examples of one instruction."""
    patience: int = 20
    """Rounds without a new instruction after which the run stops with an error."""
    rounds: int | None = None
    """Maximum number of rounds. Default: no limit."""
    seed: int = 0
    """Random seed for the choice of shown tasks and for sampling."""

    def __post_init__(self) -> None:
        check_fields(self)
        minimum = {"total": 1, "seed_tasks": 1, "generated_tasks": 0, "new_tasks": 1, "example_tasks": 1, "examples": 1}
        minimum |= {"prompts": 1, "min_words": 1, "temperature": 0, "max_tokens": 1, "example_tokens": 1, "patience": 1}
        problems = [
            f"{name} must be at least {least}, not {getattr(self, name)}"
            for name, least in minimum.items()
            if getattr(self, name) < least
        ]
        if not 0 < self.similarity <= 1:
            problems.append(f"similarity must be above 0 and at most 1, not {self.similarity}")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.max_words < self.min_words:
            problems.append(
                f"max_words={self.max_words} is less than min_words={self.min_words}: no instruction would pass"
            )
        if self.rounds is not None and self.rounds < 1:
            problems.append(f"rounds must be at least 1, not {self.rounds}")
        raise_all(problems)
