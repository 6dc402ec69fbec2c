"""Saving a model with an adapter merged into its weights, verified on the model read back from disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltatune.core.adapter import Adapter
from deltatune.core.errors import CannotMerge, DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.merging import computing_dtype, difference, rounding_tolerance, verification_output
from deltatune.core.quantization.schemes import Scheme, read_scheme
from deltatune.core.quantization.stored_weights import stored_weight, weight_of
from deltatune.models.quantization.streaming import load_streamed
from deltatune.store.atomic_files import read_json, write_folder, write_json
from deltatune.store.fingerprint import quantizations
from deltatune.store.merged_codes import BOUND, check_error, stored_in_codes
from deltatune.store.model_saving.classifier_model import classifier_model
from deltatune.store.quantized_model import quantization_config
from deltatune.store.tensors import not_finite

CONFIG, RECORD = "config.json", "merge.json"


@dataclass(frozen=True)
class Merged:
    """The result of saving a merged model."""

    folder: Path
    """The model's folder, for `from_pretrained`."""
    difference: float
    """Largest difference of the outputs on verification inputs between the unmerged adapter and the model read back."""
    error: float | None
    """‖read back − unmerged‖ / ‖unmerged − base‖ of these outputs: 0 if all of the adapter's change is kept, 1 if the
    model read back is as far from the adapter as the base is. None if the adapter changes nothing there."""
    scheme: str | None = None
    """How the merged weights are stored, such as nf4; None for plain ones."""
    notes: tuple[str, ...] = ()
    """What other programs cannot do with the folder: codes that they cannot read, a head that is not in it."""
    classifier: str | None = None
    """The class of transformers that holds the adapter's head too, such as BertForSequenceClassification."""


def save_merged(
    host: Host,
    name: str,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: torch.dtype | None = None,
    weight: float = 1.0,
    quantize: str | Scheme | None = None,
    bound: float = BOUND,
) -> Merged:
    """Write the base with adapter `name` merged into it as a model folder, atomically.

    The model is read back and compared with the unmerged adapter; merge.json records the difference. `dtype` stores
    the weights in another type; `weight` multiplies the adapter's changes. Weights of a quantised base are written
    plain, with exactly the values of their codes, those that the adapter was trained on. With `quantize`, such as
    "nf4", the merged weights are quantised (again) and written in codes, which loses some of the adapter's change:
    `Merged.error` says how much, and more than `bound` is refused. The host is unchanged afterwards. A task head
    becomes part of the model where transformers' class for the architecture computes the same from it, which is
    verified too (`Merged.classifier`); else a note says why it stays with the adapter. Raises DeltatuneError for an
    adapter without a weight form, a folder with other content, weights that are not finite, and a difference beyond
    rounding errors; then no folder is written.
    """
    scheme = read_scheme(quantize)
    model = host.model
    if not isinstance(model, PreTrainedModel):
        raise DeltatuneError(
            f"{type(model).__name__} is not a model of transformers, so it is not written as a model folder: in Python "
            "host.merge_and_unload() merges the adapter into it, and its save_pretrained or the pipeline's writes it"
        )
    stored_dtype = dtype or next(p.dtype for p in model.parameters() if p.is_floating_point())
    unmerged, base = outputs(host, {name: weight}), outputs(host, None)
    before = host.route
    host.merge_(name, weight)
    try:
        with ExitStack() as stack:
            expected, entry, notes = unmerged, None, tuple[str, ...]()
            if scheme is not None:
                maps = stack.enter_context(stored_in_codes(host, scheme))
                expected = outputs(host, None)
                check_error(relative_error(expected, unmerged, base), bound, scheme)
                entry, notes = quantization_config(model, scheme, maps)
            state = weights_of(model, stored_dtype, scheme)
            check_finite(model, state, stored_dtype)
            largest, error = 0.0, None
            classifier, reason = _with_head(host, name, stored_dtype, scheme)
            notes += ((reason,) if reason else ()) + prompt_notes(host.adapters[name])

            def fill(work: Path) -> None:
                nonlocal largest, error
                with without_quantizer(model):
                    type(model).save_pretrained(model, work, state_dict=state)  # the instance's own writes adapters
                config = with_dtype(read_json(work / CONFIG), str(stored_dtype).removeprefix("torch."))
                config.pop("quantization_config", None)
                write_json(work / CONFIG, config | ({} if entry is None else {"quantization_config": entry}))
                if tokenizer is not None:
                    tokenizer.save_pretrained(work)
                reloaded = verify(host, work, expected, stored_dtype, scheme)
                largest, error = difference(unmerged, reloaded), relative_error(reloaded, unmerged, base)
                if classifier is not None:
                    largest = max(largest, _write_classifier(host, classifier, work, stored_dtype))
                record = {
                    "adapter": name, "method": repr(host.adapters[name].method), "weight": weight,
                    "dtype": str(stored_dtype), "base": quantizations(host), "difference": largest, "error": error,
                    "quantize": None if scheme is None else scheme.text,
                    "classifier": None if classifier is None else type(classifier).__name__,
                }  # fmt: skip
                write_json(work / RECORD, record)

            stored = {id(tensor): tensor.numel() * tensor.element_size() for tensor in state.values()}  # tied ones once
            write_folder(Path(folder), fill, sum(stored.values()))
    finally:
        host.unmerge_(name)
        host.use(before)
    kind = None if classifier is None else type(classifier).__name__
    return Merged(Path(folder), largest, error, None if scheme is None else scheme.text, notes, kind)


