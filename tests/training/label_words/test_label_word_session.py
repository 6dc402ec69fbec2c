"""Label words in sessions, recipes and stages: chosen by a template, stored with the adapter, merged into the model."""

import json

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.data import read
from deltatune.tasks.classification import Classify
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.training.open_session import open_adapter, open_session
from deltatune.training.recipes import checked_recipe, run_recipe
from deltatune.training.settings import Settings
from support.label_words import TEXTS, reader

FIELDS = {"template": "{text} It was {mask}", "words": {"neg": ["film", "old film"], "pos": "book"}, "max_length": 60}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Tiny models, and rows of classes and of numbers."""
    folder = tmp_path_factory.mktemp("label-words")
    for kind in ("bert", "gpt2"):
        model, tokenizer = reader(kind)
        model.save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    rows = [
        {"text": f"{text} {i} times", "label": ("neg", "pos")[i % 2], "stars": i % 5 + 0.5}
        for i, text in enumerate(TEXTS * 20)
    ]
    for name, label in (("classes", "label"), ("numbers", "stars")):
        lines = [json.dumps({"text": row["text"], "label": row[label]}) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_template_makes_label_words_that_are_stored_with_the_adapter(kind, place, tmp_path):
    data = read(str(place / "classes.jsonl"))
    session = open_session(str(place / kind), data, FIELDS)
    assert isinstance(session.task, LabelWords)
    assert session.task.words == (("film", "old film"), ("book",))
    assert type(open_session(str(place / kind), data, {"max_length": 60}).task) is Classify
    assert session.make_head(0) is False
    session.attach(session.fit("LoRA(r=2)"), 0, session.make_head(0))
    session.train(data.train, None, Settings(max_steps=1))
    session.host.save(session.name, tmp_path / "a", extra=session.to_json())
    opened = open_adapter(tmp_path / "a", fields={"scoring": "logit", "metric": "f1"})
    assert (opened.task.scoring, opened.task.metric) == ("logit", "f1")
    assert 0 <= opened.score(opened.encode(data.test))["accuracy"] <= 1
    with pytest.raises(DeltatuneError, match="--set template: cannot be changed after training"):
        open_adapter(tmp_path / "a", fields={"template": "{text} {mask}"})


def test_fields_that_do_not_suit_the_data_are_errors_before_a_model_is_read(place):
    classes, numbers = (read(str(place / f"{name}.jsonl")) for name in ("classes", "numbers"))
    for data, fields, message in (
        (numbers, FIELDS, "template and words: label words are for one class a row, and these data are for Classify"),
        (classes, {"scoring": "logit"}, "scoring: a field of label words, which need a template too"),
        (classes, {**FIELDS, "wrods": {}}, "LabelWords has no 'wrods', did you mean 'words'?"),
    ):
        with pytest.raises(DeltatuneError) as caught:
            open_session("no-such-model", data, fields)
        assert message in str(caught.value)
    with pytest.raises(DeltatuneError, match="uses the language-model head; head options do not apply"):
        open_session("no-such-model", classes, FIELDS, head={"pooling": "mean"})
    with pytest.raises(DeltatuneError, match="label words need a template with a blank"):
        open_session(str(place / "bert"), classes, {"words": FIELDS["words"]})


def test_a_recipe_trains_through_label_words_and_merges_them(place, tmp_path):
    """A stage that is merged leaves a plain language model, on which the next stage trains."""
    stage = {
        "data": {"source": str(place / "classes.jsonl"), "limit": 8},
        "task": FIELDS,
        "method": "LoRA(r=2)",
        "settings": {"max_steps": 1},
    }
    stages = [{"name": "words", **stage}, {"name": "again", **stage, "merge": False}]
    recipe = checked_recipe({"model": str(place / "gpt2"), "out": str(tmp_path / "run"), "stages": stages})
    run_recipe(recipe, "words")
    folders = sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir())
    assert [name.split("-")[-1] for name in folders if name[0].isdigit()] == ["words", "again"]
    wrong = {**stage, "head": {"pooling": "mean"}}
    with pytest.raises(DeltatuneError, match="head options do not apply"):
        run_recipe(checked_recipe({"model": str(place / "gpt2"), "out": str(tmp_path / "b"), **wrong}), "words")
