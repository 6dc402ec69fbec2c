"""`deltatune store`: thousands of adapters by name: add, list, search, show, remove, export."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.options.shared_options import OUTPUT, Json, option
from deltatune.cli.ui.help_screen import Command, Group
from deltatune.cli.ui.screen import print_json, say, show
from deltatune.cli.ui.store_screen import SHOWN, adapters_text, list_entries, show_entries, show_notes, storage_line
from deltatune.core.errors import DeltatuneError, nearest, raise_all

if TYPE_CHECKING:
    from deltatune.store.adapter_store import AdapterStore, Entry

VARIABLE = "DELTATUNE_STORE"
"""The environment variable that names the store where --store does not."""
STORE, WHICH, FACTS = "Store", "Which adapters", "What is known of them"
"""Groups of options on the help screens."""

Place = Annotated[
    str | None,
    option(
        "--store",
        panel=STORE,
        metavar="DIR",
        help=f"The store: a folder, or a URL such as s3://bucket/adapters. Default: the variable {VARIABLE}.",
    ),
]
Limit = Annotated[
    int | None,
    option("--limit", panel=OUTPUT, metavar="NUMBER", help=f"Adapters to show. Default: {SHOWN}; 0: all.", min=0),
]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of adapters in the store.")]

group = typer.Typer(cls=Group, help="Keep thousands of adapters by name.", invoke_without_command=True)
"""The commands of `deltatune store`."""


@group.callback()
def start(context: typer.Context) -> None:
    """Print the help where no command is named."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@group.command(cls=Command)
