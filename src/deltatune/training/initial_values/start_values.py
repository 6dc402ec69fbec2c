"""Initial values of a training's LoRA by name: EVA from its rows, LoftQ from the weights before quantisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from deltatune.core.adapter import Adapter
from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.method import Method
from deltatune.core.registry import parse_tuning
from deltatune.methods.low_rank.dora import DoRA
from deltatune.methods.low_rank.lora import LoRA
from deltatune.models.loading import find_config
from deltatune.tasks import Encoded
from deltatune.tasks.collator import collator_for
from deltatune.training.forward import reads_decoder_states, shifted_decoder_inputs
from deltatune.training.inference.batches import device_of
from deltatune.training.initial_values.eva import attach_eva
from deltatune.training.initial_values.loftq import attach_loftq
from deltatune.training.session import Session
from deltatune.training.settings import Settings

Init = Literal["eva", "loftq"]
INITS: tuple[Init, ...] = get_args(Init)


def check_init(init: str, method: str | Method, quantize: str | None, continued: bool = False) -> None:
    """Raise DeltatuneError for initial values that this training cannot have, before a model is loaded."""
    if init not in INITS:
        raise DeltatuneError(f"--init {init}: there are {', '.join(INITS)}{nearest(init, INITS)}")
    parsed, problems = parse_tuning(method), []
    if continued:
        problems.append("training goes on from the values of the adapter that --from names")
    elif init == "eva" and not isinstance(parsed, LoRA):
        problems.append(f"EVA starts a LoRA, RsLoRA or DoRA, not {parsed!r}")
    elif init == "loftq" and (not isinstance(parsed, LoRA) or isinstance(parsed, DoRA)):
        problems.append(f"LoftQ starts a LoRA or RsLoRA, not {parsed!r}")
    if init == "loftq" and not continued and quantize in (None, "none"):
        problems.append("LoftQ starts from what quantisation loses: quantise the plain model, such as --quantize nf4")
    raise_all([f"--init {init}: {problem}; or leave --init out" for problem in problems])


def start_values_(session: Session, init: Init, rows: Encoded, settings: Settings) -> Adapter:
    """Put the attached LoRA of a session in its place again, with the initial values of this name.

    rows: the training rows, encoded; EVA reads them in batches of `settings.batch_size`, in an order drawn from the
    seed. The head stays. Raises DeltatuneError as `attach_eva` and `attach_loftq` do.
    """
    adapter = session.adapter
    method, head = adapter.method, adapter.head
    assert isinstance(method, LoRA)  # `check_init` has seen to it
    session.detach()
    common: dict[str, Any] = {"seed": settings.seed, "head": False if head is None else head}
    if init == "loftq":
        return attach_loftq(session.host, session.name, method, find_config(session.model)[0], **common)
    return attach_eva(session.host, session.name, method, _Batches(session, rows, settings), **common)


class _Batches:
    """Batches of training rows as arguments of the bare model, the same at each pass."""

    def __init__(self, session: Session, rows: Encoded, settings: Settings) -> None:
        self.session, self.rows, self.size = session, list(rows), settings.batch_size
        if not self.rows or session.task.answers == "noise" or "input_ids" not in self.rows[0]:
            raise DeltatuneError(
                f"--init eva reads the tokens of the training rows, and a task that is {session.task.describe()} has "
                "none; leave --init out"
            )
        self.order = torch.randperm(len(self.rows), generator=generator_for(settings.seed, "init")).tolist()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        host, tokenizer = self.session.host, self.session.tokenizer
        collate = collator_for(host.model, tokenizer, self.rows[0], self.session.positions)
        # a smaller last batch may have fewer tokens than there are components
        for start in range(0, max(1, len(self.order) - self.size + 1), self.size):
            batch = collate([self.rows[number] for number in self.order[start : start + self.size]])
            yield self._arguments({name: value.to(device_of(host)) for name, value in batch.items()})

    def _arguments(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the bare model takes of a batch: token labels where it computes words, none for a task with a head."""
        host = self.session.host
        labels = batch.pop("labels", None)
        taken = {name: value for name, value in batch.items() if name in _MODEL_INPUTS}
        if self.session.task.loads in ("text", "words") and labels is not None and labels.dim() == 2:
            return {**taken, "labels": labels}
        return {**shifted_decoder_inputs(host.model, taken), **taken} if reads_decoder_states(host) else taken


_MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids", "decoder_attention_mask")
"""What models read; other columns of a batch are for losses."""
