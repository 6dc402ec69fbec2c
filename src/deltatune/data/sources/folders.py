"""A folder -> the splits that it has: files or folders named after splits, texts, or a folder for each class.

What is not used is named in a note, down to the last file; only documentation and hidden files are passed over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.data.dataset import Splits
from deltatune.data.formats import file_formats, folder_formats, is_data_file, read_rows, suffixes
from deltatune.data.formats.file_format import first_few
from deltatune.data.media.images import is_image
from deltatune.data.media.media_files import MediaFile
from deltatune.data.media.sounds import is_sound
from deltatune.data.published.nested_columns import with_tables
from deltatune.data.sources.class_names import names_of_file, names_of_folder, with_class_names
from deltatune.data.sources.source import Source
from deltatune.data.sources.split_names import SplitMatch, match_splits

SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
"""The end of a shard's stem, as on the hub: train-00000-of-00002.parquet."""
VERSION = re.compile(r"-v\d+(\.\d+)*$")
"""The version in a stem, as in SQuAD's: train-v2.0.json."""
ABOUT = re.compile(
    r"(readme|licen[sc]e|citation|changelog)(\.rst|\.txt)?|.*\.(md|py|ipynb|lock)|dataset_(info|infos|dict)\.json|state\.json",
    re.IGNORECASE,
)
"""Files about the data. Those that end in .txt are named in a note."""
TABLES = ".tables"
"""The end of the stem of a file with the tables of a split, as in WikiSQL's own files: train.tables.jsonl."""
DATA, SAVED = "data", "state.json"
"""The folder in which repositories of the hub keep their files, or the stem of files of `Dataset.save_to_disk`; and a
file that the latter has beside them."""


def open_folder(folder: Path) -> Source:
    """The splits of a folder. Raises DeltatuneError where there is no train split or where two files mean the same."""
    return _class_folders(folder) or _files(folder)


# --- a folder for each class ---


def _class_folders(folder: Path) -> Source | None:
    """A folder in a folder format (a folder for each class), for each split or for all; None where it has none."""
    subfolders = {path.name: path for path in _visible(folder) if path.is_dir()}
    match = match_splits(subfolders)
    paths = {split: subfolders[name] for split, name in match.splits.items()}
    if "train" not in paths:
        if "train" in match_splits([file.stem.lower() for file in _data_files(folder)]).splits:
            return None  # folders of texts beside a train file are no classes
        paths, match = {"train": folder}, SplitMatch()
    for fmt in folder_formats():
        splits = {split: rows for split, path in paths.items() if (rows := fmt.read(path))}
        if "train" in splits:
            raise_all(match.problems)
            classes = dict.fromkeys(row[fmt.label] for row in splits["train"]) if fmt.label else {}
            roots = [paths[split] for split in splits]
            used = [*roots, *(root / name for root in roots for name in classes)]
            unused = [item for path in {folder, *roots} for item in _visible(path) if item not in used]
            origin = f"{folder} (folders {', '.join(classes)})"
            return Source(
                folder.resolve().name,
                origin,
                splits,
                text=fmt.text,
                label=fmt.label,
                split_names=match.splits,
                notes=_unused(folder, unused),
            )
    return None


# --- files ---


def _files(folder: Path) -> Source:
    """Files named train, dev (val, valid, validation) and test, each in any format, in one file or in shards.

    Where no name is a split, names may end in one (`reviews_train.csv`). A folder of plain texts alone, none of them
    named train, is a corpus: each file is a row. A folder named after a split holds the shards of it.
    """
    files = _data_files(folder)
    subfolders = [path for path in _visible(folder) if path.is_dir()]
    inside = next((path for path in subfolders if path.name == DATA), None)
    if not files and inside is not None and _data_files(inside):
        return _in_data(folder, inside)
    files_of: dict[str, list[Path]] = {}
    for file in files:
        files_of.setdefault(VERSION.sub("", SHARD.sub("", file.stem.lower())), []).append(file)
    documents = bool(files) and all(fmt.document for file in files for fmt in file_formats(file))
    if not documents and "train" not in match_splits(files_of).splits:
        by_word = _by_last_word(files_of)
        files_of = by_word if "train" in match_splits(by_word, in_parts=False).splits else files_of
    tables_of = {stem: files_of.pop(stem + TABLES) for stem in list(files_of) if stem + TABLES in files_of}
    if list(files_of) == [DATA] and (folder / SAVED).is_file():
        files_of = {"train": files}
    shards_of = {path.name.lower(): _shards(path) for path in subfolders if match_splits([path.name]).splits}
    shards_of = {name: shards for name, shards in shards_of.items() if shards and name not in files_of}
    files_of |= shards_of
    match = match_splits(files_of, in_parts=not documents)
    if files and not match.splits and documents:
        rows = [{"name": file.name, **row} for file in files for row in read_rows(file)]
        notes = _unused(folder, [item for item in _visible(folder) if item not in files])
        origin = f"{folder} ({len(files)} text files)"
        return Source(folder.resolve().name, origin, {"train": rows}, notes=notes)
    problems = [*match.problems]
    for split, stem in match.splits.items():
        problems += _several_files(folder, split, files_of[stem], stem in shards_of)
    if "train" not in match.splits and not match.problems:
        problems.append(
            f"{folder} has no train file (train{', '.join(suffixes())}). {_alternatives(folder, files, subfolders)}"
        )
    raise_all(problems)
    return _read_files(folder, match, files_of, tables_of)


