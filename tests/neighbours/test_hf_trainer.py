"""transformers' Trainer on a hosted model."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import deltatune
from support.neighbours import (
    assert_holds_the_adapter_alone,
    assert_learns,
    assert_optimizes_the_adapter,
    hosted,
    logits,
    token_rows,
    training_arguments,
    works,
)

NAME = "transformers `Trainer`"
PACKAGES = ("transformers", "accelerate")


def trainer_of(host, folder, **more):
    return Trainer(host.model, training_arguments(folder, TrainingArguments, **more), train_dataset=token_rows())


@works()
def test_attach(tmp_path):
    host = hosted()
    assert_optimizes_the_adapter(trainer_of(host, tmp_path), host)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["LoRA(r=2)", "Prefix(length=3)", "Prompt(length=3)", "OFT(block=4)"])
@works()
def test_train(method, tmp_path):
    host = hosted(method=method)
    assert_learns(trainer_of(host, tmp_path, max_steps=30), host)


@pytest.mark.slow
@works()
def test_save(base, tmp_path):
    host = deltatune.Host(AutoModelForCausalLM.from_pretrained(base))
    host.attach("mine", deltatune.LoRA(r=2))
    trainer = trainer_of(host, tmp_path / "run")
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    for folder in (tmp_path / "final", tmp_path / "run" / "checkpoint-4"):
        assert_holds_the_adapter_alone(folder)


@pytest.mark.slow
@works("host.load(folder)")
def test_reload(base, tmp_path):
    first = deltatune.Host(AutoModelForCausalLM.from_pretrained(base))
    first.attach("mine", deltatune.LoRA(r=2))
    trainer_of(first, tmp_path / "run").train()
    folder = tmp_path / "run" / "checkpoint-4"
    host = deltatune.Host(AutoModelForCausalLM.from_pretrained(base))
    host.load(folder)
    assert torch.equal(logits(host.model), logits(first.model))
    resumed = deltatune.Host(AutoModelForCausalLM.from_pretrained(base))
    resumed.attach("mine", deltatune.LoRA(r=2))
    trainer_of(resumed, tmp_path / "run").train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    torch.testing.assert_close(logits(resumed.model), logits(first.model))


@pytest.mark.slow
@works()
def test_serve(tmp_path):
    host = hosted()
    rows = token_rows()[:2]
    answer = trainer_of(host, tmp_path).predict(rows).predictions
    with torch.no_grad():
        wanted = host.model.eval()(input_ids=torch.tensor([rows[0]["input_ids"]])).logits[0]
    torch.testing.assert_close(torch.tensor(answer[0][: len(wanted)]), wanted)
