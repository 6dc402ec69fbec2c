"""PET and iPET: models of patterns, the rows that they label for each other, and the classifier that they teach."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from deltatune import DeltatuneError, Host, parse
from deltatune.prompting.choose_prompts import NO_OPTIONS, PromptOptions
from deltatune.prompting.pet.generations import Generations
from deltatune.prompting.pet.next_sets import added_rows, labelled_by, mean_scores
from deltatune.prompting.pet.pattern_models import PatternModel
from deltatune.prompting.pet.pet import IPET, PET
from deltatune.prompting.prompt_method import PromptRows, with_stored_task
from deltatune.prompting.zero_shot import ZeroShot
from deltatune.tasks.classification import Classify
from deltatune.tasks.multilabel import MultiLabel
from deltatune.training import Settings
from deltatune.training.learning_rates.recommended_rate import steps_of
from deltatune.training.open_session import open_adapter, open_host
from deltatune.training.session import Session
from support import models
from support.label_words import reader

TASK = Classify(labels=("neg", "pos"), max_length=48)
TEXTS = (
    ("good great film", "pos"),
    ("bad awful plot", "neg"),
    ("the actor is great", "pos"),
    ("the plot was awful", "neg"),
)
ROWS = [{"text": text, "label": label} for text, label in TEXTS] * 2
UNLABELLED = [{"text": f"{text} {more}"} for text, _ in TEXTS for more in ("film", "is it")]
OPTIONS = PromptOptions(words=("neg=bad", "pos=good"))
SHORT = Settings(max_steps=1, batch_size=4, learning_rate=1e-3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for family in ("bert", "llama"):
        made[family] = tmp_path_factory.mktemp(family)
        models.tiny(family, "lm").save_pretrained(made[family])
        models.tiny_tokenizer().save_pretrained(made[family])
    return made


@pytest.fixture
def session(folders):
    return opened(folders["bert"])


def opened(folder):
    host, tokenizer = open_host(str(folder), "words")
    return Session(str(folder), host, tokenizer, TASK, {"dropout": 0.0})


def tensors(session):
    return {name: parameter.detach().clone() for name, parameter in session.adapter.named_parameters()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def fit(session, method, rows=None, settings=SHORT, options=OPTIONS, on_step=None):
    rows = rows or PromptRows(ROWS, ROWS[:4], UNLABELLED)
    fitted = method.fit(session, rows, settings, options, on_step)
    found = tensors(fitted.session)
    fitted.session.detach()
    return fitted, found


# ---- the whole


@pytest.mark.parametrize(("family", "text"), [("bert", "PET(patterns=2)"), ("llama", "PET(LoRA(r=4), patterns=2)")])
def test_the_classifier_learns_what_the_patterns_models_know(folders, tmp_path, family, text):
    session = opened(folders[family])
    steps = []
    fitted = parse(text).fit(
        session, PromptRows(ROWS, ROWS[:4], UNLABELLED), Settings(epochs=12, batch_size=8, learning_rate=1e-2), OPTIONS,
        lambda *step: steps.append(step),
    )  # fmt: skip
    own = fitted.session
    answers = own.predict(ROWS)
    assert own.score(own.encode(ROWS))["accuracy"] == 1.0
    assert [score for _, score in fitted.trials] == [1.0, 1.0]
    assert len(fitted.prompts) == 2
    assert fitted.prompts[0].endswith("with neg: bad, pos: good")
    assert [step for step, *_ in steps] == list(range(1, steps[-1][1] + 1))  # one count over all trainings
    assert steps[-1][0] == steps[-1][1] == 2 * 12 + 12
    with_stored_task(own)
    session.host.save(session.name, tmp_path / "pet")
    again = open_adapter(tmp_path / "pet")
    assert type(again.task) is Classify
    assert again.adapter.head is not None
    assert np.array_equal(again.predict(ROWS), answers)


@pytest.mark.parametrize("family", ["t5", "bart", "gpt2"])
def test_other_families_learn_without_masked_language_modelling(family):
    """Also with words of several tokens."""
    model, tokenizer = reader(family)
    session = Session(family, Host(model), tokenizer, TASK)
    options = PromptOptions(words=("neg=old film|film", "pos=12 books"))
    templates = ("{text} It was {mask}", "{text} This is {mask}")
    fitted, _ = fit(session, PET(parse("LoRA(r=2)"), templates=templates), options=options)
    assert len(fitted.trials) == 2


@pytest.mark.parametrize("method", ["Prompt(length=2)", "Prefix(length=2)"])
def test_adapters_with_virtual_tokens_are_trained_beside_the_masked_language_model(session, method):
    fitted, _ = fit(session, PET(parse(method), patterns=1, mlm=0.5))
    assert fitted.session.host.adapters == {}
    assert len(fitted.trials) == 1


def test_labels_of_unlabelled_rows_are_never_read(session):
    poisoned = [{**row, "label": "no class"} for row in UNLABELLED]
    _, plain = fit(session, IPET(patterns=2, scale=2.0, generations=2))
    _, same = fit(session, IPET(patterns=2, scale=2.0, generations=2), PromptRows(ROWS, ROWS[:4], poisoned))
    assert equal(plain, same)


def test_validation_rows_score_and_choose_nothing(session):
    other = [{**row, "label": "pos"} for row in ROWS[:4]]
    first, plain = fit(session, PET(patterns=2, weighting="accuracy"))
    second, same = fit(session, PET(patterns=2, weighting="accuracy"), PromptRows(ROWS, other, UNLABELLED))
    third, without = fit(session, PET(patterns=2, weighting="accuracy"), PromptRows(ROWS, (), UNLABELLED))
    assert equal(plain, same)
    assert equal(plain, without)
    assert first.trials != second.trials
    assert third.trials == ()


def test_results_depend_on_the_seed_alone(session):
    _, first = fit(session, PET(patterns=2))
    torch.manual_seed(99)
    np.random.seed(99)
    _, again = fit(session, PET(patterns=2))
    _, other = fit(session, PET(patterns=2), settings=replace(SHORT, seed=1))
    assert equal(first, again)
    assert not equal(first, other)


def test_repetitions_have_seeds_of_their_own_and_one_trial_together(session):
    fitted, twice = fit(session, PET(patterns=1, repetitions=2))
    single, once = fit(session, PET(patterns=1))
    assert len(fitted.trials) == len(single.trials) == 1
    assert not equal(once, twice)


def test_without_unlabelled_rows_the_texts_of_the_training_rows_are_labelled(session):
    fitted, _ = fit(session, PET(patterns=1), PromptRows(ROWS))
    assert (
        "no unlabelled rows are given: the classifier learns from the texts of the 8 training rows" in fitted.notes[0]
    )
    fitted, _ = fit(session, PET(patterns=1, unlabelled=5))
    assert "5 of 8 unlabelled rows are drawn" in fitted.notes


def test_models_without_training_teach_too(session):
    fitted, _ = fit(session, PET(ZeroShot(), patterns=2, repetitions=3), PromptRows([], ROWS, UNLABELLED))
    zero_shot = [
        ZeroShot(template=template, scoring="logit").fit(session, PromptRows([]), SHORT, OPTIONS).session
        for template, _ in fitted.trials[:1]
    ]
    assert zero_shot[0].score(zero_shot[0].encode(ROWS))["accuracy"] == fitted.trials[0][1]
    assert fitted.session.loads == "words"


def test_an_interruption_leaves_nothing_attached(session):
    def stop(step, *_):
        if step == stop.at:
            raise KeyboardInterrupt

    for stop.at in (1, 2, 3):  # the first pattern, the second, the classifier
        with pytest.raises(KeyboardInterrupt):
            fit(session, PET(patterns=2), on_step=stop)
        assert session.host.adapters == {}


def test_models_read_what_they_should(session, monkeypatch):
    """The MLM loss is on for masked models alone, the classifier's rate in proportion, and its steps are bounded."""
    seen = []
    train = Session.train

    def recorded(self, rows, validation, settings, **more):
        seen.append((type(self.task).__name__, len(rows), settings, more.get("auxiliary")))
        return train(self, rows, validation, settings, **more)

    monkeypatch.setattr(Session, "train", recorded)
    fit(session, PET(patterns=1, classifier=parse("LoRA(r=2)")))
    (model, rows, _, auxiliary), (classifier, texts, final, none) = seen
    assert (model, rows, classifier, texts) == ("LabelWords", 8, "SoftLabels", 8)
    assert auxiliary.weight == 1e-4
    assert len(auxiliary.rows) == 8
    assert none is None
    assert final.learning_rate == pytest.approx(1e-3 * parse("LoRA()").learning_rate / parse("Full()").learning_rate)
    seen.clear()
    epochs = Settings(epochs=1, batch_size=2, learning_rate=1e-3)
    fit(session, PET(patterns=1, mlm=0.0, classifier_steps=3), settings=epochs)
    assert [each[2].max_steps for each in seen] == [4, 3]
    assert seen[0][3] is None
    seen.clear()
    fit(session, PET(patterns=1), PromptRows(ROWS[:2], (), UNLABELLED * 6), Settings(epochs=1, batch_size=2))
    assert [each[2].max_steps for each in seen] == [1, 20]


