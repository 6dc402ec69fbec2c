"""`evaluate` says how many of its rows the adapter was trained on; it never refuses."""

import json
import shutil

import pytest

from deltatune.store.atomic_files import MANIFEST
from support import models
from support.command_line import QUICK, ran, review_folder, reviews, write_csv
from support.language_models import generation_tokenizer

ROWS = "trained_rows.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return review_folder(tmp_path_factory.mktemp("data") / "reviews")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_folder, data):
    out = tmp_path_factory.mktemp("runs") / "reviews"
    done = ran("train", "--model", tiny_folder, "--data", data, "--lr", "1e-2", *QUICK, "--out", out)
    assert done.code == 0, done.err
    return out


def evaluated(trained, file):
    done = ran("evaluate", "--adapter", trained, "--data", file, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)["trained_on"]


def test_rows_that_were_trained_on_are_counted(trained, data, tmp_path):
    train = reviews(64, 0)
    swapped = [{**row, "label": {"bad": "good", "good": "bad"}[row["label"]]} for row in train[:10]]
    new = [{"text": f"{row['text']} unseen", "label": row["label"]} for row in train[:6]]
    file = write_csv(tmp_path / "mixed.csv", [*train[10:20], *swapped, *new])
    found = evaluated(trained, file)
    assert (found["rows"], found["same_label"], found["other_label"]) == (20, 10, 10)
    assert found["complete"]
    done = ran("evaluate", "--adapter", trained, "--data", file)
    assert "trained on 20 of these 26 texts (10 with the same label, 10 with another one)" in " ".join(done.out.split())


def test_held_out_rows_are_new_and_validation_rows_are_named(trained, data, tmp_path):
    assert evaluated(trained, data)["rows"] == 0
    found = evaluated(trained, write_csv(tmp_path / "dev.csv", reviews(20, 1)))
    assert (found["rows"], found["validation_rows"]) == (0, 20)


def test_an_adapter_without_hashes_says_that_it_does_not_know(trained, data, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(trained / "adapter", old)
    assert (old / ROWS).stat().st_size < 8 * (64 + 20) + 400
    assert "good" not in (old / ROWS).read_bytes().decode("latin-1")
    (old / ROWS).unlink()
    manifest = json.loads((old / MANIFEST).read_text())
    del manifest["files"][ROWS]
    (old / MANIFEST).write_text(json.dumps(manifest))
    assert evaluated(old, data) is None
    assert "is unknown" in " ".join(ran("evaluate", "--adapter", old, "--data", data).out.split())


def test_damaged_hashes_are_an_error(trained, data, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(trained / "adapter", broken)
    (broken / ROWS).write_bytes(b"x" * 40)
    done = ran("evaluate", "--adapter", broken, "--data", data)
    assert done.code != 0
    assert ROWS in done.err


@pytest.mark.slow
def test_compare_and_pretrain_keep_them_too(data, tiny_folder, tmp_path):
    method = ("--method", "BitFit()", "--rates", "1", "--seeds", "1")
    done = ran("compare", "--model", tiny_folder, "--data", data, *QUICK, *method, "--out", tmp_path / "compared")
    assert done.code == 0, done.err
    [winner] = (tmp_path / "compared" / "adapters").iterdir()
    found = evaluated(winner, write_csv(tmp_path / "train.csv", reviews(64, 0)))
    assert (found["rows"], found["same_label"]) == (64, 64)
    assert evaluated(winner, write_csv(tmp_path / "dev.csv", reviews(20, 1)))["validation_rows"] == 20
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"the film {i} is good and the plot is bad\n" for i in range(60)))
    done = ran(
        "pretrain", "--model", tiny_folder, "--data", texts, "--method", "Full()", "--epochs", "1", "--lr", "1e-3",
        "--precision", "float32", "--out", tmp_path / "pretrained",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert (tmp_path / "pretrained" / "run" / "adapter" / ROWS).is_file()


KINDS = {
    "span": ({"question": "what is it", "context": "the film {i} is good"}, {"text": ["film"], "answer_start": [4]}),
    "generate": ({"input": "the film {i}"}, "good {i}"),
    "regression": ({"text": "the film {i}"}, None),
    "tag": ({"tokens": ["the", "film", "{i}"]}, ["O", "B-X", "O"]),
    "lm": ({"text": "the film {i} is good and the plot is bad"}, None),
}
LABELS = {"span": "answers", "generate": "output", "regression": "score", "tag": "tags"}
OPTIONS = {"generate": ("--new-tokens", "3", "--prompt", "plain"), "lm": ("--text", "text")}


def filled(value, i):
    if isinstance(value, list):
        return [filled(item, i) for item in value]
    return value.replace("{i}", str(i)) if isinstance(value, str) else value


@pytest.mark.parametrize("kind", ["span", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS if k != "span")])
def test_rows_of_every_kind_are_recognised_in_another_file(kind, tmp_path):
    models.tiny("llama", "lm").save_pretrained(tmp_path / "model")
    generation_tokenizer().save_pretrained(tmp_path / "model")
    inputs, label = KINDS[kind]
    rows = []
    for i in range(40):
        value = float(i % 7) + 0.5 if kind == "regression" else filled(label, i)
        rows.append({**{name: filled(text, i) for name, text in inputs.items()}, LABELS.get(kind, "id"): value})
    for name in ("first", "copy"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = ran(
        "train", "--model", tmp_path / "model", "--data", tmp_path / "first.jsonl", "--task", kind, "--epochs", "1",
        "--lr", "1e-2", "--precision", "float32", *OPTIONS.get(kind, ()), "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 0, done.err
    counts = json.loads((tmp_path / "out" / "run.json").read_text())["data"]["rows"]
    found = evaluated(tmp_path / "out", tmp_path / "copy.jsonl")
    assert (found["rows"], found["validation_rows"]) == (counts["train"], counts["validation"])
    assert found["same_label"] == found["rows"]
