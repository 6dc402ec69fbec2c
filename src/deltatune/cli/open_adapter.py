"""A folder that `deltatune train` wrote -> the model with the adapter in it, and the task to use it for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatune.cli.overrides import answering
from deltatune.core.errors import DeltatuneError
from deltatune.store.run_folder import ADAPTER, RECORD

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from deltatune.core.host import Host
    from deltatune.tasks import Task

NAME = "adapter"
"""What the adapter is called on its host."""


@dataclass(frozen=True)
class Opened:
    """An adapter ready for use."""

    host: Host
    task: Task
    tokenizer: PreTrainedTokenizerBase
    model: str
    """Name of the model as it was found."""
    extra: dict[str, Any]
    """What training stored beside the tensors."""


def open_adapter(folder: str, model_name: str | None, other_base: bool, fields: Sequence[str] | None = None) -> Opened:
    """Load the model and the adapter; `fields` of its task are set, as `--set` has them.

    Raises DeltatuneError for a folder, a model or a tokenizer that does not fit.
    """
    from deltatune.core.adapter_formats import format_of
    from deltatune.core.host import Host
    from deltatune.models.hardware import best_device
    from deltatune.models.loading import load_backbone
    from deltatune.store import adapter_folder as ours
    from deltatune.tasks import task_from_json

    place = adapter_folder(folder)
    format_of(place)  # raises where there is no adapter at all
    config = ours.read_config(place) if ours.knows(place) else {}
    extra = config.get("extra") or {}
    if "task" not in extra:
        raise DeltatuneError(
            f"{place} does not say what it was trained for (labels and columns); "
            "only adapters of `deltatune train` do, others are loaded from Python: host.load(folder)"
        )
    task = answering(task_from_json(extra["task"]), fields)
    found = model_name or str(extra.get("model") or config["base"].get("name"))
    pooler = ((config.get("head") or {}).get("config") or {}).get("pooling") == "pooler"
    try:
        model, tokenizer = load_backbone(found, pooler=pooler, answers=getattr(task, "loads", task.answers))
    except DeltatuneError as error:
        if model_name is not None:
            raise
        raise DeltatuneError(
            f"the model that {place} was trained on is needed; --model says where it is.\n{error}"
        ) from error
    host = Host(model.to(best_device()))  # type: ignore[arg-type]
    host.load(place, name=NAME, other_base=other_base)
    _check_tokenizer(place, tokenizer, extra)
    return Opened(host, task, tokenizer, found, extra)


def adapter_folder(folder: str) -> Path:
    """The adapter's folder itself, also where the folder of its training run is given."""
    place = Path(folder).expanduser()
    if (place / ADAPTER).is_dir():
        return place / ADAPTER
    if (place / RECORD).is_file():
        raise DeltatuneError(f"the run in {place} is not finished, so there is no adapter yet; run its command again")
    return place


def _check_tokenizer(place: Path, tokenizer: PreTrainedTokenizerBase, extra: dict[str, Any]) -> None:
    from deltatune.tasks import tokenizer_fingerprint

    trained = extra.get("tokenizer")
    if trained is not None and trained != tokenizer_fingerprint(tokenizer):
        raise DeltatuneError(
            f"{place} was trained with another tokenizer than this model's: the same text would become other tokens. "
            "Give the model it was trained on with --model"
        )
