"""Lower layers: kept states change no training and no prediction, and nothing below the lowest site is run or learned
twice."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import deltatune
from deltatune.core.errors import DeltatuneError
from deltatune.tasks import Classify, ExtractiveQA, Generate, Head, LanguageModel, Mixture, Tag
from deltatune.tasks.pretraining.mlm import MaskedLM
from deltatune.training import predict, train
from deltatune.training.scaling.block_bypass import BlockBypass
from deltatune.training.scaling.feature_cache import CACHE, FeatureCache, set_cache_limit
from deltatune.training.scaling.lower_layers import find_lower_blocks, lower_layers
from deltatune.training.task_model import TaskModel
from support import models
from support.language_models import generation_tokenizer
from support.runs import PLAIN, ROWS, TASK, assert_same, host_with, tensors

DEPTH = {
    "bert": {"num_hidden_layers": 4},
    "gpt2": {"n_layer": 4},
    "llama": {"num_hidden_layers": 4},
    "t5": {"num_layers": 4, "num_decoder_layers": 4},
}
LORA = {"t5": "LoRA(r=4, sites=('encoder.layers.{2,3}.attn.{q,v}', 'decoder.*.attn.q'))"}


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


THREE = dataclasses.replace(PLAIN, epochs=3, learning_rate=1e-2)


@pytest.fixture(autouse=True)
def empty_cache():
    CACHE.clear_()
    yield
    set_cache_limit("auto")
    CACHE.clear_()


@pytest.fixture
def tokenizer():
    return models.tiny_tokenizer()


def deep_host(method, kind="bert", **options):
    """A host on a model of four blocks with its own dropout, in every stack."""
    return host_with(method, kind, **DEPTH[kind], **options)


def calls_of(host):
    """Numbers of calls of each block of the (first) stack that ran for themselves, kept up to date."""
    lower = find_lower_blocks(host)
    counts = [0] * len(lower.blocks)
    for i, block in enumerate(lower.blocks):
        own = type(block).forward

        def counted(*args, block=block, own=own, i=i, **kwargs):
            counts[i] += 1
            return own(block, *args, **kwargs)

        block.forward = counted
    return counts


def trained(host, tokenizer, settings=THREE, task=TASK, rows=ROWS, **options):
    return train(host, "a", task, rows, None, tokenizer, settings, **options), tensors(host)


# --- training


@pytest.mark.one_in(2)
@pytest.mark.parametrize("method", ["TopLayers(2)", slow("AdapterDrop(size=4, drop=2)"), "LoRA"])
@pytest.mark.parametrize("kind", list(DEPTH))
def test_kept_states_change_no_training(kind, method, tokenizer):
    method = LORA.get(kind, "LoRA(r=4, sites='layers.{2,3}.attn.{q,v}')") if method == "LoRA" else method
    results, groups = [], -(-len(ROWS) // 64)
    for limit in ("auto", None):
        set_cache_limit(limit)
        host = deep_host(method, kind)
        assert len(find_lower_blocks(host).blocks) == 2
        calls = calls_of(host)
        results.append(trained(host, tokenizer))
        steps = 3 * math.ceil(len(ROWS) / 16)
        tried = 6  # passes of the check
        assert groups <= calls[1] <= groups + tried if limit else steps <= calls[1] <= steps + tried
    (kept, first), (live, second) = results
    np.testing.assert_allclose([loss for _, loss in kept.history], [loss for _, loss in live.history], rtol=1e-4)
    matrices = [{name: value for name, value in each.items() if value.dim() > 1} for each in (first, second)]
    assert_same(*matrices, rtol=1e-3, atol=1e-4)  # Adam makes steps of a key's bias out of rounding: it has no gradient


@pytest.mark.one_in(2)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("kind", "counted"), [("bert", True), ("llama", False)])
def test_padding_on_the_left_is_kept_where_positions_do_not_count_it(kind, counted, side, tokenizer):
    tokenizer.padding_side = side
    results = []
    for limit in ("auto", None):
        set_cache_limit(limit)
        results.append(trained(deep_host("TopLayers(2)", kind), tokenizer))
        if limit:
            assert bool(CACHE.entries) == (side == "right" or not counted)
    np.testing.assert_allclose([x for _, x in results[0][0].history], [x for _, x in results[1][0].history], rtol=1e-4)


def test_states_are_shared_by_rates_seeds_and_methods(tokenizer):
    trained(deep_host("TopLayers(2)"), tokenizer)
    for method, settings in [
        ("TopLayers(2)", dataclasses.replace(THREE, learning_rate=1e-3, seed=4)),
        ("AdapterDrop(size=4, drop=2)", dataclasses.replace(THREE, batch_size=8)),
    ]:
        host = deep_host(method)
        calls = calls_of(host)
        trained(host, tokenizer, settings)
        assert calls[0] <= 6, method  # the check of a model object
    assert len(CACHE.entries) == 1
    other = models.tiny("bert", **DEPTH["bert"])
    with torch.no_grad():
        next(other.encoder.layer[0].parameters()).add_(0.1)
    trained(host_with("TopLayers(2)", model=other), tokenizer)
    trained(deep_host("TopLayers(1)"), tokenizer)
    assert len(CACHE.entries) == 3


def test_a_resumed_run_ends_as_one_that_never_stopped(tokenizer, tmp_path):
    whole = trained(deep_host("TopLayers(2)"), tokenizer)[1]
    CACHE.clear_()
    settings = dataclasses.replace(THREE, checkpoint_every=4)
    trained(deep_host("TopLayers(2)"), tokenizer, settings, out=tmp_path, until=6)
    CACHE.clear_()
    outcome, values = trained(deep_host("TopLayers(2)"), tokenizer, settings, out=tmp_path)
    assert outcome.resumed == 6
    assert_same(whole, values)


@pytest.mark.parametrize("change", [{"checkpointing": True}, slow({"accumulation": 4}), {"precision": "bfloat16"}])
def test_with_checkpointing_accumulation_and_bfloat16(change, tokenizer):
    results = []
    for limit in ("auto", None):
        set_cache_limit(limit)
        results.append(trained(deep_host("TopLayers(2)"), tokenizer, dataclasses.replace(THREE, **change)))
        assert bool(CACHE.entries) == bool(limit)
    tolerance = 2e-2 if "precision" in change else 1e-4
    kept, live = ([loss for _, loss in outcome.history] for outcome, _ in results)
    np.testing.assert_allclose(kept, live, rtol=tolerance, atol=tolerance)


def test_blocks_below_have_no_dropout_and_blocks_above_have(tokenizer):
    host = deep_host("TopLayers(2)", dropout=0.0)
    batch = dict(TASK.encode(ROWS[:4], tokenizer)[0])
    ids = torch.tensor([batch["input_ids"]] * 2)
    model = TaskModel(host, "a", TASK).train()
    states = []
    host.model.encoder.layer[1].register_forward_hook(lambda module, args, output: states.append(output))
    with lower_layers(host, always=True):
        losses = {model(torch.tensor([0, 1]), input_ids=ids)["loss"].item() for _ in range(3)}
    assert len(losses) == 3
    assert all(torch.equal(state, states[-1]) for state in states[-3:])
    assert host.model.encoder.layer[0].training
    assert "forward" not in vars(host.model.encoder.layer[0])


# --- predictions


@pytest.mark.parametrize("kind", list(DEPTH))
def test_repeated_predictions_are_bit_equal(kind, tokenizer):
    host = deep_host("TopLayers(2)", kind)
    calls = calls_of(host)
    answers, counts = [], []
    for _ in range(4):
        answers.append(predict(host, "a", TASK, ROWS, tokenizer, precision="float32"))
        counts.append(calls[1])
    for other in answers[1:]:
        np.testing.assert_array_equal(answers[0], other)
    assert counts[0] < counts[1] == counts[2] == counts[3]  # read once, kept the second time


def test_validation_rows_are_kept_over_epochs_and_trainings(tokenizer):
    settings = dataclasses.replace(THREE, evaluate="epoch")
    for _ in range(2):
        train(deep_host("TopLayers(2)"), "a", TASK, ROWS, ROWS[:20], tokenizer, settings)
    assert len(CACHE.entries) == 2
    assert not any(entry.users for entry in CACHE.entries.values())
    host = deep_host("TopLayers(2)")
    alone = train(host, "a", TASK, ROWS, ROWS[:20], tokenizer, settings).evaluations
    set_cache_limit(None)
    live = train(deep_host("TopLayers(2)"), "a", TASK, ROWS, ROWS[:20], tokenizer, settings).evaluations
    assert [score["accuracy"] for _, score in alone] == [score["accuracy"] for _, score in live]


def test_a_probe_shares_its_vectors(tokenizer):
    host = deep_host("Probe()")
    passes = []
    host.model.register_forward_hook(lambda *_: passes.append(1))
    trained(host, tokenizer)
    first = len(passes)
    for seed in (1, 2):
        other = deep_host("Probe()", head_seed=seed)
        other.model.register_forward_hook(lambda *_: passes.append(1))
        trained(other, tokenizer, dataclasses.replace(THREE, seed=seed, learning_rate=0.1))
    assert len(passes) == first
    answers = [predict(host, "a", TASK, ROWS[:30], tokenizer, precision="float32") for _ in range(4)]
    assert len(passes) == first + 2  # the first time, and the time they are kept
    for other in answers[1:]:
        np.testing.assert_array_equal(answers[0], other)
    pooled = host_with("Probe()", **DEPTH["bert"])
    config = TASK.head_config(pooled.model.config, pooling="cls")
    pooled.detach("a")
    pooled.attach("a", deltatune.parse("Probe()"), head=Head(config))
    before = len(CACHE.entries)
    trained(pooled, tokenizer)
    assert len(CACHE.entries) == before + 1  # a key names the pooling


# --- what has no lower layers


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("bert", "LoRA(r=2)"),
        ("bert", "Prompt(length=3)"),
        ("llama", "Prefix(length=3, sites='layers.{2,3}.attn.kv')"),
        ("bert", "RobustAdapterDrop(size=4)"),
        ("bert", "TopLayers(2) + Prompt(length=2)"),
        ("gpt2", "Embeddings()"),
        ("bert", "BitFit()"),
        ("t5", "LoRA(r=2, sites='encoder.*.attn.q')"),
    ],
)
def test_methods_that_reach_the_first_block_have_none(kind, method, tokenizer):
    host = deep_host(method, kind)
    assert find_lower_blocks(host) is None
    calls = []
    with lower_layers(host, always=True) as split:
        assert split is None
    assert not calls


def test_changes_beside_the_blocks_are_found():
    host = deltatune.Host(models.tiny("gpt2", "lm", n_layer=4))
    host.attach("a", deltatune.parse("LoRA(r=2, sites='lm_head')"), head=False) if "lm_head" in host.sites else None
    model = models.tiny("albert", num_hidden_layers=4)
    shared = deltatune.Host(model)
    shared.attach("a", deltatune.parse("TopLayers(1)"), head=False)
    assert find_lower_blocks(shared) is None  # one block, used four times
    skipping = deltatune.Host(models.tiny("bart", encoder_layers=4, encoder_layerdrop=0.1))
    skipping.attach("a", deltatune.parse("TopLayers(1)"), head=False)
    assert find_lower_blocks(skipping) is None
    merged = deep_host("LoRA(r=2, sites='layers.3.attn.q')")
    assert find_lower_blocks(merged) is not None
    merged.merge_("a")
    assert find_lower_blocks(merged) is None


def test_an_encoder_that_nothing_changes_is_kept_whole(tokenizer):
    host = deep_host("LoRA(r=2, sites='decoder.*.attn.q')", "t5")
    assert len(find_lower_blocks(host).blocks) == 4
    results = []
    for limit in ("auto", None):
        set_cache_limit(limit)
        results.append(trained(deep_host("LoRA(r=2, sites='decoder.*.attn.q')", "t5"), tokenizer))
    np.testing.assert_allclose([x for _, x in results[0][0].history], [x for _, x in results[1][0].history], rtol=1e-4)


def test_a_model_whose_blocks_cannot_be_left_out_runs_as_it_is(tokenizer):
    model = models.tiny("bert", num_hidden_layers=4)
    own = model.encoder.layer[3].forward
    seen = []
    model.encoder.layer[0].register_forward_hook(lambda module, args, output: seen.append(output))
    model.encoder.layer[3].forward = lambda states, *args, **kwargs: own(states + seen[-1], *args, **kwargs)
    host = host_with("TopLayers(2)", model=model)
    with lower_layers(host, always=True) as split:
        host.model(torch.tensor([[7, 8, 9]]))
        assert not split.bypass.support.works
    outcome, _ = trained(host, tokenizer)
    assert outcome.history
    assert not CACHE.entries


@pytest.mark.parametrize(
    ("kind", "config", "further"),
    [("t5", {"num_layers": 4}, True), ("deberta", {"num_hidden_layers": 4}, False), ("bloom", {"n_layer": 4}, True)],
)
def test_blocks_that_return_more_than_states(kind, config, further, tokenizer):
    """T5's position bias is the first block's for all; under checkpointing too."""
    settings = dataclasses.replace(THREE, max_steps=6, checkpointing=kind == "t5")
    results = []
    for limit in ("auto", None):
        set_cache_limit(limit)
        host = host_with("TopLayers(2)", kind, **config)
        with lower_layers(host, always=True) as split, torch.no_grad():
            ids = torch.tensor([[7, 8, 9]])
            (host.model.get_encoder() if kind == "t5" else host.model)(ids, attention_mask=torch.ones_like(ids))
            assert split.bypass.support.works
            assert split.bypass.support.extras == further
        results.append(trained(host, tokenizer, settings)[0])
        assert bool(CACHE.entries) == bool(limit)
    np.testing.assert_allclose([x for _, x in results[0].history], [x for _, x in results[1].history], rtol=1e-4)


# --- tasks and batches


TAGS = Tag(tags=("O", "B-X"), text=("tokens",), label="tags", max_length=32)
TAG_ROWS = [
    {"tokens": ["the", word, "is"], "tags": ["O", "B-X", "O"]} for word in ("film", "plot", "actor", "good")
] * 5
SPAN = ExtractiveQA(max_length=48, stride=8)
SPAN_ROWS = [
    {"question": "what is good", "context": f"the {word} is good", "answers": [{"text": word, "start": 4}]}
    for word in ("film", "plot", "actor")
] * 6


@pytest.mark.parametrize(("task", "rows"), [(TAGS, TAG_ROWS), (SPAN, SPAN_ROWS)], ids=["tags", "span"])
@pytest.mark.parametrize("method", ["TopLayers(2)", "Probe()"])
def test_tags_and_spans(task, rows, method, tokenizer):
    results = []
    for limit in ("auto", None):
        set_cache_limit(limit)
        model = models.tiny("bert", num_hidden_layers=4)
        host = deltatune.Host(model)
        host.attach("a", deltatune.parse(method), head=Head(task.head_config(model.config, dropout=0.0)))
        results.append(trained(host, tokenizer, task=task, rows=rows)[0])
        assert bool(CACHE.entries) == bool(limit)
    np.testing.assert_allclose([x for _, x in results[0].history], [x for _, x in results[1].history], rtol=1e-4)


TEXTS = [{"text": f"the {word} is very good"} for word in ("film", "plot", "actor", "it")] * 5
PAIRS = [{"input": f"the {word}", "output": word, "references": [word]} for word in ("film", "plot", "it")] * 6


@pytest.mark.parametrize(
    ("kind", "task", "rows", "kept"),
    [
        ("llama", LanguageModel(max_length=32), TEXTS, True),
        ("gpt2", Generate(text=("input",), label="output", prompt="plain", new_tokens=4, max_length=48), PAIRS, True),
        ("t5", Generate(text=("input",), label="output", prompt="plain", new_tokens=4, max_length=48), PAIRS, True),
        ("bert", MaskedLM(max_length=32), TEXTS, False),  # masked anew in every epoch
    ],
    ids=["llama", "gpt2", "t5", "bert"],
)
def test_tasks_of_the_language_model_head(kind, task, rows, kept):
    tokenizer = models.tiny_tokenizer() if kind == "bert" else generation_tokenizer()
    results = []
    for limit in ("auto", None):
        set_cache_limit(limit)
        host = deltatune.Host(models.tiny(kind, "lm", **DEPTH[kind]))
        host.attach("a", deltatune.parse("TopLayers(2)"), head=False)
        results.append(trained(host, tokenizer, task=task, rows=rows)[0])
        assert bool(CACHE.entries) == bool(limit and kept)
    np.testing.assert_allclose([x for _, x in results[0].history], [x for _, x in results[1].history], rtol=1e-4)


def test_packed_rows_run_apart_and_are_not_kept():
    host = deltatune.Host(models.tiny("llama", "lm", num_hidden_layers=4))
    host.attach("a", deltatune.parse("TopLayers(2)"), head=False)
    calls = calls_of(host)
    task, settings = LanguageModel(max_length=32), dataclasses.replace(THREE, packing=True)
    trained(host, generation_tokenizer(), settings, task, TEXTS)
    assert calls[1] >= 6
    assert not CACHE.entries


def test_rows_of_a_mixture_run_apart_and_are_not_kept(tokenizer):
    mixture = Mixture({"one": TASK, "two": Classify(labels=("bad", "good"), max_length=32)})
    model = models.tiny("bert", num_hidden_layers=4)
    host = deltatune.Host(model)
    host.attach("a", deltatune.parse("TopLayers(2)"), head=mixture.make_head(model.config))
    calls = calls_of(host)
    trained(host, tokenizer, task=mixture, rows=mixture.marked({"one": ROWS[:20], "two": ROWS[20:40]}))
    assert calls[1] >= 6
    assert not CACHE.entries


def test_part_of_an_epoch_keeps_nothing(tokenizer):
    trained(deep_host("TopLayers(2)"), tokenizer, dataclasses.replace(THREE, max_steps=2))
    assert not CACHE.entries


# --- backward


@pytest.mark.parametrize("split", [True, False], ids=["apart", "plain"])
@pytest.mark.parametrize("change", [{}, {"checkpointing": True}, {"precision": "bfloat16"}], ids=["", "ckpt", "bf16"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_backward_stops_at_the_lowest_site(kind, change, split, tokenizer, monkeypatch):
    """Both as this package trains, and in a plain pass, as other trainers make it."""
    host = deep_host("AdapterDrop(size=4, drop=2)", kind)
    if not split:
        monkeypatch.setattr("deltatune.training.train_adapter.lower_layers", lambda host, *_, **__: lower_layers(host))
    body = host.model.encoder if kind == "bert" else host.model
    blocks = list(body.layer if kind == "bert" else body.layers)
    reached = set()

    def watch(output, i):
        for tensor in output if isinstance(output, tuple) else (output,):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda grad: reached.add(i))

    for i, block in enumerate(blocks):
        for module in block.modules():
            module.register_forward_hook(lambda module, args, output, i=i: watch(output, i))
    trained(host, tokenizer, dataclasses.replace(PLAIN, max_steps=2, **change))
    assert reached == {2, 3}


# --- the store


class Entry:
    def __init__(self, size, device="cpu"):
        self.bytes, self.device, self.users = size, torch.device(device), 0


def test_the_cache_is_bounded_and_drops_what_was_used_least_recently():
    cache = FeatureCache()
    cache.set_limit_(100)
    one, two, three = Entry(40), Entry(40), Entry(40)
    assert cache.add("one", one)
    assert cache.add("two", two)
    assert cache.get("one") is one
    assert cache.add("three", three)
    assert list(cache.entries) == ["one", "three"]
    assert cache.bytes_on(torch.device("cpu")) == 80
    one.users = three.users = 1
    assert not cache.add("four", Entry(40))  # what is in use stays
    assert list(cache.entries) == ["one", "three"]
    one.users = 0
    cache.set_limit_(50)
    assert list(cache.entries) == ["three"]
    three.users = 0
    cache.set_limit_(None)
    assert not cache.entries
    assert not cache.add("five", Entry(1))
    assert cache.get("five") is None
    with pytest.raises(DeltatuneError, match="a number of bytes, None or 'auto', not '4 GB'"):
        cache.set_limit_("4 GB")
    cache.set_limit_("auto")
    assert 0 < cache.limit_on(torch.device("cpu")) <= 4_000_000_000


def test_too_little_room_keeps_nothing_and_changes_nothing(tokenizer):
    whole = trained(deep_host("TopLayers(2)"), tokenizer)[0]
    set_cache_limit(1000)
    small = trained(deep_host("TopLayers(2)"), tokenizer)[0]
    assert not CACHE.entries
    np.testing.assert_allclose([x for _, x in whole.history], [x for _, x in small.history], rtol=1e-4)


def test_the_model_is_left_as_it_was_after_an_error(tokenizer):
    host = deep_host("TopLayers(2)")

    def stop(*_):
        predict(host, "a", TASK, ROWS[:4], tokenizer)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(host, tokenizer, on_step=stop)
    assert not any("forward" in vars(module) for module in host.model.modules())
    assert not any(entry.users for entry in CACHE.entries.values())
    assert not any(isinstance(hook, BlockBypass) for hook in host.model._forward_pre_hooks.values())
