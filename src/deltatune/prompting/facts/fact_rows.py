"""Rows of facts: which columns hold subject, object and relation, and each fact once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.field_validation import shortened
from deltatune.tasks.row_columns import raise_listed
from deltatune.tasks.task import Row

NAMES = {
    "subject": ("subject", "sub_label", "sub", "head"),
    "object": ("object", "obj_label", "obj", "tail"),
    "relation": ("relation", "predicate_id", "predicate", "rel"),
}
"""What the columns are called in published data: the first of them that is there is taken."""


@dataclass(frozen=True)
class FactColumns:
    """Names of the columns."""

    subject: str = "subject"
    object: str = "object"
    relation: str | None = None
    """None where all rows are of one relation."""


@dataclass(frozen=True)
class FactRows:
    """Facts by relation, each subject and object once."""

    columns: FactColumns
    relations: dict[str, list[Row]]
    """Rows of each relation, with the columns of subject and object; "" is that of data without relations."""
    repeats: dict[str, int]
    """Rows of each relation that repeat the subject and the object of another one: they are not counted."""

    def objects(self, relation: str) -> list[str]:
        """The different objects of a relation, in order."""
        return list(dict.fromkeys(row[self.columns.object] for row in self.relations.get(relation, ())))

    def of(self, names: Sequence[str]) -> FactRows:
        """The facts of some relations. Raises DeltatuneError for names that are no relation."""
        if names and list(self.relations) == [""]:
            raise DeltatuneError(f"these data have no relations, so there is no {names[0]!r}; leave --relation out")
        raise_all([
            f"there is no relation {name!r}{nearest(name, self.relations)}; relations: {_some(list(self.relations))}"
            for name in names
            if name not in self.relations
        ])  # fmt: skip
        kept = list(dict.fromkeys(names)) or list(self.relations)
        return FactRows(self.columns, {r: self.relations[r] for r in kept}, {r: self.repeats[r] for r in kept})

    def shared(self, other: FactRows) -> FactRows:
        """The facts of the other's relations."""
        kept = {name: self.relations.get(name, []) for name in other.relations}
        return FactRows(self.columns, kept, {name: self.repeats.get(name, 0) for name in kept})

    def without(self, other: FactRows) -> tuple[FactRows, int]:
        """The facts that are not among the others, and how many were: rows to train on must not be those scored."""
        kept: dict[str, list[Row]] = {}
        known = {
            (relation, *self._key(row, other.columns)) for relation, rows in other.relations.items() for row in rows
        }
        for relation, rows in self.relations.items():
            kept[relation] = [row for row in rows if (relation, *self._key(row, self.columns)) not in known]
        dropped = sum(map(len, self.relations.values())) - sum(map(len, kept.values()))
        return FactRows(self.columns, kept, self.repeats), dropped

    @staticmethod
    def _key(row: Row, columns: FactColumns) -> tuple[str, str]:
        return row[columns.subject], row[columns.object]


def fact_columns(
    rows: Sequence[Row],
    where: str,
    subject: str | None = None,
    object: str | None = None,
    relation: str | None = None,
) -> FactColumns:
    """The columns of subject, object and relation: those that are named, else known names of published data.

    Without known names, two columns besides the relation's are subject and object, in this order. Raises DeltatuneError
    where a named column is missing and where nothing is known of the columns.
    """
    names = list(dict.fromkeys(name for row in rows[:100] for name in row))
    given = {"subject": subject, "object": object, "relation": relation}
    problems = [
        f"--{role} {name}: {where} has no such column{nearest(name, names)}; columns: {', '.join(names)}"
        for role, name in given.items()
        if name is not None and name not in names
    ]
    chosen = {role: given[role] or next((name for name in NAMES[role] if name in names), None) for role in given}
    others = [name for name in names if name not in chosen.values()]
    if chosen["subject"] is None and chosen["object"] is None and len(others) == 2:
        chosen["subject"], chosen["object"] = others
    problems += [
        f"{where} has no column of {role}s: name it with --{role}; columns: {', '.join(names)}"
        for role in ("subject", "object")
        if chosen[role] is None
    ]
    if not problems and chosen["subject"] == chosen["object"]:
        problems.append(f"--subject and --object are both {chosen['subject']!r}; they must be two columns")
    raise_all(problems)
    return FactColumns(str(chosen["subject"]), str(chosen["object"]), chosen["relation"])


def facts_of(rows: Sequence[Row], where: str, columns: FactColumns) -> FactRows:
    """The facts of rows. Raises DeltatuneError listing rows without a subject, an object or a relation."""
    if not rows:
        raise DeltatuneError(f"{where} has no rows")
    problems: list[str] = []
    relations: dict[str, list[Row]] = {}
    repeats: dict[str, int] = {}
    seen: set[tuple[str, str, str]] = set()
    for number, row in enumerate(rows, 1):
        subject, answer = (_word(row, name, number, problems) for name in (columns.subject, columns.object))
        relation = "" if columns.relation is None else _word(row, columns.relation, number, problems)
        relations.setdefault(relation, [])
        repeats.setdefault(relation, 0)
        if (relation, subject, answer) in seen:
            repeats[relation] += 1
            continue
        seen.add((relation, subject, answer))
        relations[relation].append({columns.subject: subject, columns.object: answer})
    raise_listed([f"{where} {problem}" for problem in problems])
    return FactRows(columns, relations, repeats)


def _word(row: Mapping[str, Any], name: str, number: int, problems: list[str]) -> str:
    """The text in a column; numbers, such as years, are texts here."""
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        problems.append(f"row {number} has {shortened(value)} in column {name!r}, not a text")
        return ""
    return value.strip()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
