"""YAML of recipes: plain data alone, read by YAML 1.2's rules, in bounded time and memory.

PyYAML follows YAML 1.1, where `no` is False, `12:30` is 750 and `1e-3` is a text, and takes the last of repeated keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.field_validation import fits_utf8
from deltatune.core.input_validation.strict_json import MAX_DIGITS

MAX_TEXT = 200_000
"""Characters of a recipe."""
MAX_DEPTH = 20
"""Lists and sections within each other."""
MAX_VALUES = 100_000
"""Values of a recipe, those of an alias counted at each place where it stands (a few aliases can make billions)."""

TOO_DEEP = f"lists and sections are nested more than {MAX_DEPTH} deep"

_FORMS = (
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", "~nN\0"),
    ("tag:yaml.org,2002:int", r"^[-+]?[0-9][0-9_]*$|^0x[0-9a-fA-F]+$|^0o[0-7]+$", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$",
        "-+.0123456789",
    ),
    ("tag:yaml.org,2002:merge", r"^<<$", "<"),
)
"""YAML 1.2's forms of plain values, with 1_000 and merge keys from YAML 1.1."""


def load_yaml(text: str, where: str | Path) -> Any:
    """Read YAML: texts, finite numbers, true and false, null, lists, and sections whose keys are texts.

    Raises DeltatuneError with line and column for text that is not YAML, repeated keys, keys that are no texts, tags,
    numbers outside float64's range, and text that is too long, too deep, or has aliases that make it so.
    """
    if len(text) > MAX_TEXT:
        raise DeltatuneError(f"cannot read {where}: it has {len(text):,} characters, at most {MAX_TEXT:,} are read")
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _check_size(root, where)
        return loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        why = " ".join(part for part in (error.context, error.problem) if part)
        raise DeltatuneError(f"cannot read {where} as YAML: {why}{place}") from None
    except yaml.YAMLError as error:
        raise DeltatuneError(f"cannot read {where} as YAML: {' '.join(str(error).split())}") from None


def yaml_nodes(text: str) -> Any:
    """The nodes of a file that `load_yaml` reads, which know their lines; None for an empty one."""
    return _Loader(text).get_single_node() if len(text) <= MAX_TEXT else None


def dump_yaml(value: Any) -> str:
    """Write plain data as YAML that `load_yaml` reads back equal."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None
    )
    return text


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """The forms by first character, as PyYAML wants them; an empty value has none."""
    by_sign: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, form, signs in _FORMS:
        for sign in signs:
            by_sign.setdefault("" if sign == "\0" else sign, []).append((tag, re.compile(form)))
    return by_sign


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without tags and without repeated keys."""

    yaml_implicit_resolvers = _resolvers()  # PyYAML's own attribute of the class

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            _refuse(event, f"the tag {event.tag} is not read: recipes hold plain values")
        if self._depth > MAX_DEPTH:
            _refuse(event, TOO_DEEP)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and not fits_utf8(node.value):
            _refuse(node, "the text has half of a surrogate pair, which UTF-8 cannot hold")
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or section"
                _refuse(key, f"the key {shown} is not a name; write it in quotes if it is one")
            if key.value in seen:
                _refuse(key, f"the key {key.value} is repeated")
            seen.add(key.value)
        return node

    def construct_yaml_int(self, node: Any) -> int:
        digits = node.value.replace("_", "")
        if len(digits) > MAX_DIGITS:
            _refuse(node, f"the number has {len(digits):,} digits")
        return int(digits, 0) if digits[:2] in ("0x", "0o") else int(digits)

    def construct_yaml_float(self, node: Any) -> float:
        digits = node.value.replace("_", "").lower()
        if digits.endswith(("inf", "nan")) or not math.isfinite(float(digits)):
            _refuse(node, f"the number {node.value[:40]} is not finite")
        return float(digits)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that the loader would read as something else; no aliases."""

    yaml_implicit_resolvers = _resolvers()  # PyYAML's own attribute of the class

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _refuse(place: Any, problem: str) -> NoReturn:
    raise yaml.MarkedYAMLError(None, None, problem, place.start_mark)


def _check_size(root: Any, where: str | Path) -> None:
    """Raise unless depth and number of values are small with every alias written out; each node is visited once."""
    sizes: dict[int, tuple[int, int]] = {}  # of each node: its values and its levels
    for node in _bottom_up(root, where):
        children = [sizes[id(child)] for child in _children(node)]
        sizes[id(node)] = (1 + sum(size for size, _ in children), 1 + max((depth for _, depth in children), default=0))
        if sizes[id(node)][0] > MAX_VALUES:
            raise DeltatuneError(f"cannot read {where}: with its aliases it has more than {MAX_VALUES:,} values")
        if sizes[id(node)][1] > MAX_DEPTH:
            raise DeltatuneError(f"cannot read {where}: {TOO_DEEP}")


def _bottom_up(root: Any, where: str | Path) -> Iterator[Any]:
    """Every node once, after all nodes that it contains."""
    waiting, above, done = [(root, False)], set[int](), set[int]()
    while waiting:
        node, complete = waiting.pop()
        if complete:
            above.discard(id(node))
            done.add(id(node))
            yield node
        elif id(node) in above:
            raise DeltatuneError(f"cannot read {where}: an alias stands within what it names, which has no end")
        elif id(node) not in done:
            above.add(id(node))
            waiting.append((node, True))
            waiting.extend((child, False) for child in _children(node))


def _children(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [item for pair in node.value for item in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
