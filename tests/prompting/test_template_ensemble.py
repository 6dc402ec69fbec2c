"""Template ensembles: the mean of probabilities, weights, training with every template, and the spread."""

import json
from dataclasses import replace

import numpy as np
import pytest

from deltatune import DeltatuneError, parse
from deltatune.prompting.choose_prompts import PromptOptions
from deltatune.prompting.prompt_method import PromptRows, with_stored_task
from deltatune.prompting.several_templates import spread_note, spread_of
from deltatune.prompting.template_ensemble import TemplateEnsemble
from deltatune.prompting.zero_shot import ZeroShot
from deltatune.tasks.classification import Classify, softmax
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.training import Settings
from deltatune.training.open_session import open_adapter, open_host
from deltatune.training.session import Session
from support import models

TASK = Classify(labels=("neg", "pos"), max_length=48)
TEXTS = (("good great film", "pos"), ("bad awful plot", "neg"), ("the actor is great", "pos"), ("a plot", "neg"))
ROWS = [{"text": text, "label": label} for text, label in TEXTS] * 2
TEMPLATES = ("{text} It was {mask}.", "{mask}: {text}", "Is this {text} {mask}?")
OPTIONS = PromptOptions(words=("neg=bad", "pos=good"))
SHORT = Settings(epochs=1, batch_size=4, learning_rate=1e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("bert")
    models.tiny("bert", "lm").save_pretrained(made)
    models.tiny_tokenizer().save_pretrained(made)
    return str(made)


@pytest.fixture
def session(folder):
    host, tokenizer = open_host(folder, "words")
    return Session(folder, host, tokenizer, TASK, precision="float32")


def alone(session, template):
    fitted = ZeroShot(template=template).fit(session, PromptRows([]), SHORT, OPTIONS)
    encoded = fitted.session.encode(ROWS)
    answers = fitted.session.predict(encoded)
    accuracy = fitted.session.task.score(answers, encoded.references)["accuracy"]
    session.detach()
    return softmax(answers.astype(np.float64)), accuracy


def test_probabilities_are_averaged_and_each_template_is_scored_alone(session, tmp_path):
    each = [alone(session, template) for template in TEMPLATES]
    fitted = TemplateEnsemble(templates=TEMPLATES).fit(session, PromptRows(ROWS, ROWS), SHORT, OPTIONS)
    answers = fitted.session.predict(ROWS)
    assert np.allclose(softmax(answers), np.mean([probabilities for probabilities, _ in each], 0), atol=1e-6)
    assert fitted.trials == tuple(zip(TEMPLATES, (accuracy for _, accuracy in each), strict=True))
    assert fitted.outcome is None
    assert "accuracy of 3 templates on 8 validation rows: mean" in fitted.notes[-1]
    with_stored_task(fitted.session, {"settings": {"precision": "float32"}})
    session.host.save(session.name, tmp_path / "ensemble")
    again = open_adapter(tmp_path / "ensemble")
    assert again.adapter.count == 0
    assert np.array_equal(again.predict(ROWS), answers)


def test_templates_are_weighted_by_their_accuracy_on_the_training_rows(session):
    each = [alone(session, template) for template in TEMPLATES]
    weights = np.array([accuracy for _, accuracy in each])
    method = TemplateEnsemble(templates=TEMPLATES, weighting="accuracy")
    assert method.draws
    fitted = method.fit(session, PromptRows(ROWS, ROWS[:1]), SHORT, OPTIONS)
    mean = np.average([probabilities for probabilities, _ in each], axis=0, weights=weights)
    assert np.allclose(softmax(fitted.session.predict(ROWS)), mean, atol=1e-6)
    session.detach()
    fitted = method.fit(session, PromptRows([], ROWS), SHORT, OPTIONS)
    assert fitted.session.task.template_weights == ()
    assert any("no training rows to weigh the templates by" in note for note in fitted.notes)


def test_training_reads_every_row_in_every_template(session):
    steps = []
    method = TemplateEnsemble(parse("LoRA(r=2)"), templates=TEMPLATES)
    assert method.trains
    fitted = method.fit(session, PromptRows(ROWS, ROWS[:2]), SHORT, OPTIONS, lambda *step: steps.append(step))
    assert len(steps) == len(ROWS) * len(TEMPLATES) / 4
    assert fitted.session.adapter.count == method.count(session.host.sites)
    assert [template for template, _ in fitted.trials] == list(TEMPLATES)
    own = fitted.session
    singles = [replace(own, task=replace(own.task, template=each, more_templates=())) for each in TEMPLATES]
    scores = [single.score(single.encode(ROWS[:2]))["accuracy"] for single in singles]
    assert [score for _, score in fitted.trials] == scores


def test_chosen_templates_share_their_words(session):
    """Those that most published templates have; published ones with other words are left out, which a note says."""
    fitted = TemplateEnsemble().fit(session, PromptRows(ROWS, ROWS), SHORT, PromptOptions(data="sst2"))
    task = fitted.session.task
    assert len(fitted.trials) == 1 + len(task.more_templates) == 4
    assert task.words == (("bad",), ("good",))
    assert "In summary, the restaurant is" in task.more_templates[-1]
    assert "published templates with other words for the classes are left out: 2" in fitted.notes
    session.detach()
    fitted = TemplateEnsemble(patterns=2).fit(session, PromptRows(ROWS), SHORT, OPTIONS)
    assert len(fitted.prompts) == 2
    assert "no validation rows" in fitted.notes[-1]


def test_the_spread_is_mean_deviation_best_and_worst():
    trials = [("a", 0.5), ("b", 0.7), ("c", 0.9)]
    spread = spread_of(trials)
    assert (spread.count, spread.best, spread.worst) == (3, ("c", 0.9), ("a", 0.5))
    assert spread.mean == pytest.approx(0.7)
    assert spread.deviation == pytest.approx((0.08 / 3) ** 0.5)
    assert spread_note(trials, "accuracy", 12) == (
        "accuracy of 3 templates on 12 validation rows: mean 0.700, deviation 0.163, best 0.900 ('c'), "
        "worst 0.500 ('a')"
    )
    assert spread_note(trials[:1], "f1", 4) == "f1 of the one template on 4 validation rows: 0.500"
    with pytest.raises(DeltatuneError, match="no scores"):
        spread_of([])


def test_weights_belong_to_the_stored_task():
    fields = {"labels": ("a", "b"), "template": "{text} {mask}", "more_templates": ("{mask}: {text}",)}
    task = LabelWords(**fields, template_weights=(0.25, 0.75))
    assert LabelWords.from_json(json.loads(json.dumps(task.to_json()))) == task
    for weights in ((1.0,), (-1.0, 2.0), (0.0, 0.0)):
        with pytest.raises(DeltatuneError, match="template_weights must be 2 numbers"):
            LabelWords(**fields, template_weights=weights)
    pieces = [np.array([1.0, 0.0], np.float32), np.array([0.0, 2.0], np.float32)]
    encoded = type("Rows", (), {"examples": 1})()
    mean = 0.25 * softmax(pieces[0]) + 0.75 * softmax(pieces[1])
    assert np.allclose(np.exp(task.collect(pieces, encoded)), mean, atol=1e-6)
    silent = replace(task, template_weights=(0.0, 1.0))
    assert np.allclose(np.exp(silent.collect(pieces, encoded)), softmax(pieces[1]), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TemplateEnsemble(ZeroShot())", "trains a tuning method"),
        ("TemplateEnsemble(Prompt(template='{2} {text} {mask}'))", "has a template of its own"),
        ("TemplateEnsemble(patterns=2, templates=('{text} {mask}',))", "1 templates are given"),
        ("TemplateEnsemble(patterns=-1)", "patterns must be at least 0"),
    ],
)
def test_options_that_make_no_sense(text, message):
    with pytest.raises(DeltatuneError, match=message):
        parse(text)


def test_text_forms_and_checks(session):
    assert parse(repr(TemplateEnsemble(parse("LoRA(r=4)")))).inner == parse("LoRA(r=4)")
    assert TemplateEnsemble().count(session.host.sites) == 0
    assert not TemplateEnsemble().draws
    TemplateEnsemble().check_session(session, PromptRows(ROWS), OPTIONS)
    assert session.host.adapters == {}
    with pytest.raises(DeltatuneError, match="one class a row"):
        TemplateEnsemble().check_task(Classify())
    with pytest.raises(DeltatuneError, match=r"one \{mask\}"):
        TemplateEnsemble(templates=("{text}",)).fit(session, PromptRows(ROWS), SHORT, OPTIONS)
    with pytest.raises(DeltatuneError, match="no column 'text'"):
        TemplateEnsemble().fit(session, PromptRows([{"txt": "a", "label": "pos"}]), SHORT, OPTIONS)
    assert session.host.adapters == {}
