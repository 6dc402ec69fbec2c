"""`deltatune merge` of a classifier: one folder for AutoModelForSequenceClassification and pipeline."""

import json

import pytest
from transformers import AutoModelForSequenceClassification, pipeline

from support import models
from support.command_line import ran

ROWS = [
    {"text": f"{word} {word} the film {n}", "label": "good" if word == "great" else "bad"}
    for n in range(12)
    for word in ("great", "awful")
]
TEXTS = ["the great film", "awful plot", "it was not a good film, and the actor was bad"]


@pytest.fixture
def base(tmp_path):
    models.tiny("bert", dropout=False).save_pretrained(tmp_path / "base")
    models.tiny_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS), encoding="utf-8")
    return tmp_path / "base"


def train(base, tmp_path, *options):
    done = ran(
        *("train", "--model", base, "--data", tmp_path / "rows.jsonl", "--method", "LoRA(r=2)", "--lr", "1e-2"),
        *("--epochs", "6", "--batch-size", "4", "--precision", "float32", *options, "--out", tmp_path / "run"),
    )
    assert done.code == 0, done.err


@pytest.mark.slow
@pytest.mark.parametrize("head", [("--pooling", "pooler"), ("--pooling", "cls", "--dense")], ids="-".join)
def test_the_folder_is_a_classifier_of_transformers(head, base, tmp_path):
    train(base, tmp_path, *head)
    done = ran("merge", "--adapter", tmp_path / "run", "--out", tmp_path / "merged", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["classifier"] == "BertForSequenceClassification"
    assert not found["notes"]
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").config.id2label == {
        0: "bad",
        1: "good",
    }
    classify = pipeline("text-classification", model=str(tmp_path / "merged"), device="cpu", top_k=None)
    (tmp_path / "new.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    for folder in (tmp_path / "run", found["head"]):
        done = ran("predict", "--adapter", folder, tmp_path / "new.txt")
        assert done.code == 0, done.err
        answers = [json.loads(line) for line in done.out.splitlines()]
        for answer, theirs in zip(answers, classify(TEXTS), strict=True):
            assert answer["label"] == theirs[0]["label"]
            assert answer["scores"] == pytest.approx({each["label"]: each["score"] for each in theirs}, abs=1e-3)


@pytest.mark.slow
def test_mean_pooling_is_kept_beside_the_model_with_the_reason(base, tmp_path):
    train(base, tmp_path)
    done = ran("merge", "--adapter", tmp_path / "run", "--out", tmp_path / "merged")
    assert done.code == 0, done.err
    text = " ".join(f"{done.out} {done.err}".split())
    assert "BertForSequenceClassification has a layer between its pooling and its classifier" in text
    assert "train with a head that this class has: --pooling cls --dense" in text
    assert (tmp_path / "merged" / "adapter" / "adapter.json").is_file()
