"""Whole runs with each optimizer and with offloaded activations: the same bits, also stopped, killed and together."""

import dataclasses
import hashlib
import random
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from deltatune.core.errors import DeltatuneError, OutOfMemory
from deltatune.training import AdapterTraining, train, train_together
from deltatune.training.optimizers.state_bytes import OPTIMIZERS
from deltatune.training.scaling import activation_offload
from deltatune.training.scaling.activation_offload import FilePlace
from support import models
from support.child import in_child
from support.killed import killed
from support.killed_runs import assert_as_if_never_killed, prepared
from support.runs import PLAIN, QUIET, ROWS, TASK, assert_same, host_with, tensors

SAME = {"paged-adamw": "adamw", "paged-adamw-8bit": "adamw-8bit"}


@pytest.fixture
def tokenizer():
    return models.tiny_tokenizer()


def settings_of(name, **more):
    return dataclasses.replace(PLAIN, optimizer=name, **more)


class Stopped(Exception):
    pass


def stop_after(last):
    def on_step(step, total, loss, rate):
        if step == last:
            raise Stopped

    return on_step


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("method", ["LoRA(r=4)", "Full()"])
def test_a_stopped_run_goes_on_bit_for_bit(name, method, tokenizer, tmp_path):
    settings = settings_of(name, checkpoint_every=2, accumulation=2)
    whole = host_with(method)
    wanted = train(
        whole, "a", TASK, ROWS, None, tokenizer, dataclasses.replace(settings, optimizer=SAME.get(name, name))
    )
    last = random.Random(name + method).randint(3, 9)
    with pytest.raises(Stopped):
        train(host_with(method), "a", TASK, ROWS, None, tokenizer, settings, tmp_path, stop_after(last))
    again = host_with(method, head_seed=0)
    outcome = train(again, "a", TASK, ROWS, None, tokenizer, settings, tmp_path)
    assert 0 < outcome.resumed <= last
    assert_same(tensors(whole), tensors(again))
    assert outcome.history == wanted.history
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".jsonl", ".safetensors"}


def test_memory_and_file_are_exchanged_and_8_bits_are_not(tokenizer, tmp_path):
    whole = host_with()
    train(whole, "a", TASK, ROWS, None, tokenizer, PLAIN)
    paused = train(host_with(), "a", TASK, ROWS, None, tokenizer, settings_of("adamw"), tmp_path, until=4)
    assert paused.paused
    with pytest.raises(DeltatuneError, match=r"settings.optimizer: the checkpoint has None, this run has 'adamw-8bit'"):
        train(host_with(), "a", TASK, ROWS, None, tokenizer, settings_of("adamw-8bit"), tmp_path)
    again = host_with()
    assert train(again, "a", TASK, ROWS, None, tokenizer, settings_of("paged-adamw"), tmp_path).resumed == 4
    assert_same(tensors(whole), tensors(again))


def test_adapters_that_share_passes_have_optimizers_of_their_own(tokenizer, tmp_path):
    alone = {}
    for name in OPTIMIZERS:
        host = host_with("LoRA(r=4)", dropout=0.0, **QUIET)
        train(host, "a", TASK, ROWS, None, tokenizer, settings_of(name))
        alone[name] = tensors(host)
    host = host_with("LoRA(r=4)", name="a0", dropout=0.0, **QUIET)
    for i in range(1, len(OPTIMIZERS)):
        head = type(host.adapters["a0"].head)(host.adapters["a0"].head.config, seed=0)
        host.attach(f"a{i}", host.adapters["a0"].method, head=head)
    trainings = [
        AdapterTraining(
            f"a{i}", TASK, ROWS, settings=settings_of(name, offload_activations=i == 2), out=tmp_path / name
        )
        for i, name in enumerate(OPTIMIZERS)
    ]
    outcomes = train_together(host, trainings, tokenizer)
    for i, name in enumerate(OPTIMIZERS):
        assert len(outcomes[i].history) == 10
        rounding = {"rtol": 1e-3, "atol": 2e-3 if "8bit" in name else 1e-4}
        assert_same(alone[name], tensors(host, f"a{i}"), **rounding)


@pytest.mark.slow
def test_a_search_of_the_rate_has_the_optimizer_too(tokenizer, tmp_path):
    settings = settings_of("paged-adamw", learning_rate="auto", epochs=12)
    host, plain = host_with(), host_with()
    found = train(host, "a", TASK, ROWS, ROWS[:20], tokenizer, settings, tmp_path)
    wanted = train(plain, "a", TASK, ROWS, ROWS[:20], tokenizer, dataclasses.replace(settings, optimizer="adamw"))
    assert found.learning_rate == wanted.learning_rate
    assert_same(tensors(plain), tensors(host))


