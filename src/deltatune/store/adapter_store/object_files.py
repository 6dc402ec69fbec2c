"""Objects of an adapter store: adapter folders by the hash of their content, so that equal content is kept once.

objects/<2 hex>/<digest>/ holds the files of one adapter and a manifest with their hashes; the digest is the hash of
that list. Objects are never changed: they are renamed into place as a whole, and away as a whole.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from deltatune.core.adapter_formats import format_of
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.strict_json import dumps
from deltatune.store import adapter_folder, peft
from deltatune.store.adapter_store.store_entry import DIGEST
from deltatune.store.atomic_files import (
    MANIFEST,
    CannotWrite,
    check_folder,
    digest,
    listed_files,
    plain_write_errors,
    write_json,
)
from deltatune.store.peft import peft_format
from deltatune.store.stored_adapter import StoredAdapter

DRAFT = ".draft-"
"""How names of objects begin that are being written or removed."""
READ = {
    "deltatune": (adapter_folder.CONFIG, adapter_folder.TENSORS, adapter_folder.ROWS),
    "peft": (peft_format.CONFIG, peft_format.TENSORS),
}
"""Files that are read of an object, by its format; the rows are missing in some."""
FEW = 32
"""Files that are synced one by one; of more, the whole file system is."""
Stamps = Mapping[str, tuple[int, int, int]]
"""Size, time of change in ns and inode of each file that is read of an object."""


@dataclass(frozen=True)
class Draft:
    """An object that is written, but not yet in its place."""

    folder: Path
    digest: str
    format: str
    bytes: int


class ObjectFiles:
    """The objects of a store, or those of a remote store that are on this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, digest: str) -> Path:
        """Where an object is."""
        return self.root / digest[:2] / digest

    def take_in(self, source: Path) -> tuple[Draft, StoredAdapter]:
        """Copy an adapter's folder into a draft, check it whole, and read it.

        Raises DeltatuneError for folders that are damaged, contradict themselves or hold values that are not finite,
        and for adapters that cannot be stored.
        """
        kind = format_name(source)
        expected = listed_files(source) if kind == "deltatune" else {}
        names = list(expected) or list(READ[kind])
        if kind == "deltatune" and any(_is_outside(source, name) for name in names):
            check_folder(source)
        elif kind == "peft" and not (source / peft_format.TENSORS).is_file():
            peft.read_stored(source)  # raises: it says what to do with a pickle
        folder = self.draft_folder()
        try:
            with plain_write_errors(folder):
                hashes = {name: _copy(source / name, folder / name) for name in names if (source / name).is_file()}
                write_json(folder / MANIFEST, {"files": hashes})
            if kind == "deltatune" and (hashes != expected or not {*READ[kind][:2]} <= {*names}):
                check_folder(source, READ[kind][:2])
                raise DeltatuneError(f"{source} was changed while it was read; add it again")
            stored = read_object(folder, kind)
            check_values(stored, source)
        except DeltatuneError as error:
            shutil.rmtree(folder, ignore_errors=True)
            place = self.root if isinstance(error, CannotWrite) else source
            raise type(error)(str(error).replace(str(folder), str(place))) from None
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        size = sum((folder / name).stat().st_size for name in (*hashes, MANIFEST))
        return Draft(folder, content_digest(hashes), kind, size), stored

    def draft_folder(self) -> Path:
        """A new, empty folder for a draft."""
        folder = self.root / f"{DRAFT}{secrets.token_hex(8)}"
        with plain_write_errors(folder):
            folder.mkdir(parents=True)
        return folder

    def publish(self, drafts: Iterable[Draft]) -> None:
        """Put drafts in their places; an object that is there already and whole stays."""
        for draft in drafts:
            place = self.folder(draft.digest)
            with plain_write_errors(place):
                if place.exists() and not self.problems(draft.digest, READ[draft.format]):
                    shutil.rmtree(draft.folder, ignore_errors=True)
                    continue
                if os.path.lexists(place):
                    self.remove([draft.digest])
                place.parent.mkdir(parents=True, exist_ok=True)
                draft.folder.rename(place)

    def problems(self, digest_: str, names: Collection[str]) -> list[str]:
        """What is wrong with the files of an object, `names` and its manifest, by their hashes."""
        folder = self.folder(digest_)
        try:
            files = listed_files(folder)
            if content_digest(files) != digest_:
                return [f"its {MANIFEST} is not the one that it was stored with"]
            found = [name for name in names if name in files]
            return [f"{name} was changed or damaged" for name in found if digest(folder / name) != files[name]]
        except DeltatuneError as error:
            return [str(error)]

    def stamps(self, digest_: str, kind: str) -> Stamps:
        """Size, time and inode of the files that are read of an object; those that are missing are left out."""
        folder, stamps = self.folder(digest_), {}
        for name in READ[kind]:
            try:
                stat = os.stat(folder / name)
            except OSError:
                continue
            stamps[name] = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        return stamps

    def remove(self, digests: Iterable[str]) -> None:
        """Remove objects. Who has their tensors mapped keeps them; on Windows such an object stays until later."""
        for each in digests:
            away = self.root / f"{DRAFT}{secrets.token_hex(8)}"
            try:
                self.folder(each).rename(away)
            except OSError:
                continue
            shutil.rmtree(away, ignore_errors=True)

    def digests(self) -> Iterator[str]:
        """Every object that is there."""
        for part in _subfolders(self.root):
            yield from (folder.name for folder in _subfolders(Path(part.path)) if DIGEST.fullmatch(folder.name))

    def remove_drafts(self) -> bool:
        """Remove what killed writers left. Returns whether there was anything. Only under the writers' lock."""
        left = [Path(each.path) for each in _subfolders(self.root) if each.name.startswith(DRAFT)]
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)
        return bool(left)


