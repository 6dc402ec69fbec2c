"""The folder that `save_pretrained` writes of a model with adapters on it: the adapters, and the base where asked.

hosted.json        which adapters are in it, and how to load them
<name>/            each adapter's folder, as `Host.save` writes it
model.safetensors  the tensors of the adapters alone by the model's names, from which trainers resume, and one of the
                   base's names without values, so that no model loads it even beside a config.json
adapter_config.json, adapter_model.safetensors
                   the adapter as PEFT has it, if it can, for `from_pretrained` of transformers
base_model/        the base, where it was asked for

There is no config.json in it, so that nothing loads it as a model without its adapters.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.host import Host
from deltatune.core.host_parts.bank import BankedAdapter
from deltatune.core.host_parts.save_calls import PREFIX
from deltatune.core.input_validation.strict_json import dumps
from deltatune.store.atomic_files import make_folder, plain_write_errors, read_json, write_file, write_folder
from deltatune.store.peft.peft_format import CONFIG as PEFT_CONFIG
from deltatune.store.peft.peft_format import TENSORS as PEFT_TENSORS
from deltatune.store.run_folder import HOSTED

INDEX, STATE, BASE = HOSTED, "model.safetensors", "base_model"
FORMAT = "deltatune"
"""Format in the metadata of STATE: loaders of models know others, and refuse it."""
INJECTED = ("LORA", "IA3", "VERA")
"""PEFT's types that transformers' `from_pretrained` puts into a model, or refuses in words (VeRA)."""
_MODEL_FILES = ("config.json", STATE, "model.safetensors.index.json", "pytorch_model.bin")


def save_hosted(host: Host, folder: Path, base_options: Mapping[str, Any] | None) -> None:
    """Write all attached adapters of a host into a folder, as `save_pretrained` of its model does.

    `base_options`: those of transformers' `save_pretrained`, for the base, which is left out where they are None.
    Raises DeltatuneError for a folder that holds a model or an adapter, and while adapters are merged.
    """
    names = [name for name, adapter in host.adapters.items() if not isinstance(adapter, BankedAdapter)]
    earlier = _earlier(folder)
    raise_all(_obstacles(host, folder, names, earlier, base_options is not None))
    make_folder(folder)
    for name in names:
        host.save(name, folder / name)
    peft = _write_peft(host, folder, names)
    for file in () if peft else (PEFT_CONFIG, PEFT_TENSORS):
        if file in earlier:
            (folder / file).unlink(missing_ok=True)
    _write_state(host, folder, names)
    if base_options is not None:
        _write_base(host, folder / BASE, base_options)
    base = str(folder / BASE) if base_options is not None else _base_name(host) or "the base"
    content = {
        "schema": 1,
        "adapters": names,
        "files": [STATE, *((PEFT_CONFIG, PEFT_TENSORS) if peft else ())],
        "base": host.sites.facts.architecture,
        "load": [f"deltatune.Host(model).load(FOLDER, name={name!r})" for name in names],
        "model": f"{type(host.model).__name__}.from_pretrained({base!r})",
    }
    write_file(folder / INDEX, dumps(content, folder / INDEX, indent=2, sort_keys=True) + "\n")


def is_hosted(folder: Path) -> bool:
    """Whether a folder was written by `save_hosted`."""
    return os.path.lexists(folder / INDEX)


def adapter_in(folder: Path, name: str | None) -> tuple[Path, str]:
    """The folder and the name of an adapter in a folder of several; `name` may be left out where there is one.

    An adapter that alone is in it can be given another name.
    """
    names = _names(read_json(folder / INDEX), folder)
    if len(names) == 1:
        return folder / names[0], name or names[0]
    if name is None:
        raise DeltatuneError(f"{folder} holds the adapters {', '.join(names)}; choose one: load(folder, name=...)")
    if name not in names:
        raise DeltatuneError(f"{folder} holds no adapter {name!r}{nearest(name, names)}; it holds {', '.join(names)}")
    return folder / name, name


def _names(index: Mapping[str, Any], folder: Path) -> list[str]:
    names = index.get("adapters")
    plain = isinstance(names, list) and names and all(isinstance(name, str) and "/" not in name for name in names)
    if not plain or not isinstance(names, list) or ".." in names:
        raise DeltatuneError(f"{folder / INDEX} is damaged: its adapters must be a list of names")
    return names


def _earlier(folder: Path) -> list[str]:
    """The files of an earlier save in a folder, which this one replaces."""
    files = read_json(folder / INDEX).get("files") if is_hosted(folder) else []
    return [file for file in files if file in (STATE, PEFT_CONFIG, PEFT_TENSORS)] if isinstance(files, list) else []


def _obstacles(host: Host, folder: Path, names: Sequence[str], earlier: Sequence[str], base: bool) -> list[str]:
    if folder.is_file():
        return [f"{folder} is a file; choose another folder"]
    problems = []
    if host.merged:
        merged = ", ".join(host.merged)
        problems.append(
            f"{merged} is merged into the weights: write the merged model with host.merge_and_unload()"
            f".save_pretrained(folder), or take it out first with host.unmerge_({next(iter(host.merged))!r})"
        )
    if not names:
        problems.append(
            f"the adapters {', '.join(host.adapters)} are in the bank, and their own folders hold them; attach those "
            "that this folder shall hold: host.load(folder, name=...)"
        )
    model_files = [file for file in _MODEL_FILES if (folder / file).exists() and file not in earlier]
    if STATE in model_files and _holds_adapters(folder / STATE):  # a trainer copies it into its own folder
        model_files.remove(STATE)
    if model_files:
        problems.append(
            f"{folder} holds a model ({', '.join(model_files)}): from_pretrained of it would give that model without "
            "the adapters; choose another folder"
        )
    if (folder / "adapter.json").exists():
        problems.append(f"{folder} holds an adapter; choose another folder, or host.save(name, folder) to replace it")
    if base and BASE in names:
        problems.append(f"an adapter is called {BASE!r}, as the folder of the base; save it under another name")
    if base and _quantized(host) and not hasattr(host.model, "hf_quantizer"):
        problems.append(
            f"the base is stored in {', '.join(_quantized(host))}, for which save_pretrained has no format; write it "
            "with deltatune.save_quantized(model, folder), and the adapters without base=True"
        )
    if base and not isinstance(host.model, PreTrainedModel):
        problems.append(f"{type(host.model).__name__} is not a model of transformers, whose folder this could write")
    return problems


def _holds_adapters(file: Path) -> bool:
    """Whether a safetensors file is one of `_write_state`."""
    try:
        with safe_open(file, "pt") as content:
            return (content.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError):
        return False


def _quantized(host: Host) -> list[str]:
    """How the base's quantised weights are stored."""
    return sorted({str(site.quantized) for site in host.sites.weights.values() if site.quantized})


