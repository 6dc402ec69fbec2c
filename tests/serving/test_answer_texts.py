"""Texts of answers as their tokens come: whole characters, stop strings, blanks, entities; names of models."""

import asyncio
import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltatune.serving.engine.requests import DoneEvent, GenerateRequest, Timings, TokenEvent
from deltatune.serving.engine.ticket import Ticket
from deltatune.serving.serving_errors import EngineStopped, RequestTimeout, RequestTooLong
from deltatune.serving.texts.answer_stream import AnswerStream, Strip
from deltatune.serving.texts.detokenizer import Detokenizer, TokenPieces
from deltatune.serving.texts.invalid_request import InvalidRequest
from deltatune.serving.texts.model_names import model_text, read_model, read_weights
from deltatune.serving.texts.prompt_forms import PromptForms
from deltatune.serving.texts.stop_strings import StopStrings
from deltatune.serving.texts.tag_spans import tag_spans
from support import models, vocabularies

TEXTS = ["The reader liked the film, didn't he ?", "酒店离火车站很近 🙂 naïve", "  two  blanks\n\n", "12 books."]


def stream_of(tokenizer, ids, reason="length", stops=(), strip=False):
    ticket = Ticket(GenerateRequest((1,)), lambda: None)
    for token in ids:
        ticket.put(TokenEvent(token))
    ticket.put(DoneEvent(reason, Timings(0, 0, 0)))
    return AnswerStream(ticket, tokenizer, stops, strip)


def read(stream):
    async def pieces():
        return [piece async for piece in stream.pieces()]

    return asyncio.run(pieces())


# ---- detokenising


@pytest.mark.parametrize("kind", vocabularies.KINDS)
@pytest.mark.parametrize("text", [*TEXTS, " ".join(TEXTS * 5)])
def test_tokens_one_by_one_are_the_text_of_all(kind, text):
    tokenizer = vocabularies.tokenizer(kind)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    detokenizer = Detokenizer(tokenizer)
    parts = [detokenizer.push(token) for token in ids]
    assert not any("\ufffd" in part for part in parts)
    assert "".join(parts) + detokenizer.finish() == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bytes", "llama", "wordpiece"])
@given(ids=st.lists(st.integers(0, 119), max_size=12))
def test_any_tokens_one_by_one_are_the_text_of_all(kind, ids):
    tokenizer = TOKENIZERS.setdefault(kind, vocabularies.tokenizer(kind))
    detokenizer = Detokenizer(tokenizer)
    text = "".join([detokenizer.push(token) for token in ids]) + detokenizer.finish()
    assert text == tokenizer.decode(ids, skip_special_tokens=True)


TOKENIZERS = {}


def test_a_tokenizer_that_cleans_up_is_followed():
    tokenizer = models.tiny_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    ids = tokenizer("the film is n ' t good , it ' s bad . " * 8, add_special_tokens=False)["input_ids"]
    detokenizer = Detokenizer(tokenizer)
    parts = [detokenizer.push(token) for token in ids]
    assert "".join(parts) + detokenizer.finish() == tokenizer.decode(ids)
    assert sum(map(bool, parts)) > 5


@pytest.mark.parametrize("kind", vocabularies.KINDS)
def test_bytes_of_tokens_join_to_the_text(kind):
    tokenizer = vocabularies.tokenizer(kind)
    pieces = TokenPieces(tokenizer)
    ids = tokenizer("the old theatre", add_special_tokens=False)["input_ids"]
    for token in ids:
        data = pieces.bytes(token)
        assert data is None or bytes(data).decode("utf-8", "replace") == pieces.text(token)
    if kind in ("bytes", "llama"):
        assert bytes(byte for token in ids for byte in pieces.bytes(token)).decode().strip() == "the old theatre"
        emoji = tokenizer("🙂", add_special_tokens=False)["input_ids"]
        assert "🙂".encode() in bytes(byte for token in emoji for byte in pieces.bytes(token))


# ---- stop strings and blanks


