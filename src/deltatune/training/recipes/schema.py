"""Schema of recipes. An unknown key, or a key that would not be used, is an error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as checked

from deltatune.core.errors import DeltatuneError
from deltatune.core.quantization.schemes import scheme_text
from deltatune.store import run_folder
from deltatune.training.recipes.shared_keys import spread
from deltatune.training.settings import AUTO, Settings

METHOD = "LoRA(r=8)"

TrainingSettings: Any = checked(Settings, config=ConfigDict(extra="forbid"), frozen=True)
"""Settings of the training loop, checked by pydantic and by their own checks."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_source(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


def _as_text(value: Any) -> Any:
    return str(value) if type(value) in (int, float) else value


def _without_pictures(value: Any) -> Any:
    if value == "image":
        raise ValueError("image: recipes train on texts; `deltatune train` trains text to image")
    return value


def _scheme(text: str | None) -> str | None:
    try:
        return None if text is None else scheme_text(text) or "none"
    except DeltatuneError as error:
        raise ValueError(str(error)) from None


Columns = Annotated[list[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]
"""One column, or several."""
Size = Annotated[str, BeforeValidator(_as_text, json_schema_input_type=str | int)]
"""A budget: 0.5%, 300k or 300000."""


class Section(BaseModel):
    """A section of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Rows(Section):
    """Source and columns of the rows. Without other options the source alone is enough: `data: reviews.csv`."""

    source: str = Field(min_length=1)
    """A file, a folder with train, dev and test files, a data set's name on the hub, or python-docs."""
    task: Annotated[
        Literal["classify", "regression", "tag", "span", "generate", "lm", "prefer"] | None,
        BeforeValidator(_without_pictures),
    ] = None
    """Task of the rows. Default: inferred from the columns."""
    text: Columns = []
    """The text columns. Default: inferred from the columns."""
    label: str | None = None
    """The label column. Default: inferred from the columns."""
    validation: str | None = None
    """A separate file of validation rows."""
    test: str | None = None
    """A separate file of test rows."""
    limit: int | None = Field(None, ge=1)
    """Train on this many rows only."""


Source = Annotated[Rows, BeforeValidator(_as_source, json_schema_input_type=str | Rows)]
"""Rows, or only their source."""


class PartRows(Rows):
    """The rows of one part of a mixture, and its task."""

    fields: dict[str, Any] = {}
    """Fields of the part's task, such as max_length, prompt or metric."""


PartSource = Annotated[PartRows, BeforeValidator(_as_source, json_schema_input_type=str | PartRows)]
"""Rows of a part, or only their source."""


class Parts(Section):
    """Several tasks that one adapter learns together, as `deltatune.tasks.Mixture`."""

    parts: dict[str, PartSource]
    """The rows of each task by its name."""
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Parts are sampled by size to the power 1/temperature: large values even them out."""


class Vocabulary(Section):
    """New tokens for the model's vocabulary, learned from the texts of the stage."""

    size: int = Field(ge=1)
    """Number of tokens to learn."""
    init: Literal["pieces", "mean", "normal"] = "pieces"
    """Initial embeddings of new tokens: the mean of their old pieces, the mean of all tokens, or a sample around it."""
    min_count: int = Field(2, ge=1)
    """Least number of occurrences of a token in the texts."""
    pad_to_multiple_of: int | None = Field(None, ge=1)
    """Pad the number of embeddings to a multiple of this, which is faster on some GPUs."""
    known: Source | None = None
    """Texts of the original language; the share of them whose tokens do not change is reported."""

    @model_validator(mode="after")
    def _raw(self) -> Self:
        refuse_labels("known", self.known, "task", "label", "limit", "validation")
        return self


class Training(Section):
    """One training: data, task, method and settings."""

    data: Source | None = None
    """The rows."""
    mixture: Parts | None = None
    """Several tasks instead of `data`, learned by one adapter."""
    task: dict[str, Any] = {}
    """Fields of the task, such as max_length, prompt or metric."""
    objective: dict[str, Any] | None = None
    """A pretraining objective on raw text instead of a task: its kind, such as mlm, and its fields."""
    start: str | None = Field(None, alias="from", min_length=1)
    """An adapter that is trained further: its folder, its run, or one of PEFT. It sets the method, head and task."""
    new_labels: bool = False
    """With `from`: add an output to the head for each label that the adapter does not know."""
    method: str = METHOD
    """The method; `deltatune methods` lists all of them."""
    budget: Size | None = None
    """Number of trainable parameters: a share of the model such as 0.5%, or a number such as 300k."""
    init: Literal["eva", "loftq"] | None = None
    """Initial values of a LoRA: eva, from the training rows, or loftq, from what quantisation has lost. Default: drawn,
    and zero."""
    head: dict[str, Any] = {}
    """Fields of the classification head, such as pooling or dense."""
    settings: TrainingSettings = TrainingSettings()
    """Settings of the training loop."""

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, content: Any) -> Any:
        settings = content.get("settings") if isinstance(content, Mapping) else None
        if isinstance(settings, Mapping) and {"epochs", "max_steps"} <= settings.keys():
            raise ValueError(
                "settings: there are epochs and max_steps, and only max_steps would be used: leave one out"
            )
        return content

    @property
    def asked_method(self) -> str | None:
        """The method; None for an adapter that is trained further, unless one is named."""
        return None if self.start and "method" not in self.model_fields_set else self.method

    @model_validator(mode="after")
    def _own_fields(self) -> Self:
        if self.new_labels and not self.start:
            raise ValueError("new_labels is for an adapter that is trained further: name it with from")
        if self.mixture is not None:
            if self.data is not None:
                raise ValueError("there are data and mixture, and only one can be trained on: leave one out")
            if self.task:
                raise ValueError(
                    f"a mixture's parts have fields of their own: move {', '.join(self.task)} to fields there"
                )
            if self.objective is not None:
                raise ValueError("an objective learns from one source of texts: leave mixture out")
        if self.start and self.budget is not None:
            raise ValueError("the size is that of the adapter in from: leave budget out")
        if self.start and self.objective is not None:
            raise ValueError("an objective trains a new adapter: leave from out")
        if self.objective is None:
            return self
        if self.task:
            raise ValueError(f"an objective takes its own fields: move {', '.join(self.task)} from task to objective")
        if self.head:
            raise ValueError("an objective uses the language-model head: leave head out")
        refuse_labels("data of an objective", self.data, "task", "label")
        return self

    @property
    def source(self) -> str:
        """The data as the recipe names them."""
        if self.mixture is not None:
            return ", ".join(f"{name}={rows.source}" for name, rows in self.mixture.parts.items())
        return self.data.source if self.data is not None else ""

    @property
    def task_fields(self) -> dict[str, Any]:
        """The fields that are set of the task, or of the mixture and its parts."""
        if self.mixture is None:
            return self.task
        fields = {name: rows.fields for name, rows in self.mixture.parts.items()}
        return {"temperature": self.mixture.temperature, "parts": fields}

    def trains(self) -> list[str]:
        """Keys of a training that are set here."""
        return [field.alias or name for name, field in Training.model_fields.items() if name in self.model_fields_set]


