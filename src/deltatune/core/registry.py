"""Registry of methods by name, and their text form: a constructor call, parsed without evaluating anything."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from deltatune.core.errors import DeltatuneError, nearest
from deltatune.core.input_validation.field_validation import shortened
from deltatune.core.input_validation.option_names import refuse_unknown
from deltatune.core.method import PROMPTING_REGISTRY, REGISTRY, Method
from deltatune.core.union import MAX_MEMBERS, join

MAX_TEXT = 10_000
"""Characters of a method's text."""
MAX_NESTING = 8
"""Methods within methods, and tuples within tuples."""

_loaded: set[str] = set()


def registry() -> dict[str, Callable[..., Method]]:
    """Every registered tuning method and short form by name.

    Built-in methods are registered as third parties' are: each entry point of the group `deltatune.methods` names a
    module, and importing it registers the methods it defines.
    """
    _load("deltatune.methods")
    return dict(sorted(REGISTRY.items()))


def prompting_registry() -> dict[str, Callable[..., Method]]:
    """Every registered prompting method by name, from the entry points of the group `deltatune.prompting`."""
    _load("deltatune.prompting")
    return dict(sorted(PROMPTING_REGISTRY.items()))


def _load(group: str) -> None:
    if group in _loaded:
        return
    _loaded.add(group)
    for point in entry_points(group=group):
        try:
            point.load()
        except Exception as error:
            raise DeltatuneError(
                f"the methods {point.name!r} ({point.value}) cannot be imported: {error}; fix or uninstall them"
            ) from error


def find_method(name: str) -> Callable[..., Method] | None:
    """The class or short form of this name, or None; prompting methods come last, as their import takes longer."""
    return registry().get(name) or prompting_registry().get(name)


def parse(text: str | Method) -> Method:
    """Read a method from text such as `"LoRA(r=8) + Prefix(length=30)"`; `repr` of the result reads back equal.

    Raises DeltatuneError for unknown methods or options (with the nearest name), options that are given twice, values
    of a wrong type, and texts that are too long or nested too deeply.
    """
    if isinstance(text, Method):
        return text
    if not isinstance(text, str):
        raise DeltatuneError(f"parse takes a method's text such as 'LoRA(r=8)', not {text!r}")
    return _read(_syntax_tree(text), text, 0)


def parse_tuning(text: str | Method) -> Method:
    """Read a tuning method, for trainings that give the model an adapter and a head of its own.

    Raises DeltatuneError as `parse` does, and for prompting methods, which find a prompt for the model's own head.
    """
    method = parse(text)
    if PROMPTING_REGISTRY.get(type(method).__name__) is type(method):
        raise DeltatuneError(
            f"{method!r} is a prompting method, and here a tuning method such as LoRA(r=8) is trained; prompting "
            "methods are for `deltatune train`, `evaluate`, `predict` and `compare`"
        )
    return method


def _syntax_tree(text: str) -> ast.expr:
    if len(text) > MAX_TEXT:
        raise DeltatuneError(
            f"cannot read the method {shortened(text)}: it has {len(text):,} characters, at most {MAX_TEXT:,} are read"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SyntaxWarning)  # such as 8or for 8 or
            warnings.simplefilter("ignore", DeprecationWarning)
            return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        why = error.msg.partition("; use sys.")[0].partition(" - Consider")[0]
    except (RecursionError, MemoryError):
        why = "it is nested too deeply"
    except ValueError as error:  # a null character, half of a surrogate pair
        why = str(error) if not isinstance(error, UnicodeError) else "it has half of a surrogate pair"
    raise DeltatuneError(
        f"cannot read the method {shortened(text)}: {why}; write a call, such as LoRA(r=8) or LoRA(r=8) + BitFit()"
    )


