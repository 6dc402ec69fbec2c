"""Recipes with several adapters: trained together they are the runs that recipes of their own make."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

from deltatune.core.errors import DeltatuneError
from deltatune.training.recipes import as_yaml, checked_recipe, read_recipe, run_recipe
from deltatune.training.recipes.recipe_yaml import load_yaml
from support import models
from support.command_line import ran, reviews, write_csv
from support.language_models import generation_tokenizer
from support.language_models import make_rows as generation_rows

NEAR = {"rtol": 1e-3, "atol": 2e-4}
"""Adam divides by gradients: where one is nearly 0, its rounding is a small part of a step."""
SETTINGS = {"max_steps": 4, "batch_size": 8, "learning_rate": 1e-2, "precision": "float32", "checkpoint_every": 1}
TAGGED = [
    {"tokens": words, "tags": ["B-X" if word in ("film", "plot") else "O" for word in words]}
    for words in (row["text"].split() for row in reviews(50))
]


def world(place, kind="llama"):
    """A language model whose head has weights of its own, and data of three tasks."""
    head = {"bert": None}.get(kind, "lm")
    models.tiny(kind, head, dropout=False, tie_word_embeddings=False).save_pretrained(place / "model")
    generation_tokenizer().save_pretrained(place / "model")
    write_csv(place / "reviews.csv", reviews(60))
    write_csv(place / "texts.csv", generation_rows(40))
    (place / "tags.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TAGGED))
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return world(tmp_path_factory.mktemp("together"))


def adapters(place, kind="llama"):
    """Three tasks, with other methods, sizes, rates, orders, optimizers and lengths."""
    classes = {
        "data": str(place / "reviews.csv"),
        "task": {"max_length": 32},
        "settings": {"seed": 3},
    }
    own = {
        "mood": {**classes, "method": "LoRA(r=2)", "budget": 600},
        "tags": {
            "data": {"source": str(place / "tags.jsonl"), "task": "tag"},
            "method": "Bottleneck(size=4)",
            "settings": {"max_steps": 6, "batch_size": 5, "optimizer": "adamw-8bit"},
        },
        "text": {
            "data": {"source": str(place / "texts.csv"), "task": "generate", "text": "input", "label": "output"},
            "task": {"prompt": "plain", "new_tokens": 4, "max_length": 64},
            "method": "Prefix(length=3)",
            "settings": {"learning_rate": 5e-3, "optimizer": "paged-adamw", "accumulation": 2},
        },
    }
    if kind == "bert":
        own["text"] = {**classes, "method": "IA3()", "settings": {"seed": 4, "optimizer": "paged-adamw-8bit"}}
    return own


def together(place, out, kind="llama", names=None, **more):
    own = {name: keys for name, keys in adapters(place, kind).items() if names is None or name in names}
    content = {"model": str(place / "model"), "out": str(out), "settings": SETTINGS, "adapters": own, **more}
    return checked_recipe(content)


def single(place, out, folder):
    """The recipe that stands in one adapter's folder, in another folder."""
    return read_recipe(folder / "recipe.yaml", [f"out={out}"])


def stored(folder):
    return load_file(folder / "adapter" / "adapter.safetensors")


def check_same_run(folder, other, near):
    """Equal records, configurations and recipes; tensors and scores within rounding, or bit for bit."""
    record, wanted = (json.loads((each / "run.json").read_text()) for each in (folder, other))
    assert record == wanted
    config, wanted = (json.loads((each / "adapter" / "adapter.json").read_text()) for each in (folder, other))
    for each in (config, wanted):
        for name in ("sites", "base"):  # paths under a language-model head have a prefix
            each[name] = {key: value for key, value in each[name].items() if key in ("shapes", "content")}
        each["extra"].pop("scores")
    assert config == wanted
    one, two = stored(folder), stored(other)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], **(near or {"rtol": 0, "atol": 0}), msg=name)
    metrics, wanted = (json.loads((each / "metrics.json").read_text()) for each in (folder, other))
    assert metrics["training"]["final_loss"] == pytest.approx(wanted["training"]["final_loss"], abs=1e-3 * bool(near))
    for split in ("validation", "test"):
        assert metrics[split] == pytest.approx(wanted[split], abs=0.11 if near else 0)  # a row of ten
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize("kind", ["llama", pytest.param("bert", marks=pytest.mark.slow)])
def test_adapters_of_one_recipe_are_those_of_recipes_of_their_own(kind, place, tmp_path):
    place = place if kind == "llama" else world(tmp_path, kind)
    result = run_recipe(together(place, tmp_path / "all", kind), "all")
    assert list(result["adapters"]) == ["mood", "tags", "text"]
    for name in result["adapters"]:
        folder, other = tmp_path / "all" / name, tmp_path / f"alone-{name}"
        alone = single(place, other, folder)
        run_recipe(alone, name)
        check_same_run(folder, other, NEAR)
        assert json.loads((folder / "metrics.json").read_text())["training"]["together"] == 3
        # and what stands there is a run that a recipe of its own goes on with: it is finished
        assert run_recipe(read_recipe(folder / "recipe.yaml"), name) == result["adapters"][name]


