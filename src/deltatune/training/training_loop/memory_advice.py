"""Memory that is used up: an error that says what to lower."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from deltatune.core.errors import OutOfMemory, is_out_of_memory
from deltatune.tasks.task import TokenRow, row_length
from deltatune.training.optimizers.state_bytes import is_paged
from deltatune.training.settings import Settings


@contextmanager
def plain_memory_errors(settings: Settings, rows: Sequence[TokenRow], first: Sequence[str] = ()) -> Iterator[None]:
    """Within this context, memory that is used up is an error that says what to lower, the advice in `first` first."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error) or isinstance(error, OutOfMemory):
            raise
        size, parts = settings.batch_size, settings.accumulation
        texts = bool(rows) and "input_ids" in rows[0]
        longest = max(map(row_length, rows), default=0)
        advice = [
            *first,
            f"accumulation: {parts} forward passes a step now, up to {size}: the same result" if parts < size else "",
            "checkpointing: true, about half more time" if not settings.checkpointing else "",
            "" if settings.offload_activations or settings.compile != "off" else "offload_activations: true",
            "" if is_paged(settings.optimizer) else "optimizer: paged-adamw, for a method with many parameters",
            f"batch_size, now {size}" if size > 1 else "",
            f"max_length: the longest text has {longest} tokens" if texts else "",
            "a method with fewer parameters, or a smaller model",
        ]
        lines = "".join(f"\n  {line}" for line in advice if line)
        raise OutOfMemory(f"out of memory while training; what needs less of it, the best first:{lines}") from None
