"""`deltatune compare`: find the best method for a model, data and a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.options.comparison_options import (
    DEFAULT_BUDGET,
    DEFAULT_RATES,
    FEW_SHOT_BATCH,
    FEW_SHOT_STEPS,
    METHODS,
    PROMPTING_METHODS,
    Budgets,
    Draws,
    EpochsOrFewShot,
    ExecutorName,
    Margin,
    Methods,
    Minutes,
    PromptingToo,
    Rates,
    Seeds,
    Workers,
)
from deltatune.cli.options.data_options import (
    BUILTIN_DATA,
    MaxSeconds,
    Temperature,
    TestFile,
    ValidationFile,
    is_quick,
    quick_defaults,
    read_sources,
    sound_fields,
    task_fields,
)
from deltatune.cli.options.memory_options import Optimizer
from deltatune.cli.options.prompt_options import Describe, Template, Unlabelled, Words, prompt_options, read_unlabelled
from deltatune.cli.options.shared_options import (
    HEAD,
    OUTPUT,
    SETTINGS,
    BatchSizeOrDefault,
    Beams,
    Compile,
    Dense,
    Json,
    Kind,
    Label,
    MaxLength,
    Metric,
    NewTokens,
    Packing,
    Pooling,
    PrecisionOrDefault,
    Prompt,
    Text,
    head_of,
    option,
    set_values,
)
from deltatune.cli.options.study_options import (
    DataOrSuites,
    Limits,
    Models,
    Quantizations,
    ShotCounts,
    TaskCount,
    Together,
    check_single_files,
    data_axis,
    study_axes,
)
from deltatune.cli.options.task_options import MarkedEntities, MetricModel, Positive
from deltatune.cli.ui.comparison_live import ComparisonProgress
from deltatune.cli.ui.comparison_screen import introduce, report
from deltatune.cli.ui.error_screen import Interrupted
from deltatune.cli.ui.screen import print_json
from deltatune.cli.ui.study_screen import run_on_screen
from deltatune.comparison.study.study_plan import Point
from deltatune.core.errors import DeltatuneError
from deltatune.store.folder_lock import FolderLock

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deltatune.comparison.plans.plan import Plan

QUICK_ROWS, QUICK_EPOCHS, QUICK_MINUTES = 1000, 1.0, 4.5
"""Defaults of the built-in comparison: so many rows on any machine; after the minutes no more runs are added."""


def compare(
    model: Models = None,
    data: DataOrSuites = None,
    quantize: Quantizations = None,
    task: Kind = None,
    text: Text = None,
    label: Label = None,
    validation: ValidationFile = None,
    test: TestFile = None,
    limit: Limits = None,
    temperature: Temperature = None,
    max_length: MaxLength = None,
    max_seconds: MaxSeconds = None,
    metric: Metric = None,
    positive: Positive = None,
    mark: MarkedEntities = None,
    metric_model: MetricModel = None,
    prompt: Prompt = None,
    new_tokens: NewTokens = None,
    beams: Beams = None,
    methods: Methods = None,
    budget: Budgets = None,
    prompting: PromptingToo = False,
    template: Template = None,
    words: Words = None,
    describe: Describe = None,
    unlabelled: Unlabelled = None,
    pooling: Pooling = None,
    dense: Dense = HEAD["dense"].default,
    shots: ShotCounts = None,
    draws: Draws = None,
    seeds: Seeds = None,
    margin: Margin = None,
    minutes: Minutes = None,
    rates: Rates = DEFAULT_RATES,
    epochs: EpochsOrFewShot = None,
    batch_size: BatchSizeOrDefault = None,
    packing: Packing = SETTINGS["packing"].default,
    compile: Compile = SETTINGS["compile"].default,
    optimizer: Optimizer = SETTINGS["optimizer"].default,
    precision: PrecisionOrDefault = None,
    out: Annotated[
        Path | None, option("--out", "-o", panel=OUTPUT, metavar="FOLDER", help="Default: runs/<data>.")
    ] = None,
    workers: Workers = None,
    executor: ExecutorName = "local",
    together: Together = False,
    tasks: TaskCount = None,
    as_json: Json = False,
    more_methods: Annotated[
        list[str] | None, typer.Argument(hidden=True, help="More methods after --methods A.")
    ] = None,
) -> None:
    """Compare methods on a model and data, and recommend one.

    For each method a few learning rates are tried by successive halving on the validation split. The best one is run
    with more seeds and scored on the test split; methods that are not told apart get further runs. Finished runs are
    stored at once; after an interruption the same command resumes. Several data sets, models, limits, budgets, shots or
    quantisations are compared one by one and make one study.

      deltatune compare
      deltatune compare --model roberta-base --data train.csv --budget 0.5%
      deltatune compare --data train.csv --minutes 10
      deltatune compare --data train.csv --method "Bottleneck(size=8|64|256)" --method "LoRA()@0.5%" --margin 0.01
      deltatune compare --data train.csv --shots 16 --draws 5
      deltatune compare --model bert-base-uncased --data train.csv --shots 16 --prompting --describe "0=spam, 1=normal"
      deltatune compare --data train.csv --method "LoRA(r=8)" --method "BitFit()" --method "LoRA(r=4) + BitFit()"
      deltatune compare --data sst2 --data trec6 --limit 200 --limit 2000 --method "LoRA()" --method "Full()"
      deltatune compare --data train.csv --method "LoRA()" --quantize none --quantize int8 --quantize nf4
    """
    if not shots and draws is not None:
        raise DeltatuneError(f"--draws {draws}: draws are of --shots rows for each class; set --shots too, such as 16")
    models, data = model or ["builtin"], data or [BUILTIN_DATA]
    methods = _all_methods(methods, more_methods)
    if prompting:
        methods = [*PROMPTING_METHODS, *(method for method in methods if method not in PROMPTING_METHODS)]
    budgets: list[Any] = budget or [None if methods else DEFAULT_BUDGET]
    sets = data_axis(data)
    check_single_files(sets, validation, test)
    schemes = [None if scheme == "none" else scheme for scheme in quantize or ["none"]]
    axes = study_axes(sets, data, models, limit or [None], budgets, shots or [None], schemes)

    def plan_at(point: Point, folder: Path | None, more: Mapping[str, Any]) -> Plan:
        """The plan of one comparison."""
        quick = quick_defaults(models, data, point.limit, epochs, batch_size, QUICK_ROWS, QUICK_EPOCHS)
        rows, own_epochs, own_batch_size = quick
        # before torch is imported: mistakes in the data show quickly
        source = data if sets is None else [sets.sources[point.data]]
        dataset = read_sources(source, text, label, task, rows, validation, test)
        fields = task_fields(
            dataset, max_length, metric, positive, mark, temperature,
            prompt=prompt, new_tokens=new_tokens, beams=beams, metric_model=metric_model,
        ) | sound_fields(dataset, max_seconds)  # fmt: skip
        prompts = prompt_options(dataset, template, words, describe)
        further = read_unlabelled(unlabelled, dataset)
        from deltatune.comparison.plans.make_plan import make_plan
        from deltatune.training import Settings

        options = {"epochs": own_epochs, "batch_size": own_batch_size, "precision": precision, "packing": packing}
        options |= {"compile": compile, "optimizer": optimizer}
        if point.shots is not None and epochs is None:
            options |= {"max_steps": FEW_SHOT_STEPS, "batch_size": batch_size or FEW_SHOT_BATCH}
        settings = Settings(**set_values(options))
        return make_plan(
            dataset,
            model=point.model,
            methods=methods or METHODS,
            budget=point.budget,
            seeds=seeds,
            shots=point.shots,
            draws=draws,
            rates=rates,
            margin=margin,
            executor=executor,
            workers=workers,
            together="auto" if together else "off",
            settings=settings,
            task=set_values(fields),
            head=head_of(pooling, dense),
            out=folder,
            prompts=prompts,
            unlabelled=further,
            quantize="none" if quantize and point.quantize is None else point.quantize,
            **more,
        )

    if axes is not None:
        from deltatune.comparison.study import make_study_plan

        more: dict[str, Any] = {"suites": sets.suites, "notes": sets.notes} if sets is not None else {}
        run_on_screen(make_study_plan(axes, plan_at, out=out, tasks=tasks, minutes=minutes, **more), as_json)
        return
    if tasks is not None:
        raise DeltatuneError(
            f"--tasks {tasks} is for a study: several --data, --model, --limit, --budget, --shots or --quantize"
        )
    from deltatune.comparison.plans.time_plan import fit_minutes
    from deltatune.comparison.run_comparison import run

    quick = minutes is None and seeds is None and is_quick(models, data, limit[0] if limit else None, epochs)
    single = Point(
        "",
        models[0],
        limit[0] if limit else None,
        budgets[0],
        shots[0] if shots else None,
        schemes[0],
    )
    plan = plan_at(single, out, {"minutes": QUICK_MINUTES, "timed": True} if quick else {"minutes": minutes})
    with FolderLock(plan.out):
        plan = fit_minutes(plan)
        introduce(plan)
        watching = ComparisonProgress(plan.session.task.metric)
        try:
            with watching:
                summary = run(plan, watching)
        except KeyboardInterrupt:
            finished = f"{watching.done} of {watching.total} runs are kept in {plan.out}"
            raise Interrupted(f"{finished}; the same command resumes") from None
    if as_json:
        print_json(summary)
    else:
        report(summary, plan.out / "report.html")
    failed = summary.get("failed") or []
    if failed and summary["recommendation"]["method"] is None:
        raise DeltatuneError(f"every run failed; {failed[0]['method']}: {failed[0].get('error') or 'no message'}")


def _all_methods(methods: list[str] | None, more: list[str] | None) -> list[str]:
    """All methods after `--method`; several after one option (`--methods A B C`) are taken too."""
    if more and not methods:
        raise DeltatuneError(f"unexpected argument {more[0]!r}; use --data for data and --method for a method")
    return [*(methods or []), *(more or [])]
