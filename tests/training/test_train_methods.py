"""Every registered method trains: every tensor moves, a checkpoint resumes it, and the finished adapter keeps it."""

import dataclasses

import pytest
import torch

from deltatune import Host, parse
from deltatune.core.registry import registry
from deltatune.tasks import Head
from deltatune.tasks.tokenization import with_token_ids
from deltatune.training import train
from support import models
from support.runs import PLAIN, ROWS, TASK

METHODS = list({repr(maker()): f"{name}()" for name, maker in registry().items()}.values())


@pytest.mark.one_in(2)
@pytest.mark.parametrize("text", METHODS)
def test_a_method_trains_and_is_kept(text, tmp_path):
    tokenizer = models.tiny_tokenizer()
    host = Host(models.tiny("bert"))
    method = with_token_ids(parse(text), tokenizer, TASK)
    host.attach("a", method, head=Head(TASK.head_config(host.model.config)))
    before = {name: p.detach().clone() for name, p in host.trainable("a")}
    settings = dataclasses.replace(PLAIN, max_steps=4, warmup=0.0, learning_rate=1e-2)
    live = {}

    def watch(step, total, loss, rate):
        live.update({name: p.detach().clone() for name, p in host.trainable("a")})

    train(host, "a", TASK, ROWS, None, tokenizer, settings, on_step=watch)
    moved = {name for name, value in live.items() if not torch.equal(value, before[name])}
    assert any(not name.startswith("head.") for name in moved) or text == "Probe()"
    batch = models.inputs("bert")
    with torch.no_grad():
        wanted = host.model(**batch)[0]
    host.save("a", tmp_path / "a")
    again = Host(models.tiny("bert"))
    again.load(tmp_path / "a")
    with torch.no_grad():
        torch.testing.assert_close(again.model(**batch)[0], wanted, rtol=1e-5, atol=1e-6)
