"""Class names of numbered labels, as data sets of the hub declare them: `ClassLabel` features and the dataset card."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation import strict_json
from deltatune.core.input_validation.regular_files import read_text
from deltatune.data.dataset import Row

ClassNames = dict[str, list[str]]
"""Column -> the name of each number, from 0 on."""

CARD, INFO = "README.md", "dataset_info.json"
UNKNOWN = -1
"""The number of a label that is not public, or on which the annotators did not agree."""


def names_of_features(features: Any) -> ClassNames:
    """The class names in the features of a data set as JSON: of numbers, and of lists of numbers."""
    names: ClassNames = {}
    for column, feature in features.items() if isinstance(features, Mapping) else ():
        found = _names(feature)
        if found is not None:
            names[str(column)] = found
    return names


def names_of_schema(metadata: Mapping[bytes, bytes] | None, path: Path) -> ClassNames:
    """The class names in the metadata of an Arrow schema."""
    stored = (metadata or {}).get(b"huggingface")
    value = strict_json.loads(stored, f"the metadata of {path}") if stored else {}
    info = value.get("info") if isinstance(value, dict) else None
    return names_of_features(info.get("features")) if isinstance(info, dict) else {}


def names_of_file(path: Path) -> ClassNames:
    """The class names that a Parquet file or an Arrow stream declares; none for other files."""
    module = {".parquet": "pyarrow.parquet", ".arrow": "pyarrow.ipc"}.get(path.suffix.lower())
    if module is None:
        return {}
    try:
        schema = importlib.import_module(module).read_schema(path)
    except (ImportError, ValueError, OSError):  # reading its rows tells what is wrong
        return {}
    return names_of_schema(schema.metadata, path)


def _names(feature: Any) -> list[str] | None:
    while isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    if not isinstance(feature, Mapping):
        return None
    if feature.get("_type") == "ClassLabel" and _are_names(feature.get("names")):
        return list(feature["names"])
    return _names(feature["feature"]) if "feature" in feature else None


def names_of_folder(folder: Path) -> ClassNames:
    """The class names that a folder declares beside its data: in `dataset_info.json`, else in the card, `README.md`."""
    info, card = folder / INFO, folder / CARD
    if os.path.lexists(info):
        value = strict_json.loads(read_text(info), info)
        return names_of_features(value.get("features")) if isinstance(value, dict) else {}
    if not os.path.lexists(card):
        return {}
    text = read_text(card)
    header = text.split("\n---", 1)[0].removeprefix("---") if text.startswith("---") else ""
    if "class_label" not in header:
        return {}
    try:
        yaml = importlib.import_module("yaml")
    except ImportError:
        raise DeltatuneError(
            f'{card} names the classes of these data; reading it needs PyYAML: pip install "deltatune[recipes]"'
        ) from None
    try:
        value = yaml.load(header, Loader=yaml.BaseLoader)  # every value is text: a class may be called no, or 1
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DeltatuneError(f"{card}: its header is not YAML: {str(error).splitlines()[0]}") from None
    infos = value.get("dataset_info") if isinstance(value, dict) else None
    infos = infos if isinstance(infos, list) else [infos]
    if len(infos) != 1 or not isinstance(infos[0], dict):
        return {}  # several configurations: which of them the files are is not said there
    return _names_of_card(infos[0].get("features"))


def _names_of_card(features: Any) -> ClassNames:
    """The class names of a card's list of features: `dtype` or `sequence` with `class_label`."""
    names: ClassNames = {}
    for feature in features if isinstance(features, list) else []:
        types = (feature.get(key) for key in ("dtype", "sequence", "list")) if isinstance(feature, dict) else ()
        for kind in types:
            label = kind.get("class_label") if isinstance(kind, dict) else None
            by_number = label.get("names") if isinstance(label, dict) else None
            if isinstance(by_number, dict):
                by_number = [by_number.get(str(i)) for i in range(len(by_number))]
            if _are_names(by_number):
                names[str(feature.get("name"))] = list(by_number)
    return names


def _are_names(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def with_class_names(rows: Iterable[Row], names: ClassNames, where: str) -> list[Row]:
    """The rows with class numbers replaced by names, and -1, which means unknown, by None.

    Values that are not numbers stay. Raises DeltatuneError for numbers without a name.
    """
    if not names:
        return list(rows)
    named = []
    for i, row in enumerate(rows, start=1):
        changed = {
            column: _named(row[column], names[column], f"{where} row {i}: {column}")
            for column in names
            if column in row
        }
        named.append({**row, **changed})
    return named


def _named(value: Any, names: list[str], place: str) -> Any:
    if isinstance(value, list):
        return [_named(item, names, place) for item in value]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if value == UNKNOWN:
        return None
    if not 0 <= value < len(names):
        raise DeltatuneError(f"{place} is {value}, but the data set names the classes 0 to {len(names) - 1} only.")
    return names[value]
