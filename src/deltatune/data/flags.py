"""Several classes a row as a column for each, with 1 where the row has it: `--label toxic,obscene,threat`."""

from __future__ import annotations

from collections.abc import Sequence

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.data.columns import is_id, names_of
from deltatune.data.formats import Row, some

VALUES = {"1": True, "1.0": True, "true": True, "yes": True, "0": False, "0.0": False, "false": False, "no": False}
BETWEEN = ","


def flag_columns(rows: Sequence[Row], label: str | None) -> list[str]:
    """The columns that a label stands for, where it is several names with commas between them; else none.

    Raises DeltatuneError where some of the names are columns and others are not.
    """
    names = names_of(rows)
    if label is None or BETWEEN not in label or label in names:
        return []
    wanted = [name.strip() for name in label.split(BETWEEN) if name.strip()]
    missing = [name for name in wanted if name not in names]
    if len(missing) == len(wanted):
        return []
    raise_all([f"--label {label}: there is no column {name!r}{nearest(name, names) or '.'}" for name in missing])
    return list(dict.fromkeys(wanted))


def gathered(rows: Sequence[Row], columns: Sequence[str], label: str, split: str) -> list[Row]:
    """The rows with the names of the columns that are 1 as a list under `label`, in place of those columns.

    Raises DeltatuneError for other values than 0 and 1, true and false, yes and no.
    """
    found, wrong = [], []
    for i, row in enumerate(rows, start=1):
        values = {name: VALUES.get(str(row.get(name)).strip().lower()) for name in columns}
        wrong += [f"row {i}: {name} is {row.get(name)!r}" for name, value in values.items() if value is None]
        others = {name: value for name, value in row.items() if name not in values}
        found.append({**others, label: [name for name, value in values.items() if value]})
    if wrong:
        raise DeltatuneError(f"{split}: {some(wrong)}. A column for a class holds 1 or 0, true or false, yes or no.")
    return found


def gathered_where_asked(rows: Sequence[Row], label: str | None, split: str) -> list[Row]:
    """The rows, gathered where the label is several columns."""
    columns = flag_columns(rows, label)
    return gathered(rows, columns, str(label), split) if columns else list(rows)


def option(rows: Sequence[Row], text: Sequence[str]) -> str:
    """What to add to an error on unclear labels: that several columns may be meant, where there are such."""
    names = [name for name in names_of(rows) if name not in text and not is_id(name)]
    flags = [name for name in names if {str(row.get(name)).strip().lower() for row in rows} <= VALUES.keys()]
    return f"A column for each class, several a row: --label {BETWEEN.join(flags)}" if len(flags) > 1 else ""
