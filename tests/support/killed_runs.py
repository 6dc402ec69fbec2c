"""Runs of training that are killed: their commands, and that a killed run has the bytes of one that was not."""

import json
from pathlib import Path

from deltatune.store.adapter_folder import TENSORS
from support import models
from support.command_line import review_folder
from support.language_models import generation_tokenizer, make_rows

QUICK = ["--epochs", "3", "--lr", "1e-2", "--batch-size", "16", "--accumulation", "2", "--precision", "float32"]
CASES = {
    "classify": ["--max-length", "32"],
    "generate": ["--task", "generate", "--packing", "--max-length", "48", "--new-tokens", "4"],
    "lm": ["--task", "lm", "--text", "text", "--packing", "--max-length", "32"],
}


def prepared(case: str, folder: Path) -> list[str]:
    """A command that trains a tiny model of the folder on data of the folder."""
    model, data = folder / "model", folder / "data"
    if case == "generate":
        data.mkdir()
        for seed, split in enumerate(("train", "dev", "test")):
            lines = [json.dumps(row) for row in make_rows(8 if seed else 40, seed)]
            (data / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    else:
        review_folder(data)
    (models.tiny("bert") if case == "classify" else models.tiny("llama", "lm")).save_pretrained(model)
    generation_tokenizer().save_pretrained(model)
    return ["train", "--model", str(model), "--data", str(data), *QUICK, *CASES[case]]


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def scores(folder: Path) -> dict:
    found = json.loads((folder / "metrics.json").read_text())
    return {split: found[split] for split in ("validation", "test")} | {"loss": found["training"]["final_loss"]}


def figures(folder: Path) -> list[dict]:
    """What metrics.jsonl says, without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "second" not in name} for line in lines]


def assert_as_if_never_killed(folder: Path) -> int:
    """Every run in the folder has the bytes of the uninterrupted one, and no file more; how many there are."""
    whole = folder / "whole"
    others = [path for path in folder.iterdir() if path.name != "whole" and (path / "run.json").exists()]
    for other in others:
        assert files(other) == files(whole), other.name
        adapter = Path("adapter") / TENSORS
        assert (other / adapter).read_bytes() == (whole / adapter).read_bytes(), other.name
        assert scores(other) == scores(whole), other.name
        assert figures(other) == figures(whole), other.name
    return len(others)
