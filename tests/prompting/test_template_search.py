"""Searches for templates: the grammar, mining, other wordings, and the choice on the validation rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from deltatune import DeltatuneError, parse
from deltatune.prompting.choose_prompts import PromptOptions
from deltatune.prompting.prompt_method import PromptRows, attach_prompt, with_stored_task
from deltatune.prompting.prompt_search import paraphrases
from deltatune.prompting.prompt_search.chosen_by_score import prompt_score
from deltatune.prompting.prompt_search.paraphrases import (
    replaced_words,
    round_trips,
    with_signs,
    without_signs,
    word_places,
)
from deltatune.prompting.prompt_search.template_mining import key_words, mined_templates
from deltatune.prompting.prompt_search.template_rules import rule_templates
from deltatune.prompting.prompt_search.template_search import TemplateSearch
from deltatune.tasks.classification import Classify
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.prompts.templates import Template
from deltatune.training import Settings
from deltatune.training.open_session import open_adapter, open_host
from deltatune.training.session import Session
from support import models

ROWS = [
    {"text": text, "label": label}
    for text, label in (
        ("good great film", "pos"),
        ("bad awful plot", "neg"),
        ("the actor is great and very good", "pos"),
        ("the plot was awful", "neg"),
    )
]
OPTIONS = PromptOptions(words=("neg=bad", "pos=good"))
WORDS = LabelWords(labels=("neg", "pos"), words=(("bad",), ("good",)), template="{text} It was {mask}.", max_length=48)


def session_of(kind, folder):
    models.tiny(kind, "lm", dropout=False).save_pretrained(folder)
    models.tiny_tokenizer().save_pretrained(folder)
    host, tokenizer = open_host(str(folder), "words")
    return Session(str(folder), host, tokenizer, Classify(labels=("neg", "pos"), max_length=48), precision="float32")


@pytest.fixture
def session(tmp_path):
    return session_of("bert", tmp_path / "model")


# ---- where wordings come from


@pytest.mark.parametrize("columns", [("text",), ("premise", "hypothesis"), ("a", "b", "c")])
def test_the_grammar_makes_templates_of_any_columns(columns):
    for left_to_right in (False, True):
        templates = rule_templates(columns, left_to_right)
        assert len(templates) >= 8
        assert len(set(templates)) == len(templates)
        for text in templates:
            template = Template(text)
            assert set(template.columns) == set(columns)
            assert not left_to_right or template.ends_with_blank


def test_mined_templates_are_the_words_between(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(
        "People said the film was really good. The plot seems very bad to me.\n"
        "A good and honest actor came. The film was really bad!\nNothing here. {film} is {very} good.\n",
        encoding="utf-8",
    )
    assert {"film", "plot", "actor"} <= key_words(WORDS, ROWS)
    assert not {"good", "bad"} & key_words(WORDS, ROWS)
    found = dict(mined_templates(WORDS, ROWS, corpus))
    assert found["{text} was really {mask}."] == 2
    assert found["{text} seems very {mask}."] == 1
    assert found["{mask} and honest {text}"] == 1
    assert next(iter(found)) == "{text} was really {mask}."  # of both classes
    assert all("{{" not in text for text in found)
    assert next(iter(dict(mined_templates(WORDS, ROWS, corpus, left_to_right=True)))) == "{text} was really {mask}"
    for content, message in ((b"\xff\xfe", "not UTF-8"), (b"nothing of that kind", "no sentence of")):
        corpus.write_bytes(content)
        with pytest.raises(DeltatuneError, match=message):
            mined_templates(WORDS, ROWS, corpus)
    with pytest.raises(DeltatuneError, match="cannot read the corpus"):
        mined_templates(WORDS, ROWS, tmp_path / "absent.txt")


def test_a_masked_model_replaces_each_word(session):
    own = attach_prompt(session, parse("ZeroShot"), WORDS)
    found = replaced_words(own, WORDS, ROWS, each=2)
    assert len(found) == 4
    assert all(Template(text).columns == ("text",) for text in found)
    assert all(text.endswith(" was {mask}.") for text in found[:2])
    assert all(text.startswith("{text} It ") for text in found[2:])
    # by hand: the first word is the blank, the row's own label word stands in the template's
    words = {"pos": "good", "neg": "bad"}
    texts = [f"{row['text']} [MASK] was {words[row['label']]}." for row in ROWS]
    batch = session.tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = session.host.model(**batch).logits.log_softmax(-1)
    mean = torch.stack([row[ids == 4][0] for row, ids in zip(logits, batch["input_ids"], strict=True)]).mean(0)
    known = {
        word: session.tokenizer.convert_tokens_to_ids(word) for word in [*models.WORDS, *"abcdefghijklmnopqrstuvwxyz"]
    }
    best = [word for word in sorted(known, key=lambda word: -float(mean[known[word]])) if word != "it"][:2]
    assert found[:2] == [f"{{text}} {word.capitalize()} was {{mask}}." for word in best]


def test_words_of_a_template_are_found_between_its_fields():
    template = Template("{text:stem}? It {{was}} {soft:very much} so {mask}!")
    assert [text for *_, text in word_places(template)] == ["It", "was", "so"]
    assert all(template.text[start:end] == text for start, end, text in word_places(template))


def test_round_trips_keep_the_fields(monkeypatch):
    text, signs = with_signs(Template("{a:stem}? {mask}, {b!:lower}").parts)
    assert text == "X1? X2, X3"
    assert without_signs("X1 - X2, so X3", signs) == "{a:stem} - {mask}, so {b!:lower}"
    assert without_signs("X1 - X2", signs) == ""
    assert without_signs("X1 X1 X2 X3", signs) == ""
    answers = iter([["da X1 X2"], ["there X1 is X2.", "X1 alone", "X1 It was X2."]])
    monkeypatch.setattr(paraphrases, "translate", lambda texts, folder, beams: next(answers))
    assert round_trips("{text} It was {mask}.", ("there", "back")) == ["there {text} is {mask}."]
    with pytest.raises(DeltatuneError, match="has no other wording"):
        with_signs(Template("{text} {ids:4} {mask}").parts)


def test_translators_are_encoder_decoders(tmp_path):
    session = session_of("gpt2", tmp_path / "model")
    models.tiny("t5", "lm").save_pretrained(tmp_path / "t5")
    tokenizer = models.tiny_tokenizer()
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(tmp_path / "t5")
    assert all(isinstance(text, str) for text in paraphrases.translate(["X1 it was X2"], str(tmp_path / "t5"), 2))
    with pytest.raises(DeltatuneError, match="is no encoder-decoder"):
        paraphrases.translate(["a"], session.model, 2)


# ---- the method


@pytest.mark.parametrize("kind", ["bert", "gpt2", pytest.param("bart", marks=pytest.mark.slow)])
def test_the_best_template_of_the_validation_rows_is_kept(kind, tmp_path):
    session = session_of(kind, tmp_path / "model")
    method = parse("TemplateSearch(most=8)")
    fitted = method.fit(session, PromptRows(ROWS, ROWS), Settings(), OPTIONS)
    scores = [score for _, score in fitted.trials]
    assert len(scores) > 8
    assert scores == sorted(scores, reverse=True)
    assert fitted.session.task.template == fitted.trials[0][0]
    assert f"{len(scores)} wordings were tried" in fitted.notes[-1]
    for template, score in fitted.trials[:3]:
        task = replace(fitted.session.task, template=template)
        assert prompt_score(fitted.session, task, ROWS).metric == pytest.approx(score)
    answers = fitted.session.predict(ROWS)
    with_stored_task(fitted.session)
    session.host.save(session.name, tmp_path / "prompt")
    again = replace(open_adapter(tmp_path / "prompt"), precision="float32")
    assert again.adapter.method == method
    assert np.allclose(again.predict(ROWS), answers, atol=1e-5)


def test_all_sources_together_and_other_wordings_of_the_best(session, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("The film seems rather good. The plot seems rather bad.\n", encoding="utf-8")
    method = TemplateSearch(source="all", corpus=str(corpus), paraphrases=2, most=5)
    assert parse(repr(method)) == method
    fitted = method.fit(session, PromptRows(ROWS, ROWS), Settings(), OPTIONS)
    templates = [template for template, _ in fitted.trials]
    assert "{text} seems rather {mask}." in templates
    assert rule_templates(("text",))[0] in templates
    assert len(set(templates)) == len(templates)
    again = method.fit(replace(session, name="again"), PromptRows(ROWS, ROWS), Settings(seed=9), OPTIONS)
    assert again.trials == fitted.trials


def test_given_templates_are_the_only_ones_and_train_rows_choose_where_there_are_no_others(session):
    method = TemplateSearch(templates=("{text} it was {mask}.", "{text} is {mask}."))
    fitted = method.fit(session, PromptRows(ROWS), Settings(), OPTIONS)
    assert {template for template, _ in fitted.trials} == set(method.templates)
    assert "training rows" in fitted.notes[0]


def test_only_validation_rows_choose(session):
    class Poisoned(dict):
        def __getitem__(self, name):
            raise AssertionError("a row that must not be read was read")

    poisoned = [Poisoned(text="x", label="pos")]
    method = TemplateSearch(source="published")
    assert method.fit(session, PromptRows(poisoned, ROWS, poisoned), Settings(), OPTIONS).trials


def test_what_cannot_be_searched_is_a_plain_error(session):
    for text, message in (
        ("TemplateSearch(source='mined')", "corpus='FILE'"),
        ("TemplateSearch(source='written')", "generator='FOLDER'"),
        ("TemplateSearch(translators=('one',))", "takes two folders"),
        ("TemplateSearch(source='rule')", "did you mean 'rules'"),
        ("TemplateSearch(most=0)", "most must be at least 1"),
        ("TemplateSearch(most=1000000000)", "most must be at most 1000"),
        ("TemplateSearch(paraphrases=1000000000)", "paraphrases must be at most 1000"),
    ):
        with pytest.raises(DeltatuneError, match=message):
            parse(text)
    for method, rows, message in (
        (TemplateSearch(templates=("{text} it was",)), ROWS, "one {mask}"),
        (TemplateSearch(templates=("{txt} {mask}",)), ROWS, "did you mean 'text'"),
        (TemplateSearch(), [], "there are none; give training rows"),
        (TemplateSearch(words="neg=bad"), ROWS, "the class 'pos' has no word"),
    ):
        with pytest.raises(DeltatuneError, match=message):
            method.fit(session, PromptRows(rows), Settings(), PromptOptions() if method.words else OPTIONS)
        assert not session.host.adapters
    regression = replace(session, task=Classify())
    with pytest.raises(DeltatuneError, match="one class a row"):
        TemplateSearch().fit(regression, PromptRows(ROWS), Settings(), OPTIONS)
