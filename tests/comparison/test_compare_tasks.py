"""A whole comparison of every kind of task on tiny models: baselines, answers kept, samples, costs, the report."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest

from deltatune.comparison.intrinsic_dimension.dimension_config import DimensionConfig, plan_search
from deltatune.comparison.plans.make_plan import DEFAULT_METHODS, make_plan
from deltatune.comparison.results.records import Records
from deltatune.comparison.results.sample_predictions import METHODS, chosen_rows
from deltatune.comparison.run_comparison import run
from deltatune.core.errors import DeltatuneError
from deltatune.data import read
from deltatune.training import Settings
from deltatune.training import session as session_module
from support import models
from support.language_models import generation_tokenizer, make_rows

FILMS = ("great", "awful", "good", "bad")


def tag_rows():
    draw = random.Random(0)
    drawn = [[draw.choice(models.WORDS) for _ in range(draw.randint(2, 8))] for _ in range(60)]
    return [{"tokens": words, "tags": ["B-film" if word in FILMS else "O" for word in words]} for words in drawn]


def span_rows():
    draw, rows = random.Random(0), []
    for i in range(60):
        words = [draw.choice(models.WORDS[4:]) for _ in range(draw.randint(2, 8))]
        words.insert(draw.randrange(len(words)), str(i))
        text = " ".join(words)
        answers = [{"text": str(i), "start": text.index(str(i))}] if i % 4 else []
        rows.append({"question": f"what number {i}", "context": text, "answers": answers})
    return rows


def document_rows():
    return [{"text": row["input"] + " <b>&"} for row in make_rows(60, longest=12)]


def set_rows():
    draw = random.Random(1)
    drawn = [[draw.choice(models.WORDS) for _ in range(6)] for _ in range(60)]
    return [{"text": " ".join(words), "label": sorted(set(words) & set(FILMS))} for words in drawn]


def number_rows():
    draw = random.Random(2)
    drawn = [[draw.choice(models.WORDS) for _ in range(6)] for _ in range(60)]
    return [{"text": " ".join(words), "label": sum(word in FILMS for word in words) / 3} for words in drawn]


ROWS = {
    "tags": tag_rows,
    "span": span_rows,
    "text": lambda: make_rows(60),
    "raw": document_rows,
    "many": set_rows,
    "number": number_rows,
}
CASES = [
    ("tags", "bert"), ("tags", "llama"), ("span", "bert"), ("many", "bert"), ("number", "bert"),
    ("text", "gpt2"), ("text", "t5"), ("raw", "llama"),
]  # fmt: skip
WRITTEN = ("text", "raw")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """kind -> a model's folder."""
    made = {}

    def folder(kind, head):
        if (kind, head) not in made:
            made[kind, head] = tmp_path_factory.mktemp(f"{kind}-{head}")
            models.tiny(kind, head).save_pretrained(made[kind, head])
            generation_tokenizer().save_pretrained(made[kind, head])
        return made[kind, head]

    return folder


def plan_for(folders, kind, model, tmp_path, **more):
    path = tmp_path / f"{kind}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[kind]()))
    data = read(path)
    assert data.kind == kind
    options = {"methods": ("LoRA(r=2)", "IA3()"), "budget": None, "seeds": 2, "rates": 1, "max_length": 48, **more}
    settings = Settings(epochs=1, batch_size=16, precision="float32")
    folder = folders(model, "lm" if kind in WRITTEN else None)
    return make_plan(data, model=str(folder), settings=settings, out=tmp_path / "run", **options)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("kind", "model"), CASES)
