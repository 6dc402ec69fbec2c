"""Classification: texts to tokens, labels to numbers, batches, scores, and errors."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from deltatune.core.errors import DeltatuneError
from deltatune.tasks import (
    Classify,
    Encoded,
    MultiLabel,
    collator_for,
    longest_input,
    padding_id,
    task_from_json,
    tokenizer_fingerprint,
)
from deltatune.tasks.metrics.classification_and_regression import CLASS_METRICS, REGRESSION_METRICS
from support import models

LABELS = ("bad", "good")
ROWS = [
    {"text": "this film is good", "label": "good"},
    {"text": "the plot was awful and very bad", "label": "bad"},
    {"text": "great", "label": "good"},
]
PAIRS = [{"a": "the film is good", "b": "it is great", "label": "0.5"}, {"a": "bad", "b": "good plot", "label": 2}]

single = Classify(labels=LABELS)
pair = Classify(text=("a", "b"))


@pytest.fixture
def tokenizer():
    return models.tiny_tokenizer()


# --- encode ---


def test_encode_is_the_tokenizers_own(tokenizer):
    encoded = single.encode(ROWS, tokenizer)
    assert encoded.truncated == 0
    for row, source in zip(encoded, ROWS, strict=True):
        wanted = dict(tokenizer(source["text"]))
        assert {**wanted, "label": LABELS.index(source["label"])} == row
    np.testing.assert_array_equal(encoded.references, [1, 0, 1])


def test_pairs_are_the_tokenizers_own(tokenizer):
    encoded = pair.encode(PAIRS, tokenizer)
    for row, source in zip(encoded, PAIRS, strict=True):
        wanted = dict(tokenizer(source["a"], source["b"]))
        assert {**wanted, "label": float(source["label"])} == row
        assert set(row["token_type_ids"]) == {0, 1}


@pytest.mark.parametrize("longest", [4, 5, 8])
def test_truncation_is_longest_first_and_counted(tokenizer, longest):
    task = Classify(text=("a", "b"), max_length=longest)
    encoded = task.encode(PAIRS, tokenizer)
    lengths = [len(tokenizer(row["a"], row["b"])["input_ids"]) for row in PAIRS]
    assert encoded.truncated == sum(length > longest for length in lengths)
    for row, source in zip(encoded, PAIRS, strict=True):
        cut = tokenizer(source["a"], source["b"], truncation="longest_first", max_length=longest)
        assert row["input_ids"] == cut["input_ids"]


@pytest.mark.parametrize(("task", "least"), [(single, 3), (pair, 4)])
def test_a_length_without_room_for_a_text_is_refused(tokenizer, task, least):
    rows = ROWS if task is single else PAIRS
    for longest in range(1, least):  # below the special tokens, tokenizers leave the whole text
        with pytest.raises(DeltatuneError, match=rf"max_length={longest} leaves no room .* set max_length to {least}"):
            dataclasses.replace(task, max_length=longest).encode(rows, tokenizer)
    encoded = dataclasses.replace(task, max_length=least).encode(rows, tokenizer)
    assert max(len(row["input_ids"]) for row in encoded) == least


def test_no_warning_and_no_limit_of_the_tokenizer(tokenizer, caplog):
    encoded = Classify(labels=LABELS, max_length=500).encode(
        [{"text": "very " * 300, "label": "good"}], tokenizer, positions=512
    )
    assert len(encoded[0]["input_ids"]) == 302
    assert not caplog.records


def test_rows_without_labels(tokenizer):
    encoded = single.encode([{"text": "good"}], tokenizer, labelled=False)
    assert "label" not in encoded[0]
    assert single.encode([], tokenizer) == Encoded([], 0)


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        (single, [{"txt": "good", "label": "good"}], "no column 'text' in row 0, did you mean 'txt'.*'txt', 'label'"),
        (single, [{"text": "good", "lable": "good"}], "no column 'label' in row 0, did you mean 'lable'"),
        (single, [ROWS[0], {"text": None, "label": "good"}], "row 1: text is None, not a text"),
        (single, [ROWS[0], {"text": "x", "label": "goood"}], "(?s)row 1: 'goood' is not a label.*'bad', 'good'"),
        (single, [{"text": "x", "label": "meh"}] * 9, r"(?s)row 4.*\.\.\. and 4 more"),
        (pair, [{"a": "x", "b": "y", "label": "high"}], "(?s)row 0: label is 'high'.*finite number"),
        (pair, [{"a": "x", "b": "y", "label": float("nan")}], "finite number"),
        (Classify(labels=LABELS, max_length=3, too_long="error"), ROWS, "2 of 3 texts are longer.*row 0"),
    ],
)
def test_bad_rows_are_one_error(tokenizer, task, rows, message):
    with pytest.raises(DeltatuneError, match=message):
        task.encode(rows, tokenizer)


def test_a_text_of_no_tokens_is_an_error(tokenizer):
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(DeltatuneError, match="row 1 has no tokens"):
        single.encode([ROWS[0], {"text": "", "label": "good"}], tokenizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ("good",)}, "only one class"),
        ({"labels": ("good", "good")}, "twice"),
        ({"labels": LABELS, "metric": "acuracy"}, "did you mean 'accuracy'"),
        ({"metric": "accuracy"}, "not a metric of regression"),
        ({"text": ()}, "at least one column"),
        ({"text": ("a", "b", "c"), "mark": ("head",)}, "at most two text columns"),
        ({"mark": ("a", "b", "c")}, "one or two columns of entities, not 3"),
        ({"mark": ("a", "a:kind")}, "names a column twice"),
        ({"mark": (":kind",)}, "COLUMN:TYPE_COLUMN"),
        ({"mark": ("text",)}, "'text' is the text itself"),
        ({"too_long": "cut"}, "too_long must be one of"),
        ({"labels": LABELS, "center": 2.0}, "center and scale are for regression"),
        ({"scale": 0.0}, "scale=0.0 positive"),
        ({"center": float("nan")}, "center.*finite"),
    ],
)
def test_bad_tasks(options, message):
    with pytest.raises(DeltatuneError, match=message):
        Classify(**options)


# --- lengths and positions ---


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet", "distilbert", "gpt2", "llama", "opt", "bart", "t5"])
def test_longest_input_is_what_the_model_takes(tiny, kind):
    model = tiny(kind)
    longest = longest_input(model)
    if kind == "t5":
        assert longest is None
        return
    assert longest == models.POSITIONS - (kind == "mpnet")  # which counts from 1, whatever the padding id
    ids = torch.full((1, longest), 7)
    extra = {"decoder_input_ids": ids} if kind == "bart" else {}
    model(input_ids=ids, attention_mask=torch.ones_like(ids), **extra)


def test_room_for_an_adapters_tokens(tokenizer):
    task = Classify(labels=LABELS, max_length=120)
    task.encode(ROWS, tokenizer, positions=128, positions_taken=8)
    with pytest.raises(DeltatuneError, match=r"takes 128 tokens, of which the adapter adds 9: set max_length to 119"):
        task.encode(ROWS, tokenizer, positions=128, positions_taken=9)
    task.encode(ROWS, tokenizer, positions=None, positions_taken=1000)


# --- batches ---


def test_collate_pads_to_a_multiple_of_eight(tiny_bert, tokenizer):
    encoded = single.encode(ROWS, tokenizer)
    batch = collator_for(tiny_bert(), tokenizer, encoded[0])(encoded.rows)
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_ids": (3, 16),
        "attention_mask": (3, 16),
        "token_type_ids": (3, 16),
        "labels": (3,),
    }
    wanted = tokenizer([row["text"] for row in ROWS], padding=True, pad_to_multiple_of=8, return_tensors="pt")
    for name in wanted:
        torch.testing.assert_close(batch[name], wanted[name])
    assert batch["labels"].tolist() == [1, 0, 1]


def test_collate_honours_the_padding_side(tiny_gpt2, tokenizer):
    tokenizer.padding_side = "left"
    encoded = single.encode(ROWS, tokenizer)
    batch = collator_for(tiny_gpt2(), tokenizer, encoded[0])(encoded.rows)
    assert batch["attention_mask"][:, -1].eq(1).all()
    assert batch["attention_mask"].sum(1).tolist() == [len(row["input_ids"]) for row in encoded]


def test_collate_never_pads_beyond_the_limit(tiny_bert, tokenizer):
    encoded = single.encode(ROWS, tokenizer)
    collate = collator_for(tiny_bert(), tokenizer, encoded[0], longest=10)
    assert collate(encoded.rows)["input_ids"].shape == (3, max(10, *(len(row["input_ids"]) for row in encoded)))


def test_collate_gives_only_what_forward_takes(tiny, tokenizer):
    encoded = single.encode(ROWS, tokenizer)
    assert "token_type_ids" in encoded[0]
    assert "token_type_ids" not in collator_for(tiny("distilbert"), tokenizer, encoded[0])(encoded.rows)
    assert "token_type_ids" not in collator_for(tiny("llama"), tokenizer, encoded[0])(encoded.rows)


def test_decoders_pad_with_their_end_token(tiny_gpt2, tokenizer):
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    size = len(tokenizer)
    encoded = single.encode(ROWS, tokenizer)
    batch = collator_for(tiny_gpt2(), tokenizer, encoded[0])(encoded.rows)
    assert padding_id(tokenizer) == models.EOS
    assert batch["input_ids"][2, -1] == models.EOS
    assert batch["attention_mask"][2, -1] == 0
    assert len(tokenizer) == size
    assert tokenizer.pad_token is None
    tokenizer.eos_token = None
    with pytest.raises(DeltatuneError, match="neither a padding nor an end token"):
        padding_id(tokenizer)


def test_regression_labels_are_floats(tiny_bert, tokenizer):
    encoded = pair.encode(PAIRS, tokenizer)
    labels = collator_for(tiny_bert(), tokenizer, encoded[0])(encoded.rows)["labels"]
    assert labels.dtype == torch.float32
    assert labels.tolist() == [0.5, 2.0]


# --- logits ---


def test_loss_is_a_sum(tokenizer):
    logits, labels = torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1])
    parts = single.loss(logits[:2], labels[:2]) + single.loss(logits[2:], labels[2:])
    torch.testing.assert_close(single.loss(logits, labels), parts)
    mean = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(single.loss(logits, labels) / single.items(labels), mean)
    torch.testing.assert_close(pair.loss(torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 4.0])), torch.tensor(5.0))


def test_numbers_are_learned_around_their_center_and_given_in_their_own_units(tokenizer):
    prices = Classify(center=250_000.0, scale=50_000.0)
    logits, labels = torch.tensor([[0.0], [1.0], [-2.0]]), torch.tensor([250_000.0, 310_000.0, 150_000.0])
    torch.testing.assert_close(prices.loss(logits, labels), torch.tensor(0.2**2))
    assert [answer["value"] for answer in prices.decode(logits.numpy())] == [250_000, 300_000, 150_000]
    scores = prices.score(logits.numpy(), labels.numpy())
    assert scores["mse"] == pytest.approx(10_000**2 / 3)
    assert scores["pearson"] == pytest.approx(Classify().score(logits.numpy(), labels.numpy())["pearson"])
    weights = np.ones((1, 3))
    mse = Classify(center=250_000.0, scale=50_000.0, metric="mse")
    assert mse.resampled(logits.numpy(), labels.numpy(), weights) == pytest.approx(scores["mse"])
    assert Classify.from_json(prices.to_json()) == prices


def test_decode():
    decoded = single.decode(np.array([[0.0, np.log(3.0)], [800.0, 0.0]], np.float32))
    assert [answer["label"] for answer in decoded] == ["good", "bad"]
    assert decoded[0]["score"] == pytest.approx(0.75)
    assert decoded[0]["scores"] == pytest.approx({"bad": 0.25, "good": 0.75})
    assert decoded[1]["score"] == 1.0
    assert pair.decode(np.array([[2.5]])) == [{"value": 2.5}]


def test_score_has_every_metric():
    logits, references = np.eye(3)[[0, 1, 2, 1]], np.array([0, 1, 2, 2])
    three = Classify(labels=("a", "b", "c"), metric="f1")
    scores = three.score(logits, references)
    assert tuple(scores) == (
        "f1",
        "accuracy",
        "precision",
        "recall",
        "f1_macro",
        "f1_micro",
        "matthews",
    )  # the primary one first
    assert set(scores) == set(CLASS_METRICS)
    assert scores["accuracy"] == 0.75
    assert scores["f1"] == scores["f1_macro"]  # more than two labels: no positive one
    assert three.measure(three.predictions(logits), references) == scores["f1"]
    assert tuple(pair.score(np.array([[1.0], [2.0]]), np.array([1.0, 3.0]))) == tuple(REGRESSION_METRICS)
    assert single.metric == "accuracy"
    assert pair.metric == "pearson"


PARAPHRASES = ("equivalent", "not_equivalent")  # as MRPC's names sort
EQUIVALENT, NOT_EQUIVALENT = 2 / 3, 4 / 5
PREDICTED, TRUE = np.eye(2)[[0, 1, 1, 1]], np.array([0, 0, 1, 1])


@pytest.mark.parametrize(("positive", "f1"), [("", EQUIVALENT), ("not_equivalent", NOT_EQUIVALENT)])
def test_f1_is_of_the_positive_class(positive, f1):
    task = Classify(labels=PARAPHRASES, metric="f1", positive=positive)
    assert task.score(PREDICTED, TRUE)["f1"] == pytest.approx(f1)
    assert task.measure(task.predictions(PREDICTED), TRUE) == pytest.approx(f1)
    assert task.resampled(PREDICTED, TRUE, np.ones((1, 4))) == pytest.approx([f1])
    assert task.metric_name("f1") == f"f1 (positive: {task.positive})" in task.describe()
    assert task.metric_name("accuracy") == "accuracy"
    assert task_from_json(json.loads(json.dumps(task.to_json()))) == task


def test_positive_class_of_more_classes_is_scored_against_the_rest():
    logits, references = np.eye(3)[[0, 1, 2, 1]], np.array([0, 1, 2, 2])
    task = Classify(labels=("a", "b", "c"), positive="c")
    assert task.score(logits, references)["recall"] == 0.5
    assert task.score(logits, references)["precision"] == 1.0


def test_older_adapters_count_the_last_class():
    stored = Classify(labels=PARAPHRASES, metric="f1").to_json()
    assert stored.pop("positive") == "equivalent"
    older = task_from_json(stored)
    assert older.positive == "not_equivalent"
    assert older.score(PREDICTED, TRUE)["f1"] == pytest.approx(NOT_EQUIVALENT)
    many = MultiLabel(labels=("a", "b")).to_json()
    del many["positive"]
    assert task_from_json(many).positive == ""


def test_unknown_positive_class():
    with pytest.raises(DeltatuneError, match=r"positive='spma' is not a class, did you mean 'spam'.*'ham', 'spam'"):
        Classify(labels=("ham", "spam"), positive="spma")
    with pytest.raises(DeltatuneError, match="positive='a' is for one class a row"):
        MultiLabel(labels=("a", "b"), positive="a")
    with pytest.raises(DeltatuneError, match="positive='1' is for one class a row"):
        Classify(positive="1")


def test_nan_logits_are_no_prediction():
    with pytest.raises(DeltatuneError, match="1 of 2 rows have logits that are not finite"):
        single.score(np.array([[0.0, 1.0], [np.nan, 0.0]]), np.array([1, 0]))


# --- heads, JSON, fingerprints ---


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [("bert", "mean"), ("roberta", "mean"), ("gpt2", "last"), ("llama", "last"), ("opt", "last"), ("t5", "last")],
)
def test_head_config_fits_the_model(tiny, kind, pooling):
    config = single.head_config(tiny(kind).config)
    assert (config.pooling, config.width, config.outputs) == (pooling, 32, 2)
    assert single.head_config(tiny(kind).config, pooling="cls", dropout=0.0).pooling == "cls"


@pytest.mark.parametrize("task", [single, pair, Classify(labels=("a", "b", "c"), metric="matthews", max_length=9)])
def test_json_round_trip(task):
    assert task_from_json(json.loads(json.dumps(task.to_json()))) == task
    assert task.metric in task.describe()


def test_bad_json():
    with pytest.raises(DeltatuneError, match="unknown task 'clasify', did you mean 'classify'"):
        task_from_json({"task": "clasify"})
    data = single.to_json()
    data["lenght"] = data.pop("max_length")
    with pytest.raises(DeltatuneError, match=r"(?s)lacks 'max_length'.*'lenght', which is unknown"):
        task_from_json(data)


def test_tokenizer_fingerprint(tokenizer, tmp_path):
    first = tokenizer_fingerprint(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    loaded.padding_side = "left"  # how batches are padded changes no token
    assert tokenizer_fingerprint(loaded) == first == tokenizer_fingerprint(models.tiny_tokenizer())
    loaded.add_tokens(["newword"])
    assert tokenizer_fingerprint(loaded) != first
    cased = models.tiny_tokenizer()
    cased.backend_tokenizer.normalizer = None
    assert tokenizer_fingerprint(cased) != first
