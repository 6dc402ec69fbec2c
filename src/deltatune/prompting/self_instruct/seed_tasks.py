"""Seed tasks: rows that people wrote, checked, and sampled as demonstrations for prompts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.core.errors import nearest, raise_all

Row = dict[str, Any]
SHOWN = 5
"""Maximum number of problems that an error lists."""


@dataclass(frozen=True)
class InstructionExample:
    """An input and its output."""

    input: str
    output: str


@dataclass(frozen=True)
class InstructionTask:
    """An instruction with its first example."""

    instruction: str
    example: InstructionExample
    classification: bool | None = None
    """Whether the answer is one of a few labels; None if the row does not say."""


def seed_tasks(rows: Sequence[Mapping[str, Any]]) -> list[InstructionTask]:
    """Read tasks from rows with `instruction`, `output`, and optionally `input` and `is_classification`.

    Self-Instruct's own format, with a list of `instances`, is read too; the first instance counts. Raises
    DeltatuneError listing the invalid rows.
    """
    problems, tasks = [], []
    for number, row in enumerate(rows, 1):
        flat = _flat(row)
        wrong = _problem(flat)
        if wrong:
            problems.append(f"row {number} {wrong}")
        else:
            tasks.append(task_of(flat))
    more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    about = 'seeds are rows such as {"instruction": "...", "input": "...", "output": "..."}:'
    raise_all([*problems[:SHOWN], *more], about if problems else "")
    raise_all([] if tasks else ["there are no seed tasks: give rows with instruction and output"])
    return tasks


def task_of(row: Mapping[str, Any]) -> InstructionTask:
    """Build the task of a checked row."""
    kind = row.get("is_classification")
    example = InstructionExample(str(row.get("input") or "").strip(), row["output"].strip())
    return InstructionTask(" ".join(row["instruction"].split()), example, kind)


def _flat(row: Mapping[str, Any]) -> Mapping[str, Any]:
    instances = row.get("instances")
    first = instances[0] if isinstance(instances, list) and instances else None
    return {**row, **first} if isinstance(first, Mapping) else row


def _problem(row: Mapping[str, Any]) -> str | None:
    for name in ("instruction", "output"):
        value = row.get(name)
        if not isinstance(value, str):
            have = ", ".join(map(str, row)) or "none"
            return f"has no text in column {name!r}{nearest(name, map(str, row))}; its columns: {have}"
        if not value.strip():
            return f"has an empty {name}"
    if not isinstance(row.get("input"), str | None):
        return f"has a {type(row['input']).__name__} as input; it must be a string"
    if not isinstance(row.get("is_classification"), bool | None):
        return f"has is_classification={row['is_classification']!r}; it must be true or false"
    return None


TaskWithExamples = tuple[InstructionTask, tuple[InstructionExample, ...]]


def _task(instruction: str, classification: bool, *pairs: tuple[str, str]) -> TaskWithExamples:
    examples = tuple(InstructionExample(input_, output) for input_, output in pairs)
    return InstructionTask(instruction, examples[0], classification), examples


BUILT_IN_TASKS: tuple[TaskWithExamples, ...] = (
    _task(
        "Say whether the customer's message is a complaint, a question or praise.",
        True,
        ("The parcel came two weeks late and the lid was broken.", "complaint"),
        ("Does the lamp also take bulbs with a small thread?", "question"),
        ("Best shoes I have had in years, thank you!", "praise"),
    ),
    _task(
        "Which of the four seasons does the sentence describe?",
        True,
        ("The last leaves fell on the wet pavement.", "autumn"),
        ("Snow lay on the roofs until noon.", "winter"),
        ("The first tulips opened beside the gate.", "spring"),
    ),
    _task(
        "Decide if the second sentence follows from the first. Answer yes or no.",
        True,
        ("Mara sold her car on Monday. On Tuesday Mara still owned that car.", "no"),
        ("All the shops were shut. The bakery, one of the shops, was shut.", "yes"),
    ),
    _task(
        "Is the number prime or composite?",
        True,
        ("21", "composite"),
        ("29", "prime"),
    ),
    _task(
        "Name the language of the text: English, French or Spanish.",
        True,
        ("Il fait froid ce matin.", "French"),
        ("Where did you leave the keys?", "English"),
        ("La tienda abre a las nueve.", "Spanish"),
    ),
    _task(
        "Tell whether the job advertisement is for full-time or part-time work.",
        True,
        ("We look for a cook, 40 hours a week, from May on.", "full-time"),
        ("Help in our library on two afternoons a week.", "part-time"),
    ),
    _task(
        "Turn the sentence into the past tense.",
        False,
        ("She walks to the station and buys a paper.", "She walked to the station and bought a paper."),
        ("We eat late because the train is slow.", "We ate late because the train was slow."),
    ),
    _task(
        "Why does bread rise? Explain it to a child.",
        False,
        (
            "",
            "Yeast in the dough eats sugar and breathes out tiny bubbles of gas. The bubbles cannot get out, so they "
            "push the dough up.",
        ),
    ),
    _task(
        "Find the dates in the text and list them in order.",
        False,
        ("The bridge was planned in 1931, opened on 4 May 1937 and painted in 1965.", "1931; 4 May 1937; 1965"),
    ),
    _task(
        "Write a polite e-mail that asks to move the appointment to another day.",
        False,
        (
            "Appointment: dentist, Tuesday 10 a.m.",
            "Dear Sir or Madam, unfortunately I cannot come on Tuesday at 10 a.m. Would there be a free time on "
            "Thursday or Friday? Kind regards",
        ),
    ),
    _task(
        "How long does the journey take at the given speed?",
        False,
        ("180 km at 60 km an hour", "180 / 60 = 3, so it takes 3 hours."),
        ("45 km at 90 km an hour", "45 / 90 = 0.5, so it takes half an hour."),
    ),
    _task(
        "Suggest three names for a small café beside a river.",
        False,
        ("", "The Quiet Bend; Willow & Bean; Low Tide Coffee"),
    ),
)
"""Tasks of both kinds, used if the seeds do not say `is_classification`."""


def demonstrations(
    seeds: Sequence[InstructionTask],
    generated: Sequence[InstructionTask],
    seed_count: int,
    generated_count: int,
    rng: random.Random,
) -> list[InstructionTask]:
    """Sample generated tasks and seeds, shuffled; seeds take the place of missing generated ones."""
    from_generated = rng.sample(generated, min(generated_count, len(generated)))
    from_seeds = rng.sample(seeds, min(seed_count + generated_count - len(from_generated), len(seeds)))
    tasks = [*from_generated, *from_seeds]
    rng.shuffle(tasks)
    return tasks


def sample_both_kinds(seeds: Sequence[InstructionTask], each: int, rng: random.Random) -> list[InstructionTask]:
    """Sample up to `each` classification tasks and up to `each` others, shuffled."""
    tasks = []
    for classification in (True, False):
        pool = tasks_of_kind(seeds, classification)
        tasks += [task for task, _ in rng.sample(pool, min(each, len(pool)))]
    rng.shuffle(tasks)
    return tasks


def sample_with_examples(
    seeds: Sequence[InstructionTask], classification: bool, most: int, rng: random.Random
) -> list[TaskWithExamples]:
    """Sample up to `most` tasks of one kind with their examples."""
    pool = tasks_of_kind(seeds, classification)
    return rng.sample(pool, min(most, len(pool)))


def tasks_of_kind(seeds: Sequence[InstructionTask], classification: bool) -> list[TaskWithExamples]:
    """Return the seeds of a kind if they include both kinds, else the built-in tasks."""
    if {True, False} <= {task.classification for task in seeds}:
        return [(task, (task.example,)) for task in seeds if task.classification is classification]
    return [pair for pair in BUILT_IN_TASKS if pair[0].classification is classification]
