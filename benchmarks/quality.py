"""Scores against HF PEFT's LoRA, trained the same way: same rows, order, head, schedule, learning rates and seeds.

    python -m benchmarks.quality FOLDER [FOLDER ...] --out runs/quality

Each FOLDER is a data set with splits. Our methods run in `deltatune compare`, PEFT's LoRA in the loop below. Finished
cells are stored, so the script resumes after an interruption.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import peft
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from deltatune import LoRA, parse
from deltatune.comparison.plans.make_plan import make_plan
from deltatune.comparison.plans.plan import Plan
from deltatune.comparison.run_comparison import run
from deltatune.comparison.works.cells import Event
from deltatune.data import read
from deltatune.models.hardware import uses_bfloat16
from deltatune.models.loading import load_backbone
from deltatune.tasks.collator import collator_for
from deltatune.tasks.heads import Head
from deltatune.training import Settings
from deltatune.training.learning_rates.successive_halving import Arm, Search
from deltatune.training.training_loop.loop import schedule_factor, warmup_steps_of
from deltatune.training.training_loop.sampler import BatchSampler

METHODS = ("LoRA(r=8)", "Bottleneck(form='houlsby')")
R = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--limit", type=int, help="number of training rows")
    parser.add_argument("--metric", default="")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for folder in options.folders:
        compare(folder, options.out / folder.name, options.epochs, options.metric, options.limit)


def compare(folder: Path, out: Path, epochs: float, metric: str, limit: int | None) -> None:
    """One data set: our methods with PEFT's number of parameters, then PEFT's LoRA."""
    budget = parse(f"LoRA(r={R})")
    settings = Settings(epochs=epochs)
    plan = make_plan(
        read(folder, limit=limit),
        methods=METHODS,
        budget=73_728,
        seeds=3,
        settings=settings,
        metric=metric,
        out=out,
        max_length=128,
    )
    assert any(candidate.method == budget for candidate in plan.candidates)
    summary = run(plan, lambda event: print_event(event, folder.name))
    rows = {
        entry["method"]: (entry["score"], entry["seed_scores"], entry["learning_rate"]) for entry in summary["methods"]
    }
    rows[f"HF PEFT LoRA(r={R})"] = peft_scores(plan, out / "peft.json")
    metric_name = plan.session.task.metric
    for name, (score, seeds, rate) in rows.items():
        each = " ".join(f"{value:.4f}" for value in seeds)
        print(f"{folder.name:8} {metric_name:9} {name:44} {score:.4f}   seeds {each}   rate {rate:g}", flush=True)


def print_event(event: Event, name: str) -> None:
    if event.kind in ("cell_done", "cell_failed"):
        print(f"  {name} {event.done}/{event.total} {event.text}", flush=True)


def peft_scores(plan: Plan, path: Path) -> tuple[float, list[float], float]:
    """PEFT's LoRA: the same learning-rate search, then the chosen rate with every seed."""
    done: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def cell(rate: float, seed: int) -> dict[str, float]:
        key = f"{rate:g}/{seed}"
        if key not in done:
            done[key] = train_peft(plan, rate, seed)
            path.write_text(json.dumps(done))
            print(f"  peft {key} {done[key]}", flush=True)
        return dict(done[key])

    rates = next(candidate.rates for candidate in plan.candidates if candidate.method == LoRA(r=R))
    arms = [Arm("PEFT", rate) for rate in rates]
    search = Search(arms, plan.seeds, None, lambda record: float(record["validation"]))
    search.run(lambda run: cell(run.arm.rate, run.repeat))
    seeds = [record["test"] for record in search.chosen]
    return mean(seeds), seeds, search.arm.rate


def train_peft(plan: Plan, rate: float, seed: int) -> dict[str, float]:
    """One run: primary metric on the validation and the test rows."""
    base, tokenizer = load_backbone(plan.session.model)
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=R, lora_alpha=16, target_modules=["query", "value"], task_type="FEATURE_EXTRACTION")
    model = peft.get_peft_model(base, config)
    head = plan.session.make_head(seed)
    assert isinstance(head, Head)
    settings = plan.settings
    train = list(plan.splits["train"])
    sampler = BatchSampler([len(row["input_ids"]) for row in train], settings.batch_size, seed=seed)
    collate = collator_for(base, tokenizer, train[0], None)
    steps = math.ceil(sampler.steps_per_epoch * settings.epochs)
    bfloat16 = uses_bfloat16(base, settings.precision)
    parameters = [p for p in [*model.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    warmup = warmup_steps_of(settings.warmup, steps)
    schedule = LambdaLR(optimizer, lambda step: schedule_factor("linear", step, warmup, steps))
    model.train()
    head.train()
    torch.manual_seed(seed)
    step = 0
    for epoch in range(math.ceil(settings.epochs)):
        for rows in sampler.batches(epoch):
            if step == steps:
                break
            batch = collate([train[row] for row in rows])
            labels = batch.pop("labels")
            plan.session.task.loss(logits(model, head, batch, bfloat16), labels).div(len(labels)).backward()
            torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
    return {name: evaluate(plan, model, head, collate, name, bfloat16) for name in ("validation", "test")}


def logits(model: nn.Module, head: Head, batch: dict[str, torch.Tensor], bfloat16: bool) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        hidden = model(**batch).last_hidden_state
    scores: torch.Tensor = head(hidden, batch["attention_mask"], None)
    return scores


@torch.inference_mode()
def evaluate(plan: Plan, model: nn.Module, head: Head, collate: Any, split: str, bfloat16: bool) -> float:
    model.eval()
    head.eval()
    rows = plan.splits[split]
    parts = []
    for start in range(0, len(rows), 64):
        batch = collate([rows[i] for i in range(start, min(start + 64, len(rows)))])
        batch.pop("labels", None)
        parts.append(logits(model, head, batch, bfloat16).numpy())
    return plan.session.task.measure(plan.session.task.predictions(np.concatenate(parts)), rows.references)


if __name__ == "__main__":
    main()
