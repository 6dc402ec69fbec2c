"""Training: what a run does, and that its result is the same however it is split, ordered or repeated."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import get_scheduler

import deltatune
from deltatune.core.errors import DeltatuneError
from deltatune.tasks import Classify, Head
from deltatune.training import predict, train
from deltatune.training.scaling.distributed import Processes
from deltatune.training.training_loop.loop import schedule_factor, warmup_steps_of
from deltatune.training.training_loop.sampler import BatchLoader, BatchSampler
from support import models
from support.runs import PLAIN, QUIET, ROWS, TASK, assert_same, host_with, tensors


@pytest.fixture
def tokenizer():
    return models.tiny_tokenizer()


# --- what a run does ---


RATES = {
    "LoRA(r=4)": 1e-2,
    "Bottleneck(size=4)": 1e-2,
    "Prefix(length=3, mlp=8)": 1e-2,
    "Prompt(length=3)": 1e-1,
    "BitFit()": 1e-2,
    "Full()": 5e-3,
}


@pytest.mark.parametrize(("method", "rate"), RATES.items(), ids=list(RATES))
def test_every_kind_of_method_learns_and_leaves_the_base_alone(method, rate, tokenizer):
    host = host_with(method)
    base = {name: tensor.clone() for name, tensor in host.base.tensors()}
    settings = dataclasses.replace(PLAIN, epochs=6, learning_rate=rate)
    outcome = train(host, "a", TASK, ROWS, ROWS, tokenizer, settings)
    losses = [loss for _, loss in outcome.history]
    assert [step for step, _ in outcome.history] == list(range(1, 31))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05
    assert outcome.evaluations[-1][0] == 30
    assert outcome.evaluations[-1][1]["accuracy"] > 0.75
    assert outcome.examples_per_second > 0
    assert_same(base, dict(host.base.tensors()))
    assert "mlp" not in repr(host.adapters["a"].method) or "mlp=0" in repr(host.adapters["a"].method)


@pytest.mark.parametrize("kind", ["roberta", "gpt2", "llama", "t5", "bart"])
def test_other_families_train(kind, tokenizer):
    host = host_with(kind=kind)
    outcome = train(host, "a", TASK, ROWS[:40], ROWS[:9], tokenizer, PLAIN)
    assert len(outcome.history) == 6
    assert set(outcome.evaluations[-1][1]) >= {"accuracy", "matthews"}


def test_left_padding_gives_what_right_padding_gives(tokenizer):
    host = host_with(kind="llama")
    right = predict(host, "a", TASK, ROWS[:9], tokenizer, precision="float32")
    tokenizer.padding_side = "left"
    left = predict(host, "a", TASK, ROWS[:9], tokenizer, precision="float32")
    np.testing.assert_allclose(left, right, atol=1e-5)


def test_regression_trains(tokenizer):
    task = Classify(text=("text",), label="grade", max_length=64)
    host = deltatune.Host(models.tiny("bert"))
    host.attach("a", deltatune.parse("LoRA(r=4)"), head=Head(task.head_config(host.model.config)))
    rows = [{"text": row["text"], "grade": float(row["label"] == "good")} for row in ROWS]
    outcome = train(host, "a", task, rows, rows, tokenizer, dataclasses.replace(PLAIN, epochs=6, learning_rate=1e-2))
    assert outcome.evaluations[-1][1]["pearson"] > 0.6


def test_a_models_own_head_is_the_adapters(tokenizer):
    task = Classify(labels=("bad", "good", "unseen"), max_length=64)
    host = deltatune.Host(models.tiny("bert", "classify"))
    host.attach("a", deltatune.parse("LoRA(r=4)"))
    own = host.model.classifier.weight.clone()
    before = tensors(host)
    outcome = train(host, "a", task, ROWS, ROWS[:10], tokenizer, PLAIN)
    assert "accuracy" in outcome.evaluations[-1][1]
    assert torch.equal(host.model.classifier.weight, own)
    changed = [key for key, value in tensors(host).items() if not torch.equal(value, before[key])]
    assert any(key.startswith("head.") for key in changed)


def test_a_head_beside_a_models_own(tokenizer):
    host = host_with(model=models.tiny("bert", "classify"))
    bare = host_with()
    bare.model.load_state_dict(host.model.bert.state_dict(), strict=False)
    ours, wanted = (predict(h, "a", TASK, ROWS[:5], tokenizer, precision="float32") for h in (host, bare))
    np.testing.assert_allclose(ours, wanted, atol=1e-5)


def test_no_head_at_all_is_an_error(tokenizer):
    host = deltatune.Host(models.tiny("bert"))
    host.attach("a", deltatune.parse("LoRA(r=4)"), head=False)
    with pytest.raises(DeltatuneError, match="has no head and the model gives no logits"):
        train(host, "a", TASK, ROWS, None, tokenizer, PLAIN)


def test_quiet_and_without_files(tokenizer, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(host_with(), "a", TASK, ROWS, ROWS[:5], tokenizer, PLAIN)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_on_step_sees_every_step(tokenizer):
    seen = []
    outcome = train(host_with(), "a", TASK, ROWS, None, tokenizer, PLAIN, on_step=lambda *values: seen.append(values))
    assert [(step, loss) for step, _, loss, _ in seen] == outcome.history
    assert {total for _, total, _, _ in seen} == {10}
    rates = [rate for *_, rate in seen]
    assert rates[0] < max(rates) > rates[-1]
    assert outcome.evaluations == []


def test_evaluation_each_epoch(tokenizer):
    settings = dataclasses.replace(PLAIN, evaluate="epoch", epochs=3)
    outcome = train(host_with(), "a", TASK, ROWS, ROWS[:20], tokenizer, settings)
    assert [step for step, _ in outcome.evaluations] == [5, 10, 15]


def test_a_fraction_of_an_epoch(tokenizer):
    outcome = train(host_with(), "a", TASK, ROWS, None, tokenizer, dataclasses.replace(PLAIN, epochs=0.4))
    assert len(outcome.history) == 2


def test_truncated_rows_are_counted(tokenizer):
    task = dataclasses.replace(TASK, max_length=6)
    outcome = train(host_with(), "a", task, ROWS, ROWS[:10], tokenizer, dataclasses.replace(PLAIN, max_steps=1))
    lengths = [len(tokenizer(row["text"])["input_ids"]) for row in [*ROWS, *ROWS[:10]]]
    assert outcome.truncated == sum(length > 6 for length in lengths)


def test_virtual_tokens_take_room(tokenizer):
    task = dataclasses.replace(TASK, max_length=120)
    for method in ("Prompt(length=9)", "Prefix(length=9)"):
        with pytest.raises(DeltatuneError, match="of which the adapter adds 9: set max_length to 119"):
            train(host_with(method), "a", task, ROWS, None, tokenizer, PLAIN)
    long = [{"text": "very " * 300, "label": "good"}]
    encoded = task.encode(long, tokenizer, positions=128)  # for an adapter that adds nothing
    train(host_with(), "a", task, encoded, None, tokenizer, dataclasses.replace(PLAIN, max_steps=1))
    with pytest.raises(DeltatuneError, match="up to 120 tokens and adapter 'a' adds 9, more than the 128"):
        train(host_with("Prompt(length=9)"), "a", task, encoded, None, tokenizer, PLAIN)
    rows = [*long, *ROWS[:5]]
    train(host_with("Prompt(length=8)"), "a", task, rows, None, tokenizer, dataclasses.replace(PLAIN, max_steps=1))


def test_route_modes_and_model_are_left_as_found(tokenizer):
    host = host_with()
    host.attach("b", deltatune.parse("BitFit()"), head=Head(TASK.head_config(host.model.config)))
    host.use({"a": 0.5, "b": 0.5})
    host.model.encoder.layer[0].train()
    modes = [module.training for module in host.model.modules()]
    forward, hooks = host.model.forward, len(host.model._forward_pre_hooks)
    for _ in range(2):
        train(host, "b", TASK, ROWS[:20], ROWS[:5], tokenizer, dataclasses.replace(PLAIN, max_steps=2))
    assert dict(host.route.uniform) == {"a": 0.5, "b": 0.5}
    assert [module.training for module in host.model.modules()] == modes
    assert host.model.forward == forward
    assert len(host.model._forward_pre_hooks) == hooks


def test_only_matrices_decay(tokenizer):
    one, two = (train_and_take("BitFit()", tokenizer, weight_decay=decay, learning_rate=1e-2) for decay in (0.0, 0.5))
    heads = {key for key in one if not torch.equal(one[key], two[key])}
    assert "head.out.weight" in heads
    one, two = (train_and_take("LoRA(r=4)", tokenizer, weight_decay=decay) for decay in (0.0, 0.5))
    assert not torch.equal(one["head.out.weight"], two["head.out.weight"])


def train_and_take(method, tokenizer, **over):
    host = host_with(method)
    train(host, "a", TASK, ROWS[:16], None, tokenizer, dataclasses.replace(PLAIN, max_steps=1, warmup=0.0, **over))
    return tensors(host)


def test_the_page_on_training_has_every_setting():
    page = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(PLAIN):
        assert f"| `{field.name}` | `{field.default!r}` | " in page


# --- the same result, however it is reached ---


@pytest.mark.parametrize("method", ["LoRA(r=4)", "Probe()"])
def test_accumulation_changes_nothing(method, tokenizer):
    """70 rows in batches of 16: the last has 6, which four passes split into 1, 2, 1 and 2."""
    results = []
    for pieces in (1, 4):
        host = host_with(method, dropout=0.0, **QUIET)
        settings = dataclasses.replace(PLAIN, accumulation=pieces, learning_rate=1e-2)
        results.append((train(host, "a", TASK, ROWS, None, tokenizer, settings), tensors(host)))
    (one, first), (four, second) = results
    assert len(one.history) == len(four.history) == 10
    np.testing.assert_allclose([loss for _, loss in one.history], [loss for _, loss in four.history], rtol=1e-4)
    assert_same(first, second, rtol=1e-3, atol=1e-4)


def test_gradients_from_before_do_not_count(tokenizer):
    results = []
    for value in (None, 5.0):
        host = host_with()
        for _, parameter in host.trainable("a"):
            parameter.grad = None if value is None else torch.full_like(parameter, value)
        train(host, "a", TASK, ROWS, None, tokenizer, PLAIN)
        results.append(tensors(host))
    assert_same(*results)


def test_two_runs_are_equal_whatever_else_is_random(tokenizer):
    results = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        host = host_with()
        train(host, "a", TASK, ROWS, None, tokenizer, PLAIN)
        results.append(tensors(host))
    assert_same(*results)
    other = host_with()
    train(other, "a", TASK, ROWS, None, tokenizer, dataclasses.replace(PLAIN, seed=1))
    assert any(not torch.equal(value, results[0][key]) for key, value in tensors(other).items())


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize(("count", "size", "pieces"), [(70, 16, 1), (70, 16, 4), (64, 16, 3), (5, 8, 2), (65, 16, 4)])
def test_the_sampler_has_every_row_once(grouped, count, size, pieces):
    lengths = np.random.default_rng(0).integers(3, 60, count).tolist()
    sampler = BatchSampler(lengths, size, pieces, seed=0, length_grouping=grouped)
    steps = sampler.batches(0)
    passes = [sampler.forward_passes(step) for step in steps]
    assert len(steps) == sampler.steps_per_epoch
    assert sorted(row for step in passes for part in step for row in part) == list(range(count))
    assert [[row for part in step for row in part] for step in passes] == steps
    assert all(part for step in passes for part in step)
    assert {len(step) for step in passes[:-1]} <= {pieces}
    assert {len(step) for step in steps[:-1]} <= {size}
    assert sampler.batches(0) == steps
    assert sampler.batches(1) != steps or count <= 8
    other, same = BatchSampler(lengths, size, 1, 1, grouped), BatchSampler(lengths, size, 1, 0, grouped)
    assert other.batches(0) != same.batches(0)


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize(("count", "batch", "pieces"), [(70, 16, 1), (70, 16, 4), (64, 16, 9), (5, 8, 2), (65, 16, 4)])
def test_processes_share_the_rows_of_each_step(count, batch, pieces, size):
    lengths = np.random.default_rng(0).integers(3, 60, count).tolist()
    alone = BatchSampler(lengths, batch, 1, 0, True)
    samplers = [BatchSampler(lengths, batch, pieces, 0, True, Processes(rank, size)) for rank in range(size)]
    assert all(sampler.batches(0) == alone.batches(0) for sampler in samplers)
    for step in alone.batches(0):
        by_rank = [sampler.forward_passes(step) for sampler in samplers]
        assert len({len(passes) for passes in by_rank}) == 1
        assert len(by_rank[0]) <= pieces
        assert sorted(row for passes in by_rank for rows in passes for row in rows) == sorted(step)
        shares = [len(rows) for passes in by_rank for rows in passes]
        assert max(shares) - min(shares) <= 1


def test_the_loader_resumes_at_any_step():
    loader = BatchLoader(
        BatchSampler(range(1, 11), 4, 2),
        lambda rows, epoch: {"numbers": torch.tensor(rows), "epoch": torch.tensor(epoch)},
    )

    def drawn(first, last):
        return [
            (step, [(batch.tensors["numbers"].tolist(), int(batch.tensors["epoch"]), batch.rows) for batch in batches])
            for step, batches in loader.steps(first, last)
        ]

    whole = drawn(1, 8)
    assert [step for step, _ in whole] == list(range(1, 9))
    assert [batches[0][1] for _, batches in whole] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert all(drawn(first, 8) == whole[first - 1 :] for first in range(1, 10))


def test_grouping_saves_padding():
    lengths = np.random.default_rng(0).integers(3, 60, 500).tolist()

    def padding(grouped):
        batches = BatchSampler(lengths, 16, 1, seed=0, length_grouping=grouped).batches(0)
        return sum(
            max(lengths[row] for row in rows) * len(rows) - sum(lengths[row] for row in rows) for rows in batches
        )

    assert padding(True) < 0.3 * padding(False)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_the_schedule_is_that_of_transformers_without_the_steps_at_rate_0(schedule, warmup):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.7)
    kind = "constant_with_warmup" if schedule == "constant" else schedule
    reference = get_scheduler(kind, optimizer, warmup + 1, 12)
    assert optimizer.param_groups[0]["lr"] == 0.0
    for step in range(11):
        optimizer.step()
        reference.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.7 * schedule_factor(schedule, step, warmup, 11))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.5, 1.0])
@pytest.mark.parametrize("total", [1, 2, 3, 17])
def test_no_step_of_a_schedule_is_wasted(schedule, warmup, total):
    warmup_steps = warmup_steps_of(warmup, total)
    factors = [schedule_factor(schedule, step, warmup_steps, total) for step in range(total)]
    assert all(0.001 < factor <= 1 for factor in factors)
    assert max(factors) == 1


@pytest.mark.parametrize("method", ["LoRA(r=4)", "Prefix(length=2)", "Probe()", "Full()", "BitFit()"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_run_of_one_step_trains(method, accumulation, tokenizer):
    host = host_with(method)
    before = tensors(host)
    settings = dataclasses.replace(PLAIN, epochs=1, batch_size=32, accumulation=accumulation)
    outcome = train(host, "a", TASK, ROWS[:30], None, tokenizer, settings)
    assert len(outcome.history) == 1
    after = tensors(host)
    still = [key for key in after if torch.equal(before[key], after[key])]
    assert len(still) < len(after)
    if method == "LoRA(r=4)":
        assert all(float(value.abs().max()) > 0 for key, value in after.items() if key.endswith("B"))
