"""Continual learning: one adapter per task keeps earlier tasks unchanged, full fine-tuning forgets them.

    .venv/bin/python examples/continual.py                      the built-in data, its classes split into two tasks
    .venv/bin/python examples/continual.py sst2.csv trec.csv    your own tasks, in this order

For every task: its score right after training, its score after the last task, and the largest change of its logits.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from deltatune import Full, Host, parse
from deltatune.core.method import Method
from deltatune.data import Data, read
from deltatune.models.loading import load_backbone
from deltatune.tasks import Classify, Head
from deltatune.training import Settings, predict, train


@dataclass
class TaskData:
    """One task of the sequence, with its rows."""

    name: str
    task: Classify
    data: Data

    def score(self, logits: NDArray[np.float32]) -> float:
        references = [self.task.labels.index(str(row[self.task.label])) for row in self.data.validation]
        return self.task.score(logits, np.asarray(references))[self.task.metric]


def read_tasks(paths: list[str], limit: int) -> list[TaskData]:
    """The tasks of the given files, or the built-in data split into two tasks by class."""
    if paths:
        data_sets = [read(path, limit=limit) for path in paths]
    else:
        whole = read("python-docs")
        half = len(whole.labels) // 2
        data_sets = [of_classes(whole, labels, limit) for labels in (whole.labels[:half], whole.labels[half:])]
    names = [f"{number}. {data.name}" for number, data in enumerate(data_sets, 1)]
    tasks = [Classify(data.labels, data.text, data.label, max_length=128) for data in data_sets]
    return [TaskData(*fields) for fields in zip(names, tasks, data_sets, strict=True)]


def of_classes(data: Data, labels: tuple[str, ...], limit: int) -> Data:
    """The data set restricted to some classes."""
    train, validation = ([row for row in rows if row[data.label] in labels] for rows in (data.train, data.validation))
    name = f"{labels[0]} ... {labels[-1]}"
    return dataclasses.replace(data, name=name, labels=labels, train=train[:limit], validation=validation)


Result = tuple[str, float, float, float]
"""Task, score right after training, score at the end, largest change of a logit."""


def learn(model: str, method: Method, tasks: list[TaskData], epochs: int, separate: bool) -> list[Result]:
    """Train on one task after another: each `separate` from the base, or else starting from the weights of the last."""
    backbone, tokenizer = load_backbone(model)
    host = Host(backbone)
    settings = Settings(epochs=epochs, learning_rate=method.learning_rate)

    def logits(item: TaskData, number: int) -> NDArray[np.float32]:
        return predict(host, f"task{number}", item.task, item.data.validation, tokenizer)

    before = []
    for i, item in enumerate(tasks):
        host.attach(f"task{i}", method, head=Head(item.task.head_config(backbone.config)))
        if i and not separate:
            copy_weights_(host, f"task{i - 1}", f"task{i}")
        train(host, f"task{i}", item.task, item.data.train, None, tokenizer, settings)
        before.append(logits(item, i))
    if not separate:  # there is one model: all tasks run with the weights after the last one
        for i in range(len(tasks) - 1):
            copy_weights_(host, f"task{len(tasks) - 1}", f"task{i}")
    after = [logits(item, i) for i, item in enumerate(tasks)]
    return [
        (item.name, item.score(a), item.score(b), float(np.abs(a - b).max()))
        for item, a, b in zip(tasks, before, after, strict=True)
    ]


@torch.no_grad()
def copy_weights_(host: Host, source: str, target: str) -> None:
    """Copy the weights of one adapter into another, except its head."""
    values = dict(host.trainable(source))
    for name, parameter in host.trainable(target):
        if not name.startswith("head."):
            parameter.copy_(values[name])


def main() -> None:
    """Run both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help="files, one task each, learned in this order")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--method", default="LoRA()")
    parser.add_argument("--limit", type=int, default=600, help="training rows of each task")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    tasks = read_tasks(options.data, options.limit)
    print(f"{'':28}{'learned':>10}{'at the end':>12}{'logit change':>18}")
    for title, method, separate in (
        ("one adapter per task", parse(options.method), True),
        ("full fine-tuning", Full(), False),
    ):
        print(f"{title}: {method!r}")
        for name, before, after, change in learn(options.model, method, tasks, options.epochs, separate):
            print(f"  {name:26}{before:10.3f}{after:12.3f}{change:18.3g}")


if __name__ == "__main__":
    main()
