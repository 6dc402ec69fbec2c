"""Never a silent standstill: what does not learn stops training, and says why."""

import dataclasses

import pytest
import torch

import deltatune
from deltatune.core.errors import DeltatuneError
from deltatune.tasks import Generate, Head
from deltatune.training import Settings, train
from deltatune.training.training_loop.gradient_check import unread_tensors
from support import models
from support.runs import PLAIN, ROWS, TASK, assert_same, host_with, tensors


@pytest.fixture
def tokenizer():
    return models.tiny_tokenizer()


def test_a_frozen_tensor_stops_training(tokenizer):
    host = host_with("LoRA(r=2, sites='*.attn.o')")  # no sites that share their input: A and B are its own alone
    delta = next(delta for _, _, delta in host.adapters["a"].entries())
    delta.register_forward_hook(lambda module, args, output: output.detach())
    delta.add = lambda h, x, weight=1.0: h + weight * delta(x, h)
    with pytest.raises(
        DeltatuneError, match=r"(?s)no gradient in the first step for 2 of \d+ tensors:.*gradient checkpointing"
    ):
        train(host, "a", TASK, ROWS, None, tokenizer, PLAIN)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpointing_that_loses_the_gradient_stops_training(tokenizer):
    host = host_with()
    host.model.activation_checkpointing_enable({"use_reentrant": True})
    host.model.embeddings.word_embeddings._forward_hooks.clear()  # older transformers do not make inputs require grad
    with pytest.raises(DeltatuneError, match=r"(?s)no gradient in the first step for 8 of 10 tensors:.*use_reentrant"):
        train(host, "a", TASK, ROWS, None, tokenizer, PLAIN)
    safe = host_with()
    safe.model.activation_checkpointing_enable({"use_reentrant": False})
    plain = host_with()
    for each in (safe, plain):
        train(each, "a", TASK, ROWS, None, tokenizer, PLAIN)
    assert_same(tensors(safe), tensors(plain), rtol=1e-5, atol=1e-6)


def test_a_tensor_with_zero_gradients_stops_training_in_time(tokenizer):
    host = host_with("BitFit()", dropout=0.0)
    seen = []
    with torch.no_grad():
        host.adapters["a"].head.out.weight.zero_()
    host.adapters["a"].head.out.weight.register_hook(torch.zeros_like)
    with pytest.raises(DeltatuneError, match=r"(?s)after 3 steps.*had only zero gradients.*deltas\."):
        train(host, "a", TASK, ROWS, None, tokenizer, PLAIN, on_step=lambda *step: seen.append(step))
    assert len(seen) == 2  # in the first step LoRA's A cannot move either


def test_a_tensor_the_optimiser_lacks_stops_training(tokenizer, monkeypatch):
    step = torch.optim.AdamW.step

    def forgetful(self, *args, **kwargs):
        before = self.param_groups[0]["params"][0].detach().clone()
        result = step(self, *args, **kwargs)
        self.param_groups[0]["params"][0].data.copy_(before)
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", forgetful)
    seen = []
    with pytest.raises(DeltatuneError, match=r"after 2 steps\n1 tensors had gradients but did not move"):
        train(host_with(), "a", TASK, ROWS, None, tokenizer, PLAIN, on_step=lambda *step: seen.append(step))
    assert len(seen) == 1  # in the first step A has no gradient
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    with pytest.raises(DeltatuneError, match=r"after the first step\n6 tensors had gradients but did not move"):
        train(host_with(), "a", TASK, ROWS, None, tokenizer, PLAIN)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("method", "head"), [("LoRA(r=4)", False), ("LoRA(r=4)", True), ("Probe()", True)])
def test_a_short_run_in_which_nothing_moves_is_an_error(method, head, accumulation, tokenizer, tmp_path):
    host = host_with(method, dropout=0.0)
    for tensor in (p for n, p in host.trainable("a") if head or not n.startswith("head")):
        tensor.register_hook(torch.zeros_like)
    if not head:
        host.adapters["a"].head.requires_grad_(False)
    settings = dataclasses.replace(PLAIN, max_steps=1, accumulation=accumulation)
    with pytest.raises(DeltatuneError, match=r"'a' was not trained: none of its \d+ trainable tensors .* in 1 step"):
        train(host, "a", TASK, ROWS, None, tokenizer, settings, tmp_path)
    assert not list(tmp_path.glob("checkpoint-*"))  # the same command must not take it for finished


@pytest.mark.parametrize("steps", [1, 6])
def test_a_run_whose_rate_vanishes_in_rounding_is_an_error(steps, tokenizer, tmp_path):
    host = deltatune.Host(models.tiny("llama", "lm"))
    host.attach("a", deltatune.parse("IA3()"), head=False)
    tokenizer.eos_token = "[SEP]"
    rows = [{"input": "the film", "output": "good"}] * 8
    settings = dataclasses.replace(PLAIN, max_steps=steps, learning_rate=1e-12, checkpoint_every=4)
    for _ in range(2):  # resumed as well
        with pytest.raises(DeltatuneError, match=r"was not trained: .*\n.*at most 1e-12\) that vanishes"):
            train(host, "a", Generate(max_length=32, new_tokens=8), rows, None, tokenizer, settings, tmp_path)


def test_a_tiny_rate_is_no_standstill(tokenizer):
    train(host_with("Full()"), "a", TASK, ROWS, None, tokenizer, dataclasses.replace(PLAIN, learning_rate=1e-12))


def test_what_the_head_does_not_read_is_said(tokenizer):
    host = host_with("BitFit()")
    outcome = train(host, "a", TASK, ROWS, None, tokenizer, PLAIN)
    assert len(outcome.untrained_tensors) == 1
    assert "pooler" in outcome.untrained_tensors[0]
    reads = deltatune.Host(models.tiny("bert"))
    head = Head(TASK.head_config(reads.model.config, pooling="pooler"))
    reads.attach("a", deltatune.parse("BitFit()"), head=head)
    assert unread_tensors(reads, "a") == set()
    assert train(reads, "a", TASK, ROWS, None, tokenizer, PLAIN).untrained_tensors == ()


@pytest.mark.parametrize("method", ["Full()", "BitFit()"])
def test_a_head_of_classes_does_not_read_a_masked_models_own_head(method, tokenizer):
    host = deltatune.Host(models.tiny("bert", "lm"))
    host.attach("a", deltatune.parse(method), head=TASK.make_head(host.model.config))
    outcome = train(host, "a", TASK, ROWS, None, tokenizer, PLAIN)
    assert outcome.untrained_tensors
    assert all("predictions" in each or "lm_head" in each for each in outcome.untrained_tensors)


def test_a_loss_that_explodes_stops_training(tokenizer):
    with pytest.raises(DeltatuneError, match=r"(?s)the loss became .* in step \d+: .*lower the learning_rate"):
        train(host_with("Full()"), "a", TASK, ROWS, None, tokenizer, dataclasses.replace(PLAIN, learning_rate=1e30))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be above 0"),
        ({"batch_size": 2, "accumulation": 4}, "cannot be split into 4"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0"),
        ({"schedule": "liner"}, "did you mean 'linear'"),
        ({"warmup": 3.0}, "warmup is a fraction"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(DeltatuneError, match=message):
        Settings(**options)


def test_bad_calls(tokenizer):
    with pytest.raises(DeltatuneError, match="no adapter is called 'b'"):
        train(host_with(), "b", TASK, ROWS, None, tokenizer, PLAIN)
    with pytest.raises(DeltatuneError, match="no rows to train on"):
        train(host_with(), "a", TASK, [], None, tokenizer, PLAIN)
