"""What fits into a memory: the least demanding change, and what is missing where nothing fits."""

import json

import pytest

from deltatune.comparison.costs.memory_fit import MemoryFit, read_memory, recommended
from deltatune.comparison.costs.method_counts import CountingHost
from deltatune.comparison.costs.training_memory import CountedTraining
from deltatune.core.errors import DeltatuneError

SHAPE = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4, "num_hidden_layers": 3}
TRAINING = CountedTraining("lm", batch_size=8, max_length=128, precision="bfloat16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("llama")
    more = {"vocab_size": 8000, "max_position_embeddings": 512, "architectures": ["LlamaForCausalLM"]}
    (made / "config.json").write_text(json.dumps({"model_type": "llama", **SHAPE, **more}))
    return str(made)


@pytest.mark.parametrize(
    ("text", "count"),
    [("16GB", 16 * 10**9), ("16GiB", 16 * 2**30), (" 16000 mb ", 16 * 10**9), ("1.5TB", 15 * 10**11)],
)
def test_memory_texts(text, count):
    assert read_memory(text) == count


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("16", "give a number and a unit"),
        ("16 GG", "GG'"),
        ("-4GB", "cannot read the memory"),
        ("0GB", "too small"),
        ("1e9GB", "cannot read"),
        ("99999999TB", "more than there is"),
        ("", "cannot read"),
    ],
)
def test_absurd_memory_is_an_error(text, words):
    with pytest.raises(DeltatuneError, match=words):
        read_memory(text)


@pytest.mark.slow
def test_each_step_down_in_memory_asks_for_more_of_the_user(folder):
    asked = CountingHost(folder, TRAINING).count("LoRA(r=8)").memory
    assert asked is not None
    costs = []
    for share in (1.0, 0.93, 0.87):
        fitting = MemoryFit(folder, int(share * asked.total), TRAINING).fit("LoRA(r=8)")
        assert fitting.fits
        assert fitting.memory is not None
        assert fitting.memory.total <= share * asked.total
        exact = CountingHost(folder, fitting.training).count("LoRA(r=8)").memory
        assert exact == fitting.memory
        costs.append(fitting.cost)
    assert costs[0] == 0
    assert costs == sorted(costs)
    assert costs[1] > 0


def test_what_was_given_stays(folder):
    asked = CountingHost(folder, TRAINING).count("LoRA(r=8)").memory
    assert asked is not None
    fixed = ("quantize", "optimizer", "max_length", "checkpointing", "offload_activations")
    fitting = MemoryFit(folder, int(0.93 * asked.total), TRAINING, fixed).fit("LoRA(r=8)")
    assert all(change.startswith("--accumulation") for change in fitting.changes)
    assert fitting.training.quantize == "none"


def test_nothing_fits_says_what_is_missing(folder):
    fitting = MemoryFit(folder, 100_000_000, TRAINING).fit("LoRA(r=8)")
    assert not fitting.fits
    assert "MB are missing" in fitting.problem
    assert recommended([fitting]) is None


def test_the_largest_batch_and_length_fit_and_larger_ones_do_not(folder):
    asked = CountingHost(folder, TRAINING).count("LoRA(r=8)").memory
    assert asked is not None
    memory = int(1.3 * asked.total)
    search = MemoryFit(folder, memory, TRAINING)
    fitting = search.fit("LoRA(r=8)")
    rows = search.largest(fitting, "batch_size")
    assert rows > TRAINING.batch_size

    def total(size):
        training = CountedTraining("lm", batch_size=size, max_length=128, precision="bfloat16")
        counted = CountingHost(folder, training).count("LoRA(r=8)").memory
        assert counted is not None
        return counted.total

    assert total(rows) <= memory < total(rows + max(2, rows // 8))
    assert search.largest(fitting, "max_length") > 128