def read_object(folder: Path, kind: str) -> StoredAdapter:
    """Read an object whose files are verified."""
    read = adapter_folder.read_stored if kind == "deltatune" else peft.read_stored
    return read(folder, verified=True)


def format_name(source: Path) -> str:
    """`deltatune` or `peft`: the format of a folder. Raises DeltatuneError for one without an adapter, or another's."""
    if adapter_folder.knows(source):
        return "deltatune"
    if peft.knows(source):
        return "peft"
    format_of(source)  # raises where there is no adapter at all
    raise DeltatuneError(
        f"{source} holds an adapter in a format that a store cannot keep; load it (host.load) and save it "
        "(host.save) first"
    )


def check_values(stored: StoredAdapter, source: Path) -> None:
    """Raise DeltatuneError for entries that contradict each other, and values that are not finite."""
    problems = [*stored.problems, *stored.misshapen_head, *replace(stored, finite=False).not_finite()]
    raise_all(problems, f"the adapter {source} cannot be stored:" if problems else "")


def content_digest(files: Mapping[str, str]) -> str:
    """The digest of an object from the hashes of its files."""
    text = dumps(dict(files), MANIFEST, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def told_digest(source: Path) -> str:
    """The digest that a folder's manifest tells, without reading its files; of other libraries' folders it is made."""
    if (kind := format_name(source)) == "deltatune":
        return content_digest(listed_files(source))
    return content_digest({name: digest(source / name) for name in READ[kind] if (source / name).is_file()})


def sync(folders: Iterable[Path]) -> None:
    """Bring the files of folders to the disk, each file if there are few, else all of the file system at once."""
    folders = list(folders)
    files = [path for folder in folders for path in (folder, *folder.rglob("*"))]
    if len(files) > FEW and _sync_file_system(folders[0]):
        return
    for path in files:
        sync_path(path)


def sync_path(path: Path) -> None:
    """Bring one file or folder to the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_file_system(path: Path) -> bool:
    try:
        syncfs = ctypes.CDLL(None).syncfs
    except (AttributeError, OSError, TypeError):
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        return bool(syncfs(handle) == 0)
    finally:
        os.close(handle)


def _copy(source: Path, target: Path) -> str:
    """Copy a file and return the hash of what was copied."""
    content = hashlib.blake2b(digest_size=16)
    if target.parent.name != source.parent.name:
        target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as from_, target.open("xb") as to:
        while part := from_.read(1 << 20):
            content.update(part)
            to.write(part)
    return content.hexdigest()


def _is_outside(source: Path, name: str) -> bool:
    """Whether a file's name leaves the folder, or the file is a link or no plain file, which is looked at closely."""
    path = source / name
    return name.startswith("/") or ".." in Path(name).parts or path.is_symlink() or not path.is_file()


def _subfolders(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
