"""`deltatune count`: trained parameters, file size and memory of methods on a model, from its config alone."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

from deltatune.cli.options.memory_options import FIELDS, CountedTask, OffloadActivations, Optimizer
from deltatune.cli.options.quantize_options import Quantize
from deltatune.cli.options.shared_options import BUDGET, DATA, METHOD, TRAINING, Json, Model, one_of, option
from deltatune.cli.ui.screen import facts, plural, print_json, show, table
from deltatune.comparison.report.number_format import MISSING, size
from deltatune.comparison.report.number_format import count as number
from deltatune.core.errors import DeltatuneError

if TYPE_CHECKING:
    from deltatune.comparison.costs.method_counts import CountingHost, MethodCount
    from deltatune.comparison.costs.training_memory import CountedTraining

LEGEND = (
    ("trained", "parameters without the head, and their share of the model"),
    ("file", "adapter.safetensors, head included"),
    ("kept", "activations that the forward pass keeps for the backward pass"),
    ("states", "gradients and AdamW's moments"),
    ("peak", "the most memory at once in a training step, weights included"),
    ("process", "the peak, with Python and its libraries or a GPU's context"),
)
"""What the columns mean."""


def count(
    model: Model = "builtin",
    methods: Annotated[
        list[str] | None,
        option(
            "--method",
            panel=METHOD,
            metavar="METHOD",
            help="A method to count; repeat the option for more. Default: every method at its defaults.",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        option(
            "--budget",
            panel=METHOD,
            metavar="SIZE",
            help=f"{BUDGET} Every method with a size gets the largest that fits.",
        ),
    ] = None,
    tasks: Annotated[
        int,
        option("--tasks", panel=METHOD, metavar="COUNT", help="Tasks to store: adapters beside one base.", min=1),
    ] = 1000,
    task: CountedTask = FIELDS["task"].default,
    classes: Annotated[
        int | None,
        option(
            "--classes",
            panel=DATA,
            metavar="NUMBER",
            help=f"{FIELDS['classes'].help}. Default: {FIELDS['classes'].default}.",
        ),
    ] = None,
    max_length: Annotated[
        int, option("--max-length", panel=DATA, metavar="TOKENS", help=f"{FIELDS['max_length'].help}.")
    ] = FIELDS["max_length"].default,
    batch_size: Annotated[
        int, option("--batch-size", panel=TRAINING, metavar="ROWS", help=f"{FIELDS['batch_size'].help}.")
    ] = FIELDS["batch_size"].default,
    dtype: Annotated[
        str,
        option(
            "--dtype",
            panel=TRAINING,
            metavar="TYPE",
            help=f"float32, bfloat16 or float16. {FIELDS['dtype'].help}.",
            callback=one_of("--dtype", FIELDS["dtype"].choices),
        ),
    ] = FIELDS["dtype"].default,
    checkpointing: Annotated[
        bool, option("--checkpointing/--no-checkpointing", panel=TRAINING, help=f"{FIELDS['checkpointing'].help}.")
    ] = FIELDS["checkpointing"].default,
    device: Annotated[
        str,
        option(
            "--device",
            panel=TRAINING,
            metavar="KIND",
            help=f"cpu or cuda. {FIELDS['device'].help}.",
            callback=one_of("--device", ("cpu", "cuda")),
        ),
    ] = FIELDS["device"].default,
    quantize: Quantize = None,
    precision: Annotated[
        str,
        option(
            "--precision",
            panel=TRAINING,
            metavar="KIND",
            help=f"float32 or bfloat16. {FIELDS['precision'].help}; the same on every machine, where train's is auto.",
            callback=one_of("--precision", FIELDS["precision"].choices),
        ),
    ] = FIELDS["precision"].default,
    accumulation: Annotated[
        int, option("--accumulation", panel=TRAINING, metavar="NUMBER", help=f"{FIELDS['accumulation'].help}.")
    ] = FIELDS["accumulation"].default,
    optimizer: Optimizer = FIELDS["optimizer"].default,
    offload_activations: OffloadActivations = FIELDS["offload_activations"].default,
    as_json: Json = False,
) -> None:
    """Count what methods train, store and need in memory on a model.

    Only the config is read: a folder with a config.json is enough, and a model of any size can be counted. Memory
    is that of the tensors of a training step; the column process adds Python and its libraries, or a GPU's context.

      deltatune count --model roberta-base --budget 0.5%
      deltatune count --model meta-llama/Llama-2-7b-hf --method "LoRA(r=8)" --task lm --dtype bfloat16 --device cuda
    """
    from deltatune.comparison.costs.method_counts import CountingHost, all_methods
    from deltatune.comparison.costs.training_memory import CountedTraining

    if task == "lm" and classes is not None:
        raise DeltatuneError(f"--classes {classes} is of a head, and --task lm has none of its own; leave it out")
    classes = FIELDS["classes"].default if classes is None else classes
    training = CountedTraining(
        task, classes, batch_size, max_length, dtype, checkpointing, device, precision, quantize or "none",  # type: ignore[arg-type]
        accumulation, optimizer, offload_activations,  # type: ignore[arg-type]
    )  # fmt: skip
    host = CountingHost(model, training)
    allowed = None
    if budget is not None:
        from deltatune.core.budget import read_budget

        allowed = read_budget(budget, host.host.sites)  # an error for all methods is one error
    counts = [host.count(method, budget) for method in methods or all_methods()]
    if methods and all(each.problem for each in counts):
        raise DeltatuneError("\n".join(f"{each.method}: {each.problem}" for each in counts))
    counts = list({each.method: each for each in counts}.values())  # short forms may be the same method
    if as_json:
        print_json({**_as_json(host, counts, tasks), "budget": allowed and dataclasses.asdict(allowed)})
    else:
        _show(host, counts, tasks, max_length)
        over = [each.method for each in counts if allowed is not None and (each.trained or 0) > allowed.params]
        if allowed is not None and over:
            of = f"{allowed.text} = {number(allowed.params)} parameters"
            show("", facts([("budget", f"{of}; these have no size to fit and train more: {', '.join(over)}")]))


def _as_json(host: CountingHost, counts: list[MethodCount], tasks: int) -> dict[str, Any]:
    from deltatune.comparison.costs.method_counts import storage

    model = host.model
    return {
        "model": dataclasses.asdict(model),
        "training": dataclasses.asdict(host.training),
        "tasks": tasks,
        "methods": [
            {**each.to_json(), "storage": None if each.problem else storage(model, each, tasks)} for each in counts
        ],
    }


def _show(host: CountingHost, counts: list[MethodCount], tasks: int, max_length: int) -> None:
    from deltatune.comparison.costs.method_counts import storage

    model, training = host.model, host.training
    fitting = sorted((each for each in counts if not each.problem), key=lambda each: (each.trained, each.method))
    heads = sorted({each.head or 0 for each in fitting})
    head = f", head {number(heads[-1])} parameters" if heads and heads[-1] else ""
    copies = size(tasks * model.file_bytes)
    pairs = [
        ("model", f"{model.architecture} ({model.model}): {number(model.params)} parameters, {size(model.file_bytes)}"),
        (
            "training",
            f"{plural(training.batch_size, 'row')} of {plural(training.max_length, 'token')}"
            f"{', the most that this model takes' if training.max_length < max_length else ''}, {training.dtype}, "
            f"{training.device}{_with(training)}{head}",
        ),
        ("storage", f"{number(tasks)} fine-tuned copies of the model: {copies}"),
    ]
    show(facts(pairs), "")
    stored = f"{number(tasks)} tasks"
    columns = ["method", "trained", "share", "file", stored, "kept", "states", "peak", "process"]
    rows = [
        [each.method, *_sizes(each), size(storage(model, each, tasks)["adapters"]), *_memory(each)] for each in fitting
    ]
    show(table(columns, rows, right=columns[1:]), "")
    legend = [*LEGEND[:2], (stored, "one base and an adapter for each task"), *LEGEND[2:]]
    show(facts(legend))
    unknown = sorted({each.memory_problem for each in fitting if each.memory_problem})
    if unknown:
        show("", facts([("memory", f"not forecast: {problem}") for problem in unknown]))
    problems = [each for each in counts if each.problem]
    if problems:
        show("", facts((each.method, str(each.problem).partition("\n")[0]) for each in problems))


def _with(training: CountedTraining) -> str:
    """What a training has beside the usual."""
    parts = [
        "bfloat16 autocast" if training.autocast else "",
        f"base in {training.quantize}" if training.scheme else "",
        "gradient checkpointing" if training.checkpointing else "",
        f"{training.accumulation} passes a batch" if training.accumulation > 1 else "",
        training.optimizer if training.optimizer != "adamw" else "",
        "offloaded activations" if training.offload_activations else "",
    ]
    return "".join(f", {part}" for part in parts if part)


def _sizes(each: MethodCount) -> list[str]:
    from deltatune.comparison.results.recommend import percent

    assert each.share is not None
    return [number(each.trained), percent(each.share), size(each.file_bytes)]


def _memory(each: MethodCount) -> list[str]:
    memory = each.memory
    if memory is None:
        return [MISSING] * 4
    return [size(memory.activations), size(memory.gradients + memory.optimizer), size(memory.peak), size(memory.total)]