# ---- iPET


class Recorded:
    """Pattern models that only write down the rows they are given."""

    def __init__(self, train, scores, unlabelled):
        self.train, self.unlabelled, self.settings = train, unlabelled, Settings()
        self.given = []
        self.scores = scores

    def models(self, generation=0, added=()):
        self.given.append([list(rows) for rows in added])
        return [PatternModel(k, scores, scores[:0], None) for k, scores in enumerate(self.scores)]


def test_sets_grow_with_the_proportions_of_the_labelled_rows():
    train = [{"label": "neg"}] * 2 + [{"label": "pos"}] * 4
    generator = np.random.default_rng(0)
    training = Recorded(train, list(generator.normal(size=(5, 600, 2))), [{"text": str(i)} for i in range(600)])
    history = Generations(3, 5.0, 0.25).train(training, [1.0] * 5, TASK)
    assert len(history) == 3
    assert training.given[0] == []
    for added, factor in zip(training.given[1:], (5, 25), strict=True):
        for rows in added:
            labels = Counter(row["label"] for row in rows)
            assert labels == {
                "neg": 2 * (factor - 1),
                "pos": 4 * (factor - 1),
            }  # 5 n rows, then 25 n, with the labelled
            assert len({row["text"] for row in rows}) == len(rows)  # none twice while there are enough
    assert training.given[1][0] != training.given[1][1]


