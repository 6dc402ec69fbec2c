"""`deltatune predict --task fill`: the words that are missing in texts, from a masked language model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deltatune.cli.input_rows import given_columns
from deltatune.cli.ui.screen import plural
from deltatune.core.errors import DeltatuneError, nearest, raise_all

if TYPE_CHECKING:
    from deltatune.core.host import Host

Row = dict[str, Any]
FILL = "fill"
"""Value of --task."""
FILLED_WORDS = 5
"""Words of each mask that are printed, if --top does not say it."""


def check_task(task: str | None, others: Mapping[str, Any]) -> None:
    """Raise DeltatuneError for another task than fill and generate, and for options that do not go with it, or none."""
    named = (FILL, "generate")
    if task not in (None, *named):
        raise DeltatuneError(
            f"--task {task}: predict takes the adapter's task; only {' and '.join(named)} are named "
            f"here{nearest(str(task), named)}"
        )
    where = f"--task {FILL}" if task != FILL else f"a task that is trained, not for {FILL}"
    raise_all([f"{name} is for {where}" for name, value in others.items() if value])


class Filler:
    """A masked language model, with or without an adapter, that fills the masks of rows."""

    def __init__(
        self,
        adapter: str | None,
        model: str | None,
        other_base: bool,
        top: int,
        label: str | None,
        weight: float,
        quantize: str | None = None,
    ) -> None:
        from deltatune.training.open_session import open_adapter, open_host

        if adapter is None and model is None:
            raise DeltatuneError("--task fill needs a masked language model: --model MODEL, or --adapter FOLDER")
        if adapter is None and weight != 1:
            raise DeltatuneError(f"--weight {weight:g} is an adapter's, and there is none")
        self.host: Host
        if adapter is None:
            self.host, self.tokenizer = open_host(str(model), "mask", quantize=quantize)
            self.name, self.text = None, "text"
        else:
            session = open_adapter(adapter, model, other_base, quantize=quantize)
            if session.task.loads != "mask":
                raise DeltatuneError(
                    f"--task fill: {adapter} was trained for {session.task.name}, which has no words to fill in; it "
                    "needs an adapter of a masked objective (deltatune pretrain), or --model alone"
                )
            self.host, self.tokenizer = session.host, session.tokenizer
            self.name, self.text = session.name, session.task.text[0]
        self.top, self.label, self.weight = top, label, weight
        self.ranks: list[int | None] = []
        self.done = 0

    def write(self, rows: Sequence[Row], put: Callable[[Iterable[Row]], None]) -> int:
        """Fill the masks of some rows and put them out; none is truncated. With a label, each has its word's `rank`."""
        from deltatune.training.inference.fill_mask import fill_masks

        words = None if self.label is None else [_label(row, self.label, self.done + i) for i, row in enumerate(rows)]
        answers = fill_masks(
            self.host, self.tokenizer, [row[self.text] for row in rows], self.top, name=self.name, weight=self.weight,
            words=words, first=self.done,
        )  # fmt: skip
        self.done += len(rows)
        self.ranks += [answer["rank"] for answer in answers if "rank" in answer]
        put([
            given_columns(row, answer) | _rounded(answer)
            for row, answer in zip(rows, answers, strict=True)
        ])  # fmt: skip
        return 0

    def summarise(self) -> None:
        """Print P@1 and P@k of rows with a label on stderr."""
        from deltatune.training.inference.fill_mask import recall_at

        if not self.ranks:
            return
        parts = [f"P@{k} {recall_at(self.ranks, k):.3f}" for k in dict.fromkeys((1, self.top))]
        long = sum(rank is None for rank in self.ranks)
        more = f"; {plural(long, 'word')} of several tokens, which no mask can hold: counted as wrong" if long else ""
        print(f"{', '.join(parts)} of {plural(len(self.ranks), 'text')}{more}", file=sys.stderr)


def _label(row: Row, column: str, number: int) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise DeltatuneError(
            f"--label {column}: row {number} has {value!r} there, not a word; columns: {', '.join(row)}"
        )
    return value.strip()


def _rounded(answer: Row) -> Row:
    masks = [[{**word, "score": round(word["score"], 6)} for word in words] for words in answer["masks"]]
    return {**answer, "masks": masks}
