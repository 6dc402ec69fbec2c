"""Data sets of the hub, loaded with `datasets`: their splits, and class numbers replaced by class names."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.data.dataset import Row
from deltatune.data.sources.class_names import ClassNames, names_of_features, with_class_names
from deltatune.data.sources.source import Source
from deltatune.data.sources.split_names import match_splits

SAVE_PARTS = (
    "Save those that you mean under the names train, validation and test, each with "
    "`load_dataset(...)[SPLIT].to_parquet('FOLDER/train.parquet')`, and give --data FOLDER."
)
"""What to do where the splits of a set are not clear: they cannot be renamed on the hub."""

CONVERTED = "refs/convert/parquet"
"""The branch of a repository on the hub where the hub keeps the set as Parquet files."""
SCRIPTS = "Dataset scripts are no longer supported"


def open_hub(source: str, built_in: str) -> Source:
    """A data set by its hub name, `owner/name` or `owner/name:configuration`.

    Raises DeltatuneError where it cannot be loaded, with its configurations where one must be named.
    """
    here = sorted(item.name for item in Path.cwd().iterdir())
    no_file = f"{source!r} is not a file or folder here{nearest(source, [*here, built_in])}; as a data set of the hub"
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise DeltatuneError(f'{no_file} it needs `datasets`. Install it: pip install "deltatune[data]"') from None
    name, _, configuration = source.partition(":")
    try:
        loaded = _load(datasets, name, configuration)
    except Exception as error:  # whatever `datasets`, its readers and the network raise: there is no common class
        fix = f" Name one: --data {name}:CONFIGURATION" if "onfig" in str(error) else ""
        raise DeltatuneError(
            f"{no_file} it cannot be loaded, because {type(error).__name__}: {_reason(error)}{fix}"
        ) from error
    match = match_splits(loaded)
    problems = [f"{source}: {problem} {SAVE_PARTS}" for problem in match.problems]
    if "train" not in match.splits and not problems:
        problems.append(f"the data set {source!r} has no train split; its splits are: {', '.join(loaded)}.")
    raise_all(problems)
    splits = {split: hub_rows(loaded[name]) for split, name in match.splits.items()}
    sizes = ", ".join(f"{name} ({len(loaded[name])} rows)" for name in match.unused)
    train = loaded[match.splits["train"]]
    version = getattr(train, "version", None)
    return Source(
        source.rsplit("/", 1)[-1].replace(":", "-"),
        f"the data set {source}" + (f" {version}" if version else "") + " of the hub",
        splits,
        class_names=tuple(class_names_of(train)),
        split_names=match.splits,
        notes=(f"splits that are not used: {sizes}",) if sizes else (),
    )


def _load(datasets: Any, name: str, configuration: str) -> Any:
    """The splits of a set. Of one that is a script, which is never run, the hub's own conversion to Parquet is read.

    The conversion's folders are the configurations, `default` where there is one (https://huggingface.co/docs/dataset-viewer/parquet).
    """
    try:
        return datasets.load_dataset(name, configuration or None)
    except RuntimeError as error:
        if SCRIPTS not in str(error):
            raise
        script = error
    for folder in dict.fromkeys((configuration or "default", "default")):
        try:
            return datasets.load_dataset(name, data_dir=folder, revision=CONVERTED)
        except Exception:
            continue
    raise script


def _reason(error: Exception) -> str:
    """The first lines of a message: the configurations of a data set are on the second."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    several = lines[:2] if len(lines) > 1 and "onfig" in lines[0] + lines[1] else lines[:1]
    return " ".join(several) or "no reason given"


def hub_rows(split: Any) -> list[Row]:
    """The rows of a `datasets.Dataset`, class numbers replaced by class names; the hub's -1, "not public", is None."""
    return with_class_names(split.to_list(), class_names_of(split), "the data set")


def class_names_of(split: Any) -> ClassNames:
    """The class names that a `datasets.Dataset` declares."""
    return names_of_features(split.features.to_dict())
