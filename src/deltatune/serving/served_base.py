"""The base that is served: what requests must know of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PretrainedConfig

from deltatune.core.host import Host
from deltatune.core.input_validation.regular_files import expanded
from deltatune.core.sites.non_block_sites import output_embeddings
from deltatune.models.architecture import Family, Loads, can_generate, family, has_masked_lm
from deltatune.models.loading import find_config
from deltatune.store.adapter_store.store_entry import Entry
from deltatune.store.fingerprint import base_identity
from deltatune.tasks import longest_input


@dataclass(frozen=True)
class ServedBase:
    """Facts of the base."""

    name: str
    """Its name in requests, beside "base"."""
    family: Family
    generates: bool
    """Whether it writes text."""
    positions: int | None
    """Longest input in tokens; None without a limit."""
    identities: Mapping[str, str]
    """Fingerprints of its shapes, with the language-model head and without, each with that of the weights."""
    any_weights: bool = False
    """Whether adapters that were trained on other weights of the same shapes are served too."""
    started: int = field(default_factory=lambda: int(time.time()))
    """Seconds since 1970."""

    @property
    def fingerprint(self) -> str:
        """Of its weights."""
        return next(iter(self.identities.values()))[:12]

    def fits(self, entry: Entry) -> bool:
        """Whether a stored adapter was trained on this base; one that does not say may have been."""
        shapes, content = entry.base.shapes, entry.base.content
        return not shapes or (shapes in self.identities and (self.any_weights or self.identities[shapes] == content))


def served_base(host: Host, model: str, any_weights: bool = False) -> ServedBase:
    """The facts of a host whose model was loaded from `model`."""
    kind = family(host.model.config)  # type: ignore[arg-type]
    generates = kind != "encoder" and output_embeddings(host.model) is not None
    known = [base_identity(host, bare) for bare in (False, True)]
    identities = {each["shapes"]: each["content"] for each in reversed(known)}
    return ServedBase(public_name(model), kind, generates, longest_input(host.model), identities, any_weights)


def public_name(model: str) -> str:
    """What clients call a model: its name on the hub, or that of its folder without the path."""
    folder = expanded(model)
    return (folder.resolve().name or model) if folder.is_dir() or Path(model).is_absolute() else model


def loads_for(model: str) -> Loads:
    """The kind of model that serves every task: the language model of its family, or a bare transformer without one."""
    _, found = find_config(model)
    config: PretrainedConfig = found
    if family(config) == "encoder":
        return "mask" if has_masked_lm(config) and _is_masked(config) else "row"
    return "text" if can_generate(config) else "row"


def _is_masked(config: PretrainedConfig) -> bool:
    """Whether the files of an encoder have a masked language model's head."""
    return any(name.endswith("ForMaskedLM") for name in getattr(config, "architectures", None) or ())
