"""Options of the memory that training takes: the optimizer, its file, and what is kept for the backward pass."""

from __future__ import annotations

from typing import Annotated

from deltatune.cli.options import SETTINGS, TRAINING, one_of, option

Optimizer = Annotated[
    str,
    option(
        "--optimizer",
        panel=TRAINING,
        metavar="NAME",
        help=f"adamw, paged-adamw, adamw-8bit or paged-adamw-8bit. {SETTINGS['optimizer'].help}.",
        callback=one_of("--optimizer", SETTINGS["optimizer"].choices),
    ),
]
Checkpointing = Annotated[
    bool, option("--checkpointing/--no-checkpointing", panel=TRAINING, help=f"{SETTINGS['checkpointing'].help}.")
]
OffloadActivations = Annotated[
    bool,
    option(
        "--offload-activations/--no-offload-activations",
        panel=TRAINING,
        help=f"{SETTINGS['offload_activations'].help}.",
    ),
]
OverMemory = Annotated[
    bool,
    option(
        "--over-memory",
        panel=TRAINING,
        help="Train even where the forecast is clearly above the memory there is, which is an error otherwise.",
    ),
]
OptimizerFolder = Annotated[
    str | None,
    option(
        "--optimizer-folder",
        panel=TRAINING,
        metavar="FOLDER",
        help="Folder, on a disk, of the files of a paged optimizer and of --offload-activations. Default: that of the "
        "checkpoints.",
    ),
]
