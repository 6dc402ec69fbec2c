"""TRL's SFTTrainer on a hosted model."""

import pytest
import torch

from support.neighbours import (
    TEXTS,
    assert_only_the_adapter_moved,
    base_of,
    hosted,
    training_arguments,
    values,
    works,
)

NAME = "TRL `SFTTrainer`"
PACKAGES = ("trl", "datasets")
SAVES = "tests/store/test_save_calls.py::test_sft_trainer_of_trl"
SHOWN_BY = {"save": SAVES, "reload": SAVES}
NOT_APPLICABLE = {"serve": "after training the model is served as any other"}
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # TRL and what it imports warn of their versions


def trainer_of(host, folder, tokenizer, **more):
    import datasets
    import trl

    return trl.SFTTrainer(
        host.model,
        args=training_arguments(folder, trl.SFTConfig, bf16=False, max_length=32, save_strategy="no", **more),
        train_dataset=datasets.Dataset.from_dict({"text": TEXTS}),
        processing_class=tokenizer,
    )


@works()
def test_attach(tmp_path, tokenizer):
    host = hosted()
    optimizer = trainer_of(host, tmp_path, tokenizer).create_optimizer()
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for _, parameter in host.trainable("mine")}


@pytest.mark.parametrize("method", ["LoRA(r=2)", "Prefix(length=3)", "Prompt(length=3)", "Bottleneck(size=4)"])
@works()
def test_train(method, tmp_path, tokenizer):
    host = hosted(method=method)
    base, before = base_of(host), values(host)
    trainer = trainer_of(host, tmp_path, tokenizer, max_steps=30)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < 0.98 * sum(losses[:5])
    assert all(torch.isfinite(torch.tensor(losses)))
    assert_only_the_adapter_moved(host, base, before)
