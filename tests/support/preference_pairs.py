"""Preference pairs that a tiny model can learn, and hosts to learn them."""

import torch

import deltatune
from deltatune.tasks import Prefer
from deltatune.training import Settings
from support import models

WORDS = ["good", "bad", "great", "awful", "very", "not", "is", "was"]
TASK = Prefer(max_length=32, new_tokens=8)
SETTINGS = Settings(
    max_steps=20, batch_size=8, learning_rate=5e-2, precision="float32", schedule="constant", warmup=0.0
)


def pairs(count, start=0):
    """Rows whose better answer praises the film; each prompt is another one."""
    return [
        {"prompt": f"{WORDS[i % 8]} film {WORDS[i // 8 % 8]} {i}", "chosen": "great and good", "rejected": "awful"}
        for i in range(start, start + count)
    ]


def tokenizer():
    """The tiny tokenizer with an end token."""
    made = models.tiny_tokenizer()
    made.eos_token = made.sep_token
    return made


def hosted(kind, method, **config):
    """A host with one adapter, on a model whose values are always the same."""
    torch.manual_seed(0)
    host = deltatune.Host(models.tiny(kind, "lm", **config))
    if method is not None:
        host.attach("a", method)
    return host
