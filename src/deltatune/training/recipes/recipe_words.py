"""Errors in the words of a recipe: the keys of its file in place of command-line options, with the line of each key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.option_words import reworded
from deltatune.core.input_validation.regular_files import expanded
from deltatune.training.recipes.recipe_yaml import yaml_nodes

ROWS = {name: f"data.{name}" for name in ("task", "text", "label", "validation", "test", "limit")}
FIELDS = {
    name: f"task.{name.replace('-', '_')}"
    for name in (
        "max-length",
        "metric",
        "metric-model",
        "positive",
        "mark",
        "prompt",
        "new-tokens",
        "beams",
        "resolution",
    )
}
SETTINGS = {
    name: f"settings.{name.replace('-', '_')}"
    for name in (
        *("epochs", "batch-size", "accumulation", "packing", "compile", "optimizer", "checkpointing", "seed"),
        *("offload-activations", "optimizer-folder", "precision"),
    )
} | {"lr": "settings.learning_rate", "steps": "settings.max_steps"}
TRAINING = {
    "data": "data", "from": "from", "new-labels": "new_labels", "method": "method", "budget": "budget", "init": "init",
    "pooling": "head.pooling", "dense": "head.dense", "temperature": "mixture.temperature", "set": "task.",
    **ROWS, **FIELDS, **SETTINGS,
}  # fmt: skip
"""Keys of a training by the options of `deltatune train`."""
WHOLE = {"model": "model", "quantize": "quantize", "out": "out"}
"""Keys of a whole recipe, also where it has several trainings."""
TABLES = ("compare", "dimension", "continual", "latency", "facts", "storage")
"""Keys of experiments in table recipes, whose settings are below them."""
OF_TABLES = {
    **{name: f"data.NAME.{name}" for name in ("task", "text", "label", "validation", "test")},
    **{name: name for name in ("data", "model", "budget", "limit", "shots", "quantize", "draws", "seeds", "rates")},
    **{name: name for name in ("margin", "minutes", "tasks", "workers", "executor", "fraction", "of", "mode")},
    **FIELDS, **SETTINGS, "method": "methods", "largest": "largest", "pooling": "head.pooling", "dense": "head.dense",
}  # fmt: skip
"""Keys of experiments by the options of their commands."""
INSIDE = re.compile(r"^(?:- )*(stages|adapters)\.([\w-]+): ")
KEY = re.compile(r"(?<![\w./-])([a-z_]+(?:\.[\w-]+)*)(?=[:= ])")

NAMED = re.compile(r"\bhas no (?:option )?'(\w+)'|^(\w+): |\bleave (\w+) out\b")
"""How messages name a field without the section that it is in."""


@contextmanager
def recipe_words(path: str | Path, overrides: Sequence[str] = ()) -> Iterator[None]:
    """Errors that leave this block speak of the recipe's keys: with their lines in the file, after its name."""
    try:
        yield
    except DeltatuneError as error:
        error.args = (in_recipe_words(str(error), path, overrides), *error.args[1:])
        raise


def in_recipe_words(message: str, path: str | Path, overrides: Sequence[str] = ()) -> str:
    """A message in the words of the recipe at this path; overrides of the command line have no line in it."""
    root = _nodes(path)
    content = _names(root)
    table = next((kind for kind in TABLES if kind in content), None)
    given = {override.partition("=")[0] for override in overrides}
    lines: list[str] = []
    prefix, named = "", False
    for line in message.split("\n"):
        inside = INSIDE.match(line)
        if inside:
            prefix = f"{inside[1]}.{inside[2]}."
        text = reworded(line, _keys(line, content, table, prefix))
        if inside and text[inside.end() :].startswith(prefix):  # the key says which of them it is
            text = ("- " if line.startswith("- ") else "") + text[inside.end() :]
        place = None if line.endswith("cannot be used:") else _line(text, root, given)
        if place is None and text == line and (not lines or line.startswith("- ")):
            mark, body = ("- ", line[2:]) if line.startswith("- ") else ("", line)
            key, place = _key_of_value(body, root, given)
            if not key:
                key, place = _key_of_name(body, root, given)
                body = body.removeprefix(f"{key.rpartition('.')[2]}: ")
            text = f"{mark}{key}: {body}" if key else line
        named = named or text != line or place is not None
        lines.append(text if place is None else f"{text} (line {place})")
    text = "\n".join(lines)
    if not named or str(path) in lines[0]:
        return text
    return f"{path}: {text}" if len(lines) == 1 or not lines[0].startswith("- ") else f"{path}:\n{text}"


