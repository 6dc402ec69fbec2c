"""transformers' Seq2SeqTrainer on a hosted encoder-decoder."""

import pytest
import torch
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

import deltatune
from support import models
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
    assert_optimizes_the_adapter(trainer_of(host, tmp_path), host)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@works()
def test_train(method, tmp_path):
    host = seq2seq_host(method)
    assert_learns(trainer_of(host, tmp_path, max_steps=30, save_strategy="no"), host)


@pytest.mark.slow
@works()
def test_save(tmp_path):
    host = seq2seq_host()
    trainer_of(host, tmp_path / "run").train()
    assert_holds_the_adapter_alone(tmp_path / "run" / "checkpoint-4")


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
@works(but=("soft prompts", "host.generate(...) to generate"))
def test_serve(method, refusal, tmp_path):
    host = seq2seq_host(method)
    rows = token_rows()[:3]
    trainer = trainer_of(host, tmp_path, per_device_eval_batch_size=3)
    if method.startswith("Prompt"):
        with refusal():
            trainer.predict(rows, max_new_tokens=6, num_beams=1)
        return
    answers = torch.as_tensor(trainer.predict(rows, max_new_tokens=6, num_beams=1).predictions)
    for row, answer in zip(rows, answers, strict=True):
        ids = torch.tensor([row["input_ids"]])
        wanted = host.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6)[0]
        assert answer[: len(wanted)].tolist() == wanted.tolist()