def _read(node: ast.expr, text: str, depth: int) -> Method:
    if depth > MAX_NESTING:
        raise DeltatuneError(
            f"cannot read the method {shortened(text)}: its methods are nested more than {MAX_NESTING} deep"
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return join(*(_read(part, text, depth) for part in _summands(node, text)))
    if isinstance(node, ast.Name):
        return _make(node.id, [], {})
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        values = [_value(item, text, depth + 1) for item in node.args]
        names = [str(keyword.arg) for keyword in node.keywords]
        if any(keyword.arg is None for keyword in node.keywords):
            raise DeltatuneError(f"cannot read the method {shortened(text)}: write every option as name=value")
        _refuse_repeated(node, text, names)
        options = [_value(keyword.value, text, depth + 1) for keyword in node.keywords]
        return _make(node.func.id, values, dict(zip(names, options, strict=True)))
    piece = ast.get_source_segment(text.strip(), node) or text
    raise DeltatuneError(
        f"cannot read {shortened(piece)} in the method {shortened(text)}; methods are calls such as LoRA(r=8), "
        "joined by +"
    )


def _summands(node: ast.expr, text: str) -> list[ast.expr]:
    """The parts of a sum. They lean to the left, so a long sum is deep; it is taken apart without recursion."""
    parts, rest = [], node
    while isinstance(rest, ast.BinOp) and isinstance(rest.op, ast.Add):
        parts.append(rest.right)
        rest = rest.left
    if len(parts) >= MAX_MEMBERS:
        raise DeltatuneError(
            f"the method {shortened(text)} joins {len(parts) + 1:,} methods, at most {MAX_MEMBERS} make a union"
        )
    return [rest, *reversed(parts)]


def _refuse_repeated(call: ast.Call, text: str, names: list[str]) -> None:
    """Python's compiler refuses an option that is given twice, but its parser, which is used here, keeps both."""
    for name in dict.fromkeys(names):
        given = [ast.get_source_segment(text.strip(), k) or "?" for k in call.keywords if k.arg == name]
        if len(given) > 1:
            raise DeltatuneError(
                f"{ast.unparse(call.func)} has the option {name!r} {len(given)} times in the method {shortened(text)} "
                f"({', '.join(map(shortened, given)).replace(chr(34), '').replace(chr(39), '')}); give it once"
            )


def _value(node: ast.expr, text: str, depth: int) -> Any:
    if _is_method(node):
        return _read(node, text, depth)  # a method within a method: UniPELT(LoRA(r=8) + Prefix())
    if isinstance(node, ast.Tuple) and depth <= MAX_NESTING and any(_is_method(item) for item in node.elts):
        return tuple(_value(item, text, depth + 1) for item in node.elts)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        piece = shortened(ast.get_source_segment(text.strip(), node) or "?", quoted=False)
        raise DeltatuneError(
            f"cannot read the value {piece} in the method {shortened(text)}; "
            "values are numbers, strings in quotes, True, False, None, tuples or methods"
        ) from None


def _is_method(node: ast.expr) -> bool:
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        node = node.left
    called = node.func if isinstance(node, ast.Call) else node
    registered = isinstance(called, ast.Name) and find_method(called.id) is not None
    return registered or (isinstance(node, ast.Call) and isinstance(called, ast.Name) and called.id[:1].isupper())


def _make(name: str, values: list[Any], options: dict[str, Any]) -> Method:
    maker = find_method(name)
    if maker is None:
        tuning, prompting = registry(), prompting_registry()
        raise DeltatuneError(
            f"no method is called {name!r}{nearest(name, [*tuning, *prompting])}\nmethods: {', '.join(tuning)}\n"
            f"prompting: {', '.join(prompting)}"
        )
    names = option_names(maker)
    refuse_unknown(name, options, names)
    if len(values) > len(names):
        wrong = f"{name} takes at most {len(names)} values, {len(values)} given"
        raise DeltatuneError(f"{wrong}\noptions of {name}: {', '.join(names) or 'none'}")
    try:
        return maker(*values, **options)
    except TypeError as error:
        raise DeltatuneError(f"{name}: {error}\noptions of {name}: {', '.join(names) or 'none'}") from None


def option_names(maker: Callable[..., Method]) -> list[str]:
    """Names of a method's options, in the order of its constructor."""
    if dataclasses.is_dataclass(maker):
        return [field.name for field in dataclasses.fields(maker)]
    return list(inspect.signature(maker).parameters)
