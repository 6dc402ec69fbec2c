"""Pictures with captions: a folder of image files, each with a text, for `--task image`.

The captions are in metadata.jsonl or metadata.csv beside the pictures (`file_name` and `text`, as in the imagefolder of
`datasets`), or in a text file beside each picture (cat.png, cat.txt).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.regular_files import check_regular, expanded, read_text
from deltatune.data.columns.column_values import has_text
from deltatune.data.dataset import Data, Row, Splits, columns_of
from deltatune.data.formats import read_rows
from deltatune.data.formats.file_format import first_few
from deltatune.data.media.images import IMAGE_SUFFIXES, is_image
from deltatune.data.media.media_files import MediaFile
from deltatune.data.sources.split_names import match_splits
from deltatune.data.splits import HELD_OUT, by_hash, first_by_hash

METADATA = ("metadata.jsonl", "metadata.csv")
FILE, IMAGE, DIGEST = "file_name", "image", "digest"
"""Columns: the picture's name in the metadata, its file, and the hash of that."""
CAPTIONS = ("text", "caption", "captions", "prompt", "description")
"""Names of the column of captions, the first one that is there."""
FEWEST_HELD_OUT = 10
"""Pictures from which on some are held out as validation."""
FORM = (
    "Give each picture a caption: a line in metadata.jsonl such as "
    '{"file_name": "cat.png", "text": "a cat on a chair"}, or a text file of the same name (cat.txt beside cat.png)'
)


def read_captions(
    source: str | Path,
    text: Sequence[str] = (),
    validation: str | Path | None = None,
    test: str | Path | None = None,
    limit: int | None = None,
) -> Data:
    """Pictures and captions in their splits: rows with `image` (a path), the caption, and `digest` (of the file).

    `source`: a folder of pictures, or one with a folder for each split (train, validation, test). `text` names the
    column of captions. `validation`, `test`: further such folders. Without a validation split a tenth of the pictures
    is held out as one, by hash of their files; of fewer than ten pictures none is, and the training pictures score.

    Raises DeltatuneError listing everything that is wrong: no folder, no pictures, pictures without a caption.
    """
    place = expanded(source)
    if not place.is_dir():
        what = "is a file" if place.is_file() else "does not exist"
        near = nearest(place.name, _names(place.parent)) if place.parent.is_dir() and not place.is_file() else ""
        raise DeltatuneError(f"--data {source} {what}{near}: --task image takes a folder of pictures. {FORM}")
    folders = {"train": place}
    notes: list[str] = []
    inside = {path.name: path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")}
    match = match_splits(inside)
    if "train" in match.splits and not _pictures(place):
        raise_all(match.problems)
        folders = {split: inside[name] for split, name in match.splits.items()}
    folders |= {split: expanded(path) for split, path in (("validation", validation), ("test", test)) if path}
    splits: Splits = {}
    problems: list[str] = []
    columns: dict[str, str] = {}
    for split, folder in folders.items():
        try:
            splits[split], columns[split], more = _read(folder, tuple(text))
            notes += more
        except DeltatuneError as error:
            problems.append(str(error))
    raise_all(problems)
    column = columns["train"]
    splits = {split: [_renamed(row, columns[split], column) for row in rows] for split, rows in splits.items()}
    splits, made = _held_out(splits)
    if limit is not None:
        splits["train"] = first_by_hash(splits["train"], (DIGEST,), column, limit)
    return Data(
        name=place.resolve().name,
        origin=str(source),
        text=(column,),
        label=IMAGE,
        kind="image",
        labels=(),
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test", []),
        more_tests={name: rows for name, rows in splits.items() if name not in ("train", "validation", "test")},
        notes=(*notes, *made),
    )


def _read(folder: Path, text: tuple[str, ...]) -> tuple[list[Row], str, list[str]]:
    """The rows of one folder, the name of their column of captions, and notes."""
    if not folder.is_dir():
        raise DeltatuneError(f"{folder} is no folder of pictures. {FORM}")
    pictures = _pictures(folder)
    metadata = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(metadata) > 1:
        raise DeltatuneError(f"{folder} has {' and '.join(METADATA)}: keep the one that holds the captions")
    if metadata:
        return _from_metadata(folder, metadata[0], pictures, text)
    if not pictures:
        inside = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and _pictures(path)]
        if inside:
            raise DeltatuneError(
                f"{folder} holds no pictures itself; its folders do: {first_few(inside)}. Name one of them, or list "
                "their pictures in a metadata.jsonl (folders called train, validation and test are splits)"
            )
        raise DeltatuneError(f"{folder} holds no pictures ({', '.join(IMAGE_SUFFIXES)}). {FORM}")
    if text:
        raise DeltatuneError(f"--text {text[0]}: {folder} has no {' or '.join(METADATA)}, and so no columns")
    bare = [path.name for path in pictures if not path.with_suffix(".txt").is_file()]
    if bare:
        raise DeltatuneError(
            f"{folder}: {len(bare)} of {len(pictures)} pictures have no caption: {first_few(bare)}. {FORM}"
        )
    stems: dict[str, list[str]] = {}
    for path in pictures:
        stems.setdefault(path.stem, []).append(path.name)
    raise_all([f"{folder}: {', '.join(names)} share one caption; rename them" for names in stems.values() if names[1:]])
    captions = {path: " ".join(read_text(path.with_suffix(".txt")).split()) for path in pictures}
    empty = [path.with_suffix(".txt").name for path, caption in captions.items() if not caption]
    raise_all([f"{folder}: {first_few(empty)} holds no text. {FORM}"] if empty else [])
    return [_row(path, "text", caption, path.name) for path, caption in captions.items()], "text", []