def _base_name(host: Host) -> str:
    return str(getattr(getattr(host.model, "config", None), "_name_or_path", "") or "")


def _write_state(host: Host, folder: Path, names: Sequence[str]) -> None:
    """Tensors of the adapters under the names of the model's state dict. Its format is one that only we name.

    transformers would take a file of any format for that of a model, and make up what is missing; at a tensor of
    another shape it stops.
    """
    state = {
        f"{PREFIX}{name}.{key}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name in names
        for key, tensor in host.adapters[name].state_dict().items()
    }
    own = (key for key, tensor in host.model.state_dict().items() if not key.startswith(PREFIX) and tensor.dim())
    state[next(own)] = torch.empty(0)
    draft = folder / f".{STATE}.{os.getpid()}.draft"
    with plain_write_errors(folder / STATE, sum(tensor.nbytes for tensor in state.values())):
        try:
            save_file(state, draft, metadata={"format": FORMAT})
            draft.replace(folder / STATE)
        finally:
            draft.unlink(missing_ok=True)
    mode = (folder / names[0] / "adapter.json").stat().st_mode & 0o777  # safetensors gives its files another one
    (folder / STATE).chmod(mode)


def _write_peft(host: Host, folder: Path, names: Sequence[str]) -> bool:
    """Copy PEFT's files of the only adapter, if PEFT can hold all of it and knows which base to load."""
    if len(names) != 1 or not _base_name(host):
        return False
    adapter = host.adapters[names[0]]
    source = folder / names[0]
    own_head = any(site.kind == "head" for site in adapter.sites.values())
    whole = adapter.head is None and not own_head and dict(host.route.uniform) == {names[0]: 1.0}
    if not whole or host.route.rows is not None or not (source / PEFT_CONFIG).is_file():
        return False
    if _quantized(host):
        return False  # PEFT would put it onto the plain base, which has other values
    if adapter.dropped or read_json(source / PEFT_CONFIG).get("peft_type") not in INJECTED:
        return False
    for file in (PEFT_CONFIG, PEFT_TENSORS):
        with plain_write_errors(folder / file):
            shutil.copyfile(source / file, folder / file)
    return True


def _write_base(host: Host, folder: Path, options: Mapping[str, Any]) -> None:
    """The base without adapters as a model folder, as its class writes it."""
    model = host.model
    assert isinstance(model, PreTrainedModel)
    with host.using(None):
        state = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(PREFIX)}
        write_folder(folder, lambda work: type(model).save_pretrained(model, work, state_dict=state, **_plain(options)))


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "repo_id"}
