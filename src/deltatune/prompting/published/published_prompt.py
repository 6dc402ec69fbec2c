"""`PublishedPrompt`: templates and label words that a paper gives for a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

TaskKind = Literal[
    "sentiment",
    "topic",
    "entailment",
    "paraphrase",
    "question type",
    "acceptability",
    "subjectivity",
    "stance",
    "reading",
    "word sense",
]
"""What the classes tell of a text, a pair of texts or three of them."""

PET = "https://arxiv.org/abs/2001.07676"
PET_SUPERGLUE = "https://arxiv.org/abs/2009.07118"
LM_BFF = "https://arxiv.org/abs/2012.15723"
CALIBRATION = "https://arxiv.org/abs/2102.09690"


@dataclass(frozen=True)
class PublishedPrompt:
    """Templates that share label words, for data sets with the same classes.

    The columns of a template are `{text}` for one text, and `{a}`, `{b}` and `{c}` for several; `with_columns` puts
    a data set's own columns in their place.
    """

    name: str
    """Paper, data set, and the words where the paper has several: `pet-mnli-wrong-right`."""
    source: str
    """The paper."""
    task: TaskKind
    """What the classes tell."""
    datasets: tuple[str, ...]
    """Data sets that the paper has it for, lower case without hyphens and blanks: `sst2`."""
    texts: tuple[str, ...]
    """What each text is, in order, as the data sets name their columns: `("premise", "hypothesis")`."""
    templates: tuple[str, ...]
    """Templates, in the paper's order."""
    words: Mapping[str, tuple[str, ...]]
    """Class name -> its label words. Classes are in the order of their numbers where `numbered`."""
    numbered: bool = False
    """Whether the data set is also published with numbers as classes, from 0 or from 1 in the order of `words`."""
    instruction: str = ""
    """Text that comes once before all demonstrations."""
