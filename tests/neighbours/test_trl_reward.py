"""TRL's RewardTrainer on a hosted model with one output."""

import pytest
import torch

import deltatune
from support import models
from support.neighbours import (
    assert_holds_the_adapter_alone,
    assert_learns,
    assert_optimizes_the_adapter,
    logits,
    training_arguments,
    works,
)

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
    assert_optimizes_the_adapter(trainer_of(host, tmp_path, tokenizer), host)


@pytest.mark.parametrize("method", ["LoRA(r=2)", "Prefix(length=3)", "Prompt(length=3)", "Bottleneck(size=4)"])
@works()
def test_train(method, tmp_path, tokenizer):
    host = reward_host(method)
    assert_learns(trainer_of(host, tmp_path, tokenizer, max_steps=30, save_strategy="no"), host)


@works()
def test_save(tmp_path, tokenizer):
    """The adapter and the head that was trained with it."""
    host = reward_host()
    trainer_of(host, tmp_path / "run", tokenizer).train()
    assert_holds_the_adapter_alone(tmp_path / "run" / "checkpoint-4")


@works("host.load(folder)")
def test_reload(tmp_path, tokenizer):
    first = reward_host()
    trainer_of(first, tmp_path / "run", tokenizer).train()
    folder = tmp_path / "run" / "checkpoint-4"
    host = deltatune.Host(scorer())
    host.load(folder)
    assert logits(host.model).equal(logits(first.model))
