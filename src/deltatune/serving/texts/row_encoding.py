"""Rows of requests as tokens, before the engine has them: its worker would let every other request wait for that."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.serving.served_base import ServedBase
from deltatune.serving.serving_errors import RequestTooLong
from deltatune.serving.texts.invalid_request import InvalidRequest
from deltatune.tasks import Task
from deltatune.tasks.row_inputs import row_inputs
from deltatune.tasks.task import Encoded

T = TypeVar("T")
LONG = 65_536
"""Characters of rows that make them long: they wait for each other, and short ones not for them."""
COMPARED = 32_768
"""Characters of a row whose demonstrations the model itself looks up, so that the engine's worker reads its text."""


class RowEncoder:
    """Encodes rows for one base, in a thread of its own: fast tokenizers change while they cut texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, base: ServedBase) -> None:
        self.tokenizer, self.base = copy.deepcopy(tokenizer), base
        self._thread = ThreadPoolExecutor(1, "rows")

    def close(self) -> None:
        """End its thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[[], T]) -> T:
        """Do something in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def shaped(self, task: Task, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows with the columns that the task reads. Raises InvalidRequest for others, and RequestTooLong."""
        try:
            shaped = row_inputs(task, rows)
        except DeltatuneError as error:
            raise InvalidRequest(str(error), "input") from None
        if not encodes_alone(task):
            _check_characters(shaped)
        return shaped

    def encode(self, task: Task, rows: Sequence[Mapping[str, Any]], several: int | None = None) -> list[Encoded]:
        """The tokens of rows, `several` rows at a time (None: all at once); [] where it takes the model to make them.

        How many positions an adapter takes changes no tokens; the engine checks whether there are enough. Raises
        DeltatuneError for rows that the task refuses.
        """
        if not encodes_alone(task):
            return []
        size, joined = several or len(rows), self.base.family == "decoder"
        return [
            task.encode(
                rows[i : i + size], self.tokenizer, positions=self.base.positions, labelled=False, joined=joined
            )
            for i in range(0, len(rows), size)
        ]


def characters(rows: Sequence[Mapping[str, Any]]) -> int:
    """Characters of all values of rows."""
    return sum(len(str(value)) for row in rows for value in row.values())


def encodes_alone(task: Task) -> bool:
    """Whether a task makes tokens of rows without the model."""
    return not task.compares_texts


def token_count(encoded: Sequence[Encoded]) -> int:
    """Tokens of encoded rows, windows of one row counted each."""
    return sum(len(row["input_ids"]) for each in encoded for row in each)


def most_tokens(task: Task, rows: int) -> int:
    """Tokens that rows of a task have at most which only the engine can encode."""
    return rows * getattr(task, "prompts", 1) * int(getattr(task, "max_length", 1))


def _check_characters(rows: Sequence[Mapping[str, Any]]) -> None:
    for number, row in enumerate(rows):
        count = characters([row])
        if count > COMPARED:
            raise RequestTooLong(
                f"row {number} has {count:,} characters; an adapter that looks up demonstrations for each row "
                f"reads at most {COMPARED:,}"
            )
