"""A user's transformers.Trainer and TRL's SFTTrainer train a hosted model: the adapter alone, and it can be saved."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

import deltatune
from deltatune import LoRA, Prefix, Prompt
from support import models

TEXTS = [f"the cat sat on the mat and the dog {word} it" for word in ("saw", "bit", "ate", "had")] * 4
METHODS = [LoRA(r=2), Prefix(length=3), Prompt(length=3)]


@pytest.fixture
def tokenizer():
    tokenizer = models.tiny_tokenizer()
    tokenizer.eos_token = tokenizer.sep_token
    return tokenizer


def check_trained(host, base, initial, losses, folder, kind, inputs):
    """The base is bit for bit what it was, every trained tensor has moved, the folder gives the same outputs."""
    assert all(torch.equal(tensor, base[name]) for name, tensor in host.base.tensors())
    trained = dict(host.trainable("a"))
    assert trained.keys() == initial.keys()
    assert not [name for name, tensor in trained.items() if torch.equal(tensor, initial[name])]
    assert losses
    assert all(loss == loss and loss > 0 for loss in losses)
    host.save("a", folder)
    again = deltatune.Host(models.tiny(kind, "lm"))
    again.model.load_state_dict(base, strict=False)
    again.load(folder, name="a")
    with host.using("a", training=False), again.using("a", training=False), torch.inference_mode():
        torch.testing.assert_close(host.model(**inputs).logits, again.model(**inputs).logits)


def hosted(kind, method):
    model = models.tiny(kind, "lm")
    host = deltatune.Host(model)
    base = {name: tensor.detach().clone() for name, tensor in host.base.tensors()}
    host.attach("a", method)
    return host, base, {name: tensor.detach().clone() for name, tensor in host.trainable("a")}


def arguments(folder, cls=TrainingArguments, **more):
    return cls(
        str(folder),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **more,
    )


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_trainer_of_the_user(kind, method, tokenizer, tmp_path):
    host, base, initial = hosted(kind, method)
    rows = [{**encoded, "labels": encoded["input_ids"]} for encoded in map(tokenizer, TEXTS)]
    rows = [{name: row[name] for name in ("input_ids", "attention_mask", "labels")} for row in rows]
    trainer = Trainer(host.model, arguments(tmp_path / "run"), train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    inputs = {"input_ids": torch.tensor([rows[0]["input_ids"]])}
    check_trained(host, base, initial, losses, tmp_path / "adapter", kind, inputs)


@pytest.mark.filterwarnings("ignore")  # TRL and what it imports warn of their own versions
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_sft_trainer_of_trl(method, tokenizer, tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    host, base, initial = hosted("llama", method)
    trainer = trl.SFTTrainer(
        host.model,
        args=arguments(tmp_path / "run", trl.SFTConfig, bf16=False, max_length=32),
        train_dataset=datasets.Dataset.from_dict({"text": TEXTS}),
        processing_class=tokenizer,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    inputs = {"input_ids": torch.tensor([tokenizer(TEXTS[0])["input_ids"]])}
    check_trained(host, base, initial, losses, tmp_path / "adapter", "llama", inputs)