def _from_metadata(
    folder: Path, metadata: Path, pictures: Sequence[Path], text: tuple[str, ...]
) -> tuple[list[Row], str, list[str]]:
    """The rows that a metadata file lists."""
    rows = [{name: getattr(value, "given", value) for name, value in row.items()} for row in read_rows(metadata)]
    names = columns_of(rows)
    if len(text) > 1:
        raise DeltatuneError(f"--text {' --text '.join(text)}: a picture has one caption; name one column")
    column = next(iter(text), None) or next((name for name in CAPTIONS if name in names), None)
    problems = []
    if FILE not in names:
        problems.append(f"{metadata} has no column {FILE!r}{nearest(FILE, names)}, the names of the pictures")
    if column is None or column not in names:
        asked = f"{column!r}{nearest(column, names)}" if column else f"of captions ({', '.join(CAPTIONS)})"
        problems.append(f"{metadata} has no column {asked}; its columns: {', '.join(names)}. --text names it")
    raise_all([f"{problem}." for problem in problems])
    assert column is not None
    places = [folder / str(row.get(FILE)) for row in rows]
    absent = [str(row.get(FILE)) for row, place in zip(rows, places, strict=True) if not place.is_file()]
    outside = [str(row[FILE]) for row, place in zip(rows, places, strict=True) if not _inside(place, folder)]
    other = [place.name for place in places if place.is_file() and not is_image(place)]
    empty = [str(row.get(FILE)) for row in rows if not has_text(row.get(column))]
    twice = sorted(place.name for place, times in Counter(places).items() if times > 1)
    if outside:
        problems.append(f"{metadata} names files outside of its folder: {first_few(outside)}. Move them into it.")
    elif absent:
        problems.append(
            f"{metadata} names files that are not there: {first_few(absent)}. Add them or remove the lines."
        )
    if other:
        problems.append(
            f"{metadata} names files that are no pictures: {first_few(other)} ({', '.join(IMAGE_SUFFIXES)})."
        )
    if empty:
        problems.append(f"{metadata}: {len(empty)} pictures have no caption in {column!r}: {first_few(empty)}. {FORM}.")
    if twice:
        problems.append(f"{metadata} names a picture twice: {first_few(twice)}. Keep one line of each.")
    if not rows:
        problems.append(f"{metadata} lists no pictures. {FORM}.")
    raise_all(problems)
    used = set(places)
    unused = [path.name for path in pictures if path not in used]
    notes = [f"not used, as {metadata.name} does not list them: {first_few(unused, 12)}"] if unused else []
    return [
        _row(place, column, str(row[column]), str(row[FILE])) for row, place in zip(rows, places, strict=True)
    ], column, notes  # fmt: skip


def _row(path: Path, column: str, caption: str, name: str) -> Row:
    """One picture: its content is part of the row, so that a run knows when it has changed."""
    check_regular(path, "image")
    picture = MediaFile(path, name)
    return {FILE: name, IMAGE: picture, column: caption, DIGEST: picture.digest}


def _renamed(row: Mapping[str, str], column: str, wanted: str) -> Row:
    return {wanted if name == column else name: value for name, value in row.items()}


def _inside(path: Path, folder: Path) -> bool:
    """Whether a path stays in the folder, `..` and links resolved."""
    return path.resolve().is_relative_to(folder.resolve())


def _held_out(splits: Splits) -> tuple[Splits, list[str]]:
    """The splits with a validation split, and a note where it was made."""
    train = splits["train"]
    if "validation" in splits:
        return splits, []
    if len({row[DIGEST] for row in train}) < FEWEST_HELD_OUT:
        note = f"fewer than {FEWEST_HELD_OUT} pictures: none is held out, and the training pictures score"
        return {**splits, "validation": list(train)}, [note]
    kept, held = by_hash(train, (DIGEST,), (1 - HELD_OUT, HELD_OUT))
    return {**splits, "train": kept, "validation": held}, [
        f"no validation split: {len(held)} of {len(train)} pictures became one, by hash of the file"
    ]


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if is_image(path) and not path.name.startswith(".") and path.is_file()
    )


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_dir()]
