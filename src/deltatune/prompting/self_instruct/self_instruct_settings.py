"""How a set of instructions is grown: every number of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deltatune.core.errors import raise_all
from deltatune.core.validation import check_fields

AVOIDED = (
    "image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot",
    "go to", "video", "audio", "music", "flowchart", "diagram",
)  # fmt: skip
"""Self-Instruct's words of what a language model cannot do, and those that Alpaca added."""


@dataclass(frozen=True)
class SelfInstruct:
    """Tasks grown from tasks by a model: Self-Instruct, Wang et al. 2022, https://arxiv.org/abs/2212.10560."""

    total: int = 200
    """Instructions to grow; one may have several examples, each of them a row."""
    mode: Literal["steps", "whole"] = "steps"
    """steps: instructions first, then whether they are classification, then examples (Self-Instruct); whole: one
    prompt for instruction, input and output together (Alpaca)."""
    human: int = 6
    """Seed tasks shown in a prompt."""
    own: int = 2
    """Grown tasks shown in a prompt; seeds take their place while there are none."""
    new: int = 8
    """New tasks asked for in a prompt."""
    cases: int = 6
    """Tasks shown when examples of one are asked for; twice as many when it is asked what is classification."""
    examples: int = 5
    """Most examples of one instruction; with whole there is always one."""
    similarity: float = 0.7
    """An instruction is kept whose ROUGE-L with every other is below this."""
    prompts: int = 5
    """Prompts of a round."""
    shortest: int = 4
    """Words of the shortest instruction."""
    longest: int = 150
    """Words of the longest instruction."""
    avoid: tuple[str, ...] = AVOIDED
    """Words that no instruction may have: of what a language model cannot do."""
    avoid_starts: tuple[str, ...] = ("Write a program",)
    """How no instruction may begin."""
    temperature: float = 0.7
    """Of writing new tasks; the examples of steps are the likeliest ones."""
    top_p: float = 0.5
    """Of writing new tasks: the likeliest words that have this probability together."""
    max_tokens: int = 1024
    """Most tokens of new tasks in one answer."""
    example_tokens: int = 350
    """Most tokens of one instruction's examples."""
    patience: int = 20
    """Rounds without a kept instruction after which it ends with an error."""
    rounds: int | None = None
    """Most rounds; by default as many as it takes."""
    seed: int = 0
    """Of the choice of shown tasks, and of sampling."""

    def __post_init__(self) -> None:
        check_fields(self)
        low = {"total": 1, "human": 1, "own": 0, "new": 1, "cases": 1, "examples": 1, "prompts": 1, "shortest": 1}
        low |= {"temperature": 0, "max_tokens": 1, "example_tokens": 1, "patience": 1}
        problems = [
            f"{name} must be at least {least}, not {getattr(self, name)}"
            for name, least in low.items()
            if getattr(self, name) < least
        ]
        if not 0 < self.similarity <= 1:
            problems.append(f"similarity must be above 0 and at most 1, not {self.similarity}")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.longest < self.shortest:
            problems.append(f"longest={self.longest} is less than shortest={self.shortest}: no instruction would do")
        if self.rounds is not None and self.rounds < 1:
            problems.append(f"rounds must be at least 1, not {self.rounds}")
        raise_all(problems)
