"""PEFT's two files: what they are called, the keys that every type has, and the model's own heads in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from deltatune.core.adapter import Adapter
from deltatune.core.delta import Delta
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.sites.site import Site

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
ROOT = "base_model.model."
"""What names of the base's modules begin with in the file."""
PROMPT_ROOT = "base_model."
"""The same in folders of prompts and prefixes."""


@dataclass(frozen=True)
class Foreign:
    """A folder of PEFT's as it was read."""

    place: str
    """The folder, for messages."""
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    """By their names without `root`."""


@dataclass(frozen=True)
class Ours:
    """What a foreign folder is here."""

    method: Method
    tensors: dict[str, Tensor]
    """Under the names of our adapter."""
    used: set[str]
    """Names of the foreign tensors that these stand for."""


@dataclass
class Theirs:
    """An adapter as PEFT's config and tensors."""

    config: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """By their names without `root`."""
    whole: dict[str, Tensor] = field(default_factory=dict)
    """By their names in the file: what belongs to no module of the base."""


class Family(Protocol):
    """One file here: a family of PEFT types that are written and read alike."""

    root: str
    """What names of the base's modules begin with in the file."""

    def obstacles(self, method: Method, host: Host, heads: Sequence[str]) -> list[str]:
        """Why PEFT could not hold an adapter of this method that trains the model's own `heads`; empty if it can."""

    def write(self, host: Host, adapter: Adapter) -> Theirs:
        """The adapter as PEFT would have saved it, heads and `root` left out."""

    def read(self, host: Host, foreign: Foreign) -> Ours:
        """A folder of PEFT's as a method and tensors of ours. Raises DeltatuneError for what means something else."""


def by_module(adapter: Adapter) -> dict[str, list[tuple[Site, Any]]]:
    """The Deltas of each module of the base, heads left out."""
    modules: dict[str, list[tuple[Site, Any]]] = {}
    for _, site, delta in adapter.entries():
        if site.kind != "head":
            modules.setdefault(site.module, []).append((site, delta))
    return modules


def whole_of(host: Host, site: Site) -> Site:
    """The site of the whole map that a site is, or is a part of."""
    return next(s for s in host.sites.values() if s.module == site.module and s.kind == "linear" and s.slice is None)


def heads_of(adapter: Adapter) -> dict[str, Delta]:
    """The copies of the model's own heads by module path."""
    return {site.module: delta for _, site, delta in adapter.entries() if site.kind == "head"}


def stored_heads(host: Host, foreign: Foreign) -> list[str]:
    """Paths of the model's own heads that a folder of PEFT's has tensors of."""
    heads = [site.module for site in host.sites.values() if site.kind == "head"]
    return [path for path in heads if any(key.startswith(path + ".") for key in foreign.tensors)]


def modules_config(
    host: Host, kind: str, adapter: Adapter, modules: Mapping[str, Sequence[tuple[Site, Any]]]
) -> dict[str, Any]:
    """Config of a type that changes modules."""
    heads = sorted(heads_of(adapter))
    return {
        **common_config(host, kind, heads),
        "target_modules": sorted(modules),
        "fan_in_fan_out": any(site.transposed for pairs in modules.values() for site, _ in pairs),
        "modules_to_save": heads or None,
    }


def common_config(host: Host, kind: str, heads: Sequence[str]) -> dict[str, Any]:
    """The keys that every type has."""
    return {
        "peft_type": kind,
        "task_type": task_type(host, heads),
        "base_model_name_or_path": str(getattr(host.model.config, "_name_or_path", "") or ""),
        "inference_mode": True,
    }


_TASKS = {"SequenceClassification": "SEQ_CLS", "TokenClassification": "TOKEN_CLS", "QuestionAnswering": "QUESTION_ANS"}


def task_type(host: Host, heads: Sequence[str]) -> str | None:
    """PEFT's name of what the model does; with a task's name, PEFT expects that its head was trained."""
    facts, architecture = host.sites.facts, host.sites.facts.architecture
    if heads:
        return next((name for part, name in _TASKS.items() if part in architecture), None)
    if facts.encoder_decoder and "ConditionalGeneration" in architecture:
        return "SEQ_2_SEQ_LM"
    if facts.decoder and ("CausalLM" in architecture or "LMHead" in architecture):
        return "CAUSAL_LM"
    return "FEATURE_EXTRACTION"  # PEFT hands on whatever the model gives
