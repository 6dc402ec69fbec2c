"""Counts of methods on a model from its config alone: trained parameters, the size of the file, memory in training.

The model has shapes and no weights, so that a model of any size is counted in seconds on any machine.
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from deltatune.comparison.costs.inference_costs import added_tokens
from deltatune.comparison.costs.training_memory import (
    NAME,
    CountedTraining,
    Memory,
    bytes_of,
    forecast_step,
    quantize_shapes_,
)
from deltatune.core.budget import fit_budget
from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.quantization.schemes import Scheme
from deltatune.core.registry import parse, registry
from deltatune.core.sites.discovery import find_sites
from deltatune.models.architecture import family
from deltatune.models.loading import empty_backbone, find_config
from deltatune.models.quantization.quantize_model import maps_to_quantize
from deltatune.models.quantization.stored_codes import holds_codes, schemes_in_files
from deltatune.models.quantization.streaming import configured_scheme
from deltatune.models.shape_run import shapes_only
from deltatune.store.tensors import file_size
from deltatune.tasks import longest_input
from deltatune.tasks.heads import Head, HeadConfig


@dataclass(frozen=True)
class MethodCount:
    """One method on one model."""

    method: str
    """Its text form."""
    trained: int | None = None
    """Trained parameters, the head left out."""
    share: float | None = None
    """Of the base's parameters."""
    head: int | None = None
    """Parameters of the task's head."""
    tokens: int | None = None
    """Tokens by which prompts and prefixes make each text longer."""
    file_bytes: int | None = None
    """Size of `adapter.safetensors`, the head included."""
    memory: Memory | None = None
    memory_problem: str | None = None
    """Why memory cannot be forecast on this model; `memory` is None then."""
    problem: str | None = None
    """Why this model cannot take it; all else is None then."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class ModelCount:
    """A model without adapters."""

    model: str
    architecture: str
    params: int
    """Parameters of the base, tied ones once, task heads left out."""
    file_bytes: int
    """Bytes of its weights on disk, plain and in the chosen type: also those of one fine-tuned copy."""
    stored_bytes: int
    """Bytes of its weights and buffers in memory, quantised if so chosen."""


class CountingHost:
    """A model from its config, with shapes and without weights, on which methods are counted."""

    def __init__(self, model: str, training: CountedTraining | None = None, layers: int | None = None) -> None:
        """Raises DeltatuneError for a model without a config, one without the head that the task needs, and for another
        quantisation than that in which a model's files are.

        layers: a number of blocks other than the config's.
        """
        self.training = training or CountedTraining()
        self.name = model
        self.picked: list[int | None] | None = None
        """The block of each place that the method counted last changes; None where it has no block."""
        _, config = find_config(model)
        loads: Any = "row"
        if self.training.task == "lm":
            loads = "mask" if family(config) == "encoder" else "text"
        with shapes_only(self.training.device):
            backbone: Any = empty_backbone(model, loads, layers).to(getattr(torch, self.training.dtype))
            self.stored, schemes = _schemes(model, backbone, self.training.scheme)
            """The scheme in which the model's files hold its linear maps, an empty text for plain files; each map's."""
            self.plain_bytes = bytes_of(backbone.parameters())
            quantize_shapes_(backbone, schemes)
            self.host = Host(backbone)
        self.trained_as_(self.training)

    def trained_as_(self, training: CountedTraining) -> None:
        """Forecast another training of the same base: one of equal task, dtype, device and quantisation."""
        positions = longest_input(self.host.model)
        if positions is not None and training.max_length > positions:
            training = dataclasses.replace(training, max_length=positions)
        self.training = dataclasses.replace(training, quantize=self.stored or training.quantize)

    @property
    def model(self) -> ModelCount:
        """The model itself."""
        sites = self.host.sites
        stored = bytes_of([*self.host.model.parameters(), *self.host.model.buffers()])
        return ModelCount(self.name, sites.facts.architecture, sites.base_params, self.plain_bytes, stored)

    def count(self, method: str | Method, budget: str | int | None = None) -> MethodCount:
        """Count a method, in the largest size that fits a budget if one is given.

        Raises DeltatuneError for a text that is not a method; a method that the model cannot take says why.
        """
        parsed = parse(method)
        training, host = self.training, self.host
        text = repr(parsed)
        try:
            if budget is not None:
                parsed = fit_budget(parsed, host.sites, budget)
                text = repr(parsed)
            with shapes_only(training.device):
                adapter = host.attach(NAME, parsed, head=self._head())
                if not host.trainable(NAME):
                    raise DeltatuneError("it trains only a head, and this task uses the language-model head")
                self.picked = [site.layer for _, site, _ in adapter.entries()]
                memory = forecast_step(host, adapter, training)
                return MethodCount(
                    text,
                    trained=adapter.count,
                    share=adapter.count / host.sites.base_params,
                    head=adapter.head_count,
                    tokens=added_tokens(adapter),
                    file_bytes=file_size(adapter.without_reparametrisation().tensors()),
                    memory=memory if isinstance(memory, Memory) else None,
                    memory_problem=memory if isinstance(memory, str) else None,
                )
        except DeltatuneError as error:
            return MethodCount(text, problem=str(error))
        finally:
            if NAME in host.adapters:
                host.detach(NAME)
            host.model.zero_grad()
            host.model.eval()

    def _head(self) -> Head | Literal[False]:
        training = self.training
        if training.task == "lm":
            return False
        pooling: Literal["none", "mean"] = "none" if training.task == "tag" else "mean"
        return Head(HeadConfig(pooling, outputs=training.classes, width=self.host.sites.facts.hidden))


def _schemes(model: str, backbone: PreTrainedModel, asked: Scheme | None) -> tuple[str, dict[str, Scheme]]:
    """The scheme in which a model's files are, or an empty text; and each linear map's: the files', else `asked`."""
    place, config = find_config(model)
    wanted, _ = maps_to_quantize(backbone, find_sites(backbone))
    stored: dict[str, Scheme] = {}
    if holds_codes(place):
        stored = schemes_in_files(place, wanted)
    else:  # a config without its files
        configured = configured_scheme(config)
        stored = {} if configured is None else dict.fromkeys(wanted, configured)
    texts = sorted({scheme.text for scheme in stored.values()})
    if texts and asked is not None and [asked.text] != texts:
        raise DeltatuneError(
            f"{model} is quantised already, as {', '.join(texts)}; leave the quantisation out, or take the model "
            f"that it was made from for {asked.text}"
        )
    return (texts[0], stored) if texts else ("", {} if asked is None else dict.fromkeys(wanted, asked))


def all_methods() -> list[str]:
    """Every registered method and short form at its defaults, equal ones once."""
    return list(dict.fromkeys(repr(maker()) for maker in registry().values()))


def storage(model: ModelCount, count: MethodCount, tasks: int) -> dict[str, int]:
    """Bytes on disk of the adapters of many tasks beside one base, and of as many fine-tuned copies of the model."""
    return {"adapters": model.file_bytes + tasks * (count.file_bytes or 0), "copies": tasks * model.file_bytes}
