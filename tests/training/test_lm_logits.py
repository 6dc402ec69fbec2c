"""Logits where a label is: the same losses and likelihoods as the model's own, with prompts, prefixes and padding."""

import pytest
import torch
from torch.nn import functional as F

import deltatune
from deltatune.core.errors import DeltatuneError
from deltatune.tasks import Generate, Tag, collator_for
from deltatune.tasks.task import IGNORED
from deltatune.training import encode_for, predict
from deltatune.training.forward import text_states, token_logits
from deltatune.training.inference.likelihood import negative_log_likelihoods
from deltatune.training.task_model import TaskModel, labelled_outputs
from support import models
from support.language_models import LM_KINDS, generation_tokenizer, lm_host, make_rows, randomize_

TASK = Generate(max_length=48, new_tokens=12)


def batch_of(host, rows, side="right", task=TASK):
    encoded = encode_for(host, "a", task, rows, generation_tokenizer())
    collate = collator_for(host.model, generation_tokenizer(side), encoded[0])
    batch = collate(encoded.rows)
    if side == "left" and not host.model.config.is_encoder_decoder:  # as generate() does
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return encoded, batch


@pytest.mark.parametrize("kind", LM_KINDS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_loss_is_the_models_own(kind, side):
    if (kind, side) == ("bart", "left"):
        pytest.skip("positions that are learned move with padding on the left, and BART takes none")
    host = lm_host(kind)
    _, batch = batch_of(host, make_rows(), side)
    labels = batch["labels"]
    with torch.no_grad():
        ours = TaskModel(host, "a", TASK).eval()(**batch)["loss"]
        theirs = host.model(**batch).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert 0 < TASK.items(labels) < labels.numel()


@pytest.mark.parametrize("kind", LM_KINDS)
def test_gradients_are_the_models_own(kind):
    host = lm_host(kind)
    _, batch = batch_of(host, make_rows(5))
    found = []
    for compute in (lambda: TaskModel(host, "a", TASK)(**batch)["loss"], lambda: host.model(**batch).loss):
        host.model.train()
        host.model.zero_grad()
        compute().backward()
        found.append([p.grad.clone() for _, p in host.trainable("a")])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        assert one.abs().max() > 0


@pytest.mark.parametrize("kind", LM_KINDS)
@pytest.mark.parametrize("method", ["Prompt(length=3)", "PTuning(length=3)", "Prefix(length=3)", "LoRA(r=2)"])
def test_logits_are_picked_where_the_labels_are(kind, method):
    """With prompts the states are longer than the labels."""
    host = lm_host(kind, method)
    for rows, side in ((make_rows(1), "right"), (make_rows(7), "right"), (make_rows(7), "left")):
        if (kind, side) == ("bart", "left"):
            continue
        _, batch = batch_of(host, rows, side)
        labels = batch.pop("labels")
        with torch.no_grad():
            outputs, there = labelled_outputs(host, batch, labels)
            wanted = full_logits(host, batch, labels)
        assert there.tolist() == labels[labels != IGNORED].tolist()
        torch.testing.assert_close(token_logits(outputs), wanted, rtol=1e-4, atol=1e-4)


def full_logits(host, batch, labels):
    """The same logits from a plain forward over all tokens, row by row without padding."""
    found = []
    for row in range(len(labels)):
        real = batch["attention_mask"][row] == 1
        alone = {name: value[row][real][None] for name, value in batch.items() if name != "position_ids"}
        if host.model.config.is_encoder_decoder:
            own = labels[row][labels[row] != IGNORED]
            start = torch.tensor([host.model.config.decoder_start_token_id])
            out = host.model(**alone, decoder_input_ids=torch.cat([start, own[:-1]])[None]).logits[0]
            found.append(out)
        else:
            out = host.model(**alone).logits[0][-int(real.sum()) :]  # behind the prompt
            found.append(out[:-1][labels[row][real][1:] != IGNORED])
    return torch.cat(found)


@pytest.mark.parametrize("kind", LM_KINDS)
def test_how_likely_answers_are_is_the_sum_over_their_tokens(kind):
    host = lm_host(kind)
    encoded, batch = batch_of(host, make_rows(9))
    labels = batch.pop("labels")
    collate = collator_for(host.model, generation_tokenizer(), encoded[0])
    with torch.no_grad():
        found = negative_log_likelihoods(host, TASK, encoded, collate, False)
        logits = full_logits(host, batch, labels)
    each = F.cross_entropy(logits, labels[labels != IGNORED], reduction="none")
    sizes = (labels != IGNORED).sum(1).tolist()
    for own, losses, size, right in zip(
        found,
        each.split(sizes),
        sizes,
        (logits.argmax(-1) == labels[labels != IGNORED]).split(sizes),
        strict=True,
    ):
        assert own[0] == pytest.approx(float(losses.sum()), rel=1e-5)
        assert own[1:].tolist() == [size, int(right.sum())]


def test_a_model_without_words_is_refused():
    host = deltatune.Host(models.tiny("llama"))
    host.attach("a", deltatune.LoRA())
    _, batch = batch_of(host, make_rows(2))
    with pytest.raises(DeltatuneError, match=r"has no language-model head.*answers='text'"):
        TaskModel(host, "a", TASK)(**batch)


def test_after_an_error_the_model_reads_all_states_again():
    host = lm_host("llama")
    _, batch = batch_of(host, make_rows(2))
    labels = batch.pop("labels")
    with torch.no_grad():
        before = host.model(**batch).logits
        with pytest.raises(IndexError):
            labelled_outputs(host, batch, labels[:1])
        torch.testing.assert_close(host.model(**batch).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_states_of_the_text_with_prompts_of_different_lengths(kind, side):
    """Rows of one batch with prompts of 2, 5 and no tokens: each token's state is that of the row alone."""
    if (kind, side) == ("bert", "left"):
        pytest.skip("positions that are learned move with padding on the left")
    host = deltatune.Host(models.tiny(kind, dropout=False))
    for name, length in (("a", 2), ("b", 5)):
        host.attach(name, deltatune.Prompt(length=length), head=False)
        randomize_(host, name, 0.5)
    task, tokenizer = Tag(tags=("x", "y")), models.tiny_tokenizer()
    tokenizer.padding_side = side
    rows = task.encode([{"tokens": row["input"].split()} for row in make_rows(3, 4)], tokenizer, labelled=False)
    batch = collator_for(host.model, tokenizer, rows[0])(rows.rows)
    if kind == "t5":
        batch = {**batch, "decoder_input_ids": batch["input_ids"], "decoder_attention_mask": batch["attention_mask"]}
    route = ["a", None, "b"]
    with torch.no_grad():
        host.use(route)
        states = text_states(host, host.model(**batch).last_hidden_state, batch)
        for row, name in enumerate(route):
            host.use(name)
            real = batch["attention_mask"][row] == 1
            alone = {key: value[row][real][None] for key, value in batch.items()}
            own = text_states(host, host.model(**alone).last_hidden_state, alone)
            torch.testing.assert_close(states[row][real], own[0], rtol=1e-4, atol=1e-4)


def test_prediction_leaves_a_stacked_route_as_it_was():
    host = lm_host("llama")
    host.attach("b", deltatune.LoRA(r=2), head=False)
    host.use({"b": 1.0, "a": 0.5}, stacked=True)
    predict(host, "a", TASK, make_rows(1), generation_tokenizer(), precision="float32")
    assert (dict(host.route.uniform), host.route.order) == ({"b": 1.0, "a": 0.5}, ("b", "a"))
