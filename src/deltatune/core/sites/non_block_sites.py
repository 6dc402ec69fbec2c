"""Sites outside the blocks: embeddings, norms, the pooler, the language-model head, task heads."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from deltatune.core.quantization.stored_weights import (
    is_linear,
    is_transposed,
    plain_parameters,
    quantized_label,
    stored_weight,
)
from deltatune.core.sites.blocks import (
    Block,
    body,
    input_embeddings,
    is_norm,
    maps_of,
    modules_of,
    of_distances,
    widths,
)
from deltatune.core.sites.module_names import EMBED_PROJECT, names_embeddings
from deltatune.core.sites.site import Site


def linear_site(name: str, path: str, module: nn.Module, block: Block | None) -> Site:
    """A linear map as a site."""
    width_in, width_out = widths(module)
    bias = getattr(module, "bias", None) is not None
    return Site(
        name=name, kind="linear", module=path, read=path, width_in=width_in, width_out=width_out,
        params=width_in * width_out + bias * width_out, bias=bias, transposed=is_transposed(module),
        layer=block.index if block else None, depth=block.depth if block else 0, quantized=quantized_label(module),
    )  # fmt: skip


def norm_site(name: str, path: str, module: nn.Module) -> Site:
    """A normalisation layer as a site."""
    width = int(getattr(module, "weight").shape[0])  # noqa: B009 (nn.Module's type knows no weight)
    bias = getattr(module, "bias", None) is not None
    return Site(name, "norm", path, path, width, width, params=width * (1 + bias), bias=bias)


def embeddings(model: nn.Module, blocks: list[Block]) -> Iterator[Site]:
    """The token embeddings that each stack calls."""
    table = input_embeddings(model)
    if not isinstance(table, nn.Embedding) or _pools_by_id(model):
        return
    prefixes = {block.name.partition("layers")[0]: block.path for block in blocks}
    size, width = table.num_embeddings, table.embedding_dim
    for prefix, path in prefixes.items():
        module = _embedding_of(model, table, prefix, path)
        if module is not None:
            tied = _tied(model, model.get_submodule(module))
            yield Site(f"{prefix}embed", "embed", module, module, size, width, params=size * width, tied=tied)


def _pools_by_id(model: nn.Module) -> bool:
    """Whether the model pools at the largest token id, which would be a virtual one: CLIP with eos_token_id 2."""
    config: Any = model.config
    config = getattr(config, "text_config", None) or config
    return "clip" in str(config.model_type) and getattr(config, "eos_token_id", None) == 2


def _embedding_of(model: nn.Module, table: nn.Embedding, prefix: str, block: str) -> str | None:
    """Path of the table a stack calls: encoder-decoders call their own, tied to the one that the model returns."""
    tables = {
        path: leaf for path, leaf in model.named_modules(remove_duplicate=False) if isinstance(leaf, nn.Embedding)
    }
    if not prefix:
        same = [path for path, leaf in tables.items() if leaf is table or leaf.weight is table.weight]
        stack = block.split(".")[:-2]  # T5's encoder alone has its own table too
        in_stack = [path for path in same if stack and path.split(".")[: len(stack)] == stack]
        return next(iter(in_stack or [path for path in same if tables[path] is table]), None)
    root = block[: block.index(prefix.rstrip("."))] + prefix
    in_stack = [
        path for path, leaf in tables.items() if path.startswith(root) and leaf.num_embeddings == table.num_embeddings
    ]
    return in_stack[0] if in_stack else None


def _tied(model: nn.Module, module: nn.Module) -> bool:
    """Whether a module's weight belongs to another module too."""
    weight = module._parameters.get("weight")  # codes are never tied
    others = (other._parameters.get("weight") for _, other in modules_of(model) if other is not module)
    return weight is not None and any(other is weight for other in others)


def _lm_head(model: nn.Module) -> Iterator[Site]:
    output = output_embeddings(model)
    for path, module in maps_of(model).items():
        if module is output:
            yield replace(linear_site("lm_head", path, module, None), tied=_tied(model, module))


def _name_outside(model: nn.Module, path: str, module: nn.Module) -> str | None:
    """Name of a norm or a linear map outside the blocks; None if it has none."""
    norm, linear = is_norm(module), is_linear(module)
    if not (norm or linear) or module is output_embeddings(model):
        return None
    if output_embeddings(model) is not None and all(module is not part for part in body(model).modules()):
        return "lm_head.norm" if norm else "lm_head.dense"
    if norm:
        if of_distances(model, path):
            return "embed.relative.norm"
        return "embed.norm" if names_embeddings(path) else "norm"
    parts = path.split(".")
    if parts[-1] in EMBED_PROJECT or ".".join(parts[-2:]) in EMBED_PROJECT:
        return "embed.project"
    return "pooler" if "pooler" in path else None


def output_embeddings(model: nn.Module) -> nn.Module | None:
    """The output embedding of a language model."""
    module = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    return module if isinstance(module, nn.Module) else None


def outside(model: nn.Module, blocks: list[Block], heads: list[str]) -> Iterator[Site]:
    """Norms and the pooler outside the blocks, and the model's own task heads."""
    inside = tuple(block.path + "." for block in blocks)
    stacks = sorted({block.name.partition("layers")[0] for block in blocks}, key=len, reverse=True)
    numbers: Counter[str] = Counter()
    for path, module in modules_of(model):
        if path.startswith(inside) or path.split(".")[0] in heads:
            continue
        stack = next((stack for stack in stacks if stack and stack in path + "."), "")
        place = _name_outside(model, path, module)
        if place is not None:
            name = place if place.startswith("lm_head") else stack + place
            numbers[name] += 1
            name = name if numbers[name] == 1 else f"{name}.{numbers[name]}"
            yield norm_site(name, path, module) if is_norm(module) else linear_site(name, path, module, None)
    yield from _lm_head(model)
    for head in heads:
        module = model.get_submodule(head)
        maps = [stored for part in module.modules() if (stored := stored_weight(part)) is not None]
        plain = sum(parameter.numel() for part in module.modules() for parameter in plain_parameters(part).values())
        yield Site(
            "head" if len(heads) == 1 else f"head.{head}", "head", head, head, 0, 0,
            params=plain + sum(math.prod(stored.shape) for stored in maps), quantized=quantized_label(module),
        )  # fmt: skip


def unnamed_outside(model: nn.Module, blocks: list[Block], heads: list[str], taken: set[str]) -> Iterator[str]:
    """Linear maps outside the blocks that are not sites."""
    inside = tuple(block.path + "." for block in blocks)
    output = output_embeddings(model)
    for path, module in maps_of(model).items():
        if (
            module is not output
            and not path.startswith(inside)
            and path.split(".")[0] not in heads
            and path not in taken
        ):
            yield path
