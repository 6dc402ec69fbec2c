"""`deltatune continual`: tasks learned one after another, and what each way of learning them forgets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from deltatune.cli.options.data_options import task_fields
from deltatune.cli.options.memory_options import Optimizer
from deltatune.cli.options.quantize_options import Quantize
from deltatune.cli.options.shared_options import (
    DATA,
    METHOD,
    OUTPUT,
    SETTINGS,
    SOURCE,
    TRAINING,
    BatchSize,
    Beams,
    Epochs,
    Force,
    Json,
    Limit,
    MaxLength,
    Model,
    NewTokens,
    Precision,
    Prompt,
    option,
)
from deltatune.cli.ui.error_screen import Interrupted
from deltatune.cli.ui.screen import base_text, facts, plural, print_json, say, show, table
from deltatune.comparison.report.number_format import count, rate, score
from deltatune.core.errors import DeltatuneError
from deltatune.store import run_folder
from deltatune.store.folder_lock import FolderLock

if TYPE_CHECKING:
    from deltatune.comparison.continual.continual_plan import ContinualPlan
    from deltatune.data.mixture_data import MixtureData

MODES = "apart (an adapter for each task), sequential (one adapter learns task after task) or joint (all together)"
MEASURES = {"average": "average", "backward_transfer": "backward transfer", "forgetting": "forgetting"}
"""Measures of a matrix, and their headers."""


def continual(
    data: Annotated[
        list[str],
        option(
            "--data",
            "-d",
            panel=DATA,
            metavar="DATA",
            help=f"The tasks in the order in which they are learned, each as DATA or NAME=DATA. {SOURCE}",
        ),
    ],
    model: Model = "builtin",
    quantize: Quantize = None,
    limit: Limit = None,
    max_length: MaxLength = None,
    prompt: Prompt = None,
    new_tokens: NewTokens = None,
    beams: Beams = None,
    methods: Annotated[
        list[str] | None,
        option("--method", panel=METHOD, metavar="METHOD", help="A method; repeat it. Default: LoRA(r=8) and Full()."),
    ] = None,
    modes: Annotated[
        list[str] | None,
        option("--mode", panel=METHOD, metavar="KIND", help=f"A way to learn the tasks: {MODES}. Default: all three."),
    ] = None,
    epochs: Epochs = SETTINGS["epochs"].default,
    lr: Annotated[
        float | None,
        option(
            "--lr", panel=TRAINING, metavar="RATE", help="Peak learning rate. Default: each method's recommended one."
        ),
    ] = None,
    batch_size: BatchSize = SETTINGS["batch_size"].default,
    seeds: Annotated[int, option("--seeds", panel=TRAINING, metavar="COUNT", help="Runs of each method.")] = 1,
    precision: Precision = SETTINGS["precision"].default,
    optimizer: Optimizer = SETTINGS["optimizer"].default,
    out: Annotated[
        Path | None, option("--out", "-o", panel=OUTPUT, metavar="FOLDER", help="Default: runs/continual-<tasks>.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Learn tasks one after another, and measure forgetting.

    Prints for each method the test score on every task after each training, the average at the end, backward transfer
    (negative: earlier tasks got worse) and forgetting (the drop from the best score before). All adapters are kept.
    After an interruption the same command resumes.

      deltatune continual --data sst2.csv --data trec.csv --method "LoRA(r=8)" --method "Full()"
      deltatune continual --data mood=reviews.csv --data names=names.conll --mode sequential --seeds 3
    """
    dataset = read_tasks(data, limit)
    fields = task_fields(dataset, max_length, None, None, None, None, prompt=prompt, new_tokens=new_tokens, beams=beams)
    from deltatune.comparison.continual.continual_plan import DEFAULT_METHODS, make_plan
    from deltatune.comparison.continual.continual_plan import MODES as ALL_MODES
    from deltatune.comparison.continual.continual_run import run
    from deltatune.training import Settings

    settings = Settings(
        epochs=epochs, batch_size=batch_size, learning_rate=lr, precision=precision, optimizer=optimizer  # type: ignore[arg-type]
    )  # fmt: skip
    plan = make_plan(
        dataset,
        model=model,
        methods=methods or DEFAULT_METHODS,
        modes=modes or ALL_MODES,
        seeds=seeds,
        settings=settings,
        task=fields,
        out=out,
        quantize=quantize,
    )
    with FolderLock(plan.out):
        introduce(plan)
        done = 0

        def on_training(text: str, scores: Mapping[str, float]) -> None:
            nonlocal done
            done += 1
            say(f"{text}: {', '.join(f'{name} {score(value)}' for name, value in scores.items())}", aside=True)

        try:
            result = run(plan, on_training, force)
        except KeyboardInterrupt:
            raise Interrupted(f"{plural(done, 'training')} kept in {plan.out}; the same command resumes") from None
    if as_json:
        print_json(result)
        return
    report(result)
    say(f"All scores: {plan.out / run_folder.METRICS}")


