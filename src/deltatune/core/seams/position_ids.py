"""Position ids as an adapter needs them: shifted by its prefix, or interpolated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.errors import DeltatuneError
from deltatune.core.route import Route
from deltatune.core.seams.hook_points import BatchContext


class PositionShift:
    """Adds the length of each row's key-value prefixes to its position ids, and divides them by its interpolation.

    That of an infix is added from the prompt's last token on.
    """

    def __init__(self, model: nn.Module, modules: Sequence[str], context: BatchContext) -> None:
        self.model, self.modules, self.context = model, modules, context
        self.hooked = False
        self.shifts: Mapping[str, int] = {}
        """Prefix length by active adapter."""
        self.answer_shifts: Mapping[str, int] = {}
        """Infix length by active adapter."""
        self.factors: Mapping[str, float] = {}
        """Factor by which an active adapter divides positions, where it is not 1."""
        self.shift, self.answer_shift, self.factor = 0, 0, 1.0
        """The largest of these, computed beforehand: `torch.compile` traces no max() with a default."""
        self.longest = 0
        """The largest shift of a row, by its prefix and its infix together."""
        self.route = Route()

    def follow(
        self, route: Route, shifts: Mapping[str, int], answer_shifts: Mapping[str, int], factors: Mapping[str, float]
    ) -> None:
        """Follow a route; the hooks are installed when a prefix or an interpolation is first used."""
        self.route, self.shifts, self.answer_shifts, self.factors = route, shifts, answer_shifts, factors
        self.shift = max(shifts.values(), default=0)
        self.answer_shift = max(answer_shifts.values(), default=0)
        self.factor = max(factors.values(), default=1.0)
        of_rows = (
            int(_largest_of(shifts, row, 0) + _largest_of(answer_shifts, row, 0))
            for row in route.rows or [route.uniform]
        )
        self.longest = max(of_rows, default=0)
        if (shifts or answer_shifts or factors) and not self.hooked:
            self.hooked = True
            for path in self.modules:
                self.model.get_submodule(path).register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not (self.shifts or self.answer_shifts or self.factors):
            return None
        index = 0 if isinstance(module, nn.Embedding) else 1
        if "position_ids" in kwargs:
            ids = kwargs["position_ids"]
            if ids is None:  # OPT passes the mask and the number of tokens before
                mask, before = args
                ids = (mask.cumsum(1) - 1).clamp(min=0)[:, before:]
            return args, {**kwargs, "position_ids": self.moved(module, ids)}
        return (*args[:index], self.moved(module, args[index]), *args[index + 1 :]), kwargs

    def moved(self, module: nn.Module, ids: Tensor) -> Tensor:
        """Position ids (B or 1, T) with each row's prefix length added, divided by its factor."""
        most = _positions(module) if isinstance(module, nn.Embedding) else None
        if most is not None and ids.shape[-1] + self.longest > most:
            raise DeltatuneError(
                f"{ids.shape[-1]} tokens and a prefix of {self.longest} exceed the model's {most} positions; "
                "shorten the texts or the prefix, or use Prefix(shift_positions=False)"
            )
        if self.answer_shifts:
            ids = ids + self.behind_prompt(ids)
        if self.route.rows is None:
            ids = ids + self.shift
            return ids / self.factor if self.factors else ids
        rows = self.route.weights(max(ids.shape[0], len(self.route.rows)))
        ids = ids + torch.tensor([_largest_of(self.shifts, row, 0) for row in rows], device=ids.device)[:, None]
        if not self.factors:
            return ids
        return ids / torch.tensor([_largest_of(self.factors, row, 1.0) for row in rows], device=ids.device)[:, None]

    def behind_prompt(self, ids: Tensor) -> Tensor:
        """The shift (B, T) of each token by its row's infix: none in the prompt before its last token."""
        offsets = self.context.offsets
        assert offsets is not None
        moved = (offsets >= -1).to(ids.dtype)
        if self.route.rows is None:
            return moved * self.answer_shift
        shifts = [_largest_of(self.answer_shifts, row, 0) for row in self.route.weights(len(offsets))]
        return moved * torch.tensor(shifts, dtype=ids.dtype, device=ids.device)[:, None]


def _largest_of(values: Mapping[str, float], row: Iterable[str], least: float) -> float:
    """The largest value of the adapters of a row."""
    return max([least, *(values[name] for name in row if name in values)])


def _positions(table: nn.Embedding) -> int:
    """Longest sequence of a position table: some keep their first rows for padding (RoBERTa) or an offset (OPT)."""
    reserved = 0 if table.padding_idx is None else table.padding_idx + 1
    return table.num_embeddings - max(reserved, int(getattr(table, "offset", 0)))
