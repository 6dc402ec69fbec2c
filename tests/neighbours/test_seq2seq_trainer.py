"""transformers' Seq2SeqTrainer on a hosted encoder-decoder."""

import pytest
import torch
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

import deltatune
from support import models
from support.neighbours import (
    assert_only_the_adapter_moved,
    base_of,
    hosted,
    logits,
    token_rows,
    training_arguments,
    values,
    works,
)

NAME = "transformers `Seq2SeqTrainer`"
PACKAGES = ("transformers", "accelerate")
METHODS = ["LoRA(r=2)", "Prefix(length=3)", "Prompt(length=3)"]


def seq2seq_host(method="LoRA(r=2)"):
    return hosted("t5", method=method)


def trainer_of(host, folder, **more):
    return Seq2SeqTrainer(
        host.model,
        training_arguments(folder, Seq2SeqTrainingArguments, predict_with_generate=True, **more),
        train_dataset=token_rows(),
        data_collator=DataCollatorForSeq2Seq(models.tiny_tokenizer(), host.model),
    )


@works()
def test_attach(tmp_path):
    host = seq2seq_host()
    optimizer = trainer_of(host, tmp_path).create_optimizer()
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for _, parameter in host.trainable("mine")}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@works()
def test_train(method, tmp_path):
    host = seq2seq_host(method)
    base, before = base_of(host), values(host)
    trainer = trainer_of(host, tmp_path, max_steps=30, save_strategy="no")
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert_only_the_adapter_moved(host, base, before)


@pytest.mark.slow
@works()
def test_save(tmp_path):
    host = seq2seq_host()
    trainer_of(host, tmp_path / "run").train()
    folder = tmp_path / "run" / "checkpoint-4"
    assert (folder / "mine" / "adapter.safetensors").is_file()
    assert not (folder / "config.json").exists()


@pytest.mark.slow
@works("host.load(folder)")
def test_reload(tmp_path):
    first = seq2seq_host()
    trainer_of(first, tmp_path / "run").train()
    folder = tmp_path / "run" / "checkpoint-4"
    host = deltatune.Host(models.tiny("t5", "lm", dropout=False))
    host.load(folder)
    assert torch.equal(logits(host.model, "t5"), logits(first.model, "t5"))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@works()
def test_serve(method, tmp_path):
    host = seq2seq_host(method)
    rows = token_rows()[:3]
    trainer = trainer_of(host, tmp_path, per_device_eval_batch_size=3)
    answers = torch.as_tensor(trainer.predict(rows, max_new_tokens=6, num_beams=1).predictions)
    for row, answer in zip(rows, answers, strict=True):
        ids = torch.tensor([row["input_ids"]])
        wanted = host.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6)[0]
        assert answer[: len(wanted)].tolist() == wanted.tolist()
