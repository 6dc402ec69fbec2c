"""A loss that is not finite: the advice fits the cause, which is measured."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

import deltatune
from deltatune.core.errors import DeltatuneError
from deltatune.store.atomic_files import MANIFEST, digest, read_json, write_json
from deltatune.tasks import Classify, Head
from deltatune.training import train
from support import models
from support.runs import PLAIN, ROWS, TASK, host_with, tensors


@pytest.fixture
def tokenizer():
    return models.tiny_tokenizer()


def fails(host, tokenizer, task=TASK, rows=ROWS, **over):
    with pytest.raises(DeltatuneError) as caught:
        train(host, "a", task, rows, None, tokenizer, dataclasses.replace(PLAIN, **over))
    return str(caught.value)


def test_a_damaged_weight_of_the_model_is_named(tokenizer):
    host = host_with()
    with torch.no_grad():
        host.model.encoder.layer[1].output.dense.weight[3, 4] = float("nan")
    text = fails(host, tokenizer)
    assert "the loss became nan in step 1: the model's own weights are damaged" in text
    assert "encoder.layer.1.output.dense.weight has 1 of" in text
    assert "learning_rate" not in text
    assert all(torch.isfinite(value).all() for value in tensors(host).values())  # no step was taken with NaN


def test_of_full_fine_tuning_the_base_is_still_the_base(tokenizer):
    host = host_with("Full()")
    with torch.no_grad():
        next(p for n, p in host.trainable("a") if "layer/1" in n)[0] = float("inf")
    assert "the adapter's tensors were so before training" in fails(host, tokenizer)


def test_a_rate_that_is_too_high_is_said_with_the_rates(tokenizer):
    text = fails(host_with("Full()"), tokenizer, learning_rate=1e30)
    assert "lower the learning_rate: it was up to" in text
    assert "the method's own is" in text
    assert "step 1:" not in text


def test_a_model_that_overflows_in_its_dtype_is_not_blamed_on_the_rate(tokenizer):
    host = host_with(model=models.tiny("bert").half())
    with torch.no_grad():
        host.model.encoder.layer[0].intermediate.dense.weight.fill_(6e4)
        host.model.encoder.layer[0].attention.output.LayerNorm.weight.fill_(100.0)
        host.model.encoder.layer[0].attention.output.LayerNorm.bias.fill_(100.0)
    host.adapters["a"].half()
    text = fails(host, tokenizer)
    assert "the model without the adapter gives no finite output for these rows either (" in text
    assert "first in encoder.layer.0.intermediate.dense" in text
    assert "float16, whose largest number is 65504: load it in float32 or bfloat16" in text
    assert "learning_rate" not in text


def test_start_values_that_overflow_are_not_blamed_on_the_rate(tokenizer):
    host = host_with()
    with torch.no_grad():
        for delta in (delta for _, _, delta in host.adapters["a"].entries()):
            delta.B.fill_(1e30)
            delta.A.fill_(1e30)
    text = fails(host, tokenizer)
    assert "with the adapter the model's outputs are not finite (" in text
    assert "before any step was taken" in text
    assert "lower the" not in text


def test_labels_that_are_too_large_are_named(tokenizer):
    task = Classify(labels=(), max_length=64)
    host = deltatune.Host(models.tiny("bert"))
    host.attach("a", deltatune.parse("LoRA(r=4)"), head=Head(task.head_config(host.model.config, dropout=0.0), seed=0))
    rows = [{"text": row["text"], "label": 1e30} for row in ROWS]
    assert "the labels go up to 1e+30; scale them" in fails(host, tokenizer, task, rows)


def test_gradients_that_are_not_finite_stop_before_the_step(tokenizer):
    host = host_with()
    before = tensors(host)
    host.adapters["a"].head.out.bias.register_hook(lambda gradient: gradient * float("inf"))
    for clipping in (0.0, 1.0):
        text = fails(host, tokenizer, max_grad_norm=clipping)
        assert "the gradients became" in text
        assert "tensor head.out.bias has" in text
    assert all(torch.equal(before[key], value) for key, value in tensors(host).items())


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("-inf"), "infinity")])
def test_an_adapter_file_with_values_that_are_not_finite_is_refused(value, kind, tmp_path):
    host_with().save("a", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter.safetensors"
    stored = load_file(file)
    name = next(key for key in stored if key.endswith(".A"))
    stored[name][0, 0] = value
    save_file(stored, file)
    manifest = read_json(tmp_path / "adapter" / MANIFEST)
    manifest["files"][file.name] = digest(file)
    write_json(tmp_path / "adapter" / MANIFEST, manifest)
    host = deltatune.Host(models.tiny("bert"))
    with pytest.raises(DeltatuneError, match=rf"tensor {name} has 1 of \d+ values that are not finite: {kind}"):
        host.load(tmp_path / "adapter", name="b")
    assert not host.adapters
