"""Token tagging: the token of each word, the loss, the scores, and learning."""

import random

import numpy as np
import pytest
import seqeval.metrics
import torch
from sklearn.metrics import f1_score
from transformers import BertForTokenClassification

import deltatune
from deltatune.core.errors import DeltatuneError
from deltatune.tasks import Tag, collator_for, task_from_json
from deltatune.tasks.task import IGNORED
from deltatune.training import Settings, encode_for, predict, train
from deltatune.training.task_model import TaskModel
from support import models, vocabularies

TAGS = ("O", "B-film", "I-film")
TASK = Tag(tags=TAGS, max_length=64)
ODD = [
    ["the", "unknownword", "is", "not", "good", "!"],
    ["naïve", "CAFÉs", "12.5%", "un-break-able", "x"],
    ["这家酒店", "的", "🙂🙂", "a", "é"],
    ["one"],
    ["a", "b", "c", "New York", "d"],
]


def tokenizers(kind):
    return models.tiny_tokenizer() if kind == "tiny" else vocabularies.tokenizer(kind)


def speaking(words, tokenizer, piece):
    """The place of each word's first or last token, from the characters that every token covers."""
    text = " ".join(words)
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    predicted, start = [], 0
    for word in words:
        span = {i for i in range(start, start + len(word)) if not text[i].isspace()}
        mine = [at for at, (a, b) in enumerate(offsets) if span & set(range(a, b))]
        predicted.append((mine[0] if piece == "first" else mine[-1]) if mine else None)
        start += len(word) + 1
    return predicted


# --- words to tokens ---


@pytest.mark.parametrize("longest", [1, 2])
def test_a_length_without_room_for_a_word_is_refused(longest):
    task = Tag(tags=TAGS, max_length=longest)
    with pytest.raises(DeltatuneError, match=f"max_length={longest} leaves no room for a text: 2 tokens"):
        task.encode([{"tokens": ["good", "film"], "tags": ["O", "B-film"]}], models.tiny_tokenizer())


@pytest.mark.parametrize("kind", ["tiny", "wordpiece", "bytes", "behind", "llama", "suffix", "unigram", "t5"])
@pytest.mark.parametrize("piece", ["first", "last"])
def test_a_word_is_read_at_its_first_or_last_token(kind, piece):
    tokenizer = tokenizers(kind)
    task = Tag(tags=TAGS, max_length=200, piece=piece)
    rows = [{"tokens": words, "tags": ["B-film"] * len(words)} for words in ODD]
    encoded = task.encode(rows, tokenizer)
    for words, place, row in zip(ODD, encoded.facts, encoded, strict=True):
        assert place == speaking(words, tokenizer, piece)
        assert len({at for at in place if at is not None}) == len([at for at in place if at is not None])
        labelled = [at for at, label in enumerate(row["labels"]) if label != IGNORED]
        assert labelled == [at for at in place if at is not None]
        assert row["input_ids"] == tokenizer(" ".join(words))["input_ids"]
    assert encoded.truncated == 0


def test_some_words_are_several_tokens_and_first_and_last_differ():
    words = [{"tokens": ["film", "unknownword"], "tags": ["O", "O"]}]
    tokenizer = models.tiny_tokenizer()
    first, last = (Tag(tags=TAGS, piece=piece).encode(words, tokenizer).facts[0] for piece in ("first", "last"))
    assert first == [1, 2]
    assert last == [1, 2 + len("unknownword") - 1]


def test_a_word_without_tokens_gets_the_first_tag_and_no_loss():
    rows = [{"tokens": ["good", "\u0007", "film"], "tags": ["O", "B-film", "I-film"]}]
    tokenizer = models.tiny_tokenizer()
    encoded = TASK.encode(rows, tokenizer)
    assert encoded.facts == [[1, None, 2]]
    assert [label for label in encoded[0]["labels"] if label != IGNORED] == [0, 2]
    logits = np.tile(np.array([0.0, 0.0, 9.0]), (4, 1))
    assert TASK.collect([logits], encoded) == [["I-film", "O", "I-film"]]


