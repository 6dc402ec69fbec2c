"""`deltatune latency`: inference time of methods over batch size and text length, unmerged and merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from deltatune.cli.options.quantize_options import Quantize
from deltatune.cli.options.shared_options import (
    BUDGET,
    DATA,
    METHOD,
    OUTPUT,
    TRAINING,
    Json,
    Model,
    Precision,
    one_of,
    option,
)
from deltatune.cli.ui.help_screen import fields_of
from deltatune.cli.ui.live import Bar
from deltatune.cli.ui.screen import base_text, console, facts, plural, print_json, say, show, table, width_of
from deltatune.comparison.report.number_format import MISSING, count, seconds

if TYPE_CHECKING:
    from deltatune.comparison.costs.latency_benchmark import LatencyBenchmark

FIELDS = fields_of("comparison/costs/latency_grid.py", "LatencyGrid")
FILE = "latency.json"
LABELS = {"bare": "bare model", "unmerged": "", "merged": ", merged"}
"""What follows the method in a table."""


def latency(
    model: Model = "builtin",
    quantize: Quantize = None,
    methods: Annotated[
        list[str] | None,
        option(
            "--method",
            panel=METHOD,
            metavar="METHOD",
            help="A method to measure, such as LoRA(r=8) or Houlsby()@3%, with its own budget; repeat the option for "
            "more. Default: Houlsby(), Pfeiffer(), LoRA() and Prefix().",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        option(
            "--budget",
            panel=METHOD,
            metavar="SIZE",
            help=f"{BUDGET} Every method with a size, and without a budget of its own, gets the largest that fits.",
        ),
    ] = None,
    batches: Annotated[
        list[int] | None,
        option(
            "--batch-size",
            panel=DATA,
            metavar="ROWS",
            help="Rows of one forward pass; repeat the option for more. Default: 1, 16 and 32.",
        ),
    ] = None,
    lengths: Annotated[
        list[int] | None,
        option(
            "--max-length",
            panel=DATA,
            metavar="TOKENS",
            help="Tokens of each row; repeat the option for more. Default: those of 128, 256 and 512 that the model "
            "and the methods have positions for.",
        ),
    ] = None,
    task: Annotated[
        str,
        option(
            "--task",
            panel=DATA,
            metavar="KIND",
            help="classify (the bare transformer) or lm (with the language-model head).",
            callback=one_of("--task", FIELDS["task"].choices),
        ),
    ] = FIELDS["task"].default,
    repeats: Annotated[
        int, option("--repeats", panel=TRAINING, metavar="NUMBER", help=f"{FIELDS['repeats'].help}.")
    ] = FIELDS["repeats"].default,
    precision: Precision = FIELDS["precision"].default,
    out: Annotated[
        Path | None,
        option("--out", "-o", panel=OUTPUT, metavar="FOLDER", help=f"Write the measurement there, as {FILE}."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the inference time of methods over batch size and text length.

    One forward pass on random tokens, in milliseconds and relative to the bare model, unmerged and, where a method can
    be merged into the weights, merged. All methods take turns with the bare model, so that what else the machine does
    hits all of them alike. Nothing is trained.

      deltatune latency --method "Houlsby()" --method "LoRA()"
      deltatune latency --model gpt2-medium --task lm --batch-size 1 --max-length 128 --repeats 100
    """
    from deltatune.comparison.costs.latency_benchmark import LatencyBenchmark
    from deltatune.comparison.costs.latency_grid import LatencyGrid

    grid = LatencyGrid(
        tuple(batches or FIELDS["batches"].default),
        None if lengths is None else tuple(lengths),
        repeats,
        task,  # type: ignore[arg-type]  # the option has checked it
        precision,
    )
    if out is not None:
        from deltatune.store.atomic_files import make_folder, write_json

        make_folder(out)
    benchmark = LatencyBenchmark(model, methods or (), grid, budget, quantize)
    _introduce(benchmark)
    with _Progress() as progress:
        result = benchmark.measure(progress)
    if out is not None:
        write_json(out / FILE, result)
    if as_json:
        print_json(result)
        return
    _show(result)
    if out is not None:
        say(f"\n{out / FILE}")