# --- offloaded activations ---


@pytest.fixture
def moved(monkeypatch):
    """The bytes that were put into a file, and every tensor of 64 bytes and more moves."""
    sizes, put = [], FilePlace.put
    monkeypatch.setattr(activation_offload, "SMALLEST", 64)
    monkeypatch.setattr(FilePlace, "put", lambda place, content: (sizes.append(len(content)), put(place, content))[1])
    return sizes


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["LoRA(r=4)", "Prefix(length=3)"])
def test_offloaded_activations_change_no_bit(kind, checkpointing, method, tokenizer, moved, tmp_path):
    settings = dataclasses.replace(PLAIN, checkpointing=checkpointing, max_steps=4)
    hosts = [host_with(method, kind) for _ in range(2)]
    train(hosts[0], "a", TASK, ROWS, None, tokenizer, settings)
    assert moved == []
    train(hosts[1], "a", TASK, ROWS, None, tokenizer, dataclasses.replace(settings, offload_activations=True))
    assert_same(tensors(hosts[0]), tensors(hosts[1]))
    assert sum(moved) > 100_000


def test_what_several_maps_read_is_moved_once_and_the_file_is_used_again(moved, tmp_path):
    place = FilePlace(activation_offload.DiskFile(tmp_path))
    moves = activation_offload.Moves(place, torch.device("cpu"), set())
    x = torch.randn(40, 50)
    kept = [moves.pack(x), moves.pack(x.T), moves.pack(x.view(-1)[:1500])]
    assert len(moved) == 1
    before = x.clone()
    x.add_(1)
    kept.append(moves.pack(x))  # it has changed since
    assert len(moved) == 2
    for one, wanted in zip(kept, [before, before.T, before.view(-1)[:1500], x], strict=True):
        again = moves.unpack(one)
        assert torch.equal(again, wanted)
        assert again.stride() == wanted.stride()
    end = place.end
    kept.clear()
    del one
    assert (place.end, end > 0) == (0, True)


def test_parameters_and_small_tensors_stay(tmp_path):
    place = FilePlace(activation_offload.DiskFile(tmp_path))
    weight = torch.randn(300, 300)
    moves = activation_offload.Moves(place, torch.device("cpu"), {weight.untyped_storage()._cdata})
    small, part = torch.randn(100), torch.randn(1000, 100)[:10]
    assert [moves.pack(tensor) is tensor for tensor in (weight, weight.T, small, part)] == [True] * 4


# --- killed ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paged-adamw", "adamw-8bit", "paged-adamw-8bit"])
def test_a_killed_run_ends_as_if_it_had_not_been(name, tmp_path):
    method = ["--method", "Full()", "--lr", "1e-3", "--optimizer", name]
    killed([*prepared("lm", tmp_path), *method], tmp_path, touches=4, clock=4)
    assert assert_as_if_never_killed(tmp_path) == 6


# --- under a limit ---


def full_run(name, out, limited):
    """Train a whole model of 21 M parameters and write a checkpoint; its losses and a digest of its values.

    limited: this process may then have 2.5 times the model's bytes of address space more than it has. Gradients take
    one of them, AdamW's states two.
    """
    import resource

    torch.set_num_threads(1)
    shape = {"hidden_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 9_000}
    model = BertModel(BertConfig(vocab_size=200, max_position_embeddings=64, **shape))
    host, spare = host_with("Full()", model=model), int(2.5 * 4 * sum(p.numel() for p in model.parameters()))
    if limited:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + spare, now + spare))
    settings = settings_of(name, max_steps=3, batch_size=2, learning_rate=1e-3)
    outcome = train(host, "a", TASK, ROWS[:6], None, models.tiny_tokenizer(), settings, out)
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in tensors(host).values()))
    return f"{outcome.history} {digest.hexdigest()}"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is limited on Linux")
def test_states_that_do_not_fit_are_paged(tmp_path):
    def attempt(name, limited):
        def act():
            torch.manual_seed(0)
            try:
                return 0, full_run(name, tmp_path / f"{name}-{limited}", limited)
            except OutOfMemory as error:
                return 3, str(error)

        return in_child(act)

    code, wanted = attempt("adamw", False)
    assert (code, wanted.count("(")) == (0, 3)
    code, said = attempt("adamw", True)
    assert code == 3
    assert "optimizer: paged-adamw" in said
    assert attempt("paged-adamw", True) == (0, wanted)
    code, rounded = attempt("adamw-8bit", True)
    assert code == 0
    assert attempt("paged-adamw-8bit", True) == (0, rounded)
    assert rounded != wanted
