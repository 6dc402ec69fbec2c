"""`deltatune compare`: find the best method for a model, data and a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.data_options import (
    BUILTIN_DATA,
    Sources,
    Temperature,
    TestFile,
    ValidationFile,
    read_sources,
    task_fields,
)
from deltatune.cli.options import (
    BUDGET,
    DATA,
    HEAD,
    METHOD,
    OUTPUT,
    SETTINGS,
    TRAINING,
    BatchSizeOrDefault,
    Beams,
    Dense,
    Json,
    Kind,
    Label,
    Limit,
    MaxLength,
    Metric,
    Model,
    NewTokens,
    Packing,
    Pooling,
    PrecisionOrDefault,
    Prompt,
    Shots,
    Text,
    head_of,
    option,
    set_values,
)
from deltatune.cli.prompt_options import PROMPTS, Describe, Template, Unlabelled, Words, prompt_options, read_unlabelled
from deltatune.cli.task_options import MarkedEntities, MetricModel, Positive, with_marked_columns
from deltatune.cli.ui.comparison_live import ComparisonProgress, adds_tokens, results
from deltatune.cli.ui.error_screen import Interrupted
from deltatune.cli.ui.help_screen import constant, parameter
from deltatune.cli.ui.screen import console, facts, plural, print_json, say, show, truncation_notes
from deltatune.comparison.report.number_format import count, rate, score
from deltatune.core.errors import DeltatuneError
from deltatune.store.folder_lock import FolderLock

if TYPE_CHECKING:
    from deltatune.comparison.plan import Plan

PLAN = "comparison/make_plan.py"
METHODS = constant(PLAN, "DEFAULT_METHODS")
PROMPTING_METHODS = constant(PLAN, "PROMPTING_METHODS")
DEFAULT_BUDGET = constant(PLAN, "DEFAULT_BUDGET")
LEGEND = (
    ("95 %", "half the interval of the score, over seeds and test rows"),
    ("tied", "statistically tied with the best (paired bootstrap)"),
    ("trained", "parameters without the head, and their share of the model"),
    ("time", "of one training"),
    ("latency", "inference time of a batch, bare model = 1; merged: after merging into the weights"),
    ("*", "a reference: it has no size to fit to a budget"),
)
"""What the columns of the closing table mean."""
TOKENS = ("tokens", "by which a prompt or prefix makes each text longer")
"""The same for a column that is shown where a method adds tokens."""
DEFAULT_SEEDS = parameter(PLAN, "make_plan", "seeds")
FEW_SHOT_DRAWS = 5
"""Draws of rows with --shots, as in most few-shot papers since Gao et al. 2021."""
FEW_SHOT_STEPS, FEW_SHOT_BATCH = 100, 8
"""Training with --shots unless --epochs is given: a few epochs of a few rows would be a handful of steps."""
QUICK_ROWS, QUICK_EPOCHS, QUICK_BATCH = 320, 2.0, 16
"""Defaults of the built-in comparison, which should end within five minutes on two cores."""


def compare(
    model: Model = "builtin",
    data: Sources = None,
    task: Kind = None,
    text: Text = None,
    label: Label = None,
    validation: ValidationFile = None,
    test: TestFile = None,
    limit: Limit = None,
    temperature: Temperature = None,
    max_length: MaxLength = None,
    metric: Metric = None,
    positive: Positive = None,
    mark: MarkedEntities = None,
    metric_model: MetricModel = None,
    prompt: Prompt = None,
    new_tokens: NewTokens = None,
    beams: Beams = None,
    methods: Annotated[
        list[str] | None,
        option(
            "--method",
            "--methods",
            panel=METHOD,
            metavar="METHOD",
            help=f"A method to compare; repeat the option for more. Default: {', '.join(METHODS)}.",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        option(
            "--budget",
            panel=METHOD,
            metavar="SIZE",
            help=f"{BUDGET} Every method with a size gets the largest that fits. Default: "
            f"{DEFAULT_BUDGET}; for named methods the sizes they are written with.",
        ),
    ] = None,
    prompting: Annotated[
        bool,
        option(
            "--prompting",
            panel=PROMPTS,
            help=f"Compare prompts, label words and new heads: {', '.join(PROMPTING_METHODS)}; --method adds others.",
        ),
    ] = False,
    template: Template = None,
    words: Words = None,
    describe: Describe = None,
    unlabelled: Unlabelled = None,
    pooling: Pooling = None,
    dense: Dense = HEAD["dense"].default,
    shots: Shots = None,
    draws: Annotated[
        int | None,
        option(
            "--draws",
            panel=DATA,
            metavar="COUNT",
            help=f"With --shots: draws of rows, the same for all methods. Default: {FEW_SHOT_DRAWS}.",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        option(
            "--seeds",
            panel=TRAINING,
            metavar="COUNT",
            help="Runs of each method at its best learning rate; with --shots, on each draw. "
            f"Default: {DEFAULT_SEEDS}; with --shots 1.",
        ),
    ] = None,
    rates: Annotated[
        int, option("--rates", panel=TRAINING, metavar="COUNT", help="Learning rates to try for each method.")
    ] = parameter(PLAN, "make_plan", "rates"),
    epochs: Annotated[
        float | None,
        option(
            "--epochs",
            panel=TRAINING,
            metavar="NUMBER",
            help=f"{SETTINGS['epochs'].help}. Default: {SETTINGS['epochs'].default:g}; with --shots "
            f"{FEW_SHOT_STEPS} steps of {FEW_SHOT_BATCH} rows.",
        ),
    ] = None,
    batch_size: BatchSizeOrDefault = None,
    packing: Packing = SETTINGS["packing"].default,
    precision: PrecisionOrDefault = None,
    out: Annotated[
        Path | None, option("--out", "-o", panel=OUTPUT, metavar="FOLDER", help="Default: runs/<data>.")
    ] = None,
    as_json: Json = False,
    more_methods: Annotated[
        list[str] | None, typer.Argument(hidden=True, help="More methods after --methods A.")
    ] = None,
) -> None:
    """Compare methods on a model and data, and recommend one.

    For each method a few learning rates are tried and scored on the validation split. The best one is run with every
    seed, and the test split is scored once. Finished runs are stored at once; after an interruption the same command
    resumes.

      deltatune compare
      deltatune compare --model roberta-base --data train.csv --budget 0.5%
      deltatune compare --data train.csv --shots 16 --draws 5
      deltatune compare --model bert-base-uncased --data train.csv --shots 16 --prompting --describe "0=spam, 1=normal"
      deltatune compare --data train.csv --method "LoRA(r=8)" --method "BitFit()" --method "LoRA(r=4) + BitFit()"
    """
    if shots is None and draws is not None:
        raise DeltatuneError(f"--draws {draws}: draws are of --shots rows for each class; set --shots too, such as 16")
    data = data or [BUILTIN_DATA]
    methods = _all_methods(methods, more_methods)
    if prompting:
        methods = [*PROMPTING_METHODS, *(method for method in methods if method not in PROMPTING_METHODS)]
    limit, epochs, batch_size = quick_defaults(model, ", ".join(data), limit, epochs, batch_size)
    # before torch is imported: mistakes in the data show quickly
    dataset = read_sources(data, text, label, task, limit, validation, test)
    fields = task_fields(
        dataset, max_length, metric, positive, mark, temperature,
        prompt=prompt, new_tokens=new_tokens, beams=beams, metric_model=metric_model,
    )  # fmt: skip
    prompts = prompt_options(dataset, template, words, describe)
    further = read_unlabelled(unlabelled, dataset)
    from deltatune.comparison.make_plan import make_plan
    from deltatune.comparison.run_comparison import run
    from deltatune.training import Settings

    options = {"epochs": epochs, "batch_size": batch_size, "precision": precision, "packing": packing}
    if shots is not None and epochs is None:
        options |= {"max_steps": FEW_SHOT_STEPS, "batch_size": batch_size or FEW_SHOT_BATCH}
    settings = Settings(**set_values(options))
    plan = make_plan(
        dataset,
        model=model,
        methods=methods or METHODS,
        budget=budget if budget is not None or methods else DEFAULT_BUDGET,
        seeds=seeds if seeds is not None else 1 if shots is not None else DEFAULT_SEEDS,
        shots=shots,
        draws=draws if draws is not None else 1 if shots is None else FEW_SHOT_DRAWS,
        rates=rates,
        settings=settings,
        task=set_values(fields),
        head=head_of(pooling, dense),
        out=out,
        prompts=prompts,
        unlabelled=further,
    )
    with FolderLock(plan.out):
        introduce(plan, quiet=as_json)
        watching = ComparisonProgress(plan.session.task.metric)
        try:
            with watching:
                summary = run(plan, watching)
        except KeyboardInterrupt:
            finished = f"{watching.done} of {plan.total} runs are kept in {plan.out}"
            raise Interrupted(f"{finished}; the same command resumes") from None
    if as_json:
        print_json(summary)
    else:
        report(summary, plan.out / "report.html")
    failed = summary.get("failed") or []
    if failed and summary["recommendation"]["method"] is None:
        raise DeltatuneError(f"every run failed; {failed[0]['method']}: {failed[0].get('error') or 'no message'}")


def quick_defaults(
    model: str, data: str, limit: int | None, epochs: float | None, batch_size: int | None
) -> tuple[int | None, float | None, int | None]:
    """Rows, epochs and batch size; small ones for the built-in model and data if none are set."""
    if (model, data, limit, epochs) == ("builtin", "python-docs", None, None):
        return QUICK_ROWS, QUICK_EPOCHS, batch_size or QUICK_BATCH
    return limit, epochs, batch_size


def introduce(plan: Plan, quiet: bool) -> None:
    """Print what was read, inferred and decided, before the long part begins."""
    from deltatune.data import remarks

    data, session, settings = plan.data, plan.session, plan.settings
    sites = session.host.sites
    splits = ", ".join(f"{count(len(rows))} {split}" for split, rows in data.splits().items())
    length = plural(settings.max_steps or settings.epochs, "step" if settings.max_steps else "epoch")
    names = ", ".join(f"{candidate.text}{'*' if candidate.reference else ''}" for candidate in plan.candidates)
    pairs = [
        ("data", f"{data.origin}: {splits} rows"),
        ("task", session.task.describe()),
        ("model", f"{session.model}: {sites.facts.architecture}, {count(sites.base_params)} parameters"),
        ("budget", f"{plan.budget.text}: {count(plan.budget.params)} parameters" if plan.budget else "as written"),
        ("methods", f"{names}   (* has no size to fit)"),
        ("runs", f"{plan.total}: {_runs(plan)}, {length} a run"),
        ("folder", str(plan.out)),
    ]
    marked = with_marked_columns(data, session.task)
    notes = [
        *plan.notes(),
        *remarks(marked),
        *truncation_notes(session.task, plan.splits),
    ]
    show(facts(pairs), "", stderr=quiet)
    if notes:
        show(facts([("note", note) for note in notes]), "", stderr=quiet)


def _runs(plan: Plan) -> str:
    rates = plural(max(len(candidate.rates) for candidate in plan.candidates), "learning rate")
    methods, seeds = plural(len(plan.candidates), "method"), plural(len(plan.seeds), "seed")
    drawn = f" on {plural(len(plan.draws), 'draw')}" if plan.draws else ""
    return f"{methods} at {rates}, the best learning rate of each with {seeds}{drawn}"


def report(summary: dict[str, Any], path: Path) -> None:
    """The closing screen: the table, the recommendation, what failed, where the report is."""
    shown = results(summary, console().width)
    show(shown, "")
    drawn = [(LEGEND[0][0], LEGEND[0][1].replace("seeds", "draws, seeds"))] if summary.get("draws") else [LEGEND[0]]
    legend = [*drawn, *LEGEND[1:-1], *([TOKENS] if adds_tokens(summary) else []), LEGEND[-1]]
    costs = {"trained", "time", "latency", "tokens"} - {column.header for column in shown.columns}
    legend = [(name, meaning) for name, meaning in legend if name not in costs]
    if summary.get("positive") and summary["metric"] in ("f1", "precision", "recall"):
        legend.insert(0, (summary["metric"], f"of the positive class, {summary['positive']}"))
    show(facts(legend), "")
    baseline = summary.get("majority") or {}
    if baseline.get("score") is not None:
        show(f"{baseline['words'].rstrip(',')}: {score(baseline['score'])} {summary['metric']}.")
    show(str(summary["recommendation"]["sentence"]))
    for cell in summary.get("failed") or []:
        problem = str(cell.get("error") or "no message").partition("\n")[0]
        lr = rate(cell.get("learning_rate"))
        show(f"failed: {cell['method']}, learning rate {lr}, seed {cell.get('seed')}: {problem}")
    say(f"report: {path}")


def _all_methods(methods: list[str] | None, more: list[str] | None) -> list[str]:
    """All methods after `--method`; several after one option (`--methods A B C`) are taken too."""
    if more and not methods:
        raise DeltatuneError(f"unexpected argument {more[0]!r}; use --data for data and --method for a method")
    return [*(methods or []), *(more or [])]
