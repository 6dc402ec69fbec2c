"""Rows packed into one sequence: the same losses as apart, or a refusal in words."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import deltatune
from deltatune.core.errors import DeltatuneError
from deltatune.core.registry import registry
from deltatune.tasks import Classify, Generate, LanguageModel, Tag
from deltatune.tasks.collator import PaddingCollator, pack_rows
from deltatune.tasks.task import IGNORED
from deltatune.testing.tiny_configs import DECODERS
from deltatune.training import Settings, encode_for, train
from deltatune.training.inference.prediction import adapter_collator
from deltatune.training.scaling.packing import check_packing
from deltatune.training.task_model import TaskModel
from support import models
from support.language_models import generation_tokenizer, lm_host, make_rows

TASK = LanguageModel(max_length=32)
QUICK = Settings(epochs=1, batch_size=8, learning_rate=1e-2, precision="float32", schedule="constant", warmup=0.0)
PROMPTS = {"IDPG", "Prompt", "PTuning"}
BY_HAND = {"codegen": "*.ffn.in", "deepseek_v3": "*.attn.o"}
"""Families whose queries have another name: where LoRA acts there."""
MIXING = {"opt", "opt-350m", "falcon-7b", "falcon-40b", "falcon-rw", "lfm2"}
"""They take position_ids, and yet attend (or convolve) over all that stands in one sequence."""


def encoded_on(host, count=7, task=TASK):
    rows = [{"text": row["input"], **row} for row in make_rows(count, longest=20)]
    return encode_for(host, "a", task, rows, generation_tokenizer())


def losses(host, encoded, training=False):
    """The loss of all rows apart, and packed."""
    tuned, found = TaskModel(host, "a", TASK).train(training), []
    for pack in (False, True):
        batch = adapter_collator(host, "a", generation_tokenizer(), encoded, pack)(encoded.rows)
        batch.pop("rows", None)
        with torch.no_grad():
            found.append(float(tuned(**batch)["loss"]))
    return found


def checked(host, encoded):
    check_packing(host, "a", adapter_collator(host, "a", generation_tokenizer(), encoded, True), encoded.rows)


# --- rows in one sequence ---


@given(st.lists(st.integers(1, 20), min_size=1, max_size=20), st.integers(0, 12))
def test_packing_keeps_every_row_whole(lengths, more):
    width = max(lengths) + more
    rows = [{"input_ids": [i + 1] * n, "labels": [IGNORED] + [i + 1] * (n - 1)} for i, n in enumerate(lengths)]
    found = pack_rows(rows, width)
    assert sorted(token for row in found for token in row["input_ids"]) == sorted(
        token for row in rows for token in row["input_ids"]
    )
    for row in found:
        assert len(row["input_ids"]) == len(row["labels"]) == len(row["position_ids"]) <= width
        starts = [at for at, place in enumerate(row["position_ids"]) if place == 0]
        for start, end in zip(starts, [*starts[1:], len(row["input_ids"])], strict=True):
            assert len(set(row["input_ids"][start:end])) == 1
            assert row["position_ids"][start:end] == list(range(end - start))
            assert row["labels"][start] == IGNORED
    assert len(found) <= len(rows)
    if len(found) > 1:  # no two could be one
        sizes = sorted(len(row["input_ids"]) for row in found)
        assert sizes[0] + sizes[1] > width


def test_a_batch_of_mixed_lengths_becomes_few_sequences():
    rows = [{"input_ids": [5] * n, "attention_mask": [1] * n, "labels": [5] * n} for n in (16, 3, 9, 4, 2)]
    batch = PaddingCollator({"input_ids": 1}, packed=True)(rows)
    assert batch["input_ids"].shape == (3, 16) or batch["input_ids"].shape == (2 + 1, 16)
    assert batch["rows"] == 5
    assert "attention_mask" not in batch
    assert (batch["labels"] != IGNORED).sum() == 34
    assert (batch["position_ids"][batch["labels"] == IGNORED] == 0).all(), "padding stands apart"


# --- losses ---


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("name", [name for name in registry() if name not in PROMPTS])
def test_every_method_gives_the_same_loss_or_is_refused(kind, name):
    if (kind, name) == ("llama", "BitFit"):
        pytest.skip("a Llama has no biases")
    for randomize in (False, True):
        host = lm_host(kind, f"{name}()", randomize=randomize)
        encoded = encoded_on(host)
        if name == "LongLoRA":
            with pytest.raises(DeltatuneError, match=r"packed rows attend to each other: .*LongLoRA\(r=8\)"):
                checked(host, encoded)
            apart, together = losses(host, encoded, training=True)
            assert abs(apart - together) > 1e-5, "what is refused is different indeed"
        else:
            checked(host, encoded)
            apart, together = losses(host, encoded)
            assert together == pytest.approx(apart, abs=2e-6)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "qwen2", "gpt_neox", "opt", *DECODERS])
def test_every_decoder_gives_the_same_loss_or_is_refused(kind):
    where = BY_HAND.get(kind, "*.attn.q")
    host = lm_host(kind, f"LoRA(r=4, sites={where!r})")
    encoded = encoded_on(host)
    if kind in ("bloom", "mpt"):
        with pytest.raises(DeltatuneError, match="only decoders that take position_ids"):
            checked(host, encoded)
        return
    apart, together = losses(host, encoded)
    if kind in MIXING:
        with pytest.raises(DeltatuneError, match=r"attend to each other.*set packing=False"):
            checked(host, encoded)
        assert abs(apart - together) > 1e-5
    else:
        checked(host, encoded)
        assert together == pytest.approx(apart, abs=2e-6)


@pytest.mark.parametrize("name", sorted(PROMPTS))
def test_soft_prompts_are_refused(name):
    host = lm_host("llama", f"{name}(length=3)")
    with pytest.raises(DeltatuneError, match="has a soft prompt"):
        checked(host, encoded_on(host, task=Generate(max_length=32, new_tokens=8)))


def test_an_infix_between_prompt_and_answer_is_refused():
    host = lm_host("llama", "Prefix(length=3, place='infix')")
    with pytest.raises(DeltatuneError, match=r"packed rows.*without packing"):
        checked(host, encoded_on(host, task=Generate(max_length=32, new_tokens=8)))


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_encoder_decoders_are_refused(kind):
    host = lm_host(kind)
    task = Generate(max_length=32, new_tokens=8)
    with pytest.raises(DeltatuneError, match=r"cannot train on packed rows.*set packing=False"):
        train(host, "a", task, make_rows(8), None, generation_tokenizer(), dataclasses.replace(QUICK, packing=True))


@pytest.mark.parametrize("task", [Classify(labels=("a", "b"), max_length=64), Tag(tags=("a", "b"), max_length=64)])
def test_tasks_with_a_head_are_refused(task):
    host = deltatune.Host(models.tiny("llama"))
    host.attach("a", deltatune.LoRA(), head=task.make_head(host.model.config))
    rows = [{"text": "the film", "label": "a", "tokens": ["the"], "tags": ["b"]}] * 4
    with pytest.raises(DeltatuneError, match="packing is for tasks that use the language-model head"):
        train(host, "a", task, rows, None, models.tiny_tokenizer(), dataclasses.replace(QUICK, packing=True))


@pytest.mark.parametrize(("kind", "mixes"), [("llama", False), ("gpt2", False), ("opt", True)])
def test_half_precision_is_judged_by_its_rounding(kind, mixes):
    host = lm_host(kind)
    host.model.to(torch.bfloat16)
    if mixes:
        with pytest.raises(DeltatuneError, match="attend to each other"):
            checked(host, encoded_on(host))
    else:
        checked(host, encoded_on(host))


def test_the_check_leaves_modes_and_random_numbers_as_they_were():
    host = lm_host("llama", "LoRA(r=4, dropout=0.5)")
    host.model.train()
    host.model.model.layers[0].eval()
    modes = [module.training for module in host.model.modules()]
    state = torch.random.get_rng_state()
    checked(host, encoded_on(host))
    assert [module.training for module in host.model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)


def test_one_row_alone_is_checked_against_itself():
    host = lm_host("opt")
    with pytest.raises(DeltatuneError, match="attend to each other"):
        checked(host, encoded_on(host, 1))


# --- training ---


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("task", [TASK, Generate(max_length=40, new_tokens=8)])
def test_training_on_packed_rows_is_training_on_rows(kind, task):
    rows = [{"text": row["input"], **row} for row in make_rows(40, longest=20)]
    found = []
    for packing, accumulation in ((False, 1), (True, 1), (True, 2)):
        host = lm_host(kind)
        settings = dataclasses.replace(QUICK, packing=packing, accumulation=accumulation)
        outcome = train(host, "a", task, rows, None, generation_tokenizer(), settings)
        found.append((outcome.history, [p.detach().clone() for _, p in host.trainable("a")]))
    for history, tensors in found[1:]:
        np.testing.assert_allclose(history, found[0][0], rtol=2e-5)
        for one, other in zip(tensors, found[0][1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4)
