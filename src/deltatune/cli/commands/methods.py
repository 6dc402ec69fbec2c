"""`deltatune methods`: every method as a point of the unified view, and the options of one."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.ui.help_screen import fields_in
from deltatune.cli.ui.screen import facts, print_json, show, table
from deltatune.comparison.report.number_format import rate
from deltatune.core.errors import DeltatuneError, nearest

if TYPE_CHECKING:
    from deltatune.core.method import Method


def methods(
    name: Annotated[str | None, typer.Argument(metavar="METHOD", help="Show the options of this method.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the methods, or the options of one.

    Each is described by four facts: the change it computes, what that change reads (parallel: the input of a part of
    the model, sequential: its output), what it modifies, and how the change joins what is there.
    """
    found = described()
    if name is not None and name not in {entry["method"] for entry in found}:
        known = [entry["method"] for entry in found]
        raise DeltatuneError(f"no method is called {name!r}{nearest(name, known)}\nmethods: {', '.join(known)}")
    chosen = [entry for entry in found if name in (None, entry["method"])]
    if as_json:
        print_json(chosen if name is None else chosen[0])
    elif name is not None:
        _show_one(chosen[0])
    else:
        _show_all(chosen)


def described() -> list[dict[str, Any]]:
    """Every registered method and short form as plain data, sorted by name."""
    from deltatune.core.registry import registry

    return [_described(maker) for maker in registry().values()]


def _described(maker: Callable[..., Method]) -> dict[str, Any]:
    """A method class or a short form; the facts are those of its defaults."""
    made = maker()
    short = not isinstance(maker, type)
    options = _options(type(made))
    if short:
        docs = {option["name"]: option["help"] for option in options}
        parameters = inspect.signature(maker).parameters.values()
        options = [_option(p.name, p.default, docs.get(p.name, "")) for p in parameters]
    return {
        "method": maker.__name__,
        "summary": _first_line(maker),
        "short_for": _written_out(made) if short else None,
        "view": dataclasses.asdict(made.view),
        "size_field": _size_field(made, options),
        "learning_rate": made.learning_rate,
        "options": options,
        "about": inspect.getdoc(maker) or "",
    }


def _size_field(made: Method, options: list[dict[str, Any]]) -> str | None:
    """The option that a budget sets, or words where it sets those of the methods within."""
    if made.size_field is None and made.size is not None:
        return "theirs"
    return next((option["name"] for option in options if option["name"] == made.size_field), None)


def _written_out(made: Method) -> str:
    """The call of the class itself, whatever short form its `repr` prefers."""
    changed = {f.name: getattr(made, f.name) for f in dataclasses.fields(made) if getattr(made, f.name) != f.default}
    return f"{type(made).__name__}({', '.join(f'{name}={value!r}' for name, value in changed.items())})"


def _first_line(maker: Callable[..., Any]) -> str:
    return next(iter((inspect.getdoc(maker) or "").splitlines()), "").strip().removesuffix(".")


def _options(maker: type[Any]) -> list[dict[str, Any]]:
    documented: dict[str, Any] = {}
    for owner in reversed(maker.__mro__):  # what a method inherits is documented there
        if dataclasses.is_dataclass(owner):
            documented |= _documented(owner)
    return [
        _option(field.name, field.default, getattr(documented.get(field.name), "help", ""))
        for field in dataclasses.fields(maker)
    ]


def _documented(maker: type[Any]) -> dict[str, Any]:
    try:
        return dict(fields_in(Path(inspect.getfile(maker)).read_text(encoding="utf-8"), maker.__name__))
    except (OSError, TypeError):  # a class made in a notebook has no file
        return {}


def _option(name: str, default: Any, text: str) -> dict[str, Any]:
    return {"name": name, "default": plain(default), "written": repr(default), "help": text}


def plain(value: Any) -> Any:
    """A default as plain data: a method as its text."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)


def _show_all(found: list[dict[str, Any]]) -> None:
    papers = [entry for entry in found if not entry["short_for"]]
    rows = [
        (
            entry["method"],
            entry["view"]["form"],
            entry["view"]["insertion"].replace("none", "–"),
            entry["view"]["modifies"],
            entry["view"]["composition"],
            entry["size_field"] or "–",
            rate(entry["learning_rate"]),
        )
        for entry in papers
    ]
    columns = ("method", "change", "reads", "modifies", "joins by", "size", "rate")
    show(table(columns, rows, right=["rate"], whole=["method", "reads", "size"]))
    show("\nEach as an equation", facts((f"  {entry['method']}", entry["summary"]) for entry in papers))
    short = [(f"  {e['method']}()", f"= {e['short_for']}. {e['summary']}") for e in found if e["short_for"]]
    show("\nShort forms", facts(short))
    show(
        "\nsize is the option that --budget sets, rate the recommended learning rate.\n"
        'A method is written as a call, "LoRA(r=8)"; a sum of them, "LoRA(r=8) + Prefix(length=30)", is one too.\n'
        "`deltatune methods LoRA` shows the options of one."
    )


def _show_one(entry: dict[str, Any]) -> None:
    show(f"{entry['method']}   {entry['about']}\n")
    if entry["options"]:
        rows = [(option["name"], option["written"], option["help"]) for option in entry["options"]]
        short = max(len(row[1]) for row in rows) < 30
        show(table(("option", "default", "meaning"), rows, whole=["option", *(["default"] if short else [])]), "")
    pairs = [("short for", entry["short_for"])] if entry["short_for"] else []
    named = {"theirs": "the sizes of its methods", None: "nothing: it has no size"}
    pairs.append(("set by --budget", named.get(entry["size_field"], entry["size_field"])))
    show(facts([*pairs, ("recommended rate", rate(entry["learning_rate"]))]))
