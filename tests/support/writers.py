"""What the tests of written text share: tiny models that write, rows for them, and adapters that do something."""

import random

import torch

import deltatune
from support import models

WRITERS = ["llama", "gpt2", "t5", "bart"]


def writing_tokenizer(side="right"):
    tokenizer = models.tiny_tokenizer()
    tokenizer.eos_token = "[SEP]"
    tokenizer.padding_side = side
    return tokenizer


def make_rows(count=12, seed=0, longest=9):
    """Inputs of different lengths, answers of different lengths: the first words, backwards."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [draw.choice(models.WORDS) for _ in range(draw.randint(1, longest))]
        rows.append({"input": " ".join(words), "output": " ".join(reversed(words[:3]))})
    return rows


def writer(kind, method="LoRA(r=4)", awake=True, **config):
    """A host of a tiny language model without dropout, with an adapter "a" that is no longer zero."""
    host = deltatune.Host(models.tiny(kind, "lm", dropout=False, **config))
    host.attach("a", deltatune.parse(method), head=False)
    if awake:
        wake_(host)
    return host


@torch.no_grad()
def wake_(host, name="a", std=0.1):
    generator = torch.Generator().manual_seed(1)
    for _, parameter in host.trainable(name):
        parameter.add_(std * torch.randn(parameter.shape, generator=generator))
