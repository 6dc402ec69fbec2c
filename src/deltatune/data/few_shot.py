"""Learning from few rows: a draw of so many rows of each class, to train on and to choose the learning rate by."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from deltatune.core.errors import DeltatuneError
from deltatune.data.dataset import Data, Row
from deltatune.data.mixture_data import MixtureData
from deltatune.data.splits import draw_shots

MOST_UNLABELLED = 5000
"""Rows without labels that methods may use."""


def few_shot(data: Data, shots: int, seed: int) -> Data:
    """The data with `shots` training rows of each class, and as many validation rows; the test rows stay.

    Few rows to train on and many to choose by would not be a few-shot setting: Gao et al. 2021,
    https://arxiv.org/abs/2012.15723, section 3. Where the validation split has fewer rows of a class it stays whole.
    Raises DeltatuneError naming the classes with too few training rows, and for mixtures.
    """
    if isinstance(data, MixtureData):
        raise DeltatuneError(f"--shots {shots}: a mixture of tasks cannot be drawn from; give a single data set")
    train = draw_shots(data.train, data.label, data.kind, shots, seed)
    each = " of each class" if data.kind in ("classes", "many") else ""
    note = f"training rows are drawn: {shots} rows{each} out of {len(data.train):,}"
    try:
        validation = draw_shots(data.validation, data.label, data.kind, shots, seed)
        note += "; as many validation rows"
    except DeltatuneError:
        validation = data.validation
        note += f"; the {len(validation):,} validation rows stay, as there are too few to draw from"
    return replace(data, train=train, validation=validation, notes=(*data.notes, note))


def unlabelled_rows(data: Data, drawn: Data) -> list[Row]:
    """The training rows that were not drawn, without their labels, at most MOST_UNLABELLED of them."""
    known = {id(row) for row in (*drawn.train, *drawn.validation)}
    return without_labels([row for row in data.train if id(row) not in known], data.label)


def without_labels(rows: Sequence[Row], label: str, most: int = MOST_UNLABELLED) -> list[Row]:
    """At most `most` of the rows, without their labels; of more so many are drawn: files may be sorted by class."""
    if len(rows) > most:
        rows = [rows[i] for i in sorted(random.Random("unlabelled").sample(range(len(rows)), most))]
    return [{name: value for name, value in row.items() if name != label} for row in rows]
