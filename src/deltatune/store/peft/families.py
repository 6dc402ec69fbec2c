"""Which types of PEFT are which methods of ours, and what of an adapter PEFT cannot hold."""

from __future__ import annotations

from types import ModuleType
from typing import cast

from torch import nn

from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.store.peft import low_rank, prefixes, prompts, scaling, vera
from deltatune.store.peft.files import Family

WRITES: dict[str, ModuleType] = {
    "LoRA": low_rank,
    "RsLoRA": low_rank,
    "DoRA": low_rank,
    "PiSSA": low_rank,
    "IA3": scaling,
    "VeRA": vera,
    "Prefix": prefixes,
    "Prompt": prompts,
    "PTuning": prompts,
}
"""The family of each method that PEFT has too."""

READS: dict[str, ModuleType] = {
    "LORA": low_rank,
    "IA3": scaling,
    "VERA": vera,
    "PREFIX_TUNING": prefixes,
    "PROMPT_TUNING": prompts,
    "P_TUNING": prompts,
}
"""The family of each PEFT type."""


def family_of(method: Method) -> Family:
    """The family that writes a method."""
    return cast(Family, WRITES[type(method).__name__])


def obstacles(method: Method, host: Host, head: nn.Module | bool | None = None) -> list[str]:
    """Why PEFT could not hold an adapter of this method on this model; empty if it can. Known before training.

    `head` as for `Host.attach`: None if the adapter has copies of the model's own heads.
    """
    heads = [site.module for site in host.sites.values() if site.kind == "head"] if head is None else []
    return _obstacles(method.finished(), host, heads)


def _obstacles(method: Method, host: Host, heads: list[str]) -> list[str]:
    if len(method.parts) != 1 or method.parts[0] is not method:
        return [f"{method!r} is several methods at once, and PEFT holds one"]
    if type(method).__name__ not in WRITES:
        return [f"PEFT has no {type(method).__name__}; it has: {', '.join(sorted(WRITES))}"]
    return family_of(method).obstacles(method, host, heads)


def left_out(head: nn.Module | bool | None) -> list[str]:
    """What of an adapter stays behind when PEFT opens its folder, in words."""
    if not isinstance(head, nn.Module):
        return []
    return ["the task's head is deltatune's own: PEFT opens the adapted body, whose outputs the head would read"]
