"""Encoded rows to tensors: dynamic padding, on the tokenizer's side, with only what the model's forward takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.data import get_worker_info
from transformers import PreTrainedTokenizerBase

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError
from deltatune.models.architecture import family
from deltatune.tasks.task import IGNORED, TokenRow
from deltatune.tasks.tokenization import padding_id

MULTIPLE = 8
"""Rows are padded to a multiple of this: matrix units work in tiles, and fewer distinct shapes are compiled."""


TOKEN_LABELS = "labels"
"""One label a token: padded with IGNORED, on its own length where it is not the input's (encoder-decoders)."""


@dataclass(frozen=True)
class Collate:
    """Pads a list of encoded rows into `{name: (B, T)}` and, where they have labels, `labels` (B, ...)."""

    fill: dict[str, int]
    """Names of the inputs to make and what fills each behind (or before) a row's own."""
    left: bool = False
    """Padding comes first."""
    longest: int | None = None
    """Never pad beyond this many tokens: the model may have no positions there."""
    packed: bool = False
    """Several rows stand behind each other in one, each with positions of its own, which keeps them apart."""

    def __call__(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """Return the batch; B rows padded to the longest, rounded up to a multiple of 8."""
        count = len(rows)
        if self.packed:
            rows = packed(rows, self._width(max(len(row["input_ids"]) for row in rows)))
        width = self._width(max(len(row["input_ids"]) for row in rows))
        names = {**self.fill, **({"position_ids": 0} if self.packed else {})}
        batch = {name: self._pad([row[name] for row in rows], fill, width) for name, fill in names.items()}
        if self.packed:
            batch["rows"] = torch.tensor(count)
        if TOKEN_LABELS in rows[0]:
            batch["labels"] = self._token_labels([row[TOKEN_LABELS] for row in rows], rows, width)
        elif "label" in rows[0]:
            batch["labels"] = torch.tensor([row["label"] for row in rows])
        if "pair_label" in rows[0]:
            batch["pair_labels"] = torch.tensor([row["pair_label"] for row in rows])
        return batch

    def _width(self, longest: int) -> int:
        width = -(-longest // MULTIPLE) * MULTIPLE
        return width if self.longest is None else max(longest, min(width, self.longest))

    def _token_labels(self, labels: list[list[int]], rows: Sequence[TokenRow], width: int) -> Tensor:
        if all(len(own) == len(row["input_ids"]) for own, row in zip(labels, rows, strict=True)):
            return self._pad(labels, IGNORED, width)
        longest = max(map(len, labels))
        return torch.tensor([own + [IGNORED] * (longest - len(own)) for own in labels])  # (B, T of the answers)

    def _pad(self, values: list[list[int]], fill: int, width: int) -> Tensor:
        if self.left:
            return torch.tensor([[fill] * (width - len(row)) + row for row in values])  # (B, T)
        return torch.tensor([row + [fill] * (width - len(row)) for row in values])  # (B, T)


def packed(rows: Sequence[TokenRow], width: int) -> list[TokenRow]:
    """Rows joined into as few of at most `width` tokens as first-fit-decreasing finds; `position_ids` start anew."""
    bins: list[list[TokenRow]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda row: -len(row["input_ids"])):
        size = len(row["input_ids"])
        at = next((i for i, left in enumerate(room) if left >= size), len(bins))
        if at == len(bins):
            bins.append([])
            room.append(width)
        bins[at].append(row)
        room[at] -= size
    return [joined(members) for members in bins]


def joined(rows: Sequence[TokenRow]) -> TokenRow:
    """Rows behind each other in one, positions starting anew with each."""
    names = [name for name in ("input_ids", TOKEN_LABELS) if name in rows[0]]
    found: TokenRow = {name: [value for row in rows for value in row[name]] for name in names}
    return found | {"position_ids": [place for row in rows for place in range(len(row["input_ids"]))]}


def collate_for(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    example: TokenRow,
    longest: int | None = None,
    pack: bool = False,
    left: bool | None = None,
) -> Collate:
    """The Collate of this model and tokenizer, for rows like `example`; padding on the tokenizer's side unless given.

    Raises DeltatuneError where rows are to be packed for a model that cannot keep them apart.
    """
    accepted = {"input_ids", "attention_mask", *inspect.signature(model.forward).parameters}
    if pack:
        check_packs(model, accepted)
        # Padding stands apart and is never read; models warn of the padding token where there is no mask.
        return Collate({"input_ids": int(padding_id(tokenizer) == 0)}, longest=longest, packed=True)
    fill = {"input_ids": padding_id(tokenizer), "attention_mask": 0}
    fill["token_type_ids"] = int(getattr(tokenizer, "pad_token_type_id", 0) or 0)
    fill = {name: value for name, value in fill.items() if name in example and name in accepted}
    left = tokenizer.padding_side == "left" if left is None else left
    return Collate(fill, left=left, longest=longest)


def check_packs(model: nn.Module, accepted: Collection[str]) -> None:
    """Raise DeltatuneError unless the model keeps rows apart whose positions start anew."""
    if family(model.config) != "decoder" or "position_ids" not in accepted:  # type: ignore[arg-type]
        raise DeltatuneError(
            f"{type(model).__name__} cannot train on packed rows: only decoders that take position_ids keep rows "
            "in one sequence apart; set packing off"
        )


@dataclass
class Collator:
    """Draws what is asked for of each row anew, then pads on the right; the same calls give the same batches."""

    draw: Callable[[TokenRow, torch.Generator], TokenRow]
    tokenizer: PreTrainedTokenizerBase
    seed: int = 0
    calls: int = field(default=0, init=False)
    """Batches made so far. In a loader's worker it begins anew, and the worker's own seed tells epochs apart."""

    def __call__(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, maybe `token_type_ids`, all (B, T), and `labels`; IGNORED where none is."""
        worker = get_worker_info()
        generator = generator_for(self.seed, f"collator.{worker.seed if worker else 0}.{self.calls}")
        self.calls += 1
        fill = {"input_ids": padding_id(self.tokenizer), "attention_mask": 0, "token_type_ids": 0}
        drawn = [self.draw(row, generator) for row in rows]
        batch = Collate({name: value for name, value in fill.items() if name in drawn[0]})(drawn)
        if "pair_labels" in batch:
            batch["next_sentence_label"] = batch.pop("pair_labels")
        return batch
