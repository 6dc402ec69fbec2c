"""What a recipe may say. A word that is not here, or that would not be used, is an error."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as checked

from deltatune.training.settings import Settings

Loop: Any = checked(Settings, config=ConfigDict(extra="forbid"), frozen=True)
"""The training settings, checked by pydantic and by themselves."""


class Part(BaseModel):
    """A part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Source(Part):
    """Where rows come from, and which columns are read."""

    source: str
    """A file, a folder with train, dev and test files, a data set's name on the hub, or python-docs."""
    task: Literal["classify", "regression", "tag", "span", "generate", "lm"] | None = None
    """What the rows are for; by default what their columns show."""
    text: list[str] = []
    """The text columns; guessed where clear."""
    label: str | None = None
    """The label column; guessed where clear."""
    validation: str | None = None
    """A further file of validation rows."""
    test: str | None = None
    """A further file of test rows."""
    limit: int | None = Field(None, ge=1)
    """Train on this many rows only."""


class Words(Part):
    """New words for the model's vocabulary, learnt from texts."""

    size: int = Field(ge=1)
    """How many tokens are learnt."""
    init: Literal["pieces", "mean", "normal"] = "pieces"
    """Rows of new tokens: the mean of their old pieces' rows, the mean of all rows, or drawn around it."""
    min_count: int = Field(2, ge=1)
    """How often a token must stand in the texts."""
    pad_to_multiple_of: int | None = Field(None, ge=1)
    """Rows are added up to a multiple of this, which is faster on some machines."""


class Run(Part):
    """What is trained on what, and how."""

    data: Source | None = None
    """The rows."""
    task: dict[str, Any] = {}
    """Fields of the task, such as max_length, prompt or metric."""
    objective: dict[str, Any] | None = None
    """A pretraining objective on raw text in place of a task: kind, and its fields."""
    method: str | None = None
    """What to train; `deltatune methods` lists what there is. By default LoRA(r=8)."""
    budget: str | None = None
    """Parameters that may be trained: a share of the model such as 0.5%, or a number such as 300k."""
    head: dict[str, Any] = {}
    """Fields of a classifier, such as pooling or dense."""
    settings: Loop = Loop()
    """The training loop."""

    def unused(self) -> list[str]:
        """Words of a run that are set."""
        return [name for name in Run.model_fields if name in self.model_fields_set]


class Stage(Run):
    """One step of several: new words, or training whose result goes into the model for the next stage."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Its folder, behind its number."""
    vocabulary: Words | None = None
    """Grow the vocabulary by words of the data's texts; nothing is trained."""
    merge: bool = True
    """Write the trained adapter into the weights, and check the file that was written."""

    @model_validator(mode="after")
    def _fits(self) -> Stage:
        if self.data is None:
            raise ValueError("a stage needs data")
        idle = [name for name in self.unused() if name != "data"]
        if self.vocabulary is not None and idle:
            raise ValueError(f"a vocabulary stage trains nothing, so it has no use for {', '.join(idle)}")
        return self


class Recipe(Run):
    """A whole run as one file: what, on what, how, and where to. Either one training, or stages one after another."""

    model: str = "builtin"
    """The pretrained model: a folder, a name on the hub, or builtin."""
    out: str | None = None
    """The folder of the run; by default runs/ and the recipe's name."""
    stages: list[Stage] = []
    """Steps one after another, each on the model the one before has made."""
    measure: Source | None = None
    """Raw text on which tokens and bits per character are measured before, between and after the stages."""

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        idle = self.unused()
        if self.stages and idle:
            raise ValueError(f"a recipe with stages has no use for {', '.join(idle)} outside of them")
        if not self.stages and self.data is None:
            raise ValueError("a recipe needs data, or stages")
        if not self.stages and self.measure is not None:
            raise ValueError("measure belongs to a recipe with stages; a single training is scored on its own data")
        names = [stage.name for stage in self.stages]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"stages share the name {', '.join(twice)}")
        if any(not stage.merge for stage in self.stages[:-1]):
            raise ValueError("only the last stage may leave its adapter unmerged: the next one starts from the model")
        return self
