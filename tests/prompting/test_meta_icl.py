"""MetaICL: which tokens are learned, other demonstrations in every epoch, several tasks, use on another one."""

import json

import numpy as np
import pytest
import torch

from deltatune import DeltatuneError, parse
from deltatune.core.delta import generator_for
from deltatune.data import read
from deltatune.data.mixture_data import mix
from deltatune.prompting.choose_prompts import PromptOptions
from deltatune.prompting.in_context.in_context_learning import ICL
from deltatune.prompting.in_context.meta_icl import Instances, MetaICL
from deltatune.prompting.prompt_method import PromptRows, with_stored_task
from deltatune.prompting.prompt_run import PromptJob, prepare, record_of, run
from deltatune.tasks.classification import Classify
from deltatune.tasks.generation import Generate
from deltatune.tasks.label_words.nearest_demonstrations import REDRAW
from deltatune.tasks.mixture import Mixture
from deltatune.tasks.task import IGNORED
from deltatune.training import Settings
from deltatune.training.open_session import open_adapter, open_host
from deltatune.training.session import Session
from support import models

PARTS = {
    "tone": Classify(labels=("bad", "good"), max_length=16),
    "thing": Classify(labels=("actor", "film", "plot"), text=("a", "b"), max_length=16),
}
MIXTURE = Mixture(PARTS)
TONE = [
    {"text": f"{word} {thing}", "label": "good" if word in ("good", "great") else "bad"}
    for word in ("good", "great", "bad", "awful")
    for thing in ("film", "plot", "actor")
]
THING = [
    {"a": f"{word} {thing}", "b": "it is this", "label": thing}
    for word in ("very", "the", "not", "this")
    for thing in ("film", "plot", "actor")
]
ROWS = MIXTURE.marked({"tone": TONE, "thing": THING})


@pytest.fixture
def session(tmp_path):
    folder = tmp_path / "model"
    models.tiny("llama", "lm").save_pretrained(folder)
    models.tiny_tokenizer().save_pretrained(folder)
    host, tokenizer = open_host(str(folder), "words")
    return Session(str(folder), host, tokenizer, MIXTURE, precision="float32")


@pytest.fixture
def attached(session):
    session.attach(parse("LoRA(r=2)"), 0, head=False)
    return session


def text_of(session, ids):
    return session.tokenizer.decode([token for token in ids if token != IGNORED])


# ---- what is learned


def test_only_the_label_behind_the_last_text_is_learned(attached):
    parts = MetaICL(shots=2, template="{text} is {mask}").instances(attached, PromptRows(ROWS), PromptOptions())
    assert list(parts) == ["tone", "thing"]
    for name, rows in (("tone", TONE), ("thing", THING)):
        for row, encoded in zip(rows, parts[name].first(seed=0), strict=True):
            learned = [i for i, label in enumerate(encoded["labels"]) if label != IGNORED]
            assert encoded["labels"][learned[0] :] == encoded["input_ids"][learned[0] :]
            assert learned == list(range(learned[0], len(encoded["input_ids"])))
            assert text_of(attached, encoded["labels"]) == row["label"]
            text = attached.tokenizer.decode(encoded["input_ids"])
            assert text.count(" is ") - (2 + 1 if name == "thing" else 0) == 3


def test_the_channel_form_learns_the_text_behind_its_label(attached):
    method = MetaICL(shots=2, scoring="channel", template="{text} is {mask}")
    parts = method.instances(attached, PromptRows(ROWS), PromptOptions())
    for row, encoded in zip(TONE, parts["tone"].first(seed=0), strict=True):
        assert text_of(attached, encoded["labels"]) == row["text"]
        text = attached.tokenizer.decode(encoded["input_ids"])
        assert text.endswith(f"is {row['label']} {row['text']}")
    thing = parts["thing"].first(seed=0)[0]
    assert text_of(attached, thing["labels"]) == "very film it is this"


def test_demonstrations_are_of_the_same_task_and_never_the_row_itself(attached):
    doubled = MIXTURE.marked({"tone": [*TONE, *TONE], "thing": THING})
    parts = MetaICL(shots=4, template="{text} is {mask}").instances(attached, PromptRows(doubled), PromptOptions())
    for row, encoded in zip(TONE, parts["tone"].first(seed=0), strict=False):
        text = attached.tokenizer.decode(encoded["input_ids"])
        assert text.count(row["text"]) == 1
        assert "it is this" not in text