@given(
    text=st.text(alphabet="ab ", max_size=20),
    stops=st.lists(st.text(alphabet="ab ", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(1, 5), max_size=20),
)
def test_stop_strings_cut_where_the_whole_text_would_be_cut(text, stops, cuts):
    parts, rest = [], text
    for cut in cuts:
        parts.append(rest[:cut])
        rest = rest[cut:]
    filtered = StopStrings(stops)
    out = "".join([filtered.push(part) for part in [*parts, rest]])
    ended = filtered.matched
    out += filtered.finish()
    assert text.startswith(out)
    assert not any(stop in out for stop in stops)
    assert (ended is None) == (out == text)
    if ended is not None:
        assert text[len(out) :].startswith(ended)


@given(parts=st.lists(st.text(alphabet="a \n", max_size=4), max_size=8))
def test_blanks_around_a_text_are_left_out(parts):
    strip = Strip()
    assert "".join([strip.push(part) for part in parts]) == "".join(parts).strip()


def test_a_stop_string_across_tokens_cancels_the_rest():
    tokenizer = vocabularies.tokenizer("bytes")
    ids = tokenizer("The film was good and bad.", add_special_tokens=False)["input_ids"]
    stream = stream_of(tokenizer, ids, stops=("ood an",))
    pieces = read(stream)
    assert "".join(piece.text for piece in pieces) == "The film was g"
    assert stream.reason == "stop"
    assert stream.generated < len(ids)


@pytest.mark.parametrize(("reason", "error"), [("timeout", RequestTimeout), ("cancelled", EngineStopped)])
def test_ends_that_are_no_answers(reason, error):
    with pytest.raises(error):
        read(stream_of(models.tiny_tokenizer(), [20], reason))


# ---- entities


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B-PER I-PER O B-LOC", [("PER", "a b"), ("LOC", "d")]),
        ("I-PER I-LOC I-LOC O", [("PER", "a"), ("LOC", "b c")]),
        ("B-PER B-PER I-LOC I-LOC", [("PER", "a"), ("PER", "b"), ("LOC", "c d")]),
        ("S-PER B-LOC I-LOC E-LOC", [("PER", "a"), ("LOC", "b c d")]),
        ("O O O O", []),
    ],
)
def test_entities_of_tags(tags, spans):
    scheme = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", *(["S-PER", "E-LOC"] if "S-" in tags else [])]
    found = tag_spans(list("abcd"), tags.split(), scheme)
    assert [(span["type"], span["text"]) for span in found] == spans
    assert all("a b c d"[span["start"] : span["end"]] == span["text"] for span in found)
    assert tag_spans(["a"], ["NOUN"], ["NOUN", "VERB"]) == []


# ---- names of models


def test_names_of_models():
    assert read_model("base", "org/m") == read_model("org/m", "org/m") == {}
    assert read_model("a", "m") == {"a": 1.0}
    assert read_model(" a:0.7 + b:-1e-1", "m") == {"a": 0.7, "b": -0.1}
    assert read_model(model_text({"a": 0.25, "b": 1.0}), "m") == {"a": 0.25, "b": 1.0}


@pytest.mark.parametrize(
    "text", ["", "a+", "a:", "a:x", "a:inf", "a:1e5", "a:1_0", "a+a", "a+base", "+".join("abcdefghijklmnopqr")]
)
def test_what_is_no_name(text):
    with pytest.raises(InvalidRequest):
        read_model(text, "m")


@pytest.mark.parametrize("weight", [10**400, -(10**400), 100.5, math.nan, math.inf, True, "1", None])
def test_what_is_no_weight(weight):
    with pytest.raises(InvalidRequest, match="weight of adapter 'a'"):
        read_weights({"a": weight}, None, "m")


@given(text=st.text(max_size=40))
def test_any_text_is_read_or_refused(text):
    try:
        weights = read_model(text, "m")
    except InvalidRequest:
        return
    assert read_model(model_text(weights), "m").keys() == weights.keys()


# ---- prompts that are too long


class Counted:
    """A tokenizer that counts the characters it reads."""

    def __init__(self, tokenizer):
        self.tokenizer, self.read = tokenizer, 0

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, text, **options):
        self.read += len(text)
        return self.tokenizer(text, **options)


@pytest.mark.parametrize("kind", vocabularies.KINDS)
def test_of_a_huge_text_only_the_beginning_is_read(kind):
    tokenizer = Counted(vocabularies.tokenizer(kind))
    forms = PromptForms(tokenizer, True, 128)
    for take in (forms.raw, forms.token_row):
        tokenizer.read = 0
        with pytest.raises(RequestTooLong, match="maximum context length is 128 tokens"):
            take("the film " * 100_000)
        assert tokenizer.read <= 8 * 128


@pytest.mark.parametrize("kind", vocabularies.KINDS)
def test_a_text_that_fits_is_not_refused_for_its_characters(kind):
    tokenizer = vocabularies.tokenizer(kind)
    text = " ".join(TEXTS * 5)
    ids = tokenizer(text)["input_ids"]
    forms = PromptForms(tokenizer, False, len(ids))
    assert forms.raw(text).ids == tuple(ids)
    blanks = " " * 8000 + text  # some tokenizers drop them, for others each is a token
    long = len(tokenizer(blanks)["input_ids"]) > forms.most + 1000
    with pytest.raises(RequestTooLong) if long else contextlib.nullcontext():
        forms.raw(blanks)
