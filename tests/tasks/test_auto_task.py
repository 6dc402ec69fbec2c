"""Task inference: fields that suit the data, the model and the tokenizer."""

from dataclasses import replace

import numpy as np
import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.data import Data
from deltatune.tasks import Classify, ExtractiveQA, Generate, LanguageModel, MultiLabel, Tag
from deltatune.tasks.auto_task import shorter, task_for
from support import models
from support.chats import chat_tokenizer
from support.language_models import generation_tokenizer


def data(kind, rows, text, label="label", labels=()):
    return Data("x", "x", text, label, kind, labels, rows, rows, rows)


def chosen(kind, rows, text, label="label", labels=(), tokenizer=None, model="bert", **over):
    inferred = task_for(
        data(kind, rows, text, label, labels), models.tiny(model).config, tokenizer or generation_tokenizer(), over
    )
    assert inferred.task.label_kind == kind
    return inferred


TAGGED = [{"tokens": ["a"], "tags": ["O"]}]
WRITTEN = [{"instruction": "a", "input": "b", "output": "good film " * 4} for _ in range(20)]


@pytest.mark.parametrize(("model", "piece"), [("bert", "first"), ("gpt2", "last"), ("llama", "last"), ("t5", "last")])
def test_tags_are_read_where_the_word_is_known(model, piece):
    inferred = chosen("tags", TAGGED, ("tokens",), "tags", ("O", "B-x"), model=model)
    assert inferred.task == Tag(tags=("O", "B-x"), piece=piece)


def test_classes_numbers_sets_and_documents():
    rows = [{"text": "a", "label": "x"}]
    assert chosen("classes", rows, ("text",), labels=("x", "y")).task == Classify(labels=("x", "y"))
    numbers = [{"text": "a", "label": label} for label in ("10", 20, 60.0)]
    inferred = chosen("number", numbers, ("text",)).task
    assert (inferred.center, inferred.scale) == (30.0, pytest.approx(np.std([10, 20, 60]), rel=1e-5))
    assert chosen("number", numbers[:1], ("text",)).task == Classify(center=10.0), "what never varies has no scale"
    assert chosen("many", rows, ("text",), labels=("x", "y")).task == MultiLabel(labels=("x", "y"))
    assert chosen("raw", rows, ("text",), "").task == LanguageModel()


def test_a_published_set_has_its_own_metric():
    rows = [{"text": "a", "label": "x"}]
    cola = replace(data("classes", rows, ("text",), labels=("acceptable", "unacceptable")), metric="matthews")
    inferred = task_for(cola, models.tiny("bert").config, generation_tokenizer())
    assert inferred.task.metric == "matthews"
    assert inferred.notes == ("x is scored by matthews, its published metric; --metric chooses another one",)
    chosen_metric = task_for(cola, models.tiny("bert").config, generation_tokenizer(), {"metric": "f1"})
    assert (chosen_metric.task.metric, chosen_metric.notes) == ("f1", ())
    as_text = replace(data("raw", rows, ("text",), ""), metric="matthews")  # read as another kind of task
    assert task_for(as_text, models.tiny("bert").config, generation_tokenizer()).task.metric == "perplexity"


def test_positive_class_without_a_rule_is_said():
    rows = [{"text": "a", "label": "pop"}]
    inferred = chosen("classes", rows, ("text",), labels=("hip hop", "pop"))
    assert inferred.task.positive == "pop"
    assert "are of 'pop', the last of the two classes" in inferred.notes[0]
    assert "--positive 'hip hop' chooses the other" in inferred.notes[0]
    assert not chosen("classes", rows, ("text",), labels=("hip hop", "pop"), positive="hip hop").notes
    assert not chosen("classes", rows, ("text",), labels=("ham", "spam")).notes


def test_spans_may_be_none_where_some_rows_have_none():
    rows = [{"question": "a", "context": "b", "answers": [{"text": "b", "start": 0}]}]
    text = ("question", "context")
    assert chosen("span", rows, text, "answers").task == ExtractiveQA()
    assert chosen("span", [*rows, {**rows[0], "answers": []}], text, "answers").task == ExtractiveQA(abstains=True)
    assert chosen("span", rows, text, "answers", max_length=32).task == ExtractiveQA(max_length=32, stride=10)
    assert chosen("span", rows, text, "answers", max_length=512).task.stride == 128


@pytest.mark.parametrize(
    ("text", "template", "prompt"),
    [
        (("input",), "chatml", "plain"),
        (("instruction", "input"), "chatml", "chat"),
        (("instruction", "input"), None, "alpaca"),
    ],
)
def test_prompts_follow_the_columns(text, template, prompt):
    tokenizer = chat_tokenizer(template) if template else generation_tokenizer()
    inferred = chosen("text", WRITTEN, text, "output", tokenizer=tokenizer, model="llama")
    assert inferred.task.prompt == prompt
    assert any(f"the prompt is {prompt}" in note for note in inferred.notes)


def test_the_length_of_answers_is_that_of_the_training_answers():
    inferred = chosen("text", WRITTEN, ("input",), "output", model="llama")
    assert inferred.task == Generate(text=("input",), new_tokens=16)
    assert "answers may have 16 tokens: 100% of the training answers have fewer" in inferred.notes
    long = [{**row, "output": "film " * 400} for row in WRITTEN]
    inferred = chosen("text", long, ("input",), "output", model="llama")
    assert inferred.task.new_tokens == 256
    assert "answers may have 256 tokens: 0% of the training answers have fewer" in inferred.notes
    inferred = chosen("text", WRITTEN, ("input",), "output", model="llama", max_length=20)
    assert (inferred.task.max_length, inferred.task.new_tokens) == (20, 10)
    inferred = chosen("text", WRITTEN, ("input",), "output", model="llama", new_tokens=600)
    assert (inferred.task.max_length, inferred.task.new_tokens) == (1200, 600)


def test_texts_without_spaces_are_counted_in_characters_and_several_references_by_bleu():
    rows = [{"input": "a", "output": "酒店的房间很不错", "references": ["酒店", "房间"]}] * 3
    task = chosen("text", rows, ("input",), "output", tokenizer=chat_tokenizer(), model="llama").task
    assert (task.characters, task.metric) == (True, "bleu")
    assert chosen("text", WRITTEN, ("input",), "output", model="llama").task.characters is False


def test_conversations_are_chats():
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "film"}]}] * 3
    task = chosen("text", rows, ("messages",), "messages", tokenizer=chat_tokenizer(), model="llama").task
    assert (task.text, task.prompt) == (("messages",), "chat")


def test_fields_of_another_task_are_refused():
    with pytest.raises(DeltatuneError, match="Tag has no 'beams'"):
        chosen("tags", TAGGED, ("tokens",), "tags", ("O", "B-x"), beams=4)
    assert chosen("tags", TAGGED, ("tokens",), "tags", ("O", "B-x"), beams=None).task


@pytest.mark.parametrize("positions", [2, 3, 8, 64, 128])
@pytest.mark.parametrize(
    "task",
    [ExtractiveQA(), Generate(), LanguageModel(), Tag(tags=("a", "b")), Generate(max_length=2048, new_tokens=1000)],
)
def test_tasks_become_short_enough_for_a_model(task, positions):
    inferred = shorter(task, positions)
    assert inferred.max_length <= positions
    assert shorter(task, None) == shorter(task, 10_000) == task
