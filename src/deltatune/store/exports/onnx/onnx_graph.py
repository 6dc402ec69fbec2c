"""A model with one adapter as a function of tensors alone, and its ONNX graph."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.merging import verification_inputs
from deltatune.store.model_saving.media_classifier import pooled_mask

TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
LARGE = 2**30
"""Bytes from which weights go into a file of their own: an ONNX file holds 2 GiB at most."""


class ExportedModel(nn.Module):
    """The model under its present route, with the adapter's head: named input tensors to a tuple of output tensors.

    Soft prompts become a part of the graph: their virtual tokens are put before `input_ids` and left out of the
    outputs, and callers know nothing of them.
    """

    def __init__(self, host: Host, name: str, inputs: tuple[str, ...], spans: bool = False) -> None:
        super().__init__()
        self.model = host.model
        self.head: Any = host.adapters[name].head
        self.names = inputs
        self.spans = spans and self.head is not None
        """Whether the head marks starts and ends of answers."""
        self.prompt = host.prompts.get(name, 0)
        self.vocabulary = host.sites.facts.vocabulary
        parameters = signature(host.model.forward).parameters
        self.positions = host.sites.facts.decoder and "position_ids" in parameters and "input_ids" in inputs
        self.more = {"use_cache": False} if "use_cache" in parameters else {}
        if self.head is not None and hasattr(host.model, "base_model") and host.model.base_model is not host.model:
            self.more["output_hidden_states"] = True

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Logits; start and end logits of spans; or, without any head, the last hidden states (B, T, D)."""
        batch = dict(zip(self.names, tensors, strict=True))
        mask = batch.get("attention_mask")
        if self.prompt:
            batch = self._with_prompt(batch)
        if self.positions:
            batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        outputs = self.model(**batch, **self.more)
        if self.head is not None:
            states = getattr(outputs, "last_hidden_state", None)
            states = outputs.hidden_states[-1] if states is None else states
            mask = pooled_mask(self.model, states, batch) if mask is None else mask
            logits = self.head(states[:, self.prompt :], mask, getattr(outputs, "pooler_output", None))
            return tuple(logits.unbind(-1)) if self.spans else (logits,)
        if "start_logits" in outputs:
            return outputs.start_logits[:, self.prompt :], outputs.end_logits[:, self.prompt :]
        output: Tensor = outputs["logits"] if "logits" in outputs else outputs[0]
        return (output[:, self.prompt :] if output.dim() == 3 else output,)

    def _with_prompt(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ids = batch["input_ids"]
        rows = ids.shape[0]
        virtual = torch.arange(self.vocabulary, self.vocabulary + self.prompt, device=ids.device)
        longer = {"input_ids": torch.cat([virtual[None].expand(rows, -1), ids], 1)}
        for name in batch.keys() & {"attention_mask", "token_type_ids"}:
            value = 1 if name == "attention_mask" else 0
            longer[name] = torch.cat([ids.new_full((1, self.prompt), value).expand(rows, -1), batch[name]], 1)
        return {**batch, **longer}

    def output_names(self, batch: Mapping[str, Tensor]) -> list[str]:
        """Names of the outputs, as transformers and optimum call them."""
        with torch.no_grad():
            outputs = self(*(batch[name] for name in self.names))
        if len(outputs) == 2:
            return ["start_logits", "end_logits"]
        return ["logits" if self.head is not None or _answers(self.model) else "last_hidden_state"]


def _answers(model: nn.Module) -> bool:
    """Whether a model of transformers gives logits."""
    return any(part in type(model).__name__ for part in ("For", "LMHead"))


def graph_inputs(host: Host, token_types: bool) -> tuple[str, ...]:
    """Names of the graph's inputs. Raises DeltatuneError for an architecture whose inputs are not known."""
    batch = verification_inputs(host.model, host.sites.facts)
    if batch is None:
        raise DeltatuneError(f"the inputs of {host.sites.facts.architecture} are not known here")
    parameters = signature(host.model.forward).parameters
    names = [name for name in batch if name in parameters]
    return (*names, *(("token_type_ids",) if token_types and "token_type_ids" in parameters else ()))


def example(host: Host, names: tuple[str, ...], rows: int, tokens: int, padding: int = 0) -> dict[str, Tensor]:
    """Random inputs of one shape; the last row of several ends in padding. Images and sounds have one size."""
    batch = verification_inputs(host.model, host.sites.facts)
    assert batch is not None
    generator = generator_for(rows * 1000 + tokens, "onnx")
    made: dict[str, Tensor] = {}
    for name in names:
        if name == "input_ids":
            made[name] = torch.randint(0, host.sites.facts.vocabulary, (rows, tokens), generator=generator)
        elif name == "attention_mask" and "input_ids" in names:
            made[name] = torch.ones(rows, tokens, dtype=torch.long)
            if padding and rows > 1:
                made[name][-1, -padding:] = 0
        elif name == "token_type_ids":
            made[name] = torch.zeros(rows, tokens, dtype=torch.long)
            made[name][:, tokens // 2 :] = 1 if getattr(host.model.config, "type_vocab_size", 1) > 1 else 0
        else:
            made[name] = torch.randn(rows, *batch[name].shape[1:], generator=generator)
    return {name: tensor.to(batch[names[0]].device) for name, tensor in made.items()}


def write_graph(model: ExportedModel, batch: Mapping[str, Tensor], outputs: list[str], file: Path) -> None:
    """Trace the model and write its graph; rows, and tokens where there are any, stay free.

    Raises DeltatuneError, with the tracer's reason, for a model that cannot be traced.
    """
    free = torch.export.Dim.DYNAMIC
    shapes = tuple({0: free, 1: free} if name in TOKEN_INPUTS else {0: free} for name in model.names)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    with _quiet(), torch.no_grad():
        try:
            program: Any = torch.onnx.export(
                model,
                tuple(batch[name] for name in model.names),
                dynamo=True,
                dynamic_shapes=(shapes,),
                input_names=list(model.names),
                output_names=outputs,
                verbose=False,
            )
        except Exception as error:
            raise DeltatuneError(f"torch.onnx cannot trace this model: {_reason(error)}") from error
        program.save(file, external_data=size > LARGE)


@contextlib.contextmanager
def prompts_given(host: Host) -> Iterator[None]:
    """Within this block inputs hold their virtual tokens already: the host, which cannot look at ids while a graph is
    traced, inserts none."""
    lengths = cast(dict[str, int], host.prompts)
    kept = dict(lengths)
    lengths.clear()
    try:
        yield
    finally:
        lengths.update(kept)


def run_graph(file: Path, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """The outputs of a graph in onnxruntime."""
    import onnxruntime  # type: ignore[import-untyped,unused-ignore]

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    inputs = {entry.name: batch[entry.name].cpu().numpy() for entry in session.get_inputs()}
    return [torch.from_numpy(values) for values in session.run(None, inputs)]


def check_packages() -> None:
    """Raise DeltatuneError with the line that installs what is missing."""
    missing = []
    for package in ("onnx", "onnxruntime", "onnxscript"):
        try:
            __import__(package)
        except ImportError:
            missing.append(package)
    if missing:
        raise DeltatuneError(f'ONNX needs {", ".join(missing)}: pip install "deltatune[onnx]"')


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings, log lines and prints: what goes wrong is an error."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _reason(error: Exception) -> str:
    """The line of a long report that says what happened."""
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
