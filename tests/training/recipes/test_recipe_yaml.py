"""YAML of recipes: hostile files are one plain error each, soon; plain values mean what they seem to mean."""

import os
import time
from pathlib import Path

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.training.recipes import read_recipe
from deltatune.training.recipes.recipe_yaml import dump_yaml, load_yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: a\nmodel: b", r"the key model is repeated \(line 2, column 1\)"),
        ("settings: {seed: 1, seed: 2}", "the key seed is repeated"),
        ("<<: {a: 1}\n<<: {b: 1}", "the key << is repeated"),
        ("a: !!python/object/apply:os.system [ls]", "the tag .*os.system is not read"),
        ("a: !!binary aGk=", "the tag .*binary is not read"),
        ("a: &x [*x]", "an alias stands within what it names"),
        ("a: &x 1\nb: &x 2", "duplicate anchor 'x'"),
        (LAUGHS, "with its aliases it has more than 100,000 values"),
        ("[" * 100_000, "nested more than 20 deep"),
        ("a:\n" + "".join(" " * i + "- \n" for i in range(1, 400)), "nested more than 20 deep"),
        ("a: " + "9" * 5000, "the number has 5,000 digits"),
        ("a: -1e400", "the number -1e400 is not finite"),
        ("a: .nan", "the number .nan is not finite"),
        ("1: a", "the key 1 is not a name"),
        ('a: "\\ud800"', "half of a surrogate pair"),
        ("a: 1\n--- \na: 2", "expected a single document"),
        ("a: 'b", r"unexpected end of stream \(line 1"),
        ("a: \0", "unacceptable character"),
        ("x" * 200_001, "has 200,001 characters"),
    ],
    ids=lambda value: value[:20],
)
def test_a_hostile_file_is_one_plain_error_in_bounded_time(text: str, message: str) -> None:
    start = time.monotonic()
    with pytest.raises(DeltatuneError, match=message) as caught:
        load_yaml(text, "recipe.yaml")
    assert time.monotonic() - start < 5
    assert "recipe.yaml" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_plain_values_are_texts_unless_they_are_plainly_something_else() -> None:
    text = (
        "label: no\nat: 12:30:45\nday: 2024-01-31\nrate: 1e-3\nsteps: 1_000\ncount: 010\nmerge: true\nnone: ~\nempty:\n"
    )
    assert load_yaml(text, "a") == {
        "label": "no", "at": "12:30:45", "day": "2024-01-31", "rate": 0.001, "steps": 1000, "count": 10,
        "merge": True, "none": None, "empty": None,
    }  # fmt: skip
    assert load_yaml("base: &b {x: 1, y: 2}\nown: {<<: *b, x: 3}", "a")["own"] == {"x": 3, "y": 2}


def test_what_is_written_reads_back_equal() -> None:
    texts = ["no", "1e-3", "2024-01-31", "12:30", "010", "true", "~", "", "1_000", "0x1", "<<", "a: b", "- x", ".inf"]
    value = {"texts": texts, "numbers": [1, -1, 0.5, 1e-5, 1e22], "others": [True, None, {}]}
    assert load_yaml(dump_yaml(value), "a") == value


def test_a_value_that_is_set_twice_is_named(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: builtin\nstages:\n- {name: one, data: python-docs}\n- {name: two, data: python-docs}\n")
    with pytest.raises(DeltatuneError, match="model=b replaces model=a, which is given before it"):
        read_recipe(recipe, ["model=a", "model=b"])
    with pytest.raises(DeltatuneError, match=r"stages\.1\.data=b replaces stages\.one\.data=a"):
        read_recipe(recipe, ["stages.one.data=a", "stages.1.data=b"])
    with pytest.raises(DeltatuneError, match=r"stages\.one\.data=b replaces stages\.one\.data\.limit=3"):
        read_recipe(recipe, ["stages.one.data.limit=3", "stages.one.data=b"])
    loaded = read_recipe(recipe, ["stages.one.data=python-docs", "stages.one.data.limit=3"])
    assert loaded.stages[0].data is not None
    assert loaded.stages[0].data.limit == 3
    with pytest.raises(DeltatuneError, match="it has 5001 keys"):
        read_recipe(recipe, ["a." * 5000 + "b=1"])
    with pytest.raises(DeltatuneError, match="nested more than 20 deep"):
        read_recipe(recipe, ["model=" + "[" * 5000])


def test_a_pipe_and_a_dangling_link_are_no_recipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "nowhere.yaml")
    with pytest.raises(DeltatuneError, match=r"recipe .*pipe.yaml: it is a pipe"):
        read_recipe(tmp_path / "pipe.yaml")
    with pytest.raises(DeltatuneError, match=r"link.yaml: it is a link to .*nowhere.yaml, which does not exist"):
        read_recipe(tmp_path / "link.yaml")
    with pytest.raises(DeltatuneError, match="it is a folder"):
        read_recipe(tmp_path)


def test_true_is_no_number_and_an_empty_override_is_no_value(tmp_path: Path) -> None:
    recipe = tmp_path / "a.yaml"
    stages = "model: builtin\nstages:\n- name: one\n  data: {source: a.csv, limit: true}\n  settings: {seed: false}\n"
    recipe.write_text(f"{stages}- name: two\n  data: b.csv\n  settings: {{packing: true, warmup: true, epochs: 1}}\n")
    with pytest.raises(DeltatuneError) as caught:
        read_recipe(recipe)
    assert str(caught.value).splitlines()[1:] == [
        "- stages.one.data.limit: input should be a number, not true",
        "- stages.one.settings.seed: input should be a number, not false",
        "- stages.two.settings.warmup: input should be a number, not true",
    ]
    recipe.write_text("model: builtin\ndata: a.csv\nsettings: {epochs: 1}\n")
    for override in ("settings.epochs=", "model= "):
        with pytest.raises(DeltatuneError, match="has no value; NAME=null removes one"):
            read_recipe(recipe, [override])
    assert read_recipe(recipe, ["settings.epochs=null"]).settings.epochs == 3
