"""Tiny language models with adapters, a tokenizer and rows, for tests of generation."""

import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import deltatune
from support import models

LM_KINDS = ["llama", "gpt2", "t5", "bart"]


def generation_tokenizer(side="right"):
    tokenizer = models.tiny_tokenizer()
    tokenizer.eos_token = "[SEP]"
    tokenizer.padding_side = side
    return tokenizer


def make_rows(count=12, seed=0, longest=9):
    """Inputs and answers of different lengths; an answer is the first words in reverse order."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [draw.choice(models.WORDS) for _ in range(draw.randint(1, longest))]
        rows.append({"input": " ".join(words), "output": " ".join(reversed(words[:3]))})
    return rows


def lm_host(kind, method="LoRA(r=4)", randomize=True, **config):
    """A host of a tiny language model without dropout, with an adapter "a" whose values are random."""
    host = deltatune.Host(models.tiny(kind, "lm", dropout=False, **config))
    host.attach("a", deltatune.parse(method), head=False)
    if randomize:
        randomize_(host)
    return host


@torch.no_grad()
def randomize_(host, name="a", std=0.1):
    generator = torch.Generator().manual_seed(1)
    for _, parameter in host.trainable(name):
        parameter.add_(std * torch.randn(parameter.shape, generator=generator))


def wide_llama(folder=None):
    """A tiny Llama whose rows are whole blocks, which bitsandbytes' kernels on CPUs need; written to a folder."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=101, max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    if folder is not None:
        model.save_pretrained(folder)
    return model
