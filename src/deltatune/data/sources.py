"""A source of data -> the splits that it has: a file, a folder, a data set of the hub, or the built-in data."""

from __future__ import annotations

import importlib
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.data import python_docs
from deltatune.data.dataset import SPLITS, Row, Splits
from deltatune.data.formats import file_formats, folder_formats, is_data_file, missing_file, read_rows, suffixes
from deltatune.data.formats.file_format import first_few
from deltatune.data.splits import by_hash

BUILT_IN = "python-docs"

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""Split -> the names that files, folders and hub splits have for it."""

SHARD = re.compile(r"-\d{5}-of-\d{5}$")  # train-00000-of-00002.parquet, as on the hub
VERSION = re.compile(r"-v\d+(\.\d+)*$")  # train-v2.0.json, as in SQuAD


@dataclass(frozen=True)
class Source:
    """The splits of a source and what is known of their columns."""

    name: str
    """Short name for run folders."""
    origin: str
    """What was read, for the record."""
    splits: Splits
    """Rows by split name; "train" is always there."""
    header: bool = False
    """Whether the column names are the first line of a file."""
    text: tuple[str, ...] = ()
    """The text columns, where the source fixes them."""
    label: str | None = None
    """The label column, where the source fixes it."""


def open_source(source: str | Path, **split_files: str | Path | None) -> Source:
    """The splits of a source; files given as validation= and test= replace those of the source.

    Raises one DeltatuneError for all files that cannot be read.
    """
    opened, problems = None, []
    splits: Splits = {}
    files = {split: path for split, path in split_files.items() if path is not None}
    try:
        opened = _open(source)
    except DeltatuneError as error:
        problems.append(str(error))
    for split, path in files.items():
        try:
            splits[split] = read_rows(path)
        except DeltatuneError as error:
            problems.append(str(error))
    raise_all(problems)
    assert opened is not None  # otherwise there was a problem
    origin = "; ".join([opened.origin, *(f"{split}: {path}" for split, path in files.items())])
    return replace(opened, origin=origin, splits=opened.splits | splits)


def _open(source: str | Path) -> Source:
    """The built-in name, then what exists on disk, then the hub: no network where a path was meant."""
    if source == BUILT_IN:
        return _built_in()
    path = Path(source).expanduser()
    if path.is_dir():
        return _class_folders(path) or _folder(path)
    if path.is_file():
        return Source(path.stem, str(source), {"train": read_rows(path)}, _has_header(path))
    if isinstance(source, Path) or _is_path(source):
        raise DeltatuneError(missing_file(path))
    return _hub(source)


def _is_path(source: str) -> bool:
    """Whether a name can only be a path: hub names are `name` or `owner/name`."""
    return is_data_file(Path(source)) or source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source


def _has_header(path: Path) -> bool:
    return any(fmt.header for fmt in file_formats(path))


def _built_in() -> Source:
    rows: list[Row] = [dict(row) for row in python_docs.rows()]
    parts = by_hash(rows, ("text",), python_docs.SHARES)
    origin = f"the documentation of Python {platform.python_version()} on {platform.system()}"
    return Source(BUILT_IN, origin, dict(zip(SPLITS, parts, strict=True)), text=("text",), label="label")


# --- a folder ---


def _class_folders(folder: Path) -> Source | None:
    """A folder in a folder format (a folder for each class), for each split or for all; None where it has none."""
    subfolders = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    split_names, problems = _match_splits(subfolders)
    paths = {split: subfolders[name] for split, name in split_names.items()}
    if "train" not in paths:
        paths = {"train": folder}
    for fmt in folder_formats():
        splits = {split: rows for split, path in paths.items() if (rows := fmt.read(path))}
        if "train" in splits:
            raise_all(problems)
            classes = dict.fromkeys(row[fmt.label] for row in splits["train"]) if fmt.label else {}
            origin = f"{folder} (folders {', '.join(classes)})"
            return Source(folder.resolve().name, origin, splits, text=fmt.text, label=fmt.label)
    return None


def _folder(folder: Path) -> Source:
    """Files named train, dev (val, valid, validation) and test, each in any format, in one file or in shards.

    Where no name is a split, names may end in one (`reviews_train.csv`). A folder of plain texts alone, none of them
    named train, is a corpus: each file is a row.
    """
    files = sorted(file for file in folder.iterdir() if is_data_file(file))
    files_of: dict[str, list[Path]] = {}
    for file in files:
        files_of.setdefault(VERSION.sub("", SHARD.sub("", file.stem.lower())), []).append(file)
    documents = all(fmt.document for file in files for fmt in file_formats(file))
    if not documents and not _match_splits(files_of)[0]:
        files_of = _by_last_word(files_of)
    stems, problems = _match_splits(files_of)
    if files and not stems and documents:
        rows = [{"name": file.name, **row} for file in files for row in read_rows(file)]
        return Source(folder.resolve().name, f"{folder} ({len(files)} text files)", {"train": rows})
    for split, stem in stems.items():
        whole = [file for file in files_of[stem] if not SHARD.search(file.stem)]
        if len(files_of[stem]) > 1 and whole:
            names = ", ".join(file.name for file in files_of[stem])
            problems.append(f"{folder} has {names}: which one is {split}? Keep one, or name the file itself.")
    if "train" not in stems:
        problems.append(f"{folder} has no train file (train{', '.join(suffixes())}). {_alternatives(files)}")
    raise_all(problems)
    splits: Splits = {}
    for split, stem in stems.items():
        try:
            splits[split] = [row for file in files_of[stem] for row in read_rows(file)]
        except DeltatuneError as error:
            problems.append(str(error))
    raise_all(problems)
    names = ", ".join(file.name for stem in stems.values() for file in files_of[stem])
    return Source(folder.resolve().name, f"{folder} ({names})", splits, any(map(_has_header, files)))


def _by_last_word(files_of: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    """The files by the last word of their stems: `en_ewt-ud-train` and `reviews_train` are `train`."""
    by_word: dict[str, list[Path]] = {}
    for stem, files in files_of.items():
        by_word.setdefault(re.split(r"[-_. ]", stem)[-1], []).extend(files)
    return by_word


def _alternatives(files: Sequence[Path]) -> str:
    """The data files of a folder without a train file, and how to train on one of them."""
    if not files:
        return "It holds no data file."
    names = first_few([file.name for file in files])
    return f"Its data files are: {names}. To train on one of them, name it: --data {files[0]}"


def _match_splits(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Split -> the one of `names` that means it, and a problem where two do."""
    names = set(names)
    matches: dict[str, str] = {}
    problems = []
    for split in SPLITS:
        present = [name for name in SPLIT_NAMES[split] if name in names]
        if len(present) > 1:
            problems.append(f"both {present[0]!r} and {present[1]!r} can be the {split} split: keep one of them.")
        if present:
            matches[split] = present[0]
    return matches, problems


