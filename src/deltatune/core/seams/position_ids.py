"""Positions of tokens as an adapter wants them: moved on by its prefix, or brought closer together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.errors import DeltatuneError
from deltatune.core.route import Route


class Shift:
    """Moves position ids on by the length of each row's key-value prefixes, and divides them by a stretch."""

    def __init__(self, model: nn.Module, modules: Sequence[str]) -> None:
        self.model, self.modules = model, modules
        self.hooked = False
        self.lengths: dict[str, int] = {}
        """Prefix length by active adapter."""
        self.stretches: dict[str, float] = {}
        """Factor by which an active adapter brings positions together, where it is not 1."""
        self.route = Route()

    def arrange(self, route: Route, lengths: dict[str, int], stretches: dict[str, float]) -> None:
        """Follow a route; the hooks are installed when a prefix or a stretch is first used."""
        self.route, self.lengths, self.stretches = route, lengths, stretches
        if (lengths or stretches) and not self.hooked:
            self.hooked = True
            for path in self.modules:
                self.model.get_submodule(path).register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not (self.lengths or self.stretches):
            return None
        at = 0 if isinstance(module, nn.Embedding) else 1
        if "position_ids" in kwargs:
            ids = kwargs["position_ids"]
            if ids is None:  # OPT gives the mask and how many tokens came before
                mask, before = args
                ids = (mask.cumsum(1) - 1).clamp(min=0)[:, before:]
            return args, {**kwargs, "position_ids": self.moved(module, ids)}
        return (*args[:at], self.moved(module, args[at]), *args[at + 1 :]), kwargs

    def moved(self, module: nn.Module, ids: Tensor) -> Tensor:
        """Position ids (B or 1, T) with each row's prefix length added, divided by its stretch."""
        by = max(self.lengths.values(), default=0)
        most = _positions(module) if isinstance(module, nn.Embedding) else None
        if most is not None and ids.shape[-1] + by > most:
            raise DeltatuneError(
                f"{ids.shape[-1]} tokens and a prefix of {by} exceed the model's {most} positions; "
                "shorten the texts or the prefix, or use Prefix(shift_positions=False)"
            )
        if self.route.rows is None:
            ids = ids + by
            return ids / max(self.stretches.values()) if self.stretches else ids
        rows = self.route.weights(max(ids.shape[0], len(self.route.rows)))
        ids = ids + torch.tensor([most_of(self.lengths, row, 0) for row in rows], device=ids.device)[:, None]
        if not self.stretches:
            return ids
        return ids / torch.tensor([most_of(self.stretches, row, 1.0) for row in rows], device=ids.device)[:, None]


def most_of(values: Mapping[str, float], row: Iterable[str], least: float) -> float:
    """The largest value of the adapters of a row."""
    return max([least, *(values[name] for name in row if name in values)])


def _positions(table: nn.Embedding) -> int:
    """Longest sequence of a position table: some keep their first rows for padding (RoBERTa) or an offset (OPT)."""
    kept = 0 if table.padding_idx is None else table.padding_idx + 1
    return table.num_embeddings - max(kept, int(getattr(table, "offset", 0)))
