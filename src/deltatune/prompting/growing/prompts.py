"""The prompts: tasks as examples, then the beginning of the one to write. All end where the model goes on."""

from __future__ import annotations

from collections.abc import Sequence

from deltatune.prompting.growing.seeds import Example, Task

NO_INPUT = "(none)"
"""Stands where a task needs no input."""
BREAK = "###"
"""Stands between tasks that are written whole."""

LIST = """\
Go on with this list of tasks for a language assistant, one line a task. No two of them ask for the same kind of work \
or use the same words; questions and orders are both welcome.

"""
WHOLE = """\
Go on with this list of tasks for a language assistant, in the same form, up to number {last}.
- Every task asks for another kind of work, in other words: writing, sorting, changing, explaining, deciding and so on.
- The instruction is one or two sentences, an order or a question, and can be done with text alone.
- The input is one real example of what the instruction speaks of, never a placeholder. Where nothing needs to be \
given it is {none}.
- The output is a good and complete answer of at most 100 words.

"""
KIND = """\
A classification task is one whose answer is one of a few labels known beforehand. For each task, say whether it is one.

"""
INPUT_FIRST = """\
Write examples of tasks: an input and its output. Where a task needs no input, write the output alone.

"""
OUTPUT_FIRST = """\
Write examples of classification tasks, at least one for each label: first the label, then an input that has it.

"""


def for_instructions(shown: Sequence[Task]) -> str:
    """A numbered list of instructions to go on with."""
    lines = [f"{number}. {plain(task)}\n" for number, task in enumerate(shown, 1)]
    return f"{LIST}{''.join(lines)}{len(shown) + 1}."


def for_whole_tasks(shown: Sequence[Task], new: int) -> str:
    """A numbered list of instructions with input and output to go on with."""
    head = WHOLE.format(last=len(shown) + new, none=NO_INPUT)
    blocks = [
        f"Task {number}\nInstruction: {plain(task)}\nInput: {task.example.input or NO_INPUT}\n"
        f"Output: {task.example.output}\n{BREAK}\n"
        for number, task in enumerate(shown, 1)
    ]
    return f"{head}{''.join(blocks)}Task {len(shown) + 1}\nInstruction:"


def for_kind(instruction: str, shown: Sequence[Task]) -> str:
    """Asks whether a task is classification: the answer is Yes or No."""
    cases = [
        f"Task: {plain(task)}\nIs it classification? {'Yes' if task.classification else 'No'}\n\n" for task in shown
    ]
    return f"{KIND}{''.join(cases)}Task: {instruction}\nIs it classification?"


def for_examples(instruction: str, shown: Sequence[tuple[Task, Sequence[Example]]]) -> str:
    """Asks for examples of a task, the input first."""
    cases = [
        f"Task: {plain(task)}\n{''.join(_numbered(n, one) for n, one in enumerate(examples, 1))}\n"
        for task, examples in shown
    ]
    return f"{INPUT_FIRST}{''.join(cases)}Task: {instruction}\nExample 1\n"


def for_labelled_examples(instruction: str, shown: Sequence[tuple[Task, Sequence[Example]]]) -> str:
    """Asks for examples of a classification task, the label first, so that not all inputs have the same one."""
    cases = [f"Task: {plain(task)}\n{''.join(map(_labelled, examples))}\n" for task, examples in shown]
    return f"{OUTPUT_FIRST}{''.join(cases)}Task: {instruction}\nLabel:"


def plain(task: Task) -> str:
    """The instruction on one line, without the colon before an input."""
    return " ".join(task.instruction.split()).rstrip(":")


def _numbered(number: int, example: Example) -> str:
    given = f"Input: {example.input}\n" if example.input else ""
    return f"Example {number}\n{given}Output: {example.output}\n"


def _labelled(example: Example) -> str:
    given = f"Input: {example.input}\n" if example.input else ""
    return f"Label: {example.output}\n{given}"
