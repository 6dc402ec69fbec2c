"""`deltatune quantize`: store a model's linear maps in 4 or 8 bits, as a folder that loads quickly and anywhere."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.options.quantize_options import QUANTIZE, scheme_name
from deltatune.cli.options.shared_options import DATA, OUTPUT, SOURCE, Json, option
from deltatune.cli.ui.screen import facts, print_json, say, show, table
from deltatune.comparison.report.number_format import count, size
from deltatune.core.errors import DeltatuneError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from deltatune.models.architecture import Loads

SHOWN = 12
"""Reasons of skipped matrices that the table shows, most parameters first; --json lists every matrix."""
HEADS = ("LMHead", "ForCausalLM", "ForMaskedLM", "ForConditionalGeneration", "ForPreTraining")
"""Parts of the names of models with a language-model head, which is kept."""
BLOCK = 256
"""Tokens of a text that perplexity is computed on at once, at most."""


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a name on the hub, or builtin.")],
    out: Annotated[Path, option("--out", "-o", panel=OUTPUT, metavar="FOLDER", help="Folder of the quantised model.")],
    scheme: Annotated[
        str, option("--quantize", panel=OUTPUT, metavar="SCHEME", help=f"{QUANTIZE}", callback=scheme_name)
    ] = "nf4",
    sites: Annotated[
        list[str] | None,
        option(
            "--sites", panel=OUTPUT, metavar="PATTERN",
            help="Which linear maps, by names of `deltatune sites`; may be repeated. Default: all of the blocks.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        option("--data", "-d", panel=DATA, metavar="DATA", help=f"Texts for the perplexity before and after. {SOURCE}"),
    ] = None,
    check: Annotated[
        bool,
        option(
            "--compare/--no-compare", panel=OUTPUT,
            help="Run the plain model too, and measure how far the outputs move. It has to fit into the memory.",
        ),
    ] = True,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Store the linear maps of a model in 4 or 8 bits, as a model folder.

    Weights are read and quantised one at a time, so the model needs no more memory than its quantised form and one
    tensor. Every deltatune command loads the folder, without bitsandbytes; transformers loads it with bitsandbytes.
    Embeddings, norms, biases and the language-model head stay float32.

      deltatune quantize meta-llama/Llama-2-7b-hf --out llama-nf4
      deltatune quantize ./model --quantize "NF4(double=False)" --sites "*.ffn.*" --out smaller
      deltatune quantize ./model --data documents.txt --out smaller
    """
    if scheme == "none":
        raise DeltatuneError("--quantize none: there is nothing to do; the model is plain already")
    if data is not None and not check:
        raise DeltatuneError("--data compares the perplexity with the plain model's, which --no-compare leaves out")
    from deltatune.core.merging import difference
    from deltatune.core.quantization.stored_weights import stored_bytes
    from deltatune.models.loading import quiet
    from deltatune.models.quantization.quantize_model import DEFAULT_SITES
    from deltatune.store.atomic_files import check_outside
    from deltatune.store.quantized_model import save_quantized

    check_outside(out, [model])
    loads, pooler = _kept(model)
    patterns: str | list[str] = sites or DEFAULT_SITES
    before = before_score = after_score = None
    if check:  # first, so that the two are never in memory at once
        plain, _ = _load(model, loads, pooler, None, patterns)
        before = _outputs(plain)
        del plain
        before_score = None if data is None else _perplexity(model, data)
    quantized, tokenizer = _load(model, loads, pooler, scheme, patterns)
    report = _report(quantized, patterns, model, loads)
    with quiet():
        saved = save_quantized(quantized, out, tokenizer)
    change = None
    if before is not None:
        after = _outputs(quantized)
        change = {"largest": difference(before, after), "relative": _relative(before, after)}
    memory = stored_bytes(quantized)
    if data is not None:
        del quantized
        after_score = _perplexity(str(out), data)
    params = report["params"]
    result: dict[str, Any] = {
        "folder": str(out), "model": model, "scheme": saved.scheme.text, **report,
        "bytes": {"float32": 4 * params, "quantized": memory, "files": saved.bytes}, "change": change,
        "perplexity": None if data is None else {"before": before_score, "after": after_score},
        "notes": list(saved.notes),
    }  # fmt: skip
    if as_json:
        print_json(result)
    else:
        _show(result)


def _kept(model: str) -> tuple[Loads, bool]:
    """What of a model is kept: the language-model head where it has one, and the pooler."""
    from deltatune.models.loading import empty_backbone, find_config
    from deltatune.models.quantization.weight_files import file_tensors

    place, config = find_config(model)
    names = getattr(config, "architectures", None) or []
    if any(head in str(name) for head in HEADS for name in names):
        return "words", False
    empty_backbone(model)
    return "row", any("pooler" in name.split(".") for name in file_tensors(place))


