"""Learn tasks one after another: with adapters nothing learned before changes, with full fine-tuning it is forgotten.

    .venv/bin/python examples/continual.py                      the built-in data, its classes split into two tasks
    .venv/bin/python examples/continual.py sst2.csv trec.csv    your own tasks, in this order

For every task: its score right after it was learned, its score after the last task, and by how much its logits moved.
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
class Lesson:
    """One task of the sequence, with its rows."""

    name: str
    task: Classify
    data: Data

    def score(self, logits: NDArray[np.float32]) -> float:
        references = [self.task.labels.index(str(row[self.task.label])) for row in self.data.validation]
        return self.task.score(logits, np.asarray(references))[self.task.metric]


def lessons(paths: list[str], limit: int) -> list[Lesson]:
    """The tasks of the given files, or the built-in one cut into two by its classes."""
    if paths:
        found = [read(path, limit=limit) for path in paths]
    else:
        whole = read("python-docs")
        half = len(whole.labels) // 2
        found = [of_classes(whole, labels, limit) for labels in (whole.labels[:half], whole.labels[half:])]
    names = [f"{number}. {data.name}" for number, data in enumerate(found, 1)]
    tasks = [Classify(data.labels, data.text, data.label, max_length=128) for data in found]
    return [Lesson(*each) for each in zip(names, tasks, found, strict=True)]


def of_classes(data: Data, labels: tuple[str, ...], limit: int) -> Data:
    """The rows of some classes."""
    train, validation = ([row for row in rows if row[data.label] in labels] for rows in (data.train, data.validation))
    name = f"{labels[0]} ... {labels[-1]}"
    return dataclasses.replace(data, name=name, labels=labels, train=train[:limit], validation=validation)


Result = tuple[str, float, float, float]
"""Task, score when learned, score at the end, largest change of a logit."""


def learn(model: str, method: Method, tasks: list[Lesson], epochs: int, keep: bool) -> list[Result]:
    """Train on one task after another; with `keep` each from the same base, else from what the last one left."""
    backbone, tokenizer = load_backbone(model)
    host = Host(backbone)
    settings = Settings(epochs=epochs, learning_rate=method.learning_rate)

    def logits(lesson: Lesson, number: int) -> NDArray[np.float32]:
        return predict(host, f"task{number}", lesson.task, lesson.data.validation, tokenizer)

    then = []
    for i, lesson in enumerate(tasks):
        host.attach(f"task{i}", method, head=Head(lesson.task.head_config(backbone.config)))
        if i and not keep:
            carry_over_(host, f"task{i - 1}", f"task{i}")
        train(host, f"task{i}", lesson.task, lesson.data.train, None, tokenizer, settings)
        then.append(logits(lesson, i))
    if not keep:  # there is one model: all tasks run on the weights that the last one left
        for i in range(len(tasks) - 1):
            carry_over_(host, f"task{len(tasks) - 1}", f"task{i}")
    now = [logits(lesson, i) for i, lesson in enumerate(tasks)]
    return [
        (lesson.name, lesson.score(a), lesson.score(b), float(np.abs(a - b).max()))
        for lesson, a, b in zip(tasks, then, now, strict=True)
    ]


@torch.no_grad()
def carry_over_(host: Host, source: str, target: str) -> None:
    """Give one adapter another's weights, its head aside."""
    values = dict(host.trainable(source))
    for name, parameter in host.trainable(target):
        if not name.startswith("head."):
            parameter.copy_(values[name])


def main() -> None:
    """Run both ways and print them side by side."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", nargs="*", help="files with a task each, learned in this order")
    options.add_argument("--model", default="builtin")
    options.add_argument("--method", default="LoRA()")
    options.add_argument("--limit", type=int, default=600, help="training rows of each task")
    options.add_argument("--epochs", type=int, default=2)
    given = options.parse_args()
    tasks = lessons(given.data, given.limit)
    print(f"{'':28}{'learned':>10}{'at the end':>12}{'logits moved by':>18}")
    for title, method, keep in (("an adapter a task", parse(given.method), True), ("full fine-tuning", Full(), False)):
        print(f"{title}: {method!r}")
        for name, before, after, moved in learn(given.model, method, tasks, given.epochs, keep):
            print(f"  {name:26}{before:10.3f}{after:12.3f}{moved:18.3g}")


if __name__ == "__main__":
    main()
