"""`deltatune merge`: merge an adapter into its model's weights, as a model folder that any library can load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from deltatune.cli.options.quantize_options import scheme_name
from deltatune.cli.options.shared_options import OUTPUT, Adapter, Json, OtherBase, OtherModel, Weight, option
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
            "--dtype",
            panel=OUTPUT,
            metavar="TYPE",
            help="float32, bfloat16 or float16. Default: float32, which alone keeps all of the adapter's change.",
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        option(
            "--quantize",
            panel=OUTPUT,
            metavar="SCHEME",
            callback=scheme_name,
            help="Store the merged weights in codes: nf4, fp4, int8. It loses part of the adapter's change. Default: "
            "none, plain weights, also of a quantised base.",
        ),
    ] = None,
    bound: Annotated[
        float | None,
        option(
            "--bound",
            panel=OUTPUT,
            metavar="SHARE",
            min=0.0,
            help="With --quantize: the largest share of the adapter's effect that may be lost. Default: 0.25.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Merge a trained adapter into its model's weights, and check the file that was written.

    transformers, vLLM and llama.cpp's converter can load the folder. The outputs of the model read back from disk are
    compared with the unmerged adapter's. An adapter of a quantised base is merged onto the values that its codes stand
    for, those that it was trained on. A classifier becomes one model with its head, for
    AutoModelForSequenceClassification and pipeline, where transformers has a class that computes the same: for BERT
    with --pooling pooler, or --pooling cls --dense in training. Else a note says why not. The head is also kept in
    FOLDER/adapter, which `deltatune predict` and `evaluate` can use.

      deltatune merge --adapter runs/train-chats-lora-r-8 --out merged
      deltatune merge --adapter runs/train-chats-lora-r-8 --weight 0.5 --dtype bfloat16 --out half
      deltatune merge --adapter runs/train-chats-lora-r-8 --quantize int8 --out small
    """
    if dtype is not None and dtype not in DTYPES:
        raise DeltatuneError(
            f"--dtype {dtype}: there is no such type{nearest(dtype, DTYPES)}; types: {', '.join(DTYPES)}"
        )
    if bound is not None and quantize in (None, "none"):
        raise DeltatuneError(f"--bound {bound:g}: plain weights lose nothing but rounding; --quantize takes a bound")
    import torch

    from deltatune.models.loading import quiet
    from deltatune.store.atomic_files import check_outside
    from deltatune.store.fingerprint import quantizations
    from deltatune.store.merged_codes import BOUND
    from deltatune.store.merged_model import save_merged
    from deltatune.store.run_folder import find_adapter
    from deltatune.training.open_session import open_adapter

    check_outside(out, [find_adapter(adapter), *([model] if model else [])])
    session = open_adapter(adapter, model, other_base).weighted(weight)
    check_outside(out, [session.model])
    stored = getattr(torch, dtype) if dtype else None
    with quiet():
        done = save_merged(
            session.host,
            session.name,
            out,
            session.tokenizer,
            stored,
            weight,
            quantize,
            BOUND if bound is None else bound,
        )
    head = save_head(session, out, done.scheme)
    result: dict[str, Any] = {"folder": str(out), "model": session.model, "difference": done.difference, "head": head}
    result["classifier"] = done.classifier
    base = ", ".join(quantizations(session.host))
    result |= {"weight": weight, "error": done.error, "base": base or None, "quantize": done.scheme}
    result["notes"] = list(done.notes)
    if as_json:
        print_json(result)
        return
    pairs = [
        ("model", session.model + (f", stored in {base}" if base else "")),
        ("adapter", repr(session.adapter.method) + (f", its change times {weight:g}" if weight != 1 else "")),
        (
            "difference",
            f"{done.difference:.2g} between the unmerged adapter and the file read back, on verification inputs",
        ),
    ]
    if done.error is not None:
        pairs.append(
            ("lost", f"{100 * done.error:.2g} % of the adapter's effect there: ‖merged − unmerged‖ / ‖unmerged − base‖")
        )
    pairs += [("weights", f"stored in {done.scheme}")] if done.scheme else []
    show(facts([*pairs, *(("note", note) for note in done.notes)]))
    say(f"Model: {out}" + (f", {done.classifier} with its head" if done.classifier else ""))
    if head:
        say(f"Its head: {head}")


def save_head(session: Session, out: Path, scheme: str | None) -> str | None:
    """Keep the adapter's head, as an adapter of the merged model, stored by a scheme, without anything else."""
    head = session.adapter.head
    if head is None:
        return None
    from copy import deepcopy

    from deltatune.methods.base_weights.unfreeze import Probe
    from deltatune.store.run_folder import ADAPTER
    from deltatune.training.open_session import open_host, reads_pooler

    pooler = reads_pooler(head.config.to_json())  # type: ignore[union-attr,operator]
    loads = session.task.loads if session.task.label_kind == "mixture" else session.task.answers
    host, _ = open_host(str(out), loads, pooler, scheme)
    host.attach(session.name, Probe(), head=deepcopy(head)).trained_rows = session.adapter.trained_rows
    extra = {name: value for name, value in session.extra.items() if name != "quantize"}  # that was the other base
    extra |= {"model": str(out.resolve())} | ({"quantize": scheme} if scheme else {})
    host.save(session.name, out / ADAPTER, extra=extra)
    return str(out / ADAPTER)
