"""Kinds of data and the tasks they are for."""

from __future__ import annotations

from typing import Literal, get_args

Kind = Literal["classes", "number", "many", "tags", "span", "text", "raw"]
"""What a row's answer is: one class, a number, any number of classes, a tag a word, a piece of the context, a text, or
nothing, where the text itself is learned."""

Task = Literal["classify", "regression", "tag", "span", "generate", "lm"]
"""What is asked of a model."""

TASKS: tuple[Task, ...] = get_args(Task)

TASK_OF: dict[Kind, Task] = {
    "classes": "classify",
    "many": "classify",
    "number": "regression",
    "tags": "tag",
    "span": "span",
    "text": "generate",
    "raw": "lm",
}
"""The task a kind of data is for."""
