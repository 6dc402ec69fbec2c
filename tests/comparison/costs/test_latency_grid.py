"""Latency over batch size and length: what is run, in which turns, and what is refused."""

import math
import random

import pytest
import torch

from deltatune import DeltatuneError, Host, parse
from deltatune.comparison.costs import inference_timing
from deltatune.comparison.costs.inference_timing import TimedRun, act, forward_pass, times_in_turns
from deltatune.comparison.costs.latency_benchmark import LatencyBenchmark, median_interval
from deltatune.comparison.costs.latency_grid import LatencyGrid
from deltatune.models.hardware import best_device
from support.models import POSITIONS, VOCABULARY, inputs, tiny, tiny_tokenizer

METHODS = ("LoRA(r=2)", "Pfeiffer()", "Prompt(length=5)", "Prefix(length=3)")
GRID = LatencyGrid(batches=(3, 1), lengths=(7, 4), repeats=6, precision="float32")


@pytest.fixture(params=["bert", "gpt2", "t5"])
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, tmp_path):
    tiny(kind, "lm" if kind == "gpt2" else None).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.one_in(3)
def test_every_method_is_run_in_every_cell_and_form(folder, kind):
    benchmark = LatencyBenchmark(folder, METHODS, GRID)
    before = {name: tensor.clone() for name, tensor in benchmark.host.model.state_dict().items()}
    shapes: list[tuple[int, ...]] = []
    model = benchmark.host.model
    hook = model.register_forward_pre_hook(
        lambda _, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    cells = []
    result = benchmark.measure(lambda *cell: cells.append(cell))
    hook.remove()
    assert cells == [(1, 4, 1, 4), (2, 4, 1, 7), (3, 4, 3, 4), (4, 4, 3, 7)]
    forms = {(row["method"], row["form"]) for row in result["rows"]}
    assert forms == {("", "bare"), ("LoRA(r=2)", "merged")} | {
        (each["method"], "unmerged") for each in result["methods"]
    }
    assert len(result["rows"]) == len(forms) * 4
    turns = GRID.repeats + 1
    for rows, length in [(1, 7), (3, 4), (3, 7)]:  # the short text before each run is as large as the smallest cell
        assert shapes.count((rows, length)) == turns * (len(forms) - 1)
        assert shapes.count((rows, length + 5)) == turns  # the prompt's
    assert {row["ratio"] for row in result["rows"] if row["form"] == "bare"} == {1.0}
    for row in result["rows"]:
        assert row["quartiles"][0] <= row["milliseconds"] <= row["quartiles"][1]
        assert (row["ratio_ci"] is None) == (row["form"] == "bare")
    after = benchmark.host.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not benchmark.host.merged
    tokens = {each["asked"]: each["tokens"] for each in result["methods"]}
    assert tokens == {"LoRA(r=2)": 0, "Pfeiffer()": 0, "Prompt(length=5)": 5, "Prefix(length=3)": 3}
    assert {each["asked"]: each["merges"] for each in result["methods"]} == {
        method: method == "LoRA(r=2)" for method in METHODS
    }


def test_a_prompt_is_read_with_its_virtual_tokens(folder, kind):
    benchmark = LatencyBenchmark(folder, ["Prompt(length=5)", "LoRA(r=2)"], GRID)
    lengths = []
    block = next(module for name, module in benchmark.host.model.named_modules() if name.endswith((".0", "block.0")))
    block.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    run = forward_pass(benchmark.host, benchmark._inputs(2, 7), False)
    for name, expected in ((None, 7), ("method_0", 12), ("method_1", 7)):
        with benchmark.host.using(None, training=False):
            act(benchmark.host, name)
            lengths.clear()
            run()
            act(benchmark.host, None)
        assert lengths[0] == expected


def test_merged_is_the_same_function_without_the_adapter_at_work():
    host = Host(tiny("bert").eval())
    for name in "ab":
        adapter = host.attach(name, parse("LoRA(r=2)"), head=False)
        for parameter in adapter.parameters():
            torch.nn.init.normal_(parameter)
    outputs = {}
    for name, merged in (("a", False), ("a", True), ("b", True), ("b", False), (None, False)):
        act(host, name, merged)
        assert list(host.merged) == ([name] if merged else [])
        with torch.no_grad():
            outputs[name, merged] = host.model(**inputs("bert")).last_hidden_state
    assert torch.allclose(outputs["a", False], outputs["a", True], atol=1e-4)
    assert torch.allclose(outputs["b", False], outputs["b", True], atol=1e-4)
    assert not torch.allclose(outputs["a", False], outputs["b", False], atol=1e-2)


class Clock:
    """A machine that becomes slower all the time."""

    def __init__(self) -> None:
        self.now, self.slowness = 0.0, 1.0

    def work(self, seconds: float) -> None:
        self.now += seconds * self.slowness
        self.slowness *= 1.001


def test_a_drift_of_the_machine_cancels(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(inference_timing.time, "perf_counter", lambda: clock.now)
    costs = [1.0, 1.5, 0.5]
    prepared: list[int] = []
    runs = [TimedRun(lambda n=n: prepared.append(n), lambda n=n: clock.work(costs[n])) for n in range(3)]
    times = times_in_turns(runs, 41)
    assert [len(each) for each in times] == [41, 41, 41]
    assert sorted(prepared[:3]) == [0, 1, 2]
    assert len({tuple(prepared[i : i + 3]) for i in range(0, len(prepared), 3)}) == 6  # every order occurs
    assert times[0][-1] > 1.1 * times[0][0]
    for number, cost in enumerate(costs):
        ratios = sorted(own / first for own, first in zip(times[number], times[0], strict=True))
        assert math.isclose(ratios[20], cost, rel_tol=2e-3)


def test_the_interval_holds_the_median_in_95_of_100_samples():
    rng = random.Random(0)
    for n in (6, 9, 15, 40):
        held = 0
        for _ in range(4000):
            low, high = median_interval([rng.expovariate(1.0) for _ in range(n)])
            held += low <= math.log(2) <= high
        assert 0.945 < held / 4000 < 0.99, n
    assert median_interval([3.0, 1.0, 2.0, 5.0, 4.0]) is None
    assert median_interval([3.0, 1.0, 2.0, 5.0, 4.0, 6.0]) == (1.0, 6.0)


def bert(tmp_path):
    tiny("bert").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return str(tmp_path)


def test_lengths_beyond_the_positions_are_refused_by_name(tmp_path):
    model = bert(tmp_path)
    grid = LatencyGrid(lengths=(8, POSITIONS - 2, POSITIONS + 1))
    with pytest.raises(DeltatuneError) as caught:
        LatencyBenchmark(model, ["LoRA()", "Prompt(length=5)"], grid)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert f"length {POSITIONS + 1}: {model} has positions for {POSITIONS} tokens" in lines[0]
    assert f"length {POSITIONS - 2}: Prompt(length=5) takes 5 of" in lines[1]
    assert f"leaves {POSITIONS - 5} to a text" in lines[1]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "bart"])
