"""Continual learning from Python: which methods forget earlier tasks, and how much? As `deltatune continual` does.

.venv/bin/python examples/continual.py sst2.csv trec.csv    your own tasks, in this order
.venv/bin/python examples/continual.py                      the built-in data, its classes split into two tasks
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from deltatune.cli.commands.continual import report
from deltatune.comparison.continual.continual_plan import make_plan
from deltatune.comparison.continual.continual_run import run
from deltatune.data import Data, read
from deltatune.data.mixture_data import MixtureData, mix
from deltatune.training import Settings


def tasks_of(paths: list[str], limit: int) -> MixtureData:
    """A task for each file, or the two halves of the built-in data's classes."""
    if paths:
        return mix({Path(path).stem: read(path, limit=limit) for path in paths})
    whole = read("python-docs", limit=2 * limit)
    half = len(whole.labels) // 2
    return mix({"first": of_classes(whole, whole.labels[:half]), "second": of_classes(whole, whole.labels[half:])})


def of_classes(data: Data, labels: tuple[str, ...]) -> Data:
    """The rows of some classes."""
    splits = {split: [row for row in rows if row[data.label] in labels] for split, rows in data.splits().items()}
    return replace(data, labels=labels, **splits)


def main() -> None:
    """Train and print a table for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help="files, one task each, learned in this order")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--method", nargs="+", default=["LoRA(r=8)", "Full()"])
    parser.add_argument("--limit", type=int, default=300, help="training rows of each task")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--out", default="runs/continual-example")
    options = parser.parse_args()
    tasks = tasks_of(options.data, options.limit)
    plan = make_plan(
        tasks, model=options.model, methods=options.method, settings=Settings(epochs=options.epochs), out=options.out
    )
    report(run(plan, lambda text, scores: print(text, scores)))


if __name__ == "__main__":
    main()
