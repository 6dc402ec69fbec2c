"""Collators: encoded rows to tensors, with dynamic padding, packing or dynamic masking."""

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
from deltatune.models.processors import Processor
from deltatune.tasks.task import IGNORED, TokenRow
from deltatune.tasks.tokenization import padding_id

MULTIPLE = 8
"""Rows are padded to a multiple of it: matrix units work on tiles, and fewer distinct shapes are compiled."""
TOKEN_LABELS = "labels"
"""One label per token: padded with IGNORED, to its own length where that is not the input's (encoder-decoders)."""
DECODER_IDS = "decoder_input_ids"
"""What the decoder of an encoder-decoder reads, where that is not its labels one step later: as long as the labels, on
the right of which both are padded; nothing attends to what is behind a token."""
FILE, SECONDS = "file", "seconds"
"""What an encoded row of an image or a sound has in place of tokens: its file, and how much of a sound is read."""
ROW_LABELS = {"label": "labels", "pair_label": "pair_labels"}
"""One label per row: its name in a row and in a batch."""


@dataclass(frozen=True)
class PaddingCollator:
    """Pads a list of encoded rows into `{name: (B, T)}` and, where they have labels, `labels` (B, ...)."""

    fill: dict[str, int]
    """Names of the inputs, and the value that pads each."""
    left: bool = False
    """Whether padding is on the left."""
    longest: int | None = None
    """Limit of the padded length in tokens: the model may have no positions beyond it."""
    packed: bool = False
    """Whether several rows share one sequence; their position ids separate them."""

    def __call__(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """Return the batch; B rows padded to the longest, rounded up to a multiple of 8."""
        count = len(rows)
        if self.packed:
            rows = pack_rows(rows, self.width([row["input_ids"] for row in rows]))
        width = self.width([row["input_ids"] for row in rows])
        names = {**self.fill, **({"position_ids": 0} if self.packed else {})}
        batch = {name: self.pad([row[name] for row in rows], fill, width) for name, fill in names.items()}
        if self.packed:
            batch["rows"] = torch.tensor(count)
        for name, batch_name in ROW_LABELS.items():
            if name in rows[0]:
                batch[batch_name] = torch.tensor([row[name] for row in rows])
        if TOKEN_LABELS in rows[0]:
            batch["labels"] = self._token_labels(rows, width)
        if DECODER_IDS in rows[0]:
            size = batch["labels"].shape[1]
            batch[DECODER_IDS] = torch.tensor([row[DECODER_IDS] + [0] * (size - len(row[DECODER_IDS])) for row in rows])
        return batch

    def width(self, sequences: Sequence[Sequence[int]]) -> int:
        """The padded length of these sequences."""
        longest = max(map(len, sequences))
        width = -(-longest // MULTIPLE) * MULTIPLE
        return width if self.longest is None else max(longest, min(width, self.longest))

    def _token_labels(self, rows: Sequence[TokenRow], width: int) -> Tensor:
        labels = [row[TOKEN_LABELS] for row in rows]
        if all(len(row[TOKEN_LABELS]) == len(row["input_ids"]) for row in rows):
            return self.pad(labels, IGNORED, width)
        longest = max(map(len, labels))
        return torch.tensor([row + [IGNORED] * (longest - len(row)) for row in labels])  # (B, T of the answers)

    def pad(self, values: list[list[int]], fill: int, width: int) -> Tensor:
        """Lists of numbers, padded on the collator's side: (B, T)."""
        if self.left:
            return torch.tensor([[fill] * (width - len(row)) + row for row in values])  # (B, T)
        return torch.tensor([row + [fill] * (width - len(row)) for row in values])  # (B, T)


@dataclass(frozen=True)
class MediaCollator(PaddingCollator):
    """Reads the files of some rows and processes them for a model."""

    fill: dict[str, int] = field(default_factory=dict)
    """Unused: processors pad."""
    processor: Processor | None = None
    """The model's processor."""

    def __call__(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """The batch: the model's arguments, (B, C, H, W) or (B, T), and `labels` (B, ...) where rows have them.

        Raises DeltatuneError, which names the file, for one that cannot be read.
        """
        assert self.processor is not None
        seconds = rows[0].get(SECONDS)
        batch = self.processor.batch([self.processor.row(row[FILE], seconds) for row in rows], seconds)
        for name, batch_name in ROW_LABELS.items():
            if name in rows[0]:
                batch[batch_name] = torch.tensor([row[name] for row in rows])
        return batch


def pack_rows(rows: Sequence[TokenRow], width: int) -> list[TokenRow]:
    """Concatenate rows into sequences of at most `width` tokens by first-fit decreasing."""
    bins: list[list[TokenRow]] = []
    free: list[int] = []
    for row in sorted(rows, key=lambda row: -len(row["input_ids"])):
        size = len(row["input_ids"])
        index = next((i for i, space in enumerate(free) if space >= size), len(bins))
        if index == len(bins):
            bins.append([])
            free.append(width)
        bins[index].append(row)
        free[index] -= size
    return [concatenate_rows(members) for members in bins]


def concatenate_rows(rows: Sequence[TokenRow]) -> TokenRow:
    """Rows in one sequence; `position_ids` start at 0 in each of them."""
    names = [name for name in ("input_ids", TOKEN_LABELS) if name in rows[0]]
    sequence: TokenRow = {name: [value for row in rows for value in row[name]] for name in names}
    return sequence | {"position_ids": [position for row in rows for position in range(len(row["input_ids"]))]}


def collator_for(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    example: TokenRow,
    longest: int | None = None,
    pack: bool = False,
    left: bool | None = None,
) -> PaddingCollator:
    """The collator of this model and tokenizer, for rows like `example`.

    It makes only inputs that the model's forward takes. left: padding side, by default the tokenizer's.
    Raises DeltatuneError where rows are to be packed for a model that cannot separate them.
    """
    if isinstance(tokenizer, Processor):
        if pack:
            raise DeltatuneError(f"{tokenizer.inputs} files cannot be packed into one sequence: set packing=False")
        return MediaCollator(processor=tokenizer)
    accepted = {"input_ids", "attention_mask", *inspect.signature(model.forward).parameters}
    if pack:
        check_separates_rows(model, accepted)
        # Padding is a row of its own that nothing attends to. Models warn of the padding token if there is no mask.
        return PaddingCollator({"input_ids": int(padding_id(tokenizer) == 0)}, longest=longest, packed=True)
    fill = {"input_ids": padding_id(tokenizer), "attention_mask": 0}
    fill["token_type_ids"] = int(getattr(tokenizer, "pad_token_type_id", 0) or 0)
    fill = {name: value for name, value in fill.items() if name in example and name in accepted}
    left = tokenizer.padding_side == "left" if left is None else left
    return PaddingCollator(fill, left=left, longest=longest)


def check_separates_rows(model: nn.Module, accepted: Collection[str]) -> None:
    """Raise DeltatuneError unless the model can separate packed rows by their position ids."""
    if family(model.config) != "decoder" or "position_ids" not in accepted:  # type: ignore[arg-type]
        raise DeltatuneError(
            f"{type(model).__name__} cannot train on packed rows: only decoders that take position_ids separate the "
            "rows of one sequence; set packing=False"
        )


@dataclass
class DynamicCollator:
    """Draws another random version of each row, then pads on the right; the same calls give the same batches."""

    draw: Callable[[TokenRow, torch.Generator], TokenRow]
    tokenizer: PreTrainedTokenizerBase
    seed: int = 0
    calls: int = field(default=0, init=False)
    """Batches made so far. In each worker of a loader it starts at 0, and the worker's seed distinguishes epochs."""

    def __call__(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, `labels` (IGNORED where there is none), maybe `token_type_ids`: all (B, T)."""
        worker = get_worker_info()
        generator = generator_for(self.seed, f"collator.{worker.seed if worker else 0}.{self.calls}")
        self.calls += 1
        fill = {"input_ids": padding_id(self.tokenizer), "attention_mask": 0, "token_type_ids": 0}
        drawn = [self.draw(row, generator) for row in rows]
        batch = PaddingCollator({name: value for name, value in fill.items() if name in drawn[0]})(drawn)
        if "pair_labels" in batch:
            batch["next_sentence_label"] = batch.pop("pair_labels")
        return batch
