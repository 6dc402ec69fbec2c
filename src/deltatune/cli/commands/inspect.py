"""`deltatune inspect`: what trained adapters changed: norms, singular values, ranks, and how far adapters agree."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.options.quantize_options import AdapterQuantize
from deltatune.cli.options.shared_options import OUTPUT, Json, OtherBase, OtherModel, option
from deltatune.cli.ui.screen import facts, print_json, say, show, table
from deltatune.core.errors import DeltatuneError
from deltatune.store.run_folder import find_adapter

if TYPE_CHECKING:
    from deltatune.store.arithmetic.adapter_analysis import Change

SHOWN = 60
"""Rows of a table that are printed; --json has all of them."""
LEGEND = (
    ("norm", "Frobenius norm of the change ΔW, and relative to the weight's W"),
    ("largest", "the largest singular value of ΔW"),
    ("rank", "singular values that are not 0; effective: exp of their entropy; stable: (norm / largest)²"),
)
"""What the columns of the first table mean."""
PAIRS = (
    ("cosine", "of the two changes: 1 the same direction, 0 none in common, -1 opposite"),
    ("overlap", "φ(k, k) of the first k directions that are read (in) and written (out), 0 to 1 (Hu et al. 2021)"),
    ("chance", "what random directions would have"),
)
"""What the columns of the table of pairs mean."""


def inspect(
    adapters: Annotated[
        list[str], typer.Argument(metavar="FOLDER...", help="Trained adapters, or the folders of their runs.")
    ],
    model: OtherModel = None,
    other_base: OtherBase = False,
    quantize: AdapterQuantize = None,
    base: Annotated[
        bool,
        option("--base/--no-base", panel=OUTPUT, help="Read the base's weights, which relative norms need."),
    ] = True,
    top: Annotated[
        int,
        option("--top", panel=OUTPUT, metavar="NUMBER", help="Directions k of the overlap between adapters.", min=1),
    ] = 8,
    plot: Annotated[
        Path | None, option("--plot", panel=OUTPUT, metavar="FILE", help="Draw the analysis as an .svg file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what adapters changed, by site, and how far several adapters agree.

    Methods that change weights (LoRA, DoRA, IA3, full fine-tuning and others) are measured by ΔW; for others, such as
    prefixes and bottlenecks, the norms are those of their trained tensors.

      deltatune inspect runs/news
      deltatune inspect runs/news runs/mail --plot changes.svg
    """
    if plot is not None and plot.suffix != ".svg":
        raise DeltatuneError(
            f"--plot {plot}: the figure is an .svg file; a browser, Inkscape or rsvg-convert makes a PNG of it"
        )
    folders = [find_adapter(folder) for folder in adapters]
    names = dict(zip(_names(folders), folders, strict=True))
    changes, note = _changes(names, model, other_base, base, quantize)
    analysis = analyse(names, changes, top)
    analysis["note"] = note
    if plot is not None:
        from deltatune.comparison.report.figures.change_plots import change_figure
        from deltatune.store.atomic_files import write_file

        write_file(plot, change_figure(analysis))
    if as_json:
        print_json(analysis)
        return
    _show(analysis)
    if plot is not None:
        say(f"Figure: {plot}")


def analyse(names: dict[str, Path], changes: dict[str, list[Change]], top: int) -> dict[str, Any]:
    """The analysis as plain data."""
    from deltatune.store.arithmetic.adapter_analysis import overlaps_of, total_cosine, total_norm

    return {
        "adapters": [
            {
                "adapter": name,
                "folder": str(folder),
                "norm": total_norm(changes[name]),
                "changes": [_change(change) for change in changes[name]],
            }
            for name, folder in names.items()
        ],
        "pairs": [
            {
                "adapters": [one, other],
                "cosine": total_cosine(changes[one], changes[other]),
                "sites": [
                    {
                        "site": overlap.site,
                        "parameter": overlap.parameter,
                        "cosine": overlap.cosine,
                        "inputs": overlap.inputs,
                        "outputs": overlap.outputs,
                        "chance": overlap.chance,
                    }
                    for overlap in overlaps_of(changes[one], changes[other], top)
                ],
            }
            for one, other in itertools.combinations(names, 2)
        ],
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "site": change.site,
        "parameter": change.parameter,
        "form": change.form,
        "shape": list(change.shape),
        "norm": change.norm,
        "relative": change.relative,
        "singular_values": change.singular_values,
        "effective_rank": change.effective_rank,
        "stable_rank": change.stable_rank,
    }


def _names(folders: list[Path]) -> list[str]:
    """A name for each folder, for hosts and tables: the run's, with a number where two are the same."""
    names: list[str] = []
    for folder in folders:
        path = folder.resolve()
        plain = re.sub(r"\W+", "_", (path.parent if path.name == "adapter" else path).name).strip("_") or "adapter"
        plain = plain if plain.isidentifier() else f"a_{plain}"
        names.append(plain if plain not in names else f"{plain}_{len(names) + 1}")
    return names


