"""LM-BFF: label words, templates that a T5 writes, demonstrations in training; against the numbers of its code."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from deltatune import DeltatuneError, parse
from deltatune.prompting.choose_prompts import PromptOptions
from deltatune.prompting.prompt_method import PromptRows, attach_prompt, with_stored_task
from deltatune.prompting.prompt_search.blank_readings import blank_words, read_blanks, rows_in_turn
from deltatune.prompting.prompt_search.chosen_by_score import Score, ScoredPrompt
from deltatune.prompting.prompt_search.label_word_search import (
    accuracy_of,
    best_pairings,
    class_means,
    likely_words,
    nearest_words,
    search_label_words,
)
from deltatune.prompting.prompt_search.lm_bff import LMBFF, PromptComparison
from deltatune.prompting.prompt_search.template_generation import (
    Generator,
    load_generator,
    span_inputs,
    template_of,
    write_spans,
    write_templates,
)
from deltatune.tasks.classification import Classify
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.prompts.templates import Template
from deltatune.training import Settings
from deltatune.training.open_session import open_adapter, open_host
from deltatune.training.session import Session
from support import models
from support.golden_cases import tensors
from support.golden_prompting import language_model, settings

ROWS = [
    {"text": text, "label": label}
    for text, label in (
        ("good great film", "pos"),
        ("bad awful plot", "neg"),
        ("the actor is great and very good", "pos"),
        ("the plot was awful", "neg"),
        ("this film is great", "pos"),
        ("the actor was bad", "neg"),
    )
]
OPTIONS = PromptOptions(words=("neg=bad", "pos=good"))
TASK = Classify(labels=("neg", "pos"), max_length=32)
WORDS = LabelWords(labels=TASK.labels, words=(("bad",), ("good",)), template="{text} it was {mask} .", max_length=32)


def session_of(kind, folder, **config):
    models.tiny(kind, "lm", dropout=False, **config).save_pretrained(folder)
    models.tiny_tokenizer().save_pretrained(folder)
    host, tokenizer = open_host(str(folder), "words")
    return Session(str(folder), host, tokenizer, TASK, precision="float32")


@pytest.fixture
def session(tmp_path):
    return session_of("bert", tmp_path / "model")


# ---- the numbers of the paper's code


def test_likely_words_and_accuracies_are_those_of_the_papers_code():
    case, facts = tensors("prompting_lm_bff_words"), settings("prompting_lm_bff_words")
    begins = [i for i, word in enumerate(facts["vocabulary"]) if word.startswith("Ġ")]
    logits, labels = case["input.logits"].numpy()[:, begins], case["input.labels"].numpy()
    means = class_means(logits, labels, 3)
    np.testing.assert_allclose(means, case["output.class_means"].numpy()[:, begins], rtol=1e-5, atol=1e-6)
    likely = likely_words(means, facts["k_likely"])
    assert [[begins[i] for i in row] for row in likely] == case["output.likely"].tolist()
    for pairing, accuracy in zip(case["output.pairings"].tolist(), case["output.accuracy"].tolist(), strict=True):
        assert accuracy_of(logits, labels, [begins.index(word) for word in pairing]) == pytest.approx(accuracy)
    ten = likely_words(means, 10)
    vectors = case["input.embeddings"][begins]
    seeds = case["input.embeddings"][case["input.seed_ids"]]
    nearest = nearest_words(vectors, seeds, ten, facts["k_neighbors"])
    assert [[begins[i] for i in row] for row in nearest] == case["output.neighbors"].tolist()
    best = best_pairings(logits, labels, likely, 5)
    different = [
        accuracy
        for pairing, accuracy in zip(case["output.pairings"].tolist(), case["output.accuracy"].tolist(), strict=True)
        if len(set(pairing)) == 3
    ]
    assert best[0].accuracy == pytest.approx(max(different))
    assert [each.accuracy for each in best] == pytest.approx(sorted(different, reverse=True)[:5])


class SpanTokenizer:
    """Whole words; what a Generator needs of a tokenizer."""

    def __init__(self, vocabulary):
        self.words = list(vocabulary)
        self.all_special_ids, self.pad_token_id, self.eos_token_id = [0, 1, 2], 0, 1

    def __len__(self):
        return len(self.words)

    def __call__(self, text, **options):
        return {"input_ids": [self.words.index(word) for word in text.replace(".", " .").split()]}

    def get_vocab(self):
        return {word: i for i, word in enumerate(self.words)}

    def convert_ids_to_tokens(self, ids):
        return [self.words[i] for i in ids]

    def decode(self, ids):
        return " ".join(self.words[i] for i in ids)


@pytest.mark.parametrize("placement", ["after", "before"])
def test_written_spans_and_their_scores_are_those_of_the_papers_code(placement):
    case, facts = tensors("prompting_lm_bff_templates"), settings("prompting_lm_bff_templates")
    generator = Generator(language_model("prompting_lm_bff_templates"), SpanTokenizer(facts["vocabulary"]))
    task = LabelWords(
        labels=("0", "1"), words=((facts["words"]["0"],), (facts["words"]["1"],)), template="{text} {mask}"
    )
    rows = [{"text": row["text"][0], "label": row["label"]} for row in facts["rows"]]
    inputs = span_inputs(generator, task, rows, placement, between=False)
    theirs = case[f"input.{placement}.ids"], case[f"input.{placement}.mask"].bool()
    assert inputs == [ids[mask].tolist() for ids, mask in zip(*theirs, strict=True)]
    first, second, third = generator.sentinels
    written = write_spans(generator, inputs, facts["beam"])
    for (spans, score), ids, golden in zip(
        written, case[f"output.{placement}.ids"].tolist(), case[f"output.{placement}.scores"].tolist(), strict=True
    ):
        assert [first, *spans[0], second, *spans[1], third] == [token for token in ids if token >= 0]
        assert score == pytest.approx(golden, abs=1e-4)


def test_templates_are_written_for_both_places_and_by_score():
    facts = settings("prompting_lm_bff_templates")
    generator = Generator(language_model("prompting_lm_bff_templates"), SpanTokenizer(facts["vocabulary"]))
    task = LabelWords(labels=("0", "1"), words=(("bad",), ("great",)), template="{text} {mask}")
    rows = [{"text": row["text"][0], "label": row["label"]} for row in facts["rows"]]
    written = write_templates(generator, task, rows, beams=6)
    texts = [each.template for each in written]
    assert "{text} It was {mask}." in texts
    assert "It was {mask}. {text}" in texts
    assert [each.score for each in written] == sorted((each.score for each in written), reverse=True)
    for template in texts:
        assert Template(template).columns == ("text",)
    assert all(
        not text.startswith("It") for text in (t.template for t in write_templates(generator, task, rows, 6, True))
    )


def test_spans_become_templates_of_any_number_of_texts():
    tokenizer = SpanTokenizer(["▁It", "▁was", ".", "?", "{"])
    spans = ((0, 1), (2,))
    assert template_of(tokenizer, ["text"], spans, "after") == "{text} It was {mask}."
    assert template_of(tokenizer, ["text"], spans, "after", left_to_right=True) == "{text} It was {mask}"
    assert template_of(tokenizer, ["text"], spans, "before") == "It was {mask}. {text}"
    assert template_of(tokenizer, ["a", "b"], ((3,), (2,)), "after") == "{a:stem}? {mask}. {b:lower}"
    assert template_of(tokenizer, ["a", "b", "c"], spans, "after") == "{a} {b} {c} It was {mask}."
    assert Template(template_of(tokenizer, ["text"], ((4,), (4,)), "after")).columns == ("text",)


# ---- label words


def test_pairings_are_those_of_trying_all():
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(size=(20, 9)).astype(np.float32), np.arange(20) % 3
    candidates = likely_words(class_means(logits, labels, 3), 5)
    every = {
        words: accuracy_of(logits, labels, words) for words in itertools.product(*candidates) if len(set(words)) == 3
    }
    found = best_pairings(logits, labels, candidates, 10)
    assert [each.accuracy for each in found] == pytest.approx(sorted(every.values(), reverse=True)[:10])
    assert all(each.accuracy == pytest.approx(every[each.words]) for each in found)
    narrow = best_pairings(logits, labels, candidates, 10, width=12)
    assert narrow[0].accuracy <= found[0].accuracy


def test_logits_of_a_class_are_averaged_over_its_rows(session):
    own = attach_prompt(session, parse("ZeroShot"), WORDS)
    words = blank_words(session.tokenizer, WORDS.templates[0], 101)
    assert set(models.WORDS) <= set(words.values())
    assert not any(word.startswith("##") for word in words.values())
    readings = read_blanks(own, WORDS, ROWS, list(words))
    ids = session.tokenizer([f"{row['text']} it was [MASK] ." for row in ROWS], return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = session.host.model(**ids).logits
    by_hand = torch.stack([row[tokens == 4][0] for row, tokens in zip(logits, ids["input_ids"], strict=True)])
    assert torch.allclose(readings.logits, by_hand[:, list(words)], atol=1e-5)
    labels = torch.tensor([1, 0] * 3)
    means = class_means(readings.logits.numpy(), labels.numpy(), 2)
    assert np.allclose(means[1], by_hand[:, list(words)][labels == 1].mean(0).numpy(), atol=1e-5)
    found = search_label_words(own, WORDS, ROWS, tried=6, most=4)
    accuracies = [accuracy for _, accuracy in found]
    assert accuracies == sorted(accuracies, reverse=True)
    for pairing, accuracy in found:
        answers = replace(own, task=replace(WORDS, words=pairing)).predict(ROWS)
        assert float((answers.argmax(1) == labels.numpy()).mean()) == pytest.approx(accuracy)


@pytest.mark.parametrize("kind", ["gpt2", pytest.param("llama", marks=pytest.mark.slow), "bart"])
def test_label_words_of_other_models_are_read_at_their_blank(kind, tmp_path):
    session = session_of(kind, tmp_path / "model")
    task = WORDS if kind == "bart" else replace(WORDS, template="{text} it was {mask}")
    own = attach_prompt(session, parse("ZeroShot"), task)
    (pairing, accuracy), *_ = search_label_words(own, task, ROWS, tried=6)
    answers = replace(own, task=replace(task, words=pairing)).predict(ROWS)
    assert float((answers.argmax(1) == [1, 0] * 3).mean()) == pytest.approx(accuracy)


# ---- the method


@pytest.mark.parametrize("text", ["LMBFF(demonstrations=False)", "LMBFF(LoRA(r=2), sets=2, likely=8, candidates=3)"])
def test_words_are_found_then_trained_through(session, tmp_path, text):
    method = parse(text)
    assert parse(repr(method)) == method
    settings = Settings(epochs=10, batch_size=6, learning_rate=1e-2 if "LoRA" in text else 1e-3)
    fitted = method.fit(session, PromptRows(ROWS, ROWS), settings, OPTIONS)
    assert fitted.outcome is not None
    assert fitted.outcome.history[-1][1] < fitted.outcome.history[0][1]
    assert len(fitted.trials) >= 3
    scores = [score for _, score in fitted.trials]
    assert scores == sorted(scores, reverse=True)
    answers = fitted.session.predict(ROWS)
    with_stored_task(fitted.session)
    session.host.save(session.name, tmp_path / "run")
    again = replace(open_adapter(tmp_path / "run"), precision="float32")
    assert np.allclose(again.predict(ROWS), answers, atol=1e-5)


def test_words_near_the_classes_own_words(session):
    own = attach_prompt(session, parse("ZeroShot"), WORDS)
    found = search_label_words(own, WORDS, ROWS, tried=12, most=9, neighbors=3)
    words = blank_words(session.tokenizer, WORDS.templates[0], 101)
    logits = read_blanks(own, WORDS, ROWS, list(words)).logits.numpy()
    likely = likely_words(class_means(logits, np.array([0, 1] * 3)[::-1], 2), 12)
    table = session.host.model.get_output_embeddings().weight
    for number, seed in enumerate(("bad", "good")):
        vector = table[session.tokenizer.convert_tokens_to_ids(seed)]
        near = {
            words[token]: float(torch.cosine_similarity(vector, table[token], dim=0))
            for token in (list(words)[column] for column in likely[number])
        }
        allowed = sorted(near, key=lambda word: -near[word])[:3]
        assert {pairing[number][0] for pairing, _ in found} <= set(allowed)
    session.detach()
    method = LMBFF(parse("LoRA(r=2)"), demonstrations=False, likely=12, neighbors=3, words="neg=bad, pos=good")
    assert method.fit(session, PromptRows(ROWS, ROWS), Settings(max_steps=1)).trials


def test_training_goes_on_from_its_checkpoint(session, tmp_path):
    method = LMBFF(parse("LoRA(r=2)"), sets=1, likely=4, candidates=2)
    rows, settings = PromptRows(ROWS, ROWS), Settings(epochs=2, batch_size=6, checkpoint_every=1, learning_rate=1e-2)
    first = method.fit(session, rows, settings, OPTIONS, out=tmp_path / "out").session.predict(ROWS)
    session.detach()
    again = method.fit(session, rows, settings, OPTIONS, out=tmp_path / "out")
    assert again.outcome.resumed == 2
    assert np.array_equal(again.session.predict(ROWS), first)


def save_generator(folder):
    """The T5 of the golden case, which has learned a few spans, with a tokenizer of its whole words."""
    vocabulary = settings("prompting_lm_bff_templates")["vocabulary"]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=[word for word in vocabulary if word.startswith("<extra_id_")],
    ).save_pretrained(folder)  # fmt: skip
    language_model("prompting_lm_bff_templates").save_pretrained(folder)
    return str(folder)


def test_written_templates_are_compared_with_the_others(session, tmp_path):
    folder = save_generator(tmp_path / "t5")
    written = [each.template for each in write_templates(load_generator(folder), WORDS, ROWS, beams=4)]
    assert "{text} It was {mask}." in written
    for text in (
        "LMBFF(LoRA(r=2), search='templates', demonstrations=False, beams=4, generator=FOLDER)",
        "TemplateSearch(source='written', most=4, generator=FOLDER)",
    ):
        method = parse(text.replace("FOLDER", repr(folder)))
        fitted = method.fit(session, PromptRows(ROWS, ROWS), Settings(max_steps=1), OPTIONS)
        tried = " ".join(prompt for prompt, _ in fitted.trials)
        assert all(template in tried for template in written[:4])
        assert fitted.session.task.template in tried
        session.detach()


def test_words_are_searched_for_classes_that_say_nothing(session):
    numbers = replace(session, task=Classify(labels=("0", "1"), max_length=32))
    rows = [{**row, "label": "1" if row["label"] == "pos" else "0"} for row in ROWS]
    method = LMBFF(demonstrations=False, likely=6, candidates=3)
    fitted = method.fit(numbers, PromptRows(rows, rows), Settings(max_steps=1))
    assert all(len(of_class) == 1 for of_class in fitted.session.task.words)
    session.detach()
    with pytest.raises(DeltatuneError, match="say nothing in words"):
        LMBFF(search="none", demonstrations=False).fit(numbers, PromptRows(rows, rows), Settings(max_steps=1))
    assert not session.host.adapters


def test_searches_are_the_same_for_the_same_seed_and_short_trainings_leave_nothing(session):
    method = LMBFF(parse("LoRA(r=2)"), demonstrations=False, likely=5, candidates=2, search_steps=2)
    found = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        fitted = method.fit(session, PromptRows(ROWS, ROWS), Settings(max_steps=3, seed=5), OPTIONS)
        found.append((fitted.trials, fitted.prompts, fitted.session.predict(ROWS)))
        session.detach()
    assert found[0][:2] == found[1][:2]
    assert np.array_equal(found[0][2], found[1][2])
    assert not session.host.adapters


def test_words_that_are_found_for_a_template_compete_with_those_it_was_chosen_with(session, monkeypatch):
    worse = WORDS.words[::-1]
    monkeypatch.setattr(
        PromptComparison, "words", lambda self, task: [ScoredPrompt(replace(task, words=worse), Score(-1.0, -9.0))]
    )
    method = LMBFF(parse("LoRA(r=2)"), search="both", demonstrations=False)
    fitted = method.fit(session, PromptRows(ROWS, ROWS), Settings(max_steps=1), OPTIONS)
    assert fitted.session.task.words != worse
    assert fitted.prompts[0] == fitted.trials[0][0]
    assert fitted.trials[-1][1] == -1


def test_rows_without_room_for_their_demonstrations_are_noted(session):
    long = [{**row, "text": " ".join([row["text"]] * 12)} for row in ROWS]
    method = LMBFF(parse("LoRA(r=2)"), search="none", sets=1)
    for rows, expected in ((ROWS, False), (long, True)):
        fitted = method.fit(session, PromptRows(rows, rows), Settings(max_steps=1), OPTIONS)
        assert any("no room for all of their demonstrations" in note for note in fitted.notes) is expected
        session.detach()


def test_test_rows_and_unlabelled_rows_are_never_read(session):
    class Poisoned(dict):
        def __getitem__(self, name):
            raise AssertionError("an unlabelled row was read")

        get = __getitem__

    rows = PromptRows(ROWS, ROWS, [Poisoned(text="x")])
    assert LMBFF(parse("LoRA(r=2)"), likely=4, candidates=2, sets=1).fit(session, rows, Settings(max_steps=2), OPTIONS)


# ---- bad input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("LMBFF(ZeroShot())", "is a prompting method"),
        ("LMBFF(words='neg=bad, pos=good', neighbors=0)", "leave words out"),
        ("LMBFF(search='templates', template='{text} {mask}')", "leave template out"),
        ("LMBFF(generator='t5')", "search='templates'"),
        ("LMBFF(search='word')", "did you mean 'words'"),
        ("LMBFF(PTuning(template='{2} {text} {mask}'))", "train it with Cloze"),
        ("LMBFF(likely=0)", "likely must be at least 1"),
        ("LMBFF(sets=1000000000)", "sets must be at most 1000"),
        ("LMBFF(beams=1000000000)", "beams must be at most 1000"),
    ],
)
def test_options_that_cannot_be(text, message):
    with pytest.raises(DeltatuneError, match=message):
        parse(text)


def test_generators_that_cannot_write_spans(tmp_path, session):
    with pytest.raises(DeltatuneError, match=r"a bert is no encoder-decoder"):
        load_generator(session.model)
    models.tiny("t5", "lm").save_pretrained(tmp_path / "t5")
    tokenizer = models.tiny_tokenizer()
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(tmp_path / "t5")
    with pytest.raises(DeltatuneError, match="no sentinel <extra_id_0>, <extra_id_1>, <extra_id_2>"):
        load_generator(str(tmp_path / "t5"))
    method = LMBFF(search="templates", generator=str(tmp_path / "t5"))
    with pytest.raises(DeltatuneError, match="no sentinel"):
        method.fit(session, PromptRows(ROWS, ROWS), Settings(), OPTIONS)
    assert not session.host.adapters


def test_classes_without_rows_and_too_few_words(session):
    for rows, message in ((ROWS[::2], "no training row has the class 'neg'"), ([], "no training row has the classes")):
        with pytest.raises(DeltatuneError, match=message):
            LMBFF().fit(session, PromptRows(rows), Settings(), OPTIONS)
        assert not session.host.adapters
    labels = tuple(f"class {i}" for i in range(60))
    many = replace(session, task=Classify(labels=labels, max_length=32))
    rows = [{"text": "good", "label": label} for label in labels]
    with pytest.raises(DeltatuneError, match="60 classes need a word each, and this tokenizer has"):
        LMBFF().fit(many, PromptRows(rows), Settings())
    logits = np.zeros((2, 1), np.float32)
    with pytest.raises(DeltatuneError, match="fewer different words are left"):
        best_pairings(logits, np.array([0, 1]), [[0], [0]], 1)


def test_rows_are_taken_from_each_class_in_turn():
    rows = [{"text": str(i), "label": "pos" if i < 8 else "neg"} for i in range(10)]
    assert [row["text"] for row in rows_in_turn(WORDS, rows, 5)] == ["0", "1", "2", "8", "9"]


def test_training_through_words_of_several_tokens_goes_on_from_its_checkpoint(session, tmp_path):
    method = parse("LMBFF(LoRA(r=2), search='none', demonstrations=False, words='neg=really bad, pos=good')")
    settings = Settings(epochs=2, batch_size=6, checkpoint_every=1, learning_rate=1e-2)
    first = method.fit(session, PromptRows(ROWS), settings, out=tmp_path / "out").session.predict(ROWS)
    session.detach()
    again = method.fit(session, PromptRows(ROWS), settings, out=tmp_path / "out")
    assert again.outcome.resumed == 2
    assert np.array_equal(again.session.predict(ROWS), first)