def test_an_adapter_alone_is_bit_equal_and_those_that_are_finished_are_not_trained_again(place, tmp_path):
    run_recipe(together(place, tmp_path / "all", names=["mood"]), "all")
    run_recipe(single(place, tmp_path / "alone", tmp_path / "all/mood"), "alone")
    check_same_run(tmp_path / "all/mood", tmp_path / "alone", None)
    seen = []
    before = stored(tmp_path / "all/mood")
    result = run_recipe(together(place, tmp_path / "all", names=["mood", "tags"]), "all", on_stage=watched(seen))
    assert seen[-1] == (6, 6)  # of the other one
    assert all(torch.equal(tensor, before[name]) for name, tensor in stored(tmp_path / "all/mood").items())
    assert json.loads((tmp_path / "all/adapters.json").read_text()) == result
    seen.clear()
    assert (
        run_recipe(together(place, tmp_path / "all", names=["mood", "tags"]), "all", on_stage=watched(seen)) == result
    )
    assert seen == []
    run_recipe(together(place, tmp_path / "all", names=["mood", "tags"]), "all", on_stage=watched(seen), again="mood")
    assert seen[-1] == (4, 4)


def watched(seen, stop=None):
    """Notes the steps of all adapters, and calls `stop` with their number."""

    @contextmanager
    def on_stage(info):
        def step(done, total, loss, rate):
            seen.append((done, total))
            if stop is not None:
                stop(done)

        yield step

    return on_stage


def interrupted(at):
    def stop(done):
        if done == at:
            raise KeyboardInterrupt

    return stop


@pytest.mark.slow
def test_an_interrupted_run_goes_on(place, tmp_path):
    run_recipe(together(place, tmp_path / "whole"), "whole")
    recipe = together(place, tmp_path / "cut")
    for at in (3, 9):  # the second time in the step after the shortest has ended
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, "cut", on_stage=watched([], interrupted(at)))
    assert not (tmp_path / "cut/adapters.json").exists()
    run_recipe(recipe, "cut")
    for name in recipe.adapters:
        check_same_run(tmp_path / "cut" / name, tmp_path / "whole" / name, NEAR)


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 5, 12])
def test_a_killed_run_goes_on(at, place, tmp_path):
    run_recipe(together(place, tmp_path / "whole"), "whole")
    (tmp_path / "cut.yaml").write_text(as_yaml(together(place, tmp_path / "cut")))
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "cut.yaml"), str(at)], check=False, capture_output=True
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    done = ran("run", tmp_path / "cut.yaml")
    assert done.code == 0, done.err
    for name in ("mood", "tags", "text"):
        check_same_run(tmp_path / "cut" / name, tmp_path / "whole" / name, NEAR)


