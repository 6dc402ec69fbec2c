"""Recipe files: YAML and overrides to a checked recipe, and back."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.field_validation import fits_utf8, shortened
from deltatune.core.input_validation.regular_files import expanded, read_text
from deltatune.training.recipes.recipe_yaml import MAX_DEPTH, dump_yaml, load_yaml
from deltatune.training.recipes.schema import Recipe, Rows, Section, Training
from deltatune.training.recipes.shared_keys import own_location

AnySection = TypeVar("AnySection", bound=Section)
SOURCES = ("data", "measure", "known")
"""Keys of rows, whose value may be the source alone."""


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a YAML file, with overrides such as `settings.epochs=1`; stages go by name or number.

    Its paths are relative to the working directory, as on the command line. Raises DeltatuneError listing everything
    that is wrong with the file or the overrides.
    """
    recipe = checked_recipe(recipe_content(path, overrides), str(path))
    raise_all(list(_misplaced_paths(recipe, expanded(path).parent)))
    return recipe


def recipe_content(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The keys and values of a YAML file, with overrides. Raises DeltatuneError listing what is wrong with either."""
    path = expanded(path)
    if not os.path.lexists(path):
        others = sorted(item.name for item in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise DeltatuneError(
            f"no recipe {path}{nearest(path.name, others)}; recipes there: {', '.join(others) or 'none'}"
        )
    content = load_yaml(read_text(path, "recipe"), path)
    if not isinstance(content, dict):
        raise DeltatuneError(f"{path} is not a recipe: it needs keys with values, such as `model: builtin`")
    problems, places = [], dict[str, tuple[str | int, ...]]()
    for override in overrides:
        try:
            place = apply_(content, override)
        except DeltatuneError as error:
            problems.append(str(error))
            continue
        lost = [earlier for earlier, below in places.items() if below[: len(place)] == place]
        problems += [f"{override} replaces {earlier}, which is given before it; leave one out" for earlier in lost]
        places[override] = place
    raise_all(problems)
    return content


def apply_(content: dict[str, Any], override: str) -> tuple[str | int, ...]:
    """Set one value of a recipe in place, such as `stages.instruct.settings.epochs=2`; null removes it.

    Returns the keys that lead to the value, stages by their name if they have one.
    """
    if not fits_utf8(override):
        raise DeltatuneError(f"{shortened(override)} is not an override: it is not UTF-8")
    key, sign, text = override.partition("=")
    path = key.split(".")
    if not sign or not all(path):
        raise DeltatuneError(f"{override!r} is not an override; write NAME=VALUE, such as settings.epochs=1")
    if not text.strip():  # an empty variable of a shell must not bring the default back
        raise DeltatuneError(f"{override!r} has no value; NAME=null removes one")
    if len(path) > MAX_DEPTH:
        raise DeltatuneError(f"{shortened(override)}: it has {len(path)} keys, one below the other; recipes have fewer")
    value = load_yaml(text, f"the value of {shortened(override)}")
    names = content.get("adapters") if path[0] == "adapters" and len(path) > 2 else None
    if isinstance(names, dict) and path[1] not in names:
        there = ", ".join(map(str, names))
        near = nearest(path[1], map(str, names))
        raise DeltatuneError(f"{override}: there is no adapter {path[1]!r}{near}; there are: {there}")
    parent: Any = content
    place: tuple[str | int, ...] = ()
    for i, name in enumerate(path):
        here = ".".join(path[: i + 1])
        place += (_stage_name(parent, name, here) if isinstance(parent, list) else name,)
        if i + 1 < len(path):
            parent = _child(parent, name, here)
    if isinstance(parent, list):
        index = _stage_index(parent, path[-1], key)
        if value is None:
            del parent[index]
        else:
            parent[index] = value
    elif value is None:
        parent.pop(path[-1], None)
    else:
        parent[path[-1]] = value
    return place


def _child(parent: Any, name: str, key: str) -> Any:
    """The section below `parent`, made if it is missing; `key` is its full name."""
    if isinstance(parent, list):
        return parent[_stage_index(parent, name, key)]
    if name in SOURCES and isinstance(parent.get(name), str):
        parent[name] = {"source": parent[name]}
    if parent.get(name) is None:
        parent[name] = {}
    if not isinstance(parent[name], (dict, list)):
        raise DeltatuneError(f"{key} is {parent[name]!r}: there is nothing below it to set")
    return parent[name]


def _stage_name(stages: list[Any], name: str, key: str) -> str | int:
    """Name of a stage, given that or its number: numbers change when a stage is removed."""
    index = _stage_index(stages, name, key)
    own_name = stages[index].get("name") if isinstance(stages[index], dict) else None
    return own_name if isinstance(own_name, str) else index


def _stage_index(stages: list[Any], name: str, key: str) -> int:
    """Index of a stage in its list, by its name or number."""
    names = [str(item.get("name", "")) if isinstance(item, dict) else "" for item in stages]
    if name in names:
        return names.index(name)
    if name.isdecimal() and 1 <= int(name) <= len(stages):
        return int(name) - 1
    raise DeltatuneError(f"{key}: there is no {name!r}{nearest(name, names)}; there are: {', '.join(names)}")


def checked_recipe(content: Mapping[str, Any], where: str = "the recipe") -> Recipe:
    """A recipe from plain data. Raises DeltatuneError with a line for each mistake."""
    return checked_section(content, Recipe, where)


def checked_section(content: Mapping[str, Any], kind: type[AnySection], where: str) -> AnySection:
    """A file of this kind from plain data. Raises DeltatuneError with a line for each mistake."""
    try:
        recipe = kind.model_validate(content)
    except ValidationError as error:
        lines = [line for problem in error.errors() for line in _messages(problem, content, kind)]
        raise_all(list(dict.fromkeys(lines)), f"{where} cannot be used:")
        raise
    truths = list(_truths_as_numbers(content, recipe))
    raise_all(truths, f"{where} cannot be used:" if truths else "")
    return recipe


def _truths_as_numbers(content: Any, value: Any, key: str = "") -> Iterator[str]:
    """Messages for true and false where a number is read: pydantic takes them for 1 and 0."""
    if isinstance(content, bool) and type(value) in (int, float):
        yield f"{key}: input should be a number, not {str(content).lower()}"
    elif isinstance(content, Mapping):
        for name, item in content.items():
            child = value.get(name) if isinstance(value, Mapping) else getattr(value, str(name), None)
            yield from _truths_as_numbers(item, child, f"{key}.{name}".lstrip("."))
    elif isinstance(content, list) and isinstance(value, (list, tuple)):
        for i, (item, child) in enumerate(zip(content, value, strict=False), start=1):
            named = item.get("name") if isinstance(item, Mapping) else None
            yield from _truths_as_numbers(item, child, f"{key}.{named or i}")


def _messages(problem: Any, content: Mapping[str, Any], kind: type[Section]) -> list[str]:
    """Messages for a problem that pydantic found; the settings' own check may find several."""
    location = own_location(problem["loc"], content, problem["type"] == "missing")
    key = _key(location, content)
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        names = _key_names(location[:-1], kind)
        name = str(location[-1])
        return [f"{key}: there is no such key{nearest(name, names)}; keys: {', '.join(names)}"]
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        lines = [line.removeprefix("- ") for line in message.splitlines()]
        return [line if key == "recipe" and re.match(r"\w+: ", line) else f"{key}: {line}" for line in lines]
    if problem["type"] == "missing":
        return [f"{key}: this key is required"]
    value = problem["input"]
    hint = ""
    if problem["type"] == "literal_error" and isinstance(value, str):
        hint = nearest(value, re.findall(r"'([^']*)'", problem["ctx"]["expected"]))
    return [f"{key}: {message[:1].lower()}{message[1:]}, not {shortened(value)}{hint}"]


def _key(location: Sequence[Any], content: Any) -> str:
    """Full name of the key at a location, stages by their names."""
    names = []
    for part in location:
        is_plain = content is not None and not isinstance(content, (Mapping, list))
        if is_plain:
            break  # pydantic names the kinds of number or text that a value may be, below its key
        content = content[part] if _contains(content, part) else None
        named = isinstance(part, int) and isinstance(content, Mapping) and isinstance(content.get("name"), str)
        names.append(content["name"] if named else str(part + 1) if isinstance(part, int) else str(part))
    return ".".join(names) or "recipe"


def _contains(content: Any, part: Any) -> bool:
    return part < len(content) if isinstance(content, list) else isinstance(content, Mapping) and part in content


def _key_names(location: Sequence[Any], kind: type[Section]) -> list[str]:
    """The keys that the section at a location takes."""
    section: Any = kind
    several = False
    for part in location:
        if several:  # the index or the name of one of them
            several = False
        else:
            fields = {field.alias or name: field for name, field in section.model_fields.items()}
            section, several = _section_in(fields[part].annotation)
    return _keys(section)


def _section_in(annotation: Any) -> tuple[Any, bool]:
    """The section that a field holds, and whether it holds several in a list or by name."""
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)):
        return annotation, False
    for inner in get_args(annotation):
        section, several = _section_in(inner)
        if section is not None:
            return section, several or get_origin(annotation) in (list, dict)
    return None, False