def prompt_notes(adapter: Adapter) -> tuple[str, ...]:
    """A note for other programs where label words answer: the prompt that the adapter was trained with is a text."""
    prompts = (adapter.extra.get("scores") or {}).get("prompts") or ()
    if adapter.head is not None or not prompts:
        return ()
    return (f"its prompt is not in these files; write it around each text yourself: {prompts[0]}",)


def _with_head(
    host: Host, name: str, dtype: torch.dtype, scheme: Scheme | None
) -> tuple[PreTrainedModel | None, str | None]:
    """The merged model with the adapter's head, or why there is none; neither for an adapter without a head."""
    if host.adapters[name].head is None:
        return None, None
    if scheme is not None:
        return None, f"weights in {scheme.text} are those of the body alone; the head stays with the adapter"
    if quantizations(host):
        return None, "of a base that was loaded quantised the body alone is written; the head stays with the adapter"
    try:
        return classifier_model(host, name), None
    except CannotMerge as error:
        return None, str(error)


@torch.no_grad()
def _write_classifier(host: Host, classifier: PreTrainedModel, work: Path, dtype: torch.dtype) -> float:
    """Put the model with its head in the place of the body; the largest difference of the logits read back.

    Raises DeltatuneError if they are not those of the model in memory.
    """
    expected = verification_output(classifier, host.sites.facts)
    for file in (*work.glob("*.safetensors"), *work.glob("*.safetensors.index.json")):
        file.unlink()
    model: Any = classifier
    model.to(dtype).save_pretrained(work)
    kind: Any = type(classifier)
    reloaded = kind.from_pretrained(work, dtype=dtype).to(classifier.device).float()
    worst = difference(expected, verification_output(reloaded, host.sites.facts))
    coarsest = max(dtype, computing_dtype(host.model), key=lambda kind: torch.finfo(kind).eps)
    if not worst <= rounding_tolerance(expected, coarsest):
        raise DeltatuneError(
            f"{kind.__name__}, read back, differs by {worst:.2g} from what it should compute; nothing was written"
        )
    return worst


@contextmanager
def without_quantizer(model: PreTrainedModel) -> Iterator[None]:
    """Within this block transformers takes a model that it loaded quantised for a plain one: its tensors here are."""
    names: list[str] = [name for name in ("hf_quantizer", "is_quantized") if name in vars(model)]
    attributes = {name: vars(model).pop(name) for name in names}
    stored_as = vars(model.config).pop("quantization_config", None)
    try:
        yield
    finally:
        vars(model).update(attributes)
        if stored_as is not None:
            model.config.quantization_config = stored_as


