"""Tiny language models with tokenizers of every kind, and their label-word scores computed word by word, by hand."""

import copy
import json
from functools import cache

import torch
from transformers import RobertaTokenizer

from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.prompts.templates import Template
from support import models, vocabularies

KINDS = ["bert", "roberta", "gpt2", "llama", "t5", "bart"]
LEFT_TO_RIGHT = ["gpt2", "llama"]
TOKENIZERS = {
    "bert": "wordpiece",
    "roberta": "roberta",
    "gpt2": "bytes",
    "llama": "llama",
    "mistral": "llama",
    "t5": "t5",
    "bart": "roberta",
}
TEXTS = ["The reader liked the film.", "Nobody writes", "A writer forgot the old theatre in 1998, again and again"]


@cache
def _tokenizer(name):
    if name != "roberta":
        tokenizer = vocabularies.tokenizer(name)
        if tokenizer.eos_token is None and name == "bytes":
            tokenizer.eos_token = "<|pad|>"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer
    trained = vocabularies.byte_level().backend_tokenizer
    vocab = {piece: i + 5 for piece, i in trained.get_vocab().items() if not piece.startswith("<|")}
    for i, special in enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>")):
        vocab[special] = i
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    return RobertaTokenizer(vocab=vocab, merges=merges)


def reader(kind, side="right", **config):
    """A tiny language model without dropout, and a fresh tokenizer for it that pads on a side."""
    tokenizer = copy.deepcopy(_tokenizer(TOKENIZERS[kind]))
    tokenizer.padding_side = side
    model = models.tiny(kind, "lm", dropout=False, **config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model.resize_token_embeddings(max(tokenizer.get_vocab().values()) + 3, mean_resizing=False)
        for parameter in model.parameters():  # new rows that differ
            if parameter.dim() == 2:
                parameter.data.add_(0.05 * torch.randn_like(parameter))
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


def task(template="{text} It was {mask}", words=(("film", "old film"), ("12 books",)), **fields):
    return LabelWords(labels=("pos", "neg"), template=template, words=words, max_length=100, **fields)


def by_hand(kind, model, tokenizer, label_words, row, lead="", tail=""):
    """Scores of the classes of one row (C,): the words one by one, in the tokens of the filled text."""
    scores = []
    for of_class in label_words.words:
        each = [_word(kind, model, tokenizer, label_words.template, row, word, lead, tail) for word in of_class]
        scores.append(_class_score(label_words.scoring, each))
    return torch.stack(scores)


def _class_score(scoring, words):
    if scoring == "probability":
        return torch.stack([likelihoods.sum().exp() for likelihoods, _ in words]).sum().log()
    values = [logits if scoring == "logit" else likelihoods for likelihoods, logits in words]
    return torch.stack([value.mean() for value in values]).mean()


@torch.no_grad()
def _word(kind, model, tokenizer, template, row, word, lead, tail):
    """Log-likelihoods and logits of the tokens that are scored."""
    filled = lead + Template(template).fill(row, word) + tail
    start = len(lead) + len(Template(template).fill(row, "\0").split("\0")[0])
    encoding = tokenizer(filled, return_offsets_mapping=True)
    ids = encoding["input_ids"]
    inside = [i for i, (a, b) in enumerate(encoding["offset_mapping"]) if a < b and a < start + len(word) and b > start]
    first, last = inside[0], inside[-1] + 1
    target = ids[first:last]
    if kind in LEFT_TO_RIGHT:
        scored = list(range(first, len(ids)))
        logits = model(torch.tensor([ids])).logits[0]
        return _values(logits[[i - 1 for i in scored]], [ids[i] for i in scored])
    if kind in ("bert", "roberta"):
        masked = [tokenizer.mask_token_id if first <= i < last else id for i, id in enumerate(ids)]
        return _values(model(torch.tensor([masked])).logits[0, first:last], target)
    blank = tokenizer.mask_token_id if kind == "bart" else tokenizer.convert_tokens_to_ids("<extra_id_0>")
    text = [*ids[:first], blank, *ids[last:]]
    begun = ids[:first] if kind == "bart" else [blank]
    decoder = [model.config.decoder_start_token_id, *begun, *target]
    logits = model(torch.tensor([text]), decoder_input_ids=torch.tensor([decoder])).logits[0]
    return _values(logits[len(begun) : len(begun) + len(target)], target)


def _values(logits, ids):
    index = torch.arange(len(ids))
    return logits.log_softmax(-1)[index, torch.tensor(ids)], logits[index, torch.tensor(ids)]


def rows(texts=TEXTS):
    return [{"text": text, "label": ("pos", "neg")[i % 2]} for i, text in enumerate(texts)]
