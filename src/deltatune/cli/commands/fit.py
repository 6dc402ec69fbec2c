"""`deltatune fit MODEL`: which methods, quantisations, batches and lengths fit into a memory, from a config alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.options.memory_options import FIELDS, CountedTask
from deltatune.cli.options.quantize_options import QUANTIZE, scheme_name
from deltatune.cli.options.shared_options import CHECK_PRECISION, DATA, METHOD, SETTINGS, TRAINING, Json, one_of, option
from deltatune.cli.ui.screen import facts, plural, print_json, say, show, table
from deltatune.comparison.report.number_format import MISSING, size
from deltatune.core.errors import DeltatuneError

if TYPE_CHECKING:
    from deltatune.comparison.costs.memory_fit import Fitting, MemoryFit
    from deltatune.comparison.costs.training_memory import CountedTraining

SHARD = 10**10
"""Bytes of the largest file of a model, where the files are not there."""


def fit(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder with a config.json, a name on the hub, or builtin.")
    ] = "builtin",
    memory: Annotated[
        str | None,
        option(
            "--memory",
            panel=TRAINING,
            metavar="SIZE",
            help="The memory that there is, such as 16GB, 16GiB or 16000MB. Default: this machine's GPU, else its RAM.",
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        option(
            "--method",
            panel=METHOD,
            metavar="METHOD",
            help="A method; repeat the option for more. Default: one or two of every family.",
        ),
    ] = None,
    task: CountedTask = FIELDS["task"].default,
    max_length: Annotated[
        int | None,
        option("--max-length", panel=DATA, metavar="TOKENS", help="Tokens of a row. Default: 128, or less to fit."),
    ] = None,
    batch_size: Annotated[
        int,
        option("--batch-size", panel=TRAINING, metavar="ROWS", help=f"{FIELDS['batch_size'].help}; it may be split."),
    ] = FIELDS["batch_size"].default,
    quantize: Annotated[
        str | None,
        option(
            "--quantize",
            panel=DATA,
            metavar="SCHEME",
            help=f"{QUANTIZE} Default: none, or nf4 where nothing else fits.",
            callback=scheme_name,
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        option(
            "--optimizer",
            panel=TRAINING,
            metavar="NAME",
            help=f"{FIELDS['optimizer'].help.rstrip('.')}. Default: adamw, or paged-adamw to fit.",
            callback=one_of("--optimizer", SETTINGS["optimizer"].choices),
        ),
    ] = None,
    checkpointing: Annotated[
        bool | None,
        option(
            "--checkpointing/--no-checkpointing", panel=TRAINING, help="Gradient checkpointing. Default: only to fit."
        ),
    ] = None,
    precision: Annotated[
        str,
        option(
            "--precision",
            panel=TRAINING,
            metavar="KIND",
            help="auto, float32 or bfloat16, as `deltatune train` has it.",
            callback=CHECK_PRECISION,
        ),
    ] = "auto",
    device: Annotated[
        str | None,
        option(
            "--device",
            panel=TRAINING,
            metavar="KIND",
            help="cpu or cuda: whose kernels run. Default: this machine's.",
            callback=one_of("--device", ("cpu", "cuda")),
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what fits into a memory: for each method the least demanding change that makes it fit.

    Only the config is read, and nothing of the model is loaded. The forecast is that of `deltatune count`, with what
    Python and its libraries take.

      deltatune fit meta-llama/Llama-2-7b-hf --memory 16GB --task lm --max-length 512 --batch-size 4
      deltatune fit builtin --memory 2GB --method "LoRA(r=8)" --method "Full()"
    """
    from deltatune.comparison.costs.memory_fit import METHODS, MemoryFit, read_memory, recommended
    from deltatune.comparison.costs.training_memory import CountedTraining
    from deltatune.core.registry import parse

    for method in methods or ():
        parse(method)
    kind = device or _this_device()
    allowed = read_memory(memory) if memory is not None else _this_memory(kind)
    training = CountedTraining(
        task, batch_size=batch_size, max_length=max_length or FIELDS["max_length"].default,  # type: ignore[arg-type]
        device=kind, precision=_precision(precision, kind), quantize=quantize or "none",  # type: ignore[arg-type]
        optimizer=optimizer or "adamw", checkpointing=bool(checkpointing),  # type: ignore[arg-type]
    )  # fmt: skip
    given = {"max_length": max_length, "quantize": quantize, "optimizer": optimizer, "checkpointing": checkpointing}
    search = MemoryFit(model, allowed, training, [name for name, value in given.items() if value is not None])
    fittings = list({each.method: each for each in (search.fit(method) for method in methods or METHODS)}.values())
    if methods and all(each.memory is None for each in fittings):
        raise DeltatuneError("\n".join(f"{each.method}: {each.problem}" for each in fittings))
    best = recommended(fittings)
    found = _content(search, fittings, best, kind, "" if precision == "auto" else f" --precision {precision}")
    if as_json:
        print_json(found)
        return
    _show(search, fittings, best, found)


def _this_device() -> str:
    from deltatune.models.hardware import best_device

    return "cuda" if best_device().type == "cuda" else "cpu"


def _this_memory(kind: str) -> int:
    import torch

    from deltatune.core.memory import memory_of

    if kind == "cuda" and not torch.cuda.is_available():
        raise DeltatuneError("this machine has no GPU; say how much memory it has: --memory 24GB")
    return memory_of(torch.device(kind))


def _precision(precision: str, kind: str) -> str:
    """What `auto` is: on a GPU bfloat16, on this machine's processor what is faster."""
    if precision != "auto":
        return precision
    import torch

    from deltatune.models.hardware import native_bfloat16

    return "bfloat16" if kind == "cuda" or native_bfloat16(torch.device("cpu")) else "float32"


