"""Registry of methods by name, and their text form: a constructor call, parsed without evaluating anything."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from deltatune.core.errors import DeltatuneError, nearest
from deltatune.core.method import REGISTRY, Method

ALIASES = {
    "rank": "r",
    "lora_r": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "sites",
    "num_virtual_tokens": "length",
}
"""Options as papers and PEFT call them, and their names here. Errors suggest these; they are not accepted."""

_loaded: list[bool] = []


def registry() -> dict[str, Callable[..., Method]]:
    """Every registered method class and short form by name.

    Built-in methods are registered as third parties' are: each entry point of the group `deltatune.methods` names a
    module, and importing it registers the methods it defines.
    """
    if not _loaded:
        _loaded.append(True)
        for point in entry_points(group="deltatune.methods"):
            try:
                point.load()
            except Exception as error:
                raise DeltatuneError(
                    f"the methods {point.name!r} ({point.value}) cannot be imported: {error}; fix or uninstall them"
                ) from error
    return dict(sorted(REGISTRY.items()))


def parse(text: str | Method) -> Method:
    """Read a method from text such as `"LoRA(r=8) + Prefix(length=30)"`; `repr` of the result reads back equal.

    Raises DeltatuneError for unknown methods or options (with the nearest name) and values of a wrong type.
    """
    if isinstance(text, Method):
        return text
    if not isinstance(text, str):
        raise DeltatuneError(f"parse takes a method's text such as 'LoRA(r=8)', not {text!r}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise DeltatuneError(
            f"cannot read the method {text!r}: {error.msg}; write a call, such as LoRA(r=8) or LoRA(r=8) + BitFit()"
        ) from None
    return _read(tree, text)


def _read(node: ast.expr, text: str) -> Method:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _read(node.left, text) + _read(node.right, text)
    if isinstance(node, ast.Name):
        return _make(node.id, [], {})
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        values = [_value(item, text) for item in node.args]
        if any(keyword.arg is None for keyword in node.keywords):
            raise DeltatuneError(f"cannot read the method {text!r}: write every option as name=value")
        return _make(node.func.id, values, {str(k.arg): _value(k.value, text) for k in node.keywords})
    piece = ast.get_source_segment(text.strip(), node) or text
    raise DeltatuneError(
        f"cannot read {piece!r} in the method {text!r}; methods are calls such as LoRA(r=8), joined by +"
    )


def _value(node: ast.expr, text: str) -> Any:
    if _is_method(node):
        return _read(node, text)  # a method within a method: UniPELT(LoRA(r=8) + Prefix())
    if isinstance(node, ast.Tuple) and any(_is_method(item) for item in node.elts):
        return tuple(_value(item, text) for item in node.elts)
    try:
        return ast.literal_eval(node)
    except ValueError:
        piece = ast.get_source_segment(text.strip(), node) or "?"
        raise DeltatuneError(
            f"cannot read the value {piece} in the method {text!r}; "
            "values are numbers, strings in quotes, True, False, None, tuples or methods"
        ) from None


def _is_method(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Add) and _is_method(node.left)
    called = node.func if isinstance(node, ast.Call) else node
    registered = isinstance(called, ast.Name) and called.id in registry()
    return registered or (isinstance(node, ast.Call) and isinstance(called, ast.Name) and called.id[:1].isupper())


def _make(name: str, values: list[Any], options: dict[str, Any]) -> Method:
    methods = registry()
    if name not in methods:
        raise DeltatuneError(f"no method is called {name!r}{nearest(name, methods)}\nmethods: {', '.join(methods)}")
    maker = methods[name]
    names = option_names(maker)
    unknown = [option for option in options if option not in names]
    if unknown or len(values) > len(names):
        wrong = "; ".join(f"{name} has no option {option!r}{_suggestion(option, names)}" for option in unknown)
        wrong = wrong or f"{name} takes at most {len(names)} values, {len(values)} given"
        raise DeltatuneError(f"{wrong}\noptions of {name}: {', '.join(names) or 'none'}")
    try:
        return maker(*values, **options)
    except TypeError as error:
        raise DeltatuneError(f"{name}: {error}\noptions of {name}: {', '.join(names) or 'none'}") from None


def _suggestion(option: str, names: list[str]) -> str:
    alias = ALIASES.get(option)
    return f"; it is called {alias!r} here" if alias in names else nearest(option, names)


def option_names(maker: Callable[..., Method]) -> list[str]:
    """Names of a method's options, in the order of its constructor."""
    if dataclasses.is_dataclass(maker):
        return [field.name for field in dataclasses.fields(maker)]
    return list(inspect.signature(maker).parameters)
