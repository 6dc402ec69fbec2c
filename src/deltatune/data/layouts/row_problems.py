"""Faults of rows, gathered: one sentence for each kind of fault, with the numbers of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from deltatune.data.formats.files import some


@dataclass
class Faults:
    """What is wrong in the rows of one split."""

    where: str
    """The split."""
    found: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """(fault, fix) -> the rows that have it, counted from 1."""
    examples: dict[str, str] = field(default_factory=dict)
    """Fault -> what its first row looks like."""

    def add(self, number: int, fault: str, fix: str, example: str = "") -> None:
        """Row `number` has a fault; the fix and the example are said once."""
        self.found.setdefault((fault, fix), []).append(number)
        self.examples.setdefault(fault, example)

    def sentences(self) -> list[str]:
        """One for each fault: where, what, how many rows and which, an example, what to do."""
        return [
            f"{self.where}: {fault} in {in_rows(numbers)}{self._example(fault)}. {fix}"
            for (fault, fix), numbers in self.found.items()
        ]

    def _example(self, fault: str) -> str:
        return f": {self.examples[fault]}" if self.examples[fault] else ""


def in_rows(numbers: Sequence[int]) -> str:
    """ "1 row (7)" or "12 rows (3, 4, 9, 10, 17, and 7 more)"."""
    return f"{count(len(numbers), 'row')} ({some([str(number) for number in numbers])})"


def count(number: int, thing: str) -> str:
    """1 row, 2 rows."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def short(value: object, length: int = 60) -> str:
    """A value as Python writes it, cut where it is long."""
    shown = repr(value)
    return shown if len(shown) <= length else shown[: length - 4] + "..." + shown[-1]