def test_rows_for_a_model_are_labelled_by_the_others_alone():
    """Each of two models is sure of the contrary of the other."""
    sure = np.array([[9.0, -9.0]] * 20 + [[-9.0, 9.0]] * 20)
    training = Recorded(ROWS, [sure, -sure], [{"text": str(i)} for i in range(40)])
    Generations(2, 2.0, 1.0).train(training, [1.0, 1.0], TASK)
    for_first, for_second = training.given[1]
    assert all((int(row["text"]) < 20) == (row["label"] == "pos") for row in for_first)
    assert all((int(row["text"]) < 20) == (row["label"] == "neg") for row in for_second)


def test_confident_rows_are_drawn_more_often():
    scores = np.zeros((40, 2))
    scores[:, 0], scores[:20, 0] = 0.1, 8.0
    seeds = (torch.Generator().manual_seed(seed) for seed in range(40))
    drawn = Counter(row < 20 for seed in seeds for row, _ in labelled_by([scores], [1.0], [5, 0], 1.0, seed))
    assert drawn[True] / (drawn[True] + drawn[False]) == pytest.approx(1 / (1 + 0.525), abs=0.1)


def test_without_labelled_rows_the_first_set_is_drawn_from_the_most_likely():
    scores = np.stack([np.arange(30.0), np.zeros(30)], 1)  # class 0 is the likelier one everywhere
    assert added_rows([0, 0], 5.0, 1) == [5, 5]
    assert added_rows([0, 0], 5.0, 2) == [25, 25]
    rows = labelled_by([scores], [1.0], [5, 5], 1.0, torch.Generator().manual_seed(0), most_likely=8)
    assert {row for row, label in rows if label == 0} <= set(range(22, 30))
    assert {row for row, label in rows if label == 1} <= set(range(8))


