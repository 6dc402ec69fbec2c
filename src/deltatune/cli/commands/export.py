"""`deltatune export`: adapters in the files that vLLM, SGLang, TGI, llama.cpp and onnxruntime load."""

from __future__ import annotations

import re
import tempfile
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.options.shared_options import OUTPUT, Json, OtherBase, OtherModel, Weight, option
from deltatune.cli.ui.screen import facts, print_json, say, show
from deltatune.core.errors import DeltatuneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from deltatune.core.host import Host
    from deltatune.store.exports.export_target import ExportedFiles


def export(
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER...", help="Trained adapters, the folders of their runs, or with --store their names there."
        ),
    ],
    target: Annotated[
        str, option("--for", panel=OUTPUT, metavar="PROGRAM", help="vllm, sglang, tgi, gguf (llama.cpp) or onnx.")
    ],
    out: Annotated[
        Path,
        option(
            "--out",
            "-o",
            panel=OUTPUT,
            metavar="FOLDER",
            help="The folder to write; of several adapters, one in it for each.",
        ),
    ],
    store: Annotated[
        str | None, option("--store", panel=OUTPUT, metavar="DIR", help="The adapter store that holds the adapters.")
    ] = None,
    merge: Annotated[
        bool,
        option(
            "--merge",
            panel=OUTPUT,
            help="Write the whole model with the adapter in its weights, not the adapter alone. onnx always does.",
        ),
    ] = False,
    model: OtherModel = None,
    other_base: OtherBase = False,
    weight: Weight = 1.0,
    dtype: Annotated[
        str | None,
        option(
            "--dtype",
            panel=OUTPUT,
            metavar="TYPE",
            help="float32, bfloat16 or float16; for whole GGUF models q8_0 too. Default: float32.",
        ),
    ] = None,
    rank: Annotated[
        int,
        option(
            "--rank",
            panel=OUTPUT,
            metavar="NUMBER",
            min=1,
            help="Largest rank of a change that is converted to LoRA. LoRA itself keeps its own.",
        ),
    ] = 64,
    bound: Annotated[
        float | None,
        option(
            "--bound",
            panel=OUTPUT,
            metavar="SHARE",
            min=0.0,
            help="Largest share of a change that its conversion to LoRA may lose. Default: 0.00001, rounding alone.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write adapters as vLLM, SGLang, TGI, llama.cpp or onnxruntime load them, and check the files.

    What the program would refuse, or serve as something else than was trained, is named before anything is written.
    Methods that are no LoRA are converted where that is exact; --merge writes the whole model instead. The files are
    read back, and their outputs compared with the adapter's.

      deltatune export runs/german --for vllm --out german
      deltatune export german legal --store adapters --for vllm --out loras
      deltatune export runs/german --for gguf --merge --dtype q8_0 --out german-gguf
      deltatune export runs/reviews --for onnx --out reviews-onnx
    """
    from deltatune.models.loading import quiet
    from deltatune.store.exports.export_adapters import export as write
    from deltatune.store.exports.export_target import read_target
    from deltatune.store.exports.lora_factors import EXACT

    read_target(target)  # a wrong name is told before any model is loaded
    with ExitStack() as stack:
        folders = _folders(adapters, store, out, stack)
        host, names, tokenizer = _loaded(folders, model, other_base)
        with quiet():
            done = write(
                host,
                list(names) if len(names) > 1 else names[0],
                out,
                target,
                tokenizer=tokenizer,
                merge=merge,
                weight=weight,
                dtype=dtype,
                rank=rank,
                bound=EXACT if bound is None else bound,
            )
    if as_json:
        print_json(
            {"for": target, "folder": str(out), "adapters": [_content(*pair) for pair in zip(names, done, strict=True)]}
        )
        return
    for name, exported in zip(names, done, strict=True):
        show(facts(_lines(host, name, exported)))
        say(f"{'LoRA' if exported.form == 'lora' else 'Model'}: {exported.folder}")
        for line in exported.usage:
            say(f"  {line}", aside=True)


def _folders(adapters: list[str], store: str | None, out: Path, stack: ExitStack) -> dict[str, Path]:
    """The folder of each adapter by its name; those of a store are copied out of it for the time being."""
    from deltatune.core.adapter_formats import format_of
    from deltatune.store.atomic_files import check_outside
    from deltatune.store.run_folder import find_adapter

    if store is None:
        paths = [find_adapter(folder) for folder in adapters]
        for path in paths:
            format_of(path)  # what is no adapter is told before any model is loaded
        check_outside(out, paths)
        folders: dict[str, Path] = {}
        for path in paths:
            plain = re.sub(r"[^\w-]+", "-", (path.parent if path.name == "adapter" else path).resolve().name).strip("-")
            name = plain if plain.replace("-", "_").isidentifier() else f"a-{plain}"
            numbered = (f"{name}-{number}" for number in count(2))
            folders[name if name not in folders else next(each for each in numbered if each not in folders)] = path
        return folders
    from deltatune.store.adapter_store import AdapterStore

    opened = AdapterStore(store)
    if not opened.exists:
        raise DeltatuneError(f"there is no store {store}; `deltatune store add FOLDER --store {store}` makes one")
    work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    return {name: opened.export(name, work / str(number)) for number, name in enumerate(dict.fromkeys(adapters))}


def _loaded(
    folders: dict[str, Path], model: str | None, other_base: bool
) -> tuple[Host, list[str], PreTrainedTokenizerBase | None]:
    """All adapters on one model under their names, and the model's tokenizer."""
    from deltatune.store import adapter_folder
    from deltatune.training.open_session import open_adapter

    first = next(iter(folders.values()))
    config = adapter_folder.read_config(first) if adapter_folder.knows(first) else {}
    tokenizer: PreTrainedTokenizerBase | None
    if "task" in (config.get("extra") or {}):
        session = open_adapter(first, model, other_base)
        session.detach()
        host, tokenizer = session.host, session.tokenizer
    else:
        host, tokenizer = _base_of(first, config, model)
    for name, path in folders.items():
        host.load(path, name=name, other_base=other_base)
    return host, list(folders), tokenizer


def _base_of(path: Path, config: dict[str, Any], model: str | None) -> tuple[Host, PreTrainedTokenizerBase]:
    """The base of an adapter that does not say its task, such as one of PEFT: a language model where it is one."""
    from deltatune.models.loading import find_config
    from deltatune.store.atomic_files import read_json
    from deltatune.training.open_session import open_host

    named = (config.get("base") or {}).get("name")
    if not config and (path / "adapter_config.json").is_file():
        named = read_json(path / "adapter_config.json").get("base_model_name_or_path")
    place = model or named
    if not place:
        raise DeltatuneError(f"{path} does not name its model; say it with --model")
    kinds = " ".join(find_config(str(place))[1].architectures or ())
    return open_host(str(place), "text" if "CausalLM" in kinds or "LMHead" in kinds else "row")


def _content(name: str, exported: ExportedFiles) -> dict[str, Any]:
    return {
        "name": name,
        "folder": str(exported.folder),
        "form": exported.form,
        "rank": exported.rank,
        "difference": exported.difference,
        "error": exported.error,
        "notes": list(exported.notes),
        "usage": list(exported.usage),
    }


def _lines(host: Host, name: str, exported: ExportedFiles) -> list[tuple[str, str]]:
    pairs = [("adapter", repr(host.adapters[name].method)), ("for", exported.target)]
    if exported.rank is not None:
        pairs.append(("rank", str(exported.rank)))
    pairs.append(("difference", f"{exported.difference:.2g} between the adapter and the files read back"))
    return pairs + [("note", note) for note in exported.notes]
