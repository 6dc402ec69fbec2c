"""The blocks of a transformer and its task heads, from what transformers declares about the model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from deltatune.core.quantization.stored_weights import is_linear, stored_weight
from deltatune.core.sites.module_names import (
    BIDIRECTIONAL,
    DISTANCE_MAPS,
    RELATIVE_EMBEDDINGS,
    WINDOW,
    WINDOW_MAPS,
    flag,
    in_attention,
    names_embeddings,
)


@dataclass(frozen=True)
class Block:
    """One transformer layer: its path, the prefix of its sites' names, its number, and the depth of its stack."""

    path: str
    name: str
    index: int
    depth: int
    post_norm: bool


def task_heads(model: nn.Module) -> list[str]:
    """Paths of the children beside the base model that make up a task head.

    A language-model head does not count, nor do the layers before it (DistilBERT's and ELECTRA's are several children).
    """
    base = getattr(model, "base_model", model)
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    if any(module is output for module in model.modules()):
        return []
    if base is model:  # WhisperForAudioClassification holds an encoder and its head side by side
        plain = (nn.Embedding, nn.ModuleList, nn.Conv1d, nn.Conv2d)
        heads = re.search(r"For\w*(Classification|Answering|Choice)", type(model).__name__)
        return [
            name
            for name, child in model.named_children()
            if heads
            and name != "deltatune"
            and maps_of(child)
            and not any(isinstance(part, plain) for part in child.modules())
        ]
    table = input_embeddings(model)
    # DINOv3's base is its encoder alone: embeddings and the last norm are beside it, and are not a head
    return [
        name
        for name, child in model.named_children()
        if child is not base
        and name != "deltatune"
        and any(True for _ in child.parameters())
        and not is_norm(child)
        and not any(module is table for module in child.modules())
    ]


def input_embeddings(model: nn.Module) -> nn.Module | None:
    """The module that embeds the input (tokens, patches), if the model names one."""
    try:
        module = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return module if isinstance(module, nn.Module) else None


def body(model: nn.Module) -> nn.Module:
    """The base model without heads: transformers' own, or all of it where that lacks the embeddings."""
    base, table = getattr(model, "base_model", model), input_embeddings(model)
    whole = table is None or any(module is table for module in base.modules())
    return base if whole else model


