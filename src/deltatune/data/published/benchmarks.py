"""The metric of published data sets, known by the name of the source and by the shape of its rows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from deltatune.data.dataset import LabelKind


@dataclass(frozen=True)
class Benchmark:
    """How a published data set is scored."""

    metric: str
    kind: LabelKind
    texts: int
    """Number of text columns."""


BENCHMARKS = {
    # GLUE, Wang et al. 2019, table 1, https://arxiv.org/abs/1804.07461
    "cola": Benchmark("matthews", "classes", 1),
    "sst2": Benchmark("accuracy", "classes", 1),
    "mrpc": Benchmark("f1", "classes", 2),
    "qqp": Benchmark("f1", "classes", 2),
    "stsb": Benchmark("pearson", "number", 2),
    "mnli": Benchmark("accuracy", "classes", 2),
    "qnli": Benchmark("accuracy", "classes", 2),
    "rte": Benchmark("accuracy", "classes", 2),
    "wnli": Benchmark("accuracy", "classes", 2),
    # SuperGLUE, Wang et al. 2019, table 1, https://arxiv.org/abs/1905.00537
    "boolq": Benchmark("accuracy", "classes", 2),
    "cb": Benchmark("accuracy", "classes", 2),
    "copa": Benchmark("accuracy", "classes", 4),
    "multirc": Benchmark("f1", "classes", 3),
    "wic": Benchmark("accuracy", "classes", 3),
    "wsc": Benchmark("accuracy", "classes", 3),
}
"""Name -> how it is scored."""


def published_metric(source: str, kind: LabelKind, texts: int) -> str:
    """The metric of the data set that a source is named after; "" where there is none.

    `source` is a name such as `glue-cola` or `sts-b`; `texts` is the number of text columns.
    """
    names = names_in(source)
    for name, benchmark in BENCHMARKS.items():
        if name in names and benchmark.kind == kind and benchmark.texts == texts:
            return benchmark.metric
    return ""


def names_in(source: str) -> set[str]:
    """The names that the name of a source may hold, lower case and without hyphens: words, pairs of them, and all."""
    words = re.findall(r"[a-z]+|\d+", source.lower())
    return {*words, *map("".join, pairwise(words)), re.sub(r"[^a-z0-9]", "", source.lower())}
