"""Recipes: what a file may say, and what is said of mistakes."""

import json
import re
from pathlib import Path

import pytest

from deltatune.cli.commands.run import recipe_schema
from deltatune.core.errors import DeltatuneError
from deltatune.training.recipes import as_yaml, checked_recipe, read_recipe, run_recipe
from support.command_line import ran, reviews, write_csv

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "recipes").glob("*.yaml"))
ONE = {"model": "builtin", "data": "train.csv"}
TWO = {"stages": [{"name": "a", "data": "t.txt"}, {"name": "b", "data": "t.txt"}]}


def written(tmp_path, text, name="r.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


# --- what a file may say


def test_names_alone_are_sources_and_single_columns_are_lists():
    recipe = checked_recipe({"data": "train.csv", "budget": 300000})
    assert recipe.data.source == "train.csv"
    assert recipe.budget == "300000"
    assert checked_recipe({"data": {"source": "a.csv", "text": "review"}}).data.text == ["review"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_resolved_recipe_reads_back_equal(path, tmp_path):
    recipe = read_recipe(path)
    text = as_yaml(recipe)
    again = read_recipe(written(tmp_path, text))
    assert again == recipe
    assert as_yaml(again) == text
    if not recipe.stages:  # of adapters each has them
        assert "length_grouping: true" in text, "defaults are in it: a later version may have others"


def test_of_epochs_and_steps_the_resolved_recipe_has_the_one_that_counts(tmp_path):
    text = as_yaml(checked_recipe({**ONE, "settings": {"max_steps": 7}}))
    assert "max_steps: 7" in text
    assert "epochs" not in text
    assert read_recipe(written(tmp_path, text)).settings.max_steps == 7


MISTAKES = [
    ({}, "a recipe needs data, a mixture, adapters, or stages"),
    ({**ONE, "modle": "x"}, "modle: there is no such key, did you mean 'model'?; keys: data, mixture, task"),
    ({**ONE, "settings": {"epocs": 1}}, "settings.epocs: there is no such key, did you mean 'epochs'?"),
    ({"data": {"source": "a", "labels": "x"}}, "data.labels: there is no such key, did you mean 'label'?"),
    ({"data": {"task": "lm"}}, "data.source: this key is required"),
    ({"data": {"source": "a", "task": "clasify"}}, "not 'clasify', did you mean 'classify'?"),
    ({**ONE, "settings": {"schedule": "cosin"}}, "not 'cosin', did you mean 'cosine'?"),
    ({**ONE, "settings": {"batch_size": "many"}}, "settings.batch_size: input should be a valid integer"),
    ({**ONE, "settings": {"batch_size": 0}}, "settings: batch_size must be at least 1, not 0"),
    ({**ONE, "settings": {"epochs": 1, "max_steps": 2}}, "leave one out"),
    ({**ONE, "measure": "t.txt"}, "measure needs stages"),
    ({**ONE, "objective": {"kind": "mlm"}, "task": {"max_length": 9}}, "move max_length from task to objective"),
    ({**ONE, "objective": {"kind": "mlm"}, "head": {"pooling": "cls"}}, "leave head out"),
    ({"data": {"source": "a", "label": "y"}, "objective": {"kind": "mlm"}}, "texts are read, so it does not use label"),
    ({**TWO, "method": "BitFit()"}, "a recipe with stages does not use method outside of them"),
    ({**TWO, "measure": {"source": "a", "limit": 3}}, "measure: only texts are read, so it does not use limit"),
    ({"stages": [{"name": "a", "data": "t"}] * 2}, "several stages have the name a"),
    ({"stages": [{"name": "a"}]}, "stages.a: a stage needs data"),
    ({"stages": [{"data": "t"}]}, "stages.1.name: this key is required"),
    ({"stages": [{"name": "1", "data": "t"}]}, "stages.1.name: string should match pattern"),
    ({"stages": [{"name": "a", "data": "t", "merge": False}, {"name": "b", "data": "t"}]}, "merge a"),
    (
        {"stages": [{"name": "a", "data": "t", "vocabulary": {"size": 9}, "method": "BitFit()", "merge": True}]},
        "stages.a: a vocabulary stage trains nothing, so it does not use method, merge",
    ),
    ({"stages": [{"name": "a", "data": "t", "vocabulary": {"sise": 9}}]}, "stages.a.vocabulary.sise: there is no such"),
    ({"stages": [{"name": "a", "data": "t", "vocabulary": {"size": 0}}]}, "stages.a.vocabulary.size: input should be"),
]


@pytest.mark.parametrize(("content", "message"), MISTAKES, ids=lambda value: value if isinstance(value, str) else "")
def test_mistakes_are_named(content, message):
    with pytest.raises(DeltatuneError, match=re.escape(message)):
        checked_recipe(content)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(DeltatuneError) as caught:
        checked_recipe({**ONE, "modle": 1, "settings": {"epocs": 1}})
    assert "modle" in str(caught.value)
    assert "epocs" in str(caught.value)


# --- overrides


def test_overrides_change_the_file(tmp_path):
    path = written(tmp_path, "data: a.csv\nsettings: {epochs: 3}\nbudget: 1%\n")
    recipe = read_recipe(
        path, ["data.limit=8", "settings.epochs=null", "settings.max_steps=2", "budget=null", "head.pooling=cls"]
    )
    assert (recipe.data.source, recipe.data.limit) == ("a.csv", 8)
    assert (recipe.settings.max_steps, recipe.budget, recipe.head) == (2, None, {"pooling": "cls"})
    assert read_recipe(path, ["data=b.csv", "settings.learning_rate=2e-4"]).settings.learning_rate == 2e-4


def test_stages_are_named_in_overrides(tmp_path):
    path = written(tmp_path, json.dumps(TWO))
    recipe = read_recipe(path, ["stages.b.settings.epochs=2", "stages.1.method=BitFit()"])
    assert [stage.method for stage in recipe.stages] == ["BitFit()", "LoRA(r=8)"]
    assert recipe.stages[1].settings.epochs == 2
    assert [stage.name for stage in read_recipe(path, ["stages.b=null"]).stages] == ["a"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("settings.epochs", "'settings.epochs' is not an override; write NAME=VALUE"),
        ("=3", "is not an override"),
        ("settings..epochs=3", "is not an override"),
        ("data={", "cannot read the value of 'data={' as YAML"),
        ("stages.c.method=x", "there is no 'c'; there are: a, b"),
        ("stages.3.method=x", "there is no '3'"),
        ("stages.a.name.x=3", "stages.a.name is 'a': there is nothing below it to set"),
        ("settings.epochs=2", "a recipe with stages does not use settings"),
        ("stages.a.settings.epochs=two", "stages.a.settings.epochs: input should be a valid number"),
    ],
)
def test_wrong_overrides_are_named(tmp_path, override, message):
    with pytest.raises(DeltatuneError, match=re.escape(message)):
        read_recipe(written(tmp_path, json.dumps(TWO)), [override])


def test_files_that_are_no_recipes(tmp_path):
    written(tmp_path, "- a\n", "list.yaml")
    written(tmp_path, "a: [\n", "broken.yaml")
    with pytest.raises(DeltatuneError, match=r"did you mean 'list.yaml'\?; recipes there: broken.yaml, list.yaml"):
        read_recipe(tmp_path / "lists.yaml")
    with pytest.raises(DeltatuneError, match="is not a recipe: it needs keys"):
        read_recipe(tmp_path / "list.yaml")
    with pytest.raises(DeltatuneError, match="as YAML"):
        read_recipe(tmp_path / "broken.yaml")


def test_paths_are_those_of_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "train.csv").write_text("text,label\n")
    path = written(tmp_path / "there", "data: train.csv\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeltatuneError, match=r"train.csv does not exist in the working .* but beside the recipe"):
        read_recipe(path)
    monkeypatch.chdir(tmp_path / "there")
    assert read_recipe(path).data.source == "train.csv"


# --- what only the data or the method can show


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"task": {"prompt": "plain"}}, "Classify has no 'prompt'"),
        ({"head": {"pool": "cls"}}, "a head has no option 'pool', did you mean 'pooling'?"),
        ({"method": "Lora(r=8)"}, "did you mean 'LoRA'"),
        ({"objective": {"kind": "mml"}}, "there is no objective 'mml', did you mean 'mlm'?"),
        ({"objective": {"kind": "mlm", "rat": 0.1}}, "objective mlm has no 'rat', did you mean 'rate'?"),
    ],
)
def test_options_that_nothing_would_read_are_errors(tmp_path, more, message):
    data = write_csv(tmp_path / "train.csv", reviews())
    recipe = checked_recipe({"data": {"source": str(data)}, "out": str(tmp_path / "out"), **more})
    with pytest.raises(DeltatuneError, match=re.escape(message)):
        run_recipe(recipe, "r")
    assert not (tmp_path / "out").exists()


def test_a_head_for_a_task_without_one_is_an_error(tmp_path):
    data = write_csv(tmp_path / "t.csv", [{"input": f"the film {i}", "output": f"it is {i}"} for i in range(60)])
    recipe = checked_recipe({"data": {"source": str(data), "task": "generate"}, "head": {"pooling": "cls"}})
    with pytest.raises(DeltatuneError, match="head options do not apply to a task of kind text"):
        run_recipe(recipe, "r")


# --- the schema


def test_the_published_schema_is_that_of_the_code():
    text = (ROOT / "docs/recipe.schema.json").read_text(encoding="utf-8")
    assert json.loads(text) == recipe_schema(), "stale: run `make docs`"
    done = ran("run", "--schema")
    assert json.loads(done.out) == recipe_schema()


def test_every_word_of_the_schema_is_described_and_no_other_is_allowed():
    found = recipe_schema()
    for part in [found, *found["$defs"].values()]:
        assert part["additionalProperties"] is False
        for name, place in part["properties"].items():
            assert place.get("description"), f"{part['title']}.{name}"


def test_without_a_recipe_the_command_says_what_to_name():
    done = ran("run")
    assert done.code == 2
    assert "name a recipe" in done.err
