"""Options of the data: files of single splits; mixtures: several data sets by name, their temperature, one part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from deltatune.cli.options.shared_options import DATA, SOURCE, TASK, generation_fields, option, set_values
from deltatune.cli.options.task_options import class_fields
from deltatune.core.errors import DeltatuneError, nearest, raise_all

if TYPE_CHECKING:
    from deltatune.data import Data

Sources = Annotated[
    list[str] | None,
    option(
        "--data",
        "-d",
        panel=DATA,
        metavar="DATA",
        help=f"{SOURCE} Several as NAME=DATA are the parts of a mixture, which one adapter learns together.",
    ),
]
ValidationFile = Annotated[
    Path | None, option("--validation", panel=DATA, metavar="FILE", help="Rows of another file for validation.")
]
TestFile = Annotated[
    Path | None, option("--test", panel=DATA, metavar="FILE", help="Rows of another file for the test.")
]
Temperature = Annotated[
    float | None,
    option(
        "--temperature",
        panel=DATA,
        metavar="NUMBER",
        help="Of a mixture: parts are sampled by size to the power 1/NUMBER. 1 (the default) is proportional, large "
        "values even the parts out.",
    ),
]
Part = Annotated[
    str | None, option("--part", panel=DATA, metavar="NAME", help="The part of a mixture that the rows are of.")
]
MaxSeconds = Annotated[
    float | None,
    option(
        "--max-seconds",
        panel=DATA,
        metavar="SECONDS",
        help=f"{TASK['max_seconds'].help.partition(';')[0]}. Default: that of the training rows, at most 30.",
    ),
]
BUILTIN_DATA = "python-docs"


def read_sources(
    sources: Sequence[str],
    text: Sequence[str] | None,
    label: str | None,
    task: str | None,
    limit: int | None,
    validation: Path | None = None,
    test: Path | None = None,
) -> Data:
    """The data of a command: one data set, or a mixture of named ones, whose columns are inferred."""
    from deltatune.data.mixture_data import named_sources, read_parts
    from deltatune.data.read_data import read_source

    named = named_sources(sources)
    if named is None:
        return read_source(
            sources[0],
            text=text or [],
            label=label,
            task=task,  # type: ignore[arg-type]  # it checks
            limit=limit,
            validation=validation,
            test=test,
        )
    idle = set_values({"text": text or None, "label": label, "task": task, "validation": validation, "test": test})
    raise_all([
        f"--{name} is for a single data set; in a mixture it is inferred for each part, and a recipe sets it"
        for name in idle
    ])  # fmt: skip
    return read_parts(named, lambda name, source: read_source(source, limit=limit))


def task_fields(
    data: Data,
    max_length: int | None,
    metric: str | None,
    positive: str | None,
    mark: Sequence[str] | None,
    temperature: float | None,
    **generation: Any,
) -> dict[str, Any]:
    """The fields of the task that options set: of a mixture, `max_length` in all parts, others where they apply.

    Raises DeltatuneError for options of another task.
    """
    parts: Mapping[str, Data] | None = getattr(data, "parts", None)
    if parts is None:
        if temperature is not None:
            raise DeltatuneError(f"--temperature {temperature:g} is for a mixture: --data NAME=DATA twice or more")
        classes = class_fields(data, positive, mark)
        return {"max_length": max_length, "metric": metric, **classes, **generation_fields(data, **generation)}
    idle = set_values({"metric": metric, "positive": positive, "mark": mark or None})
    problems = [f"--{name} is for a single task; a recipe sets it for each part of a mixture" for name in idle]
    written = [name for name, part in parts.items() if part.task == "generate"]
    if not written:
        names = set_values(generation)
        problems += [f"--{name.replace('_', '-')} is for generation; no part generates text" for name in names]
    raise_all(problems)
    fields = {name: set_values({"max_length": max_length, **(generation if name in written else {})}) for name in parts}
    return {"parts": fields, **set_values({"temperature": temperature})}


def sound_fields(data: Data, max_seconds: float | None) -> dict[str, Any]:
    """The field of the task that --max-seconds sets. Raises DeltatuneError for data without sound."""
    if max_seconds is None:
        return {}
    if data.inputs != "audio":
        raise DeltatuneError(f"--max-seconds {max_seconds:g} is for sounds, and {data.name} holds none; leave it out")
    return {"max_seconds": max_seconds}


def one_source(sources: Sequence[str], part: str | None = None) -> str:
    """The only data set, also as PART=DATA for a named part. Raises DeltatuneError for several."""
    if len(sources) > 1:
        what = "this adapter has one task" if part is None else f"--part {part} is one task"
        raise DeltatuneError(f"{what}: name one data set, not {len(sources)} (--data)")
    name, _, source = sources[0].partition("=")
    return source if source and name == part else sources[0]


def sources_of_parts(mixture: Any, sources: Sequence[str]) -> dict[str, str]:
    """The data set of each part that is named as NAME=DATA."""
    pairs = [source.partition("=") for source in sources]
    parts = ", ".join(mixture.parts)
    problems = [
        f"--data {source}: this adapter is a mixture of {parts}: write --data NAME={source} for a part, or name the "
        "part with --part"
        if not (sign and rest)
        else f"--data {source}: {name!r} is not a part of this mixture{nearest(name, mixture.parts)}; parts: {parts}"
        for source, (name, sign, rest) in zip(sources, pairs, strict=True)
        if name not in mixture.parts or not rest
    ]
    names = [name for name, _, _ in pairs]
    problems += [f"--data names the part {name} twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    raise_all(problems)
    return {name: source for name, _, source in pairs}


def check_single(task: Any) -> None:
    """Raise DeltatuneError for a mixture whose part is not named, and for an adapter that draws."""
    if task.label_kind == "image":
        raise DeltatuneError('this adapter draws pictures: deltatune draw --adapter FOLDER --text "what to draw"')
    if task.label_kind == "mixture":
        raise DeltatuneError(f"this adapter is a mixture of {', '.join(task.parts)}: name the rows' part with --part")


QUICK_BATCH = 16
"""Batch size of the built-in model and data."""


def is_quick(models: Sequence[str], data: Sequence[str], limit: int | None, epochs: float | None) -> bool:
    """Whether the built-in model and data are used without any rows or epochs named: then everything is small."""
    return (list(models), list(data), limit, epochs) == (["builtin"], [BUILTIN_DATA], None, None)


def quick_defaults(
    models: Sequence[str],
    data: Sequence[str],
    limit: int | None,
    epochs: float | None,
    batch_size: int | None,
    rows: int,
    few_epochs: float,
) -> tuple[int | None, float | None, int | None]:
    """Rows, epochs and batch size; `rows` and `few_epochs` for the built-in model and data if none are set."""
    if is_quick(models, data, limit, epochs):
        return rows, few_epochs, batch_size or QUICK_BATCH
    return limit, epochs, batch_size