KILLED = """
import os, signal, sys
from deltatune.training.recipes import read_recipe, run_recipe
import test_joint_recipes as here
kill = lambda done: os.kill(os.getpid(), signal.SIGKILL) if done == int(sys.argv[2]) else None
run_recipe(read_recipe(sys.argv[1]), "cut", on_stage=here.watched([], kill))
"""
os.environ["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])


def test_an_adapter_that_fails_leaves_the_others(place, tmp_path):
    mood = adapters(place)["mood"]
    own = {"good": mood, "bad": {**mood, "settings": {"learning_rate": 1e25}}}
    recipe = together(place, tmp_path / "out", adapters=own)
    with pytest.raises(DeltatuneError, match="1 of 2 adapters failed, the others are finished:") as error:
        run_recipe(recipe, "out")
    assert "adapters.bad: the gradients became nan in step 2" in str(error.value)
    assert (tmp_path / "out/good/metrics.json").is_file()
    assert not (tmp_path / "out/adapters.json").exists()
    own["bad"] = mood
    with pytest.raises(DeltatuneError, match=r"adapters.bad: .* holds an unfinished run with other settings") as error:
        run_recipe(together(place, tmp_path / "out", adapters=own), "out")
    assert "--again bad replaces it" in str(error.value)
    result = run_recipe(together(place, tmp_path / "out", adapters=own), "out", again="bad")
    assert list(result["adapters"]) == ["good", "bad"]


# --- keys


def keys(**content):
    return checked_recipe({"data": "a.csv", **content})


def test_keys_beside_the_adapters_are_those_of_all_that_do_not_set_them():
    recipe = keys(
        settings={"epochs": 2, "seed": 1, "batch_size": 4},
        method="IA3()",
        task={"max_length": 9},
        adapters={
            "plain": None,
            "other": {"settings": {"max_steps": 3, "seed": 2}, "task": {"metric": "f1"}, "data": "b.csv"},
            "parts": {"mixture": {"parts": {"a": "a.csv", "b": "b.csv"}}, "method": "LoRA(r=2)"},
        },
    )
    plain, other, parts = recipe.adapters.values()
    assert (plain.settings.epochs, plain.settings.seed, plain.method, plain.task) == (2, 1, "IA3()", {"max_length": 9})
    assert (other.settings.max_steps, other.settings.seed, other.settings.batch_size) == (3, 2, 4)
    assert (other.task, other.data.source) == ({"max_length": 9, "metric": "f1"}, "b.csv")
    assert (parts.data, parts.task, parts.method, parts.settings.epochs) == (None, {}, "LoRA(r=2)", 2)
    assert checked_recipe(load_yaml(as_yaml(recipe), "the resolved recipe")) == recipe


LOW = {"low": {}}
MISTAKES = [
    ({"adapters": {}}, "adapters names none"),
    ({"adapters": [1]}, "adapters: input should be a valid dictionary"),
    ({"adapters": {"a": 3}}, "adapters.a: "),
    ({"adapters": {"a": {"methd": "x"}}}, "adapters.a.methd: there is no such key, did you mean 'method'?; keys: data"),
    ({"adapters": LOW, "settings": {"epocs": 1}}, "- settings.epocs: there is no such key, did you mean 'epochs'?"),
    ({"adapters": LOW, "settings": {"batch_size": 0}}, "- settings: batch_size must be at least 1"),
    ({"adapters": LOW, "settings": {"seed": True}}, "settings.seed: input should be a number, not true"),
    ({"adapters": LOW, "data": {}}, "- data.source: this key is required"),
    ({"adapters": {"a": {"settings": {"seed": "x"}}}}, "adapters.a.settings.seed: input should be a valid integer"),
    ({"adapters": {"a": {"from": "runs/x"}}}, "adapters.a: from: an adapter that is trained further"),
    ({"adapters": {"a": {"settings": {"learning_rate": "auto"}}}}, "adapters.a: learning_rate: auto is searched"),
    ({"adapters": {"a/b": {}, "..": {}}}, "adapters: 'a/b' cannot be a folder's name"),
    ({"adapters": {"Checkpoints": {}}}, "adapters: 'checkpoints' is a folder of every run"),
    ({"adapters": {"a": {}, "A": {}}}, "adapters: A, a differ in case alone"),
    ({"adapters": {"a": {"data": "b.csv"}}}, "every adapter has its own data: leave that out"),
    ({"adapters": {"a": {"settings": {"max_steps": 1}}}, "settings": {"epochs": 1}}, "has its own settings.epochs"),
    ({"adapters": LOW, "stages": [{"name": "a", "data": "t"}]}, "there are stages and adapters"),
    ({"adapters": LOW, "measure": "t.txt"}, "measure needs stages"),
    ({"most_rows": 3}, "most_rows bounds the passes of several adapters"),
]


@pytest.mark.parametrize(("content", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_mistakes_in_keys_are_named_where_they_were_written(content, message):
    with pytest.raises(DeltatuneError, match=re.escape(message)) as error:
        keys(**content)
    if not message.startswith("adapters: 'a/b'") and "batch_size" not in message:
        assert len(str(error.value).splitlines()) == 2


def test_overrides_go_by_the_names_of_adapters(tmp_path):
    (tmp_path / "r.yaml").write_text("data: a.csv\nadapters: {low: {}, high: {settings: {seed: 2}}}\n")
    recipe = read_recipe(tmp_path / "r.yaml", ["adapters.low.data.limit=3", "adapters.high=null", "settings.seed=5"])
    assert list(recipe.adapters) == ["low"]
    assert (recipe.adapters["low"].data.limit, recipe.adapters["low"].settings.seed) == (3, 5)
    with pytest.raises(DeltatuneError, match=r"no adapter 'lwo', did you mean 'low'\?; there are: low, high"):
        read_recipe(tmp_path / "r.yaml", ["adapters.lwo.settings.seed=5"])


# --- what only the data, the model or the folder can show


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": {"method": "Full()"}, "b": {}}, "adapters.a: Full() changes the base's own weights"),
        ({"a": {"method": "Lora()"}, "b": {"data": "no.csv"}}, "- adapters.b: "),
        ({"a": {"method": "LoRA(r=2, sites='*')"}, "text": {}}, "adapters.a: LoRA(r=2, sites='*') acts at lm_head too"),
        ({"a": {"objective": {"kind": "mlm"}, "head": None}, "b": {}}, "adapters.a: "),
        ({"a": {"head": {"pooling": "pooler"}}, "b": {}}, "a reads the base's pooler"),
    ],
)
def test_adapters_that_cannot_share_a_base_are_named_before_anything_runs(change, message, place, tmp_path):
    all_of = adapters(place)
    own = {name: {**all_of.get(name, all_of["mood"]), "budget": None, **keys} for name, keys in change.items()}
    own = {name: {key: value for key, value in keys.items() if value is not None} for name, keys in own.items()}
    if "objective" in own["a"]:
        own["a"] = {key: own["a"][key] for key in ("data", "objective")}
    with pytest.raises(DeltatuneError, match=re.escape(message)):
        run_recipe(together(place, tmp_path / "out", adapters=own), "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_hold_something_else_are_refused(place, tmp_path):
    recipe = together(place, tmp_path / "out", names=["mood"])
    with pytest.raises(DeltatuneError, match="--again moot: no such adapter, did you mean 'mood'"):
        run_recipe(recipe, "out", again="moot")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(DeltatuneError, match="holds files that are not a run of a recipe"):
        run_recipe(recipe, "out")
    (tmp_path / "out/recipe.yaml").write_text("stages: []\n")
    with pytest.raises(DeltatuneError, match="holds the run of a recipe without adapters"):
        run_recipe(recipe, "out")


def test_the_command_shows_every_adapter(place, tmp_path):
    (tmp_path / "r.yaml").write_text(as_yaml(together(place, tmp_path / "out", names=["mood", "tags"])))
    first = ran("run", tmp_path / "r.yaml")
    assert first.code == 0, first.err
    for words in ("mood", "tags", "LoRA(r=", "Bottleneck(size=4)", "4 steps of 8 rows", "accuracy"):
        assert words in first.out
    assert "step 10/10 of all adapters" in first.err
    again = ran("run", tmp_path / "r.yaml", "--json")
    assert json.loads(again.out) == json.loads((tmp_path / "out/adapters.json").read_text())
    assert "finished before" in ran("run", tmp_path / "r.yaml").out


@pytest.mark.slow
def test_fifty_adapters(place, tmp_path):
    own = {f"a{i}": {"settings": {"seed": i, "weight_decay": 0.01 * i}} for i in range(50)}
    shared = {"data": str(place / "reviews.csv"), "task": {"max_length": 32}}
    result = run_recipe(together(place, tmp_path / "all", adapters=own, **shared, most_rows=64), "all")
    assert len(result["adapters"]) == 50
    for name in ("a0", "a49"):
        run_recipe(single(place, tmp_path / name, tmp_path / "all" / name), name)
        check_same_run(tmp_path / "all" / name, tmp_path / name, NEAR)
