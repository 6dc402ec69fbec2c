"""Preferences through the command line: a new adapter, and one that was trained to generate text before."""

import json
import shutil

import pytest

from deltatune import parse
from deltatune.training.open_session import open_adapter
from support import models
from support.command_line import ran
from support.preference_pairs import pairs, tokenizer

QUICK = ("--epochs", "1", "--lr", "2e-2", "--batch-size", "16", "--precision", "float32")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, pairs, and rows to generate."""
    folder = tmp_path_factory.mktemp("preferences")
    models.tiny("llama", "lm").save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    rows = pairs(64)
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    written = [{"prompt": row["prompt"], "response": f"{row['chosen']} {i}"} for i, row in enumerate(rows)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, written)))
    return folder


@pytest.fixture(scope="module")
def generator(place):
    done = ran(
        "train", "--model", place / "model", "--data", place / "texts.jsonl", "--prompt", "Say: {prompt} =", *QUICK,
        "--out", place / "generator",
    )  # fmt: skip
    assert done.code == 0, done.err
    return place / "generator"


def metrics(out):
    return json.loads((out / "metrics.json").read_text())


def test_train_evaluate_and_predict(place, tmp_path):
    options = ("--beta", "0.3", "--loss", "hinge", "--prompt", "Say: {prompt} =", *QUICK, "--out", tmp_path / "run")
    done = ran("train", "--model", place / "model", "--data", place / "pairs.jsonl", *options)
    assert done.code == 0, done.err
    scores = metrics(tmp_path / "run")["test"]
    assert set(scores) == {"accuracy", "reward_margin", "preference_loss"}
    assert scores["accuracy"] == 1.0
    task = open_adapter(tmp_path / "run").task
    assert (task.beta, task.loss_type, task.reference) == (0.3, "hinge", "base")
    done = ran("evaluate", "--adapter", tmp_path / "run", "--data", place / "pairs.jsonl", "--json")
    assert json.loads(done.out)["scores"] == pytest.approx(scores)
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "good film"}))
    done = ran("predict", tmp_path / "prompts.jsonl", "--adapter", tmp_path / "run")
    assert set(json.loads(done.out)) == {"prompt", "output"}


def test_an_adapter_that_generates_goes_on_and_is_its_own_reference(place, generator, tmp_path):
    out = tmp_path / "run"
    done = ran("train", "--from", generator, "--data", place / "pairs.jsonl", *QUICK, "--out", out)
    assert done.code == 0, done.err
    assert "now learns which of two answers is better" in done.out
    scores = metrics(out)
    assert scores["before"]["test"]["accuracy"] == 0.5  # its own reference: all rewards are 0
    assert scores["test"]["accuracy"] == 1.0
    [earlier] = scores["earlier"]
    assert "rougeL" in earlier["after"]
    session = open_adapter(out)
    assert (session.task.reference, session.task.prompt) == ("start", "Say: {prompt} =")
    assert session.adapter.method == parse("LoRA(r=8)")
    evaluated = ran("evaluate", "--adapter", out, "--data", place / "pairs.jsonl", "--json")
    assert json.loads(evaluated.out)["scores"] == pytest.approx(scores["test"])
    base = ran("evaluate", "--adapter", out, "--data", place / "pairs.jsonl", "--json", "--set", "reference=base")
    assert json.loads(base.out)["scores"]["reward_margin"] != pytest.approx(scores["test"]["reward_margin"])


@pytest.mark.slow
def test_a_second_training_of_preferences_is_scored_on_what_it_generated_before(place, generator, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for start, out in ((generator, first), (first, second)):
        done = ran("train", "--from", start, "--data", place / "pairs.jsonl", *QUICK, "--out", out)
        assert done.code == 0, done.err
        assert "are left out" not in done.out
        [earlier] = metrics(out)["earlier"]
        assert "rougeL" in earlier["after"]
    assert open_adapter(second).task.reference == "start"


@pytest.mark.slow
def test_a_reference_that_is_gone_or_changed_is_said(place, generator, tmp_path):
    first, out = tmp_path / "first", tmp_path / "run"
    shutil.copytree(generator, first)
    done = ran("train", "--from", first, "--task", "prefer", "--data", place / "pairs.jsonl", *QUICK, "--out", out)
    assert done.code == 0, done.err
    shutil.move(first, tmp_path / "elsewhere")
    done = ran("evaluate", "--adapter", out, "--data", place / "pairs.jsonl")
    assert done.code != 0
    assert "which is not there" in done.err
    assert "--set reference=base" in done.err
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "good film"}))
    assert ran("predict", tmp_path / "prompts.jsonl", "--adapter", out).code == 0  # texts need no reference
    other = ran("train", "--from", tmp_path / "elsewhere", "--data", place / "texts.jsonl", *QUICK, "--out", first)
    assert other.code == 0, other.err
    done = ran("evaluate", "--adapter", out, "--data", place / "pairs.jsonl")
    assert "which has changed since" in done.err


@pytest.mark.slow
def test_the_base_as_the_reference_of_an_adapter_that_goes_on(place, generator, tmp_path):
    options = ("--reference", "base", *QUICK, "--out", tmp_path / "run")
    done = ran("train", "--from", generator, "--data", place / "pairs.jsonl", *options)
    assert done.code == 0, done.err
    assert open_adapter(tmp_path / "run").task.reference == "base"
    assert metrics(tmp_path / "run")["before"]["test"]["reward_margin"] != 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data", "texts.jsonl", "--beta", "0.2"), "--beta is for --task prefer"),
        (("--data", "pairs.jsonl", "--reference", "start"), "name it with --from"),
        (("--data", "pairs.jsonl", "--reference", "mine"), "choose base or start"),
        (("--data", "pairs.jsonl", "--loss", "dpo"), "choose sigmoid (which is DPO), ipo or hinge"),
        (("--data", "pairs.jsonl", "--metric", "rougeL"), "accuracy, reward_margin, preference_loss"),
    ],
)
def test_options_that_cannot_be(place, options, words, tmp_path):
    (flag, file, *more) = options
    done = ran("train", "--model", place / "model", flag, place / file, *more, "--out", tmp_path / "run")
    assert done.code != 0
    assert words in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_methods_are_compared_by_their_accuracy_on_pairs(place, tmp_path):
    methods = ("--methods", "LoRA(r=2)", "--methods", "Prompt(length=2)")
    options = ("--seeds", "1", "--epochs", "1", "--out", tmp_path / "comparison", "--workers", "1")
    done = ran("compare", "--model", place / "model", "--data", place / "pairs.jsonl", *methods, *options)
    assert done.code == 0, done.err
    assert "accuracy" in done.out
