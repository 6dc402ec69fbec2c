"""A sample summary.json with every kind of content, for the tests of the report."""

import math
import random
from typing import Any

# method, name, reference, parameters, score, learning rate, seconds, latency unmerged, merged
METHODS = [
    ("LoRA(r=12)", "LoRA", False, 110_592, 0.712, 1e-3, 21.4, 1.09, 1.0),
    ("Bottleneck(size=11, form='houlsby')", "Bottleneck", False, 106_000, 0.721, 1e-3, 22.8, 1.14, None),
    ("Bottleneck(size=24, form='pfeiffer')", "Bottleneck", False, 113_000, 0.704, 1e-3, 19.9, 1.08, None),
    ("Prefix(length=24)", "Prefix", False, 110_600, 0.671, 5e-3, 24.1, 1.12, None),
    ("Prompt(length=100)", "Prompt", False, 38_400, 0.603, 3e-2, 33.7, 1.61, None),
    ("LoRA(r=6) + Prefix(length=12)", "LoRA + Prefix", False, 110_592, 0.709, 1e-3, 25.2, 1.18, None),
    ("LoRA(r=3, sites='*.{q,k,v,o}')", "LoRA", False, 112_900, 0.715, 1e-3, 23.0, 1.12, 1.0),
    ("Full()", "Full", True, 22_713_216, 0.782, 5e-5, 41.9, 1.0, 1.0),
    ("TopLayers(2)", "TopLayers", True, 3_549_696, 0.741, 1e-4, 17.2, 1.0, 1.0),
    ("BitFit()", "BitFit", True, 46_080, 0.688, 3e-3, 18.8, 1.01, 1.0),
    ("Probe()", "Probe", True, 0, 0.641, 3e-3, 9.3, 1.0, 1.0),
]
BASE = 22_713_216


def sample_summary(hostile: bool = False) -> dict[str, Any]:
    """Eleven methods with scores and a failed one; `hostile` puts markup into every text."""
    rng = random.Random(0)
    methods = [_method(rng, *row) for row in METHODS]
    methods.append(_failed("Prefix(length=12, hidden=512)", "Prefix", "OutOfMemoryError: 1.9 GB asked, 0.4 GB left"))
    best = max(methods, key=lambda row: row["score"] or 0)
    best["tied_with_best"] = True
    for row in methods:
        if row["method"].startswith(("TopLayers",)):
            row["tied_with_best"] = True
    summary: dict[str, Any] = {
        "schema": 1,
        "name": "mine",
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "data": {
            "name": "Python documentation",
            "origin": "docstrings of the standard library of Python 3.11",
            "rows": {"train": 2829, "validation": 354, "test": 354},
            "labels": ["files and processes", "networking", "concurrency", "mathematics", "text", "data formats"],
            "notes": ["12 rows were longer than 256 tokens and were cut."],
        },
        "task": "classify",
        "metric": "accuracy",
        "budget": {"text": "0.5%", "params": 113_566},
        "base_params": BASE,
        "head_params": 3850,
        "seeds": [0, 1, 2],
        "created": "2026-03-14T15:09:26+00:00",
        "elapsed_seconds": 284.2,
        "settings": {"epochs": 3, "batch_size": 32, "schedule": "linear", "resamples": 2000, "max_length": 256},
        "versions": {"deltatune": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
        "majority": {"score": 0.189},
        "methods": methods,
        "failed": [
            {
                "method": "Prefix(length=12, hidden=512)",
                "learning_rate": 5e-3,
                "seed": 0,
                "stage": "search",
                "error": "OutOfMemoryError: 1.9 GB asked, 0.4 GB left",
            }
        ],
        "pscp_constants": {"params": 5e8, "flops": 1e13, "memory": 9.4e10},
        "recommendation": {
            "method": "TopLayers(2)",
            "sentence": "Use TopLayers(2): 0.741 accuracy (95 % CI 0.701-0.778), statistically tied with the best "
            "(Full(), 0.782) with 16 % of its trained parameters.",
        },
    }
    return poisoned(summary) if hostile else summary


def _method(
    rng: random.Random,
    method: str,
    name: str,
    reference: bool,
    params: int,
    score: float,
    rate: float,
    seconds: float,
    unmerged: float,
    merged: float | None,
) -> dict[str, Any]:
    seeds = [round(score + rng.gauss(0, 0.006), 4) for _ in range(3)]
    mean = sum(seeds) / 3
    spread = 0.041 + rng.random() * 0.006
    return {
        "method": method,
        "name": name,
        "reference": reference,
        "params": params,
        "head_params": 3850,
        "share": params / BASE,
        "score": mean,
        "ci95": [mean - spread, mean + spread * 0.95],
        "seed_scores": seeds,
        "scores": {"accuracy": mean, "f1": mean - 0.02},
        "metric": "accuracy",
        "tied_with_best": False,
        "learning_rate": rate,
        "search": [[rate * by, score - 0.02 - drop] for by, drop in ((1 / 3, 0.021), (1, 0.0), (3, 0.013))],
        "train_seconds": seconds,
        "examples_per_second": 3 * 2829 / seconds,
        "peak_memory_bytes": int(0.7e9 + params * 14 + rng.random() * 1e8),
        "adapter_bytes": params * 4 + 18_000,
        "latency_ratio": unmerged,
        "latency_ratio_merged": merged,
        "pscp": mean * 0.99,
        "curves": [_curve(rng, seed, score) for seed in range(3)],
        "failed": None,
    }


def _curve(rng: random.Random, seed: int, score: float) -> dict[str, Any]:
    low, steps = 2.2 * (1 - score), 267
    loss = [
        [step, low + (2.31 - low) * math.exp(-step / 60 * score) + rng.gauss(0, 0.11)] for step in range(1, steps, 3)
    ]
    validation = [[89 * epoch, score - 0.12 / epoch**1.5 + rng.gauss(0, 0.005)] for epoch in (1, 2, 3)]
    return {"seed": seed, "loss": loss, "validation": validation}


def _failed(method: str, name: str, error: str) -> dict[str, Any]:
    empty = ("score", "ci95", "learning_rate", "train_seconds", "examples_per_second", "peak_memory_bytes")
    empty += ("adapter_bytes", "latency_ratio", "latency_ratio_merged", "pscp")
    row: dict[str, Any] = dict.fromkeys(empty)
    row |= {"method": method, "name": name, "reference": False, "params": 108_000, "share": 108_000 / BASE}
    return row | {"seed_scores": [], "search": [], "curves": [], "tied_with_best": False, "failed": error}


EVIL = "<script>document.title='owned'</script>\"'&<img src=x onerror=alert(1)>"


def poisoned(value: Any, key: str = "") -> Any:
    """Add markup to every text, also to keys of settings and versions; numbers and structure stay."""
    if isinstance(value, dict):
        free = key in ("settings", "versions")
        return {(name + EVIL if free else name): poisoned(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [poisoned(each, key) for each in value]
    return value + EVIL if isinstance(value, str) else value
