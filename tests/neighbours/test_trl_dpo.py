"""TRL's DPOTrainer on a hosted model, whose reference is the same base without its adapter."""

import pytest

import deltatune
from deltatune.core.host_parts.reference_model import ReferenceModel
from support import models
from support.neighbours import (
    assert_holds_the_adapter_alone,
    assert_only_the_adapter_moved,
    base_of,
    hosted,
    logits,
    training_arguments,
    values,
    works,
)

NAME = "TRL `DPOTrainer`"
PACKAGES = ("trl", "datasets")
NOT_APPLICABLE = {"serve": "after training the model is served as any other"}
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # TRL and what it imports warn of their versions


def trainer_of(host, folder, tokenizer, **more):
    import datasets
    import trl

    rows = {
        "prompt": ["the film is", "the plot was"] * 8,
        "chosen": [" very good", " great"] * 8,
        "rejected": [" bad", " awful"] * 8,
    }
    return trl.DPOTrainer(
        host.model,
        ref_model=ReferenceModel(host),
        args=training_arguments(folder, trl.DPOConfig, bf16=False, max_length=32, **more),
        train_dataset=datasets.Dataset.from_dict(rows),
        processing_class=tokenizer,
    )


@works("ReferenceModel(host)")
def test_attach(tmp_path, tokenizer):
    """No second model: before training the adapter changes nothing, so that all rewards are 0."""
    host = hosted(random=False)
    assert ReferenceModel(host).host.model is host.model
    trainer = trainer_of(host, tmp_path, tokenizer, max_steps=1, save_strategy="no")
    trainer.train()
    first = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("method", ["LoRA(r=2)", "Prefix(length=3)", "Prompt(length=3)", "Bottleneck(size=4)"])
@works()
def test_train(method, tmp_path, tokenizer):
    host = hosted(method=method)
    base, before = base_of(host), values(host)
    trainer = trainer_of(host, tmp_path, tokenizer, max_steps=30, save_strategy="no")
    trainer.train()
    margins = [entry["rewards/margins"] for entry in trainer.state.log_history if "rewards/margins" in entry]
    assert sum(margins[-5:]) / 5 > sum(margins[:5]) / 5 + 0.05
    assert_only_the_adapter_moved(host, base, before)


@works()
def test_save(tmp_path, tokenizer):
    host = hosted()
    trainer_of(host, tmp_path / "run", tokenizer).train()
    assert_holds_the_adapter_alone(tmp_path / "run" / "checkpoint-4")


@works("host.load(folder)")
def test_reload(tmp_path, tokenizer):
    first = hosted()
    trainer_of(first, tmp_path / "run", tokenizer).train()
    folder = tmp_path / "run" / "checkpoint-4"
    host = deltatune.Host(models.tiny("llama", "lm", dropout=False))
    host.load(folder)
    assert logits(host.model).equal(logits(first.model))
