"""Routes: which adapters act on which rows of a batch, and the sum `h + sum_i w_i * Delta_i(x, h)` of their changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deltatune.core.bank_delta import SlotRows
from deltatune.core.delta import Delta
from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.field_validation import LARGEST_FLOAT32


class RowsAndWeight(NamedTuple):
    """The rows one adapter acts on (None: all) and its weight, a number or one per row."""

    rows: Tensor | None
    weight: float | Tensor
    run: tuple[int, int] | None = None
    """The first row and the one behind the last, where the rows follow each other."""
    slots: SlotRows | None = None
    """The slots of these rows in a bank."""
    numbers: tuple[int, ...] = ()
    """The rows as numbers, where not all act alike."""

    @property
    def whole(self) -> bool:
        """Whether every row takes the change as it is."""
        return self.rows is None and isinstance(self.weight, float) and self.weight == 1.0


@dataclass(frozen=True, eq=False)
class Route:
    """Adapters and weights for every row of a batch."""

    uniform: Mapping[str, float] = field(default_factory=dict)
    """Adapter weights when all rows are the same."""
    rows: tuple[Mapping[str, float], ...] | None = None
    """Adapter weights row by row, or None."""
    order: tuple[str, ...] = ()
    """Stacked adapters, the one that acts first first; empty where changes at a site add up."""
    places: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Adapters in a bank: the name of its group at the hook points, and the slot."""
    whole_batch: bool = False
    """Whether `rows` are those of a batch and never repeated: guidance of images doubles a batch, which is no beam."""
    _cache: dict[tuple[str, int, torch.device, bool], RowsAndWeight | None] = field(default_factory=dict, repr=False)

    @property
    def names(self) -> set[str]:
        """Adapters that act on at least one row."""
        return {name for row in (self.uniform, *(self.rows or ())) for name in row}

    def weights(self, batch: int) -> Sequence[Mapping[str, float]]:
        """Adapter weights of each of `batch` rows; beams repeat a row's entry, as generate() repeats its inputs.

        Raises DeltatuneError when the batch is not a multiple of the route's rows.
        """
        if self.rows is None:
            return [self.uniform] * batch
        times, rest = divmod(batch, len(self.rows))
        if rest or not times or (self.whole_batch and times > 1):
            guided = "; with classifier-free guidance a pipeline runs every row twice, all without the prompt and then "
            guided += "all with it: use(2 * rows), one entry for each image"
            raise DeltatuneError(
                f"the route names adapters for {len(self.rows)} rows, but the batch has {batch}; call use() again"
                + guided * self.whole_batch
            )
        return [row for row in self.rows for _ in range(times)]

    def without(self, names: Iterable[str]) -> Route:
        """The same route with these adapters left out; a route whose rows are all empty becomes the bare base."""
        left_out = set(names)
        if not self.names & left_out:
            return self

        def remaining(weights: Mapping[str, float]) -> dict[str, float]:
            return {name: weight for name, weight in weights.items() if name not in left_out}

        rows = None if self.rows is None else tuple(remaining(row) for row in self.rows)
        order = tuple(name for name in self.order if name not in left_out)
        places = {name: place for name, place in self.places.items() if name not in left_out}
        rows = rows if rows is not None and any(rows) else None
        return Route(remaining(self.uniform), rows, order, places, self.whole_batch)

    def rows_and_weight(self, name: str, batch: int, device: torch.device, exact: bool = False) -> RowsAndWeight | None:
        """Rows and weights of one adapter, or of one group of a bank, in a batch; None if it has no row.

        exact: no rows of slot 0, which let a group of a bank take rows that follow each other.
        """
        if self.rows is None and (name in self.uniform or not self.places):
            return RowsAndWeight(None, self.uniform[name]) if name in self.uniform else None
        key = (name, batch, device, exact)
        if key in self._cache:
            return self._cache[key]
        if any(group == name for group, _ in self.places.values()):
            self._cache[key] = self._in_bank(name, batch, device, exact)
        else:
            weights = {i: row[name] for i, row in enumerate(self.weights(batch)) if name in row}
            rows = torch.tensor(list(weights), device=device)
            weight = _common(list(weights.values()), device)
            numbers = tuple(weights)
            run = _run(list(numbers))
            self._cache[key] = RowsAndWeight(rows, weight, run, numbers=numbers) if weights else None
        return self._cache[key]

    def _in_bank(self, group: str, batch: int, device: torch.device, exact: bool) -> RowsAndWeight | None:
        """Rows, weights and slots of one group of a bank. A row with several of its adapters is there several times."""
        if self.rows is None and len(self.uniform) == 1:
            (name, weight), *_ = self.uniform.items()
            return RowsAndWeight(None, weight, None, SlotRows([self.places[name][1]], device))
        entries = [
            (i, self.places[name][1], weight)
            for i, row in enumerate(self.weights(batch))
            for name, weight in row.items()
            if name in self.places and self.places[name][0] == group
        ]
        rows = [i for i, _, _ in entries]
        if not entries:
            return None
        run = _run(rows)
        if len(set(rows)) < len(rows):
            run = None
        elif run is None and not exact:  # slot 0 changes nothing in the rows between: cheaper than picking rows
            of_row = {i: (slot, weight) for i, slot, weight in entries}
            entries = [(i, *of_row.get(i, (0, 1.0))) for i in range(batch)]
            run = (0, batch)
        slots = SlotRows([slot for _, slot, _ in entries], device)
        weights = _common([weight for _, _, weight in entries], device)
        if run == (0, batch):
            return RowsAndWeight(None, weights, None, slots, tuple(range(batch)))
        return RowsAndWeight(torch.tensor(rows, device=device), weights, run, slots, tuple(rows))


