"""The format of HF PEFT's adapter folders: file names, common config keys, and the interface of one PEFT type."""

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
MODULE_PREFIX = "base_model.model."
"""Prefix of the base's module names in the file."""
PROMPT_PREFIX = "base_model."
"""The same in folders of prompts and prefixes."""


@dataclass(frozen=True)
class PeftFolder:
    """Config and tensors of a PEFT folder as they were read."""

    path: str
    """The folder, for messages."""
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    """By their names without the prefix."""


@dataclass(frozen=True)
class Imported:
    """A PEFT adapter as a method and its tensors here."""

    method: Method
    tensors: dict[str, Tensor]
    """By their names in our adapter."""
    used: set[str]
    """Names of the PEFT tensors that these replace."""


@dataclass
class Exported:
    """An adapter as PEFT's config and tensors."""

    config: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """By their names without the prefix."""
    unprefixed: dict[str, Tensor] = field(default_factory=dict)
    """By their names in the file: tensors that belong to no module of the base."""
    scales: dict[str, float] = field(default_factory=dict)
    """Of LoRAs: the factor on B A of each module."""


class PeftFormat(Protocol):
    """How PEFT types of one family are written and read."""

    prefix: str
    """Prefix of the base's module names in the file."""

    def obstacles(self, method: Method, host: Host, heads: Sequence[str]) -> list[str]:
        """Reasons why PEFT cannot hold an adapter of this method that trains the model's own `heads`."""

    def write(self, host: Host, adapter: Adapter) -> Exported:
        """Convert an adapter to what PEFT would have saved, without heads and prefix."""

    def read(self, host: Host, folder: PeftFolder) -> Imported:
        """Convert a PEFT folder. Raises DeltatuneError if its meaning differs from any method here."""


def deltas_by_module(adapter: Adapter) -> dict[str, list[tuple[Site, Any]]]:
    """The Deltas of each module of the base, without heads."""
    modules: dict[str, list[tuple[Site, Any]]] = {}
    for _, site, delta in adapter.entries():
        if site.kind != "head":
            modules.setdefault(site.module, []).append((site, delta))
    return modules


def whole_projection(host: Host, site: Site) -> Site:
    """The site of the whole module that a site is or is a slice of."""
    return next(s for s in host.sites.values() if s.module == site.module and s.kind == "linear" and s.slice is None)


def head_copies(adapter: Adapter) -> dict[str, Delta]:
    """The adapter's copies of the model's own heads by module path."""
    return {site.module: delta for _, site, delta in adapter.entries() if site.kind == "head"}


def stored_heads(host: Host, folder: PeftFolder) -> list[str]:
    """Paths of the model's own heads whose tensors are in a PEFT folder."""
    heads = [site.module for site in host.sites.values() if site.kind == "head"]
    return [path for path in heads if any(key.startswith(path + ".") for key in folder.tensors)]


def modules_config(
    host: Host, kind: str, adapter: Adapter, modules: Mapping[str, Sequence[tuple[Site, Any]]]
) -> dict[str, Any]:
    """The config of a type that changes modules."""
    heads = sorted(head_copies(adapter))
    return {
        **common_config(host, kind, heads),
        "target_modules": sorted(modules),
        **({} if kind in _UNTURNED else {"fan_in_fan_out": _any_transposed(modules)}),
        "modules_to_save": heads or None,
    }


_UNTURNED = ("LOHA", "LOKR", "LN_TUNING")
"""Types that take no Conv1D and have no key for it: PEFT warns of keys that it does not know."""


def _any_transposed(modules: Mapping[str, Sequence[tuple[Site, Any]]]) -> bool:
    return any(site.transposed for deltas in modules.values() for site, _ in deltas)


def common_config(host: Host, kind: str, heads: Sequence[str]) -> dict[str, Any]:
    """The config keys that every type has."""
    return {
        "peft_type": kind,
        "task_type": task_type(host, heads),
        "base_model_name_or_path": str(getattr(host.model.config, "_name_or_path", "") or ""),
        "inference_mode": True,
    }


_TASKS = {"SequenceClassification": "SEQ_CLS", "TokenClassification": "TOKEN_CLS", "QuestionAnswering": "QUESTION_ANS"}


def task_type(host: Host, heads: Sequence[str]) -> str | None:
    """PEFT's name of the task; with a name of a task that has a head, PEFT expects a trained head."""
    facts, architecture = host.sites.facts, host.sites.facts.architecture
    if facts.denoiser:
        return None
    if heads:
        return next((name for part, name in _TASKS.items() if part in architecture), None)
    if facts.encoder_decoder and "ConditionalGeneration" in architecture:
        return "SEQ_2_SEQ_LM"
    if facts.decoder and ("CausalLM" in architecture or "LMHead" in architecture):
        return "CAUSAL_LM"
    return "FEATURE_EXTRACTION"  # PEFT returns the model's outputs unchanged
