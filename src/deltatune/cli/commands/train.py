"""`deltatune train`: train one adapter and score it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from deltatune.cli.options.data_options import (
    BUILTIN_DATA,
    MaxSeconds,
    Sources,
    Temperature,
    TestFile,
    ValidationFile,
    read_sources,
    sound_fields,
    task_fields,
)
from deltatune.cli.options.memory_options import (
    Checkpointing,
    OffloadActivations,
    Optimizer,
    OptimizerFolder,
    OverMemory,
)
from deltatune.cli.options.picture_options import Crop, Flip, MinSNR, Resolution, SamplePrompts, picture_fields
from deltatune.cli.options.preference_options import Beta, LabelSmoothing, Loss, Reference, preference_fields
from deltatune.cli.options.prompt_options import Describe, Template, Unlabelled, Words, given
from deltatune.cli.options.quantize_options import Quantize
from deltatune.cli.options.shared_options import (
    BUDGET,
    DATA,
    HEAD,
    METHOD,
    OUTPUT,
    SETTINGS,
    TRAINING,
    Accumulation,
    BatchSize,
    Beams,
    Compile,
    Dense,
    Epochs,
    Force,
    InitialValues,
    Json,
    Kind,
    Label,
    Limit,
    MaxLength,
    Metric,
    NewTokens,
    Packing,
    Pooling,
    Precision,
    Prompt,
    Shots,
    Steps,
    Text,
    head_of,
    option,
    set_values,
)
from deltatune.cli.options.task_options import MarkedEntities, MetricModel, Positive
from deltatune.cli.ui.screen import print_json, show
from deltatune.cli.ui.training_screen import introduce, report, watched_run
from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.store import run_folder
from deltatune.store.folder_lock import FolderLock

if TYPE_CHECKING:
    from torch import nn

    from deltatune.core.host import Host
    from deltatune.core.method import Method


PEERS = ("peft",)

ExportFor = Annotated[
    str | None,
    option(
        "--export-for",
        panel=OUTPUT,
        metavar="LIBRARY",
        help="peft: refuse before training what HF PEFT cannot load; its files are in the adapter's folder.",
    ),
]


def check_peer(name: str | None) -> None:
    """Raise DeltatuneError for a library that adapters cannot be exported for."""
    if name is not None and name not in PEERS:
        raise DeltatuneError(
            f"--export-for {name}: adapters can be exported for {', '.join(PEERS)}{nearest(name, PEERS)}"
        )


def rate_of(text: str | None) -> float | Literal["auto"] | None:
    """The learning rate of an option. Raises DeltatuneError for a text that is neither a number nor auto."""
    if text == "auto":
        return "auto"
    try:
        return None if text is None else float(text)
    except ValueError:
        hint = nearest(str(text), ["auto"])
        raise DeltatuneError(f"--lr {text}: give a number such as 2e-3, or auto{hint}") from None


def check_export(name: str | None, method: Method, host: Host, head: nn.Module | bool | None) -> list[str]:
    """Raise DeltatuneError with every reason against an export; returns notes on what an export leaves out."""
    if name is None:
        return []
    from deltatune.store.peft import left_out, peft_obstacles

    reasons = peft_obstacles(method, host, head)
    raise_all(reasons, f"{method!r} cannot be exported for {name}; nothing was trained:" if reasons else "")
    return left_out(head)


def train(
    model: Annotated[
        str | None,
        option(
            "--model",
            "-m",
            panel=DATA,
            metavar="MODEL",
            help="The pretrained model: a folder, a name on the hub, or builtin (all-MiniLM-L6-v2, installed with "
            "[demo]). Default: builtin; with --from, the adapter's.",
        ),
    ] = None,
    data: Sources = None,
    quantize: Quantize = None,
    task: Kind = None,
    text: Text = None,
    label: Label = None,
    validation: ValidationFile = None,
    test: TestFile = None,
    limit: Limit = None,
    shots: Shots = None,
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
    resolution: Resolution = None,
    crop: Crop = None,
    flip: Flip = False,
    sample: SamplePrompts = None,
    loss: Loss = None,
    beta: Beta = None,
    label_smoothing: LabelSmoothing = None,
    reference: Reference = None,
    start: Annotated[
        str | None,
        option(
            "--from",
            panel=METHOD,
            metavar="ADAPTER",
            help="Go on training this adapter: its folder, that of its run, one of PEFT, or a loralib file. Method, "
            "head and task are the adapter's; its folder stays as it is.",
        ),
    ] = None,
    new_labels: Annotated[
        bool,
        option("--new-labels", panel=METHOD, help="With --from: add outputs to the head for labels it does not know."),
    ] = False,
    method: Annotated[
        str | None,
        option(
            "--method",
            panel=METHOD,
            metavar="METHOD",
            help="The method; `deltatune methods` lists all of them, those of prompts too. Default: LoRA(r=8); with "
            "--from, the adapter's.",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        option("--budget", panel=METHOD, metavar="SIZE", help=f"{BUDGET} Sets the method's rank, size or length."),
    ] = None,
    init: InitialValues = None,
    template: Template = None,
    words: Words = None,
    describe: Describe = None,
    unlabelled: Unlabelled = None,
    pooling: Pooling = None,
    dense: Dense = HEAD["dense"].default,
    epochs: Epochs = SETTINGS["epochs"].default,
    steps: Steps = None,
    min_snr: MinSNR = None,
    lr: Annotated[
        str | None,
        option(
            "--lr",
            panel=TRAINING,
            metavar="RATE",
            help="Peak learning rate. Default: the one recommended for the method and the number of steps. auto: three "
            "or four rates are tried on the first steps and scored on the validation rows, and the best one goes on; "
            "that adds at most half of the run's cost.",
        ),
    ] = None,
    batch_size: BatchSize = SETTINGS["batch_size"].default,
    accumulation: Accumulation = SETTINGS["accumulation"].default,
    packing: Packing = SETTINGS["packing"].default,
    compile: Compile = SETTINGS["compile"].default,
    optimizer: Optimizer = SETTINGS["optimizer"].default,
    checkpointing: Checkpointing = SETTINGS["checkpointing"].default,
    offload_activations: OffloadActivations = SETTINGS["offload_activations"].default,
    optimizer_folder: OptimizerFolder = None,
    over_memory: OverMemory = False,
    seed: Annotated[
        int,
        option(
            "--seed",
            panel=TRAINING,
            metavar="NUMBER",
            help="Random seed for initialisation, shuffling and dropout; of --shots, the draw too.",
        ),
    ] = SETTINGS["seed"].default,
    precision: Precision = SETTINGS["precision"].default,
    out: Annotated[
        Path | None,
        option("--out", "-o", panel=OUTPUT, metavar="FOLDER", help="Default: runs/train-<data>-<method>."),
    ] = None,
    export_for: ExportFor = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train one adapter and score it.

    The folder gets the adapter (in adapter/) and metrics.json with the scores on the validation and the test split.
    After an interruption the same command resumes from the last checkpoint. A prompting method finds a prompt for the
    model's own head; with --template, --words or --describe every other method is trained through label words.

      deltatune train --data train.csv --method "LoRA(r=8)"
      deltatune train --model roberta-base --data train.csv --text premise --text hypothesis
      deltatune train --model gpt2 --task generate --data chats.jsonl --method "LoRA(r=8)"
      deltatune train --model google/vit-base-patch16-224 --data pictures/ --method "LoRA(r=8)"
      deltatune train --data reviews.csv --lr auto
      deltatune train --model gpt2-xl --task generate --data chats.jsonl --quantize nf4
      deltatune train --from runs/train-chats-lora-r-8 --data preferences.jsonl --task prefer
      deltatune train --from runs/train-reviews-lora-r-8 --data new-reviews.csv
      deltatune train --task image --model stable-diffusion --data pictures/ --steps 1000 --batch-size 4
      deltatune train --model bert-base-uncased --data train.csv --method "PET()" --shots 16
      deltatune train --model bert-base-uncased --data train.csv --template "{text} It was {mask}."
      deltatune train --data topic=topic.csv --data names=names.conll --temperature 2
    """
    check_peer(export_for)
    data = data or [BUILTIN_DATA]
    if new_labels and start is None:
        raise DeltatuneError("--new-labels is for an adapter whose training goes on: name it with --from")
    of_prompts = [*given(template, words, describe), *(["--unlabelled"] if unlabelled else [])]
    if start is not None and of_prompts:
        raise DeltatuneError(f"{', '.join(of_prompts)}: with --from the prompt is the adapter's; leave it out")
    # before torch is imported: mistakes in the data show quickly
    if start is None:
        dataset = read_sources(data, text, label, task, limit, validation, test)
    else:
        from deltatune.training.continued.continued_training import read_start, read_start_sources

        origin = read_start(start)
        files = {"validation": validation, "test": test}
        dataset = read_start_sources(origin, data, text=text or [], label=label, limit=limit, task=task, **files)
    every = dataset
    if shots is not None:
        from deltatune.data.few_shot import few_shot

        dataset = few_shot(dataset, shots, seed)
    fields = task_fields(
        dataset, max_length, metric, positive, mark, temperature,
        prompt=prompt, new_tokens=new_tokens, beams=beams, metric_model=metric_model,
    )  # fmt: skip
    fields |= sound_fields(dataset, max_seconds)
    fields |= preference_fields(dataset, loss, beta, label_smoothing, reference, start)
    fields |= picture_fields(dataset, resolution, crop, flip, min_snr, sample)
    from deltatune.cli.prompt_training import prompting_of, train_prompt
    from deltatune.comparison.costs.run_forecast import check_forecast, forecast_of
    from deltatune.training import Settings
    from deltatune.training.inference.batches import device_of
    from deltatune.training.job import METHOD as DEFAULT_METHOD
    from deltatune.training.job import Job, prepare, record_of, run
    from deltatune.training.scaling.distributed import join_processes

    settings = Settings(
        epochs=epochs, max_steps=steps, batch_size=batch_size, accumulation=accumulation, packing=packing, seed=seed,
        learning_rate=rate_of(lr), checkpointing=checkpointing, offload_activations=offload_activations,
        optimizer_folder=optimizer_folder,
        precision=precision, compile=compile, optimizer=optimizer,  # type: ignore[arg-type]  # it checks
    )  # fmt: skip
    source = ", ".join(data)
    prompting = prompting_of(method or DEFAULT_METHOD, template, words, describe, unlabelled) if start is None else None
    if prompting is not None:
        train_prompt(
            prompting, model or "builtin", every, dataset,
            prompts={"template": template, "words": words, "describe": describe}, unlabelled=unlabelled, budget=budget,
            task=set_values(fields), settings=settings, source=source, out=out, force=force, quantize=quantize,
            as_json=as_json,
            refused={f"--pooling {pooling}": pooling, "--dense": dense, f"--export-for {export_for}": export_for,
                     f"--init {init}": init},
        )  # fmt: skip
        return
    job = Job(
        model or ("builtin" if start is None else ""), dataset, method, budget, fields, head_of(pooling, dense),
        settings, start=None if start is None else origin, new_labels=new_labels, source=source, quantize=quantize,
        init=init,  # type: ignore[arg-type]  # the option has checked it
    )  # fmt: skip
    ready = prepare(job, partial(check_export, export_for))
    session = ready.session
    folder = out or run_folder.default_folder(ready.data.name, repr(session.adapter.method), session.quantize)
    if ready.start is not None:
        ready.start.check_apart(folder)
    record = record_of(ready, source)
    processes = join_processes(device_of(ready.session.host))
    if not processes.is_main:  # one of torchrun's other processes: only the first one prints and writes
        if processes.broadcast(None) is None:
            run(ready, folder, record)
        return
    with FolderLock(folder):
        forecast = forecast_of(ready)
        if forecast is not None and not over_memory:
            check_forecast(ready, forecast)
        before = processes.broadcast(run_folder.open_run(folder, record, force))
        introduce(ready, folder, forecast)
        if before is None:
            metrics = watched_run(ready, folder, record)
        else:
            metrics = before
            show("This run was finished before; --force trains it again.\n", aside=True)
    if as_json:
        print_json({"folder": str(folder), "adapter": str(folder / run_folder.ADAPTER), "metrics": metrics})
    else:
        report(ready.session.task, metrics, folder)