def test_a_whole_comparison(folders, tmp_path, kind, model):
    task = {"new_tokens": 6} if kind == "text" else None
    plan = plan_for(folders, kind, model, tmp_path, task=task)
    summary = run(plan)
    assert summary["failed"] == []
    metric = summary["metric"]
    test = plan.splits["test"]
    assert summary["data"]["rows"]["test"] == test.examples == len(plan.data.test)
    for entry in summary["methods"]:
        assert entry["ci95"][0] <= entry["score"] <= entry["ci95"][1]
        assert entry["score"] == pytest.approx(np.mean(entry["seed_scores"]))
        assert entry["scores"][metric] == pytest.approx(entry["score"])
        assert entry["latency_ratio"] > 0
        assert (entry["writing_ratio"] is not None) == (kind == "text")
        assert bool(entry["head_params"]) == (kind not in WRITTEN)
    records = [json.loads(line) for line in (tmp_path / "run/results.jsonl").read_text().splitlines()]
    record = [record for record in records if record["stage"] == "final"][-1]
    stored = list((tmp_path / "run/predictions").glob(f"{record['cell']}.*"))
    assert [file.suffix for file in stored] == [".npy" if kind in ("many", "number") else ".json"]
    # the kept answers score what was said of them
    answers = Records(tmp_path / "run").answers(record["cell"])
    assert plan.session.task.score(answers, test.references)[metric] == pytest.approx(record["scores"]["test"][metric])
    report = (tmp_path / "run/report.html").read_text()
    assert "<h2>Sample predictions</h2>" in report


def test_nothing_is_done_twice(folders, tmp_path, monkeypatch):
    first = run(plan_for(folders, "raw", "llama", tmp_path))
    monkeypatch.setattr(session_module, "train", lambda *a, **k: pytest.fail("nothing is left to train"))
    monkeypatch.setattr(session_module, "predict", lambda *a, **k: pytest.fail("it was kept"))
    again = run(plan_for(folders, "raw", "llama", tmp_path))
    assert json.loads(json.dumps(again["methods"])) == json.loads(json.dumps(first["methods"]))
    assert again["majority"] == first["majority"]


# --- baselines ---


def test_tagging_every_word_alike(folders, tmp_path):
    plan = plan_for(folders, "tags", "bert", tmp_path, metric="accuracy", seeds=1, methods=("IA3()",))
    found = run(plan)["majority"]
    tags = [tag for row in plan.data.test for tag in row["tags"]]
    assert found["score"] == pytest.approx(tags.count("O") / len(tags))
    assert "every word O" in found["words"]


def test_never_answering(folders, tmp_path):
    plan = plan_for(folders, "span", "bert", tmp_path, seeds=1, methods=("IA3()",))
    empty = [not row["answers"] for row in plan.data.test]
    assert run(plan)["majority"]["score"] == pytest.approx(np.mean(empty))


@pytest.mark.parametrize(("kind", "model"), [("text", "gpt2"), ("raw", "llama")])
def test_the_untrained_model_is_a_line_of_the_report(folders, tmp_path, kind, model):
    plan = plan_for(folders, kind, model, tmp_path, seeds=1, methods=("IA3()",))
    found = run(plan)["majority"]
    plan.session.host.attach("none", plan.candidates[0].method, seed=3, head=False)  # a new one changes nothing
    answers = dataclasses.replace(plan.session, name="none").predict(plan.splits["test"])
    assert found["scores"] == pytest.approx(plan.session.task.score(answers, plan.splits["test"].references), abs=1e-6)
    report = (tmp_path / "run/report.html").read_text()
    assert "Untrained model" in report
    assert "The model as it is, untrained, scores" in report


# --- samples ---


def test_samples_are_right_as_the_score_says(folders, tmp_path):
    plan = plan_for(folders, "tags", "bert", tmp_path)
    summary = run(plan)
    rows = {" ".join(row["tokens"]): row for row in plan.data.test}
    assert 1 <= len(summary["samples"]) <= 12
    assert len({sample["input"] for sample in summary["samples"]}) == len(summary["samples"])
    for sample in summary["samples"]:
        row = rows[sample["input"]]
        named = [word for word, tag in zip(row["tokens"], row["tags"], strict=True) if tag != "O"]
        assert sample["reference"].count("[B-film]") == len(named)
        for answer in sample["answers"]:
            assert answer["right"] == (answer["text"] == sample["reference"])
            assert answer["score"] is None


@pytest.mark.slow
def test_written_samples_have_scores_of_their_own(folders, tmp_path):
    summary = run(plan_for(folders, "text", "gpt2", tmp_path, task={"new_tokens": 6}))
    for sample in summary["samples"]:
        assert {answer["method"] for answer in sample["answers"]} == {m["method"] for m in summary["methods"]}
        for answer in sample["answers"]:
            assert answer["right"] is None
            assert 0 <= answer["score"] <= 1


