"""Everything that is to be said of data, by their kind."""

from __future__ import annotations

from deltatune.data.checks import classification_checks as classes
from deltatune.data.checks import common_checks as common
from deltatune.data.checks import qa_checks as asked
from deltatune.data.checks import tagging_checks as tagged
from deltatune.data.checks import text_checks as texts
from deltatune.data.layouts.layout_registry import SHAPES
from deltatune.data.splits import Data

LABELLED = ("classes", "number", "many")

OF_KIND = {"tags": tagged, "span": asked, "text": texts, "raw": texts}


def problems(data: Data) -> list[str]:
    """Everything that makes training or scoring on `data` impossible or meaningless, one sentence each."""
    if data.kind in LABELLED:
        return classes.problems(data)
    shape = SHAPES[data.task]
    shaped = [shape(rows, split, data.text, data.label or None) for split, rows in data.splits().items()]
    wrong = [problem for found in shaped for problem in found.problems]
    few = common.too_few(data, 1 if data.kind == "raw" else common.FEWEST_ROWS)
    return wrong + few + ([] if wrong else OF_KIND[data.kind].problems(data))


def remarks(data: Data) -> list[str]:
    """What makes a score on `data` mean less than it seems, one sentence each. `data` must be without problems."""
    found = common.repeated(data) + common.duplicates(data)
    if data.kind in LABELLED:
        found += classes.remarks(data)
    else:
        found += OF_KIND[data.kind].remarks(data) + (common.short_splits(data) if data.kind != "raw" else [])
    return found + common.odd_characters(data)
