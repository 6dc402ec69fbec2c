"""Screens of an adapter store: tables of adapters, all that is known of one, and what the store takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from deltatune.cli.ui.screen import console, facts, plural, print_json, say, show, table, width_of
from deltatune.comparison.report.number_format import MISSING, count, score, size

if TYPE_CHECKING:
    from deltatune.store.adapter_store import AdapterStore, Entry

SHOWN = 50
"""Adapters of a table that are printed unless --limit says another number."""
DROPPED = ("tags", "added", "metric", "base", "size")
"""Columns that a narrow terminal does without, in this order; `show` and --json have all."""
FOLDED = 30
"""Characters of a method or of tags that stay on one line if need be."""


def list_entries(opened: AdapterStore, entries: Sequence[Entry], none: str, as_json: bool) -> None:
    """Print a table of adapters, or JSON; `none` is said where there is none."""
    if as_json:
        print_json({"adapters": [entry.to_json() for entry in entries], "storage": asdict(opened.storage())})
        return
    total, shown = len(opened), entries[:SHOWN] if len(entries) == SHOWN + 1 else entries
    if not total:
        say(f"The store {opened} is empty; deltatune store add FOLDER --store {opened}")
    elif not entries:
        say(none)
    else:
        _table(shown)
        if len(shown) < len(entries):
            say(f"The first {SHOWN} are shown; --limit 0 shows all.")
    if total:
        show("", storage_line(opened))
    show_notes(opened)


def _table(entries: Sequence[Entry]) -> None:
    rows = [
        (
            entry.name,
            entry.task or MISSING,
            entry.method,
            _short_name(entry.base.name) or MISSING,
            *((score(found[1]), found[0]) if (found := entry.score) else (MISSING, "")),
            size(entry.bytes),
            _date(entry.added)[:10],
            ", ".join(entry.tags),
        )
        for entry in entries
    ]
    columns = ("name", "task", "method", "base", "score", "metric", "size", "added", "tags")
    used = [i for i, column in enumerate(columns) if column not in ("metric", "tags") or any(row[i] for row in rows)]
    for dropped in DROPPED:  # where the terminal is narrow
        cells = [[row[i][:FOLDED] if columns[i] in ("method", "tags") else row[i] for i in used] for row in rows]
        if width_of([columns[i] for i in used], cells) <= console().width:
            break
        used = [i for i in used if columns[i] != dropped]
    show(
        table(
            [columns[i] for i in used],
            [[row[i] for i in used] for row in rows],
            right=("score", "size"),
            whole=("name", "task", "added"),
        )
    )


def show_entries(opened: AdapterStore, entries: Sequence[Entry]) -> None:
    """Print all that is known of adapters."""
    for entry in entries:
        base = entry.base
        facts_of_base = [count(base.parameters) + " parameters", size(base.bytes)] if base.parameters else []
        pairs = [
            ("name", entry.name),
            ("method", entry.method),
            ("parameters", count(entry.parameters)),
            ("size", size(entry.bytes)),
            ("task", entry.task or MISSING),
            *([("labels", _labels(entry.labels))] if entry.labels else []),
            *([("data", entry.data)] if entry.data else []),
            ("base", ", ".join([base.name or MISSING, *filter(None, [base.architecture]), *facts_of_base])),
            *([("fingerprint", f"{base.content} (weights), {base.shapes} (shapes)")] if base.content else []),
            *((f"{split} scores", _scores_text(values)) for split, values in entry.scores.items() if values),
            *([("tags", ", ".join(entry.tags))] if entry.tags else []),
            ("added", f"{_date(entry.added)} UTC"),
            ("digest", entry.digest),
            *([] if opened.is_remote else [("folder", str(opened.object_folder(entry.name)))]),
            *([("format", "HF PEFT, kept as it was")] if entry.format == "peft" else []),
        ]
        show(facts(pairs), *([""] if entry is not entries[-1] else []))


def storage_line(opened: AdapterStore) -> str:
    """What the adapters take, and what full copies would."""
    storage = opened.storage()
    if not storage.adapters:
        return "The store is empty now."
    verb = "takes" if storage.adapters == 1 else "take"
    line = f"{adapters_text(storage.adapters)} {verb} {size(storage.bytes)}"
    if storage.base_bytes:
        bases = "one base" if len(storage.bases) == 1 else f"{len(storage.bases)} bases"
        copies = f"{count(storage.adapters)} full {'copy' if storage.adapters == 1 else 'copies'}"
        line += f" beside {bases} of {size(storage.base_bytes)}; {copies} would take {size(storage.full_copies)}"
    return f"{line}."


def show_notes(opened: AdapterStore) -> None:
    """Print what was wrong with the index and has been put right, and what cannot be read, on stderr."""
    for note in opened.notes:
        show(f"note: {note}", stderr=True)


def adapters_text(number: int) -> str:
    """1 adapter, 10,000 adapters."""
    return plural(number, "adapter") if number < 1000 else f"{number:,} adapters"


def _labels(labels: Sequence[str]) -> str:
    return ", ".join(labels[:20]) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")


def _scores_text(values: Any) -> str:
    return ", ".join(f"{metric} {score(value)}" for metric, value in values.items())


def _short_name(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def _date(text: str) -> str:
    return text.replace("T", " ").removesuffix("Z")