def test_lengths_by_default_are_those_that_fit(tmp_path, kind):
    tiny(kind).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    benchmark = LatencyBenchmark(str(tmp_path), ["LoRA()", "Prompt(length=5)"], LatencyGrid((1,), repeats=3))
    assert benchmark.lengths == (POSITIONS - 5,)
    assert benchmark.measure()["rows"][-1]["length"] == POSITIONS - 5
    with pytest.raises(DeltatuneError, match=f"takes {POSITIONS} of .* leaves none"):
        LatencyBenchmark(str(tmp_path), [f"Prompt(length={POSITIONS})"])


def test_all_methods_that_cannot_be_measured_are_named_at_once(tmp_path):
    methods = ["LoRA()@", "BitFit()@3%", "Zap()", "ZeroShot()", "LoRA", "LoRA()", "Bottleneck(size=4)@1"]
    with pytest.raises(DeltatuneError) as caught:
        LatencyBenchmark(bert(tmp_path), methods)
    text = str(caught.value)
    for words in (
        "no size behind the @",
        "BitFit() has no size that the budget 3% could set",
        "no method is called 'Zap'",
        "is a prompting method",
        "it is LoRA(r=8), which is given already",
        "more than the budget 1",
    ):
        assert words in text
    assert text.count("\n- ") == 5


def test_each_method_has_its_own_budget_or_the_common_one(tmp_path):
    benchmark = LatencyBenchmark(bert(tmp_path), ["LoRA()@4%", "Bottleneck()", "BitFit()"], budget="2%")
    lora, bottleneck, _ = benchmark.methods.values()
    base = benchmark.host.sites.base_params
    assert 0.02 * base < lora.params <= 0.04 * base
    assert bottleneck.params <= 0.02 * base


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"batches": (0, -3)}, ["batch must be at least 1, not 0", "not -3"]),
        ({"lengths": (0,)}, ["length must be at least 1"]),
        ({"batches": (), "repeats": 5}, ["at least one batch size"]),
        ({"repeats": 2}, ["repeats must be from 3 to 10,000, not 2"]),
        ({"repeats": 10**9}, ["not 1000000000"]),
        ({"batches": (1, 2, 1), "lengths": (8, 8)}, ["batch 1 is given twice", "length 8 is given twice"]),
    ],
)
def test_a_grid_says_all_that_is_wrong_with_it(fields, words):
    with pytest.raises(DeltatuneError) as caught:
        LatencyGrid(**fields)
    assert all(word in str(caught.value) for word in words)


def test_a_cell_beyond_the_memory_is_refused_before_it_is_made(tmp_path):
    with pytest.raises(DeltatuneError, match=r"1,000,000,000,000 rows of 16 tokens need at least .* of memory"):
        LatencyBenchmark(bert(tmp_path), ["LoRA()"], LatencyGrid((10**12,), (16,)))


def test_memory_that_runs_out_names_the_cell(tmp_path, monkeypatch):
    benchmark = LatencyBenchmark(bert(tmp_path), ["LoRA()"], LatencyGrid((1, 2), (16,)))
    forward = benchmark.host.model.forward

    def small_machine(*args, **given):
        if len(given["input_ids"]) == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return forward(*args, **given)

    monkeypatch.setattr(benchmark.host.model, "forward", small_machine)
    with pytest.raises(DeltatuneError, match="2 rows of 16 tokens do not fit into memory"):
        benchmark.estimate()
    assert not benchmark.host.route.names


def test_the_tokens_are_real_ones_and_the_same_each_time(tmp_path):
    benchmark = LatencyBenchmark(bert(tmp_path), ["LoRA()"], LatencyGrid((4,), (16,)))
    first, second = (benchmark._inputs(4, 16) for _ in range(2))
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert first["input_ids"].device.type == best_device().type
    assert 0 <= int(first["input_ids"].min()) <= int(first["input_ids"].max()) < VOCABULARY
    assert (first["input_ids"] != benchmark.host.model.config.pad_token_id).all()


def test_the_language_model_head_is_part_of_the_time_on_request(tmp_path):
    tiny("gpt2", "lm").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with_head = LatencyBenchmark(str(tmp_path), ["LoRA()"], LatencyGrid((1,), (8,), task="lm"))
    assert with_head.host.model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.shape[-1] == VOCABULARY
    bare = LatencyBenchmark(str(tmp_path), ["LoRA()"], LatencyGrid((1,), (8,)))
    assert not hasattr(bare.host.model, "lm_head")