def _content(search: MemoryFit, fittings: list[Fitting], best: Fitting | None, kind: str, more: str) -> dict[str, Any]:
    """What was found, as plain data; `more` are options that end every command."""
    chosen = search.asked if best is None else best.training
    model = search.model.host(chosen).model
    disk = _disk(search.model.name, model.params)
    stored = bool(search.model.host(chosen).stored)
    loading = model.stored_bytes + min(_largest_file(search.model.name), disk)
    largest = {} if best is None else {name: search.largest(best, name) for name in ("batch_size", "max_length")}
    return {
        "model": dataclasses.asdict(model),
        "memory": search.memory,
        "device": kind,
        "asked": dataclasses.asdict(search.asked),
        "methods": [
            {
                **dataclasses.asdict(each),
                "total": each.memory.total if each.memory else None,
                "command": _command(search.model.name, each, stored) + more if each.fits else None,
            }
            for each in fittings
        ],
        "recommended": best and best.method,
        "largest": largest,
        "disk": disk,
        "loading": loading,
    }


def _disk(name: str, params: int) -> int:
    """Bytes of the model's files: those that are there, else by the type that its config names."""
    import torch

    from deltatune.models.loading import find_config

    place, config = find_config(name)
    files = [file.stat().st_size for file in Path(place).glob("*.safetensors")] if Path(place).is_dir() else []
    dtype = getattr(config, "dtype", None)
    return sum(files) or params * (dtype if isinstance(dtype, torch.dtype) else torch.float32).itemsize


def _largest_file(name: str) -> int:
    from deltatune.models.loading import find_config

    place = Path(find_config(name)[0])
    files = [file.stat().st_size for file in place.glob("*.safetensors")] if place.is_dir() else []
    return max(files, default=SHARD)


def _command(model: str, fitting: Fitting, stored: bool) -> str:
    """The command that trains so; `stored`: the model's files are quantised already."""
    training: CountedTraining = fitting.training
    words = ["deltatune train", f"--model {model}", f"--task {training.task}", "--data FILE"]
    words += [f'--method "{fitting.method}"', f"--max-length {training.max_length}"]
    words += [f"--batch-size {training.batch_size}"]
    words += [f"--accumulation {training.accumulation}"] if training.accumulation > 1 else []
    if training.scheme is not None and not stored:
        words.append(
            f'--quantize "{training.quantize}"' if "(" in training.quantize else f"--quantize {training.quantize}"
        )
    words += ["--checkpointing"] if training.checkpointing else []
    words += ["--offload-activations"] if training.offload_activations else []
    words += [f"--optimizer {training.optimizer}"] if training.optimizer != "adamw" else []
    return " ".join(words)


def _show(search: MemoryFit, fittings: list[Fitting], best: Fitting | None, found: dict[str, Any]) -> None:
    asked, model = search.asked, found["model"]
    place = "a GPU" if asked.device == "cuda" else "the process"
    precision = "bfloat16" if asked.autocast else asked.dtype
    show(
        facts([
            ("model", f"{model['architecture']} ({model['model']}): {model['params']:,} parameters"),
            ("memory", f"{size(search.memory)} for {place}"),
            (
                "training",
                f"{asked.task}, {plural(asked.batch_size, 'row')} of {plural(asked.max_length, 'token')}, {precision}"
                + ("" if asked.scheme is None else f", base in {asked.quantize}"),
            ),
        ]),
        "",
    )  # fmt: skip
    columns = ["method", "fits", "changes", "memory", "weights", "states", "kept"]
    taken = [each for each in fittings if each.memory is not None]
    rows = [
        [each.method, _verdict(each), ", ".join(each.changes) if each.fits else "", *_sizes(each)] for each in taken
    ]
    show(table(columns, rows, right=columns[3:]), "")
    over = [(each.method, each.problem) for each in fittings if not each.fits]
    if over:
        show(facts((method, problem.partition("\n")[0]) for method, problem in over), "")
    pairs = [("disk", f"{size(found['disk'])} for the model's files"), ("loading", f"at most {size(found['loading'])}")]
    if best is None:
        least = min((each.memory.total for each in taken if each.memory), default=None)
        nothing = ("nothing fits" if taken else "not known: no training step is forecast") + (
            "" if least is None else f": the least is {size(least)}, {_missing(search, least)}"
        )
        show(facts([("result", nothing), *pairs]))
        return
    rows_, tokens = found["largest"]["batch_size"], found["largest"]["max_length"]
    largest = f"{plural(rows_, 'row')} of {best.training.max_length} tokens a pass"
    kept = plural(best.training.rows, "row")
    show(
        facts([
            ("recommended", best.method + (f" with {', '.join(best.changes)}" if best.changes else ", as asked for")),
            ("largest", f"{largest}; {tokens} tokens with {kept}"),
            *pairs,
        ]),
        "",
    )  # fmt: skip
    say(next(row["command"] for row in found["methods"] if row["method"] == best.method))


def _missing(search: MemoryFit, least: int) -> str:
    return f"{size(least - search.memory)} more than there is; a smaller model, or more memory"


def _verdict(each: Fitting) -> str:
    return "no" if not each.fits else "with changes" if each.changes else "yes"


def _sizes(each: Fitting) -> list[str]:
    memory = each.memory
    if memory is None:
        return [MISSING] * 4
    return [size(v) for v in (memory.total, memory.weights, memory.gradients + memory.optimizer, memory.activations)]