def test_a_class_with_few_rows_has_each_as_often_and_one_without_has_the_most_likely():
    scores = np.array([[3.0, 0.0, 1.0], [3.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
    rows = labelled_by([scores], [1.0], [2, 3, 1], 1.0, torch.Generator().manual_seed(0))
    assert Counter(rows) == {(0, 0): 1, (1, 0): 1, (2, 1): 3, (1, 2): 1}


def test_weights_of_zero_count_as_none():
    scores = [np.full((2, 2), 1.0), np.full((2, 2), 4.0)]
    assert np.array_equal(mean_scores(scores, [0.0, 0.0]), np.full((2, 2), 2.5))
    assert np.array_equal(mean_scores(scores, [2.0, 1.0]), np.full((2, 2), 2.0))


def test_ipet_trains_in_generations(session):
    fitted, _ = fit(session, IPET(patterns=2, scale=2.0))
    assert any("mean accuracy of the models by generation" in note for note in fitted.notes)
    fitted, _ = fit(session, IPET(patterns=2, scale=2.0), PromptRows([], ROWS, UNLABELLED))
    assert len(fitted.trials) == 2


# ---- errors, text form


def test_text_forms():
    assert parse("IPET()") == IPET()
    assert parse(repr(PET(parse("LoRA(r=4)"), templates=("{text} {mask}",)))).templates == ("{text} {mask}",)
    assert (IPET().generations, IPET().scale, IPET().teachers) == (3, 5.0, 0.25)
    assert PET().learning_rate == parse("Full()").learning_rate
    assert PET(parse("LoRA(r=4)")).sized(2).inner == parse("LoRA(r=2)")
    assert [method.label for method in (PET(), IPET(), PET(parse("LoRA()")))] == ["PET", "iPET", "PET, LoRA"]
    assert steps_of(Settings(epochs=1.5, batch_size=4), 9) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PET(Cloze(LoRA()))", "must be a tuning method"),
        ("PET(Prompt(template='{2} {text} {mask}'))", "templates are those of PET"),
        ("PET(ZeroShot(words='neg=bad, pos=good'))", r"write ZeroShot\(\)"),
        ("IPET(ZeroShot())", "trains no models"),
        ("PET(classifier=ZeroShot())", "must be a tuning method"),
        ("PET(temperature=0)", "temperature must be at least 0.01"),
        ("PET(temperature=1e-300)", "temperature must be at least 0.01"),
        ("PET(mlm=1)", "mlm is a share of the loss"),
        ("PET(repetitions=0)", "repetitions must be at least 1"),
        ("IPET(scale=1)", "scale is above 1"),
        ("IPET(teachers=0)", "teachers is a share"),
        ("PET(patterns=3, templates=('{text} {mask}',))", "1 templates are given"),
        ("PET(weighting='best')", "one of 'uniform', 'accuracy'"),
    ],
)
def test_options_that_make_no_sense(text, message):
    with pytest.raises(DeltatuneError, match=message):
        parse(text)


@pytest.mark.parametrize("task", [Classify(), MultiLabel(labels=("a", "b"))])
def test_pet_is_for_one_class_a_row(session, task):
    own = replace(session, task=task)
    for call in (
        lambda: PET().check_task(task),
        lambda: fit(own, PET()),
        lambda: PET().check_session(own, PromptRows(ROWS)),
    ):
        with pytest.raises(DeltatuneError, match="is for one class a row"):
            call()


@pytest.mark.parametrize(
    ("method", "rows", "message"),
    [
        (IPET(patterns=1), ROWS, "one pattern only"),
        (PET(patterns=90), ROWS, "90 templates are asked for, and there are"),
        (PET(templates=("{text} It was good",)), ROWS, "a template has one {mask}"),
        (PET(templates=("{nothing} {mask}",)), ROWS, "names 'nothing', which is not a text column"),
        (PET(), [], "learns from labelled or unlabelled rows"),
        (PET(words="neg=bad"), ROWS, "'pos' has no word"),
        (PET(parse("Probe()")), ROWS, "nothing to train"),
        (IPET(generations=9), ROWS, "at most 100,000"),
        (PET(), [{"txt": "good", "label": "pos"}], "no column 'text'"),
    ],
)
def test_errors_name_the_fix(session, method, rows, message):
    with pytest.raises(DeltatuneError, match=message):
        fit(session, method, PromptRows(rows), options=OPTIONS if not method.words else NO_OPTIONS)
    assert session.host.adapters == {}


def test_a_session_is_checked_before_anything_runs(session):
    PET(patterns=2).check_session(session, PromptRows(ROWS, (), UNLABELLED), OPTIONS)
    assert session.host.adapters == {}
    with pytest.raises(DeltatuneError, match="one pattern only"):
        IPET(patterns=1).check_session(session, PromptRows(ROWS), OPTIONS)
    with pytest.raises(DeltatuneError, match="the unlabelled rows have no column 'text', did you mean 'txt'"):
        PET().check_session(session, PromptRows(ROWS, (), [{"txt": "a film"}]), OPTIONS)
