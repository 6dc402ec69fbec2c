"""Label-word scores equal those of each word alone, read off the filled text by hand."""

import pytest
import torch

import deltatune
from deltatune.training.inference import prediction, prefix_cache
from deltatune.training.inference.prediction import predict
from support import label_words
from support.label_words import KINDS, LEFT_TO_RIGHT, by_hand, reader, rows, task
from support.language_models import randomize_

TEMPLATES = ["{text} It was {mask}.", "{text}? ({mask}), again", "The film: {text}\nIt was\n\n{mask} in 1998"]


def scores(kind, label_words_task, side="right", method="LoRA(r=2)", batch_size=64, given=None, randomized=False):
    model, tokenizer = reader(kind, side)
    host = deltatune.Host(model)
    host.attach("a", deltatune.parse(method), head=False)
    if randomized:
        randomize_(host)
    return (
        torch.tensor(predict(host, "a", label_words_task, given or rows(), tokenizer, batch_size, "float32")),
        model,
        tokenizer,
    )


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_those_of_each_word_by_hand(kind, template, side):
    label_task = task(template)
    found, model, tokenizer = scores(kind, label_task, side)
    expected = torch.stack([by_hand(kind, model, tokenizer, label_task, row) for row in rows()])
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    alone, _, _ = scores(kind, label_task, side, batch_size=1)
    torch.testing.assert_close(found, alone, atol=2e-5, rtol=1e-5)


DEMONSTRATIONS = (
    "Nobody forgot the plot. It was 12 books",
    "The reader was reading. It was old film",
    "A film. It was film",
)
MANY = [
    f"{text} {more}" for text in label_words.TEXTS for more in ("", "yesterday", "The other actor liked it", "in 1998")
]


@pytest.fixture
def trials(monkeypatch):
    """The plans that predictions made: groups of shared starts, or None for the plain way."""
    made = []
    plan = prefix_cache.plan
    monkeypatch.setattr(prediction, "plan", lambda *args: made.append(plan(*args)) or made[-1])
    return made


def plain(monkeypatch):
    monkeypatch.setattr(prediction, "plan", lambda *args: None)


METHODS = {
    "LoRA(r=2)": True,
    "Prefix(length=3)": True,
    "Prefix(length=3, shift_positions=False)": True,
    "Prompt(length=4)": True,
    "PTuning(length=3) + LoRA(r=2)": True,
    "Bottleneck(size=4)": True,
    "IA3()": True,
    "Full()": True,
    "Prefix(length=3, place='infix')": False,
    "LoReFT()": False,
    "UniPELT()": False,
    "IDPG(length=2)": False,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", LEFT_TO_RIGHT)
def test_prompts_that_begin_alike_are_read_once_with_equal_scores(kind, method, trials, monkeypatch):
    label_task = task("{text} It was {mask}.", demonstrations=(DEMONSTRATIONS,))
    cached, _, _ = scores(kind, label_task, "left", method, given=rows(MANY), randomized=True)
    assert (trials[0] is not None) == METHODS[method]
    if METHODS[method]:
        assert max(group.length for group in trials[0]) > 20
    plain(monkeypatch)
    expected, _, _ = scores(kind, label_task, "left", method, given=rows(MANY), randomized=True)
    torch.testing.assert_close(cached, expected, atol=1e-5, rtol=1e-5)
