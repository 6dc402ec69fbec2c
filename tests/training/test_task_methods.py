"""Every method on every kind of task: trained for a few steps, scored, saved and loaded, or refused in words."""

import random

import pytest

import deltatune
from deltatune.core.method import REGISTRY
from deltatune.tasks import Classify, ExtractiveQA, Generate, LanguageModel, MultiLabel, Tag
from deltatune.training import Settings, predict, train
from support import models

DRAW = random.Random(0)
WORDS = models.WORDS[2:]


def words(least, most):
    return [DRAW.choice(WORDS) for _ in range(DRAW.randint(least, most))]


def span_row():
    context = words(6, 14)
    return {
        "question": " ".join(words(2, 3)),
        "context": " ".join(context),
        "answers": [{"text": context[0], "start": 0}],
    }


def tag_row():
    tokens = words(2, 8)
    return {"tokens": tokens, "tags": ["B-x" if word == WORDS[0] else "O" for word in tokens]}


def text_row():
    return {"text": " ".join(words(3, 9)), "label": DRAW.choice("ab"), "some": DRAW.choice([["a"], ["a", "b"], []])}


def written_row():
    given = words(2, 6)
    return {"input": " ".join(given), "output": given[0]}


CASES = {
    "classify": (Classify(labels=("a", "b"), max_length=32), text_row, ("bert", None)),
    "many": (MultiLabel(labels=("a", "b"), label="some", max_length=32), text_row, ("bert", None)),
    "tag": (Tag(tags=("O", "B-x"), max_length=32), tag_row, ("bert", None)),
    "span": (ExtractiveQA(max_length=32, stride=8), span_row, ("bert", None)),
    "generate": (Generate(max_length=32, new_tokens=4), written_row, ("llama", "lm")),
    "sequence": (Generate(max_length=32, new_tokens=4), written_row, ("t5", "lm")),
    "lm": (LanguageModel(max_length=16), text_row, ("gpt2", "lm")),
}
ROWS = {name: [make() for _ in range(12)] for name, (_, make, _) in CASES.items()}
METHODS = sorted(set(REGISTRY) - {"AdapterFusion"})  # it is made of trained adapters
"""By name, each with its defaults; sizes are made small where there are any."""
HEADLESS = {"Probe"}
"""Methods that train nothing but a head."""
NO_BIAS = {("BitFit", "generate"), ("BitFit", "sequence")}
"""Llama and T5 have no biases."""
NO_PROMPT = {("IDPG", "lm")}
"""A text that a decoder learns whole has no prompt to make virtual tokens of."""


def tokenizer():
    found = models.tiny_tokenizer()
    found.eos_token, found.bos_token = "[SEP]", "[CLS]"
    return found


def small(name):
    method = deltatune.parse(f"{name}()")
    size = method.size_field
    return method if size is None else deltatune.parse(f"{name}({size}={16 if size == 'dimension' else 4})")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_every_task(tmp_path, name, case):
    task, _, (kind, head) = CASES[case]
    host = deltatune.Host(models.tiny(kind, head))
    own = task.make_head(host.model.config)
    method = small(name)
    if (name, case) in NO_BIAS:
        with pytest.raises(deltatune.DeltatuneError, match="no biases"):
            host.attach("a", method, head=False)
        return
    host.attach("a", method, head=False if own is None else own)
    settings = Settings(max_steps=4, batch_size=6, learning_rate=1e-2, precision="float32", schedule="constant")
    if (name, case) in NO_PROMPT:
        with pytest.raises(deltatune.DeltatuneError, match="have no prompt"):
            train(host, "a", task, ROWS[case], None, tokenizer(), settings)
        return
    if name in HEADLESS and own is None:
        with pytest.raises(deltatune.DeltatuneError, match="nothing to train"):
            train(host, "a", task, ROWS[case], None, tokenizer(), settings)
        return
    outcome = train(host, "a", task, ROWS[case], ROWS[case][:4], tokenizer(), settings)
    scores = outcome.evaluations[-1][1]
    assert task.metric in scores
    before = predict(host, "a", task, ROWS[case][:4], tokenizer())
    host.save("a", tmp_path / "a")
    host.detach("a")
    host.load(tmp_path / "a", name="b")
    after = predict(host, "b", task, ROWS[case][:4], tokenizer())
    assert task.decode(after) == task.decode(before)
