"""Prompts, label words and new heads in one comparison: the same rows and statistics, adapters that open again."""

import json
from pathlib import Path

import numpy as np
import pytest

from deltatune.comparison.plans.make_plan import make_plan
from deltatune.comparison.run_comparison import run
from deltatune.core.errors import DeltatuneError
from deltatune.data import read
from deltatune.prompting.choose_prompts import PromptOptions
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.training import Settings
from deltatune.training.open_session import open_adapter
from support import models
from support.command_line import ran, reviews, write_csv

PTUNING = "PTuning(encoder='mlp', template='{2} {text} {1} it was {mask}')"
METHODS = ("ZeroShot()", "ICL(shots=2)", "Cloze(LoRA(r=2))", PTUNING, "LoRA(r=2)", "Probe()")
PROMPTS = PromptOptions(words=("good=good", "bad=bad"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three splits of reviews, and a masked language model. Read only."""
    made = tmp_path_factory.mktemp("prompting")
    (made / "reviews").mkdir()
    for i, (name, count) in enumerate((("train", 60), ("dev", 24), ("test", 30))):
        write_csv(made / "reviews" / f"{name}.csv", reviews(count, seed=i))
    for kind in ("bert", "gpt2"):
        models.tiny(kind, "lm").save_pretrained(made / kind)
        models.tiny_tokenizer().save_pretrained(made / kind)
    return made


def plan_of(folder, out, model="bert", methods=METHODS, prompts=PROMPTS, **more):
    settings = Settings(epochs=1, batch_size=8, precision="float32")
    options = {"budget": None, "seeds": 1, "rates": 1, "max_length": 64, "settings": settings} | more
    data = read(str(folder / "reviews"))
    return make_plan(data, model=str(folder / model), methods=methods, prompts=prompts, out=out, **options)


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def compared(request, folder, tmp_path_factory):
    """A comparison on two draws."""
    plan = plan_of(folder, tmp_path_factory.mktemp("prompting") / "out", request.param, shots=4, draws=2)
    return plan, run(plan)


@pytest.mark.one_in(2)
def test_all_methods_are_in_one_table(compared):
    plan, summary = compared
    entries = {entry["name"]: entry for entry in summary["methods"]}
    assert [entry["failed"] for entry in summary["methods"]] == [None] * len(METHODS)
    assert all(entry["score"] is not None and entry["ci95"] for entry in summary["methods"])
    zero, head = entries["Zero-shot"], entries["LoRA"]
    assert (zero["params"], zero["head_params"], zero["learning_rate"]) == (0, 0, None)
    assert head["head_params"] > 0
    assert entries["LoRA, label words"]["head_params"] == 0
    assert entries["LoRA, label words"]["params"] == head["params"]
    assert zero["cost"]["passes"] == 0 < head["cost"]["passes"]
    assert zero["tokens"] > 0
    assert zero["seed_scores"][0] == zero["seed_scores"][1]
    assert "good: good" in zero["prompts"][0]
    assert "[v1]" in next(entry["example"] for entry in summary["methods"] if entry["method"] == PTUNING)
    page = (plan.out / "report.html").read_text()
    assert "<h2>Prompts</h2>" in page
    assert "as the model reads it" in page


def test_adapters_answer_as_in_the_comparison(compared):
    plan, _ = compared
    for line in (plan.out / "results.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["stage"] != "final" or record["draw"] != 0:
            continue
        session = open_adapter(plan.out / record["adapter"])
        assert isinstance(session.task, LabelWords) == (record["name"] not in ("LoRA", "Probe"))
        answers = session.predict(plan.data.test)
        kept = np.load(plan.out / "predictions" / f"{record['cell']}.npy")
        assert np.allclose(answers, kept, atol=1e-4)


def test_a_second_run_trains_nothing(compared):
    plan, summary = compared
    lines = (plan.out / "results.jsonl").read_text()
    again = run(plan)
    assert (plan.out / "results.jsonl").read_text() == lines
    assert [entry["score"] for entry in again["methods"]] == [entry["score"] for entry in summary["methods"]]


def test_rows_that_are_not_drawn_lose_their_labels(folder, tmp_path):
    plan = plan_of(folder, tmp_path / "out", methods=("ZeroShot()",), shots=4, draws=1)
    rows = plan.unlabelled(0)
    assert len(rows) == 60 - 8
    assert all("label" not in row for row in rows)
    assert plan.unlabelled(None) == []


@pytest.mark.parametrize(
    ("methods", "prompts", "message"),
    [
        (("LoRA(r=2)",), PromptOptions(template="{text} {mask}"), "name one, such as ZeroShot"),
        (("ZeroShot(template='{text} is fine')", "Probe()"), PROMPTS, "one {mask}"),
        (("ZeroShot(template='{txt} {mask}')", "Probe()"), PROMPTS, "did you mean 'text'"),
        (("ZeroShot(words='good=good')", "Probe()"), PROMPTS, "the class 'bad' has no word"),
        (("Cloze(ZeroShot())", "ZeroShot()"), PROMPTS, "is a prompting method"),
        (("Cloze(LoRA(sites='*.nothing'))", "Probe()"), PROMPTS, "nothing"),
    ],
)
def test_mistakes_are_said_before_anything_runs(folder, tmp_path, methods, prompts, message):
    with pytest.raises(DeltatuneError) as caught:
        plan_of(folder, tmp_path / "out", methods=methods, prompts=prompts)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_from_the_command_line(folder, tmp_path):
    done = ran(
        "compare", "--model", folder / "bert", "--data", folder / "reviews", "--shots", "4", "--draws", "1", "--rates",
        "1", "--epochs", "1", "--method", "ZeroShot()", "--method", "Cloze(LoRA(r=2))", "--describe",
        "good=good|great, bad=bad|awful", "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "ZeroShot()" in done.out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "good: good/great" in summary["methods"][0]["prompts"][0]


def test_unlabelled_rows_that_no_method_reads_are_refused(folder, tmp_path):
    with pytest.raises(DeltatuneError, match=r"2 unlabelled rows are given, and none of the methods.*such as PET"):
        plan_of(folder, tmp_path / "out", methods=("ZeroShot()", "LoRA(r=2)"), unlabelled=[{"text": "fine"}] * 2)
    assert plan_of(folder, tmp_path / "out", methods=("PET()",), unlabelled=[{"text": "fine"}]).more_unlabelled


def test_one_result_for_all_draws_is_of_no_earlier_session(folder, tmp_path):
    command = (
        "compare", "--model", folder / "bert", "--data", folder / "reviews", "--shots", "4", "--draws", "2",
        "--method", "ZeroShot()", "--out", tmp_path / "out",
    )  # fmt: skip
    first, again = ran(*command), ran(*command)
    assert "draw 1: " in first.out + first.err
    assert (first.out + first.err).count("the same for every draw and seed") == 1
    assert "earlier session" not in first.out + first.err
    assert (again.out + again.err).count("from an earlier session") == 2
