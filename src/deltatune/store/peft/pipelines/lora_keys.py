"""Names of tensors in files of LoRAs for pipelines, in all dialects: component, module and factor.

- PEFT's, which diffusers writes: `unet.mid_block...attn1.to_q.lora_A.weight`
- diffusers' own before that: `unet.mid_block...attn1.processor.to_q_lora.down.weight`, `....to_q.lora.down.weight`
- kohya's sd-scripts: `lora_unet_mid_block_..._attn1_to_q.lora_down.weight`, for SDXL with names of its first code
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from torch import nn

Factor = Literal["A", "B", "m", "alpha"]

COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
"""Parts of a pipeline whose LoRAs a file may hold, by the names that begin its keys."""
KOHYA = {"lora_unet": "denoiser", "lora_te": "text_encoder", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2"}
"""Their names in kohya's files."""
_ENDS: dict[str, Factor] = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_magnitude_vector": "m",
    ".lora_magnitude_vector.weight": "m",
    ".lora.down.weight": "A",
    ".lora.up.weight": "B",
    ".lora_linear_layer.down.weight": "A",
    ".lora_linear_layer.up.weight": "B",
    "_lora.down.weight": "A",
    "_lora.up.weight": "B",
    ".lora_down.weight": "A",
    ".lora_up.weight": "B",
    ".alpha": "alpha",
}
"""Ends of names after the module's, and what they hold."""
_FOREIGN = {
    "hada_": "LoHa of LyCORIS",
    "lokr_": "LoKr of LyCORIS",
    "oft_": "OFT of LyCORIS",
    "dora_scale": "DoRA of LyCORIS, whose norm is not PEFT's",
    "lora_mid": "a convolution's LoRA in three factors (CP)",
    "lora_B.bias": "a bias of LoRA's B",
    ".diff": "whole changes of weights",
}
"""Parts of names of what is not read here."""


class LoRAKey(NamedTuple):
    """What one tensor of a file is."""

    component: str
    """One of `COMPONENTS`, or `denoiser` where the file does not say which."""
    module: str
    """The module's path; in kohya's files with `_` for every dot."""
    factor: Factor
    flat: bool
    """Whether the path has `_` for every dot."""


def read_key(key: str) -> LoRAKey | str:
    """The meaning of a tensor's name, or why it has none here."""
    foreign = next((kind for part, kind in _FOREIGN.items() if part in key), None)
    if foreign is not None:
        return f"{key} belongs to {foreign}, which is not read here"
    end = next((end for end in _ENDS if key.endswith(end)), None)
    if end is None:
        return f"{key} is no tensor of a LoRA"
    path, factor = key.removesuffix(end), _ENDS[end]
    head, _, rest = path.partition(".")
    kohya = next((name for name in KOHYA if head.startswith(name + "_")), None)
    if kohya is not None and not rest:
        return LoRAKey(KOHYA[kohya], head.removeprefix(kohya + "_"), factor, flat=True)
    component, path = (head, rest) if head in COMPONENTS and rest else ("denoiser", path)
    if end.startswith("_lora."):  # `to_q_lora.down`: of a text encoder's `q_proj` too
        path = f"{path}.0" if path.endswith("to_out") else path
    return LoRAKey(component, path.replace(".processor.", "."), factor, flat=False)


def module_names(model: nn.Module) -> dict[str, str]:
    """The path of every module by all names that files have for it."""
    names: dict[str, str] = {}
    for path, _ in model.named_modules():
        if path and not path.startswith("deltatune."):
            for name in (path, *_other_names(model, path)):
                names.setdefault(name, path)
                names.setdefault(name.replace(".", "_"), path)
    return names


def _other_names(model: nn.Module, path: str) -> Iterator[str]:
    if not hasattr(model, "text_model"):  # transformers 5 left this level out of CLIP's text encoder
        yield f"text_model.{path}"
        path = f"text_model.{path}"
    for ours, theirs in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("out", "to_out.0")):
        if path.endswith(f".self_attn.{ours}_proj"):
            yield f"{path.rpartition('.')[0]}.{theirs}"


def stage_names(config: Any) -> dict[str, str]:
    """The beginnings of module paths of a U-Net in the code of Stable Diffusion's authors, by diffusers' own.

    That counts all resolutions in one list: `input_blocks.4.1` is the second one's first attention.
    """
    layers, channels = config.layers_per_block, len(config.block_out_channels)
    counts = [layers] * channels if isinstance(layers, int) else list(layers)
    names, at = {"conv_in": "input_blocks.0.0", "conv_out": "out.2"}, 1
    for block, count in enumerate(counts):
        for i in range(count):
            names[f"down_blocks.{block}.resnets.{i}"] = f"input_blocks.{at}.0"
            names[f"down_blocks.{block}.attentions.{i}"] = f"input_blocks.{at}.1"
            at += 1
        if block < channels - 1:
            names[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{at}.0.op"
            at += 1
    names |= {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
    names["mid_block.resnets.1"] = "middle_block.2"
    at = 0
    for block, count in enumerate(reversed(counts)):
        attends = "Attn" in config.up_block_types[block]
        for i in range(count + 1):
            names[f"up_blocks.{block}.resnets.{i}"] = f"output_blocks.{at}.0"
            names[f"up_blocks.{block}.attentions.{i}"] = f"output_blocks.{at}.1"
            at += 1
        names[f"up_blocks.{block}.upsamplers.0.conv"] = f"output_blocks.{at - 1}.{2 if attends else 1}.conv"
    names |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    return names | {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}


_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def first_code_names(model: nn.Module, names: Mapping[str, str]) -> dict[str, str]:
    """The paths of a U-Net's modules by their names in the code of its authors, with `_` for every dot."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "up_block_types"):
        return {}
    stages, theirs = stage_names(config), {}
    for path in dict.fromkeys(names.values()):
        stage = re.match(r"((?:down|up)_blocks\.\d+|mid_block)\.(resnets|attentions)\.\d+", path)
        start = path if path in stages else stage[0] if stage else None
        if start in stages:
            rest = path.removeprefix(start).removeprefix(".")
            rest = _RESNET.get(rest, rest) if ".resnets." in path else rest
            theirs[f"{stages[start]}.{rest}".rstrip(".").replace(".", "_")] = path
    return theirs