def _keys(section: Any) -> list[str]:
    """The keys of a section as they are written: `from` is a word of Python's, so its field has another name."""
    if not issubclass(section, BaseModel):  # the settings
        return [field.name for field in dataclasses.fields(section)]
    return [field.alias or name for name, field in section.model_fields.items()]


def _misplaced_paths(recipe: Recipe, folder: Path) -> Iterator[str]:
    """Messages for paths that exist beside the recipe but not in the working directory."""
    trainings = [recipe, *recipe.stages, *recipe.adapters.values()]
    rows: list[Rows | None] = [training.data for training in trainings] + [recipe.measure]
    rows += [part for training in trainings if training.mixture for part in training.mixture.parts.values()]
    rows += [stage.vocabulary.known for stage in recipe.stages if stage.vocabulary]
    paths = [path for source in rows if source for path in (source.source, source.validation, source.test) if path]
    for path in dict.fromkeys([recipe.model, *paths]):
        if not expanded(path).exists() and (folder / path).exists():
            yield (
                f"{path} does not exist in the working directory ({Path.cwd()}) but beside the recipe: paths are "
                f"relative to the working directory; run from {folder} or write {folder / path}"
            )


def as_yaml(recipe: Section) -> str:
    """The whole recipe with defaults and overrides, as a file that reads back equal.

    Keys that are not set and have no default are left out.
    """
    return dump_yaml(_plain(recipe))


