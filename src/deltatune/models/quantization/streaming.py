"""Loading of quantised models, one weight at a time: the peak is the quantised model and the tensor being read.

transformers builds the model on the meta device, renames the tensors of the files, ties weights and finds what is
missing; a quantiser registered with it gets every weight as it comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from deltatune.core.errors import DeltatuneError, first_line, raise_all
from deltatune.core.quantization.schemes import SCHEMES, FourBit, Int8, Scheme
from deltatune.models.quantization.quantize_model import DEFAULT_SITES
from deltatune.models.quantization.stored_codes import KINDS, StoredCodes, gather_codes
from deltatune.models.quantization.streaming_quantizer import (
    StreamingConfig,
    StreamingQuantizer,
    one_by_one,
    register,
)
from deltatune.models.quantization.weight_files import FileTensor, file_tensors


def load_streamed(
    cls: type[PreTrainedModel],
    place: str,
    config: PretrainedConfig,
    scheme: Scheme | None,
    sites: str | Sequence[str] = DEFAULT_SITES,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model of this class with quantised linear maps, and transformers' report on its tensors.

    scheme: None for a folder that holds codes; with a scheme such a folder must hold codes of it. Values are computed
    from the weights in float32, and what stays plain is float32. Raises DeltatuneError for damaged or contradicting
    files, and for weights that are not finite.
    """
    register()
    plain, codes = gather_codes(file_tensors(place))
    _check_config(place, config, codes)
    _check_types(place, plain)
    if codes:
        stored = sorted({weight.scheme.text for weight in codes.values()})
        if scheme is not None and stored != [scheme.text]:
            raise DeltatuneError(
                f"{place} is quantised already, as {' and '.join(stored)}; load it as it is, or quantise the model "
                f"that it was made from as {scheme.text}"
            )
        scheme = None
    asked = StreamingConfig(scheme, sites, codes)
    _without_quantization(config)
    loading: Any = cls.from_pretrained
    try:
        with one_by_one():
            loaded = loading(
                None,
                config=config,
                state_dict={**plain, **codes},
                dtype=torch.float32,
                quantization_config=asked,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # listed below
            )
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise_all(asked.problems)
        if isinstance(error, DeltatuneError):
            raise
        raise DeltatuneError(
            f"the weights of {place} cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error
    raise_all(asked.problems)
    model: PreTrainedModel = loaded[0]
    report: dict[str, Any] = loaded[1]
    quantizer: Any = model.hf_quantizer
    assert isinstance(quantizer, StreamingQuantizer)
    misshapen = {str(name): tuple(held) for name, held, _ in report["mismatched_keys"]}
    for name, parameter in model.named_parameters():  # older versions of transformers do not report them
        if name.removesuffix(".weight") not in quantizer.tensors and tuple(parameter.shape) != quantizer.shapes[name]:
            misshapen[name] = tuple(parameter.shape)
    raise_all([
        f"{name} has the shape {shape}; the model needs {quantizer.shapes.get(name, 'another')}"
        for name, shape in sorted(misshapen.items())
    ])  # fmt: skip
    quantizer.replace_(model)
    _forget_quantizer(model)
    model.config._name_or_path = place
    _read_generation_config(model, place)
    return model, report


def _forget_quantizer(model: PreTrainedModel) -> None:
    """The model is an ordinary one: what asks transformers' quantiser must not find one."""
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        vars(model).pop(name, None)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            _without_quantization(module.config)
            vars(module.config).pop("_is_quantized", None)


def _without_quantization(config: PretrainedConfig) -> None:
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        vars(part).pop("quantization_config", None)


def _read_generation_config(model: PreTrainedModel, place: str) -> None:
    if not model.can_generate():
        return
    try:
        model.generation_config = GenerationConfig.from_pretrained(place)
    except OSError:  # a model folder without one: that which the config implies
        model.generation_config = GenerationConfig.from_pretrained(
            place, config_file_name="config.json", _from_model_config=True
        )


def quantization_method(config: PretrainedConfig) -> str:
    """By which method a config says that its weights are quantised; empty if it does not."""
    entry = _entry(config)
    if entry.get("load_in_4bit") or entry.get("load_in_8bit"):
        return "bitsandbytes"
    method = entry.get("quant_method", "")
    return str(getattr(method, "value", method))


def configured_scheme(config: PretrainedConfig) -> Scheme | None:
    """The scheme by which bitsandbytes has stored a model, as its config says; None for others. Blocks are of 64."""
    entry = _entry(config)
    if entry.get("load_in_8bit"):
        return Int8()
    kind = KINDS.get(str(entry.get("bnb_4bit_quant_type", "fp4"))) if entry.get("load_in_4bit") else None
    return None if kind is None else kind(double=bool(entry.get("bnb_4bit_use_double_quant")))


def _entry(config: PretrainedConfig) -> dict[str, Any]:
    entry = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    return entry if isinstance(entry, dict) else entry.to_dict() if entry is not None else {}


def _check_config(place: str, config: PretrainedConfig, codes: Mapping[str, StoredCodes]) -> None:
    """Raise DeltatuneError where the config says something else of the weights than their files."""
    entry = _entry(config)
    if not entry:
        return
    if not codes:
        raise DeltatuneError(
            f"the config.json of {place} says that its weights are quantised ({quantization_method(config)}), but its "
            "files hold no codes; remove quantization_config from config.json, or restore the files"
        )
    kind = entry.get("bnb_4bit_quant_type", "fp4") if entry.get("load_in_4bit") else "int8"
    double = bool(entry.get("bnb_4bit_use_double_quant", False))
    said = SCHEMES[kind]() if kind in SCHEMES else None
    if isinstance(said, FourBit):
        said = replace(said, double=double)
    held = sorted({weight.scheme.text for weight in codes.values() if not _agrees(weight.scheme, said)})
    raise_all([
        f"the config.json of {place} says that its weights are {said.text if said else repr(kind)}, but its files hold "
        f"{text}; the one or the other was changed, restore them" for text in held
    ])  # fmt: skip


def _check_types(place: str, plain: Mapping[str, FileTensor]) -> None:
    """Raise DeltatuneError for matrices of integers: codes whose scales are lost, or of a layout that is not known."""
    whole = [
        tensor for name, tensor in plain.items()
        if name.endswith("weight") and len(tensor.shape) > 1 and tensor.kind[0] in "IUB" and tensor.kind != "BF16"
    ]  # fmt: skip
    raise_all([
        f"{tensor.key} of {place} holds {tensor.kind}, no floating values: these are codes without scales that say "
        "what they stand for; restore the file" for tensor in whole[:6]
    ])  # fmt: skip


def _agrees(held: Scheme, said: Scheme | None) -> bool:
    if isinstance(held, FourBit) and isinstance(said, FourBit):  # a config names neither block nor 8-bit type
        return held.name == said.name and held.double == said.double
    return type(held) is type(said)


PACKAGES = {
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "torchao": "torchao",
    "compressed-tensors": "compressed-tensors",
    "hqq": "hqq",
    "quanto": "optimum-quanto",
    "aqlm": "aqlm",
    "quark": "amd-quark",
    "eetq": "eetq",
    "fbgemm_fp8": "fbgemm-gpu",
    "auto-round": "auto-round",
    "vptq": "vptq",
    "spqr": "spqr_quant",
    "sinq": "sinq",
}
"""The package of each method of quantisation that transformers loads through one."""


def check_method(model_name: str, method: str, scheme: Scheme | None) -> None:
    """Raise DeltatuneError for a scheme asked of a model whose weights another method has quantised."""
    if scheme is not None and method not in ("", "bitsandbytes"):
        raise DeltatuneError(
            f"{model_name} is quantised already, by {method}; load it as it is (without --quantize), or quantise the "
            f"model that it was made from as {scheme.text}"
        )


def missing_package(model_name: str, method: str, error: ImportError) -> str:
    """Words for a model whose quantisation needs a package that is not installed."""
    package = PACKAGES.get(method)
    line = first_line(error)
    if not method:
        return f"{model_name} cannot be loaded: {line}"
    fix = f"Install it: pip install {package}" if package else "Install what it needs"
    return f"{model_name} is quantised by {method}, which needs a package that is not installed: {line}. {fix}"
