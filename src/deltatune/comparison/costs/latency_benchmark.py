"""Inference time of methods over batch size and text length, absolute and relative to the bare model.

Adapters have their initial values, on which no time depends.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from deltatune.comparison.costs.inference_costs import added_tokens
from deltatune.comparison.costs.inference_timing import TimedRun, act, forward_pass, times_in_turns
from deltatune.comparison.costs.latency_grid import LENGTHS, Form, LatencyGrid, LatencyRow, MeasuredMethod
from deltatune.core.budget import check_sized, fit_budget, split_budget
from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError, OutOfMemory, is_out_of_memory, raise_all
from deltatune.core.memory import in_bytes, memory_of
from deltatune.core.merging import merge_obstacles
from deltatune.core.method import Method
from deltatune.core.registry import parse_tuning
from deltatune.models.hardware import uses_bfloat16
from deltatune.tasks import longest_input
from deltatune.tasks.tokenization import with_token_ids
from deltatune.training.inference.batches import device_of
from deltatune.training.inference.prediction import positions_taken
from deltatune.training.open_session import open_host

DEFAULT_METHODS = ("Houlsby()", "Pfeiffer()", "LoRA()", "Prefix()")
STATES = 10
"""Numbers as wide as a hidden state that a block holds at once, for the memory that a forward pass needs at least."""
SHORT = 8
"""Tokens of the short text that is read before each timed run: merging has moved weights out of the caches."""
OnCell = Callable[[int, int, int, int], None]
"""Called after each cell: cells done, cells, rows and tokens."""


class LatencyBenchmark:
    """A model with every method attached, of which one acts at a time."""

    def __init__(
        self,
        model: str,
        methods: Sequence[str | Method] = DEFAULT_METHODS,
        grid: LatencyGrid | None = None,
        budget: str | int | None = None,
        quantize: str | None = None,
    ) -> None:
        """Load the model, stored as `quantize` says, and attach the methods.

        A budget is for methods without one of their own (`LoRA()@0.5%`).

        Raises DeltatuneError, all problems at once, for methods that the model cannot take, texts that are longer than
        its positions, and cells that do not fit into memory.
        """
        self.grid = grid or LatencyGrid()
        self.model = model
        self.host, tokenizer = open_host(model, "text" if self.grid.task == "lm" else "row", quantize=quantize)
        reads = str(getattr(self.host.model, "main_input_name", "input_ids"))
        if reads != "input_ids":
            raise DeltatuneError(f"{model} reads {reads}; latency is measured for models that read text")
        self.methods: dict[str, MeasuredMethod] = {}
        """By the adapter's name on the host."""
        problems = []
        for asked in methods or DEFAULT_METHODS:
            try:
                self._attach(asked, budget, tokenizer)
            except DeltatuneError as error:
                problems.append(f"{asked}: {error}")
        raise_all(problems)
        self.host.use(None)
        self.lengths = self._lengths()
        self._check_size()
        self.bfloat16 = uses_bfloat16(self.host.model, self.grid.precision)

    @property
    def cells(self) -> list[tuple[int, int]]:
        """Rows and tokens of each cell, small ones first."""
        return list(itertools.product(sorted(self.grid.batches), self.lengths))

    @property
    def variants(self) -> list[tuple[str | None, Form]]:
        """What is timed in each cell: adapters and their forms, the bare model first."""
        found: list[tuple[str | None, Form]] = [(None, "bare")]
        for name, each in self.methods.items():
            found += [(name, "unmerged"), *([(name, "merged")] if each.merges else [])]  # type: ignore[list-item]
        return found

    def estimate(self) -> float:
        """Seconds that `measure` will take, from one forward pass of the bare model in each cell.

        Raises OutOfMemory naming the cell that does not fit.
        """
        with self._measuring():
            self._short()()  # the first pass of a process is slow
            passes = sum(_seconds(self._pass(batch, length)) for batch, length in self.cells)
            switches = sum(_seconds(self._prepare(name, form)) for name, form in self.variants)
        turns = self.grid.repeats + 1
        return turns * (passes * len(self.variants) + switches * len(self.cells))

    def measure(self, on_cell: OnCell | None = None) -> dict[str, Any]:
        """Measure every cell. Returns plain data: the model, the methods, and a row for each method, form and cell."""
        started = time.perf_counter()
        rows: list[LatencyRow] = []
        with self._measuring():
            for number, (batch, length) in enumerate(self.cells, 1):
                rows += self._cell(batch, length)
                if on_cell is not None:
                    on_cell(number, len(self.cells), batch, length)
        facts, device = self.host.sites.facts, device_of(self.host)
        return {
            "schema": 1,
            "kind": "latency",
            "model": self.model,
            "architecture": facts.architecture,
            "base_params": self.host.sites.base_params,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "threads": torch.get_num_threads(),
            "precision": "bfloat16" if self.bfloat16 else "float32",
            "task": self.grid.task,
            "repeats": self.grid.repeats,
            "batches": sorted(self.grid.batches),
            "lengths": list(self.lengths),
            "elapsed_seconds": time.perf_counter() - started,
            "methods": [asdict(each) for each in self.methods.values()],
            "rows": [asdict(row) for row in rows],
        }

    # ---- inside

    def _attach(self, asked: str | Method, budget: str | int | None, tokenizer: Any) -> None:
        text, own = split_budget(asked) if isinstance(asked, str) else (asked, None)
        method = with_token_ids(parse_tuning(text), tokenizer)
        if own is not None:
            check_sized(method, own)
        limit = budget if own is None else own
        if limit is not None:
            method = fit_budget(method, self.host.sites, limit)
        if any(each.method == repr(method) for each in self.methods.values()):
            raise DeltatuneError(f"it is {method!r}, which is given already; give it once")
        name = f"method_{len(self.methods)}"
        adapter = self.host.attach(name, method, head=False)
        obstacle = next(iter(merge_obstacles(adapter)), "")
        asked_text = asked if isinstance(asked, str) else repr(asked)
        self.methods[name] = MeasuredMethod(
            repr(method), asked_text, adapter.count, added_tokens(adapter), not obstacle, obstacle
        )

    def _lengths(self) -> tuple[int, ...]:
        """The lengths to measure. Raises DeltatuneError for those beyond the positions of the model."""
        positions = longest_input(self.host.model)
        if positions is None:
            return tuple(sorted(self.grid.lengths or LENGTHS))
        taken = {each.method: positions_taken(self.host, name) for name, each in self.methods.items()}
        free = positions - max(taken.values(), default=0)
        if self.grid.lengths is None and free >= 1:
            return tuple(length for length in LENGTHS if length <= free) or (free,)
        lengths = sorted(self.grid.lengths or LENGTHS[:1])
        problems = [
            f"length {length}: {self.model} has positions for {positions} tokens"
            for length in lengths
            if length > positions
        ]
        for length, (method, own) in itertools.product(lengths, taken.items()):
            if length <= positions < length + own:
                rest = f"leaves {positions - own} to a text" if own < positions else "leaves none to a text"
                problems.append(
                    f"length {length}: {method} takes {own} of {self.model}'s {positions} positions and {rest}"
                )
        raise_all(problems)
        return tuple(lengths)

    def _check_size(self) -> None:
        """Raise DeltatuneError for a largest cell that certainly exceeds the memory."""
        facts = self.host.sites.facts
        batch, length = max(self.grid.batches), max(self.lengths)
        width = STATES * facts.hidden + (facts.vocabulary if self.grid.task == "lm" else 0)
        needed, memory = batch * length * width * 4, memory_of(device_of(self.host))
        if needed > memory:
            raise DeltatuneError(
                f"{batch:,} rows of {length:,} tokens need at least {in_bytes(needed)}, and there are "
                f"{in_bytes(memory)} of memory; choose a smaller batch or length"
            )

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        with self.host.using(None, training=False):
            try:
                yield
            finally:
                act(self.host, None)

    def _pass(self, batch: int, length: int) -> Callable[[], object]:
        """A forward pass of a cell; memory that is used up is an error that names the cell."""
        run = forward_pass(self.host, self._inputs(batch, length), self.bfloat16)

        def checked() -> object:
            try:
                return run()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                cell = f"{batch} rows of {length} tokens"
                raise OutOfMemory(f"{cell} do not fit into memory; choose a smaller batch or length") from error

        return checked

    def _inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        """Random tokens (B, T) without padding, on the model's device; the padding's id is not among them."""
        generator = generator_for(0, f"latency.{batch}.{length}")
        vocabulary = self.host.sites.facts.vocabulary
        ids = torch.randint(0, vocabulary, (batch, length), generator=generator)
        padding = getattr(self.host.model.config, "pad_token_id", None)
        if isinstance(padding, int) and vocabulary > 1:
            ids[ids == padding] = (padding + 1) % vocabulary
        ids = ids.to(device_of(self.host))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _prepare(self, name: str | None, form: Form) -> Callable[[], None]:
        short = self._short()

        def prepare() -> None:
            act(self.host, name, merged=form == "merged")
            short()

        return prepare

    def _short(self) -> Callable[[], object]:
        return self._pass(1, min(SHORT, *self.lengths))

    def _cell(self, batch: int, length: int) -> list[LatencyRow]:
        run, variants = self._pass(batch, length), self.variants
        turns = times_in_turns([TimedRun(self._prepare(*each), run) for each in variants], self.grid.repeats)
        rows = []
        for (name, form), seconds in zip(variants, turns, strict=True):
            low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
            ratios = [own / bare for own, bare in zip(seconds, turns[0], strict=True)]
            rows.append(
                LatencyRow(
                    "" if name is None else self.methods[name].method,
                    form,
                    batch,
                    length,
                    1e3 * statistics.median(seconds),
                    (1e3 * low, 1e3 * high),
                    statistics.median(ratios),
                    None if form == "bare" else median_interval(ratios),
                )
            )
        return rows


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the median of independent values, whatever their distribution; None for fewer than 6.

    Between the k-th smallest and the k-th largest value: the number of values below the median is binomial.
    """
    ordered, n = sorted(values), len(values)
    outside, k = 0.0, 0
    while (outside := outside + math.comb(n, k) / 2**n) <= 0.025:
        k += 1
    return (ordered[k - 1], ordered[n - k]) if k else None


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