def adapter_yaml(recipe: Recipe, name: str, out: str) -> str:
    """One of a recipe's adapters as a recipe of its own, which trains it in the folder `out`."""
    whole = {"model": recipe.model, "quantize": recipe.quantize, "out": out, **_plain(recipe.adapters[name])}
    return dump_yaml({key: value for key, value in whole.items() if value is not None})


def _plain(value: Any) -> Any:
    if isinstance(value, Rows):
        return _set_fields(value, list(type(value).model_fields))
    if isinstance(value, BaseModel):
        aliases = {name: field.alias or name for name, field in type(value).model_fields.items()}
        return {aliases[name]: item for name, item in _set_fields(value, _used_fields(value)).items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        # epochs or max_steps: only the one that is used
        names.remove("epochs" if value.max_steps is not None else "max_steps")  # type: ignore[attr-defined]
        return _set_fields(value, names)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return {name: _plain(item) for name, item in value.items()} if isinstance(value, dict) else value


def _set_fields(value: Any, names: list[str]) -> dict[str, Any]:
    items = {name: _plain(getattr(value, name)) for name in names}
    return {name: item for name, item in items.items() if item is not None and item != [] and item != {}}


def _used_fields(section: BaseModel) -> list[str]:
    """Keys of a section in the order of its class; those of a training only if it trains something."""
    names = list(type(section).model_fields)
    if not isinstance(section, Training):
        return names
    additional = [name for name in names if name not in Training.model_fields]
    last = [name for name in additional if name in ("stages", "measure", "merge")]
    first = [name for name in additional if name not in last]
    if getattr(section, "stages", None):
        return [*first, *reversed(last)]
    if getattr(section, "adapters", None):
        return first
    if getattr(section, "vocabulary", None):
        return ["name", "data", "vocabulary"]
    idle = set() if section.start else {"new_labels"}
    if section.start:  # what is not said comes from the adapter
        idle = {"method", "model"} - section.model_fields_set
    return [name for name in (*first, *Training.model_fields, *last) if name not in idle]
