"""`deltatune methods`: all methods in the unified view, or the options of one."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.options.shared_options import Json
from deltatune.cli.ui.help_screen import fields_in
from deltatune.cli.ui.screen import facts, print_json, show, table
from deltatune.comparison.report.number_format import rate
from deltatune.core.errors import DeltatuneError, nearest

if TYPE_CHECKING:
    from deltatune.core.method import Method


def methods(
    name: Annotated[str | None, typer.Argument(metavar="METHOD", help="Show the options of this method.")] = None,
    as_json: Json = False,
) -> None:
    """List the methods of tuning and of prompting, or the options of one.

    Four facts describe a method: the functional form of its change, the insertion (parallel: it reads the input of a
    module, sequential: its output), the representation it modifies, and the composition with that representation.
    """
    descriptions = [*describe_methods(), *describe_prompting()]
    names = [method["method"] for method in descriptions]
    if name is not None and name not in names:
        raise DeltatuneError(f"no method is called {name!r}{nearest(name, names)}\nmethods: {', '.join(names)}")
    if as_json:
        print_json(descriptions if name is None else descriptions[names.index(name)])
    elif name is None:
        _show_all(descriptions)
    else:
        _show_one(descriptions[names.index(name)])


def describe_methods() -> list[dict[str, Any]]:
    """All registered tuning methods and short forms as plain data, sorted by name."""
    from deltatune.core.registry import registry

    return [_describe(maker) for maker in registry().values()]


def describe_prompting() -> list[dict[str, Any]]:
    """All registered prompting methods in the same form, with what they train and whether they are drawn."""
    from deltatune.core.registry import prompting_registry

    described = []
    for maker in prompting_registry().values():
        method: Any = maker()
        trains = "nothing" if not method.trains else "" if method.inner is None else repr(method.inner)
        described.append(_describe(maker) | {"trains": trains or "its own tuning", "draws": method.draws})
    return described


def _describe(maker: Callable[..., Method]) -> dict[str, Any]:
    """Describe a method class or a short form with its default options."""
    method = maker()
    short = not isinstance(maker, type)
    options = _options(type(method))
    if short:
        docs = {option["name"]: option["help"] for option in options}
        parameters = inspect.signature(maker).parameters.values()
        # An option of the short form alone, such as Embeddings(head=), is what its sentence is about.
        options = [_option(p.name, p.default, docs.get(p.name) or _first_line(maker)) for p in parameters]
    return {
        "method": maker.__name__,
        "summary": _first_line(maker),
        "short_for": _call(method) if short else None,
        "view": dataclasses.asdict(method.view),
        "size_field": _size_field(method, options),
        "learning_rate": method.learning_rate,
        "options": options,
        "about": inspect.getdoc(maker) or "",
    }


def _size_field(method: Method, options: list[dict[str, Any]]) -> str | None:
    """The option that a budget sets; "members" if it sets those of the methods inside."""
    if method.size_field is None and method.size is not None:
        return "members"
    return next((option["name"] for option in options if option["name"] == method.size_field), None)


def _call(method: Method) -> str:
    """The call of the class itself, even if its `repr` is a short form."""
    fields = dataclasses.fields(method)
    changed = {f.name: getattr(method, f.name) for f in fields if getattr(method, f.name) != f.default}
    return f"{type(method).__name__}({', '.join(f'{name}={value!r}' for name, value in changed.items())})"


def _first_line(maker: Callable[..., Any]) -> str:
    return next(iter((inspect.getdoc(maker) or "").splitlines()), "").strip().removesuffix(".")


def _options(maker: type[Any]) -> list[dict[str, Any]]:
    documented: dict[str, Any] = {}
    for owner in reversed(maker.__mro__):  # inherited options are documented in the parent class
        if dataclasses.is_dataclass(owner):
            documented |= _documented(owner)
    return [
        _option(field.name, field.default, getattr(documented.get(field.name), "help", ""))
        for field in dataclasses.fields(maker)
    ]


@functools.cache  # most methods inherit from the same few classes, whose files are long
def _documented(maker: type[Any]) -> dict[str, Any]:
    try:
        return dict(fields_in(Path(inspect.getfile(maker)).read_text(encoding="utf-8"), maker.__name__))
    except (OSError, TypeError):  # a class made in a notebook has no file
        return {}


def _option(name: str, default: Any, text: str) -> dict[str, Any]:
    return {"name": name, "default": plain(default), "written": repr(default), "help": text}


def plain(value: Any) -> Any:
    """A default as plain data; a method becomes its text."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)


def _show_all(descriptions: list[dict[str, Any]]) -> None:
    prompting = [method for method in descriptions if "trains" in method]
    classes = [method for method in descriptions if not method["short_for"] and "trains" not in method]
    rows = [
        (
            method["method"],
            method["view"]["form"],
            method["view"]["insertion"].replace("none", "–"),
            method["view"]["modifies"],
            method["view"]["composition"],
            method["size_field"] or "–",
            rate(method["learning_rate"]),
        )
        for method in classes
    ]
    columns = ("method", "form", "insertion", "modifies", "composition", "size", "lr")
    show(table(columns, rows, right=["lr"], whole=["method", "insertion", "size"]))
    show("\nEquations", facts((f"  {method['method']}", method["summary"]) for method in classes))
    short = [(f"  {m['method']}()", f"= {m['short_for']}. {m['summary']}") for m in descriptions if m["short_for"]]
    show("\nShort forms", facts(short))
    show("\nPrompting: the model's own head answers", facts((f"  {m['method']}", m["summary"]) for m in prompting))
    show(
        "\nsize is the option that --budget sets, lr the recommended learning rate.\n"
        'A method is written as a call, "LoRA(r=8)"; a sum, "LoRA(r=8) + Prefix(length=30)", is a method too.\n'
        "A prompting method finds its prompt on few labelled rows, or trains a tuning method through label words.\n"
        "`deltatune methods LoRA` shows the options of LoRA, `deltatune methods ICL` those of ICL."
    )


def _show_one(method: dict[str, Any]) -> None:
    show(f"{method['method']}   {method['about']}\n")
    if method["options"]:
        rows = [(option["name"], option["written"], option["help"]) for option in method["options"]]
        short = max(len(row[1]) for row in rows) < 30
        show(table(("option", "default", "description"), rows, whole=["option", *(["default"] if short else [])]), "")
    pairs = [("short for", method["short_for"])] if method["short_for"] else []
    if "trains" in method:
        pairs.append(("trains", method["trains"]))
        drawn = "on the seed and the training rows" if method["draws"] else "on the template and the words alone"
        pairs.append(("the result depends", drawn))
        if method["trains"] == "nothing":
            show(facts(pairs))
            return
    sizes = {"members": "the sizes of its methods", None: "nothing: it has no size"}
    pairs.append(("set by --budget", sizes.get(method["size_field"], method["size_field"])))
    show(facts([*pairs, ("recommended learning rate", rate(method["learning_rate"]))]))
