"""The target `gguf`: a LoRA alone, which llama.cpp applies with any scale, or the whole model."""

from __future__ import annotations

import contextlib
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from deltatune.core.errors import DeltatuneError
from deltatune.core.merging import computing_dtype, difference, merge_obstacles, rounding_tolerance, verification_output
from deltatune.store.exports.export_target import CannotExport, ExportedFiles, ExportRequest, Form, Write
from deltatune.store.exports.gguf.gguf_families import family_notes, family_obstacles
from deltatune.store.exports.gguf.gguf_files import (
    adapter_tensors,
    has_place,
    read_tensors,
    write_adapter,
    write_model,
)
from deltatune.store.exports.gguf.gguf_package import gguf_package
from deltatune.store.exports.gguf.gguf_tokenizer import tokenizer_metadata
from deltatune.store.exports.lora_factors import NoLoRAForm, beyond_range, lora_factors
from deltatune.store.merged_model import outputs, relative_error, save_merged

MODEL, ADAPTER = "model.gguf", "adapter.gguf"
NOT_READ = {"n_positions", "head_dim", "eos_token_id"}
"""Fields of configs that transformers does not take from the file, of GPT-2 and Qwen3; and the end token, which is the
tokenizer's there, and by which verification inputs are made."""
_COARSE = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class GGUFTarget:
    """llama.cpp, and what is built on it: Ollama, LM Studio and others."""

    forms: tuple[Form, ...] = ("lora", "model")
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16", "q8_0")

    def prepare(self, request: ExportRequest) -> Write:
        """Check that llama.cpp has the architecture, the tokenizer and a form for the adapter."""
        gguf_package()
        host, name = request.host, request.name
        problems = family_obstacles(host.sites.facts.architecture, host.model.config)
        if host.adapters[name].head is not None:
            problems.append(f"it has a {type(host.adapters[name].head).__name__} for its task, and GGUF holds decoders")
        return _model(request, problems) if request.merge else _adapter(request, problems)


GGUF = GGUFTarget()


def _adapter(request: ExportRequest, problems: list[str]) -> Write:
    host, name = request.host, request.name
    kind: str = host.sites.facts.architecture
    config: Any = host.model.config
    try:
        factors = lora_factors(host, name, request.weight, request.rank, request.bound)
    except NoLoRAForm as error:
        raise CannotExport([*problems, *error.reasons, *_advice(request, problems)]) from error
    general = list(problems)
    for path, site in factors.sites.items():
        if site.kind == "embed" or site.tied:
            problems.append(f"{path}: a LoRA on embeddings, or on a head that shares their weight, is left out")
        elif not problems and not has_place(kind, config, path):
            problems.append(f"{path} has no place there")
    if request.dtype == "q8_0":
        problems.append("q8_0 is for whole models; an adapter is stored as float32, float16 or bfloat16")
    else:
        problems += beyond_range(factors, _COARSE[request.dtype or "float32"])
    if problems:
        raise CannotExport([*problems, *_advice(request, general)])

    def write(folder: Path) -> ExportedFiles:
        file = folder / ADAPTER
        dtype = request.dtype or "float32"
        write_adapter(kind, config, factors, file, dtype, name)
        expected, stored = adapter_tensors(kind, config, factors), read_tensors(file)
        if stored.keys() != expected.keys():
            raise DeltatuneError(f"{ADAPTER}, read back, has other tensors than were written; nothing was written")
        worst = max(float((stored[key] - expected[key]).abs().max()) for key in expected)
        share = max(
            float((stored[key] - expected[key]).norm() / expected[key].norm().clamp(min=1e-30)) for key in expected
        )
        if not share <= 2 * torch.finfo(_COARSE[dtype]).eps:
            raise DeltatuneError(f"{ADAPTER}, read back, differs by {worst:.2g} from what was written")
        notes = (
            "the difference is that of the factors, read back; the base is a GGUF of the same weights, such as "
            "`deltatune export --for gguf --merge --weight 0` writes",
            *family_notes(kind, config),
        )
        usage = (f"llama-cli -m BASE.gguf --lora {file}", f"llama-cli -m BASE.gguf --lora-scaled {file}:0.5")
        return ExportedFiles(folder, "GGUF", "lora", worst, None, factors.rank, notes, usage)

    return write


def _model(request: ExportRequest, problems: list[str]) -> Write:
    host, name = request.host, request.name
    kind: str = host.sites.facts.architecture
    config: Any = host.model.config
    problems += merge_obstacles(host.adapters[name])
    tokenizer: dict[str, Any] = {}
    if request.tokenizer is None:
        problems.append("a whole model holds its tokenizer: give tokenizer=")
    else:
        try:
            tokenizer = tokenizer_metadata(request.tokenizer, host.sites.facts.vocabulary)
        except DeltatuneError as error:
            problems.append(str(error))
    if problems:
        raise CannotExport(problems)

    def write(folder: Path) -> ExportedFiles:
        file, dtype = folder / MODEL, request.dtype or "float32"
        expected, base = outputs(host, {name: request.weight}), outputs(host, None)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.merged.") as work:
            source = Path(work) / "model"
            save_merged(host, name, source, None, _COARSE.get(dtype, torch.float32), request.weight)
            write_model(source, kind, config, tokenizer, file, dtype, name)
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that no option turns off
            model = _read(folder, config)
        output = verification_output(model.to(host.model.device).eval(), host.sites.facts)
        largest, error = difference(expected, output), relative_error(output, expected, base)
        if dtype in _COARSE:
            coarsest = max(_COARSE[dtype], computing_dtype(host.model), key=lambda each: torch.finfo(each).eps)
            if not largest <= (limit := rounding_tolerance(expected, coarsest)):
                raise DeltatuneError(
                    f"{MODEL}, read back by transformers, differs by {largest:.2g} from the adapter, more than {dtype} "
                    f"rounding explains ({limit:.2g}); nothing was written"
                )
        notes = [*family_notes(kind, config)]
        if dtype == "q8_0" and error is not None:
            notes.append(f"q8_0 changes the outputs by {100 * error:.2g} % of what the adapter does to them")
        usage = (f"llama-cli -m {file}", f"ollama create NAME -f Modelfile   # Modelfile: FROM {file}")
        return ExportedFiles(folder, "GGUF", "model", largest, error, None, tuple(notes), usage)

    return write


def _read(folder: Path, config: Any) -> Any:
    """The model as transformers reads it from the file, apart from the fields that it does not take from there."""
    stored: Any = AutoConfig.from_pretrained(str(folder), gguf_file=MODEL)
    for field in NOT_READ & set(vars(config)):
        setattr(stored, field, getattr(config, field))
    return AutoModelForCausalLM.from_pretrained(str(folder), gguf_file=MODEL, config=stored, dtype=torch.float32)


def _advice(request: ExportRequest, general: list[str]) -> list[str]:
    """What can be done instead; `general` problems are those of the merged model too."""
    if not merge_obstacles(request.host.adapters[request.name]):
        return [] if general else ["it merges exactly: `--merge` (merge=True) writes the whole model"]
    return ["it cannot be merged either; `deltatune serve` serves it as it is"]
