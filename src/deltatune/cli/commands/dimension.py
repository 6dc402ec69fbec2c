"""`deltatune dimension`: the intrinsic dimension of a task on a model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from deltatune.cli.options.data_options import TestFile, ValidationFile, quick_defaults
from deltatune.cli.options.shared_options import (
    HEAD,
    METHOD,
    OUTPUT,
    TRAINING,
    BatchSizeOrDefault,
    Data,
    Dense,
    EpochsOrDefault,
    Json,
    Kind,
    Label,
    Limit,
    MaxLength,
    Metric,
    Model,
    Pooling,
    PrecisionOrDefault,
    Text,
    head_of,
    option,
    set_values,
)
from deltatune.cli.ui.comparison_live import ComparisonProgress
from deltatune.cli.ui.error_screen import Interrupted
from deltatune.cli.ui.help_screen import fields_of
from deltatune.cli.ui.screen import facts, plural, print_json, say, show, table
from deltatune.comparison.report.number_format import count, rate, score
from deltatune.core.errors import DeltatuneError
from deltatune.store.folder_lock import FolderLock

if TYPE_CHECKING:
    from deltatune.comparison.intrinsic_dimension.dimension_config import DimensionConfig
    from deltatune.comparison.plans.plan import Plan

PLAN = "comparison/plans/make_plan.py"
QUICK_ROWS, QUICK_EPOCHS = 320, 2.0
"""Defaults of the built-in search, which takes some minutes on two cores."""
CONFIG = fields_of("comparison/intrinsic_dimension/dimension_config.py", "DimensionConfig")


def field_option(name: str, flag: str, metavar: str, panel: str = METHOD) -> Any:
    """An option for a field of DimensionConfig, with the field's docstring as its help."""
    return option(flag, panel=panel, metavar=metavar, help=f"{CONFIG[name].help}.")


