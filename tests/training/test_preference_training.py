"""Preferences are learned against the base without the adapter, or against another adapter, on one base."""

import math

import pytest
import torch

from deltatune import Bottleneck, LoRA, Prefix, Prompt
from deltatune.core.errors import DeltatuneError
from deltatune.tasks import Prefer
from deltatune.tasks.preferences.pair_collator import REFERENCE
from deltatune.tasks.task import IGNORED
from deltatune.training import Settings, predict, train
from deltatune.training.inference.pair_rewards import with_references
from deltatune.training.inference.prediction import adapter_collator, encode_for
from deltatune.training.model_and_loader import model_and_loader
from deltatune.training.scaling.distributed import Processes
from deltatune.training.scaling.gradient_checkpointing import gradient_checkpointing
from deltatune.training.task_model import TaskModel, answer_log_probabilities
from support.preference_pairs import SETTINGS, TASK, hosted, pairs, tokenizer


def learned(host, task=TASK, settings=SETTINGS, name="a", **more):
    return train(host, name, task, pairs(32), pairs(16, 100), tokenizer(), settings, **more)


def rewards(host, task=TASK, name="a", rows=None):
    return predict(host, name, task, encoded(host, task, name, rows), tokenizer(), precision="float32")


def encoded(host, task=TASK, name="a", rows=None):
    return encode_for(host, name, task, rows or pairs(6), tokenizer())


def tensors(host, name="a"):
    return {n: tensor.detach().clone() for n, tensor in host.trainable(name)}


def first_step(host, settings, task=TASK):
    """Loss and gradients of the first step of a run."""
    host.use("a")
    rows = encoded(host, task, rows=pairs(8))
    model, loader = model_and_loader(host, "a", task, rows, tokenizer(), settings, Processes())
    _, batches = next(iter(loader.steps(1, 1)))
    items = sum(batch.rows for batch in batches)
    loss = 0.0
    with gradient_checkpointing(host.model, settings.checkpointing):
        model.train()
        for batch in batches:
            part = model(items=items, **batch.tensors)["loss"]
            part.backward()
            loss += float(part.detach())
    gradients = {name: parameter.grad.clone() for name, parameter in host.trainable("a") if parameter.grad is not None}
    return loss, gradients


@pytest.mark.parametrize(
    ("kind", "method", "least"),
    [("gpt2", LoRA(r=4), 0.5), ("llama", Prompt(length=4), 0.1), ("t5", Prefix(length=4), 0.5)],
    ids=repr,
)
def test_pairs_are_learned_and_the_base_is_untouched(kind, method, least):
    host = hosted(kind, method)
    base = {name: tensor.clone() for name, tensor in host.base.tensors()}
    before = TASK.score(rewards(host), None)
    outcome = learned(host)
    after = outcome.evaluations[-1][1]
    assert after["accuracy"] == 1.0
    assert after["reward_margin"] > before["reward_margin"] + least
    assert after["preference_loss"] < before["preference_loss"] - 0.05
    assert all(torch.equal(tensor, base[name]) for name, tensor in host.base.tensors())
    texts = predict(host, "a", TASK, [{"prompt": "good film"}], tokenizer(), precision="float32")
    assert TASK.decode(texts) == [{"text": texts[0]["text"]}]


def test_rewards_begin_at_zero_and_the_loss_at_log_two():
    host = hosted("llama", LoRA(r=4))
    assert [(row["chosen"], row["rejected"]) for row in rewards(host)] == [(0.0, 0.0)] * 6
    assert TASK.score(rewards(host), None)["accuracy"] == 0.5
    loss, _ = first_step(host, SETTINGS)
    assert loss == pytest.approx(math.log(2), abs=1e-5)


def test_dropout_of_the_base_is_off_and_that_of_the_adapter_is_the_users():
    options = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    loss, gradients = first_step(hosted("gpt2", LoRA(r=4), **options), SETTINGS)
    expected, others = first_step(hosted("gpt2", LoRA(r=4)), SETTINGS)
    assert loss == pytest.approx(expected, abs=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name])
    host = hosted("gpt2", LoRA(r=4, dropout=0.5))
    for name, parameter in host.trainable("a"):
        if name.endswith("B"):  # which starts at zero
            torch.nn.init.normal_(parameter)
    torch.manual_seed(1)
    one, _ = first_step(host, SETTINGS)
    torch.manual_seed(2)
    other, _ = first_step(host, SETTINGS)
    assert one != other


@pytest.mark.parametrize("method", [LoRA(r=2), Prefix(length=3), Prompt(length=3)], ids=repr)
@pytest.mark.parametrize("change", [{"accumulation": 4}, {"checkpointing": True}], ids=str)
def test_accumulation_and_checkpointing_change_no_gradient(method, change):
    settings = Settings(**{**SETTINGS.record(), **change})
    host = hosted("llama", method)
    loss, gradients = first_step(host, settings)
    expected, others = first_step(hosted("llama", method), SETTINGS)
    assert loss == pytest.approx(expected, abs=1e-6)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-4, atol=1e-6)