def _read_files(
    folder: Path, match: SplitMatch, files_of: Mapping[str, Sequence[Path]], tables_of: Mapping[str, Sequence[Path]]
) -> Source:
    """The rows of each split's files, and a note on the files that are of no split."""
    splits: Splits = {}
    problems = []
    class_names = names_of_folder(folder)
    declared = {**class_names, **names_of_file(files_of[match.splits["train"]][0])}
    for split, stem in match.splits.items():
        try:
            splits[split] = [row for file in files_of[stem] for row in read_rows(file)]
            splits[split] = with_class_names(splits[split], class_names, split)
            tables = [table for file in tables_of.get(stem, ()) for table in read_rows(file)]
            splits[split] = with_tables(splits[split], tables, split) if tables else splits[split]
        except DeltatuneError as error:
            problems.append(str(error))
    raise_all(problems)
    used = [file for stem in match.splits.values() for file in (*files_of[stem], *tables_of.get(stem, ()))]
    used_folders = {path for file in used for path in file.parents if path.is_relative_to(folder)}
    unused = [item for path in {folder, *used_folders} for item in _visible(path) if item not in used]
    unused = [item for item in unused if item not in used_folders | _media_folders(splits)]
    header = any(fmt.header for file in used for fmt in file_formats(file))
    names = ", ".join(str(file.relative_to(folder)) for file in used)
    return Source(
        folder.resolve().name,
        f"{folder} ({names})",
        splits,
        header,
        class_names=tuple(declared),
        split_names=match.splits,
        notes=_unused(folder, unused),
    )


def _media_folders(splits: Splits) -> set[Path]:
    """The folders of the images and sounds that rows name, and those around them."""
    files = {
        os.path.dirname(v) for rows in splits.values() for row in rows for v in row.values() if isinstance(v, MediaFile)
    }
    return {folder for path in files for folder in (Path(path), *Path(path).parents)}


def _in_data(folder: Path, inside: Path) -> Source:
    """A repository of the hub: its files are in `data`, and it has the name of the repository."""
    source = _files(inside)
    class_names = names_of_folder(folder)
    splits = {split: with_class_names(rows, class_names, split) for split, rows in source.splits.items()}
    notes = (*source.notes, *_unused(folder, [item for item in _visible(folder) if item != inside]))
    known = (*source.class_names, *class_names)
    return replace(source, name=folder.resolve().name, splits=splits, class_names=known, notes=notes)


def _several_files(folder: Path, split: str, files: Sequence[Path], is_folder: bool) -> list[str]:
    """What is wrong with a split in several files: they are not all shards, or shards are missing."""
    shards = {file: found for file in files if (found := SHARD.search(file.stem))}
    names = ", ".join(file.name for file in files)
    if is_folder and not shards:
        return []
    if len(files) > 1 and len(shards) < len(files):
        return [f"{folder} has {names}: which one is {split}? Keep one, or name the file itself."]
    numbers = sorted(int(shard.group(1)) for shard in shards.values())
    totals = {int(shard.group(2)) for shard in shards.values()}
    if shards and (len(totals) > 1 or numbers != list(range(*totals))):
        return [f"{folder}: the shards of {split} are not complete: there are only {names}. Add the others."]
    return []


def _by_last_word(files_of: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    """The files by the last word of their stems: `en_ewt-ud-train` and `reviews_train` are `train`."""
    by_word: dict[str, list[Path]] = {}
    for stem, files in files_of.items():
        by_word.setdefault(re.split(r"[-_. ]", stem)[-1], []).extend(files)
    return by_word


def _alternatives(folder: Path, files: Sequence[Path], subfolders: Sequence[Path]) -> str:
    """The data files of a folder without a train file, and how to train on one of them; else its folders with one."""
    sets = [path for path in subfolders if match_splits(file.stem.lower() for file in _data_files(path)).splits]
    if not files and sets:
        names = first_few([path.name for path in sets], 12)
        return f"Its folders {names} hold data: name one of them: --data {sets[0]}"
    hint = _media_hint(folder, subfolders)
    if hint or not files:
        return hint or "It holds no data file."
    names = first_few([file.name for file in files])
    return f"Its data files are: {names}. To train on one of them, name it: --data {files[0]}"


def _media_hint(folder: Path, subfolders: Sequence[Path]) -> str:
    """What to do with a folder of images or sounds that is no folder of classes; empty where it has none."""

    def media(folder: Path) -> bool:
        return any(is_image(path) or is_sound(path) for path in _visible(folder))

    with_media = [path.name for path in subfolders if media(path)]
    if len(with_media) == 1:
        return f"Its only folder of images or sounds is {with_media[0]}: classes need a folder each, at least two."
    if any(map(is_image, _visible(folder))):
        return (
            "It holds pictures: with captions beside them they are for --task image; to be classified they need a "
            "folder for each class, or a table with a column of file names and a label."
        )
    return ""


# --- what a folder holds ---


def _visible(folder: Path) -> list[Path]:
    """The files and folders that are not hidden, sorted by name."""
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "__"))]


def _data_files(folder: Path) -> list[Path]:
    """The files of a folder in a format for data, those about the data left out."""
    return [f for f in _visible(folder) if is_data_file(f) and not f.is_dir() and not ABOUT.fullmatch(f.name)]


def _shards(folder: Path) -> list[Path]:
    """The data files of a split's folder, or of its folders, as WebNLG has them: train/1triples/Airport.xml."""
    return _data_files(folder) or [file for path in _visible(folder) if path.is_dir() for file in _data_files(path)]


def _unused(folder: Path, items: Iterable[Path]) -> tuple[str, ...]:
    """A note naming the files and folders that are not used; none where they are only about the data."""
    named = [
        str(item.relative_to(folder)) + ("/" if item.is_dir() else "")
        for item in sorted(items)
        if not ABOUT.fullmatch(item.name) or item.suffix.lower() == ".txt"  # it could be one of the texts
    ]
    return (f"not used, as no split has their name: {first_few(named, 12)}",) if named else ()
