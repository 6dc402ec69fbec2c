"""Prompts for texts as answers: the columns up to where the answer begins, and nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.method import Method
from deltatune.prompting.choose_prompts import PromptOptions
from deltatune.tasks.generation import Generate
from deltatune.tasks.in_context_generation import GenerateInContext
from deltatune.tasks.prompts.prompt_encoding import CHAT_COLUMN
from deltatune.tasks.prompts.prompt_format import PRESETS, check_template
from deltatune.tasks.task import Task


def writes_texts(task: Task) -> bool:
    """Whether a task's answers are generated texts."""
    return isinstance(task, Generate)


def text_prompt(
    method: Method, task: Task, options: PromptOptions, template: str, for_classes: Mapping[str, Any], **more: Any
) -> GenerateInContext:
    """The task through a prompt alone: with this template, else that of the options, else the task's own prompt.

    for_classes: fields of the method that texts do not have, with what must be left; `more` sets fields of the result.
    Raises DeltatuneError for those and for options of classes, and for a template that does not fit the columns.
    """
    assert isinstance(task, Generate)
    given = [f"{name}={getattr(method, name)!r}" for name, left in for_classes.items() if getattr(method, name) != left]
    given += [f"--{name}" for name in ("words", "describe") if getattr(options, name)]
    if given:
        raise DeltatuneError(
            f"{method!r}: {', '.join(given)} {'is' if len(given) == 1 else 'are'} for one class a row, and these "
            "answers are texts; leave it out"
        )
    prompt = template or options.template or task.prompt
    if prompt not in PRESETS:
        raise_all(template_problems(prompt, task.text))
    own = {field.name: getattr(task, field.name) for field in fields(Generate)}
    return GenerateInContext(**{**own, "prompt": prompt, **more})


def template_problems(template: str, columns: tuple[str, ...]) -> list[str]:
    """What is wrong with a template for texts as answers."""
    if CHAT_COLUMN in columns:
        return ["a template is for columns of texts, and these rows are conversations; leave it out"]
    if "{mask}" in template and "mask" not in columns:
        return [
            f"the template {template!r} has a blank; for answers as texts it ends where they begin: leave {{mask}} out"
        ]
    return check_template(template, columns)


def shown_prompt(task: GenerateInContext) -> str:
    """A prompt for people, its columns in braces."""
    if CHAT_COLUMN in task.text:
        return f"{{{CHAT_COLUMN}}}"
    names = {name: f"{{{name}}}" for name in task.text}
    return task.in_front(task.demonstrations) + (task.prompt if task.prompt not in PRESETS else task.question(names))
