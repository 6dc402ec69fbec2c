"""A source of data -> the splits it has: a file, a folder, a data set of the hub, or the built-in data."""

from __future__ import annotations

import importlib
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.data import python_docs
from deltatune.data.formats.class_folders import class_rows, classes_of
from deltatune.data.formats.files import READERS, Row, missing, read_rows, some
from deltatune.data.splits import SPLITS, by_hash

BUILT_IN = "python-docs"

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""Split -> the names that files and hub splits have for it."""

SHARD = re.compile(r"-\d{5}-of-\d{5}$")  # train-00000-of-00002.parquet, as the hub has it
VERSION = re.compile(r"-v\d+(\.\d+)*$")  # train-v2.0.json, as SQuAD has it
DOCUMENT = ".txt"


@dataclass(frozen=True)
class Source:
    """What was found."""

    name: str
    """Short name for run folders."""
    origin: str
    """What was read, for the record."""
    parts: dict[str, list[Row]]
    """Rows by split name, "train" always among them."""
    header: bool = False
    """Whether the column names are the first line of a CSV or TSV file."""
    text: tuple[str, ...] = ()
    """The text columns, where the source itself says."""
    label: str | None = None
    """The label column, where the source itself says."""


def open_source(source: str | Path, **given: str | Path | None) -> Source:
    """The splits of a source; files `given` as validation= and test= take the place of what the source has for them.

    Raises one DeltatuneError for all files that cannot be read.
    """
    found, problems = None, []
    parts: dict[str, list[Row]] = {}
    files = {split: path for split, path in given.items() if path is not None}
    try:
        found = _find(source)
    except DeltatuneError as error:
        problems.append(str(error))
    for split, path in files.items():
        try:
            parts[split] = read_rows(path)
        except DeltatuneError as error:
            problems.append(str(error))
    raise_all(problems)
    assert found is not None  # else there was a problem
    origin = "; ".join([found.origin, *(f"{split}: {path}" for split, path in files.items())])
    return replace(found, origin=origin, parts=found.parts | parts)


def _find(source: str | Path) -> Source:
    """The built-in word, then what exists on this disk, then the hub: no network where a path was meant."""
    if source == BUILT_IN:
        return _built_in()
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return Source(path.stem, str(source), {"train": read_rows(path)}, _has_header(path))
    if isinstance(source, Path) or _is_path(source):
        raise DeltatuneError(missing(path))
    return _hub(source)


def _is_path(source: str) -> bool:
    """Whether a name can only be a path: hub names are `name` or `owner/name`."""
    ending = Path(source).suffix.lower()
    return ending in READERS or source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source


def _has_header(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv")


def _built_in() -> Source:
    rows: list[Row] = [dict(row) for row in python_docs.rows()]
    dealt = by_hash(rows, ("text",), python_docs.SHARES)
    origin = f"the documentation of Python {platform.python_version()} on {platform.system()}"
    return Source(BUILT_IN, origin, dict(zip(SPLITS, dealt, strict=True)), text=("text",), label="label")


# --- a folder ---


def _folder(folder: Path) -> Source:
    """Files named train, dev (val, valid, validation) and test, each in any known format, whole or in shards.

    Where none is, names may end so (`reviews_train.csv`). Folders in it may be classes, with a text a file. A folder
    that holds plain texts alone, none of them named train, is a row a text.
    """
    classes = _classes(folder)
    if classes:
        return classes
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in READERS)
    by_stem: dict[str, list[Path]] = {}
    for file in files:
        by_stem.setdefault(VERSION.sub("", SHARD.sub("", file.stem.lower())), []).append(file)
    documents = all(file.suffix.lower() == DOCUMENT for file in files)
    if not documents and not _match_splits(by_stem)[0]:
        by_stem = _by_last_word(by_stem)
    found, problems = _match_splits(by_stem)
    if files and not found and documents:
        rows = [{"name": file.name, **row} for file in files for row in read_rows(file)]
        return Source(folder.resolve().name, f"{folder} ({len(files)} text files)", {"train": rows})
    for split, stem in found.items():
        whole = [file for file in by_stem[stem] if not SHARD.search(file.stem)]
        if len(by_stem[stem]) > 1 and whole:
            names = ", ".join(file.name for file in by_stem[stem])
            problems.append(f"{folder} has {names}: which one is {split}? Leave one, or give the file itself.")
    if "train" not in found:
        problems.append(f"{folder} has no train file (train{', '.join(READERS)}). {_instead(files)}")
    raise_all(problems)
    parts: dict[str, list[Row]] = {}
    for split, stem in found.items():
        try:
            parts[split] = [row for file in by_stem[stem] for row in read_rows(file)]
        except DeltatuneError as error:
            problems.append(str(error))
    raise_all(problems)
    read = ", ".join(file.name for stem in found.values() for file in by_stem[stem])
    return Source(folder.resolve().name, f"{folder} ({read})", parts, any(map(_has_header, files)))


def _classes(folder: Path) -> Source | None:
    """A folder a class, with a text a file, for each split or for all; None where there are no such folders."""
    places = {place.name.lower(): place for place in sorted(folder.iterdir()) if place.is_dir()}
    splits, problems = _match_splits(places)
    texts = {split: classes_of(places[name]) for split, name in splits.items()} if "train" in splits else {}
    texts = texts or {"train": classes_of(folder)}
    if not texts["train"]:
        return None
    raise_all(problems)
    parts = {split: class_rows(classes) for split, classes in texts.items() if classes}
    origin = f"{folder} (folders {', '.join(texts['train'])})"
    return Source(folder.resolve().name, origin, parts, text=("text",), label="label")


def _by_last_word(by_stem: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    """The files by what their names end in: `en_ewt-ud-train` and `reviews_train` are `train`."""
    found: dict[str, list[Path]] = {}
    for stem, files in by_stem.items():
        found.setdefault(re.split(r"[-_. ]", stem)[-1], []).extend(files)
    return found


def _instead(files: list[Path]) -> str:
    """What a folder without a train file has, and how to train on one of its files."""
    if not files:
        return "It holds no data file."
    names = some([file.name for file in files])
    return f"Its data files are: {names}. To train on one of them, name it: --data {files[0]}"


def _match_splits(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Split -> the name that stands for it among `names`, and a problem where two do."""
    names = set(names)
    found: dict[str, str] = {}
    problems = []
    for split in SPLITS:
        present = [name for name in SPLIT_NAMES[split] if name in names]
        if len(present) > 1:
            problems.append(f"both {present[0]!r} and {present[1]!r} can be the {split} split: leave one of them.")
        if present:
            found[split] = present[0]
    return found, problems


