"""Extractive question answering: windows, answer positions, the best span, the loss, and learning."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertForQuestionAnswering

import deltatune
from deltatune.core.errors import DeltatuneError
from deltatune.tasks import ExtractiveQA, collator_for, task_from_json
from deltatune.tasks.extractive_qa import Window, best_span, make_windows
from deltatune.tasks.metrics.qa_scores import span_scores
from deltatune.tasks.task import TokenRow
from deltatune.training import Settings, encode_for, predict, train
from deltatune.training.task_model import TaskModel
from support import models, vocabularies

KINDS = ["tiny", "wordpiece", "bytes", "behind", "llama", "suffix", "unigram", "t5"]
PASSAGES = [
    "The reader liked the old theatre in 1998, and nobody was reading the rather long story again and again. " * 3,
    "Café nai\u0308ve 🙂👩‍👩‍👧 这家酒店的房间 12.5% - tabs\tand\nlines  two spaces " * 4,
    "short",
]


def tokenizers(kind):
    return models.tiny_tokenizer() if kind == "tiny" else vocabularies.tokenizer(kind)


def window_of(offsets):
    return Window(0, True, TokenRow(), offsets)


# --- windows ---


@pytest.mark.parametrize("kind", KINDS)
def test_windows_cover_the_passage_and_share_the_stride(kind):
    tokenizer, stride, longest = tokenizers(kind), 5, 40
    pairs = [("who liked it", passage) for passage in PASSAGES]
    result = make_windows(pairs, tokenizer, longest, stride)
    assert [window.owner for window in result] == sorted(window.owner for window in result)
    for i, passage in enumerate(PASSAGES):
        mine = [window for window in result if window.owner == i]
        assert [window.first for window in mine] == [True] + [False] * (len(mine) - 1)
        whole = tokenizer("who liked it", passage, return_offsets_mapping=True)
        ids = [id for id, side in zip(whole["input_ids"], whole.sequence_ids(), strict=True) if side == 1]
        sides = [tokenizer("who liked it", passage).sequence_ids()]
        room = longest - (len(sides[0]) - len(ids))
        starts = range(0, max(1, len(ids) - stride), room - stride)
        assert len(mine) == len(starts)
        for window, start in zip(mine, starts, strict=True):
            assert len(window.tokens["input_ids"]) <= longest
            passages_part = ids[start : start + room]
            assert contains(window.tokens["input_ids"], passages_part)
            assert len(window.offsets) == len(window.tokens["input_ids"])
        last = starts[-1]
        assert last + room >= len(ids), "the end of the passage is in no window"


def contains(ids, part):
    return any(ids[at : at + len(part)] == part for at in range(len(ids) - len(part) + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_knows_its_characters(kind):
    tokenizer = tokenizers(kind)
    for window in make_windows([("who", passage) for passage in PASSAGES], tokenizer, 64, 8):
        passage, last = PASSAGES[window.owner], 0
        for where in filter(None, window.offsets):
            text = passage[where[0] : where[1]]
            assert text
            assert text == text.strip()
            assert where[0] >= last - 1, "offsets go back"  # a character in several bytes is in several tokens
            last = where[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ["1998", "nobody was reading", "the old theatre in 1998", "long story again"])
def test_the_answer_is_where_the_label_says(kind, answer):
    tokenizer = tokenizers(kind)
    task = ExtractiveQA(max_length=48, stride=16)
    start = PASSAGES[0].find(answer, 100)
    rows = [{"question": "who", "context": PASSAGES[0], "answers": [{"text": answer, "start": start}]}]
    encoded = task.encode(rows, tokenizer)
    logits, seen = [], 0
    for piece in encoded:
        own = np.zeros((len(piece["input_ids"]), 2), np.float32)
        begin, end = piece["label"]
        if begin:
            own[begin, 0], own[end, 1], seen = 5, 5, seen + 1
        logits.append(own)
    assert seen
    (result,) = task.collect(logits, encoded)
    chosen = PASSAGES[0][result["start"] : result["end"]]
    assert chosen == result["text"]
    assert answer in result["text"]
    assert len(result["text"].split()) == len(answer.split())  # whole words where tokens do not end inside them
    assert encoded.row_references == [[answer]]
    assert start - 4 <= result["start"] <= start


@pytest.mark.parametrize("answer", ["🙂👩‍👩‍👧", "nai\u0308ve", "酒店", "12.5%"])
@pytest.mark.parametrize("kind", ["bytes", "llama"])
def test_answers_of_odd_characters_are_exact(kind, answer):
    task, tokenizer = ExtractiveQA(max_length=200, stride=50), tokenizers(kind)
    encoded = task.encode([{"question": "who", "context": PASSAGES[1], "answers": [answer]}], tokenizer)
    piece, place = encoded[0], encoded[0]["label"]
    own = np.zeros((len(piece["input_ids"]), 2))
    own[place[0], 0] = own[place[1], 1] = 9
    rest = [np.zeros((len(other["input_ids"]), 2)) for other in encoded.rows[1:]]
    (result,) = task.collect([own, *rest], encoded)
    assert (result["text"], result["start"]) == (answer, PASSAGES[1].find(answer))


def test_an_answer_across_a_border_is_whole_in_the_next_window_only():
    tokenizer = models.tiny_tokenizer()
    passage = "film " * 10 + "good great " + "film " * 10
    rows = [{"question": "the", "context": passage, "answers": ["good great"]}]
    # windows of 4 + 11 tokens: the first ends between the two words
    encoded = ExtractiveQA(max_length=15, stride=3).encode(rows, tokenizer)
    places = [piece["label"] for piece in encoded]
    assert places[0] == [0, 0]
    assert places[1][1] == places[1][0] + 1
    assert [tokenizer.decode(encoded[1]["input_ids"][at]) for at in places[1]] == ["good", "great"]
    assert encoded.truncated == 1, "rows that are several windows are counted"
    assert encoded.owners == [0] * len(encoded)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ("film", (4, 8)),
        (["film"], (4, 8)),
        ([{"text": "film", "start": 14}], (14, 18)),
        ([{"text": "film", "answer_start": 14}], (14, 18)),
        ([{"text": "film", "start": -1}], (4, 8)),
        ([{"text": " film ", "start": 13}], (14, 18)),
        ({"text": ["film", "a film"], "answer_start": [14, 12]}, (14, 18)),
        ([{"text": "film", "start": 3}, "the"], (0, 3)),
    ],
)
def test_answers_are_given_in_many_ways(given, place):
    passage = "the film is a film ."
    encoded = ExtractiveQA(max_length=64, stride=8).encode(
        [{"question": "is", "context": passage, "answers": given}], models.tiny_tokenizer()
    )
    offsets = encoded.facts[0]["windows"][0].offsets
    begin, end = encoded[0]["label"]
    assert (offsets[begin][0], offsets[end][1]) == place


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a", "context": "b", "answers": ["c"]}, "row 0: the answer 'c' is not in the passage"),
        ({"question": "a", "context": "b b", "answers": [{"text": "b", "start": 1}]}, "is not in the passage where"),
        ({"question": "a", "context": "b", "answers": []}, "1 rows have no answer.*abstains=True"),
        ({"question": "a " * 60, "context": "b", "answers": ["b"]}, "leaves no room for the passage"),
        ({"question": "a", "context": " ", "answers": []}, "row 0"),
        ({"question": "a", "context": None, "answers": []}, "context is None, not a text"),
        ({"question": "a", "answers": []}, "no column 'context'"),
    ],
)
def test_bad_rows_are_named(row, message):
    task = ExtractiveQA(max_length=64, stride=8, abstains="context" in row and row["context"] == " ")
    with pytest.raises(DeltatuneError, match=message):
        task.encode([row], models.tiny_tokenizer())


# --- the best span ---


@given(
    st.lists(st.booleans(), min_size=1, max_size=12),
    st.integers(1, 6),
    st.randoms(use_true_random=False),
)
def test_the_best_span_is_the_best_of_all(real, longest, draw):
    offsets = [(3 * i, 3 * i + 2) if there else None for i, there in enumerate(real)]
    logits = np.array([[draw.uniform(-3, 3), draw.uniform(-3, 3)] for _ in real])
    spans = [
        (logits[i, 0] + logits[j, 1], offsets[i][0], offsets[j][1])
        for i in range(len(real))
        for j in range(i, min(len(real), i + longest))
        if real[i] and real[j]
    ]
    result = best_span(logits, window_of(offsets), longest)
    if not spans:
        assert result == (-np.inf, 0, 0)
        return
    assert result.score == max(score for score, _, _ in spans)
    assert tuple(result) in spans  # of equally good ones, any


def test_no_span_of_logits_that_are_not_finite():
    with pytest.raises(DeltatuneError, match="not finite"):
        best_span(np.array([[np.nan, 0.0]]), window_of([(0, 1)]), 3)


def test_no_answer_must_be_better_by_the_threshold():
    rows = [{"question": "is", "context": "the film", "answers": []}]
    logits = np.zeros((6, 2), np.float32)  # [CLS] is [SEP] the film [SEP]
    logits[0] = 1.0  # no answer: 2
    logits[3, 0], logits[4, 1] = 0.5, 0.25
    chosen = {}
    for threshold in (-5.0, 1.0, 1.5):
        task = ExtractiveQA(max_length=64, stride=8, abstains=True, threshold=threshold)
        encoded = task.encode(rows, models.tiny_tokenizer())
        (chosen[threshold],) = task.collect([logits], encoded)
    assert chosen[-5.0] == chosen[1.0] == {"text": "", "start": -1, "end": -1, "score": 1.25}
    assert chosen[1.5] == {"text": "the film", "start": 0, "end": 8, "score": 0.75}
    task = ExtractiveQA(max_length=64, stride=8)
    (result,) = task.collect([logits], task.encode(rows, models.tiny_tokenizer(), labelled=False))
    assert result["text"] == "the film"
    assert task.decode([result]) == [{"answer": "the film", "start": 0, "end": 8, "score": 0.75}]


def test_no_answer_is_what_the_least_sure_window_says():
    """As BERT's run_squad.py: the null score of a passage is its windows' smallest."""
    task = ExtractiveQA(max_length=12, stride=2, abstains=True)
    encoded = task.encode([{"question": "is", "context": "film " * 12, "answers": []}], models.tiny_tokenizer())
    assert len(encoded) > 1
    logits = [np.zeros((len(piece["input_ids"]), 2)) for piece in encoded]
    logits[0][0] = 5.0
    assert task.collect(logits, encoded)[0]["text"]
    for own in logits:
        own[0] = 5.0
    assert task.collect(logits, encoded)[0]["text"] == ""


# --- loss and scores ---


def test_the_loss_is_that_of_question_answering():
    config = models.tiny("bert", dropout=False).config
    config.num_labels = 2
    model = BertForQuestionAnswering(config).eval()
    host, task = deltatune.Host(model.bert), ExtractiveQA(max_length=24, stride=6)
    head = task.make_head(model.config)
    host.attach("a", deltatune.LoRA(), head=head)
    with torch.no_grad():
        head.out.weight.copy_(model.qa_outputs.weight)
        head.out.bias.copy_(model.qa_outputs.bias)
    tokenizer = models.tiny_tokenizer()
    encoded = task.encode([{"question": "is", "context": "the film " * 20, "answers": ["film the"]}], tokenizer)
    full = [piece for piece in encoded if len(piece["input_ids"]) == 24]  # theirs reads logits of padding too
    assert len(full) >= 2
    batch = collator_for(host.model, tokenizer, full[0], left=False)(full)
    labels = batch.pop("labels")
    with torch.no_grad():
        ours = TaskModel(host, "a", task).eval()(labels=labels, **batch)["loss"]
        theirs = model(**batch, start_positions=labels[:, 0], end_positions=labels[:, 1]).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_scores_are_squads():
    task = ExtractiveQA(abstains=True)
    answers = [{"text": text, "start": 0, "end": 1, "score": 0.0} for text in ("the Film!", "good film", "", "plot")]
    truth = [["film"], ["good plot", "the good film was"], [], []]
    scores = task.score(answers, truth)
    metrics = span_scores([one["text"] for one in answers], truth)
    assert scores == {name: metric.score() for name, metric in metrics.items()}
    assert next(iter(scores)) == "f1"
    assert scores["em"] == 0.5
    assert scores["f1"] == pytest.approx((1 + 0.8 + 1 + 0) / 4)
    weights = np.array([[1, 0, 0, 0], [0, 2, 0, 0]])
    assert task.resampled(answers, truth, weights) == pytest.approx([1.0, 0.8])


def test_it_becomes_plain_data_and_comes_back():
    task = ExtractiveQA(abstains=True, stride=64, threshold=0.5, metric="em")
    assert task_from_json(task.to_json()) == task
    for fields, message in [
        ({"metric": "f2"}, "not a metric of spans"),
        ({"text": ("context",)}, "the question's column and the passage's"),
        ({"stride": 384}, "must be less than max_length"),
        ({"longest": 0}, "at least 1"),
    ]:
        with pytest.raises(DeltatuneError, match=message):
            ExtractiveQA(**fields)


# --- the whole road ---


def rule_rows(count, seed=0, long=False):
    """The answer is the number."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [draw.choice(models.WORDS) for _ in range(draw.randint(20, 40) if long else draw.randint(1, 12))]
        number = str(draw.randint(10, 99))
        words.insert(draw.randrange(len(words) + 1), number)
        rows.append({"question": "the number", "context": " ".join(words), "answers": [number]})
    return rows


