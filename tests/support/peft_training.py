"""Training of a model with our adapter and of one with PEFT's, on the same batches with the same dropout."""

import torch

from support import models


def losses(model, trainable, kind, head, steps=50, dropout=True):
    """Losses of AdamW on the same batches, with the base's dropout drawn alike at every step."""
    optimizer = torch.optim.AdamW(trainable, lr=5e-3)
    batches = [models.inputs(kind, head, rows=4, length=12, seed=seed) for seed in range(5)]
    found = []
    model.train(dropout)
    for step in range(steps):
        batch = batches[step % len(batches)]
        ids = batch["input_ids"]
        labels = (
            ids[:, 0] % models.LABELS if head == "classify" else ids.masked_fill(batch["attention_mask"] == 0, -100)
        )
        torch.manual_seed(step)
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found
