"""Prompts of Self-Instruct, and parsers of the answers. A prompt shows tasks and ends where the model continues."""

from __future__ import annotations

import re
from collections.abc import Sequence

from deltatune.prompting.endpoints.endpoint import Truncated
from deltatune.prompting.self_instruct.seed_tasks import InstructionExample, InstructionTask

NO_INPUT = "(none)"
"""Input of a task that needs none."""
BREAK = "###"
"""Separator between whole tasks."""

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


def for_instructions(shown: Sequence[InstructionTask]) -> str:
    """Prompt for new instructions: a numbered list to continue."""
    lines = [f"{number}. {one_line(task)}\n" for number, task in enumerate(shown, 1)]
    return f"{LIST}{''.join(lines)}{len(shown) + 1}."


def for_whole_tasks(shown: Sequence[InstructionTask], new: int) -> str:
    """Prompt for whole tasks: a numbered list of instructions with input and output to continue."""
    head = WHOLE.format(last=len(shown) + new, none=NO_INPUT)
    blocks = [
        f"Task {number}\nInstruction: {one_line(task)}\nInput: {task.example.input or NO_INPUT}\n"
        f"Output: {task.example.output}\n{BREAK}\n"
        for number, task in enumerate(shown, 1)
    ]
    return f"{head}{''.join(blocks)}Task {len(shown) + 1}\nInstruction:"


def for_kind(instruction: str, shown: Sequence[InstructionTask]) -> str:
    """Prompt for the kind of a task: whether it is classification, Yes or No."""
    cases = [
        f"Task: {one_line(task)}\nIs it classification? {'Yes' if task.classification else 'No'}\n\n" for task in shown
    ]
    return f"{KIND}{''.join(cases)}Task: {instruction}\nIs it classification?"


def for_examples(instruction: str, shown: Sequence[tuple[InstructionTask, Sequence[InstructionExample]]]) -> str:
    """Prompt for examples of a task, the input first."""
    cases = [
        f"Task: {one_line(task)}\n{''.join(_numbered(n, example) for n, example in enumerate(examples, 1))}\n"
        for task, examples in shown
    ]
    return f"{INPUT_FIRST}{''.join(cases)}Task: {instruction}\nExample 1\n"


def for_labelled_examples(
    instruction: str, shown: Sequence[tuple[InstructionTask, Sequence[InstructionExample]]]
) -> str:
    """Prompt for examples of a classification task, the label first, so that labels differ."""
    cases = [f"Task: {one_line(task)}\n{''.join(map(_labelled, examples))}\n" for task, examples in shown]
    return f"{OUTPUT_FIRST}{''.join(cases)}Task: {instruction}\nLabel:"


def one_line(task: InstructionTask) -> str:
    """The instruction on one line, without a final colon."""
    return " ".join(task.instruction.split()).rstrip(":")


def _numbered(number: int, example: InstructionExample) -> str:
    input_line = f"Input: {example.input}\n" if example.input else ""
    return f"Example {number}\n{input_line}Output: {example.output}\n"


def _labelled(example: InstructionExample) -> str:
    input_line = f"Input: {example.input}\n" if example.input else ""
    return f"Label: {example.output}\n{input_line}"


NUMBER = re.compile(r"(?:^|\n)[ \t]*(?:Task[ \t]+)?(\d+)[ \t]*[.):][ \t]+")
TASK = re.compile(r"(?:^|\n)[ \t#*]*Task[ \t]+\d+[ \t*]*:?[ \t]*(?=\n|$)")
FIELDS = re.compile(
    r"\A(?:.*?\n)?\s*(?:\d+\.\s*)?Instruction:(.*?)\n\s*(?:\d+\.\s*)?Input:(.*?)\n\s*(?:\d+\.\s*)?Output:(.*)\Z",
    re.DOTALL | re.IGNORECASE,
)
ABSENT = {"", "(none)", "none", "<noinput>", "noinput", "n/a", "-"}
"""Spellings of an absent input."""
NEXT_TASK = re.compile(r"\n\s*Task:")
EXAMPLE = re.compile(r"(?:^|\n)[ \t]*Example[ \t]*\d+[ \t]*[.:]?[ \t]*(?=\n|Input|Output)")
OUTPUT = re.compile(r"(?:^|\n)[ \t]*Output[ \t]*:", re.IGNORECASE)
INPUT = re.compile(r"(?:^|\n)[ \t]*Input[ \t]*:", re.IGNORECASE)
LABEL = re.compile(r"(?:^|\n)[ \t]*Label[ \t]*:", re.IGNORECASE)


