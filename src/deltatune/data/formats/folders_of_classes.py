"""What formats of a folder share that has a folder for each class, with a file for each row and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from deltatune.data.formats.file_format import first_few, raise_malformed


def files_of_classes(
    folder: Path,
    is_row: Callable[[Path], bool],
    several: str,
    one: str,
    suffixes: str,
    unlabelled: Collection[str] = (),
    ignored: Collection[str] = (),
) -> dict[Path, list[Path]] | None:
    """The files of each class's folder, none of them opened; None where no two folders have such files.

    several, one: what a row's files are called, and one of them. unlabelled: names of folders that are no class.
    ignored: names, in lower case, of files that are no rows; those that begin with a dot are none either.

    Raises DeltatuneError for what else lies beside the files of a class, for names that are not UTF-8, and for a
    folder without any beside the classes: none of it is left out silently.
    """
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    contents = {path: sorted(path.iterdir()) for path in folders if path.name not in unlabelled}
    contents = {
        path: [f for f in inside if not f.name.startswith(".") and f.name.lower() not in ignored]
        for path, inside in contents.items()
    }
    files = {path: [file for file in inside if is_row(file)] for path, inside in contents.items()}
    if sum(map(bool, files.values())) < 2:
        return None
    problems = [f"{path} has no {one}: is it a class?" for path in files if not files[path]]
    for path, inside in contents.items():
        rows = set(files[path])
        others = [file.name for file in inside if file not in rows]
        if others and files[path]:
            problems.append(f"{path} has {first_few(others)} beside its {several}, which end in {suffixes}")
    paths = [*files, *(file for inside in files.values() for file in inside)]
    problems += [f"{_shown(path)}: the name is not UTF-8; rename it" for path in paths if not _is_utf8(path)]
    if problems:
        fix = (
            f"A folder of classes has a folder of {several} for each class and nothing else: convert files of other "
            f"formats, and move other things away."
        )
        raise_malformed(folder, problems, fix)
    return files


def _is_utf8(path: Path) -> bool:
    """Whether a name is text; other bytes become surrogates, which nothing can write."""
    try:
        path.name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(path: Path) -> str:
    return str(path).encode("utf-8", "replace").decode()