class _Progress(Bar):
    """Shows each cell that is done; pass it as `on_cell`."""

    def __init__(self) -> None:
        super().__init__("latency")

    def __call__(self, done: int, total: int, batch: int, length: int) -> None:
        """Show a cell; outside a terminal the estimate before is enough."""
        self.update(done, total, f"{plural(batch, 'row')} of {plural(length, 'token')}")


def _introduce(benchmark: LatencyBenchmark) -> None:
    """Print what is measured and how long it takes, before it begins."""
    cells = len(benchmark.cells)
    repeats, variants = benchmark.grid.repeats, len(benchmark.variants)
    pairs = [
        ("model", base_text(benchmark.model, benchmark.host)),
        ("grid", f"{_list(sorted(benchmark.grid.batches))} rows × {_list(benchmark.lengths)} tokens"),
        ("time", f"about {seconds(benchmark.estimate())}: {count(repeats * variants * cells)} forward passes"),
    ]
    columns = ["method", "measured as", "parameters", "longer by", "merged"]
    methods = [
        [each.asked, each.method, count(each.params), plural(each.tokens, "token") if each.tokens else MISSING,
         "yes" if each.merges else each.obstacle]
        for each in benchmark.methods.values()
    ]  # fmt: skip
    show(facts(pairs), "", table(columns, methods, right=columns[2:4]), "", aside=True)


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _show(result: Mapping[str, Any]) -> None:
    """Two tables with a column for each cell; in a narrow terminal one with a row for each."""
    cells = [(batch, length) for batch in result["batches"] for length in result["lengths"]]
    columns = [f"{batch}×{length}" for batch, length in cells]
    lines: dict[tuple[str, str], dict[tuple[int, int], Mapping[str, Any]]] = {}
    for row in result["rows"]:
        lines.setdefault((row["method"], row["form"]), {})[row["batch"], row["length"]] = row
    asked = {"": "", **{each["method"]: each["asked"] for each in result["methods"]}}
    names = {key: asked[key[0]] + LABELS[key[1]] for key in lines}
    times = [[names[key], *(_milliseconds(line[cell]) for cell in cells)] for key, line in lines.items()]
    more = [[names[key], *(_more(line[cell]) for cell in cells)] for key, line in lines.items() if key[1] != "bare"]
    first, second = ["milliseconds", *columns], ["beyond the bare model", *columns]
    if max(width_of(first, times), width_of(second, more)) <= console().width:
        show(table(first, times, right=columns), "", table(second, more, right=columns))
    else:
        header = ["", "rows", "tokens", "ms", "beyond bare"]
        rows = [
            [names[key], str(batch), str(length), _milliseconds(line[batch, length]), _more(line[batch, length])]
            for batch, length in cells
            for key, line in lines.items()
        ]
        show(table(header, rows, right=header[1:]))
    note = "(..): the 95 % interval of the median holds 0, so no difference was shown"
    if all(row["ratio_ci"] is None for row in result["rows"]):
        note = "(..): a median of so few repeats has no 95 % interval; give --repeats 6 or more"
    bits = f"{result['device']}, {plural(result['threads'], 'thread')}, {result['precision']}, rows × tokens"
    show("", f"{bits}; medians of {result['repeats']}; {note}")


def _milliseconds(row: Mapping[str, Any]) -> str:
    value = float(row["milliseconds"])
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _more(row: Mapping[str, Any]) -> str:
    """Per cent beyond the bare model's time; in parentheses where the difference may be none."""
    if row["form"] == "bare":
        return MISSING
    percent = f"{100 * (row['ratio'] - 1):+.1f} %".replace("-", "−")
    ci = row["ratio_ci"]
    return percent if ci is not None and not ci[0] <= 1 <= ci[1] else f"({percent})"
