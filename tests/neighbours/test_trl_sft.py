"""TRL's SFTTrainer on a hosted model."""

import pytest

from support.neighbours import TEXTS, assert_learns, assert_optimizes_the_adapter, hosted, training_arguments, works

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
    assert_optimizes_the_adapter(trainer_of(host, tmp_path, tokenizer), host)


@pytest.mark.parametrize("method", ["LoRA(r=2)", "Prefix(length=3)", "Prompt(length=3)", "Bottleneck(size=4)"])
@works()
def test_train(method, tmp_path, tokenizer):
    host = hosted(method=method)
    assert_learns(trainer_of(host, tmp_path, tokenizer, max_steps=30), host, below=0.98)
