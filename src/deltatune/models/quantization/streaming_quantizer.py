"""A quantiser registered with transformers, which gets every weight as it is read, keeps its codes and lets it go."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from deltatune.core.errors import DeltatuneError
from deltatune.core.quantization.schemes import Scheme
from deltatune.core.quantization.stored_weights import is_linear, is_transposed
from deltatune.core.sites.blocks import widths
from deltatune.core.sites.discovery import find_sites
from deltatune.models.quantization.quantize_model import maps_to_quantize, quantized_map
from deltatune.models.quantization.stored_codes import StoredCodes

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
        if config.scheme is not None:  # without one, any weight may turn out to be codes
            wanted, config.skipped = maps_to_quantize(model, find_sites(model), config.sites)
            self.paths = set(wanted)
        self.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **more: Any) -> bool:
        path, _, leaf = param_name.rpartition(".")
        return leaf == "weight" and (path in self.paths or self.quantization_config.scheme is None)

    def get_quantize_ops(self) -> Any:
        from transformers.core_model_loading import ConversionOps

        quantizer = self

        class Quantize(ConversionOps):
            """Weight -> codes."""

            def convert(  # type: ignore[override]
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
            if not is_linear(module):
                problems.append(f"{value.name} is quantised, but {path} is no linear map ({type(module).__name__})")
                return torch.empty(0, dtype=torch.uint8)
            if value.shape != (width_out, width_in):
                problems.append(f"{value.name} has the shape {value.shape}; {path} needs {(width_out, width_in)}")
                return torch.empty(0, dtype=torch.uint8)
            tensors = value.read()
            try:
                value.scheme.check(tensors)
            except DeltatuneError as error:
                problems.append(f"{value.name}: {error}")
            self.tensors[path], self.facts[path] = tensors, (value.scheme, value.dtype)
            return tensors["codes"]
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

    def replace_(self, model: PreTrainedModel) -> None:
        """Put maps with codes in the place of those whose weights came."""
        for path in list(self.tensors):
            scheme, dtype = self.facts[path]
            new = quantized_map(model.get_submodule(path), scheme, self.tensors.pop(path), dtype)
            model.set_submodule(path, new)


@cache
def register() -> None:
    """Make the quantiser known. Raises DeltatuneError for a version of transformers that cannot take it."""
    try:
        from transformers.core_model_loading import ConversionOps  # noqa: F401
        from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantizer
    except ImportError as error:
        from transformers import __version__

        raise DeltatuneError(
            f"transformers {__version__} cannot load a model in pieces: {error}. Install another: "
            'pip install "transformers>=5.17"'
        ) from error
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(METHOD)(StreamingQuantizer)


@contextmanager
def one_by_one() -> Iterator[None]:
    """Within this context transformers reads one tensor after the other: its threads would read ahead."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)  # another thread may have loaded a model meanwhile
        else:
            os.environ[name] = before
