"""Language modelling: every token counts once, documents are separate, scores by hand."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from deltatune.core.errors import DeltatuneError
from deltatune.tasks import Generate, LanguageModel, task_from_json
from deltatune.tasks.task import IGNORED
from deltatune.training import Settings, encode_for, predict, train
from support import models, vocabularies
from support.chats import chat_tokenizer
from support.language_models import generation_tokenizer, lm_host, make_rows

TEXTS = ["the film is good and it was a great plot " * 6, "bad", "", "it is 12 % naïve"]
ROWS = [{"text": text} for text in TEXTS]


def bos_tokenizer():
    tokenizer = generation_tokenizer()
    tokenizer.bos_token = "[CLS]"
    return tokenizer


@pytest.mark.parametrize("length", [2, 3, 7, 16, 500])
@pytest.mark.parametrize("name", ["tiny", "bytes", "llama"])
def test_every_token_is_predicted_once_whatever_the_blocks(length, name):
    tokenizer = {"tiny": bos_tokenizer, "bytes": chat_tokenizer, "llama": lambda: vocabularies.tokenizer("llama")}[
        name
    ]()
    encoded = LanguageModel(max_length=length).encode(ROWS, tokenizer)
    for i, text in enumerate(TEXTS):
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = [tokenizer.bos_token_id, *own, tokenizer.eos_token_id]
        mine = [piece for piece, owner in zip(encoded, encoded.owners, strict=True) if owner == i]
        predicted = [label for piece in mine for label in piece["labels"] if label != IGNORED]
        assert predicted == whole[1:]
        for piece in mine:
            assert len(piece["input_ids"]) <= length
            assert piece["labels"] == [IGNORED, *piece["input_ids"][1:]]
        for one, other in pairwise(mine):
            assert one["input_ids"][-1] == other["input_ids"][0], "a block starts with the last token of the one before"
    assert encoded.owners == sorted(encoded.owners)
    assert encoded.facts == [{"chars": len(text), "bytes": len(text.encode())} for text in TEXTS]


def test_without_a_start_token_the_first_token_is_not_predicted():
    tokenizer = generation_tokenizer()
    assert tokenizer.bos_token_id is None
    (piece,) = LanguageModel().encode([{"text": "the film"}], tokenizer)
    assert tokenizer.convert_ids_to_tokens(piece["input_ids"]) == ["the", "film", "[SEP]"]
    assert piece["labels"] == [IGNORED, *piece["input_ids"][1:]]


@pytest.mark.parametrize("text", ["", " "])
def test_a_document_without_tokens_is_refused_where_nothing_could_be_predicted(text):
    with pytest.raises(DeltatuneError, match="row 1 has no tokens"):
        LanguageModel().encode([{"text": "a"}, {"text": text}], generation_tokenizer())
    end = LanguageModel().encode([{"text": text}], bos_tokenizer())
    assert end[0]["labels"] == [IGNORED, bos_tokenizer().eos_token_id], "its end can be predicted"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_likelihoods_are_those_of_one_pass(kind):
    host, tokenizer = lm_host(kind), bos_tokenizer()
    encoded = encode_for(host, "a", LanguageModel(max_length=96), ROWS, tokenizer)
    answers = predict(host, "a", LanguageModel(max_length=96), encoded, tokenizer, 3, "float32")
    total = 0.0
    for answer, text in zip(answers, TEXTS, strict=True):
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = host.model(torch.tensor([ids])).logits[0, :-1]
        nll = float(F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))
        assert answer == {
            "nll": pytest.approx(nll, rel=1e-5), "tokens": len(ids) - 1, "chars": len(text),
            "bytes": len(text.encode()),
        }  # fmt: skip
        total += nll
    tokens, chars, size = (sum(answer[name] for answer in answers) for name in ("tokens", "chars", "bytes"))
    scores = LanguageModel().score(answers, encoded.references)
    assert scores == {
        "perplexity": pytest.approx(math.exp(total / tokens), rel=1e-5),
        "loss": pytest.approx(total / tokens, rel=1e-5),
        "bits_per_char": pytest.approx(total / chars / math.log(2), rel=1e-5),
        "bits_per_byte": pytest.approx(total / size / math.log(2), rel=1e-5),
    }
    assert chars < size, "an ï is two bytes"


@pytest.mark.parametrize("length", [8, 9])
def test_a_document_in_blocks_is_read_block_by_block(length):
    """Each block's tokens are predicted from those of their block alone; their number stays the same."""
    host, tokenizer, task = lm_host("llama"), bos_tokenizer(), LanguageModel(max_length=length)
    (answer,) = predict(host, "a", task, ROWS[:1], tokenizer, 2, "float32")
    ids = [tokenizer.bos_token_id, *tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    nll = 0.0
    for start in range(0, len(ids) - 1, length - 1):
        block = torch.tensor([ids[start : start + length]])
        with torch.no_grad():
            nll += float(F.cross_entropy(host.model(block).logits[0, :-1], block[0, 1:], reduction="sum"))
    assert answer["nll"] == pytest.approx(nll, rel=1e-5)
    assert answer["tokens"] == len(ids) - 1


def test_documents_do_not_see_each_other():
    host, tokenizer, task = lm_host("llama"), bos_tokenizer(), LanguageModel(max_length=40)
    rows = [{"text": row["input"]} for row in make_rows(9)]
    together = predict(host, "a", task, rows, tokenizer, 9, "float32")
    alone = [predict(host, "a", task, [row], tokenizer, 1, "float32")[0] for row in rows]
    assert [one["nll"] for one in together] == pytest.approx([one["nll"] for one in alone], rel=1e-5)


def test_answers_as_users_want_them():
    task = LanguageModel()
    answers = [{"nll": 4.0, "tokens": 2, "chars": 8, "bytes": 8}, {"nll": 0.0, "tokens": 0, "chars": 0, "bytes": 0}]
    first, last = task.decode(answers)
    assert first == {"perplexity": pytest.approx(math.exp(2)), "loss": 2.0, "tokens": 2}
    assert last == {"perplexity": 1.0, "loss": 0.0, "tokens": 0}
    weights = np.array([[1, 0], [0, 1], [2, 3]])
    assert task.resampled(answers, None, weights) == pytest.approx([math.exp(2), 1.0, math.exp(2)])
    huge = [{"nll": 1e6, "tokens": 1, "chars": 1, "bytes": 1}]
    assert math.isfinite(task.score(huge, None)["perplexity"])


def test_it_learns_a_text():
    host, tokenizer, task = lm_host("llama", "Full()", randomize=False), bos_tokenizer(), LanguageModel(max_length=32)
    rows = [{"text": "good film and great plot"}] * 64
    settings = Settings(epochs=8, batch_size=8, learning_rate=5e-3, precision="float32")
    outcome = train(host, "a", task, rows, rows[:2], tokenizer, settings)
    assert outcome.evaluations[-1][1]["perplexity"] < 1.1


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_models_that_would_read_what_they_predict_are_refused(kind):
    """A masked language model sees the token it predicts, an encoder-decoder has read it."""
    host = lm_host(kind)
    if kind == "bert":
        with pytest.raises(
            DeltatuneError, match=r"BertForMaskedLM is an encoder: .*Generate needs a decoder or an enc"
        ):
            predict(host, "a", Generate(max_length=40, new_tokens=8), make_rows(2), bos_tokenizer())
    with pytest.raises(DeltatuneError, match="needs a decoder"):
        predict(host, "a", LanguageModel(max_length=40), ROWS[:1], bos_tokenizer())


def test_bad_fields_are_named():
    for fields, message in [
        ({"metric": "perplexty"}, "did you mean 'perplexity'"),
        ({"text": ("a", "b")}, "one column of documents"),
        ({"max_length": 1}, "at least 2"),
    ]:
        with pytest.raises(DeltatuneError, match=message):
            LanguageModel(**fields)
    with pytest.raises(DeltatuneError, match="text is 3, not a text"):
        LanguageModel().encode([{"text": 3}], bos_tokenizer())
    task = LanguageModel(metric="bits_per_byte", max_length=99)
    assert task_from_json(task.to_json()) == task
    assert models.POSITIONS == 128
    with pytest.raises(DeltatuneError, match="max_length=500 cannot be used"):
        predict(lm_host("gpt2"), "a", LanguageModel(max_length=500), ROWS[:1], bos_tokenizer())
