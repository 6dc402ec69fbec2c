"""Checks of an adapter's config after reading: types of its entries, and entries that contradict each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.field_validation import shortened
from deltatune.core.method import Method
from deltatune.core.registry import parse
from deltatune.core.sites.site import Sites

WORDS = {
    dict: "an object", list: "a list", str: "text", int: "an integer", float: "a number", bool: "true or false",
    type(None): "null",
}  # fmt: skip
"""JSON's types in words."""

ENTRIES: dict[str, tuple[type, ...]] = {
    "method": (dict, list),
    "text": (str,),
    "seed": (int,),
    "sites": (dict,),
    "own_head": (bool,),
    "head": (dict, type(None)),
    "base": (dict,),
    "training": (bool,),
    "extra": (dict,),
}
"""Entries of adapter.json and their types."""
BASE_ENTRIES: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "revision": (str,),
    "architecture": (str,),
    "parameters": (int,),
    "quantized": (list,),
    "scales": (float,),
    "shapes": (str,),
    "content": (str,),
}
"""Entries of the base's identity."""


def wrong_types(content: Mapping[str, Any], types: Mapping[str, tuple[type, ...]], prefix: str = "") -> list[str]:
    """List entries that are there but of another type; a number may be an integer, but true is no number."""
    problems = []
    for name, allowed in types.items():
        if name not in content:
            continue
        value = content[name]
        kind = type(value)
        if kind not in allowed and not (kind is int and float in allowed):
            words = " or ".join(WORDS[part] for part in allowed)
            problems.append(f"{prefix}{name} is {shortened(value)}, it must be {words}")
    return problems


def wrong_entries(config: Mapping[str, Any]) -> list[str]:
    """List entries of adapter.json whose types are wrong."""
    problems = wrong_types(config, ENTRIES)
    if isinstance(config.get("base"), dict):
        problems += wrong_types(config["base"], BASE_ENTRIES, "base.")
    if isinstance(config.get("seed"), int) and not 0 <= config["seed"] < 2**63:
        problems.append(f"seed is {shortened(config['seed'])}, it must be from 0 to 2**63 - 1")
    sites, head = config.get("sites"), config.get("head")
    if isinstance(sites, dict) and not all(isinstance(module, str) for module in sites.values()):
        problems.append("sites must map names of sites to names of modules")
    if isinstance(head, dict):
        own = head.get("kind") == "own"
        problems += wrong_types(head, {"kind": (str,), "config": (dict,), "class": (str,)}, "head.")
        missing = [name for name in ("kind", "class" if own else "config") if name not in head]
        problems += [f"head.{name} is missing" for name in missing]
    return problems


def contradictions(config: Mapping[str, Any], method: Method) -> list[str]:
    """List entries of adapter.json that contradict each other; `method` is what its entry `method` says."""
    problems = []
    if "text" in config and not _same_method(config["text"], method):
        problems.append(f"text says {shortened(config['text'])}, but method is {shortened(method)}")
    head = config["head"]
    if head is not None and config["own_head"]:
        problems.append("own_head is true, a copy of the model's head, but there is a head of the task too")
    task, shape = config["extra"].get("task"), (head or {}).get("config") or {}
    labels = task.get("labels") if isinstance(task, dict) else None
    if isinstance(labels, list) and labels and type(shape.get("outputs")) is int and shape["outputs"] != len(labels):
        problems.append(f"the head has {shape['outputs']} outputs, but the task has {len(labels)} labels")
    return problems


def site_contradictions(adapter: Adapter, sites: Mapping[str, str]) -> list[str]:
    """List where the stored sites are not those at which the method acts on this model."""
    here = {key: site.module for key, site in adapter.sites.items()}
    extra, missing = _names(sites.keys() - here.keys()), _names(here.keys() - sites.keys())
    problems = [f"sites has {extra}, where {adapter.method!r} does not act"] if extra else []
    problems += [f"sites lacks {missing}, where {adapter.method!r} acts"] if missing else []
    for key in sorted(sites.keys() & here.keys()):
        if not _same_path(here[key], sites[key]):
            problems.append(f"sites has {key} at the module {sites[key]}, on this model it is {here[key]}")
    return problems


def _same_path(path: str, other: str) -> bool:
    """Whether two paths differ at most in a prefix, as those of a body alone and of a body under a head do."""
    return f".{path}".endswith(f".{other}") or f".{other}".endswith(f".{path}")


def acts_outside_body(stored: Mapping[str, str], sites: Sites) -> bool:
    """Whether any of an adapter's stored sites is one of a language-model head."""
    return any((site := sites.get(_site_name(key))) and site.module in sites.facts.outside for key in stored)


def stored_prefix(stored: Mapping[str, str], sites: Sites) -> str:
    """What the names of the base's weights begin with among an adapter's stored sites: the path of the body there.

    Without such weights, and where they are not those of the body, it is the path of the body here.
    """
    here = sites.facts.prefix
    paths = {path.removeprefix(here) for path in sites.weights if path.startswith(here)}
    prefixes: set[str] | None = None
    for key, module in stored.items():
        name = _site_name(key)
        if not _same_path(name.rpartition(".")[0], module):  # a weight is named by its module and attribute
            continue
        parts = name.split(".")
        ends = (i for i in range(len(parts)) if ".".join(parts[i:]) in paths)
        of_key = {"".join(f"{part}." for part in parts[:i]) for i in ends}
        prefixes = of_key if prefixes is None else prefixes & of_key
    return min(prefixes, key=len) if prefixes else here


def _site_name(key: str) -> str:
    return key.partition(".")[2]


def _names(keys: Collection[str]) -> str:
    shown = sorted(keys)[:3]
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(shown) + more


def _same_method(text: str, method: Method) -> bool:
    if text == repr(method):
        return True
    try:
        return parse(text) == method
    except DeltatuneError:
        return False
