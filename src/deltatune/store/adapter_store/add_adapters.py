"""Adding adapters to a store: which are there already, their objects, their entries, the index."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from dataclasses import replace as changed

from deltatune.core.errors import DeltatuneError
from deltatune.store.adapter_store.adapter_names import checked_name
from deltatune.store.adapter_store.add_sources import AddedFolder
from deltatune.store.adapter_store.object_files import Draft, told_digest
from deltatune.store.adapter_store.store_entry import Entry, Given, describe
from deltatune.store.adapter_store.store_folder import StoreFolder
from deltatune.store.adapter_store.store_index import StoreIndex
from deltatune.store.atomic_files import CannotWrite


@dataclass
class Added:
    """What came of adding adapters."""

    entries: list[Entry] = field(default_factory=list)
    """Of all adapters that are in the store now, those that were there with the same content included."""
    unchanged: int = 0
    """Adapters that were there with the same content."""
    problems: list[str] = field(default_factory=list)
    """Why the others were not added."""


def add_chunk(
    place: StoreFolder, index: StoreIndex, sources: Iterable[AddedFolder], given: Given, replace: bool, added: Added
) -> None:
    """Add adapters under the writers' lock, in one transaction; `added` gets what came of it."""
    drafts: list[Draft] = []
    entries: dict[str, Entry] = {}
    before: set[str] = set()
    names: set[str] = set()
    for each in sources:
        try:
            there = _present(place, each, index, given, replace)
            if there is not None:
                added.unchanged += 1
                added.entries.append(there)
                continue
            if each.name.lower() in names:
                raise DeltatuneError(f"two of the folders are called {each.name!r}, {each.folder} is one; add it alone")
            scores = each.run_scores()
            draft, stored = place.objects.take_in(each.adapter())
        except CannotWrite:
            _discard(drafts)
            raise
        except DeltatuneError as error:
            added.problems.append(str(error))
            continue
        drafts.append(draft)
        entry = describe(each.name, draft.digest, stored, draft.bytes, given, scores)
        old = index.entry(each.name)
        if old is not None:
            before.add(old.digest)
            entry = entry if given.tags else changed(entry, tags=old.tags)
        entries[each.name] = entry
        names.add(each.name.lower())
    if entries:
        try:
            place.publish(drafts, replace)
        finally:
            _discard(drafts)
        tokens = place.write_entries(list(entries.values()))
        index.update([(entry, tokens[name]) for name, entry in entries.items()], [], "")
        objects = place.objects
        index.set_verified({d.digest: objects.stamps(d.digest, d.format) for d in drafts})
        finish(place, index, before)
    added.entries += entries.values()


def finish(place: StoreFolder, index: StoreIndex, before: set[str]) -> None:
    """After a change: remove the objects among `before` that no entry refers to."""
    place.remove_objects(before - index.digests() if before else [], index)
    place.finish(index)


def _discard(drafts: Iterable[Draft]) -> None:
    for draft in drafts:
        shutil.rmtree(draft.folder, ignore_errors=True)


def _present(place: StoreFolder, new: AddedFolder, index: StoreIndex, given: Given, replace: bool) -> Entry | None:
    """The entry of an adapter that is there with the same content; None if it is to be added.

    Raises DeltatuneError for a name that no adapter can have, and one that is taken.
    """
    checked_name(new.name)
    alike = index.alike(new.name)
    if alike is None or (replace and alike == new.name):
        return None
    there = index.entry(alike)
    if alike != new.name or there is None:
        raise DeltatuneError(
            f"the store {place.shown} has {alike!r}, and {new.name!r} differs from it in case alone; choose another "
            "name (--name)"
        )
    same = told_digest(new.adapter()) == there.digest
    if same and not given.anything:
        return there if place.objects.folder(there.digest).is_dir() or place.is_remote else None
    what = "what is said of it differs" if same else "with other content"
    raise DeltatuneError(
        f"the store {place.shown} has an adapter {new.name!r} already, {what}; add {new.folder} under another name "
        "(--name) or replace it (--replace)"
    )
