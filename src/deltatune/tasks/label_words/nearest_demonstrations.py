"""Demonstrations that each row has of its own: training rows with similar texts.

Liu et al. 2022, https://arxiv.org/abs/2101.06804 (the nearest ones); Gao et al. 2021, https://arxiv.org/abs/2012.15723
(one of each class, drawn from its most similar half)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.field_validation import shortened
from deltatune.data.dataset import as_text
from deltatune.tasks.label_words.content_free_scores import log_content_free
from deltatune.tasks.label_words.label_words import DEMONSTRATIONS, LabelWords
from deltatune.tasks.row_columns import raise_listed
from deltatune.tasks.task import Encoded, Row, TokenRow

TextVectors = Callable[[Sequence[str], bool], NDArray[Any]]
"""Vectors of length 1 of N texts, (N, D); True where these texts will be asked for again."""
NearestOrder = Literal["nearest-last", "nearest-first", "by-class", "random"]
REDRAW = "redraw"
"""What makes another version of an encoded training row, in the row itself."""
SIMILAR_SHARE = 0.5
"""Share of each class's rows that are similar enough to be drawn (Gao et al. 2021, section 6.2)."""


@dataclass(frozen=True)
class NearestDemonstrations(LabelWords):
    """Label words behind demonstrations that are chosen for each row, out of a pool that the task holds.

    A row's own text is never shown to it.
    """

    name: ClassVar[str] = "nearest-demonstrations"
    dynamic: ClassVar[bool] = True

    pool: tuple[tuple[str, str, str], ...] = ()
    """What may be shown: for each training row its filled template, its class, and the text that is compared."""
    select: Literal["nearest", "similar"] = "nearest"
    """`nearest`: the rows with the most similar texts; `similar`: one of each class, out of its most similar half."""
    shots: int = 4
    """Demonstrations of each row, for `nearest`."""
    sets: int = 1
    """Draws for each row, whose scores are averaged, for `similar`."""
    order: NearestOrder = "nearest-last"
    """Order in which they are shown, the first the furthest from the row's own text."""
    encoder: str = ""
    """Folder of the model that compares the texts; "" for the model itself."""
    content_free: tuple[str, ...] = ()
    """Inputs without content whose scores are divided out, for each row behind its own demonstrations."""
    seed: int = 0
    """Random seed of draws; they depend on it and on the row's text alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        known = set(self.labels)
        problems = [
            f"the pool has the class {label!r}, which is not a label"
            for label in dict.fromkeys(each[1] for each in self.pool)
            if label not in known
        ]
        problems += [f"{name} must be at least 1" for name in ("shots", "sets") if getattr(self, name) < 1]
        if self.demonstrations or self.calibration:
            problems.append("demonstrations and calibration are for rows that share them; here each row has its own")
        if self.more_templates:
            problems.append("more_templates: demonstrations of each row's own are in one template")
        if not self.pool:
            problems.append("the pool is empty, so there is nothing to show")
        elif self.select == "nearest" and self.shots >= len(self.pool):
            problems.append(
                f"shots={self.shots} of a pool of {len(self.pool)} rows: there must be more rows than shots, since a "
                "row is not shown to itself"
            )
        raise_all(problems)

    @property
    def compares_texts(self) -> bool:
        return True

    @property
    def prompts(self) -> int:
        """Sets of demonstrations of a row."""
        return self.sets

    # --- the choice of demonstrations ---

    def compared_text(self, row: Row) -> str:
        """The text of a row by which it is compared."""
        return compared_text(row, self.text)

    def with_demonstrations(self, rows: Sequence[Row], vectors: TextVectors) -> list[Row]:
        """The rows with the column of their demonstrations; rows that have one keep it."""
        chosen = iter(self.choices([row for row in rows if DEMONSTRATIONS not in row], vectors))
        result: list[Row] = []
        for row in rows:
            if DEMONSTRATIONS in row:
                result.append(row)
                continue
            ranked, text = next(chosen), self.compared_text(row)
            generators = (generator_for(self.seed, f"demonstrations.{number}.{text}") for number in range(self.sets))
            result.append({**row, DEMONSTRATIONS: [self.shown(ranked, generator) for generator in generators]})
        return result

    def choices(self, rows: Sequence[Row], vectors: TextVectors) -> list[list[int]]:
        """For each row the numbers in the pool of what may be shown to it, the nearest first.

        Those are all but the row's own text for `nearest`, and each class's most similar half for `similar`.
        """
        if not rows:
            return []
        all_ranked = ranked_texts([self.compared_text(row) for row in rows], [each[2] for each in self.pool], vectors)
        if self.select == "nearest":
            return all_ranked
        by_class = [{i for i, each in enumerate(self.pool) if each[1] == label} for label in self.labels]
        result = []
        for ranked in all_ranked:
            kept: set[int] = set()
            for members in by_class:
                near = [i for i in ranked if i in members]
                kept.update(near[: math.ceil(len(near) * SIMILAR_SHARE)])
            result.append([i for i in ranked if i in kept])
        return result

    def shown(self, ranked: Sequence[int], generator: torch.Generator) -> list[str]:
        """The demonstrations of one row, of numbers in the pool with the nearest first, in the order of the task."""
        if self.select == "nearest":
            numbers = list(ranked[: self.shots])
        else:
            of_classes = [[i for i in ranked if self.pool[i][1] == label] for label in self.labels]
            drawn = [
                of_class[int(torch.randint(len(of_class), (), generator=generator))]
                for of_class in of_classes
                if of_class
            ]
            numbers = sorted(drawn, key=ranked.index)
        if self.order == "nearest-last":
            numbers.reverse()
        elif self.order == "by-class":
            numbers.sort(key=lambda i: self.labels.index(self.pool[i][1]))
        elif self.order == "random":
            numbers = [numbers[i] for i in torch.randperm(len(numbers), generator=generator)]
        return [self.pool[i][0] for i in numbers]

    # --- rows to tokens, logits to answers ---

    def encode(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        *,
        positions: int | None = None,
        positions_taken: int = 0,
        labelled: bool = True,
        joined: bool = True,
    ) -> Encoded:
        """Encode rows that have their demonstrations (`with_demonstrations`); `content_free` inputs follow each row.

        Raises DeltatuneError for rows without demonstrations, and what `LabelWords.encode` refuses.
        """
        raise_listed(
            [f"row {i} has no demonstrations" for i, row in enumerate(rows) if DEMONSTRATIONS not in row],
            "demonstrations of each row's own are chosen with the model: encode the rows with Session.encode",
        )
        given: dict[str, Any] = {
            "positions": positions, "positions_taken": positions_taken, "labelled": labelled, "joined": joined
        }  # fmt: skip
        encoded = super().encode(rows, tokenizer, **given)  # what it counts and names are the rows themselves
        if not (self.content_free and rows):
            return encoded
        free = [dict.fromkeys(self.text, text) for text in self.content_free]
        others = super().encode([{**row, **texts} for row in rows for texts in free], tokenizer, **given)
        sets = len(encoded) // len(rows)
        per_row = sets * len(free)
        versions = [
            version
            for i in range(len(rows))
            for version in (*encoded.rows[i * sets :][:sets], *others.rows[i * per_row :][:per_row])
        ]
        references: Any = np.asarray(self._labels(rows)) if labelled else None
        owners = [i for i in range(len(rows)) for _ in range(sets + per_row)]
        return Encoded(versions, encoded.truncated, owners, [None] * len(rows), references, notes=encoded.notes)

    def _demonstration_sets(self, rows: Sequence[Row]) -> list[tuple[tuple[str, ...], ...]]:
        """The sets of each row, which have a list of texts each."""
        problems: list[str] = []
        sets: list[tuple[tuple[str, ...], ...]] = []
        for i, row in enumerate(rows):
            own = row[DEMONSTRATIONS]
            if _is_texts(own):
                sets.append((tuple(own),))
            elif isinstance(own, (list, tuple)) and own and all(map(_is_texts, own)):
                sets.append(tuple(map(tuple, own)))
            else:
                problems.append(f"row {i}: {DEMONSTRATIONS} is {shortened(own)}; it must be texts, or sets of them")
        raise_listed(problems)
        if len(set(map(len, sets))) > 1:
            raise DeltatuneError(f"rows must have as many sets of {DEMONSTRATIONS} each")
        return sets

    def draw(self, row: TokenRow, generator: torch.Generator) -> TokenRow:
        """Another version of a training row, with demonstrations drawn anew; other rows stay as they are."""
        redraw: Callable[[torch.Generator], TokenRow] | None = row.get(REDRAW)
        return row if redraw is None else redraw(generator)

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> NDArray[Any]:
        """Log-probabilities of the classes (N, C), calibrated for each set of each row, and averaged over the sets."""
        if not self.content_free or not len(pieces):
            return super().collect(pieces, encoded)
        versions = 1 + len(self.content_free)
        logits = np.stack(pieces).reshape(encoded.examples, versions, -1, self.outputs)
        free = log_content_free(logits[:, 1:].swapaxes(0, 1), self.scoring).astype(logits.dtype)  # (N, S, C)
        return super().collect(list((logits[:, 0] - free).reshape(-1, self.outputs)), encoded)

    def describe(self) -> str:
        """One sentence."""
        own = f"{self.shots} nearest" if self.select == "nearest" else "one similar of each class"
        return f"{super().describe()}, after demonstrations of each row's own ({own} of {len(self.pool)})"


def compared_text(row: Row, columns: Sequence[str]) -> str:
    """The text of a row by which it is compared: its columns, one a line."""
    return "\n".join(as_text(row.get(name, "")).strip() for name in columns)


def ranked_texts(texts: Sequence[str], pool: Sequence[str], vectors: TextVectors) -> list[list[int]]:
    """For each text the numbers of the pool's texts, the most similar first; the same text is never among them."""
    similarity = vectors(texts, False) @ vectors(pool, True).T  # (N, P)
    own = [_plain(text) for text in pool]
    return [
        [int(i) for i in np.argsort(-of_text, kind="stable") if own[i] != _plain(text)]
        for text, of_text in zip(texts, similarity, strict=True)
    ]


def _plain(text: str) -> str:
    """A text without case and blanks: the same text in another form gives the answer away too."""
    return "".join(text.casefold().split())


def _is_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value)
