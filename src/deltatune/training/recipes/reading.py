"""A recipe file and overrides to a checked recipe, and a resolved recipe back to a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.training.recipes.schema import Loop, Part, Recipe, Source, Stage, Words


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `settings.epochs=1` and the like on top; stages go by name or number.

    Raises DeltatuneError listing everything that is wrong with the file or the overrides.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        beside = sorted(item.name for item in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise DeltatuneError(
            f"no recipe {path}{nearest(path.name, beside)}; recipes there: {', '.join(beside) or 'none'}"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DeltatuneError(f"{path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise DeltatuneError(f"{path} holds no recipe: names with values are needed, such as `model: builtin`")
    for override in overrides:
        apply_(content, override)
    return checked_recipe(content, str(path))


def apply_(content: dict[str, Any], override: str) -> None:
    """Set one value of a recipe in place, as `stages.instruct.settings.epochs=2` says."""
    place, sign, text = override.partition("=")
    if not sign or not place:
        raise DeltatuneError(f"{override!r} is no override; it takes NAME=VALUE, such as settings.epochs=1")
    *path, last = place.split(".")
    at: Any = content
    for i, name in enumerate(path):
        at = _step(at, name, ".".join(path[: i + 1]))
    if isinstance(at, list):
        raise DeltatuneError(f"{override!r}: {'.'.join(path)} is a list; name one of it")
    try:
        at[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DeltatuneError(f"{override!r}: the value is not YAML: {error}") from None


def _step(at: Any, name: str, place: str) -> Any:
    if isinstance(at, list):
        names = [str(item.get("name", "")) if isinstance(item, dict) else "" for item in at]
        if name.isdigit() and 1 <= int(name) <= len(at):
            return at[int(name) - 1]
        if name in names:
            return at[names.index(name)]
        raise DeltatuneError(f"{place}: there is no {name!r}{nearest(name, names)}; there are: {', '.join(names)}")
    if not isinstance(at.get(name), (dict, list)):
        at[name] = {}
    return at[name]


def checked_recipe(content: Mapping[str, Any], where: str = "the recipe") -> Recipe:
    """A recipe from plain data. Raises DeltatuneError with one line for each thing that is wrong."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise_all([_said(problem) for problem in error.errors()], f"{where} cannot be used:")
        raise


def _said(problem: Any) -> str:
    """A problem of pydantic's in our words."""
    place = ".".join(str(part + 1) if isinstance(part, int) else str(part) for part in problem["loc"]) or "recipe"
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known(problem["loc"][:-1])
        name = str(problem["loc"][-1])
        return f"{place}: there is no such option{nearest(name, known)}; there are: {', '.join(known)}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    given = "" if problem["type"] in ("missing", "value_error") else f", not {problem['input']!r}"
    return f"{place}: {message[:1].lower()}{message[1:]}{given}"


def _known(place: Sequence[Any]) -> list[str]:
    """The options there are at a place."""
    parts: dict[str, type[Part]] = {"data": Source, "measure": Source, "vocabulary": Words}
    last = str(place[-1]) if place else ""
    if last == "settings":
        return list(Loop.__dataclass_fields__)
    if place and isinstance(place[-1], int):
        return list(Stage.model_fields)
    return list(parts.get(last, Recipe).model_fields)


def as_yaml(recipe: Part) -> str:
    """All that a recipe says, overrides in it, as a file that reads back equal; what is left out has its default."""
    plain = recipe.model_dump(exclude_defaults=True, mode="json")
    found: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)
    return found
