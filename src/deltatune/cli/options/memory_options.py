"""Options of the memory that training takes: the optimizer, its file, what is kept for backward, and its forecast."""

from __future__ import annotations

from typing import Annotated

from deltatune.cli.options.shared_options import DATA, SETTINGS, TRAINING, one_of, option
from deltatune.cli.ui.help_screen import fields_of

FIELDS = fields_of("comparison/costs/training_memory.py", "CountedTraining")
"""Fields of the training whose memory is forecast."""
CountedTask = Annotated[
    str,
    option(
        "--task",
        panel=DATA,
        metavar="KIND",
        help="classify (a head for rows), tag (a head for tokens) or lm (the language-model head).",
        callback=one_of("--task", FIELDS["task"].choices),
    ),
]

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