def weights_of(model: PreTrainedModel, dtype: torch.dtype, scheme: Scheme | None = None) -> dict[str, Tensor]:
    """Return the model's own tensors by name, floating ones as `dtype`; tied tensors stay tied.

    Of quantised weights the values that their codes stand for: one after the other becomes a matrix of its old type,
    then of `dtype`. With a scheme, in which they are stored now, the codes and scales as they are.
    """
    quantized = {path: module for path, module in model.named_modules() if stored_weight(module) is not None}
    cast: dict[int, Tensor] = {}
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        path = next((path for path in _owners(name) if path in quantized), None)
        if path is not None and name != f"{path}.bias":  # codes and scales
            if scheme is not None:
                state[name] = tensor.detach()
            elif name == f"{path}.weight":
                state[name] = weight_of(quantized[path]).detach().to(dtype).contiguous()
        elif not name.startswith("deltatune."):
            converted = tensor.detach().to(dtype) if tensor.is_floating_point() else tensor
            state[name] = cast.setdefault(id(tensor), converted)
    return state


def _owners(name: str) -> Iterator[str]:
    """Paths of the modules that a tensor's name may belong to."""
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts)))


def check_finite(model: PreTrainedModel, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Raise DeltatuneError for weights that are not finite: attention kernels may hide NaN from the verification."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    names |= {f"{path}.weight" for path, module in model.named_modules() if stored_weight(module) is not None}
    problems = not_finite({name: tensor for name, tensor in state.items() if name in names})
    kind = str(dtype).removeprefix("torch.")
    raise_all(
        problems,
        f"the merged weights are not finite in {kind}; nothing was written. The model or the adapter is damaged, its "
        f"weight is too large, or values are beyond the range of {kind}:"
        if problems
        else "",
    )


def with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return a config, with the configs of its parts, that names the dtype of the stored weights."""
    parts = {name: with_dtype(value, dtype) if isinstance(value, dict) else value for name, value in config.items()}
    return {name: dtype if name in ("dtype", "torch_dtype") else value for name, value in parts.items()}


def outputs(host: Host, route: Mapping[str, float] | None) -> Tensor | None:
    """Return the model's outputs on the verification inputs with these adapters unmerged, or with none."""
    with host.using(route, training=False):
        return verification_output(host.model, host.sites.facts)


def verify(
    host: Host, folder: Path, expected: Tensor | None, dtype: torch.dtype, scheme: Scheme | None = None
) -> Tensor | None:
    """Return the outputs of the model in a folder. Raises DeltatuneError if they are not the expected ones."""
    device = next(host.model.parameters()).device
    kind: Any = type(host.model)
    if scheme is None:
        reloaded = kind.from_pretrained(folder, dtype=dtype)
    else:
        reloaded = load_streamed(kind, str(folder), kind.config_class.from_pretrained(folder), None)[0]
    output = verification_output(reloaded.to(device).float(), host.sites.facts)
    coarsest = max(dtype, computing_dtype(host.model), key=lambda kind: torch.finfo(kind).eps)
    largest, limit = difference(expected, output), rounding_tolerance(expected, coarsest)
    if not largest <= limit:
        raise DeltatuneError(
            f"the merged model, read back, differs by {largest:.2g} from what it should compute, more than {dtype} "
            f"rounding explains ({limit:.2g}); nothing was written"
        )
    return output


def relative_error(output: Tensor | None, unmerged: Tensor | None, base: Tensor | None) -> float | None:
    """‖output − unmerged‖ / ‖unmerged − base‖, Frobenius norms; None if the adapter changes nothing."""
    if output is None or unmerged is None or base is None or torch.equal(unmerged, base):
        return None
    return float((output - unmerged).double().norm() / (unmerged - base).double().norm())