def _keys(line: str, content: Mapping[str, Any], table: str | None, prefix: str) -> dict[str, str]:
    if table is not None:
        return {option: f"{table}.{key}" for option, key in OF_TABLES.items()} | {"out": "out"}
    part = re.match(r"^(?:- )*([\w-]+): ", line)
    parts = content.get("mixture") or ()
    rows = f"mixture.parts.{part[1]}." if part and part[1] in parts else "data."
    own = {option: f"{rows}{option}" for option in ROWS}
    if rows != "data.":
        own |= {option: key.replace("task.", f"{rows}fields.", 1) for option, key in FIELDS.items()}
    return {option: prefix + key for option, key in {**TRAINING, **own}.items()} | WHOLE


def _line(text: str, root: Any, given: set[str]) -> int | None:
    """The line of the first key of the file that a message names, or of the section that it would be in."""
    for match in KEY.finditer(text):
        names = match[1].split(".")
        if any(match[1] == key or match[1].startswith(f"{key}.") for key in given):
            return None
        if len(names) == 1 and text[match.end() : match.end() + 1] == " ":
            continue  # a word of the sentence
        node, line = root, None
        for name in names:
            key, node = _child(node, name)
            if key is None:
                break
            line = key.start_mark.line + 1
        if line is not None:
            return int(line)
    return None


def _key_of_value(text: str, root: Any, given: set[str]) -> tuple[str, int | None]:
    """The key of the file whose value a message speaks of, and its line; nothing where that is none or several."""
    found = {
        key: line
        for key, value, line in _values(root, "")
        if len(value) > 1 and key not in given and _speaks_of(text, value)
    }
    return next(iter(found.items())) if len(found) == 1 else ("", None)


def _speaks_of(text: str, value: str) -> bool:
    """Whether a message names a value as it is written, or begins with or quotes the method that it is a call of."""
    whole = re.search(rf"(?<![\w./-]){re.escape(value)}(?![\w./-]*\w)", text)
    begins = "(" in value and text.startswith(value.partition("(")[0] + " ")
    return whole is not None or begins or any(f"'{call}'" in text for call in re.findall(r"(\w+)\(", value))


def _key_of_name(text: str, root: Any, given: set[str]) -> tuple[str, int | None]:
    """The key that a message calls by its last name, and its line in the file; nothing where none or several are."""
    names = {name for match in NAMED.finditer(text) for name in match.groups() if name}
    places: dict[str, int | None] = {**dict(_paths(root, "")), **dict.fromkeys(given)}
    found = {key: line for key, line in places.items() if key.rpartition(".")[2] in names}
    return next(iter(found.items())) if len(found) == 1 else ("", None)


def _paths(node: Any, path: str) -> Iterator[tuple[str, int]]:
    """Each key of a file with its line, sections too."""
    items = [(key.value, key, value) for key, value in node.value] if isinstance(node, yaml.MappingNode) else []
    if isinstance(node, yaml.SequenceNode):
        named = [getattr(_child(item, "name")[1], "value", number) for number, item in enumerate(node.value, start=1)]
        items = list(zip(named, node.value, node.value, strict=True))
    for name, start, value in items:
        here = f"{path}.{name}".lstrip(".")
        yield here, start.start_mark.line + 1
        yield from _paths(value, here)


def _values(node: Any, path: str) -> Iterator[tuple[str, str, int]]:
    """Each plain value of a file with its key and its line."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _values(value, f"{path}.{key.value}".lstrip("."))
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value, start=1):
            yield from _values(item, f"{path}.{getattr(_child(item, 'name')[1], 'value', number)}")
    elif isinstance(node, yaml.ScalarNode):
        yield path, str(node.value), node.start_mark.line + 1


def _child(node: Any, name: str) -> tuple[Any, Any]:
    """The node that shows where an entry begins, and its value; None for an entry that is not there."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == name), (None, None))
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value, start=1):
            if str(number) == name or getattr(_child(item, "name")[1], "value", None) == name:
                return item, item
    return None, None


def _nodes(path: str | Path) -> Any:
    try:
        return yaml_nodes(expanded(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None


def _names(root: Any) -> dict[str, Any]:
    """The keys of a file; of a mixture the names of its parts."""
    if not isinstance(root, yaml.MappingNode):
        return {}
    names: dict[str, Any] = {key.value: None for key, _ in root.value if isinstance(key, yaml.ScalarNode)}
    parts = _child(_child(root, "mixture")[1], "parts")[1]
    if isinstance(parts, yaml.MappingNode):
        names["mixture"] = [key.value for key, _ in parts.value]
    return names
