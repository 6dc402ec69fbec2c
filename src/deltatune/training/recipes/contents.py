"""What a model's folder holds, in a word, so that a stage sees when the model it starts from is another one."""

from __future__ import annotations

import hashlib
from pathlib import Path

from deltatune.store.atomic import MANIFEST, digest, read_json

SMALL = 1 << 20
"""Bytes up to which a file is read whole; of others this much at even distances is."""
SAMPLES = 64


def contents_of(model: str) -> str | None:
    """A hash of a model's folder; None for a name on the hub, for builtin and where there is no such folder.

    A folder written here has the hashes of its files already; of others large files are sampled.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return None
    found = hashlib.blake2b(digest_size=16)
    if (folder / MANIFEST).is_file():
        found.update(str(sorted(read_json(folder / MANIFEST).get("files", {}).items())).encode())
        return found.hexdigest()
    for path in sorted(item for item in folder.iterdir() if item.is_file() and not item.name.startswith(".")):
        found.update(f"{path.name} {path.stat().st_size} {_sample(path)}".encode())
    return found.hexdigest()


def _sample(path: Path) -> str:
    size = path.stat().st_size
    if size <= SMALL:
        return digest(path)
    found = hashlib.blake2b(digest_size=16)
    part = SMALL // SAMPLES
    with path.open("rb") as file:
        for i in range(SAMPLES):
            file.seek((size - part) * i // (SAMPLES - 1))
            found.update(file.read(part))
    return found.hexdigest()
