"""What the tests of training share: rows of a task that tiny models can learn, and hosts with an adapter for it."""

import random

import torch

import deltatune
from deltatune.tasks import Classify, Head
from deltatune.training import Settings
from support import models

TASK = Classify(labels=("bad", "good"), max_length=64)
PLAIN = Settings(epochs=2, batch_size=16, precision="float32")
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def make_rows(count=70, seed=0):
    """Texts of different lengths that end with their label."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        label = draw.choice(TASK.labels)
        words = [draw.choice(models.WORDS[2:]) for _ in range(draw.randint(1, 12))]
        rows.append({"text": " ".join([*words, label]), "label": label})
    return rows


ROWS = make_rows()


def host_with(method="LoRA(r=4)", kind="bert", name="a", head_seed=0, dropout=0.1, model=None, **config):
    host = deltatune.Host(model or models.tiny(kind, **config))
    head = Head(TASK.head_config(host.model.config, dropout=dropout), seed=head_seed)
    host.attach(name, deltatune.parse(method), head=head)
    return host


def tensors(host, name="a"):
    return {key: value.clone() for key, value in host.adapters[name].tensors().items()}


def assert_same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], **(tolerance or {"rtol": 0, "atol": 0}), msg=key)
