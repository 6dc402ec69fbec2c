"""Eight LoRA configurations: `deltatune compare` against eight runs as a user of HF PEFT writes them.

    python -m benchmarks.sweep
    python -m benchmarks.sweep --data FOLDER --rows 2000 --threads 2

Two ranks and four learning rates, the built-in model, the same rows. Ours is one comparison: all eight start, the
better half goes on at each rung, and the winner is scored on the test rows. PEFT's are eight runs of transformers'
Trainer with DataCollatorWithPadding in default precision, each scored on the validation rows, the best one on the test
rows. Both count everything from the loaded data to the test score of the winner. The decision is the same if the two
winners' test scores differ by less than the noise of the test rows.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

from benchmarks.measure import append
from deltatune.comparison.plans.make_plan import make_plan
from deltatune.comparison.run_comparison import run
from deltatune.data import Data, read
from deltatune.models.loading import find_config
from deltatune.training import Settings

RANKS = (4, 16)
RATES = 4
"""Learning rates of each rank, three times apart; PEFT gets the same ones."""
BOUND = 5.0
"""Times fewer seconds that ours should take."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="python-docs")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", default="", help="append the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    data = read(options.data, limit=options.rows)
    with tempfile.TemporaryDirectory() as folder:
        ours, rates = compared(data, options.epochs, Path(folder) / "ours")
        peers = peft_runs(data, options.epochs, rates, Path(folder) / "peft")
    ratio = peers["seconds"] / ours["seconds"]
    noise = 2 * math.sqrt(0.25 / len(data.test))
    same = abs(ours["test"] - peers["test"]) <= noise
    print(f"{'':10}{'seconds':>9}{'test':>8}  winner")
    for name, each in (("deltatune", ours), ("PEFT", peers)):
        print(f"{name:10}{each['seconds']:9.1f}{each['test']:8.3f}  {each['winner']}")
    print(f"PEFT / deltatune: {ratio:.2f}, at least {BOUND:g}: {'yes' if ratio >= BOUND else 'NO'}")
    print(f"the same decision within {noise:.3f}: {'yes' if same else 'NO'}")
    append(options, {"benchmark": "sweep", "ours": ours, "peft": peers, "ratio": ratio, "same": same})


def compared(data: Data, epochs: int, out: Path) -> tuple[dict[str, Any], list[float]]:
    """One comparison of a method that may have either rank; its seconds, and the rates it began with."""
    started = time.perf_counter()
    ranks = "|".join(map(str, RANKS))
    plan = make_plan(
        data,
        methods=[f"LoRA(r={ranks}, alpha=16)"],
        budget=None,
        rates=RATES,
        seeds=1,
        settings=Settings(epochs=epochs, batch_size=16),
        out=out,
    )
    summary = run(plan)
    entry = summary["methods"][0]
    winner = f"{entry['method']}, {entry['learning_rate']:g}"
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "test": entry["score"], "winner": winner}, list(plan.candidates[0].rates)


def peft_runs(data: Data, epochs: int, rates: list[float], out: Path) -> dict[str, Any]:
    """Eight runs of the Trainer; their seconds and the test score of the best one on the validation rows."""
    started = time.perf_counter()
    folder, _ = find_config("builtin")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    labels = {label: number for number, label in enumerate(data.labels)}

    def encoded(rows: Any) -> Dataset:
        texts = [[str(row[name]) for name in data.text] for row in rows]
        ids = tokenizer(*map(list, zip(*texts, strict=True)), truncation=True)
        return Dataset.from_dict({**ids, "labels": [labels[row[data.label]] for row in rows]})

    splits = {name: encoded(rows) for name, rows in data.splits().items()}
    best: tuple[float, Trainer, str] | None = None
    for rank in RANKS:
        for rate in rates:
            torch.manual_seed(0)
            base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(labels))
            config = LoraConfig(task_type=TaskType.SEQ_CLS, r=rank, lora_alpha=16, target_modules=["query", "value"])
            arguments = TrainingArguments(
                output_dir=str(out),
                learning_rate=rate,
                num_train_epochs=epochs,
                per_device_train_batch_size=16,
                per_device_eval_batch_size=64,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                logging_strategy="no",
            )
            trainer = Trainer(
                get_peft_model(base, config),
                arguments,
                train_dataset=splits["train"],
                eval_dataset=splits["validation"],
                data_collator=DataCollatorWithPadding(tokenizer),
                processing_class=tokenizer,
                compute_metrics=lambda given: {"accuracy": float(np.mean(given[0].argmax(-1) == given[1]))},
            )
            trainer.train()
            score = trainer.evaluate()["eval_accuracy"]
            if best is None or score > best[0]:
                best = (score, trainer, f"r={rank}, {rate:g}")
    assert best is not None
    test = best[1].evaluate(splits["test"])["eval_accuracy"]
    return {"seconds": time.perf_counter() - started, "test": test, "winner": best[2]}


if __name__ == "__main__":
    main()