def add(
    folders: Annotated[
        list[str],
        typer.Argument(metavar="FOLDER...", help="Adapters, the folders of their runs, or folders of such folders."),
    ],
    store: Place = None,
    name: Annotated[
        str | None, option("--name", panel=FACTS, metavar="NAME", help="Its name. Default: that of its folder.")
    ] = None,
    tag: Annotated[
        list[str] | None, option("--tag", panel=FACTS, metavar="A,B", help="Tags; may be given again.")
    ] = None,
    task: Annotated[
        str | None, option("--task", panel=FACTS, metavar="KIND", help="Its task. Default: what its folder says.")
    ] = None,
    scores: Annotated[
        str | None,
        option(
            "--scores",
            panel=FACTS,
            metavar="JSON",
            help="Its scores, a .json file or JSON such as '{\"accuracy\": 0.9}'. Default: what its run scored.",
        ),
    ] = None,
    replace: Annotated[
        bool, option("--replace", panel=FACTS, help="Replace adapters of these names that are in the store.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy trained adapters into a store, each as a whole and checked; the first one makes the store.

    Method, task, labels, base and scores are read from what `deltatune train` wrote; folders of HF PEFT are kept as
    they are. Equal content is kept once, and adding it again changes nothing.

      deltatune store add runs/german --store adapters
      deltatune store add runs --store adapters --tag europe
      deltatune store add runs/german --store adapters --name german-2 --scores '{"accuracy": 0.91}'
    """
    from deltatune.cli.ui.live import Bar
    from deltatune.store.adapter_store.add_sources import source, sources_in

    if name is not None and len(folders) > 1:
        raise DeltatuneError(f"--name {name} names one adapter, and {len(folders)} folders are given")
    sources = [source(folders[0], name)] if name is not None else [one for each in folders for one in sources_in(each)]
    opened, given = _opened(store, make=True), _scores(scores)
    with Bar("adding") as bar:
        outcome = opened.add_many(
            sources,
            task=task,
            tags=_tags(tag),
            scores=given,
            replace=replace,
            on_progress=lambda done: _progress(bar, done, len(sources)),
        )
    new = len(outcome.entries) - outcome.unchanged
    if as_json:
        print_json({
            "store": str(opened),
            "added": [entry.to_json() for entry in outcome.entries],
            "unchanged": outcome.unchanged,
            "problems": outcome.problems,
        })  # fmt: skip
    elif outcome.entries:
        names = ", ".join(entry.name for entry in outcome.entries[:8])
        more = f" and {len(outcome.entries) - 8:,} more" if len(outcome.entries) > 8 else ""
        there = f" ({outcome.unchanged:,} {'was' if outcome.unchanged == 1 else 'were'} there)"
        say(f"Added {adapters_text(new)} to {opened}{there if outcome.unchanged else ''}: {names}{more}")
        say(storage_line(opened))
        show_notes(opened)
    raise_all(outcome.problems, _not_added(len(outcome.problems), len(sources)) if len(sources) > 1 else "")


@group.command("list", cls=Command)
def list_(
    store: Place = None,
    task: Annotated[str | None, option("--task", panel=WHICH, metavar="KIND", help="Of this task.")] = None,
    method: Annotated[
        str | None, option("--method", panel=WHICH, metavar="TEXT", help="With this in the method's text: LoRA, r=8.")
    ] = None,
    base: Annotated[
        str | None,
        option("--base", panel=WHICH, metavar="TEXT", help="With this in the base's name, or its fingerprint."),
    ] = None,
    tag: Annotated[list[str] | None, option("--tag", panel=WHICH, metavar="A,B", help="With all these tags.")] = None,
    sort: Annotated[
        str,
        option(
            "--sort", panel=OUTPUT, metavar="KEY", help="name, task, method, base, score, size, parameters or date."
        ),
    ] = "name",
    reverse: Annotated[bool, option("--reverse", panel=OUTPUT, help="The other way round.")] = False,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """List the adapters of a store, and what they take beside their base.

    deltatune store list --store adapters
    deltatune store list --task classify --sort score --limit 10
    """
    opened, tags = _opened(store), _tags(tag)
    entries = opened.list(
        task=task, method=method, base=base, tags=tags, sort=sort, reverse=reverse, limit=_most(limit, as_json)
    )
    given: dict[str, list[str | None]] = {"task": [task], "method": [method], "base": [base], "tag": [*tags]}
    filters = {field: [one for one in values if one is not None] for field, values in given.items()}
    if not entries and limit != 0 and any(filters.values()) and len(opened):
        _explain(opened, filters)
    list_entries(opened, entries, "No adapter meets all of these conditions.", as_json)


@group.command(cls=Command)
def search(
    words: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Words, or parts of words.")],
    store: Place = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Search adapters: every word must occur in the name, task, method, base, data, tags or labels.

    deltatune store search sentiment german --store adapters
    """
    opened, text = _opened(store), " ".join(words)
    list_entries(opened, opened.search(text, limit=_most(limit, as_json)), f"No adapter matches {text!r}.", as_json)


@group.command("show", cls=Command)
def show_(names: Names, store: Place = None, as_json: Json = False) -> None:
    """Show all that is known of adapters.

    deltatune store show german --store adapters
    """
    opened = _opened(store)
    entries = _entries(opened, names)
    if as_json:
        print_json([entry.to_json() for entry in entries])
        return
    show_entries(opened, entries)
    show_notes(opened)


@group.command(cls=Command)
def remove(names: Names, store: Place = None, as_json: Json = False) -> None:
    """Remove adapters from a store. Processes that have them open keep them.

    deltatune store remove german legal --store adapters
    """
    opened = _opened(store)
    removed = opened.remove(*names)
    if as_json:
        print_json({"removed": [entry.to_json() for entry in removed], "left": len(opened)})
        return
    say(f"Removed {adapters_text(len(removed))}: {', '.join(entry.name for entry in removed)}")
    say(storage_line(opened))
    show_notes(opened)


@group.command(cls=Command)
def export(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An adapter in the store.")],
    out: Annotated[Path, option("--out", "-o", panel=OUTPUT, metavar="FOLDER", help="The folder to write.")],
    store: Place = None,
    as_json: Json = False,
) -> None:
    """Copy an adapter out of a store into a folder, which all other commands take.

    deltatune store export german --out german --store adapters
    deltatune predict --adapter german texts.txt
    """
    opened = _opened(store)
    folder = opened.export(name, out)
    if as_json:
        print_json({"name": name, "folder": str(folder)})
        return
    say(f"Exported {name} to {folder}")


# ---- inside


def _opened(store: str | None, make: bool = False) -> AdapterStore:
    """The store that is named. Raises DeltatuneError if there is none, unless it may be made."""
    from deltatune.store.adapter_store import AdapterStore

    place = store or os.environ.get(VARIABLE)
    if not place:
        raise DeltatuneError(f"no store is named: --store DIR, or the variable {VARIABLE}")
    opened = AdapterStore(place)
    if not make and not opened.exists:
        raise DeltatuneError(f"there is no store {place}; `deltatune store add FOLDER --store {place}` makes one")
    return opened


def _entries(opened: AdapterStore, names: Sequence[str]) -> list[Entry]:
    """The entries of names; one error for all that are not there."""
    entries, problems = [], []
    for name in dict.fromkeys(names):
        try:
            entries.append(opened.entry(name))
        except DeltatuneError as error:
            problems.append(str(error))
    raise_all(problems)
    return entries


def _tags(texts: Sequence[str] | None) -> list[str]:
    return [tag.strip() for text in texts or () for tag in text.split(",") if tag.strip()]


def _scores(text: str | None) -> Any:
    """Scores from a file or from JSON."""
    if text is None:
        return None
    from deltatune.core.input_validation.regular_files import expanded, read_text
    from deltatune.core.input_validation.strict_json import loads

    if text.lstrip().startswith("{"):
        return loads(text, "--scores")
    content = loads(read_text(expanded(text), "file of --scores"), text)
    known = content.keys() & {"test", "validation"} if isinstance(content, dict) else set()
    return {split: content[split] for split in known} or content  # of a run's metrics.json, the scores alone


def _most(limit: int | None, as_json: bool) -> int | None:
    """How many entries are asked for: one more than is shown, so that it is known whether there are more."""
    if limit == 0 or (limit is None and as_json):
        return None
    return SHOWN + 1 if limit is None else limit


def _explain(opened: AdapterStore, filters: dict[str, list[str]]) -> None:
    """Raise DeltatuneError for conditions that no adapter meets, with what there is."""
    for field, values in filters.items():
        have = opened.values(field)
        for value in values:
            meets = any(value in (one, one.lower()) for one in have) or (
                field in ("method", "base") and any(value.lower() in one.lower() for one in have)
            )
            if not meets and not (field == "base" and opened.list(base=value, limit=1)):
                some = ", ".join(have[:12]) + (f" and {len(have) - 12} more" if len(have) > 12 else "")
                raise DeltatuneError(
                    f"--{field} {value}: no adapter of {opened} has it{nearest(value, have)}; "
                    f"there {'is' if len(have) == 1 else 'are'}: {some or 'none'}"
                )


def _progress(bar: Any, done: int, total: int) -> None:
    if not bar.update(done, total, "") and done % 1000 == 0 and total > 1000:
        show(f"{done:,} of {total:,}", stderr=True)


def _not_added(problems: int, total: int) -> str:
    return f"{problems:,} of {total:,} adapters {'was' if problems == 1 else 'were'} not added:" if problems else ""
