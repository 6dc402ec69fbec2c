"""Fusing trained adapters: the fusion holds copies, and learns only how to combine them."""

import pytest
import torch

import deltatune
from deltatune import DeltatuneError, Host, LoRA, Pfeiffer
from deltatune.tasks import Head
from deltatune.testing.fixtures import attach, outputs
from deltatune.training import Settings, train
from support import models
from support.runs import ROWS, TASK


@pytest.fixture
def host():
    host = Host(models.tiny("bert"))
    attach(host, "one", Pfeiffer(size=4))
    attach(host, "two", Pfeiffer(size=6), seed=1)
    return host


def test_a_fusion_of_the_same_adapter_twice_is_that_adapter(host):
    """V is the identity at the start, and any weights of equal values give that value."""
    batch = models.inputs("bert")
    host.use("one")
    alone = outputs(host, batch)
    deltatune.fuse(host, "both", ["one", "one"])
    host.use("both")
    torch.testing.assert_close(outputs(host, batch), alone, rtol=1e-4, atol=1e-4)


def test_training_a_fusion_leaves_its_members_alone(host, tmp_path):
    adapter = deltatune.fuse(host, "both", ["one", "two"], head=Head(TASK.head_config(host.model.config)))
    members = {n: t.clone() for n, t in adapter.tensors().items() if ".members." in n}
    sources = {name: host.adapters[name].tensors() for name in ("one", "two")}
    train(
        host, "both", TASK, ROWS, None, models.tiny_tokenizer(), Settings(epochs=1, batch_size=16, learning_rate=1e-2)
    )
    after = adapter.tensors()
    assert members
    for name, tensor in members.items():
        assert torch.equal(after[name], tensor)
        site, _, rest = name.removeprefix("adapterfusion.").partition(".members.")
        which, _, tensor_name = rest.partition(".")
        assert torch.equal(tensor, sources[("one", "two")[int(which)]][f"bottleneck.{site}.{tensor_name}"])
    batch = models.inputs("bert")
    host.use("both")
    wanted = outputs(host, batch)
    host.save("both", tmp_path / "both")
    again = Host(models.tiny("bert"))
    again.load(tmp_path / "both")
    torch.testing.assert_close(outputs(again, batch), wanted, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_fused_is_refused(host):
    attach(host, "lora", LoRA())
    with pytest.raises(DeltatuneError, match="did you mean 'two'"):
        deltatune.fuse(host, "both", ["one", "tow"])
    with pytest.raises(DeltatuneError, match="changes more than sublayers"):
        deltatune.fuse(host, "both", ["one", "lora"])
    assert "both" not in host.adapters


def test_the_penalty_counts_once_a_step_however_it_is_accumulated():
    """`0.01 ‖V − I‖²` at each layer joins the loss, and keeps V near the identity."""
    losses = []
    for pieces in (1, 4):
        host = Host(models.tiny("bert", dropout=False))
        for name in ("one", "two"):
            attach(host, name, Pfeiffer(size=4))
        head = Head(TASK.head_config(host.model.config, dropout=0.0))
        adapter = deltatune.fuse(host, "both", ["one", "two"], head=head)
        with torch.no_grad():
            for _, _, delta in adapter.entries():
                delta.V.add_(0.5)
            # Off the diagonal V starts at 1e-6, not at 0.
            assert adapter.penalty() == pytest.approx(2 * 0.01 * 32**2 * 0.5**2, rel=1e-4)
        settings = Settings(max_steps=1, batch_size=16, accumulation=pieces, learning_rate=1e-9, warmup=0.0)
        history = train(host, "both", TASK, ROWS[:16], None, models.tiny_tokenizer(), settings).history
        losses.append(history[0][1])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] > 2 * 0.01 * 32**2 * 0.5**2