def test_every_epoch_has_other_demonstrations_by_the_generator_alone(attached):
    parts = MetaICL(shots=3, template="{text} is {mask}").instances(attached, PromptRows(ROWS), PromptOptions())
    first, again = (parts["tone"].first(seed=0)[0] for _ in range(2))
    assert first["input_ids"] == again["input_ids"]
    drawn = {tuple(first[REDRAW](generator_for(0, f"draw.{epoch}.0"))["input_ids"]) for epoch in range(6)}
    assert len(drawn) > 3
    once, twice = (first[REDRAW](generator_for(0, "draw.1.0"))["input_ids"] for _ in range(2))
    assert once == twice


# ---- training


@pytest.mark.parametrize(
    "method",
    [
        "MetaICL(LoRA(r=4), shots=2)",
        pytest.param("MetaICL(Full(), shots=2, scoring='channel')", marks=pytest.mark.slow),
    ],
)
def test_a_mixture_is_learned_stored_and_opened_again(session, tmp_path, method):
    settings = Settings(epochs=4, batch_size=8, learning_rate=1e-2, warmup=0.0)
    fitted = parse(method).fit(session, PromptRows(ROWS, ROWS[:4]), settings)
    history = [loss for _, loss in fitted.outcome.history]
    assert np.mean(history[-3:]) < 0.95 * np.mean(history[:3])
    assert fitted.outcome.evaluations[-1][1]["loss"] > 0
    assert len(fitted.prompts) == 2
    known = fitted.session.adapter.trained_rows
    assert (len(known.train), len(known.validation), known.complete) == (24, 4, True)
    answers = fitted.session.predict(ROWS)
    with_stored_task(fitted.session)
    session.host.save(session.name, tmp_path / "adapter")
    again = open_adapter(tmp_path / "adapter")
    assert again.task == fitted.session.task
    assert again.host.model.__class__.__name__ == "LlamaForCausalLM"
    assert [name for name, _ in answers] == ["tone"] * 12 + ["thing"] * 12
    part = again.for_part("tone")
    decoded = part.task.decode(part.predict(TONE))
    assert {answer["label"] for answer in decoded} <= {"good", "bad"}


def test_the_adapter_reads_the_demonstrations_of_another_task(session, tmp_path):
    settings = Settings(max_steps=2, batch_size=8, learning_rate=1e-2)
    trained = parse("MetaICL(LoRA(r=2), shots=2)").fit(session, PromptRows(ROWS), settings)
    with_stored_task(trained.session)
    session.host.save(session.name, tmp_path / "meta")
    session.detach()
    held_out = Session(session.model, session.host, session.tokenizer, PARTS["tone"])
    method = parse(f"ICL(shots=2, adapter='{tmp_path / 'meta'}')")
    fitted = method.fit(held_out, PromptRows(TONE), Settings())
    assert fitted.session.adapter.count > 0
    assert fitted.session.predict(TONE).shape == (12, 2)


def test_an_adapter_that_learned_another_score_is_noted(session, tmp_path):
    trained = MetaICL(shots=2, scoring="channel").fit(session, PromptRows(ROWS), Settings(max_steps=1))
    with_stored_task(trained.session)
    session.host.save(session.name, tmp_path / "meta")
    session.detach()
    held_out = Session(session.model, session.host, session.tokenizer, PARTS["tone"])
    for scoring, notes in (("likelihood", 1), ("channel", 0)):
        method = ICL(shots=2, scoring=scoring, adapter=str(tmp_path / "meta"))
        fitted = method.fit(held_out, PromptRows(TONE), Settings())
        assert len([note for note in fitted.notes if "was trained for scoring='channel'" in note]) == notes
        held_out.detach()


# ---- what cannot be


def test_one_task_is_no_mixture(session):
    single = Session(session.model, session.host, session.tokenizer, PARTS["tone"])
    with pytest.raises(DeltatuneError, match="NAME=DATA"):
        MetaICL().fit(single, PromptRows(TONE), Settings())
    text = Mixture({"tone": PARTS["tone"], "texts": Generate(text=("a",), label="b")})
    with pytest.raises(DeltatuneError, match="part texts"):
        MetaICL().check_task(text)
    assert not session.host.adapters


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (MetaICL(shots=12), "part tone: 12 training rows can be shown, and more than 12 are needed"),
        (MetaICL(template="{other} {mask}"), "part tone: .*'other'"),
    ],
)
def test_errors_name_the_part_and_leave_no_adapter(session, method, message):
    with pytest.raises(DeltatuneError, match=message):
        method.fit(session, PromptRows(ROWS), Settings())
    assert not session.host.adapters