def test_another_adapter_is_the_reference(tmp_path):
    host = hosted("llama", LoRA(r=2))
    learned(host)
    host.save("a", tmp_path / "first")
    task = Prefer(max_length=32, new_tokens=8, reference="start")
    with pytest.raises(DeltatuneError, match=r"'start' \(the adapter that training started from\).*name='start'\)"):
        rewards(host, task)
    with pytest.raises(DeltatuneError, match="'start'"):
        learned(host, task)
    frozen = host.load(tmp_path / "first", name="start")
    values = {name: tensor.clone() for name, tensor in frozen.tensors().items()}
    assert all(row["chosen"] == row["rejected"] == 0 for row in rewards(host, task))
    against_base = rewards(host)
    outcome = learned(host, task)
    assert outcome.history[0][1] == pytest.approx(math.log(2), abs=1e-5)
    assert outcome.evaluations[-1][1]["reward_margin"] > 0.1
    assert all(torch.equal(tensor, values[name]) for name, tensor in frozen.tensors().items())
    ours, theirs = rewards(host, task), rewards(host)
    for row, whole, first in zip(ours, theirs, against_base, strict=True):  # log π/π₀ = log π/π₁ + log π₁/π₀
        assert whole["chosen"] == pytest.approx(row["chosen"] + first["chosen"], abs=1e-5)


def test_a_paused_run_ends_bit_for_bit_as_one_that_never_paused(tmp_path):
    whole, paused, again = (hosted("gpt2", LoRA(r=2, dropout=0.1)) for _ in range(3))
    settings = Settings(epochs=2, batch_size=8, learning_rate=1e-2, precision="float32")
    outcome = learned(whole, settings=settings, out=tmp_path / "whole")
    learned(paused, settings=settings, out=tmp_path / "paused", until=3)
    resumed = learned(again, settings=settings, out=tmp_path / "paused")
    assert resumed.resumed == 3
    assert resumed.history == outcome.history
    assert resumed.evaluations[-1] == outcome.evaluations[-1]
    expected = tensors(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors(again).items())


def test_references_are_read_once_and_only_for_rows_that_are_read():
    host = hosted("llama", LoRA(r=2))
    host.use("a")
    rows, settings = encoded(host, rows=pairs(40)), Settings(max_steps=2, batch_size=8, precision="float32")
    _, loader = model_and_loader(host, "a", TASK, rows, tokenizer(), settings, Processes())
    for _, batches in loader.steps(1, 2):
        assert all(REFERENCE in batch.tensors for batch in batches)
    [(_, batches)] = loader.steps(3, 3)  # which this run does not have
    assert not any(REFERENCE in batch.tensors for batch in batches)
    collate = adapter_collator(host, "a", tokenizer(), rows)
    known = with_references(host, TASK, rows, collate, False)
    assert with_references(host, TASK, known, collate, False) is known


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(DeltatuneError, match="preference pairs cannot be packed"):
        learned(hosted("llama", LoRA(r=2)), settings=Settings(packing=True))
    with pytest.raises(DeltatuneError, match="encoder models cannot generate text"):
        learned(hosted("bert", LoRA(r=2)))


@pytest.mark.parametrize("loss_type", ["ipo", "hinge"])
def test_other_losses_are_learned(loss_type):
    task = Prefer(max_length=32, new_tokens=8, loss_type=loss_type, beta=0.2)
    outcome = learned(hosted("llama", Bottleneck(size=8)), task)
    scores = outcome.evaluations[-1][1]
    assert scores["accuracy"] == 1.0
    assert scores["preference_loss"] < 0.9 * outcome.history[0][1]


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge"])
@pytest.mark.filterwarnings("ignore")  # TRL and what it imports warn of their own versions
def test_loss_and_gradients_are_those_of_trl(loss_type, tmp_path):
    trl, peft, datasets = (pytest.importorskip(name) for name in ("trl", "peft", "datasets"))
    datasets.disable_progress_bars()
    host = hosted("llama", None)
    args = trl.DPOConfig(
        str(tmp_path), loss_type=[loss_type], beta=0.3, use_cpu=True, report_to=[], bf16=False, max_length=32,
        per_device_train_batch_size=4,
    )  # fmt: skip
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    rows = [{**row, "chosen": f" {row['chosen']}"} for row in pairs(4)]
    trainer = trl.DPOTrainer(
        hosted("llama", None).model, args=args, train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer(), peft_config=config,
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model.train(), dict(batch))
    loss.backward()
    norms = sorted(float(p.grad.norm()) for p in trainer.model.parameters() if p.grad is not None)
    trainer.model.save_pretrained(tmp_path / "adapter")
    host.load(tmp_path / "adapter", name="a")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED)
    with host.using(None, training=False), torch.no_grad():
        reference, _ = answer_log_probabilities(host, dict(inputs), labels)
    model = TaskModel(host, "a", Prefer(loss_type=loss_type, beta=0.3))
    with host.using("a", training=True):
        ours = model.train()(labels=labels, reference=reference, **inputs)["loss"]
        ours.backward()
    assert float(ours) == pytest.approx(float(loss), abs=2e-6)
    assert abs(float(loss) - {"sigmoid": math.log(2), "ipo": 2.78, "hinge": 1.0}[loss_type]) > 1e-3
    mine = sorted(float(p.grad.norm()) for _, p in host.trainable("a"))
    torch.testing.assert_close(torch.tensor(mine), torch.tensor(norms), rtol=1e-4, atol=1e-6)