def test_a_text_that_ends_with_words_without_tokens_is_not_cut():
    rows = [{"tokens": ["good", "\u0007"], "tags": ["O", "O"]}]
    task = Tag(tags=TAGS, max_length=64, too_long="error")
    assert task.encode(rows, models.tiny_tokenizer()).truncated == 0


@pytest.mark.parametrize("side", ["right", "left"])
def test_words_beyond_max_length_are_counted_and_get_the_first_tag(side):
    tokenizer = models.tiny_tokenizer()
    tokenizer.truncation_side = side
    rows = [{"tokens": ["film"] * 9, "tags": ["B-film"] * 9}, {"tokens": ["film"] * 4, "tags": ["O"] * 4}]
    task = Tag(tags=TAGS, max_length=6)
    encoded = task.encode(rows, tokenizer)
    assert encoded.truncated == 1
    kept = [1, 2, 3, 4] + [None] * 5 if side == "right" else [None] * 5 + [1, 2, 3, 4]
    assert encoded.facts == [kept, [1, 2, 3, 4]]
    assert encoded.row_references[0] == ["B-film"] * 9
    answers = task.collect([np.tile(np.array([0.0, 9.0, 0.0]), (6, 1))] * 2, encoded)
    assert answers[0] == ["O" if at is None else "B-film" for at in kept]
    with pytest.raises(DeltatuneError, match="1 of 2 texts are longer than max_length=6"):
        Tag(tags=TAGS, max_length=6, too_long="error").encode(rows, tokenizer)