def parse_instructions(text: str, first: int, new: int) -> tuple[list[str], str | None]:
    """Read up to `new` instructions of a list that continues at number `first`; also the last one if truncated."""
    pieces = NUMBER.split(text)
    numbers = pieces[1::2]
    items = [pieces[0]]
    if str(first) in numbers or numbers[:1] == ["1"]:  # the number is repeated, or restarts: before it is not a task
        pieces = pieces[2 * numbers.index(str(first)) :] if str(first) in numbers else pieces
        items = []
    items += [piece for number, piece in zip(pieces[1::2], pieces[2::2], strict=True) if int(number) < first + new]
    lines = [_first_paragraph(item) for item in items]
    complete = any(int(number) >= first + new for number in pieces[1::2]) or "\n\n" in "".join(items[-1:]).strip()
    truncated = lines.pop() if isinstance(text, Truncated) and lines and not complete else None
    return [line for line in lines if line][:new], truncated


def _first_paragraph(piece: str) -> str:
    """The instruction on one line, up to the first blank line; other text follows that."""
    line = " ".join(piece.strip().split("\n\n")[0].split())
    return line[:1].upper() + line[1:]


def parse_whole_tasks(text: str, new: int) -> tuple[list[tuple[str, InstructionExample] | str], str | None]:
    """Read up to `new` tasks, malformed ones as their text; also the last one if truncated."""
    pieces = [piece for block in text.split(BREAK) for piece in TASK.split(block) if piece.strip()]
    truncated = pieces.pop().strip() if isinstance(text, Truncated) and pieces else None
    tasks: list[tuple[str, InstructionExample] | str] = []
    for number, piece in enumerate(pieces[:new]):
        # the prompt ends with the first task's "Instruction:"
        whole = piece if number or re.search(r"Instruction:", piece, re.IGNORECASE) else f"Instruction:{piece}"
        fields = FIELDS.match(whole)
        tasks.append(_whole_task(*fields.groups()) if fields else piece.strip())
    return tasks, truncated


def _whole_task(instruction: str, input_: str, output: str) -> tuple[str, InstructionExample]:
    return " ".join(instruction.split()), InstructionExample(_input(input_), output.strip())


def _input(text: str) -> str:
    return "" if text.strip().lower() in ABSENT else text.strip()


def parse_yes(text: str) -> bool:
    """Whether the answer is yes; anything else is no, as in Self-Instruct."""
    return text.strip().lower().startswith("yes")


def parse_examples(text: str, most: int) -> tuple[list[InstructionExample], bool]:
    """Read up to `most` examples, input first, and whether the last one was truncated (it is left out)."""
    answer = NEXT_TASK.split(f"\n{text}")[0]
    if not OUTPUT.search(answer):
        return [], isinstance(text, Truncated)
    pieces = [piece for piece in EXAMPLE.split(answer) if piece.strip()]
    truncated = isinstance(text, Truncated) and answer == f"\n{text}" and len(pieces) <= most
    return [_example(piece) for piece in (pieces[:-1] if truncated else pieces)[:most]], truncated


def _example(piece: str) -> InstructionExample:
    """Input and output; without the word Output the whole text is the output, as in Self-Instruct."""
    input_, *outputs = OUTPUT.split(piece)
    if not outputs:
        return InstructionExample("", INPUT.sub("", piece).strip())
    return InstructionExample(_input(INPUT.sub("", input_, count=1)), INPUT.split(outputs[0])[0].strip())


def parse_labelled_examples(text: str, most: int) -> tuple[list[InstructionExample], bool]:
    """Read up to `most` examples, label first, and whether the last one was truncated (it is left out)."""
    answer = NEXT_TASK.split(f"\n{text}")[0]
    pieces = [piece for piece in LABEL.split(answer) if piece.strip()]
    truncated = isinstance(text, Truncated) and answer == f"\n{text}" and len(pieces) <= most
    return [_labelled_example(piece.strip()) for piece in (pieces[:-1] if truncated else pieces)[:most]], truncated


def _labelled_example(piece: str) -> InstructionExample:
    label, _, input_ = piece.partition("\n")
    return InstructionExample(_input(INPUT.sub("", input_, count=1)), label.strip())
