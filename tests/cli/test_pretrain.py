"""`deltatune pretrain`: every objective, from a checkpoint, from one without the head it needs, and from a config."""

import json
import re

import pytest
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, LlamaConfig

from support import models, vocabularies
from support.command_line import put_over, ran

STEP = ("--epochs", "1", "--batch-size", "8", "--precision", "float32", "--set", "max_length=24")


def sized(tokenizer):
    return max(tokenizer.get_vocab().values()) + 1


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [" ".join(vocabularies.OLD[(i + j) % len(vocabularies.OLD)] for j in range(4)) for i in range(60)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    return path


def folder(tmp_path, kind, head, words):
    tokenizer = vocabularies.tokenizer(words)
    if words == "bytes":
        tokenizer.eos_token = tokenizer.eos_token or tokenizer.pad_token
    model = models.tiny(kind, head)
    model.resize_token_embeddings(sized(tokenizer), mean_resizing=False)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def scores(out):
    return json.loads((out / "run" / "metrics.json").read_text())


@pytest.mark.parametrize("objective", ["mlm", "wwm", "nsp"])
def test_a_body_without_the_head_gets_a_new_one_and_is_trained_whole(tmp_path, texts, objective):
    model = folder(tmp_path, "bert", None, "wordpiece")
    out = tmp_path / "out"
    done = ran("pretrain", "--model", model, "--data", texts, "--objective", objective, *STEP, "--out", out)
    assert done.code == 0, done.err
    found = scores(out)
    assert found["validation"]["loss"] > 0
    assert set(found) == {"validation", "test", "training"}
    assert "read" in done.out.splitlines()[-1], "the model was read back"
    AutoModelForMaskedLM.from_pretrained(out / "model")
    AutoTokenizer.from_pretrained(out / "model")


def test_a_new_head_that_nothing_trains_is_refused(tmp_path, texts):
    model = folder(tmp_path, "bert", None, "wordpiece")
    done = ran("pretrain", "--model", model, "--data", texts, "--method", "LoRA()", *STEP, "--out", tmp_path / "out")
    assert done.code != 0
    assert "train Full() first" in done.err


@pytest.mark.parametrize(("objective", "method"), [("replaced", "LoRA()"), ("entity", "Full()")])
def test_entities_stand_in_a_column_and_a_missing_pooler_is_not_missed(tmp_path, objective, method):
    model = folder(tmp_path, "bert", "lm", "wordpiece")  # without a pooler
    rows, old = [], vocabularies.OLD
    for i in range(60):
        one, other = old[i % len(old)], old[(7 * i + 3) % len(old)]
        spans = [[0, len(one), "name"], [len(one) + 5, len(one) + 5 + len(other), "name"]]
        rows.append({"text": f"{one} and {other} are here", "entities": spans})
    data, out = tmp_path / "rows.jsonl", tmp_path / "out"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = ran("pretrain", "--model", model, "--data", data, "--objective", objective, "--method", method, *STEP,
               "--out", out)  # fmt: skip
    assert done.code == 0, done.err
    assert not (out / "start").exists()
    assert scores(out)["test"]["accuracy"] >= 0
    judged = ran("evaluate", "--adapter", out / "run", "--data", data)
    assert judged.code == 0, judged.err


def test_three_relations_of_passages_with_a_head_of_the_adapter(tmp_path):
    model, old = folder(tmp_path, "bert", "lm", "wordpiece"), vocabularies.OLD
    data, out = tmp_path / "rows.jsonl", tmp_path / "out"
    documents = [[" ".join(old[(i + j + k) % len(old)] for k in range(4)) for j in range(9)] for i in range(30)]
    data.write_text("".join(json.dumps({"text": "\n".join(sentences)}) + "\n" for sentences in documents))
    three = ("--objective", "nsp", "--set", "classes=3", "--method", "LoRA(r=2)")
    done = ran("pretrain", "--model", model, "--data", data, *three, *STEP, "--out", out)
    assert done.code == 0, done.err
    found = scores(out)["test"]
    assert {"pair_accuracy", "pair_loss", "perplexity"} <= set(found)
    judged = ran("evaluate", "--adapter", out / "run", "--data", data, "--json")
    assert judged.code == 0, judged.err
    assert "pair_loss" in judged.out
    AutoModelForMaskedLM.from_pretrained(out / "model")


@pytest.mark.slow
def test_spans_and_their_adaptation_on_an_encoder_decoder(tmp_path, texts):
    model = folder(tmp_path, "t5", "lm", "t5")
    for objective in ("spans", "prefix-lm"):
        out = tmp_path / objective
        done = ran("pretrain", "--model", model, "--data", texts, "--objective", objective, *STEP, "--out", out)
        assert done.code == 0, done.err
        assert scores(out)["test"]["perplexity"] > 1


def test_a_language_model_from_a_config_learns_and_resumes(tmp_path, texts):
    tokenizer = vocabularies.tokenizer("bytes")
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.pad_token
    (tmp_path / "words").mkdir()
    tokenizer.save_pretrained(tmp_path / "words")
    config = models.tiny("llama").config.to_dict() | {"vocab_size": sized(tokenizer)}
    LlamaConfig(**config).save_pretrained(tmp_path / "words")
    out = tmp_path / "out"
    start = ("--config", tmp_path / "words" / "config.json", "--tokenizer", tmp_path / "words")
    command = ("pretrain", *start, "--data", texts, "--objective", "lm", "--lr", "0.01", *STEP, "--out", out)
    done = ran(*command)
    assert done.code == 0, done.err
    assert scores(out)["test"]["perplexity"] < sized(tokenizer) / 2, "better than chance"
    AutoModel.from_pretrained(out / "model")
    again = ran(*command)
    assert again.code == 0, again.err


def test_mistakes_are_named(tmp_path, texts):
    model = folder(tmp_path, "bert", "lm", "wordpiece")
    for words, said in (
        (("--objective", "mlmm"), "mlm"),
        (("--set", "rat=0.2"), "rate"),
        (("--set", "rate"), "NAME=VALUE"),
        (("--tokenizer", model), "--config"),
        (("--config", tmp_path / "none.json", "--tokenizer", model), "would not be read; leave one out"),
        (("--model", "builtin", "--config", tmp_path / "none.json", "--tokenizer", model), "no such file"),
        (("--objective", "lm"), "decoder"),
    ):
        done = ran("pretrain", *put_over(("--model", model), *words), "--data", texts, *STEP, "--out", tmp_path / "out")
        assert done.code != 0
        assert said in done.err, done.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot read .*config.json"),
        ("[1]", "does not hold a JSON object"),
        ("[" * 100_000, "config.json"),
        ("{}", "does not name a model_type"),
        ('{"model_type": "unheard-of"}', "is not the config of a model"),
        ('{"model_type": "bert", "hidden_size": -5}', "describes no possible model"),
        ('{"model_type": "bert", "vocab_size": 5}', "vocab_size of 5"),
        ('{"model_type": "bert", "hidden_size": 4398046511104}', "does not fit into memory|no possible model"),
    ],
)
def test_a_config_of_no_model_is_a_plain_error(content, message, tiny_folder, texts, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(content)
    command = ["pretrain", "--config", config, "--tokenizer", tiny_folder, "--data", texts]
    done = ran(*command, "--out", tmp_path / "o")
    assert done.code == 2
    assert re.search(message, done.err), done.err
    assert not (tmp_path / "o").exists()


def test_a_start_of_another_config_is_not_taken(tiny_folder, texts, tmp_path):
    """The second config was ignored, and the first one's model trained and shown."""
    config, out = tmp_path / "config.json", tmp_path / "out"
    content = json.loads((tiny_folder / "config.json").read_text())
    command = ["pretrain", "--config", config, "--tokenizer", tiny_folder, "--data", texts, *STEP, "--out", out]
    config.write_text(json.dumps(content))
    assert ran(*command).code == 0
    assert ran(*command).code == 0
    config.write_text(json.dumps(content | {"num_hidden_layers": 1}))
    done = ran(*command)
    assert done.code == 2
    assert "start was made from another config; --out NAME keeps both, --force starts again" in done.err
    assert ran(*command, "--force").code == 0
    assert json.loads((out / "model" / "config.json").read_text())["num_hidden_layers"] == 1


def test_pretraining_keeps_out_of_foreign_folders(tiny_folder, texts, tmp_path):
    before = sorted(tiny_folder.iterdir())
    done = ran("pretrain", "--model", tiny_folder, "--data", texts, "--out", tiny_folder)
    assert done.code == 2
    assert "holds files that are not a run of deltatune pretrain (config.json, model.safetensors" in done.err
    assert sorted(tiny_folder.iterdir()) == before
