"""What transformers.Trainer is told: no more than it needs, and nothing that it would do by itself."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import TrainingArguments

from deltatune.training.sampler import Order
from deltatune.training.settings import Settings


class Arguments(TrainingArguments):
    """TrainingArguments on the base's own device: nothing is moved, wrapped or written by the Trainer itself."""

    base_device: torch.device = torch.device("cpu")
    n_gpu = 1
    should_save = False
    place_model_on_device = False

    @property
    def device(self) -> torch.device:
        """Where the base is, not where the Trainer would put it."""
        _ = self._setup_devices  # which has more effects than to name a device
        return self.base_device


def arguments(settings: Settings, order: Order, out: Path | None) -> TrainingArguments:
    """What the Trainer needs to know; checkpoints where there is a folder for them."""
    device, passes = order.world.device, order.passes(settings.batch_size)
    args = Arguments(
        output_dir=str(out or "."),
        use_cpu=device.type == "cpu",
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=max(1, settings.batch_size // (passes * order.world.size)),
        gradient_accumulation_steps=passes,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        save_strategy="no" if out is None else "steps",
        save_steps=settings.checkpoint_every or -(-len(order) // passes),
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
    )
    args.base_device = device
    return args
