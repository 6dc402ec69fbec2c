"""`deltatune pretrain`: train on raw text with a pretraining objective, from a checkpoint or from a config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from deltatune.cli.options.data_options import TestFile, ValidationFile
from deltatune.cli.options.memory_options import Checkpointing, OffloadActivations, Optimizer, OptimizerFolder
from deltatune.cli.options.quantize_options import Quantize
from deltatune.cli.options.shared_options import (
    DATA,
    METHOD,
    OUTPUT,
    SETTINGS,
    TRAINING,
    Accumulation,
    BatchSize,
    Epochs,
    Force,
    Json,
    Limit,
    Model,
    Packing,
    Precision,
    option,
    read_fields,
)
from deltatune.cli.ui.screen import print_json, say, show
from deltatune.cli.ui.training_screen import introduce, report, watched_run
from deltatune.store import run_folder
from deltatune.store.folder_lock import FolderLock

OBJECTIVES = (
    "mlm, wwm (whole words), entity, nsp (next sentence), lm, spans (span corruption), prefix-lm or replaced (entities)"
)
MODEL = "model"


def pretrain(
    model: Model = "builtin",
    config: Annotated[
        Path | None,
        option("--config", panel=DATA, metavar="FILE", help="Start from random weights of this config.json."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        option("--tokenizer", panel=DATA, metavar="MODEL", help="With --config: the model that the tokenizer is from."),
    ] = None,
    data: Annotated[
        str, option("--data", "-d", panel=DATA, metavar="DATA", help="Raw text: a file, a folder, JSONL or a data set.")
    ] = "python-docs",
    text: Annotated[
        str | None, option("--text", panel=DATA, metavar="COLUMN", help="The text column. Default: inferred.")
    ] = None,
    validation: ValidationFile = None,
    test: TestFile = None,
    limit: Limit = None,
    quantize: Quantize = None,
    objective: Annotated[
        str, option("--objective", panel=METHOD, metavar="KIND", help=f"Pretraining objective: {OBJECTIVES}.")
    ] = "mlm",
    fields: Annotated[
        list[str] | None,
        option("--set", panel=METHOD, metavar="NAME=VALUE", help="A field of the objective, such as max_length=128."),
    ] = None,
    method: Annotated[
        str, option("--method", panel=METHOD, metavar="METHOD", help="The method; Full() trains the whole model.")
    ] = "Full()",
    epochs: Epochs = SETTINGS["epochs"].default,
    lr: Annotated[
        float | None, option("--lr", panel=TRAINING, metavar="RATE", help="Peak learning rate. Default: the method's.")
    ] = None,
    batch_size: BatchSize = SETTINGS["batch_size"].default,
    accumulation: Accumulation = SETTINGS["accumulation"].default,
    packing: Packing = SETTINGS["packing"].default,
    optimizer: Optimizer = SETTINGS["optimizer"].default,
    checkpointing: Checkpointing = SETTINGS["checkpointing"].default,
    offload_activations: OffloadActivations = SETTINGS["offload_activations"].default,
    optimizer_folder: OptimizerFolder = None,
    seed: Annotated[
        int,
        option(
            "--seed", panel=TRAINING, metavar="NUMBER", help="Random seed for initialisation, masking and shuffling."
        ),
    ] = SETTINGS["seed"].default,
    precision: Precision = SETTINGS["precision"].default,
    out: Annotated[
        Path | None,
        option("--out", "-o", panel=OUTPUT, metavar="FOLDER", help="Default: runs/pretrain-<data>-<objective>."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train on raw text with a pretraining objective, and write the model.

    Masks are sampled again in every epoch. The folder gets the adapter, metrics.json and, if the method can be merged,
    the merged model (in model/), checked after reading it back. After an interruption the same command resumes.

      deltatune pretrain --model bert-base-uncased --data texts/ --objective wwm
      deltatune pretrain --config config.json --tokenizer gpt2 --data texts.jsonl --objective lm
    """
    from deltatune.data.read_data import read_source
    from deltatune.tasks.pretraining import objective_from

    dataset = read_source(data, task="lm", text=[text] if text else [], limit=limit, validation=validation, test=test)
    objective_config: Any = {"kind": objective, "text": list(dataset.text), **read_fields(fields)}
    task = objective_from(objective_config)
    from deltatune.training import Settings
    from deltatune.training.job import Job, prepare, record_of
    from deltatune.training.model_init import initial_model

    folder = out or Path("runs") / f"pretrain-{dataset.name}-{objective}"
    settings = Settings(
        epochs=epochs, batch_size=batch_size, accumulation=accumulation, packing=packing, learning_rate=lr, seed=seed,
        checkpointing=checkpointing, offload_activations=offload_activations, optimizer_folder=optimizer_folder,
        precision=precision, optimizer=optimizer,  # type: ignore[arg-type]  # it checks
    )  # fmt: skip
    with FolderLock(folder):
        start = initial_model(model, config, tokenizer, task, method, folder, seed, force)
        ready = prepare(Job(start, dataset, method, settings=settings, objective=task, quantize=quantize))
        record = record_of(ready, data)
        run = folder / "run"
        before = run_folder.open_run(run, record, force)
        introduce(ready, folder)
        metrics = watched_run(ready, run, record) if before is None else before
        if not as_json:
            report(ready.session.task, metrics, run, use=False)
        model_folder, difference = keep_model(ready, folder)
    if as_json:
        made = {"model": model_folder and str(model_folder), "difference": difference}
        print_json({"folder": str(folder), "adapter": str(run / run_folder.ADAPTER), **made, "metrics": metrics})


def keep_model(ready: Any, folder: Path) -> tuple[Path | None, float | None]:
    """Write the merged model, if the method can be merged; its folder and how far its outputs differ after reading."""
    from deltatune.core.merging import merge_obstacles
    from deltatune.models.loading import quiet
    from deltatune.store.merged_model import save_merged

    session, host = ready.session, ready.session.host
    if merge_obstacles(session.adapter):
        show(f"{session.adapter.method!r} cannot be merged, so only the adapter was written.")
        return None, None
    session.detach()
    host.load(folder / "run" / run_folder.ADAPTER, name=session.name)  # also if the run was finished before
    with quiet():
        done = save_merged(host, session.name, folder / MODEL, session.tokenizer)
    say(f"Model: {done.folder} (after reading it back it differs from the unmerged model by {done.difference:.1g})")
    return done.folder, done.difference