# --- the hub ---


def _hub(source: str) -> Source:
    """A data set by its hub name, `owner/name` or `owner/name:configuration`."""
    here = sorted(item.name for item in Path.cwd().iterdir())
    neither = f"{source!r} is no file or folder here{nearest(source, [*here, BUILT_IN])}; as a data set of the hub"
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise DeltatuneError(f'{neither} it needs `datasets`. Install it: pip install "deltatune[data]"') from None
    name, _, configuration = source.partition(":")
    try:
        loaded = datasets.load_dataset(name, configuration or None)
    except Exception as error:  # whatever `datasets`, its readers and the network raise: there is no common class
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise DeltatuneError(f"{neither} it cannot be loaded, because {type(error).__name__}: {reason}") from error
    found, problems = _match_splits(loaded)
    if "train" not in found:
        problems.append(f"the data set {source!r} has no train split; its splits are: {', '.join(loaded)}.")
    raise_all(problems)
    parts = {split: hub_rows(loaded[key]) for split, key in found.items()}
    version = getattr(loaded[found["train"]], "version", None)
    short = source.rsplit("/", 1)[-1].replace(":", "-")
    return Source(short, f"the data set {source}" + (f" {version}" if version else "") + " of the hub", parts)


def hub_rows(split: Any) -> list[Row]:
    """The rows of a `datasets.Dataset`, class numbers replaced by class names; the hub's -1, "not public", is None."""
    rows: list[Row] = split.to_list()
    features: Mapping[str, Any] = split.features
    for column, feature in features.items():
        names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
        if names is None:  # neither a ClassLabel nor a list of them
            continue
        for row in rows:
            row[column] = _named(row[column], names)
    return rows


def _named(value: Any, names: list[str]) -> Any:
    """A class number, or each of a list of them, as its name."""
    if isinstance(value, list):
        return [_named(number, names) for number in value]
    return None if value is None or value < 0 else names[value]
