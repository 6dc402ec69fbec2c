"""Compiled blocks: off by default, an error without a compiler, the faster kind kept, results within rounding."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from deltatune.core.errors import DeltatuneError
from deltatune.training import Settings, train
from deltatune.training.scaling import compiled_blocks as file
from deltatune.training.scaling.compiled_blocks import CompiledBlocks, compiled_blocks
from support import models
from support.runs import PLAIN, ROWS, TASK, assert_same, host_with, tensors


@pytest.fixture
def eager(monkeypatch):
    """Graphs that run as the blocks do, without a compiler; counts what is compiled, and what runs through it."""
    counts = {"compiled": 0, "called": 0}

    def compile_(block, dynamic):
        assert dynamic
        counts["compiled"] += 1

        def call(*args, **kwargs):
            counts["called"] += 1
            return block._call_impl(*args, **kwargs)

        block._compiled_call_impl = call

    monkeypatch.setattr(nn.Module, "compile", compile_)
    return counts


def run(settings, method="LoRA(r=2)", **options):
    host = host_with(method, num_hidden_layers=4)
    outcome = train(host, "a", TASK, ROWS, ROWS[:9], models.tiny_tokenizer(), settings, **options)
    assert not any(module._compiled_call_impl for module in host.model.modules())
    return outcome, tensors(host)


def test_training_passes_through_the_graphs_and_scoring_does_not(eager):
    plain = run(dataclasses.replace(PLAIN, evaluate="epoch"))
    compiled = run(dataclasses.replace(PLAIN, evaluate="epoch", compile="on"))
    assert eager == {"compiled": 4, "called": 4 * 9}  # not the first step
    assert plain[0].history == compiled[0].history
    assert plain[0].evaluations == compiled[0].evaluations
    assert_same(plain[1], compiled[1])


def test_only_blocks_that_are_trained_through_are_compiled(eager):
    run(dataclasses.replace(PLAIN, compile="on"), "TopLayers(1)")
    assert eager == {"compiled": 1, "called": 9}


def test_short_trainings_are_not_compiled(eager):
    run(dataclasses.replace(PLAIN, compile="auto", epochs=8))
    assert eager["compiled"] == 0


@pytest.mark.parametrize(("compiled_seconds", "kept"), [(0.5, True), (0.99, False), (2.0, False)])
def test_auto_keeps_what_is_faster(compiled_seconds, kept, eager, monkeypatch):
    now = 0.0
    monkeypatch.setattr(file.time, "perf_counter", lambda: now)
    blocks = CompiledBlocks([nn.Linear(2, 2)], choose=True)
    kinds = []
    for step in range(1, 200):
        compiles = blocks.compiled and not any(kinds)
        kinds.append(blocks.compiled)
        now += (40.0 if compiles else compiled_seconds) if blocks.compiled else 1.0
        blocks.after_step(step, 2000)
    assert not any(kinds[:10])
    assert sum(kinds[:60]) >= 10
    assert not all(kinds[20:60])
    assert kinds[100:] == [kept] * 99


def test_without_a_compiler(monkeypatch, eager):
    monkeypatch.setattr(file.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(DeltatuneError, match=r"compile='on': .*needs a C\+\+ compiler.*set compile='off'"):
        run(dataclasses.replace(PLAIN, compile="on"))
    run(dataclasses.replace(PLAIN, compile="auto"))
    assert eager["compiled"] == 0


def test_a_compiler_that_fails_is_an_error_that_says_so():
    host = host_with()
    with (
        pytest.raises(DeltatuneError, match=r"torch\.compile failed on BertModel: no graph; set compile='off'"),
        compiled_blocks(host, "auto"),
    ):
        raise torch._dynamo.exc.Unsupported("no graph\nand more")
    with pytest.raises(DeltatuneError, match="compile"):
        Settings(compile="yes")


def test_a_run_may_go_on_compiled(eager, tmp_path):
    whole = run(PLAIN)[1]
    run(dataclasses.replace(PLAIN, checkpoint_every=2), out=tmp_path, until=4)
    outcome, values = run(dataclasses.replace(PLAIN, checkpoint_every=2, compile="on"), out=tmp_path)
    assert outcome.resumed == 4
    assert_same(whole, values)


@pytest.mark.slow
def test_real_graphs_are_within_rounding_and_serve_all_lengths():
    torch._dynamo.reset()
    from torch._dynamo.utils import counters

    counters.clear()
    plain = run(PLAIN)
    compiled = run(dataclasses.replace(PLAIN, compile="on"))
    np.testing.assert_allclose(
        [loss for _, loss in plain[0].history], [loss for _, loss in compiled[0].history], rtol=1e-2
    )
    assert counters["stats"]["unique_graphs"] <= 8