def _load(
    model: str, loads: Loads, pooler: bool, scheme: str | None, sites: str | list[str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from deltatune.models.loading import load_backbone

    return load_backbone(model, answers=loads, pooler=pooler, quantize=scheme, sites=sites)


def _outputs(model: PreTrainedModel) -> Tensor | None:
    import torch

    from deltatune.core.merging import verification_output
    from deltatune.core.sites.discovery import find_sites

    with torch.no_grad():
        return verification_output(model, find_sites(model).facts)


def _relative(before: Tensor, after: Tensor | None) -> float | None:
    """Norm of the change over the norm of the outputs."""
    return None if after is None else float((after - before).norm() / before.norm())


def _perplexity(model: str, data: str) -> float:
    """Perplexity of the documents under a model as it is."""
    from deltatune.data.read_data import read_source
    from deltatune.methods.base_weights.unfreeze import Probe
    from deltatune.models.loading import find_config
    from deltatune.training.open_session import open_session

    rows = read_source(data, task="lm")
    _, config = find_config(model)
    longest = getattr(config.get_text_config(), "max_position_embeddings", None) or BLOCK
    session = open_session(model, rows, {"max_length": min(BLOCK, longest)})
    session.attach(Probe(), 0, head=False)
    encoded = session.encode(rows.test)
    answers = session.predict(encoded)
    return float(session.task.score(answers, encoded.references)["perplexity"])


def _report(model: PreTrainedModel, sites: str | list[str], name: str, loads: Loads) -> dict[str, Any]:
    """What is quantised and what is not, from the tensors of the quantised model."""
    from deltatune.core.quantization.quantized_linear import QuantizedLinear
    from deltatune.core.sites.discovery import find_sites
    from deltatune.models.loading import empty_backbone
    from deltatune.models.quantization.quantize_model import maps_to_quantize

    maps = {path: module for path, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    weights = sum(module.in_features * module.out_features for module in maps.values())
    stored = sum(
        tensor.numel() * tensor.element_size() for module in maps.values() for tensor in module.tensors.values()
    )
    plain = empty_backbone(name, loads)
    _, skipped = maps_to_quantize(plain, find_sites(plain), sites)
    sizes = {
        name: parameter for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.dim() > 1
    }
    reasons = {name: skipped.get(name, skipped.get(name.removesuffix(".weight"))) for name in sizes}
    rows = [
        {
            "name": name.removesuffix(".weight"),
            "why": reasons[name] or "outside the blocks",
            "params": parameter.numel(),
        }
        for name, parameter in sizes.items()
    ]
    own = {id(parameter): parameter.numel() for parameter in model.parameters()}
    return {
        "quantized": {"matrices": list(maps), "params": weights, "bytes": stored, "bits": 8 * stored / weights},
        "skipped": rows,
        "params": weights + sum(own.values()),
    }


def _show(result: dict[str, Any]) -> None:
    quantized, held = result["quantized"], result["bytes"]
    pairs = [
        ("model", f"{result['model']}, {count(result['params'])} parameters"),
        ("quantised", f"{len(quantized['matrices'])} matrices as {result['scheme']}: {count(quantized['params'])} "
                      f"parameters in {size(quantized['bytes'])}, {quantized['bits']:.3f} bits a parameter"),
        ("size", f"{size(held['float32'])} in float32, {size(held['quantized'])} now; files {size(held['files'])}"),
    ]  # fmt: skip
    if result["change"] is not None:
        from deltatune.comparison.results.recommend import percent

        change = result["change"]
        relative = "" if change["relative"] is None else f", {percent(change['relative'])} of their norm"
        pairs.append(("change", f"outputs on verification inputs move by at most {change['largest']:.3g}{relative}"))
    if result["perplexity"] is not None:
        moved = result["perplexity"]
        pairs.append(("perplexity", f"{moved['before']:.3f} before, {moved['after']:.3f} now"))
    show(facts(pairs))
    reasons: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for row in result["skipped"]:
        reasons[row["why"]] += row["params"]
        examples.setdefault(row["why"], []).append(row["name"])
    rows = [(why, str(len(examples[why])), count(total), examples[why][0]) for why, total in reasons.most_common(SHOWN)]
    if rows:
        show(table(("left as they are", "matrices", "parameters", "such as"), rows, right=("matrices", "parameters")))
    for note in result["notes"]:
        say(f"Note: {note}")
    say(f"Model: {result['folder']}")