def _changes(
    names: dict[str, Path], model: str | None, other_base: bool, base: bool, quantize: str | None
) -> tuple[dict[str, list[Change]], str | None]:
    """The changes of every adapter, with the base if it can be loaded, and a note if it cannot."""
    from deltatune.store.arithmetic.adapter_analysis import changes_in, changes_of

    note = "the base was not read: norms are absolute"
    if base:
        try:
            host = _host(next(iter(names.values())), model, quantize)
        except DeltatuneError as error:
            if model is not None:
                raise
            note = f"{note} ({str(error).partition(chr(10))[0]}); --model says where it is"
        else:
            for name, folder in names.items():
                host.load(folder, name=name, other_base=other_base)
            return {name: changes_of(host, name) for name in names}, None
    return {name: changes_in(folder, name) for name, folder in names.items()}, note


def _host(folder: Path, model: str | None, quantize: str | None) -> Any:
    """A host around the model that an adapter was trained on, without a tokenizer's help."""
    from deltatune.core.adapter_formats import format_of
    from deltatune.store import adapter_folder
    from deltatune.tasks import task_from_json
    from deltatune.training.open_session import open_host

    format_of(folder)  # raises if there is no adapter at all
    if not adapter_folder.knows(folder):
        if model is None:
            raise DeltatuneError(f"{folder} is an adapter of another library; --model says which model it is for")
        return open_host(model, quantize=quantize)[0]
    config = adapter_folder.read_config(folder)
    extra = config.get("extra") or {}
    loads = extra.get("loads") or (task_from_json(extra["task"]).loads if "task" in extra else "row")
    stored_as = extra.get("quantize") if quantize is None else quantize
    return open_host(model or str(extra.get("model") or config["base"].get("name")), loads, quantize=stored_as)[0]


def _show(analysis: dict[str, Any]) -> None:
    for adapter in analysis["adapters"]:
        rows = adapter["changes"]
        weights = [row for row in rows if row["form"] != "tensor"]
        total = f", norm of all changes {adapter['norm']:.4g}" if weights else ""
        show(f"{adapter['adapter']} ({adapter['folder']}){total}", "")
        columns = ["site", "change", "shape", "norm", "relative", "largest", "rank", "effective", "stable"]
        cells = [_cells(row) for row in rows[:SHOWN]]
        used = [i for i, column in enumerate(columns) if i < 4 or any(row[i] for row in cells)]
        show(table([columns[i] for i in used], [[row[i] for i in used] for row in cells], right=columns[2:]), "")
        if len(rows) > SHOWN:
            show(f"{SHOWN} of {len(rows)} rows are shown; --json has all.", "")
    for pair in analysis["pairs"]:
        _show_pair(pair)
    show(facts(LEGEND if not analysis["pairs"] else [*LEGEND, *PAIRS]))
    if analysis["note"]:
        show("", facts([("note", analysis["note"])]))


def _cells(row: dict[str, Any]) -> list[str]:
    values = row["singular_values"]
    rank = "" if values is None else str(sum(value > 1e-9 * values[0] for value in values) if values[0] > 0 else 0)
    what = row["parameter"] if row["form"] == "tensor" else f"{row['parameter']}, {row['form'].replace('_', '-')}"
    return [
        row["site"],
        what,
        "×".join(map(str, row["shape"])) or "1",
        f"{row['norm']:.4g}",
        "" if row["relative"] is None else f"{100 * row['relative']:.3g} %",
        "" if values is None else f"{values[0]:.4g}",
        rank,
        _short(row["effective_rank"]),
        _short(row["stable_rank"]),
    ]


def _show_pair(pair: dict[str, Any]) -> None:
    total = "" if pair["cosine"] is None else f": cosine of all changes {pair['cosine']:.3f}"
    show(f"{pair['adapters'][0]} and {pair['adapters'][1]}{total}", "")
    if not pair["sites"]:
        show("They change no parameter in the same shape.", "")
        return
    rows = []
    for site in pair["sites"][:SHOWN]:
        inputs, outputs = site["inputs"], site["outputs"]
        k = min(len(inputs), len(inputs[0])) if inputs else 0
        chance = f"{site['chance'][0]:.3f}, {site['chance'][1]:.3f}" if inputs else ""
        overlaps = [f"{grid[k - 1][k - 1]:.3f}" if inputs else "" for grid in (inputs, outputs)]
        cosine = "–" if site["cosine"] is None else f"{site['cosine']:.3f}"
        rows.append([site["site"], site["parameter"], cosine, str(k) if k else "", *overlaps, chance])
    columns = ["site", "change", "cosine", "k", "overlap in", "overlap out", "chance"]
    show(table(columns, rows, right=columns[2:]), "")


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