def modules_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The base's own modules, without a Host's adapters."""
    return ((path, module) for path, module in model.named_modules() if path.partition(".")[0] != "deltatune")


def _block_classes(model: nn.Module) -> tuple[type, ...]:
    classes: list[type] = [GradientCheckpointingLayer]
    for _, module in modules_of(model):
        recorded = (getattr(module, "_can_record_outputs", None) or {}).get("hidden_states")
        for entry in recorded if isinstance(recorded, (list, tuple)) else [recorded]:
            entry = getattr(entry, "target_class", entry)
            if isinstance(entry, type):
                classes.append(entry)
    return tuple(classes)


def find_blocks(model: nn.Module) -> list[Block]:
    """All transformer blocks in model order; a model that declares none is searched for lists of attention layers."""
    classes = _block_classes(model)
    declared = [path for path, module in modules_of(model) if path and isinstance(module, classes) and maps_of(module)]
    stages = {
        path for path in declared if any(other.startswith(path + ".") and _is_whole(model, other) for other in declared)
    }
    paths: list[str] = []
    for path in declared:
        if path not in stages and not any(path.startswith(outer + ".") for outer in paths):
            paths.append(path)
    if not paths:  # models that declare nothing: the items of the outermost module lists
        lists = [path for path, module in modules_of(model) if isinstance(module, nn.ModuleList)]
        outer = [path for path in lists if not any(path.startswith(other + ".") for other in lists if other != path)]
        paths = [f"{path}.{i}" for path in outer for i in range(len(model.get_submodule(path)))]  # type: ignore[arg-type]
        paths = [path for path in paths if any(in_attention(name) for name in maps_of(model.get_submodule(path)))]
    return _name_blocks(model, paths)


def _is_whole(model: nn.Module, path: str) -> bool:
    """Whether a module has attention and more: a module that holds such modules is a stage of blocks (Swin)."""
    return {in_attention(name) for name in maps_of(model.get_submodule(path))} == {True, False}


def _name_blocks(model: nn.Module, paths: list[str]) -> list[Block]:
    stacks: dict[str, list[str]] = {}
    for path in paths:
        stacks.setdefault(re.sub(r"\.?\d+", "", path), []).append(path)
    blocks = []
    for key, members in stacks.items():
        stack = _distinct(key, list(stacks))
        post = not _final_norm(model, stack.rstrip("."), paths)
        pre = flag(model.config, "pre_norm")
        post = post if pre is None else not pre
        blocks += [Block(path, f"{stack}layers.{i}", i, len(members), post) for i, path in enumerate(members)]
    return blocks


def _distinct(key: str, keys: list[str]) -> str:
    """`"encoder."` for the stack `model.encoder.layers` beside a `model.decoder.layers`; `""` for a lone stack."""
    if len(keys) == 1:
        return ""
    parts, others = key.split("."), [other.split(".") for other in keys if other != key]
    for i, part in enumerate(parts):
        if all(i >= len(other) or other[i] != part for other in others):
            return part + "."
    return ".".join(parts) + "."


def _final_norm(model: nn.Module, stack: str, blocks: list[str]) -> bool:
    """Whether a norm follows the stack: pre-LN stacks have one, post-LN stacks have none outside the embeddings."""
    inside = tuple(path + "." for path in blocks)
    base = body(model)
    start = next((path for path, module in modules_of(model) if module is base), "")
    return any(
        is_norm(module)
        and path.startswith(start)
        and not path.startswith(inside)
        and not names_embeddings(path)
        and not of_distances(model, path)
        and (not stack or stack in path.split("."))
        for path, module in modules_of(model)
    )


def of_distances(model: nn.Module, path: str) -> bool:
    """Whether a norm acts on embeddings of relative positions, which are beside it (DeBERTa)."""
    return hasattr(model.get_submodule(path.rpartition(".")[0]), RELATIVE_EMBEDDINGS)


def shared_modules(model: nn.Module) -> frozenset[str]:
    """Modules that do not keep the rows of a batch apart.

    The norm of embeddings of relative positions, and the maps that project them beside the text (DeBERTa's
    `share_att_key`); the maps of attention in windows, which get (T, B, D) (Longformer, LED).
    """
    shared = {path for path, module in modules_of(model) if is_norm(module) and of_distances(model, path)}
    for path, module in modules_of(model):
        leaves: tuple[str, ...] = DISTANCE_MAPS if getattr(module, "share_att_key", False) else ()
        leaves = WINDOW_MAPS if hasattr(module, WINDOW) else leaves
        shared |= {f"{path}.{leaf}" for leaf in leaves}
    return frozenset(shared)


def maps_of(module: nn.Module) -> dict[str, nn.Module]:
    """Linear maps inside a module, by path."""
    return {path: leaf for path, leaf in modules_of(module) if is_linear(leaf)}


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer with a weight, over the last axis."""
    if isinstance(module, (nn.GroupNorm, nn.modules.batchnorm._BatchNorm)):  # over channels, which come first
        return False
    if "norm" not in type(module).__name__.lower():  # a quantised map makes its weight anew whenever it is read
        return False
    weight = getattr(module, "weight", None)
    return weight is not None and weight.dim() == 1


def widths(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear map."""
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    if (stored := stored_weight(module)) is not None:
        return stored.shape[1], stored.shape[0]
    return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]


def is_decoder(config: PretrainedConfig) -> bool:
    """Whether a model without an encoder before it generates text from left to right.

    It does if its configuration says so (BERT with `is_decoder=True`), or if transformers has a causal language model
    of its type and no masked one. `is_decoder=False` alone says nothing: GPT-NeoX has it.
    """
    if getattr(config, "is_encoder_decoder", False):
        return False
    kind = config.model_type
    generates = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return getattr(config, "is_decoder", None) is True or (generates and kind not in BIDIRECTIONAL)


def is_causal(model: nn.Module) -> bool:
    """Whether the tokens of a loaded model see only those before them: a decoder's, or as its attention modules say."""
    if any(getattr(module, "is_causal", False) is True for _, module in modules_of(model)):
        return True
    return is_decoder(model.config)  # type: ignore[arg-type]
