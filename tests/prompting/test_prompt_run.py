"""A prompting run from its parts to a folder: found, scored, saved, opened again; resumed where it trains."""

import dataclasses
import json

import numpy as np
import pytest

from deltatune import DeltatuneError
from deltatune.core.registry import parse_tuning
from deltatune.data import Data
from deltatune.data.few_shot import few_shot, unlabelled_rows
from deltatune.prompting.choose_prompts import PromptOptions
from deltatune.prompting.prompt_run import PromptJob, find_prompt, prepare, record_of, run, scores_of
from deltatune.store import run_folder
from deltatune.training import Settings
from deltatune.training.job import Job
from deltatune.training.job import prepare as prepare_job
from deltatune.training.open_session import open_adapter
from support import models
from support.command_line import reviews

DATA = Data(
    "reviews", "reviews", ("text",), "label", "classes", ("bad", "good"), reviews(48), reviews(16, 1), reviews(24, 2)
)
WORDS = PromptOptions("{text} it was {mask} .", ("bad=awful", "good=great|good"))
QUICK = Settings(epochs=2, batch_size=8, precision="float32")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for kind in ("bert", "llama"):
        made[kind] = tmp_path_factory.mktemp("models") / kind
        models.tiny(kind, "lm").save_pretrained(made[kind])
        models.tiny_tokenizer().save_pretrained(made[kind])
    return made


@pytest.fixture
def masked(folders):
    return str(folders["bert"])


def ran(folder, model, method, options=WORDS, data=DATA, settings=QUICK, **more):
    ready = prepare(PromptJob(model, data, method, options=options, settings=settings, **more))
    record = record_of(ready, "reviews")
    assert run_folder.open_run(folder, record, False) is None
    return ready, run(ready, folder, record)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_prompt_becomes_a_run_folder(folders, tmp_path, kind):
    ready, metrics = ran(tmp_path / "run", str(folders[kind]), "ZeroShot()")
    assert set(scores_of(metrics)) == {"validation", "test"}
    assert metrics["training"]["steps"] == 0
    assert metrics["cost"]["passes"] == 0
    assert metrics["scoring"]["rows"] == 40
    assert metrics["scoring"]["passes"] >= 40
    assert "it was" in metrics["prompts"][0]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test"] == metrics["test"]
    again = open_adapter(tmp_path / "run")
    assert again.adapter.count == 0
    assert again.score(again.encode(DATA.test)) == metrics["test"]
    assert run_folder.open_run(tmp_path / "run", record_of(ready, "reviews"), False) == metrics


def test_costs_are_those_of_the_method_alone_whatever_ran_before(masked):
    ready = prepare(PromptJob(masked, DATA, "ICL(shots=2, select='nearest')", options=WORDS, settings=QUICK))
    costs = []
    for _ in range(2):
        fitted, cost = find_prompt(ready.session, ready.method, ready.rows, ready.settings, ready.options)
        fitted.session.detach()
        costs.append((cost.passes, cost.tokens))
    assert costs[0] == costs[1]


def test_another_prompt_is_another_run(masked, tmp_path):
    ran(tmp_path / "run", masked, "ZeroShot()")
    other = dataclasses.replace(WORDS, template="{text} {mask} .")
    ready = prepare(PromptJob(masked, DATA, "ZeroShot()", options=other, settings=QUICK))
    with pytest.raises(DeltatuneError, match=r"prompts\.template"):
        run_folder.open_run(tmp_path / "run", record_of(ready, "reviews"), False)


@pytest.mark.parametrize("method", ["LoRA(r=2)", "Prefix(length=4)", "Prompt(template='{2} {text} {mask}')"])
def test_training_through_label_words(masked, tmp_path, method):
    options = WORDS if "template" not in method else dataclasses.replace(WORDS, template="")
    _, metrics = ran(tmp_path / "run", masked, method, options)
    assert metrics["training"]["steps"] == 12
    assert metrics["cost"]["passes"] >= 2 * 48
    again = open_adapter(tmp_path / "run")
    assert again.adapter.head is None
    assert again.score(again.encode(DATA.test)) == metrics["test"]
    assert not (tmp_path / "run" / run_folder.CHECKPOINTS).exists()