def test_words_and_tags_may_be_strings():
    tokenizer = models.tiny_tokenizer()
    lists = TASK.encode([{"tokens": ["the", "film"], "tags": ["O", "B-film"]}], tokenizer)
    texts = TASK.encode([{"tokens": "the film", "tags": "O B-film"}], tokenizer)
    assert (texts.rows, texts.row_references) == (lists.rows, lists.row_references)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "row 0: 2 words but 1 tags"),
        ({"tokens": ["a"], "tags": ["B-fim"]}, "'B-fim' is not a tag, did you mean 'B-film'"),
        ({"tokens": [], "tags": []}, "not a list of words"),
        ({"tokens": [1], "tags": ["O"]}, "not a list of words"),
        ({"tokens": ["a"], "tags": None}, "row 0: tags is None, not a list of tags"),
        ({"tokens": ["a"], "tag": ["O"]}, "no column 'tags' in row 0, did you mean 'tag'"),
    ],
)
def test_bad_rows_are_named(row, message):
    with pytest.raises(DeltatuneError, match=message):
        TASK.encode([row], models.tiny_tokenizer())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tags": ("O",)}, "two tags or more"),
        ({"tags": ("O", "O")}, "name a tag twice"),
        ({"tags": TAGS, "metric": "f1_micro"}, "not a metric of these tags"),
        ({"tags": ("noun", "verb"), "metric": "recall"}, "not a metric of these tags"),
        ({"tags": TAGS, "text": ("a", "b")}, "one column of words"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(DeltatuneError, match=message):
        Tag(**fields)


def test_it_becomes_plain_data_and_comes_back():
    assert task_from_json(TASK.to_json()) == TASK
    assert Tag(tags=("noun", "verb")).metric == "accuracy"
    assert TASK.metric == "f1"


# --- loss and scores ---


def rule_rows(count, seed=0):
    """A film begins with "great" and goes on with words of several tokens that start with q."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [draw.choice(["great", "quip", "plot", "the", "unseen", "is"]) for _ in range(draw.randint(2, 9))]
        tags = ["B-film" if word == "great" else "I-film" if word == "quip" else "O" for word in words]
        rows.append({"tokens": words, "tags": tags})
    return rows


def host_for(kind, method="LoRA(r=8)", task=TASK, seed=0, **config):
    host = deltatune.Host(models.tiny(kind, dropout=False, **config))
    host.attach("a", deltatune.parse(method), head=task.make_head(host.model.config, seed))
    return host


def test_the_loss_is_that_of_a_token_classifier():
    model = BertForTokenClassification(models.tiny("bert", dropout=False).config).eval()
    host = deltatune.Host(model.bert)
    task = Tag(tags=TAGS, max_length=64)
    head = task.make_head(model.config)
    host.attach("a", deltatune.LoRA(), head=head)
    with torch.no_grad():
        head.out.weight.copy_(model.classifier.weight)
        head.out.bias.copy_(model.classifier.bias)
    encoded = task.encode(rule_rows(7), models.tiny_tokenizer())
    batch = collator_for(host.model, models.tiny_tokenizer(), encoded[0], left=False)(encoded.rows)
    tuned = TaskModel(host, "a", task).eval()
    with torch.no_grad():
        ours = tuned(**batch)["loss"]
        theirs = model(**batch).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert task.items(batch["labels"]) == sum(len(row["tokens"]) for row in rule_rows(7))


def test_scores_are_seqevals_and_sklearns():
    draw = random.Random(3)
    truth = [[draw.choice(TAGS) for _ in range(draw.randint(1, 9))] for _ in range(20)]
    predicted = [[tag if draw.random() < 0.6 else draw.choice(TAGS) for tag in tags] for tags in truth]
    scores = TASK.score(predicted, truth)
    assert list(scores) == ["f1", "precision", "recall", "f1_macro", "accuracy"]
    assert scores["f1"] == pytest.approx(seqeval.metrics.f1_score(truth, predicted), abs=1e-12)
    assert scores["precision"] == pytest.approx(seqeval.metrics.precision_score(truth, predicted), abs=1e-12)
    assert scores["recall"] == pytest.approx(seqeval.metrics.recall_score(truth, predicted), abs=1e-12)
    plain = Tag(tags=("noun", "verb", "rest"))
    names = dict(zip(TAGS, plain.tags, strict=True))
    truth, predicted = ([[names[tag] for tag in tags] for tags in side] for side in (truth, predicted))
    flat = [tag for tags in truth for tag in tags], [tag for tags in predicted for tag in tags]
    scores = plain.score(predicted, truth)
    assert scores["accuracy"] == pytest.approx(np.mean(np.array(flat[0]) == np.array(flat[1])))
    assert scores["f1_macro"] == pytest.approx(f1_score(*flat, average="macro"))
    weights = np.ones((1, len(truth)))
    assert plain.resampled(predicted, truth, weights)[0] == pytest.approx(scores["accuracy"])


# --- the whole road ---


@pytest.mark.parametrize(
    "kind", ["bert", "llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gpt2", "t5"))]
)
def test_every_family_learns_a_rule(kind):
    task = Tag(tags=TAGS, max_length=64, piece="first" if kind == "bert" else "last")
    host, tokenizer = host_for(kind, "Full()", task), models.tiny_tokenizer()
    settings = Settings(epochs=6, batch_size=16, learning_rate=5e-3, precision="float32")
    outcome = train(host, "a", task, rule_rows(160), rule_rows(60, 9), tokenizer, settings)
    assert outcome.evaluations[-1][1]["f1"] > 0.95, outcome.evaluations


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("method", ["LoRA(r=4)", "Prefix(length=3)", "Prompt(length=3)"])
def test_a_row_is_tagged_alike_alone_and_among_others_padded_on_either_side(kind, method):
    host = host_for(kind, method)
    for name, parameter in host.trainable("a"):
        if "head" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    rows = rule_rows(7, 5)
    predicted = []
    for side, size in (("right", 7), ("left", 7), ("right", 1)):
        tokenizer = models.tiny_tokenizer()
        tokenizer.padding_side = side
        encoded = encode_for(host, "a", TASK, rows, tokenizer, labelled=False)
        predicted.append(predict(host, "a", TASK, encoded, tokenizer, size, "float32"))
    assert predicted[0] == predicted[1] == predicted[2]
    assert len({tag for tags in predicted[0] for tag in tags}) > 1
    assert [len(tags) for tags in predicted[0]] == [len(row["tokens"]) for row in rows]