class Stage(Training):
    """One stage of several: new tokens, or a training whose adapter is merged into the model for the next stage."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    """Name of the stage and, after its number, of its folder."""
    vocabulary: Vocabulary | None = None
    """Extend the vocabulary by tokens of the data's texts; nothing is trained."""
    merge: bool = True
    """Merge the trained adapter into the weights, and check the file that was written."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.mixture is not None:
            raise ValueError("a mixture is trained by a recipe without stages: leave it out of the stage")
        if self.data is None:
            raise ValueError("a stage needs data")
        if self.vocabulary is None:
            return self
        idle = [name for name in (*self.trains(), "merge") if name != "data" and name in self.model_fields_set]
        if idle:
            raise ValueError(f"a vocabulary stage trains nothing, so it does not use {', '.join(idle)}")
        refuse_labels("data of a vocabulary", self.data, "task", "label")
        return self


class JointAdapter(Training):
    """One of several adapters that are trained together on one base. Keys of a training that stand beside `adapters`
    are those of every adapter that does not set them itself."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        problems = []
        if self.data is None and self.mixture is None:
            problems.append("an adapter needs data, or a mixture: here, or beside adapters for all of them")
        if self.start:
            problems.append("from: an adapter that is trained further has a recipe of its own; leave from out")
        if self.settings.learning_rate == AUTO:
            problems.append(f"learning_rate: {AUTO} is searched by a recipe with one training; give a number")
        if problems:
            raise ValueError("\n".join(problems))
        return self


