"""The memory forecast of a training that is about to start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltatune.comparison.costs.memory_fit import DeepModel
from deltatune.comparison.costs.training_memory import CountedTraining, Memory
from deltatune.core.errors import DeltatuneError
from deltatune.core.memory import in_bytes, memory_of
from deltatune.models.hardware import return_freed_memory_, uses_bfloat16
from deltatune.tasks.preferences.pair_collator import REJECTED_IDS
from deltatune.training.inference.batches import device_of

if TYPE_CHECKING:
    from deltatune.training.job import Prepared

CLEARLY = 1.2
"""A forecast of so many times the memory is clearly above it: forecasts are within a tenth of what is measured."""
CLOSE = 0.5
"""Processes take up to 1.6 times the forecast unless freed memory is given back: from this share on it matters."""
KINDS = {"row": "classify", "token": "tag", "text": "lm", "likelihood": "lm", "mask": "lm"}
"""The counted task of each kind of answer."""


def forecast_of(ready: Prepared) -> Memory | None:
    """The forecast of a run whose batches are full of rows as long as its longest; None where there is none.

    None are the runs of kinds of tasks that are not counted (mixtures, label words, spans), and those that go on with
    an adapter.
    """
    session, settings = ready.session, ready.settings
    host, adapter = session.host, session.adapter
    device = device_of(host).type
    kind = KINDS.get(session.task.answers)
    rows = ready.encoded["train"]
    plain = ready.start is None and not session.loads and not settings.packing and adapter.count > 0
    plain = plain and session.task.inputs == "text"  # steps are forecast for texts
    if kind is None or device not in ("cpu", "cuda") or not plain or not hasattr(rows, "rows") or not len(rows):
        return None
    scheme = next((site.quantized for site in host.sites.values() if site.quantized), "none")
    try:
        training = CountedTraining(
            kind,  # type: ignore[arg-type]
            classes=getattr(getattr(adapter.head, "config", None), "outputs", 2),
            batch_size=min(settings.batch_size, len(rows)) * (2 if session.task.label_kind == "pairs" else 1),
            max_length=longest_of(ready),
            device=device,  # type: ignore[arg-type]
            precision="bfloat16" if uses_bfloat16(host.model, settings.precision) else "float32",
            quantize=scheme,
            checkpointing=settings.checkpointing,
            accumulation=min(settings.accumulation, settings.batch_size, len(rows)),
            optimizer=settings.optimizer,
            offload_activations=settings.offload_activations,
        )
        return DeepModel(session.model).count(repr(adapter.method), training).memory
    except DeltatuneError:  # a base that is not told by its name alone
        return None


def longest_of(ready: Prepared) -> int:
    """Tokens of the longest training row; of a pair those of its longer answer."""
    return max(len(ids) for row in ready.encoded["train"].rows for ids in (row["input_ids"], row.get(REJECTED_IDS, ())))


def check_forecast(ready: Prepared, memory: Memory) -> None:
    """Raise DeltatuneError for a run whose forecast is clearly above the memory that there is.

    Where it comes close to that memory, freed memory is given back at once from now on, at the price of time.
    """
    there = memory_of(device_of(ready.session.host))
    if memory.total > CLOSE * there:
        return_freed_memory_()
    if memory.total <= CLEARLY * there:
        return
    settings, session = ready.settings, ready.session
    longest = longest_of(ready)
    raise DeltatuneError(
        f"this run would take about {in_bytes(memory.total)} of memory, and there are {in_bytes(there)}. "
        f'See what fits: deltatune fit {session.model} --method "{session.adapter.method!r}" '
        f"--batch-size {settings.batch_size} --max-length {longest}. To train all the same: --over-memory"
    )
