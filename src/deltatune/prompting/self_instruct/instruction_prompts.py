"""The prompts: tasks as examples, then the beginning of the one to write. All end where the model goes on."""

from __future__ import annotations

import re
from collections.abc import Sequence

from deltatune.prompting.endpoints.endpoint import Truncated
from deltatune.prompting.self_instruct.seed_tasks import Example, Task

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


NUMBER = re.compile(r"(?:^|\n)[ \t]*(?:Task[ \t]+)?(\d+)[ \t]*[.):][ \t]+")
TASK = re.compile(r"(?:^|\n)[ \t#*]*Task[ \t]+\d+[ \t*]*:?[ \t]*(?=\n|$)")
FIELDS = re.compile(
    r"\A(?:.*?\n)?\s*(?:\d+\.\s*)?Instruction:(.*?)\n\s*(?:\d+\.\s*)?Input:(.*?)\n\s*(?:\d+\.\s*)?Output:(.*)\Z",
    re.DOTALL | re.IGNORECASE,
)
ABSENT = {"", "(none)", "none", "<noinput>", "noinput", "n/a", "-"}
"""Ways of writing that there is no input."""
NEXT_TASK = re.compile(r"\n\s*Task:")
EXAMPLE = re.compile(r"(?:^|\n)[ \t]*Example[ \t]*\d+[ \t]*[.:]?[ \t]*(?=\n|Input|Output)")
OUTPUT = re.compile(r"(?:^|\n)[ \t]*Output[ \t]*:", re.IGNORECASE)
INPUT = re.compile(r"(?:^|\n)[ \t]*Input[ \t]*:", re.IGNORECASE)
LABEL = re.compile(r"(?:^|\n)[ \t]*Label[ \t]*:", re.IGNORECASE)


def instructions(text: str, first: int, new: int) -> tuple[list[str], str | None]:
    """Up to `new` instructions of a list that goes on with number `first`, and the last one if it was cut off."""
    pieces = NUMBER.split(text)
    numbers = pieces[1::2]
    found = [pieces[0]]
    if str(first) in numbers or numbers[:1] == ["1"]:  # said again, or begun anew: what stands before it is no task
        pieces = pieces[2 * numbers.index(str(first)) :] if str(first) in numbers else pieces
        found = []
    found += [piece for number, piece in zip(pieces[1::2], pieces[2::2], strict=True) if int(number) < first + new]
    lines = [_line(piece) for piece in found]
    ended = any(int(number) >= first + new for number in pieces[1::2]) or _goes_on(found[-1] if found else "")
    cut = lines.pop() if isinstance(text, Truncated) and lines and not ended else None
    return [line for line in lines if line][:new], cut


def _line(piece: str) -> str:
    """An instruction on one line, up to a blank one: what follows that is another text."""
    line = " ".join(piece.strip().split("\n\n")[0].split())
    return line[:1].upper() + line[1:]


def _goes_on(piece: str) -> bool:
    return "\n\n" in piece.strip()


def whole_tasks(text: str, new: int) -> tuple[list[tuple[str, Example] | str], str | None]:
    """Up to `new` tasks, or the text of one that is not in the form, and the last one if it was cut off."""
    pieces = [piece for block in text.split(BREAK) for piece in TASK.split(block) if piece.strip()]
    cut = pieces.pop().strip() if isinstance(text, Truncated) and pieces else None
    found: list[tuple[str, Example] | str] = []
    for number, piece in enumerate(pieces[:new]):
        # the prompt ends with the first one's "Instruction:"
        whole = piece if number or re.search(r"Instruction:", piece, re.IGNORECASE) else f"Instruction:{piece}"
        fields = FIELDS.match(whole)
        found.append(_whole_task(*fields.groups()) if fields else piece.strip())
    return found, cut


def _whole_task(instruction: str, given: str, answer: str) -> tuple[str, Example]:
    return " ".join(instruction.split()), Example(_given(given), answer.strip())


def _given(text: str) -> str:
    return "" if text.strip().lower() in ABSENT else text.strip()


def is_yes(text: str) -> bool:
    """Whether the answer to the question of classification is yes; anything else is no, as in Self-Instruct."""
    return text.strip().lower().startswith("yes")


def examples(text: str, most: int) -> tuple[list[Example], bool]:
    """Up to `most` examples, input first, and whether the last one was cut off (it is left out)."""
    own = NEXT_TASK.split(f"\n{text}")[0]
    if not OUTPUT.search(own):
        return [], isinstance(text, Truncated)
    pieces = [piece for piece in EXAMPLE.split(own) if piece.strip()]
    cut = isinstance(text, Truncated) and own == f"\n{text}" and len(pieces) <= most
    found = [_example(piece) for piece in (pieces[:-1] if cut else pieces)[:most]]
    return found, cut


def _example(piece: str) -> Example:
    """Input and output; without the word Output all of it is the output, as in Self-Instruct."""
    given, *answers = OUTPUT.split(piece)
    if not answers:
        return Example("", INPUT.sub("", piece).strip())
    return Example(_given(INPUT.sub("", given, count=1)), INPUT.split(answers[0])[0].strip())


def labelled_examples(text: str, most: int) -> tuple[list[Example], bool]:
    """Up to `most` examples, label first, and whether the last one was cut off (it is left out)."""
    own = NEXT_TASK.split(f"\n{text}")[0]
    pieces = [piece for piece in LABEL.split(own) if piece.strip()]
    cut = isinstance(text, Truncated) and own == f"\n{text}" and len(pieces) <= most
    return [_labelled_parts(piece.strip()) for piece in (pieces[:-1] if cut else pieces)[:most]], cut


def _labelled_parts(piece: str) -> Example:
    label, _, given = piece.partition("\n")
    return Example(_given(INPUT.sub("", given, count=1)), label.strip())