ADAPTER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
"""Names of adapters, which are those of their folders."""


class Recipe(Training):
    """A whole run in one file: model, data, method, settings and folder. One training, several adapters that are
    trained together, or stages in order."""

    model: str = Field("builtin", min_length=1)
    """The pretrained model: a folder, a name on the hub, or builtin."""
    quantize: Annotated[str | None, AfterValidator(_scheme)] = None
    """How the linear maps of the model's blocks are stored: nf4, fp4, int8, NF4(double=False), or none. Default: none,
    or as it was when the adapter in `from` was trained. With stages each one trains on a model stored so."""
    out: str | None = None
    """The folder of the run. Default: runs/ and the recipe's name."""
    stages: list[Stage] = []
    """Stages in order, each on the model of the one before."""
    measure: Source | None = None
    """Raw text; tokens and bits per character of its test rows are measured before and after each stage."""
    adapters: dict[str, JointAdapter] = {}
    """Several adapters by name, trained together on one base, each into a run folder of its own."""
    most_rows: int | None = Field(None, ge=1)
    """With adapters: most rows of one pass of the base, unless one adapter's batch has more; bounds the memory."""

    @model_validator(mode="before")
    @classmethod
    def _spread(cls, content: Any) -> Any:
        return spread(content, [field.alias or name for name, field in Training.model_fields.items()])

    @model_validator(mode="after")
    def _fits(self) -> Self:
        idle = self.trains()
        if "adapters" in self.model_fields_set and not self.adapters:
            raise ValueError("adapters names none: name one, or leave adapters out")
        if self.stages and self.adapters:
            raise ValueError("there are stages and adapters, and only one of them is run: leave one out")
        if self.stages and idle:
            raise ValueError(f"a recipe with stages does not use {', '.join(idle)} outside of them")
        if not self.stages and not self.adapters and self.data is None and self.mixture is None:
            raise ValueError("a recipe needs data, a mixture, adapters, or stages")
        if not self.stages and self.measure is not None:
            raise ValueError("measure needs stages; a training is scored on its own data")
        if self.most_rows is not None and not self.adapters:
            raise ValueError("most_rows bounds the passes of several adapters: name them in adapters, or leave it out")
        self._check_adapter_names()
        refuse_labels("measure", self.measure, "task", "label", "limit", "validation")
        names = [stage.name for stage in self.stages]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"several stages have the name {', '.join(twice)}")
        unmerged = [stage.name for stage in self.stages[:-1] if not stage.merge]
        if unmerged:
            raise ValueError(
                f"only the last stage may leave its adapter unmerged, because the next one starts from the model; "
                f"merge {', '.join(unmerged)}"
            )
        return self

    def _check_adapter_names(self) -> None:
        taken = (run_folder.ADAPTER, run_folder.CHECKPOINTS, run_folder.TENSORBOARD)
        problems = [
            f"adapters: {name!r} cannot be a folder's name; begin with a letter, then letters, digits, - and _, at "
            "most 64 of them"
            for name in self.adapters
            if not ADAPTER_NAME.fullmatch(name)
        ]
        problems += [f"adapters: {name!r} is a folder of every run; choose another name" for name in taken
                     if name in map(str.lower, self.adapters)]  # fmt: skip
        lower = [name.lower() for name in self.adapters]
        twice = sorted({name for name in self.adapters if lower.count(name.lower()) > 1})
        if twice:
            problems.append(f"adapters: {', '.join(twice)} differ in case alone, and some disks take them for one")
        if problems:
            raise ValueError("\n".join(problems))


def refuse_labels(where: str, rows: Rows | None, *names: str) -> None:
    """Raise ValueError for keys that would not be used."""
    idle = [name for name in names if rows is not None and getattr(rows, name) not in (None, "lm")]
    if idle:
        raise ValueError(f"{where}: only texts are read, so it does not use {', '.join(idle)}")
