"""What a recipe may say. A word that is not here, or that would not be used, is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as checked

from deltatune.training.settings import Settings

METHOD = "LoRA(r=8)"

Loop: Any = checked(Settings, config=ConfigDict(extra="forbid"), frozen=True)
"""The training settings, checked by pydantic and by themselves."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _sourced(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


def _written(value: Any) -> Any:
    return str(value) if type(value) in (int, float) else value


Columns = Annotated[list[str], BeforeValidator(_listed, json_schema_input_type=str | list[str])]
"""One column, or several."""
Size = Annotated[str, BeforeValidator(_written, json_schema_input_type=str | int)]
"""A budget: 0.5%, 300k or 300000."""


class Part(BaseModel):
    """A part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Rows(Part):
    """Where rows come from, and which columns are read. Where nothing but `source` is said, that word alone will do."""

    source: str = Field(min_length=1)
    """A file, a folder with train, dev and test files, a data set's name on the hub, or python-docs."""
    task: Literal["classify", "regression", "tag", "span", "generate", "lm"] | None = None
    """What the rows are for; by default what their columns show."""
    text: Columns = []
    """The text columns; guessed where clear."""
    label: str | None = None
    """The label column; guessed where clear."""
    validation: str | None = None
    """A further file of validation rows."""
    test: str | None = None
    """A further file of test rows."""
    limit: int | None = Field(None, ge=1)
    """Train on this many rows only."""


Source = Annotated[Rows, BeforeValidator(_sourced, json_schema_input_type=str | Rows)]
"""Rows, or the name of their source alone."""


class Words(Part):
    """New words for the model's vocabulary, learnt from the texts of the stage."""

    size: int = Field(ge=1)
    """How many tokens are learnt."""
    init: Literal["pieces", "mean", "normal"] = "pieces"
    """Rows of new tokens: the mean of their old pieces' rows, the mean of all rows, or drawn around it."""
    min_count: int = Field(2, ge=1)
    """How often a token must stand in the texts."""
    pad_to_multiple_of: int | None = Field(None, ge=1)
    """Rows are added up to a multiple of this, which is faster on some machines."""
    known: Source | None = None
    """Texts of what the model reads already; the share of them that is cut as before is reported."""

    @model_validator(mode="after")
    def _raw(self) -> Self:
        refuse_labels("known", self.known, "task", "label", "limit", "validation")
        return self


class Run(Part):
    """What is trained on what, and how."""

    data: Source | None = None
    """The rows."""
    task: dict[str, Any] = {}
    """Fields of the task, such as max_length, prompt or metric."""
    objective: dict[str, Any] | None = None
    """A pretraining objective on raw text in place of a task: its kind, such as mlm, and its fields."""
    method: str = METHOD
    """What to train; `deltatune methods` lists what there is."""
    budget: Size | None = None
    """Parameters that may be trained: a share of the model such as 0.5%, or a number such as 300k."""
    head: dict[str, Any] = {}
    """Fields of a classifier, such as pooling or dense."""
    settings: Loop = Loop()
    """The training loop."""

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, given: Any) -> Any:
        settings = given.get("settings") if isinstance(given, Mapping) else None
        if isinstance(settings, Mapping) and {"epochs", "max_steps"} <= settings.keys():
            raise ValueError("settings have epochs and max_steps, and max_steps alone would count: leave one out")
        return given

    @model_validator(mode="after")
    def _own_fields(self) -> Self:
        if self.objective is None:
            return self
        if self.task:
            raise ValueError(f"an objective takes its own fields: move {', '.join(self.task)} from task to objective")
        if self.head:
            raise ValueError("an objective is answered by the model's own words: leave head out")
        refuse_labels("data of an objective", self.data, "task", "label")
        return self

    def trains(self) -> list[str]:
        """Words of a training that are set here."""
        return [name for name in Run.model_fields if name in self.model_fields_set]


class Stage(Run):
    """One step of several: new words, or training whose result goes into the model for the next stage."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    """Its folder, behind its number."""
    vocabulary: Words | None = None
    """Grow the vocabulary by words of the data's texts; nothing is trained."""
    merge: bool = True
    """Write the trained adapter into the weights, and check the file that was written."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.data is None:
            raise ValueError("a stage needs data")
        if self.vocabulary is None:
            return self
        idle = [name for name in (*self.trains(), "merge") if name != "data" and name in self.model_fields_set]
        if idle:
            raise ValueError(f"a vocabulary stage trains nothing, so it has no use for {', '.join(idle)}")
        refuse_labels("data of a vocabulary", self.data, "task", "label")
        return self


class Recipe(Run):
    """A whole run as one file: what, on what, how, and where to. Either one training, or stages one after another."""

    model: str = Field("builtin", min_length=1)
    """The pretrained model: a folder, a name on the hub, or builtin."""
    out: str | None = None
    """The folder of the run; by default runs/ and the recipe's name."""
    stages: list[Stage] = []
    """Steps one after another, each on the model the one before has made."""
    measure: Source | None = None
    """Raw text on whose test rows tokens and bits per character are measured before, between and after the stages."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        idle = self.trains()
        if self.stages and idle:
            raise ValueError(f"a recipe with stages has no use for {', '.join(idle)} outside of them")
        if not self.stages and self.data is None:
            raise ValueError("a recipe needs data, or stages")
        if not self.stages and self.measure is not None:
            raise ValueError("measure belongs to a recipe with stages; a single training is scored on its own data")
        refuse_labels("measure", self.measure, "task", "label", "limit", "validation")
        names = [stage.name for stage in self.stages]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"stages share the name {', '.join(twice)}")
        unmerged = [stage.name for stage in self.stages[:-1] if not stage.merge]
        if unmerged:
            raise ValueError(
                f"only the last stage may leave its adapter unmerged, since the next one starts from the model; "
                f"merge {', '.join(unmerged)}"
            )
        return self


def refuse_labels(where: str, rows: Rows | None, *names: str) -> None:
    """Raise ValueError for words that nothing would read."""
    idle = [name for name in names if rows is not None and getattr(rows, name) not in (None, "lm")]
    if idle:
        raise ValueError(f"{where}: texts alone are read, so there is no use for {', '.join(idle)}")