def test_an_interrupted_training_resumes_to_the_same_adapter(masked, tmp_path):
    settings = dataclasses.replace(QUICK, checkpoint_every=3)
    _, whole = ran(tmp_path / "whole", masked, "LoRA(r=2)", settings=settings)
    ready = prepare(PromptJob(masked, DATA, "LoRA(r=2)", options=WORDS, settings=settings))
    record = record_of(ready, "reviews")
    run_folder.open_run(tmp_path / "cut", record, False)

    def stop(step, *_):
        if step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ready, tmp_path / "cut", record, stop)
    assert not (tmp_path / "cut" / run_folder.ADAPTER).exists()
    assert not (tmp_path / "cut" / run_folder.METRICS).exists()
    again = prepare(PromptJob(masked, DATA, "LoRA(r=2)", options=WORDS, settings=settings))
    metrics = run(again, tmp_path / "cut", record)
    assert metrics["training"]["resumed"] > 0
    assert metrics["test"] == whole["test"]
    rows = DATA.test
    one, other = (open_adapter(tmp_path / name) for name in ("whole", "cut"))
    assert np.array_equal(one.predict(rows), other.predict(rows))


def test_a_failed_search_leaves_nothing_half_written(masked, tmp_path, monkeypatch):
    from deltatune.prompting.in_context.in_context_learning import ICL

    def fails(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ICL, "fit", fails)
    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path / "run", masked, "ICL(shots=2)")
    assert not {run_folder.ADAPTER, run_folder.METRICS} & {path.name for path in (tmp_path / "run").iterdir()}


def test_demonstrations_are_noted_as_known_rows(masked, tmp_path):
    ran(tmp_path / "run", masked, "ICL(shots=2)")
    assert len(open_adapter(tmp_path / "run").adapter.trained_rows.train) == 2
    ran(tmp_path / "zero", masked, "ZeroShot()")
    assert not len(open_adapter(tmp_path / "zero").adapter.trained_rows.train)


def test_texts_leave_room_for_what_a_method_takes(masked):
    ready = prepare(PromptJob(masked, DATA, "Prefix(length=8)", options=WORDS, settings=QUICK))
    assert ready.session.task.max_length <= models.POSITIONS - 8
    with pytest.raises(DeltatuneError, match="max_length"):
        prepare(PromptJob(masked, DATA, "ZeroShot()", options=WORDS, task={"max_length": 10 * models.POSITIONS}))


def test_rows_that_were_not_drawn_are_unlabelled(masked):
    drawn = few_shot(DATA, 4, 0)
    left = unlabelled_rows(DATA, drawn)
    assert len(left) == 48 - 8
    assert all(row.keys() == {"text"} for row in left)
    with pytest.raises(DeltatuneError, match="labelled rows only"):
        prepare(PromptJob(masked, drawn, "ZeroShot()", options=WORDS, unlabelled=left))


def test_a_budget_sets_the_tuning_method_within(masked):
    small = prepare(PromptJob(masked, DATA, "LoRA(r=8)", "600", options=WORDS, settings=QUICK)).method
    assert small.inner.r < 8
    with pytest.raises(DeltatuneError, match="no size"):
        prepare(PromptJob(masked, DATA, "ZeroShot()", "1%", options=WORDS))


@pytest.mark.parametrize("kind", ["number", "many"])
def test_data_of_another_kind_are_refused(masked, kind):
    rows = [{"text": "a film", "label": 1.0 if kind == "number" else ["bad"]}] * 4
    labels = () if kind == "number" else ("bad", "good")
    data = Data("d", "d", ("text",), "label", kind, labels, rows, rows, rows)
    with pytest.raises(DeltatuneError, match="one class a row"):
        prepare(PromptJob(masked, data, "ZeroShot()"))


def test_a_model_without_its_head_is_named(tmp_path):
    folder = tmp_path / "bare"
    models.tiny("bert").save_pretrained(folder)
    models.tiny_tokenizer().save_pretrained(folder)
    with pytest.raises(DeltatuneError, match=r"no language-model head.*roberta-base"):
        prepare(PromptJob(str(folder), DATA, "ZeroShot()", options=WORDS))


def test_trainings_with_a_head_refuse_prompting_methods(masked):
    assert repr(parse_tuning("LoRA(r=2)")) == "LoRA(r=2)"
    with pytest.raises(DeltatuneError, match="prompting method"):
        prepare_job(Job(masked, DATA, "ZeroShot()"))
