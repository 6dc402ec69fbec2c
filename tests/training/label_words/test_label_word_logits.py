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


def scores(
    kind, label_words_task, side="right", method="LoRA(r=2)", batch_size=64, given=None, randomized=False, **config
):
    model, tokenizer = reader(kind, side, **config)
    host = deltatune.Host(model)
    host.attach("a", deltatune.parse(method), head=False)
    if randomized:
        randomize_(host)
    return (
        torch.tensor(predict(host, "a", label_words_task, given or rows(), tokenizer, batch_size, "float32")),
        model,
        tokenizer,
    )


@pytest.mark.parametrize(("template", "side"), [*zip(TEMPLATES, ["right", "left", "left"], strict=True)])
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
    "LoReFT()": True,
    "LoReFT(first=2, last=2)": False,
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


def both_ways(kind, label_task, monkeypatch, given=None, **options):
    """Scores with the cache that a plan allows, and the plain way."""
    cached, _, _ = scores(kind, label_task, given=given or rows(MANY), **options)
    with monkeypatch.context() as context:
        plain(context)
        expected, _, _ = scores(kind, label_task, given=given or rows(MANY), **options)
    return cached, expected


TASKS = {
    "one token": task(words=(("film",), ("book",))),
    "text behind the blank": task("{text} It was {mask} in 1998", demonstrations=(DEMONSTRATIONS,)),
    "probability": task(scoring="probability", demonstrations=(DEMONSTRATIONS,)),
    "logit": task(scoring="logit", demonstrations=(DEMONSTRATIONS,)),
    "channel": task("{mask}: {text}", scoring="channel", demonstrations=(DEMONSTRATIONS,)),
    "templates": task(more_templates=("{text} {mask}",), demonstrations=(DEMONSTRATIONS, DEMONSTRATIONS[::-1])),
    "virtual": task("{2} {text} {soft:It was} {mask}", demonstrations=(DEMONSTRATIONS,)),
}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("kind", LEFT_TO_RIGHT)
def test_every_way_to_score_is_the_same_from_a_cache(kind, name, trials, monkeypatch):
    label_task, method = TASKS[name], "LoRA(r=2)"
    if name == "virtual":
        method = f"Prompt(length={len(label_task.templates[0].initial_ids(reader(kind)[1]))})"
    cached, expected = both_ways(kind, label_task, monkeypatch, method=method, randomized=True, batch_size=5)
    assert trials[0] is not None or name == "one token"
    torch.testing.assert_close(cached, expected, atol=1e-5, rtol=1e-5)


def test_starts_are_shared_where_that_saves_tokens():
    shared, other = list(range(300)), list(range(1000, 1200))
    prompts = [[*shared, 7], [*other, 1, 2], [*shared, 8, 9], [5, 6], [*other, 3], [*shared, 7, 7]]
    groups = prefix_cache.shared_starts(prompts)
    assert [(sorted(group.rows), group.length) for group in groups] == [([0, 2, 5], 300), ([1, 4], 200), ([3], 0)]
    same = prefix_cache.shared_starts([shared] * 3)
    assert same == [prefix_cache.SharedStart([0, 1, 2], 299)]
    assert prefix_cache.shared_starts([[1]] * 3) == [prefix_cache.SharedStart([0, 1, 2], 0)]
    nested = [list(range(n)) for n in range(1, 500)]  # each the start of the next
    assert sorted(row for group in prefix_cache.shared_starts(nested) for row in group.rows) == list(range(499))


def test_a_sliding_window_is_read_the_plain_way(monkeypatch, trials):
    label_task = task(demonstrations=(DEMONSTRATIONS,))
    calls = []
    kept = prefix_cache.cached_scores
    monkeypatch.setattr(prediction, "cached_scores", lambda *args: calls.append(kept(*args)) or calls[-1])
    cached, expected = both_ways("mistral", label_task, monkeypatch, sliding_window=8)
    assert calls == [None]
    torch.testing.assert_close(cached, expected, atol=1e-5, rtol=1e-5)


def test_a_cache_that_is_not_exact_is_not_used(monkeypatch, trials):
    label_task = task(demonstrations=(DEMONSTRATIONS,))
    values = prefix_cache.CachedReader._values
    monkeypatch.setattr(prefix_cache.CachedReader, "_values", lambda self, logits: values(self, logits) * 1.1)
    cached, expected = both_ways("llama", label_task, monkeypatch)
    assert trials[0] is not None
    torch.testing.assert_close(cached, expected, atol=1e-5, rtol=1e-5)
