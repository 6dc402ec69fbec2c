"""Zero-shot prompts and label-word training: fitted, stored without tensors, opened again."""

import numpy as np
import pytest
import torch

from deltatune import DeltatuneError, parse
from deltatune.core.registry import prompting_registry, registry
from deltatune.prompting.choose_prompts import PromptOptions
from deltatune.prompting.prompt_cost import counted
from deltatune.prompting.prompt_method import PromptMethod, PromptRows, with_stored_task
from deltatune.prompting.zero_shot import Cloze, ZeroShot, as_prompt_method
from deltatune.tasks.classification import Classify
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.training import Settings
from deltatune.training.open_session import open_adapter, open_host
from deltatune.training.session import Session
from support import models

TASK = Classify(labels=("neg", "pos"), max_length=32)
ROWS = [
    {"text": text, "label": label}
    for text, label in (
        ("good great film", "pos"),
        ("bad awful plot", "neg"),
        ("the actor is great", "pos"),
        ("the plot was awful", "neg"),
    )
] * 3
OPTIONS = PromptOptions(words=("neg=bad", "pos=good"))


@pytest.fixture(params=["bert", "gpt2", "llama"])
def session(request, tmp_path):
    folder = tmp_path / "model"
    models.tiny(request.param, "lm").save_pretrained(folder)
    models.tiny_tokenizer().save_pretrained(folder)
    host, tokenizer = open_host(str(folder), "words")
    return Session(str(folder), host, tokenizer, TASK)


def test_prompting_methods_are_no_tuning_methods():
    assert {"ZeroShot", "Cloze"} <= prompting_registry().keys()
    assert not prompting_registry().keys() & registry().keys()
    method = parse("Cloze(LoRA(r=2), words='neg=bad, pos=good')")
    assert isinstance(method, PromptMethod)
    assert parse(repr(method)) == method


def test_a_prompt_is_stored_without_tensors_and_opened_again(session, tmp_path):
    with counted(session.host) as cost:
        fitted = ZeroShot().fit(session, PromptRows(ROWS), Settings(), OPTIONS)
    assert cost.passes == 0
    encoded = fitted.session.encode(ROWS)
    answers = fitted.session.predict(encoded)
    assert answers.shape == (12, 2)
    with_stored_task(fitted.session)
    session.host.save(session.name, tmp_path / "prompt")
    again = open_adapter(tmp_path / "prompt")
    assert isinstance(again.task, LabelWords)
    assert again.adapter.method == ZeroShot()
    assert again.adapter.count == 0
    assert np.array_equal(again.predict(ROWS), answers)


def test_cost_is_counted(session):
    fitted = ZeroShot().fit(session, PromptRows(ROWS), Settings(), OPTIONS)
    encoded = fitted.session.encode(ROWS)
    with counted(session.host) as cost:
        fitted.session.predict(encoded)
    assert cost.passes >= 12
    assert cost.tokens >= sum(len(row["input_ids"]) for row in encoded) // 2
    assert cost.seconds > 0


@pytest.mark.parametrize("session", ["llama"], indirect=True)
def test_padding_behind_a_cache_costs_nothing(session):
    model = session.host.model
    with torch.no_grad():
        cached = model(input_ids=torch.tensor([[4, 5, 6]] * 2), use_cache=True).past_key_values
        with counted(session.host) as cost:
            mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [1] * 7])
            model(input_ids=torch.tensor([[4, 5, 6, 0], [4, 5, 6, 7]]), attention_mask=mask, past_key_values=cached)
    assert (cost.passes, cost.tokens) == (2, 7)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("text", ["LoRA", "Full", "BitFit", "Prompt", "PTuning"])
def test_tuning_methods_learn_through_label_words(session, text):
    """All rows get the class whose word is less likely: whatever is trained can make it likelier."""
    end = "{mask}." if session.host.model.config.model_type == "bert" else "{mask}"
    method = as_prompt_method(
        {
            "LoRA": "Cloze(LoRA(r=2))",
            "Full": "Cloze(Full())",
            "BitFit": "Cloze(BitFit(missing='add'))",
            "Prompt": f"Prompt(template='{{2}} {{text}} {{soft:it was}} {end}')",
            "PTuning": f"PTuning(encoder='mlp', template='{{3}} {{text}} {{3}} {end}')",
        }[text]
    )
    assert isinstance(method, Cloze)
    zero = ZeroShot(template=f"{{text}} it was {end}").fit(session, PromptRows([]), Settings(), OPTIONS).session
    rare = TASK.labels[int(zero.predict(ROWS).mean(0).argmin())]
    zero.detach()
    rows = PromptRows([{**row, "label": rare} for row in ROWS], ROWS)
    settings = Settings(epochs=12, batch_size=6, learning_rate=3e-2, warmup=0.0)
    fitted = method.fit(session, rows, settings, OPTIONS)
    assert fitted.outcome is not None
    assert fitted.session.adapter.head is None
    first, last = fitted.outcome.history[0][1], fitted.outcome.history[-1][1]
    assert last < first - 0.02


def test_classes_that_say_nothing_need_words(session):
    numbers = Session(session.model, session.host, session.tokenizer, Classify(labels=("0", "1", "2")))
    with pytest.raises(DeltatuneError, match="say nothing in words"):
        ZeroShot().fit(numbers, PromptRows(ROWS), Settings())
    described = PromptOptions(describe="0=bad, 1=good, 2=great")
    assert ZeroShot().fit(numbers, PromptRows([]), Settings(), described).session.task.words == (
        ("bad",),
        ("good",),
        ("great",),
    )
