"""Names of options: what papers and other libraries call them, and errors that name the nearest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, Self

from deltatune.core.errors import DeltatuneError, nearest

ALIASES = {
    "rank": "r",
    "lora_r": "r",
    "lora_rank": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "sites",
    "rank_pattern": "ranks",
    "num_virtual_tokens": "length",
    "oft_block_size": "block",
    "boft_block_size": "block",
    "boft_n_butterfly_factor": "factors",
    "num_cayley_neumann_terms": "terms",
    "n_frequency": "n",
    "random_loc_seed": "seed",
    "num_vectors": "vectors",
    "vector_length": "length",
    "topk": "k",
    "decompose_factor": "factor",
    "vera_dropout": "dropout",
    "vblora_dropout": "dropout",
    "lr": "learning_rate",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulation",
    "gradient_checkpointing": "checkpointing",
    "warmup_ratio": "warmup",
    "lr_scheduler_type": "schedule",
    "optim": "optimizer",
    "max_seq_length": "max_length",
    "label_names": "labels",
}
"""Options as papers and other libraries call them, and their names here. Errors suggest these; none is accepted."""


class UnknownOption(DeltatuneError, TypeError):
    """A call names an option that does not exist."""


def unknown_options(kind: str, given: Iterable[str], names: Sequence[str]) -> str:
    """An error's text for the options of a call that do not exist, with the nearest names; empty if all do."""
    wrong = "; ".join(f"{kind} has no option {name!r}{_suggestion(name, names)}" for name in given if name not in names)
    return f"{wrong}\noptions of {kind}: {', '.join(names) or 'none'}" if wrong else ""


def _suggestion(option: str, names: Sequence[str]) -> str:
    alias = ALIASES.get(option)
    return f"; it is called {alias!r} here" if alias in names else nearest(option, names)


def refuse_unknown(kind: str, given: Iterable[str], names: Sequence[str]) -> None:
    """Raise UnknownOption, which is a DeltatuneError and a TypeError, for options that do not exist."""
    if problem := unknown_options(kind, given, names):
        raise UnknownOption(problem)


class NamedOptions:
    """What a dataclass of options inherits: a name that it does not have is refused with the nearest that it has."""

    def __new__(cls, *args: Any, **options: Any) -> Self:
        if options and "__dataclass_fields__" in vars(cls):
            names = [field.name for field in fields(cls) if field.init]  # type: ignore[arg-type]  # a dataclass
            if not options.keys() <= set(names):
                refuse_unknown(cls.__name__, options, names)
        return super().__new__(cls)