# --- the hub ---


def _hub(source: str) -> Source:
    """A data set by its hub name, `owner/name` or `owner/name:configuration`."""
    here = sorted(item.name for item in Path.cwd().iterdir())
    no_file = f"{source!r} is not a file or folder here{nearest(source, [*here, BUILT_IN])}; as a data set of the hub"
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise DeltatuneError(f'{no_file} it needs `datasets`. Install it: pip install "deltatune[data]"') from None
    name, _, configuration = source.partition(":")
    try:
        loaded = datasets.load_dataset(name, configuration or None)
    except Exception as error:  # whatever `datasets`, its readers and the network raise: there is no common class
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise DeltatuneError(f"{no_file} it cannot be loaded, because {type(error).__name__}: {reason}") from error
    matches, problems = _match_splits(loaded)
    if "train" not in matches:
        problems.append(f"the data set {source!r} has no train split; its splits are: {', '.join(loaded)}.")
    raise_all(problems)
    splits = {split: hub_rows(loaded[name]) for split, name in matches.items()}
    version = getattr(loaded[matches["train"]], "version", None)
    short_name = source.rsplit("/", 1)[-1].replace(":", "-")
    return Source(short_name, f"the data set {source}" + (f" {version}" if version else "") + " of the hub", splits)


def hub_rows(split: Any) -> list[Row]:
    """The rows of a `datasets.Dataset`, class numbers replaced by class names; the hub's -1, "not public", is None."""
    rows: list[Row] = split.to_list()
    features: Mapping[str, Any] = split.features
    for column, feature in features.items():
        names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
        if names is None:  # neither a ClassLabel nor a list of them
            continue
        for row in rows:
            row[column] = _class_names(row[column], names)
    return rows


def _class_names(value: Any, names: list[str]) -> Any:
    """The name of a class number, or the names of a list of them."""
    if isinstance(value, list):
        return [_class_names(number, names) for number in value]
    return None if value is None or value < 0 else names[value]
