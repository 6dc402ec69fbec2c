"""What the tests of executors share: a small comparison, and what it found without its times."""

import json
import re
from pathlib import Path
from typing import Any

from deltatune.comparison.plans.make_plan import make_plan
from deltatune.data import read
from deltatune.training import Settings
from support import models
from support.command_line import review_folder

TIMES = re.compile(r"second|created|pscp|latency|memory|_ms|speed|versions|writing|flops")
"""Facts of a run that differ from run to run."""


def make_place(folder: Path) -> Path:
    """Fill a folder with a tiny model and data."""
    review_folder(folder / "data")
    models.tiny("bert").save_pretrained(folder / "model")
    models.tiny_tokenizer().save_pretrained(folder / "model")
    return folder


def plan_in(place: Path, out: Path, epochs: int = 30, **more: Any):
    """A comparison of two seeds on such a folder."""
    return make_plan(
        read(str(place / "data")),
        model=str(place / "model"),
        out=out,
        **{
            "budget": None,
            "seeds": 2,
            "rates": 1,
            "max_length": 16,
            "settings": Settings(epochs=epochs, batch_size=8, precision="float32"),
            **more,
        },
    )


def without_times(value):
    """Plain data without the entries that differ from run to run."""
    if isinstance(value, dict):
        return {name: without_times(entry) for name, entry in value.items() if not TIMES.search(name)}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


def outcome_of(out: Path) -> dict[str, Any]:
    """What a comparison found: records without times, decision, tensors, files."""
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    summary = json.loads((out / "summary.json").read_text())
    return {
        "records": {record["cell"]: without_times(record) for record in records},
        "decision": [without_times(summary[name]) for name in ("decision", "pairs", "methods")],
        "tensors": {path.relative_to(out): path.read_bytes() for path in out.rglob("*.safetensors")},
        "files": sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.name != "progress.json"),
    }