def test_classes_that_say_nothing_are_named_with_a_way_out(session):
    numbers = Mixture({"x": Classify(labels=("0", "1")), "tone": PARTS["tone"]})
    rows = numbers.marked({"x": [{"text": "film", "label": "0"}, {"text": "plot", "label": "1"}], "tone": TONE})
    own = Session(session.model, session.host, session.tokenizer, numbers)
    with pytest.raises(DeltatuneError, match="part x: the classes 0, 1 say nothing in words; write words"):
        MetaICL(shots=1).fit(own, PromptRows(rows), Settings())


def test_masked_models_are_refused(tmp_path):
    models.tiny("bert", "lm").save_pretrained(tmp_path / "bert")
    models.tiny_tokenizer().save_pretrained(tmp_path / "bert")
    host, tokenizer = open_host(str(tmp_path / "bert"), "words")
    with pytest.raises(DeltatuneError, match="left-to-right"):
        MetaICL().fit(Session("bert", host, tokenizer, MIXTURE), PromptRows(ROWS), Settings())
    assert not host.adapters


@pytest.mark.parametrize("text", ["MetaICL(shots=0)", "MetaICL(ZeroShot())", "MetaICL(max_length=2)"])
def test_options_that_cannot_be(text):
    with pytest.raises(DeltatuneError):
        parse(text)


def test_what_can_be_known_before_it_runs(session, monkeypatch):
    with pytest.raises(DeltatuneError, match="part thing: "):
        MetaICL(shots=2).check_session(session, PromptRows(ROWS[:12]))
    encoded = []
    monkeypatch.setattr(Instances, "encoded", lambda self, rows: encoded.append(len(rows)) or list(rows))
    MetaICL(shots=2).check_session(session, PromptRows(ROWS))
    assert encoded == [1, 1]  # of each part the first row
    assert not session.host.adapters


def test_parts_whose_rows_have_no_room_for_their_demonstrations_are_noted(session):
    settings = Settings(max_steps=1, batch_size=4)
    for method, expected in (
        ("MetaICL(LoRA(r=2), shots=2)", []),
        ("MetaICL(shots=4, max_length=24)", ["tone", "thing"]),
    ):
        fitted = parse(method).fit(session, PromptRows(ROWS), settings)
        assert [note.split(":")[0].removeprefix("part ") for note in fitted.notes] == expected
        assert all("no room for all of their demonstrations" in note for note in fitted.notes)
        session.detach()


def test_of_more_rows_so_many_are_drawn_from_a_file_that_is_sorted_by_class(attached):
    rows = sorted(TONE * 10, key=lambda row: row["label"])
    method, options = MetaICL(shots=2, rows=40), PromptOptions()
    prompted = PromptRows(MIXTURE.marked({"tone": rows, "thing": THING}))
    tone = method.instances(attached, prompted, options, 3)["tone"].rows
    assert len(tone) == 40
    assert 10 < sum(row["label"] == "good" for row in tone) < 30
    assert tone == method.instances(attached, prompted, options, 3)["tone"].rows
    assert tone != method.instances(attached, prompted, options, 4)["tone"].rows


def test_the_seed_alone_decides_the_training(session):
    settings = Settings(max_steps=2, batch_size=4, learning_rate=1e-2)
    losses = []
    for start in (1, 2):
        torch.manual_seed(start)
        fitted = parse("MetaICL(LoRA(r=2), shots=2)").fit(session, PromptRows(ROWS), settings)
        losses.append(fitted.outcome.history)
        session.detach()
    assert losses[0] == losses[1]


def test_a_mixture_of_files_becomes_a_run_folder(session, tmp_path):
    parts = {}
    for name, rows in (("tone", TONE), ("thing", THING)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
        parts[name] = read(file, text=PARTS[name].text, label="label")
    settings = Settings(max_steps=2, batch_size=4)
    job = PromptJob(session.model, mix(parts), "MetaICL(LoRA(r=2), shots=2)", settings=settings)
    ready = prepare(job)
    metrics = run(ready, tmp_path / "run", record_of(ready, "files"))
    assert {"tone.accuracy", "thing.accuracy"} <= metrics["validation"].keys()
    assert len(metrics["prompts"]) == 2
    again = open_adapter(tmp_path / "run")
    assert set(again.task.parts) == {"tone", "thing"}
    with pytest.raises(DeltatuneError, match="a prompt is for a single data set"):
        prepare(PromptJob(session.model, mix(parts), "ICL(shots=2)", settings=settings))
