"""The target `onnx`: one graph of the whole model, with the adapter and its head, checked in onnxruntime.

What merges is merged. What does not (prefixes, soft prompts, bottlenecks) is traced as it acts: the graph holds it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltatune.core.errors import DeltatuneError
from deltatune.core.merging import merge_obstacles, verification_inputs
from deltatune.store.atomic_files import read_json, write_json
from deltatune.store.exports.export_target import CannotExport, ExportedFiles, ExportRequest, Form, Write
from deltatune.store.exports.onnx.onnx_graph import (
    ExportedModel,
    check_packages,
    example,
    graph_inputs,
    prompts_given,
    run_graph,
    write_graph,
)
from deltatune.store.fingerprint import quantizations
from deltatune.store.merged_model import with_dtype
from deltatune.store.model_saving.classifier_model import describe_

MODEL, CONFIG = "model.onnx", "config.json"
SHAPES = ((2, 8, 3), (3, 13, 4), (1, 5, 0), (5, 3, 1))
"""Rows, tokens and padding of the inputs that are compared; the graph is traced with the first alone."""
TOLERANCE = 1e-4
"""Largest difference of an output, as a share of the largest output: other kernels sum in another order."""


@dataclass(frozen=True)
class ONNXTarget:
    """onnxruntime, and all else that reads ONNX."""

    forms: tuple[Form, ...] = ("model",)
    dtypes: tuple[str, ...] = ("float32",)

    def prepare(self, request: ExportRequest) -> Write:
        """Check that the model is one graph in float32 with a head that is in it."""
        check_packages()
        host, name = request.host, request.name
        adapter, facts = host.adapters[name], host.sites.facts
        problems = []
        if facts.encoder_decoder:
            problems.append(
                f"{facts.architecture} is an encoder-decoder, which takes a graph for each half and a loop; "
                "merge it (`deltatune merge`) and export the folder with optimum"
            )
        dtype = next(p.dtype for p in host.model.parameters() if p.is_floating_point())
        if dtype != torch.float32:
            problems.append(f"the model is in {str(dtype).removeprefix('torch.')}, and the graph computes in float32")
        if stored := quantizations(host):
            problems.append(
                f"the base is stored in {', '.join(stored)}, whose kernels have no ONNX form; load it plain"
            )
        waves = (verification_inputs(host.model, host.sites.facts) or {}).get("input_values")
        if waves is not None and waves.dim() == 2:
            problems.append(
                f"{host.sites.facts.architecture} reads samples of sounds, and the graph would be bound to one length; "
                "`deltatune merge` writes a model of transformers"
            )
        if adapter.head is not None and not hasattr(getattr(adapter.head, "config", None), "pooling"):
            problems.append(f"its {type(adapter.head).__name__} is not a single head of one task")
        if problems:
            raise CannotExport(problems)
        return lambda folder: _write(request, folder)


ONNX = ONNXTarget()


def _write(request: ExportRequest, folder: Path) -> ExportedFiles:
    host, name = request.host, request.name
    task = host.adapters[name].extra.get("task")
    kind = str(task.get("task", "")) if isinstance(task, Mapping) else ""
    types = request.tokenizer is None or "token_type_ids" in getattr(request.tokenizer, "model_input_names", ())
    names = graph_inputs(host, types)
    before, merged = host.route, not merge_obstacles(host.adapters[name]) and not host.prompts.get(name)
    batches = [example(host, names, *shape) for shape in SHAPES]
    try:
        with host.using({name: request.weight}, training=False), torch.no_grad():
            model = _model(request, names, kind)
            outputs = model.output_names(batches[0])
            expected = [model(*(batch[each] for each in names)) for batch in batches]
        with host.using(None, training=False), torch.no_grad():
            base = _model(request, names, kind)(*(batches[0][each] for each in names))
        if merged:
            host.merge_(name, request.weight)
        with host.using(None if merged else {name: request.weight}, training=False):
            model = _model(request, names, kind)
            with prompts_given(host):
                write_graph(model, batches[0], outputs, folder / MODEL)
    finally:
        if name in host.merged:
            host.unmerge_(name)
        host.use(before)
    found = [run_graph(folder / MODEL, batch) for batch in batches]
    largest = _check(expected, found, batches)
    _write_config(request, folder, kind, task if isinstance(task, Mapping) else {})
    if request.tokenizer is not None:
        request.tokenizer.save_pretrained(folder)
    notes = [] if merged else [f"the graph holds {host.adapters[name].method!r} as it acts, unmerged"]
    if outputs == ["last_hidden_state"]:
        notes.append("the output is the last hidden states; vectors of texts are pooled by the caller")
    if host.sites.facts.decoder and "input_ids" in names and outputs == ["logits"] and host.adapters[name].head is None:
        notes.append("the graph keeps no cache of keys and values: each call reads the whole text")
    real = [_difference(a, b, batches[0]) for a, b in zip(expected[0], found[0], strict=True)]
    effect = [_difference(a, b, batches[0]) for a, b in zip(expected[0], base, strict=True)]
    error = max(real) / max(effect) if max(effect) else None
    inputs = 'dict(tokenizer(texts, return_tensors="np"))' if "input_ids" in names else f"{{{names[0]!r}: batch}}"
    usage = (f'onnxruntime.InferenceSession("{folder / MODEL}").run(None, {inputs})',)
    return ExportedFiles(folder, "ONNX", "model", largest, error, None, tuple(notes), usage)


def _model(request: ExportRequest, names: tuple[str, ...], kind: str) -> ExportedModel:
    model = ExportedModel(request.host, request.name, names, spans=kind == "span")
    return model.eval()


def _check(
    expected: Sequence[Sequence[Tensor]], found: Sequence[Sequence[Tensor]], batches: Sequence[Mapping[str, Tensor]]
) -> float:
    """The largest difference at real tokens. Raises DeltatuneError for more than rounding."""
    differences, scale = [0.0], 1.0
    for theirs, ours, batch in zip(found, expected, batches, strict=True):
        for one, other in zip(theirs, ours, strict=True):
            if one.shape != other.shape:
                raise DeltatuneError(
                    f"the graph gives shape {tuple(one.shape)} where the model gives {tuple(other.shape)}: it is bound "
                    "to the shape that it was traced with; nothing was written"
                )
            differences.append(_difference(other, one, batch))
            scale = max(scale, float(other.abs().max()))
    worst = max(differences, key=lambda each: math.inf if math.isnan(each) else each)  # NaN compares as nothing
    if not worst <= TOLERANCE * scale:
        raise DeltatuneError(
            f"the graph's outputs in onnxruntime differ by {worst:.2g}, more than rounding explains "
            f"({TOLERANCE * scale:.2g}); nothing was written"
        )
    return worst


def _difference(one: Tensor, other: Tensor, batch: Mapping[str, Tensor]) -> float:
    """The largest difference of two outputs, of tokens at real ones alone."""
    change = (one.detach().cpu().float() - other.detach().cpu().float()).abs()
    mask = batch.get("attention_mask")
    if mask is not None and change.dim() > 1 and change.shape[:2] == mask.shape:
        change = change[mask.cpu().bool()]
    return float(change.max())


def _write_config(request: ExportRequest, folder: Path, kind: str, task: Mapping[str, Any]) -> None:
    """The base's config with the head's labels, as transformers and optimum read it."""
    config: Any = deepcopy(request.host.model.config)
    head = request.host.adapters[request.name].head
    if head is not None:
        describe_(config, head, kind, task)
    config.save_pretrained(folder)
    stored = with_dtype(read_json(folder / CONFIG), "float32")
    stored.pop("quantization_config", None)
    write_json(folder / CONFIG, stored)
