"""Export of adapters: everything that the other program would refuse is named first, then one folder is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import nearest, raise_all
from deltatune.core.host import Host
from deltatune.store.atomic_files import write_folder, write_json
from deltatune.store.exports.export_target import (
    CannotExport,
    ExportedFiles,
    ExportRequest,
    ExportTarget,
    Write,
    read_target,
)
from deltatune.store.exports.lora_factors import EXACT
from deltatune.store.merged_model import prompt_notes

RECORD = "export.json"


def export(
    host: Host,
    name: str | Sequence[str],
    folder: str | Path,
    target: str = "vllm",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    merge: bool = False,
    weight: float = 1.0,
    dtype: str | None = None,
    rank: int = 64,
    bound: float = EXACT,
) -> list[ExportedFiles]:
    """Write adapters in the files that another program serves: vllm, sglang, tgi, gguf or onnx.

    One name fills `folder`; several fill a folder each, `folder/NAME`. What the program would refuse, or serve as
    something else than was trained, is one error before anything is written. Methods that are no LoRA are converted
    where their changes have at most `rank` and no more than the share `bound` is lost; `merge` writes the whole model
    with the adapter in its weights instead. The files are read back and their outputs compared; export.json records
    the difference. The host is unchanged afterwards.
    """
    names = [name] if isinstance(name, str) else list(name)
    chosen = read_target(target)
    merge = merge or "lora" not in chosen.forms  # what takes whole models alone needs no word for it
    problems = _problems(host, names, chosen, target, merge, dtype, rank, bound)
    raise_all(problems, f"cannot export for {target}:" if problems else "")
    requests = [ExportRequest(host, each, tokenizer, weight, merge, dtype, rank, bound) for each in names]
    writers: list[Write] = []
    for request in requests:
        try:
            writers.append(chosen.prepare(request))
        except CannotExport as error:
            problems += [f"{request.name}: {text}" if len(names) > 1 else text for text in error.problems]
    raise_all(problems, f"{target} cannot take {' and '.join(map(repr, names))} as it is:" if problems else "")
    done: list[ExportedFiles] = []
    place = Path(folder)

    def fill(work: Path) -> None:
        done.clear()
        for request, write in zip(requests, writers, strict=True):
            into = work if isinstance(name, str) else work / request.name
            into.mkdir(exist_ok=True)
            exported = write(into)
            told = dict.fromkeys([*exported.notes, *prompt_notes(host.adapters[request.name])])
            exported = replace(exported, notes=tuple(told))
            write_json(into / RECORD, _record(request, exported, target))
            done.append(exported)

    write_folder(place, fill)
    return [
        _placed(exported, place if isinstance(name, str) else place / request.name)
        for request, exported in zip(requests, done, strict=True)
    ]


def _problems(
    host: Host,
    names: Sequence[str],
    target: ExportTarget,
    label: str,
    merge: bool,
    dtype: str | None,
    rank: int,
    bound: float,
) -> list[str]:
    """What is wrong with the call itself."""
    have = ", ".join(host.adapters) or "none"
    problems = [
        f"there is no adapter {name!r}{nearest(name, host.adapters)}; attached: {have}"
        for name in names
        if name not in host.adapters
    ]
    if not names:
        problems.append(f"no adapter is named; attached: {have}")
    problems += [f"{name!r} is named twice" for name in sorted({n for n in names if list(names).count(n) > 1})]
    if merge and "model" not in target.forms:
        problems.append(f"{label} takes adapters alone; leave merge out")
    if dtype is not None and dtype not in target.dtypes:
        known = ", ".join(target.dtypes)
        problems.append(f"dtype={dtype!r}{nearest(dtype, target.dtypes)}: {label} has: {known}")
    if rank < 1:
        problems.append(f"rank must be at least 1, not {rank}")
    if not 0 < bound < 1:
        problems.append(f"bound must be between 0 and 1, not {bound:g}: it is a share of the change")
    if host.sites.facts.denoiser:
        problems.append(
            f"{host.sites.facts.architecture} draws pictures, and {label} does not; diffusers loads the adapter's own "
            "folder: pipe.load_lora_weights(folder)"
        )
    if host.merged:
        problems.append(f"{', '.join(host.merged)} is merged into the base; host.unmerge_(name) first")
    return problems


def _record(request: ExportRequest, exported: ExportedFiles, target: str) -> dict[str, Any]:
    adapter = request.host.adapters[request.name]
    return {
        "adapter": request.name, "method": repr(adapter.method), "for": target, "form": exported.form,
        "weight": request.weight, "dtype": request.dtype or "float32", "rank": exported.rank,
        "difference": exported.difference, "error": exported.error, "notes": list(exported.notes),
    }  # fmt: skip


def _placed(exported: ExportedFiles, folder: Path) -> ExportedFiles:
    """The result with the folder's final place, also in its command lines."""
    work = str(exported.folder)
    usage = tuple(line.replace(work, str(folder)) for line in exported.usage)
    return replace(exported, folder=folder, usage=usage)
