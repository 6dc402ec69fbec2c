"""Training on a quantised base: stopped and resumed, beside plain weights of the same values, under autocast."""

import dataclasses
import random

import pytest
import torch

from deltatune.core.quantization import kernels
from deltatune.models.quantization.quantize_model import dequantize_, quantize_
from deltatune.training import train
from support import models
from support.killed import killed
from support.killed_runs import assert_as_if_never_killed, prepared
from support.runs import PLAIN, QUIET, ROWS, TASK, assert_same, host_with, tensors

SCHEMES = ["nf4", *(pytest.param(text, marks=pytest.mark.slow) for text in ("NF4(block=32)", "int8"))]
BF16 = dataclasses.replace(PLAIN, precision="bfloat16")


class Stopped(Exception):
    pass


def stop_after(last):
    def on_step(step, total, loss, rate):
        if step == last:
            raise Stopped

    return on_step


def quantised(scheme, method="LoRA(r=4)", plain=False):
    """A host with an adapter on a quantised base; `plain`: on plain weights of exactly the values of the codes."""
    model = models.tiny("bert", **QUIET)
    quantize_(model, scheme)
    if plain:
        dequantize_(model)
    return host_with(method, model=model, dropout=0.0)


def trained(host, settings, out=None, on_step=None):
    train(host, "a", TASK, ROWS, None, models.tiny_tokenizer(), settings, out, on_step)
    return tensors(host)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_stopped_run_goes_on_bit_for_bit(scheme, tmp_path):
    settings = dataclasses.replace(BF16, checkpoint_every=2)
    wanted = trained(quantised(scheme), settings)
    last = random.Random(scheme).randint(3, 8)
    with pytest.raises(Stopped):
        trained(quantised(scheme), settings, tmp_path, stop_after(last))
    resumed = trained(quantised(scheme), settings, tmp_path)
    assert_same(resumed, wanted)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_in_float32_it_is_the_training_on_the_dequantised_weights(scheme):
    assert_same(trained(quantised(scheme), PLAIN), trained(quantised(scheme, plain=True), PLAIN))


def test_under_autocast_it_is_so_within_rounding():
    on_codes = trained(quantised("nf4"), BF16)
    on_values = trained(quantised("nf4", plain=True), BF16)
    moved = max(float(tensor.abs().max()) for tensor in on_values.values())
    for name, tensor in on_values.items():
        assert (on_codes[name] - tensor).abs().max() < 0.05 * moved, name


def test_without_bitsandbytes_it_trains_the_same_bits(monkeypatch):
    wanted = trained(quantised("NF4(block=32)"), BF16)
    monkeypatch.setattr(kernels, "_kernel", lambda: None)
    found = trained(quantised("NF4(block=32)"), BF16)
    assert_same(found, wanted)


@pytest.mark.parametrize("method", ["DoRA(r=2)", "PiSSA(r=2)", "Houlsby(size=4)", "MAM(length=3, size=4)", "IA3()"])
def test_the_base_keeps_its_bits_while_methods_train_on_it(method):
    host = quantised("nf4", method)
    before = {name: tensor.clone() for name, tensor in host.model.named_buffers()}
    start = tensors(host)
    trained(host, BF16)
    assert any(not torch.equal(tensor, start[name]) for name, tensor in tensors(host).items() if name in start)
    for name, tensor in host.model.named_buffers():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path):
    command = [*prepared("lm", tmp_path), "--quantize", "nf4", "--precision", "bfloat16"]
    killed(command, tmp_path, touches=2, clock=1)
    assert assert_as_if_never_killed(tmp_path) == 4