def _run(rows: list[int]) -> tuple[int, int] | None:
    """First row and the one behind the last of rows in order, if none is left out."""
    return (rows[0], rows[-1] + 1) if rows and rows[-1] + 1 - rows[0] == len(rows) else None


def _common(weights: list[float], device: torch.device) -> float | Tensor:
    """One number if all rows have the same weight, else a tensor (rows,)."""
    same = len(set(weights)) == 1
    return weights[0] if same else torch.tensor(weights, device=device)


RouteSpec = Route | str | Mapping[str, float] | Sequence["str | Mapping[str, float] | None"] | None
"""One adapter, adapters with weights, one such entry per row of the batch, None for the bare base, or a whole Route."""


def read_route(spec: RouteSpec, attached: Iterable[str], stacked: bool = False) -> Route:
    """Read the argument of `Host.use`. Raises DeltatuneError for unknown names, listing the attached ones."""
    names = list(attached)
    if isinstance(spec, Route):
        for row in (spec.uniform, *(spec.rows or ())):
            _entry(row, names)
        return spec
    if spec is None or isinstance(spec, (str, Mapping)):
        uniform = _entry(spec, names)
        return Route(uniform=uniform, order=tuple(uniform) if stacked else ())
    rows = tuple(_entry(row, names) for row in spec)
    order = dict.fromkeys(name for row in rows for name in row)
    return Route(rows=rows, order=tuple(order) if stacked else ())


def unknown_adapters(names: Iterable[str], attached: Iterable[str]) -> list[str]:
    """A sentence for each name that is not an attached adapter's, with the nearest one and all there are."""
    attached = list(attached)
    have = ", ".join(attached) or "none"
    return [
        f"no adapter is called {name!r}{nearest(name, attached)}; attached: {have}"
        for name in names
        if name not in attached
    ]


def _entry(entry: str | Mapping[str, float] | None, attached: list[str]) -> dict[str, float]:
    weights = {} if entry is None else {entry: 1.0} if isinstance(entry, str) else dict(entry)
    for name, weight in weights.items():
        raise_all(unknown_adapters([name], attached))
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise DeltatuneError(f"the weight of adapter {name!r} must be a number, not {weight!r}")
        if not abs(weight) <= LARGEST_FLOAT32:
            raise DeltatuneError(f"the weight of adapter {name!r} is {weight}; it must be a finite number such as 0.5")
    return {name: float(weight) for name, weight in weights.items() if weight}


