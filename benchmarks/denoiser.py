"""A forward and a training step of a U-Net with a LoRA: a Host against diffusers with PEFT, and the bare U-Net."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

import deltatune
from benchmarks.measure import interleaved_times, options, report

ATTENTION = ("*.{attn,cross}.{q,k,v,o}",)
CONVOLUTIONS = ("*.resnets.*.conv1", "*.resnets.*.conv2")
PEFT_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def main() -> None:
    arguments = options("denoiser", rows=2, rank=8, size=16)
    torch.manual_seed(0)
    batch = {
        "sample": torch.randn(arguments.rows, 4, arguments.size, arguments.size),
        "timestep": torch.tensor([500] * arguments.rows),
        "encoder_hidden_states": torch.randn(arguments.rows, 77, 256),
    }
    for what, sites, modules in (
        ("attention", ATTENTION, PEFT_ATTENTION),
        ("attention and convolutions", ATTENTION + CONVOLUTIONS, [*PEFT_ATTENTION, "conv1", "conv2"]),
    ):
        models = {"bare": unet(), "Host": hosted(sites, arguments.rank), "PEFT": pefts(modules, arguments.rank)}
        cases: dict[str, Callable[[], object]] = {name: forward(model, batch) for name, model in models.items()}
        bounds = {("Host", "PEFT"): 1.05}
        report(f"forward, LoRA at {what}", interleaved_times(cases, arguments), "bare", bounds, arguments)
        cases = {name: step(models[name], batch) for name in ("PEFT", "Host")}
        report(f"training step, LoRA at {what}", interleaved_times(cases, arguments), "PEFT", bounds, arguments)


def unet() -> UNet2DConditionModel:
    """Stable Diffusion's shape, a tenth of its width."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(64, 128, 256), layers_per_block=1, cross_attention_dim=256, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    ).requires_grad_(False)  # fmt: skip


def hosted(sites: tuple[str, ...], rank: int) -> UNet2DConditionModel:
    model = unet()
    deltatune.Host(model).attach("a", deltatune.LoRA(r=rank, sites=sites))
    return model


def pefts(modules: list[str], rank: int) -> UNet2DConditionModel:
    model = unet()
    model.add_adapter(LoraConfig(r=rank, lora_alpha=16, target_modules=modules))
    return model


def forward(model: Any, batch: dict[str, torch.Tensor]) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return model(**batch)

    return run


def step(model: Any, batch: dict[str, torch.Tensor]) -> Callable[[], object]:
    def run() -> object:
        model.zero_grad()
        return model(**batch)[0].square().mean().backward()

    return run


if __name__ == "__main__":
    main()
