"""transformers.Trainer and TRL's SFTTrainer on a quantised base with a Host: adapters train, are saved and loaded."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

import deltatune
from deltatune import Host, LoRA
from support import models, parallel_trainer

WIDTHS = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "dropout": False}
METHOD = LoRA(r=2, sites="*.attn.{q,v}")
TEXTS = [f"the cat sat on the mat and the dog {word} it" for word in ("saw", "bit", "ate", "had")] * 4
slow = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def load(tmp_path):
    """A base of a kind, quantised in some way, and its Host with an adapter."""

    def hosted(how, seed=0):
        plain = models.tiny("llama", "lm", **WIDTHS)
        if how == "ours":
            deltatune.quantize_(plain, "nf4")
            model = plain
        else:
            pytest.importorskip("bitsandbytes")
            plain.save_pretrained(tmp_path / "model")
            config = {
                "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
                "int8": BitsAndBytesConfig(load_in_8bit=True),
            }[how.partition("-")[0]]
            where = {"device_map": {"": "cpu"}} if how.endswith("map") else {}
            model = AutoModelForCausalLM.from_pretrained(
                tmp_path / "model", quantization_config=config, dtype=torch.float32, **where
            )
        host = Host(model)
        host.attach("a", METHOD, seed=seed)
        return host

    return hosted


def arguments(folder, cls=TrainingArguments, **more):
    given = {"save_strategy": "no", **more}
    return cls(
        str(folder), max_steps=4, per_device_train_batch_size=2, learning_rate=1e-2, logging_steps=1, report_to=[],
        disable_tqdm=True, use_cpu=True, log_level="error", **given,
    )  # fmt: skip


def rows():
    tokenizer = models.tiny_tokenizer()
    encoded = [dict(tokenizer(text)) for text in TEXTS]
    return [
        {"input_ids": row["input_ids"], "attention_mask": row["attention_mask"], "labels": row["input_ids"]}
        for row in encoded
    ]


def trained(host, folder, resume=None, **more):
    """The losses of a Trainer of the user."""
    trainer = Trainer(host.model, arguments(folder, **more), train_dataset=rows())
    trainer.train(resume_from_checkpoint=resume)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(host):
    return {name: parameter.detach().clone() for name, parameter in host.trainable("a")}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("how", ["ours", "nf4", pytest.param("nf4-map", marks=slow), pytest.param("int8", marks=slow)])
def test_a_trainer_of_the_user(how, load, tmp_path):
    host, initial = load(how), weights(load(how))
    base = {name: tensor.clone() for name, tensor in host.base.tensors()}
    losses = trained(host, tmp_path / "run")
    assert losses[-1] < losses[0]
    assert not [name for name, tensor in weights(host).items() if torch.equal(tensor, initial[name])]
    assert_equal(base, dict(host.base.tensors()))
    host.save("a", tmp_path / "adapter")
    again = load(how, seed=3)
    again.detach("a")
    again.load(tmp_path / "adapter", name="a")
    inputs = models.inputs("llama")
    with host.using("a", training=False), again.using("a", training=False), torch.inference_mode():
        assert torch.equal(host.model(**inputs).logits, again.model(**inputs).logits)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # its name in transformers before 5.20
@pytest.mark.parametrize("how", ["ours", pytest.param("nf4", marks=slow), pytest.param("int8", marks=slow)])
def test_both_kinds_of_checkpointing_train_the_same(how, load, tmp_path):
    plain = load(how)
    losses = trained(plain, tmp_path / "plain")
    for reentrant in (False, True):
        host = load(how)
        options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
        assert trained(host, tmp_path / f"run-{reentrant}", **options) == losses
        for name, tensor in weights(host).items():
            torch.testing.assert_close(tensor, weights(plain)[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", ["ours", pytest.param("nf4", marks=slow)])
def test_its_checkpoints_are_resumed(how, load, tmp_path):
    whole, resumed = load(how), load(how, seed=5)
    options = {"save_strategy": "steps", "save_steps": 2}
    trained(whole, tmp_path / "run", **options)
    trained(resumed, tmp_path / "run", resume=str(tmp_path / "run" / "checkpoint-2"), **options)
    assert_equal(weights(whole), weights(resumed))


def test_without_adapters_the_trainer_refuses_as_before(load, tmp_path):
    host = load("nf4")
    host.detach("a")
    assert host.model.is_quantized
    with pytest.raises(ValueError, match="purely quantized"):
        Trainer(host.model, arguments(tmp_path / "run"), train_dataset=rows())


@pytest.mark.filterwarnings("ignore")  # TRL and what it imports warn of their own versions
@pytest.mark.parametrize("how", ["ours", pytest.param("nf4", marks=slow), pytest.param("int8", marks=slow)])
def test_sft_trainer_of_trl(how, load, tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    host, initial = load(how), weights(load(how))
    base = {name: tensor.clone() for name, tensor in host.base.tensors()}
    tokenizer = models.tiny_tokenizer()
    tokenizer.eos_token = tokenizer.sep_token
    trainer = trl.SFTTrainer(
        host.model,
        args=arguments(tmp_path / "run", trl.SFTConfig, bf16=False, max_length=32),
        train_dataset=datasets.Dataset.from_dict({"text": TEXTS}),
        processing_class=tokenizer,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert not [name for name, tensor in weights(host).items() if torch.equal(tensor, initial[name])]
    assert_equal(base, dict(host.base.tensors()))


@slow
@pytest.mark.parametrize("how", ["ours", "bitsandbytes"])
def test_two_processes_of_distributed_data_parallel(how, tmp_path):
    if how == "bitsandbytes":
        pytest.importorskip("bitsandbytes")
    models.tiny("llama", "lm", **WIDTHS).save_pretrained(tmp_path / "model")
    script = Path(__file__).parents[2] / "support/parallel_trainer.py"
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script, tmp_path, how],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    one, other = (load_file(tmp_path / f"{how}.{rank}.safetensors") for rank in range(2))
    assert_equal(one, other)
    host = parallel_trainer.hosted(tmp_path / "model", how)
    alone = parallel_trainer.stepped(host, host.model, parallel_trainer.token_rows())
    assert alone.keys() == one.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(one[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("how", ["ours", pytest.param("nf4", marks=slow)])
def test_accelerate_prepares_it(how, load):
    from accelerate import Accelerator

    host = load(how)
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(host.parameter_groups("a", lr=1e-2))
    model, optimizer = accelerator.prepare(host.model, optimizer)
    batch, losses = models.inputs("llama"), []
    for _ in range(4):
        loss = model(**batch, labels=batch["input_ids"]).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
