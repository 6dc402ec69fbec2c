"""`deltatune merge`: merge an adapter into its model's weights, as a model folder that any library can load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from deltatune.cli.options import OUTPUT, Adapter, Json, OtherBase, OtherModel, Weight, option
from deltatune.cli.ui.screen import facts, print_json, say, show
from deltatune.core.errors import DeltatuneError, nearest

if TYPE_CHECKING:
    from deltatune.training.session import Session

DTYPES = ("float32", "bfloat16", "float16")


def merge(
    adapter: Adapter,
    out: Annotated[Path, option("--out", "-o", panel=OUTPUT, metavar="FOLDER", help="Folder of the merged model.")],
    model: OtherModel = None,
    other_base: OtherBase = False,
    weight: Weight = 1.0,
    dtype: Annotated[
        str | None,
        option(
            "--dtype", panel=OUTPUT, metavar="TYPE", help="float32, bfloat16 or float16. Default: float32, as loaded."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Merge a trained adapter into its model's weights, and check the file that was written.

    transformers, vLLM and llama.cpp's converter can load the folder. The outputs of the model read back from disk are
    compared with the unmerged adapter's. A classification head is not part of the model: it is kept in FOLDER/adapter,
    which `deltatune predict` and `evaluate` can use.

      deltatune merge --adapter runs/train-chats-lora-r-8 --out merged
      deltatune merge --adapter runs/train-chats-lora-r-8 --weight 0.5 --out half
    """
    if dtype is not None and dtype not in DTYPES:
        raise DeltatuneError(
            f"--dtype {dtype}: there is no such type{nearest(dtype, DTYPES)}; types: {', '.join(DTYPES)}"
        )
    import torch

    from deltatune.models.loading import quiet
    from deltatune.store.atomic_files import check_outside
    from deltatune.store.merged_model import save_merged
    from deltatune.store.run_folder import find_adapter
    from deltatune.training.session import open_adapter

    check_outside(out, [find_adapter(adapter), *([model] if model else [])])
    session = open_adapter(adapter, model, other_base).weighted(weight)
    check_outside(out, [session.model])
    stored = getattr(torch, dtype) if dtype else None
    with quiet():
        done = save_merged(session.host, session.name, out, session.tokenizer, stored, weight)
    head = save_head(session, out)
    result: dict[str, Any] = {"folder": str(out), "model": session.model, "difference": done.difference, "head": head}
    result["weight"] = weight
    if as_json:
        print_json(result)
        return
    pairs = [
        ("model", session.model),
        ("adapter", repr(session.adapter.method) + (f", its change times {weight:g}" if weight != 1 else "")),
        (
            "difference",
            f"{done.difference:.2g} between the unmerged adapter and the file read back, on verification inputs",
        ),
    ]
    show(facts(pairs))
    say(f"Model: {out}")
    if head:
        say(f"Its head: {head}")


def save_head(session: Session, out: Path) -> str | None:
    """Keep the adapter's head, as an adapter of the merged model without anything else."""
    head = session.adapter.head
    if head is None:
        return None
    from copy import deepcopy

    from deltatune.methods.base_weights.unfreeze import Probe
    from deltatune.store.run_folder import ADAPTER
    from deltatune.training.session import open_host, reads_pooler

    pooler = reads_pooler(head.config.to_json())  # type: ignore[union-attr,operator]
    loads = session.task.loads if session.task.label_kind == "mixture" else session.task.answers
    host, _ = open_host(str(out), loads, pooler)
    host.attach(session.name, Probe(), head=deepcopy(head)).trained_rows = session.adapter.trained_rows
    host.save(session.name, out / ADAPTER, extra={**session.extra, "model": str(out.resolve())})
    return str(out / ADAPTER)
