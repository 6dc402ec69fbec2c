"""`deltatune combine`: combine several trained adapters into one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.options.shared_options import OUTPUT, Json, OtherBase, OtherModel, option
from deltatune.cli.ui.screen import facts, print_json, say, show
from deltatune.comparison.report.number_format import count
from deltatune.core.errors import DeltatuneError, nearest
from deltatune.store.atomic_files import check_outside
from deltatune.store.run_folder import find_adapter

if TYPE_CHECKING:
    from deltatune.core.host import Host
    from deltatune.store.arithmetic.task_arithmetic import Combined

COMBINATION = "Combination"
"""Group of options on the help screen."""
WORST = 3
"""Number of sites whose error is printed."""


def combine(
    adapters: Annotated[
        list[str], typer.Argument(metavar="FOLDER...", help="Trained adapters, or the folders of their runs.")
    ],
    out: Annotated[Path, option("--out", "-o", panel=OUTPUT, metavar="FOLDER", help="Folder of the new adapter.")],
    weights: Annotated[
        str | None,
        option(
            "--weights",
            panel=COMBINATION,
            metavar="NUMBERS",
            help="A weight for each folder: 0.5,0.5. Default: equal weights that sum to 1.",
        ),
    ] = None,
    how: Annotated[
        str,
        option("--how", panel=COMBINATION, metavar="KIND", help="linear, svd, ties, dare or dare_ties."),
    ] = "linear",
    rank: Annotated[
        str | None,
        option("--rank", panel=COMBINATION, metavar="NUMBER", help="Rank of the result, or full; linear needs none."),
    ] = None,
    density: Annotated[
        float | None,
        option(
            "--density",
            panel=COMBINATION,
            metavar="SHARE",
            help="Share of entries that ties and dare keep. Default for ties: 0.2.",
        ),
    ] = None,
    scope: Annotated[
        str,
        option(
            "--scope",
            panel=COMBINATION,
            metavar="KIND",
            help="ties: trim over the whole model, or each tensor separately.",
        ),
    ] = "model",
    scale: Annotated[
        float, option("--scale", panel=COMBINATION, metavar="NUMBER", help="Factor on the combined change.")
    ] = 1.0,
    head: Annotated[
        str | None,
        option(
            "--head",
            panel=COMBINATION,
            metavar="FOLDER",
            help="Classification head of the result: a folder's, mean, or none.",
        ),
    ] = None,
    seed: Annotated[int, option("--seed", panel=COMBINATION, metavar="NUMBER", help="Random seed for dare.")] = 0,
    model: OtherModel = None,
    other_base: OtherBase = False,
    as_json: Json = False,
) -> None:
    """Combine several adapters into one.

    Task arithmetic on their weight changes; the error of the reduction to a rank is printed.

      deltatune combine runs/news runs/mail --head mean --out both
      deltatune combine runs/news runs/mail --how ties --rank 8 --head runs/news --out both
    """
    shares = _shares(weights, adapters)
    check_outside(out, [*map(find_adapter, adapters), *([model] if model else [])])
    host, names = _loaded(adapters, model, other_base)
    chosen_head = _head(head, names, host)
    from deltatune.store.arithmetic import task_arithmetic as arithmetic

    options: dict[str, Any] = {
        "density": density,
        "scope": scope,
        "scale": scale,
        "seed": seed,
        "head": chosen_head,
        "rank": _rank(rank),
    }
    made = arithmetic.combine(host, "combined", dict(zip(names.values(), shares, strict=True)), how, **options)  # type: ignore[arg-type]
    host.save("combined", out)
    by_folder = dict(zip(adapters, shares, strict=True))
    if as_json:
        print_json({"adapter": str(out), **_content(made), "weights": by_folder})
        return
    _report(made, by_folder, out)


def _shares(weights: str | None, adapters: list[str]) -> list[float]:
    """A weight for each folder."""
    if len({str(find_adapter(folder).resolve()) for folder in adapters}) < len(adapters):
        raise DeltatuneError(f"a folder is named twice: {', '.join(adapters)}; give it a larger weight instead")
    if weights is None:
        return [1 / len(adapters)] * len(adapters)
    try:
        numbers = [float(word) for word in weights.split(",")]
    except ValueError:
        raise DeltatuneError(f"--weights {weights}: write numbers separated by commas, such as 0.5,0.5") from None
    if len(numbers) != len(adapters):
        raise DeltatuneError(
            f"--weights {weights}: {len(numbers)} weights for {len(adapters)} adapters; give one for each"
        )
    return numbers


def _rank(rank: str | None) -> int | str | None:
    if rank is None or rank == "full":
        return rank
    try:
        return int(rank)
    except ValueError:
        raise DeltatuneError(f"--rank {rank}: must be a number or full") from None


def _loaded(adapters: list[str], model: str | None, other_base: bool) -> tuple[Host, dict[str, str]]:
    """All adapters on one model, and the name of each by its folder."""
    from deltatune.training.open_session import open_adapter

    session = open_adapter(adapters[0], model, other_base)
    session.detach()
    names: dict[str, str] = {}
    for folder in adapters:
        path = find_adapter(folder)
        plain = re.sub(r"\W+", "_", (path.parent if path.name == "adapter" else path).resolve().name)
        name = plain if plain.isidentifier() and plain not in (*names.values(), "combined", "mean") else f"a_{plain}"
        names[folder] = name if name not in names.values() else f"{name}_{len(names)}"
        session.host.load(path, name=names[folder], other_base=other_base)
    return session.host, names


def _head(head: str | None, names: dict[str, str], host: Host) -> Any:
    """The choice of a head, as `combine` of the library takes it."""
    holders = [folder for folder, name in names.items() if host.adapters[name].head is not None]
    if head == "none":
        return False
    if head is None and len(holders) > 1:
        raise DeltatuneError(
            f"--head must choose the classification head of the result: {', '.join(holders)}, mean or none"
        )
    if head not in (None, "mean", *names):
        near = nearest(str(head), [*names, "mean", "none"])
        raise DeltatuneError(f"--head {head}: no such folder here{near}; folders: {', '.join(names)}, mean, none")
    return names.get(head, head) if head is not None else None


def _content(made: Combined) -> dict[str, Any]:
    adapter = made.adapter
    return {
        "method": repr(adapter.method),
        "parameters": adapter.count,
        "head": adapter.head is not None,
        "error": made.error,
        "errors": dict(made.errors),
    }


def _report(made: Combined, shares: dict[str, float], out: Path) -> None:
    worst = sorted(made.errors.items(), key=lambda pair: -pair[1])[:WORST]
    error = f"{made.error:.2%} of the change (norm)" if made.error else "none: exact"
    pairs = [(f"{share:g} ×", folder) for folder, share in shares.items()]
    pairs += [
        ("method", repr(made.adapter.method)),
        ("parameters", count(made.adapter.count)),
        (
            "error",
            error + (f"; largest at {', '.join(f'{site} {value:.2%}' for site, value in worst)}" if made.error else ""),
        ),
    ]
    show(facts(pairs), "")
    say(f"Adapter: {out}")
    if made.adapter.head is not None:
        say(f"Score it: deltatune evaluate --adapter {out} --data FILE", aside=True)