def test_documents_are_shown_with_how_well_each_method_foretells_them(folders, tmp_path):
    plan = plan_for(folders, "raw", "llama", tmp_path)
    summary = run(plan)
    best = max(summary["methods"], key=lambda entry: -entry["seed_scores"][0])
    answers = Records(tmp_path / "run").answers(first_cell(tmp_path, best["method"]))
    texts = [row["text"] for row in plan.data.test]
    for sample in summary["samples"]:
        own = answers[texts.index(sample["input"])]
        answer = sample["answers"][0]
        assert (answer["method"], answer["right"], answer["score"]) == (best["method"], None, None)
        assert answer["text"] == f"perplexity {np.exp(own['nll'] / own['tokens']):.1f}"
    report = (tmp_path / "run/report.html").read_text()
    assert "&lt;b&gt;&amp;" in report
    assert "<b>&" not in report


def first_cell(tmp_path, method):
    lines = [json.loads(line) for line in (tmp_path / "run/results.jsonl").read_text().splitlines()]
    return next(r["cell"] for r in lines if (r["method"], r["seed"]) == (method, 0) and r["cell"].endswith("-test"))


def test_the_rows_shown_are_the_best_the_most_disputed_and_the_worst():
    judged = np.array([[1, 1, 0, 0, 1, 0, 1], [1, 0, 0, 1, 1, 0, 1]], float)
    found = chosen_rows(judged)
    assert found[:3] == [0, 4, 6], "all right"
    assert set(found) == set(range(7))
    assert sorted(found) == sorted(set(found))
    many = chosen_rows(np.concatenate([np.ones((METHODS, 20)), np.zeros((METHODS, 20)), np.eye(METHODS, 20)], 1))
    assert len(many) == 12
    assert many[4:8] == [40, 41, 42, 43], "those on which they differ"


# --- what cannot be ---


def test_what_the_model_cannot_do_is_said_before_training(folders, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(60)))
    with pytest.raises(DeltatuneError, match="cannot generate text"):
        make_plan(read(path), model=str(folders("bert", None)))
    with pytest.raises(DeltatuneError, match="'new_tokens'"):
        plan_for(folders, "tags", "bert", tmp_path, task={"new_tokens": 3})


def test_of_the_default_methods_those_that_cannot_be_are_left_out(folders, tmp_path):
    plan = plan_for(folders, "raw", "llama", tmp_path, methods=DEFAULT_METHODS)
    names = [candidate.text for candidate in plan.candidates]
    assert "BitFit()" not in names
    assert "Probe()" not in names
    assert len(names) == len(DEFAULT_METHODS) - 2
    left = [note for note in plan.data.notes if note.startswith("left out")]
    assert any("BitFit(): this LlamaForCausalLM has no biases" in note for note in left)
    assert any("Probe(): it trains only a head" in note for note in left)
    with pytest.raises(DeltatuneError, match=r"Probe.*only a head"):
        plan_for(folders, "raw", "llama", tmp_path, methods=("LoRA()", "Probe()"))


def test_a_fault_of_the_data_is_said_once(folders, tmp_path):
    plan = plan_for(folders, "raw", "llama", tmp_path)
    rows = [{"text": ""}, *plan.data.train]
    data = dataclasses.replace(plan.data, train=rows)
    with pytest.raises(DeltatuneError) as caught:
        make_plan(data, model=plan.session.model, methods=("LoRA()", "IA3()"), budget=None, out=tmp_path / "run")
    assert "LoRA" not in str(caught.value)
    assert "row 0" in str(caught.value)


def test_a_dimension_needs_a_head(folders, tmp_path):
    plan = plan_for(folders, "raw", "llama", tmp_path)
    for data in (plan.data, dataclasses.replace(plan.data, kind="image")):
        with pytest.raises(DeltatuneError, match="needs no head"):
            plan_search(data, DimensionConfig(), model=plan.session.model)
