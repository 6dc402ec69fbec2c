"""A recipe file and overrides to a checked recipe."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.training.recipes.schema import Loop, Part, Recipe, Rows, Run, Stage, Words

SOURCES = ("data", "measure", "known")
"""Places of rows, where the source's name alone may stand."""


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `settings.epochs=1` and the like on top; stages go by name or number.

    Paths in it are those of the working directory, as on the command line. Raises DeltatuneError listing everything
    that is wrong with the file or the overrides.
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
    problems = []
    for override in overrides:
        try:
            apply_(content, override)
        except DeltatuneError as error:
            problems.append(str(error))
    raise_all(problems)
    recipe = checked_recipe(content, str(path))
    raise_all(list(_elsewhere(recipe, path.parent)))
    return recipe


def apply_(content: dict[str, Any], override: str) -> None:
    """Set one value of a recipe in place, as `stages.instruct.settings.epochs=2` says; null takes a value away."""
    place, sign, text = override.partition("=")
    path = place.split(".")
    if not sign or not all(path):
        raise DeltatuneError(f"{override!r} is no override; it takes NAME=VALUE, such as settings.epochs=1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DeltatuneError(f"{override!r}: the value is not YAML: {error}") from None
    at: Any = content
    for i, name in enumerate(path[:-1]):
        at = _step(at, name, ".".join(path[: i + 1]))
    if isinstance(at, list):
        at, last = _named(at, path[-1], place)
        if value is None:
            del at[last]
        else:
            at[last] = value
    elif value is None:
        at.pop(path[-1], None)
    else:
        at[path[-1]] = value


def _step(at: Any, name: str, place: str) -> Any:
    if isinstance(at, list):
        at, key = _named(at, name, place)
        return at[key]
    if name in SOURCES and isinstance(at.get(name), str):
        at[name] = {"source": at[name]}
    if at.get(name) is None:
        at[name] = {}
    if not isinstance(at[name], (dict, list)):
        raise DeltatuneError(f"{place} is {at[name]!r}: there is nothing below it to set")
    return at[name]


def _named(stages: list[Any], name: str, place: str) -> tuple[list[Any], int]:
    """A stage's place in its list, by its name or number."""
    names = [str(item.get("name", "")) if isinstance(item, dict) else "" for item in stages]
    if name in names:
        return stages, names.index(name)
    if name.isdecimal() and 1 <= int(name) <= len(stages):
        return stages, int(name) - 1
    raise DeltatuneError(f"{place}: there is no {name!r}{nearest(name, names)}; there are: {', '.join(names)}")


def checked_recipe(content: Mapping[str, Any], where: str = "the recipe") -> Recipe:
    """A recipe from plain data. Raises DeltatuneError with one line for each thing that is wrong."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise_all([line for problem in error.errors() for line in _said(problem, content)], f"{where} cannot be used:")
        raise


def _said(problem: Any, content: Mapping[str, Any]) -> list[str]:
    """A problem of pydantic's in our words; what the settings check themselves may be several."""
    place = _place(problem["loc"], content)
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known(problem["loc"][:-1])
        name = str(problem["loc"][-1])
        return [f"{place}: there is no such option{nearest(name, known)}; there are: {', '.join(known)}"]
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return [f"{place}: {line.removeprefix('- ')}" for line in message.splitlines()]
    if problem["type"] == "missing":
        return [f"{place}: this is needed"]
    given = problem["input"]
    near = ""
    if problem["type"] == "literal_error" and isinstance(given, str):
        near = nearest(given, re.findall(r"'([^']*)'", problem["ctx"]["expected"]))
    return [f"{place}: {message[:1].lower()}{message[1:]}, not {given!r}{near}"]


def _place(location: Sequence[Any], content: Any) -> str:
    """Where a problem is, stages by their names."""
    words = []
    for part in location:
        content = content[part] if _holds(content, part) else None
        named = isinstance(part, int) and isinstance(content, Mapping) and isinstance(content.get("name"), str)
        words.append(content["name"] if named else str(part + 1) if isinstance(part, int) else str(part))
    return ".".join(words) or "recipe"


def _holds(content: Any, part: Any) -> bool:
    return part < len(content) if isinstance(content, list) else isinstance(content, Mapping) and part in content


def _known(place: Sequence[Any]) -> list[str]:
    """The options there are at a place."""
    last = place[-1] if place else ""
    if last == "settings":
        return list(Loop.__dataclass_fields__)
    if isinstance(last, int):
        return list(Stage.model_fields)
    parts: dict[str, Any] = {"vocabulary": Words, **dict.fromkeys(SOURCES, Rows)}
    return list(parts.get(last, Recipe).model_fields)


def _elsewhere(recipe: Recipe, folder: Path) -> Iterator[str]:
    """Paths that are not here but beside the recipe: whoever wrote them meant the other place."""
    parts = [recipe, *recipe.stages]
    rows = [part.data for part in parts] + [recipe.measure]
    rows += [stage.vocabulary.known for stage in recipe.stages if stage.vocabulary]
    paths = [path for one in rows if one for path in (one.source, one.validation, one.test) if path]
    for path in dict.fromkeys([recipe.model, *paths]):
        if not Path(path).expanduser().exists() and (folder / path).exists():
            yield (
                f"{path} is not here ({Path.cwd()}) but beside the recipe: paths are those of the working directory; "
                f"run from {folder} or write {folder / path}"
            )


def as_yaml(recipe: Part) -> str:
    """All that a recipe says, defaults and overrides in it, as a file that reads back equal.

    What is not set and has no default is left out.
    """
    found: str = yaml.safe_dump(_plain(recipe), sort_keys=False, allow_unicode=True, width=100, default_flow_style=None)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Rows):
        return _kept(value, list(Rows.model_fields))
    if isinstance(value, BaseModel):
        return _kept(value, _used(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        # of the two that say how long, the one that counts
        names.remove("epochs" if value.max_steps is not None else "max_steps")  # type: ignore[attr-defined]
        return _kept(value, names)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _kept(value: Any, names: list[str]) -> dict[str, Any]:
    found = {name: _plain(getattr(value, name)) for name in names}
    return {name: item for name, item in found.items() if item is not None and item != [] and item != {}}


def _used(part: BaseModel) -> list[str]:
    """Words of a part in the order of its class, its own first; those of a training only where something is trained."""
    names = list(type(part).model_fields)
    own = [name for name in names if name not in Run.model_fields]
    if not isinstance(part, Run):
        return names
    before = [name for name in own if name not in ("stages", "measure", "merge")]
    last = [name for name in own if name not in before]
    if getattr(part, "stages", None):
        return [*before, *reversed(last)]
    if getattr(part, "vocabulary", None):
        return ["name", "data", "vocabulary"]
    return [*before, *Run.model_fields, *last]
