"""Schema of table recipes: one experiment with its settings, and published figures for its methods and data."""

# ruff: noqa: RUF012  pydantic copies the defaults
from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from deltatune.core.errors import DeltatuneError
from deltatune.core.quantization.schemes import scheme_text
from deltatune.prompting.choose_prompts import PromptOptions
from deltatune.training.recipes.schema import PartRows, PartSource, Section, Size, TrainingSettings


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _by_name(value: Any) -> Any:
    """Data sets by name; those without a name are called by their source until the study names them."""
    if isinstance(value, Mapping) and isinstance(value.get("source"), str):
        return {value["source"]: dict(value)}
    sources = [value] if isinstance(value, str) else value
    if isinstance(sources, list) and all(isinstance(source, str) for source in sources):
        twice = sorted({source for source in sources if sources.count(source) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is given twice")
        return {source: {"source": source} for source in sources}
    return value


DataSetsByName = Annotated[
    dict[str, PartSource],
    BeforeValidator(_by_name, json_schema_input_type=str | list[str] | PartRows | dict[str, str | PartRows]),
]
"""A source, several, or sources by name, each with the fields of its task if it needs any."""
Texts = Annotated[list[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]
"""One value, or several."""
Counts = Annotated[list[int | None], BeforeValidator(_as_list, json_schema_input_type=int | list[int | None] | None)]
"""One number, or several; null is all rows."""
Budgets = Annotated[
    list[Size | None], BeforeValidator(_as_list, json_schema_input_type=str | int | list[str | int | None] | None)
]
"""One budget, or several; null keeps the sizes that the methods are written with."""
Count = Annotated[int, Field(ge=1)]


class Prompts(Section):
    """What is said of the prompts; what is missing is chosen, as by `deltatune compare`."""

    template: str = ""
    """The template of every prompting method that names none."""
    words: list[str] = []
    """Label words, as CLASS=WORD or CLASS=WORD|WORD."""
    describe: str = ""
    """The classes in words: "0=spam, 1=a normal message"."""

    @property
    def options(self) -> PromptOptions:
        """As a comparison takes them."""
        return PromptOptions(self.template, tuple(self.words), self.describe)


def _schemes(value: list[str | None]) -> list[str | None]:
    try:
        return [scheme_text(each) for each in value]
    except DeltatuneError as error:
        raise ValueError(str(error)) from None


Schemes = Annotated[
    list[str | None],
    BeforeValidator(_as_list, json_schema_input_type=str | list[str | None] | None),
    AfterValidator(_schemes),
]
"""One quantisation, or several; none, or null, is the base as it was published."""


class Compare(Section):
    """Methods on every combination of models, quantisations, data sets, rows, budgets and shots, as `deltatune compare`
    runs them."""

    model: Texts = ["builtin"]
    """The pretrained models."""
    data: DataSetsByName
    """The data sets; glue and superglue are all tasks of the suite."""
    methods: list[str] = Field(min_length=1)
    """The methods."""
    budget: Budgets = [None]
    """Budgets of every method with a size. Default: the sizes that the methods are written with."""
    limit: Counts = [None]
    """Numbers of training rows."""
    shots: Counts = [None]
    """Training rows of each class in a draw."""
    quantize: Schemes = [None]
    """How the linear maps of the models' blocks are stored: none, nf4, fp4, int8, NF4(double=False)."""
    draws: Count | None = None
    """With shots: draws of rows."""
    seeds: Count | None = None
    """Runs of each method. Default: until methods are told apart."""
    rates: Count = 3
    """Learning rates to try for each method."""
    margin: float | None = None
    """Difference within which two methods count as equal."""
    minutes: float | None = None
    """Time for everything."""
    tasks: Count | None = None
    """Number of tasks whose size on disk is shown."""
    task: dict[str, Any] = {}
    """Fields of every task, such as max_length, prompt or beams; those of a data set come before them."""
    head: dict[str, Any] = {}
    """Fields of the classification head."""
    prompts: Prompts = Prompts()
    """What is said of the prompts."""
    settings: TrainingSettings = TrainingSettings()
    """Settings of the training loop."""
    workers: Count | None = None
    """Runs at once, each in a process of its own."""
    executor: str = ""
    """Where runs happen, as --executor of `deltatune compare`."""


class Dimension(Section):
    """The intrinsic dimension of each data set on each model, as `deltatune dimension` searches for it."""

    model: Texts = ["builtin"]
    """The pretrained models."""
    data: DataSetsByName
    """The data sets."""
    methods: list[Literal["DID", "SAID"]] = ["DID", "SAID"]
    """Ways to project the directions into the weights."""
    fraction: float = 0.9
    """Share of full fine-tuning's score that must be reached; 0.9 is d90."""
    of: Literal["full", "gain"] = "full"
    """What the share refers to: full fine-tuning's score, or its gain over training the head alone."""
    largest: Count | None = None
    """Largest dimension to try."""
    limit: Count | None = None
    """Number of training rows."""
    seeds: Count = 1
    """Runs at the best rate."""
    rates: Count = 3
    """Learning rates to try at each dimension."""
    task: dict[str, Any] = {}
    """Fields of every task."""
    head: dict[str, Any] = {}
    """Fields of the classification head."""
    settings: TrainingSettings = TrainingSettings()
    """Settings of the training loop."""


class Continual(Section):
    """Tasks learned one after another, as `deltatune continual` learns them."""

    model: str = "builtin"
    """The pretrained model."""
    data: DataSetsByName
    """The tasks in the order in which they are learned."""
    methods: list[str] = ["LoRA(r=8)", "Full()"]
    """The methods."""
    modes: list[Literal["apart", "sequential", "joint"]] = ["apart", "sequential", "joint"]
    """Ways to learn the tasks."""
    limit: Count | None = None
    """Training rows of each task."""
    seeds: Count = 1
    """Runs of each method."""
    task: dict[str, Any] = {}
    """Fields of every task."""
    settings: TrainingSettings = TrainingSettings()
    """Settings of the training loop."""


class Latency(Section):
    """Inference time of methods over batch size and length, as `deltatune latency` measures it."""

    model: str = "builtin"
    """The pretrained model."""
    methods: list[str] = ["Houlsby()", "Pfeiffer()", "LoRA()", "Prefix()"]
    """The methods."""
    budget: Size | None = None
    """Budget of every method with a size and without a budget of its own."""
    batches: list[int] = [1, 16, 32]
    """Rows of one forward pass."""
    lengths: list[int] | None = None
    """Tokens of each row. Default: those of 128, 256 and 512 that the model has positions for."""
    repeats: int = 15
    """Timed forward passes of each method in each cell."""
    task: Literal["classify", "lm"] = "classify"
    """The bare transformer, or the model with its language-model head."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the numbers."""


class FactWordings(Section):
    """FactWordings that language models know in several wordings, as `deltatune facts` asks for them."""

    model: Texts
    """The pretrained models."""
    data: str = Field(min_length=1)
    """Rows with a subject, an object and maybe a relation."""
    relations: list[str] = []
    """Only these relations."""
    subject: str | None = None
    """The column of subjects. Default: inferred."""
    object: str | None = None
    """The column of objects. Default: inferred."""
    limit: Count | None = None
    """Score the first rows of each relation only."""
    wordings: list[str] = []
    """Wordings of one relation, with [X] for the subject and [Y] for the object."""
    templates: str | None = None
    """A file with wordings of each relation."""
    candidates: str | None = None
    """Rank only these words: a file, or objects."""
    top: list[int] = [1, 10]
    """k of P@k."""


class Storage(Section):
    """Trained parameters and files of methods for many tasks, as `deltatune count` counts them: no weights are read."""

    model: str = "builtin"
    """The pretrained model; its config is enough."""
    methods: list[str] = Field(min_length=1)
    """The methods."""
    budget: Size | None = None
    """Budget of every method with a size."""
    tasks: Count = 1000
    """Tasks to store."""
    task: Literal["classify", "tag", "lm"] = "classify"
    """A head for rows, a head for tokens, or the language-model head."""
    classes: Count = 2
    """Outputs of the head."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the base's weights."""


class Published(Section):
    """A published figure."""

    method: str
    """The method as the experiment writes it."""
    at: dict[str, str | int | float | None] = {}
    """Its place, such as {data: sst2}; a key that is left out may have any value."""
    metric: str = Field(min_length=1)
    """The metric."""
    value: float = Field(allow_inf_nan=False)
    """The figure as it is published; shares of 1 may be in per cent."""
    source: str = ""
    """Where it is published. Default: the recipe's source."""


Experiment = Compare | Dimension | Continual | Latency | FactWordings | Storage
KINDS = ("compare", "dimension", "continual", "latency", "facts", "count")
"""Keys of experiments, named after their commands."""


class TableRecipe(Section):
    """A table of a paper, or one like it: an experiment, and published figures that are shown beside its own."""

    title: str = Field(min_length=1)
    """Name of the table."""
    source: str = ""
    """Where the published figures are from: a link and the number of the table or figure."""
    notes: list[str] = []
    """What differs from the publication, or cannot be compared."""
    out: str | None = None
    """The folder of the run. Default: runs/ and the recipe's name."""
    compare: Compare | None = None
    """A comparison, or a study of several."""
    dimension: Dimension | None = None
    """A search for the intrinsic dimension."""
    continual: Continual | None = None
    """Tasks learned one after another."""
    latency: Latency | None = None
    """A measurement of inference times."""
    facts: FactWordings | None = None
    """A study of facts."""
    count: Storage | None = None
    """A count of parameters and files."""
    published: list[Published] = []
    """Published figures."""

    @model_validator(mode="after")
    def _one_experiment(self) -> Self:
        named = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(named) != 1:
            given = f"there are {' and '.join(named)}" if named else "there is none"
            raise ValueError(f"a table needs one experiment of {', '.join(KINDS)}; {given}")
        unsourced = [row.metric for row in self.published if not (row.source or self.source)]
        if unsourced:
            raise ValueError("published figures need a source: for each of them, or one for all beside them")
        return self

    @property
    def kind(self) -> str:
        """The key of its experiment."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def experiment(self) -> Experiment:
        """Its experiment."""
        experiment: Experiment = getattr(self, self.kind)
        return experiment

    def figures(self) -> list[dict[str, Any]]:
        """The published figures as plain data: {"method", "at", "metric", "value", "source"}."""
        return [{**row.model_dump(), "source": row.source or self.source} for row in self.published]
