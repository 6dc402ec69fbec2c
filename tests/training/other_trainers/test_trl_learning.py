"""TRL's trainers learn with every kind of method on a hosted model, and DPO's reference is the base of that model."""

import pytest
import torch
from transformers import LlamaForSequenceClassification, PrinterCallback

import deltatune
from deltatune import IA3, BitFit, Bottleneck, LoRA, LoReFT, Prefix, Prompt, PTuning, ReferenceModel
from support import models
from support.preference_pairs import hosted, pairs, tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # TRL and what it imports warn of their versions

METHODS = [
    LoRA(r=4),
    Bottleneck(size=8),
    Prefix(length=4),
    Prompt(length=4),
    PTuning(length=4),
    IA3(),
    BitFit(missing="add", sites="layers.*"),
    LoReFT(r=4),
    LoRA(r=2) + Prompt(length=2),
    Prefix(length=2) + Bottleneck(size=4),
]
TEXTS = [f"the film was good and the film is {word}" for word in ("great", "awful", "bad", "not")] * 4
PAIRS = [{**row, "chosen": f" {row['chosen']}", "rejected": f" {row['rejected']}"} for row in pairs(16)]


def library(name):
    module = pytest.importorskip(name)
    pytest.importorskip("datasets").disable_progress_bars()
    return module


def rows(values):
    import datasets

    return datasets.Dataset.from_list(values)


def arguments(cls, folder, steps=15, **more):
    return cls(
        str(folder), max_steps=steps, per_device_train_batch_size=16, learning_rate=3e-2, lr_scheduler_type="constant",
        logging_steps=1, report_to=[], disable_tqdm=True, use_cpu=True, bf16=False, max_length=32,
        **{"save_strategy": "no", **more},
    )  # fmt: skip


def trained(trainer, **options):
    trainer.remove_callback(PrinterCallback)
    trainer.train(**options)
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_sft(method, tmp_path):
    trl = library("trl")
    host = hosted("llama", method)
    trainer = trl.SFTTrainer(
        host.model, args=arguments(trl.SFTConfig, tmp_path), train_dataset=rows([{"text": text} for text in TEXTS]),
        processing_class=tokenizer(),
    )  # fmt: skip
    log = trained(trainer)
    assert log[-1]["loss"] < log[0]["loss"] - 0.2  # without an adapter it stays where it is


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_dpo(method, tmp_path):
    trl = library("trl")
    host = hosted("llama", method)
    base = {name: tensor.clone() for name, tensor in host.base.tensors()}
    trainer = trl.DPOTrainer(
        host.model, ref_model=ReferenceModel(host), args=arguments(trl.DPOConfig, tmp_path), train_dataset=rows(PAIRS),
        processing_class=tokenizer(),
    )  # fmt: skip
    log = trained(trainer)
    assert log[-1]["loss"] < log[0]["loss"] - 0.05
    assert log[-1]["rewards/accuracies"] == 1.0
    assert log[-1]["rewards/margins"] > log[0]["rewards/margins"] + 0.1
    assert all(torch.equal(tensor, base[name]) for name, tensor in host.base.tensors())
    trainer.save_model(str(tmp_path / "saved"))
    again = deltatune.Host(hosted("llama", None).model)
    again.load(tmp_path / "saved", name="a")
    inputs = {"input_ids": torch.tensor([tokenizer()("the film")["input_ids"]])}
    with host.using("a", training=False), again.using("a", training=False), torch.inference_mode():
        torch.testing.assert_close(host.model(**inputs).logits, again.model(**inputs).logits)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_reward(method, tmp_path):
    trl = library("trl")
    config = models.tiny("llama", "lm").config
    config.num_labels, config.pad_token_id = 1, 0
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config)
    host = deltatune.Host(model)
    host.attach("a", method)
    whole = [{name: row["prompt"] + row[name] for name in ("chosen", "rejected")} for row in PAIRS]
    trainer = trl.RewardTrainer(
        model, args=arguments(trl.RewardConfig, tmp_path), train_dataset=rows(whole), processing_class=tokenizer()
    )
    log = trained(trainer)
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert log[-1]["accuracy"] == 1.0


@pytest.mark.parametrize("method", [LoRA(r=4), Prefix(length=4), Prompt(length=4)], ids=repr)
def test_the_reference_is_the_bare_base_also_under_checkpointing_and_precomputed(method, tmp_path):
    trl = library("trl")
    losses = {}
    for way in ("reference", "checkpointed", "precomputed"):
        host = hosted("llama", method)
        more = {} if way == "precomputed" else {"ref_model": ReferenceModel(host)}
        config = {"gradient_checkpointing": way == "checkpointed", "precompute_ref_log_probs": way == "precomputed"}
        args = arguments(trl.DPOConfig, tmp_path / way, 4, **config)
        trainer = trl.DPOTrainer(host.model, args=args, train_dataset=rows(PAIRS), processing_class=tokenizer(), **more)
        losses[way] = [entry["loss"] for entry in trained(trainer)]
    assert losses["checkpointed"] == pytest.approx(losses["reference"], rel=1e-5)
    if isinstance(method, LoRA):  # an adapter that changes nothing at its start: the model before training is the base
        assert losses["precomputed"] == pytest.approx(losses["reference"], rel=1e-5)
    assert losses["precomputed"][0] == pytest.approx(0.6931, abs=1e-4)


def test_another_adapter_as_the_reference(tmp_path):
    trl = library("trl")
    host = hosted("llama", Prompt(length=4))
    host.save("a", tmp_path / "first")
    host.load(tmp_path / "first", name="first")
    host.use("a")
    trainer = trl.DPOTrainer(
        host.model, ref_model=ReferenceModel(host, "first"), args=arguments(trl.DPOConfig, tmp_path, 3),
        train_dataset=rows(PAIRS), processing_class=tokenizer(),
    )  # fmt: skip
    log = trained(trainer)
    assert log[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert log[-1]["loss"] < log[0]["loss"]


def test_a_soft_prompt_has_pefts_loss_and_token_accuracy(tmp_path):
    """Virtual tokens change the lengths of labels and masks: TRL must count what it counts with PEFT."""
    trl, peft = library("trl"), library("peft")
    host = hosted("llama", Prompt(length=4))
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    theirs = peft.get_peft_model(hosted("llama", None).model, config)
    [(_, values)] = host.trainable("a")
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(values)
    logs = []
    for model in (host.model, theirs):
        args = arguments(trl.SFTConfig, tmp_path / "run", 3)
        text = [{"text": text} for text in TEXTS]
        logs.append(trained(trl.SFTTrainer(model, args=args, train_dataset=rows(text), processing_class=tokenizer())))
    for name in ("loss", "mean_token_accuracy"):
        assert [entry[name] for entry in logs[0]] == pytest.approx([entry[name] for entry in logs[1]], rel=1e-4)


def test_a_change_of_the_head_that_trl_would_not_train_is_refused(tmp_path):
    trl = library("trl")
    host = hosted("llama", None)
    host.attach("a", LoRA(r=2, sites="lm_head"))
    trainer = trl.SFTTrainer(
        host.model, args=arguments(trl.SFTConfig, tmp_path), train_dataset=rows([{"text": text} for text in TEXTS]),
        processing_class=tokenizer(),
    )  # fmt: skip
    with pytest.raises(deltatune.DeltatuneError, match=r"'a' changes the language-model head.*Leave lm_head out"):
        trainer.train()
