"""TRL's RewardTrainer on a hosted model with one output."""

import pytest
import torch

import deltatune
from support import models
from support.neighbours import assert_only_the_adapter_moved, base_of, logits, training_arguments, values, works

NAME = "TRL `RewardTrainer`"
PACKAGES = ("trl", "datasets")
NOT_APPLICABLE = {"serve": "after training the model is served as any other"}
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # TRL and what it imports warn of their versions


def scorer():
    """The same each time."""
    three = models.tiny("llama", "classify", dropout=False)
    three.config.num_labels = 1
    torch.manual_seed(0)
    return type(three)(three.config).eval()


def reward_host(method="LoRA(r=2)"):
    host = deltatune.Host(scorer())
    host.attach("mine", deltatune.parse(method))
    return host


def trainer_of(host, folder, tokenizer, **more):
    import datasets
    import trl

    rows = {"chosen": ["the film is good", "a great plot"] * 8, "rejected": ["the film is bad", "an awful plot"] * 8}
    return trl.RewardTrainer(
        host.model,
        args=training_arguments(folder, trl.RewardConfig, bf16=False, max_length=32, **more),
        train_dataset=datasets.Dataset.from_dict(rows),
        processing_class=tokenizer,
    )


@works()
def test_attach(tmp_path, tokenizer):
    host = reward_host()
    optimizer = trainer_of(host, tmp_path, tokenizer).create_optimizer()
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for _, parameter in host.trainable("mine")}


@pytest.mark.parametrize("method", ["LoRA(r=2)", "Prefix(length=3)", "Prompt(length=3)", "Bottleneck(size=4)"])
@works()
def test_train(method, tmp_path, tokenizer):
    host = reward_host(method)
    base, before = base_of(host), values(host)
    trainer = trainer_of(host, tmp_path, tokenizer, max_steps=30, save_strategy="no")
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert_only_the_adapter_moved(host, base, before)


@works()
def test_save(tmp_path, tokenizer):
    """The adapter and the head that was trained with it."""
    host = reward_host()
    trainer_of(host, tmp_path / "run", tokenizer).train()
    assert (tmp_path / "run" / "checkpoint-4" / "mine" / "adapter.safetensors").is_file()
    assert not (tmp_path / "run" / "checkpoint-4" / "config.json").exists()


@works("host.load(folder)")
def test_reload(tmp_path, tokenizer):
    first = reward_host()
    trainer_of(first, tmp_path / "run", tokenizer).train()
    folder = tmp_path / "run" / "checkpoint-4"
    host = deltatune.Host(scorer())
    host.load(folder)
    assert logits(host.model).equal(logits(first.model))