def host_for(kind, method, task):
    host = deltatune.Host(models.tiny(kind, dropout=False))
    host.attach("a", deltatune.parse(method), head=task.make_head(host.model.config))
    return host


@pytest.mark.parametrize(
    "kind", ["bert", "llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gpt2", "t5"))]
)
def test_every_family_learns_a_rule(kind):
    task, tokenizer = ExtractiveQA(max_length=36, stride=8, longest=6), models.tiny_tokenizer()
    host = host_for(kind, "Full()", task)
    settings = Settings(epochs=5, batch_size=16, learning_rate=3e-3, precision="float32")
    outcome = train(
        host, "a", task, rule_rows(160) + rule_rows(80, 1, long=True), rule_rows(40, 9, long=True), tokenizer, settings
    )
    assert outcome.evaluations[-1][1]["em"] > 0.85, outcome.evaluations


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("method", ["LoRA(r=4)", "Prefix(length=3)", "Prompt(length=3)"])
def test_a_row_is_answered_alike_alone_and_among_others_padded_on_either_side(kind, method):
    task = ExtractiveQA(max_length=36, stride=8, longest=6)
    host = host_for(kind, method, task)
    for name, parameter in host.trainable("a"):
        if "head" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    rows, result = rule_rows(4, 5) + rule_rows(3, 6, long=True), []
    for side, size in (("right", 9), ("left", 9), ("right", 1)):
        tokenizer = models.tiny_tokenizer()
        tokenizer.padding_side = side
        encoded = encode_for(host, "a", task, rows, tokenizer, labelled=False)
        result.append(predict(host, "a", task, encoded, tokenizer, size, "float32"))
    places = [[(one["start"], one["end"]) for one in own] for own in result]
    assert places[0] == places[1] == places[2]
    for own, row in zip(result[0], rows, strict=True):
        assert own["text"] == row["context"][own["start"] : own["end"]]
    np.testing.assert_allclose([one["score"] for one in result[0]], [one["score"] for one in result[2]], atol=1e-4)


# --- several answers ---


def test_a_window_without_the_first_answer_learns_another_one():
    passage = "the film was " + "very " * 20 + "good"
    row = {"question": "what", "context": passage, "answers": [{"text": "film", "start": 4}, {"text": "good"}, "film"]}
    tokenizer, task = models.tiny_tokenizer(), ExtractiveQA(max_length=16, stride=4, abstains=True)
    encoded = task.encode([row], tokenizer)
    assert encoded.references == [["film", "good", "film"]]
    answers = [
        tokenizer.decode(piece["input_ids"][start : end + 1])
        for piece in encoded
        for start, end in [piece["label"]]
        if start
    ]
    assert answers == ["film", "good"]
    best = {"text": "good", "start": -1, "end": -1, "score": 0.0}
    assert task.score([best], encoded.references)["em"] == 1.0
