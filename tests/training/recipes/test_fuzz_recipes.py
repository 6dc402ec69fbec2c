"""Mutated recipes: a plain error, or a recipe that its own text gives again."""

from pathlib import Path

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.training.recipes import as_yaml, read_recipe
from support.fuzz import mutations, outcome

RECIPE = """
model: builtin
out: runs/example
measure: {source: texts.txt, text: text}
defaults: &settings {epochs: 2, batch_size: 8, learning_rate: 1.0e-3, seed: 3}
stages:
  - name: pretrain
    data: {source: python-docs, task: lm, limit: 20}
    method: "LoRA(r=8) + BitFit()"
    settings: *settings
  - name: instruct
    data: {source: rows.jsonl, text: [a, b], label: c}
    budget: 0.5%
    task: {max_length: 64, prompt: "{a}: {b}"}
    merge: false
""".replace("defaults: &settings {epochs: 2, batch_size: 8, learning_rate: 1.0e-3, seed: 3}\n", "").replace(
    "settings: *settings", "settings: {epochs: 2, batch_size: 8, learning_rate: 1.0e-3, seed: 3}"
)


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_recipes_are_refused_or_written_back(tmp_path: Path, count: int) -> None:
    path, again = tmp_path / "recipe.yaml", tmp_path / "again.yaml"
    path.write_text(RECIPE)
    original = read_recipe(path)
    for name, content in mutations(RECIPE.encode(), 1, count):
        path.write_bytes(content)
        recipe = outcome(lambda: read_recipe(path), name)
        if isinstance(recipe, DeltatuneError):
            continue
        again.write_text(as_yaml(recipe), encoding="utf-8")
        assert read_recipe(again) == recipe, name
        assert recipe == original or as_yaml(recipe) != as_yaml(original), name


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_overrides_are_refused_or_written_back(tmp_path: Path, count: int) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    for name, content in mutations(b"stages.instruct.settings.epochs=3", 2, count):
        override = content.decode("utf-8", "surrogateescape")
        outcome(lambda override=override: read_recipe(path, [override]), f"{name}: {override[:100]!a}")
