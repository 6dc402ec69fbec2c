"""Loading of quantised models, one weight at a time: the peak is the quantised model and the tensor being read.

transformers builds the model on the meta device, renames the tensors of the files, ties weights and finds what is
missing; a quantiser registered with it gets every weight as it comes, keeps its codes and lets it go.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.quantization.schemes import SCHEMES, FourBit, Scheme
from deltatune.core.quantization.stored_weights import is_linear, is_transposed
from deltatune.core.sites.blocks import widths
from deltatune.core.sites.discovery import find_sites
from deltatune.models.quantization.quantize_model import DEFAULT_SITES, Quantized, maps_to_quantize, quantized_map
from deltatune.models.quantization.quantize_model import quantized as counted
from deltatune.models.quantization.stored_codes import StoredCodes, gather_codes
from deltatune.models.quantization.weight_files import file_tensors

METHOD = "deltatune"
"""The name under which transformers knows the quantiser."""


class StreamingConfig(QuantizationConfigMixin):
    """What the quantiser is to do; made for one loading."""

    def __init__(self, scheme: Scheme | None, sites: str | Sequence[str], codes: Mapping[str, StoredCodes]) -> None:
        """`scheme`: that of plain weights, None if the files hold codes."""
        super().__init__(quant_method=METHOD)  # type: ignore[arg-type]
        self.scheme, self.sites, self.codes = scheme, sites, codes
        self.skipped: dict[str, str] = {}
        self.problems: list[str] = []


class StreamingQuantizer(HfQuantizer):  # type: ignore[misc, unused-ignore]
    """Quantises weights as transformers reads them, and takes codes as they are stored."""

    quantization_config: StreamingConfig

    def __init__(self, quantization_config: StreamingConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **{**kwargs, "pre_quantized": False})
        self.paths: set[str] = set()
        self.tensors: dict[str, dict[str, Tensor]] = {}
        self.facts: dict[str, tuple[Scheme, torch.dtype]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        config = self.quantization_config
        if config.scheme is None:  # any linear map may turn out to have codes
            self.paths = {path for path, module in model.named_modules() if is_linear(module)}
        else:
            wanted, config.skipped = maps_to_quantize(model, find_sites(model), config.sites)
            self.paths = set(wanted)
        self.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **_: Any) -> bool:
        path, _, leaf = param_name.rpartition(".")
        return leaf == "weight" and path in self.paths

    def get_quantize_ops(self) -> Any:
        from transformers.core_model_loading import ConversionOps

        quantizer = self

        class Quantize(ConversionOps):
            """Weight -> codes."""

            def convert(
                self, input_dict: dict[str, Any], *, model: nn.Module | None = None, **_: Any
            ) -> dict[str, Any]:
                assert model is not None
                values = {name: value[0] if isinstance(value, list) else value for name, value in input_dict.items()}
                return {name: quantizer.keep(model, name, value) for name, value in values.items()}

        return Quantize()

    @torch.no_grad()
    def keep(self, model: nn.Module, name: str, value: Tensor | StoredCodes) -> Tensor:
        """Keep the tensors of a weight by its module's path. Returns the codes, which take the weight's place for now.

        A weight that stays plain is returned as it is.
        """
        path, _, leaf = name.rpartition(".")
        problems = self.quantization_config.problems
        module = model.get_submodule(path)
        width_in, width_out = widths(module) if is_linear(module) else (0, 0)
        transposed = is_transposed(module)
        if isinstance(value, StoredCodes):
            if value.shape != (width_out, width_in):
                problems.append(f"{value.name} has the shape {value.shape}; {path} needs {(width_out, width_in)}")
                return torch.empty(0, dtype=torch.uint8)
            self.tensors[path], self.facts[path] = value.read(), (value.scheme, value.dtype)
            return self.tensors[path]["codes"]
        scheme = self.quantization_config.scheme
        if scheme is None or leaf != "weight" or path not in self.paths:
            return value
        if tuple(value.shape) != self.shapes[name]:
            problems.append(f"{name} has the shape {tuple(value.shape)}; the model needs {self.shapes[name]}")
            return torch.empty(0, dtype=torch.uint8)
        try:
            self.tensors[path] = scheme.quantize((value.T if transposed else value).contiguous())
        except DeltatuneError as error:
            problems.append(f"{name}: {error}")
            return torch.empty(0, dtype=torch.uint8)
        self.facts[path] = scheme, value.dtype
        return self.tensors[path]["codes"]

    def replace_(self, model: PreTrainedModel) -> list[str]:
        """Put maps with codes in the place of those whose weights came; returns their paths, in the model's order."""
        paths = [path for path, _ in model.named_modules() if path in self.tensors]
        for path in paths:
            scheme, dtype = self.facts[path]
            new = quantized_map(model.get_submodule(path), scheme, self.tensors.pop(path), dtype)
            model.set_submodule(path, new)
        return paths


def load_streamed(
    cls: type[PreTrainedModel],
    place: str,
    config: PretrainedConfig,
    scheme: Scheme | None,
    sites: str | Sequence[str] = DEFAULT_SITES,
) -> tuple[PreTrainedModel, dict[str, Any], Quantized | None]:
    """A model of this class with quantised linear maps, transformers' report on its tensors, and what is quantised.

    scheme: None for a folder that holds codes; with a scheme such a folder must hold codes of it. Values are computed
    from the weights in float32, and what stays plain is float32. Raises DeltatuneError for damaged or contradicting
    files, and for weights that are not finite.
    """
    _register()
    plain, codes = gather_codes(file_tensors(place))
    _check_config(place, config, codes)
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
    try:
        with _one_by_one():
            model, report = cls.from_pretrained(  # type: ignore[misc]
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
    quantizer: StreamingQuantizer = model.hf_quantizer
    raise_all([
        f"{name} has the shape {tuple(held)}; the model needs {tuple(needed)}"
        for name, held, needed in sorted(report["mismatched_keys"], key=str)
    ])  # fmt: skip
    unused = [weight for weight in codes if weight in map(str, report["unexpected_keys"])]
    paths = quantizer.replace_(model)
    _forget_quantizer(model)
    model.config._name_or_path = place
    _read_generation_config(model, place)
    if scheme is None and not paths:
        return model, report, None
    found = scheme or next(iter(codes[name] for name in codes if name not in unused)).scheme
    return model, report, counted(model, found, paths, asked.skipped)


# ---- transformers


@cache
def _register() -> None:
    """Make the quantiser known. Raises DeltatuneError for a version of transformers that cannot take it."""
    try:
        from transformers.core_model_loading import ConversionOps  # noqa: F401
        from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantizer
    except ImportError as error:
        from transformers import __version__

        raise DeltatuneError(
            f"transformers {__version__} cannot load a model in pieces: {error}. Install another: "
            'pip install "transformers>=5.0"'
        ) from error
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(METHOD)(StreamingQuantizer)


@contextmanager
def _one_by_one() -> Iterator[None]:
    """Within this context transformers reads one tensor after the other: its threads would read ahead."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


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
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    if not method:
        return f"{model_name} cannot be loaded: {line}"
    fix = f"Install it: pip install {package}" if package else "Install what it needs"
    return f"{model_name} is quantised by {method}, which needs a package that is not installed: {line}. {fix}"
