"""A sample study.json of any size, with every kind of content, for the tests of its page and its exports."""

from __future__ import annotations

import random
from typing import Any

from support.comparison_sample import poisoned

METHODS = [
    ("LoRA()", "LoRA"), ("Houlsby()@3%", "Houlsby adapter"), ("Pfeiffer()", "Pfeiffer adapter"),
    ("Prompt(length=1)", "Prompt"),
    ("Prompt(length=20)", "Prompt"), ("Prompt(length=100)", "Prompt"), ("BitFit()", "BitFit"), ("Full()", "Full"),
    ("IA3()", "IA3"), ("Probe()", "Probe"), ("Compacter()", "Compacter"), ("DoRA()", "DoRA"), ("PiSSA()", "PiSSA"),
    ("VeRA()", "VeRA"), ("ReFT()", "ReFT"), ("MAM()", "MAM"), ("TopLayers(2)", "TopLayers"), ("RsLoRA()", "RsLoRA"),
    ("UniPELT(methods=Prefix(length=1) + LoRA(r=1, alpha=8.0) + Bottleneck(size=4))", "UniPELT"),
    ("Prefix()", "Prefix"),
]  # fmt: skip
SETS = ["sst2", "trec6", "cola", "mrpc", "qqp", "mnli_matched", "qnli", "rte", "stsb-as-published", "wnli"]


def sample_study(
    methods: int = 6,
    sets: int = 4,
    limits: tuple[int, ...] = (),
    models: int = 1,
    unfinished: int = 0,
    hostile: bool = False,
) -> dict[str, Any]:
    """A study of `methods` on `sets` data sets, also over `limits` rows and several models."""
    rng = random.Random(methods * 100 + sets)
    asked = [method for method, _ in METHODS[:methods]]
    names, comparisons = SETS[:sets], []
    for model in range(models):
        for limit in limits or (None,):
            for name in names:
                at = {"data": name, "model": f"org/model-{model}", "limit": limit, "budget": "0.5%", "shots": None}
                comparisons.append(_comparison(rng, at, methods, len(comparisons)))
    for comparison in comparisons[len(comparisons) - unfinished :] if unfinished else []:
        comparison |= {"summary": None, "report": None}
    study: dict[str, Any] = {
        "schema": 1,
        "kind": "study",
        "name": "Eight methods on GLUE",
        "created": "2026-03-14T15:09:26+00:00",
        "elapsed_seconds": 4111.0,
        "axes": [{"name": "data", "values": names}],
        "comparisons": comparisons,
        "methods": asked,
        "averages": _averages(asked, comparisons),
        "ranks": {
            "test": "Friedman + Nemenyi",
            "p": 0.0004,
            "critical_difference": 1.9,
            "cliques": [asked[:2], asked[1:4]],
            "sets": sets,
        },
        "series": _series(asked, comparisons) if limits else [],
        "totals": [
            {"method": text, "tasks": 1000, "params": 1000 * 10_000 * (i + 1), "bytes": 90_000_000 + 40_000_000 * i}
            for i, text in enumerate(asked)
        ],
        "published": [
            {"method": asked[0], "at": {"data": names[0]}, "metric": "accuracy", "value": 94.2, "source":
             "https://arxiv.org/abs/2106.09685"},
            {"method": asked[1], "at": {"data": names[1]}, "metric": "f1", "value": 0.871,
             "source": "Houlsby 2019, table 1"},
        ],
        "recommendation": {"method": asked[0], "sentence": f"Use {asked[0]}: the best average rank, 1.8 of {methods}."},
    }  # fmt: skip
    return poisoned(study) if hostile else study


def _comparison(rng: random.Random, at: dict[str, Any], methods: int, index: int) -> dict[str, Any]:
    level = 0.6 + 0.3 * rng.random() + (0.00002 * at["limit"] if at["limit"] else 0)
    rows = []
    for i, (asked, name) in enumerate(METHODS[:methods]):
        score = min(0.99, level - 0.01 * i + rng.gauss(0, 0.01))
        rows.append({
            "method": asked.partition("@")[0].replace("()", f"(r={index + 2})") if name == "LoRA" else asked,
            "asked": asked, "name": name, "reference": name in ("Full", "BitFit", "Probe"), "params": 10_000 * (i + 1),
            "head_params": 770, "share": 0.001 * (i + 1), "metric": "accuracy", "score": score,
            "ci95": [score - 0.02, score + 0.02], "tied_with_best": i < 2, "seed_scores": [score, score],
            "scores": {"accuracy": score, "f1": score - 0.01}, "failed": None, "train_seconds": 20.0 + i,
            "adapter_bytes": 40_000 * (i + 1), "latency_ratio": 1.1, "latency_ratio_merged": None, "curves": [],
            "search": [], "learning_rate": 1e-3, "adapter": f"adapters/{name}",
        })  # fmt: skip
    if index == 1 and methods > 4:
        rows[4] |= {"score": None, "ci95": None, "failed": "OutOfMemoryError: 1.9 GB asked", "tied_with_best": False}
    best = max(rows, key=lambda row: row["score"] or 0)
    best["tied_with_best"] = True
    failed = [row for row in rows if row["failed"]]
    folder = "-".join(str(value) for value in at.values() if value).replace("/", "-").replace("%", "")
    summary = {
        "schema": 1, "name": f"{at['data']} on {at['model']}", "model": at["model"], "metric": "accuracy",
        "data": {"name": at["data"], "origin": "a file", "rows": {"train": at["limit"] or 2000, "test": 500},
                 "notes": ["Rows that occur twice were kept."] if index % 2 else []},
        "methods": rows, "seeds": [0, 1], "elapsed_seconds": 300.0, "base_params": 22_000_000,
        "failed": [{"method": row["method"], "learning_rate": 1e-3, "seed": 0, "stage": "search",
                    "error": row["failed"]} for row in failed],
        "settings": {"epochs": 3, "batch_size": 32, "seed_of_data": index}, "versions": {"torch": "2.13.0"},
        "recommendation": {"method": best["method"],
                           "sentence": f"Use {best['method']}: {best['score']:.3f} accuracy."},
    }  # fmt: skip
    return {"at": at, "folder": folder, "report": f"{folder}/report.html", "summary": summary}


def _averages(asked: list[str], comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    averages = []
    for i, text in enumerate(asked):
        scores = {
            str(j): row["score"]
            for j, each in enumerate(comparisons)
            for row in (each["summary"] or {}).get("methods", ())
            if row["asked"] == text and row["score"] is not None
        }
        mean = sum(scores.values()) / len(scores) if scores else None
        averages.append({"method": text, "mean": mean, "rank": i + 1.3, "scores": scores})
    return averages


def _series(asked: list[str], comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for each in comparisons:
        for row in (each["summary"] or {}).get("methods", ()):
            point = {"x": each["at"]["limit"], "score": row["score"], "ci": row["ci95"]}
            lines.setdefault((row["asked"], each["at"]["data"], each["at"]["model"]), []).append(point)
    return [
        {"axis": "limit", "method": method, "at": {"data": data, "model": model}, "points": points}
        for (method, data, model), points in lines.items()
    ]