class RowRuns:
    """The runs of rows that adapters act on, cut out of a batch's tensors: a cut costs no copy, an index does.

    Modules that read the same input get the same pieces of it, so that Deltas can share what they compute from it.
    """

    def __init__(self) -> None:
        self.x: Tensor | None = None
        self.sizes: list[int] = []
        self.pieces: Sequence[Tensor] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {"x": None, "sizes": [], "pieces": ()}  # intermediate values are neither copied nor saved

    def cut(self, x: Tensor, sizes: list[int]) -> Sequence[Tensor]:
        """Pieces of x (B, ...), of `sizes` rows each."""
        if torch.compiler.is_compiling():
            return torch.split(x, sizes)
        if x is not self.x or sizes != self.sizes:
            self.x, self.sizes, self.pieces = x, sizes, torch.split(x, sizes)
        return self.pieces

    def clear(self) -> None:
        """Release the last input."""
        self.x, self.sizes, self.pieces = None, [], ()


Change = tuple[Delta, Tensor, RowsAndWeight]
"""A Delta, the x (B, ...) that it reads, and its rows."""


def mix(h: Tensor, changes: Sequence[Change], runs: RowRuns | None = None) -> Tensor:
    """Return `h` plus all changes; every Delta sees the same `h`. Shapes: h and each x (B, ..., width)."""
    if len(changes) == 1 and changes[0][2].rows is None:
        delta, x, acting = changes[0]
        return delta.add(h, x, per_row(acting.weight, h))
    if (cuts := _cuts(changes, len(h))) is not None:
        return _mix_runs(h, changes, *cuts, runs or RowRuns())
    out = h
    for delta, x, (rows, weight, *_) in changes:
        if rows is None:
            out = out + per_row(weight, h) * delta(x, h)
            continue
        x_rows, h_rows = x.index_select(0, rows), h.index_select(0, rows)
        out = out.index_add(0, rows, (per_row(weight, h_rows) * delta(x_rows, h_rows)).to(out.dtype))
    return out


def _cuts(changes: Sequence[Change], batch: int) -> tuple[list[int], list[int | None]] | None:
    """Sizes of consecutive pieces of a batch, each with the number of the change that acts on it, None for no change.

    None where changes act on rows that are scattered, or on the same rows.
    """
    sizes: list[int] = []
    owners: list[int | None] = []
    end = 0
    for i in sorted(range(len(changes)), key=lambda i: changes[i][2].run or (-1, -1)):
        run = changes[i][2].run
        if run is None or run[0] < end:
            return None
        gap = run[0] - end
        sizes += [*([gap] if gap else []), run[1] - run[0]]
        owners += [*([None] if gap else []), i]
        end = run[1]
    rest = batch - end
    return ([*sizes, rest], [*owners, None]) if rest and sizes else (sizes, owners) if sizes else None


def _mix_runs(
    h: Tensor, changes: Sequence[Change], sizes: list[int], owners: list[int | None], runs: RowRuns
) -> Tensor:
    """`mix` of changes that act on rows of their own, side by side."""
    pieces = list(torch.split(h, sizes))
    for i, owner in enumerate(owners):
        if owner is not None:
            delta, x, acting = changes[owner]
            x_piece = pieces[i] if x is h else runs.cut(x, sizes)[i]
            pieces[i] = delta.add(pieces[i], x_piece, per_row(acting.weight, pieces[i])).to(h.dtype)
    return torch.cat(pieces)


def per_row(weight: float | Tensor, like: Tensor) -> float | Tensor:
    """Weights of the rows, shaped to multiply `like` (rows, ...)."""
    return weight.to(like.dtype).view(-1, *[1] * (like.dim() - 1)) if isinstance(weight, Tensor) else weight