def read_tasks(sources: list[str], limit: int | None) -> MixtureData:
    """The data of the tasks by name, in order; a source without a name has that of its file."""
    from deltatune.data.mixture_data import PART_NAME, read_parts
    from deltatune.data.read_data import read_source

    named: dict[str, str] = {}
    for source in sources:
        name, sign, rest = source.partition("=")
        if not (sign and rest and PART_NAME.fullmatch(name)) or Path(source).exists():
            name, rest = Path(source).stem, source
            name = "".join(letter if PART_NAME.fullmatch(letter) else "-" for letter in name) or "task"
        if name in named:
            raise DeltatuneError(f"two tasks have the name {name}: write --data NAME={rest}")
        named[name] = rest
    if len(named) < 2:
        raise DeltatuneError("name at least two tasks: --data a.csv --data b.csv")
    return read_parts(named, lambda name, source: read_source(source, limit=limit))


def introduce(plan: ContinualPlan) -> None:
    """Print what was read and decided, before the long part begins."""
    from deltatune.data import remarks

    pairs = []
    for number, (name, part) in enumerate(plan.mixture.parts.items(), 1):
        rows = ", ".join(f"{count(encoded.examples)} {split}" for split, encoded in plan.encoded[name].items())
        pairs.append((f"task {number}", f"{name}: {part.describe()}; {rows} rows"))
    rates = ", ".join(
        f"{method!r} (learning rate {rate(plan.settings_of(method, 0).peak_rate)})" for method in plan.methods
    )
    pairs += [
        ("model", base_text(plan.session.model, plan.session.host)),
        ("methods", rates),
        ("trainings", f"{plan.trainings}: {', '.join(plan.modes)}; {plural(len(plan.seeds), 'seed')}"),
        ("folder", str(plan.out)),
    ]
    pairs += [("note", note) for note in [*plan.data.notes, *remarks(plan.data)]]
    show(facts(pairs), "", aside=True)


def report(result: Mapping[str, Any]) -> None:
    """For each method a table: a row after each training, a column for each task, then the measures."""
    names = [f"{task['name']} ({task['metric']})" for task in result["tasks"]]
    for entry in result["methods"]:
        present = [mode for mode in _MODE_NAMES if mode in entry]
        rows = [row for mode in present for row in _rows(mode, entry[mode], [task["name"] for task in result["tasks"]])]
        headers = [*names, *MEASURES.values()]
        show(
            "",
            f"{entry['method']}, {count(entry['params'])} trained parameters",
            table(["", *headers], rows, right=headers),
        )
    many = any(len(entry[mode]["seeds"]) > 1 for entry in result["methods"] for mode in entry if mode in _MODE_NAMES)
    show("", "Scores on the test rows" + (", means over the seeds." if many else "."))


_MODE_NAMES = {"apart": "an adapter for each", "sequential": "one after another", "joint": "all together"}


def _rows(mode: str, learned: Mapping[str, Any], names: list[str]) -> list[list[str]]:
    """The rows of one way to learn the tasks; the measures stand in the last one."""
    matrix, title = learned["matrix"], _MODE_NAMES[mode]
    measures = [_measure(learned, name) for name in MEASURES]
    if mode != "sequential":
        return [[title, *map(score, matrix[-1]), *measures]]
    rows = []
    for i, scores in enumerate(matrix):
        last = i == len(matrix) - 1
        blank = [""] * (len(names) - len(scores))
        rows.append(
            [f"{title}: after {names[i]}", *map(score, scores), *blank, *(measures if last else [""] * len(MEASURES))]
        )
    return rows


def _measure(learned: Mapping[str, Any], name: str) -> str:
    if name not in learned:
        return "–"
    deviation = learned["deviation"][name]
    return score(learned[name]) + ("" if deviation is None else f" ± {score(deviation)}")