def dimension(
    model: Model = "builtin",
    data: Data = "python-docs",
    task: Kind = None,
    text: Text = None,
    label: Label = None,
    validation: ValidationFile = None,
    test: TestFile = None,
    limit: Limit = None,
    max_length: MaxLength = None,
    metric: Metric = None,
    method: Annotated[str, field_option("method", "--method", "METHOD")] = CONFIG["method"].default,
    fraction: Annotated[float, field_option("fraction", "--fraction", "SHARE")] = CONFIG["fraction"].default,
    of: Annotated[str, field_option("of", "--of", "full|gain")] = CONFIG["of"].default,
    largest: Annotated[int | None, field_option("largest", "--largest", "NUMBER")] = None,
    pooling: Pooling = None,
    dense: Dense = HEAD["dense"].default,
    seeds: Annotated[int, field_option("seeds", "--seeds", "COUNT", TRAINING)] = CONFIG["seeds"].default,
    rates: Annotated[int, field_option("rates", "--rates", "COUNT", TRAINING)] = CONFIG["rates"].default,
    epochs: EpochsOrDefault = None,
    batch_size: BatchSizeOrDefault = None,
    precision: PrecisionOrDefault = None,
    out: Annotated[
        Path | None, option("--out", "-o", panel=OUTPUT, metavar="FOLDER", help="Default: runs/<data>-dimension.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the intrinsic dimension: the smallest number of parameters that is enough for a task on a model.

    All weights of the model move along random directions, as many as the dimension; the task's head is trained too.
    The dimension increases until a share of full fine-tuning's score is reached, then it is bisected. Nothing is
    concluded, with exit code 2, where full fine-tuning scores no better than the head alone. Finished runs are stored
    at once; after an interruption the same command resumes.

      deltatune dimension
      deltatune dimension --model roberta-base --data train.csv --fraction 0.9
      deltatune dimension --data train.csv --method SAID --of gain
    """
    from deltatune.data.read_data import read_source

    limit, epochs, batch_size = quick_defaults([model], [data], limit, epochs, batch_size, QUICK_ROWS, QUICK_EPOCHS)
    # before torch is imported: mistakes in the data show quickly
    dataset = read_source(
        data,
        task=task,  # type: ignore[arg-type]  # it checks
        text=text or [],
        label=label,
        limit=limit,
        validation=validation,
        test=test,
    )
    from deltatune.comparison.intrinsic_dimension.dimension_config import DimensionConfig, plan_search
    from deltatune.comparison.intrinsic_dimension.dimension_report import draw_curve, summarise_search
    from deltatune.comparison.intrinsic_dimension.dimension_search import search_dimension
    from deltatune.comparison.plans.make_plan import folder_for
    from deltatune.comparison.results.records import write_summary
    from deltatune.store.atomic_files import write_file
    from deltatune.training import Settings

    config = DimensionConfig(method, fraction, of, largest, rates, seeds)  # type: ignore[arg-type]  # it checks what it gets
    options = {"epochs": epochs, "batch_size": batch_size, "precision": precision}
    folder = out or Path(f"{folder_for(model, dataset)}-dimension")
    plan = plan_search(
        dataset,
        config,
        model=model,
        settings=Settings(**set_values(options)),
        max_length=max_length,
        metric=metric or "",
        head=head_of(pooling, dense),
        out=folder,
    )
    with FolderLock(plan.out):
        introduce(plan, config)
        watching = ComparisonProgress(plan.session.task.metric)
        started = time.perf_counter()
        try:
            with watching:
                points = search_dimension(plan, config, watching)
        except KeyboardInterrupt:
            raise Interrupted(f"{plural(watching.done, 'run')} kept in {plan.out}; the same command resumes") from None
        result = summarise_search(plan, config, points, time.perf_counter() - started)
        write_summary(plan.out / "dimension.json", result)
        write_file(plan.out / "dimension.svg", draw_curve(result))
    if as_json:
        print_json(result)
    else:
        report(result, plan.out / "dimension.svg")
    if result["refusal"]:
        raise DeltatuneError(result["refusal"])


def introduce(plan: Plan, config: DimensionConfig) -> None:
    """Print what was read and decided, before the long part begins."""
    from deltatune.comparison.intrinsic_dimension.dimension_config import dimension_range
    from deltatune.data import remarks

    splits = ", ".join(f"{count(len(rows))} {split}" for split, rows in plan.data.splits().items())
    smallest, largest = dimension_range(plan, config)
    base = plan.session.host.sites
    pairs = [
        ("data", f"{plan.data.origin}: {splits} rows"),
        ("task", plan.session.task.describe()),
        ("model", f"{plan.session.model}: {base.facts.architecture}, {count(base.base_params)} parameters"),
        ("target", f"{config.method} of dimension {smallest:,} to {largest:,} for {100 * config.fraction:g} % of "
                  f"{'full fine-tuning' if config.of == 'full' else 'the gain of full fine-tuning'}"),
        ("runs", f"{plural(config.rates, 'learning rate')} and {plural(config.seeds, 'seed')} a dimension, "
                 f"{plural(plan.settings.epochs, 'epoch')} a run"),
        ("folder", str(plan.out)),
    ]  # fmt: skip
    show(facts(pairs), "", aside=True)
    if notes := [*plan.notes(), *remarks(plan.data)]:
        show(facts([("note", note) for note in notes]), "", aside=True)


def report(result: Mapping[str, Any], picture: Path) -> None:
    """The closing screen: each dimension, the result, and methods of that many parameters."""
    target, full = result["target"], result["full"]
    rows = []
    for point in [*result["points"], full]:
        chosen = point["dimension"] is not None and point["dimension"] == result["dimension"]
        name = (
            "all weights" if point["dimension"] is None else f"{point['dimension']:,}" if point["dimension"] else "head"
        )
        verdict = "full" if point is full else "result" if chosen else "reaches" if point["reaches"] else "below"
        if result["refusal"] and point is not full:
            verdict = ""
        of = f"{100 * point['score'] / full['score']:.0f} %" if full["score"] > 0 else ""
        rows.append([name, score(point["score"]), of, verdict, score(point["test"]), rate(point["rate"])])
    columns = ("dimension", f"validation {result['metric']}", "of full", "", "test", "rate")
    show(table(columns, rows, right=("dimension", columns[1], "of full", "test", "rate")), "")
    majority = (result["majority"] or {}).get("score")
    if majority is not None:
        goal = [] if result["refusal"] else [("target", f"{target:.3f} on the validation rows")]
        show(facts([*goal, ("majority", f"{majority:.3f} on the test rows")]), "")
    if result["methods"]:
        rows = [[m["method"], count(m["params"]), f"{m['times']:.3g}"] for m in result["methods"]]
        show(table(("smallest of at least that size", "parameters", "ratio"), rows, right=("parameters", "ratio")), "")
    if not result["refusal"]:  # that is the error with which the command ends
        show(str(result["sentence"]))
    say(f"curve: {picture}")
