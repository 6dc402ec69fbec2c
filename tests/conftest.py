"""What every test can ask for. Models are random and tiny, see models.py; nothing touches the network."""

import gc
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("COLUMNS", None)  # pytest-xdist sets 80: tables are as wide as in a log
# Scripts that tests start import `support` as the tests themselves do.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))

import random
from collections.abc import Callable
from functools import partial

import hypothesis
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from support import models

torch.set_num_threads(1)

# The same examples every run: a failure is a failure of the change, not of the day. No deadline: machines differ.
hypothesis.settings.register_profile(
    "deltatune",
    deadline=None,
    derandomize=True,
    max_examples=20,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("deltatune")

MakeModel = Callable[..., PreTrainedModel]

gc.disable()  # until thousands of tests are collected


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what imports and tests have made: it stays to the end."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before -m takes the slow ones out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked `one_in(n)` every n-th case is quick; the others are slow."""
    seen: dict[str, int] = {}
    for item in items:
        if (mark := item.get_closest_marker("one_in")) is None:
            continue
        test = item.nodeid.partition("[")[0]
        if item.get_closest_marker("slow") is None:
            seen[test] = seen.get(test, -1) + 1
            if seen[test] % mark.args[0]:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, alone or among others."""
    random.seed(0)
    np.random.seed(0)
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:  # torch.manual_seed keeps a traceback for a GPU that may come, which takes half a millisecond
        torch.default_generator.manual_seed(0)


@pytest.fixture(scope="session")
def tiny() -> MakeModel:
    """`tiny(kind, head=None | "classify" | "lm")` makes a fresh model in eval mode."""
    return models.tiny


@pytest.fixture(scope="session")
def tiny_bert() -> MakeModel:
    """`tiny_bert()` makes a fresh BERT; `tiny_bert("classify")` and `tiny_bert("lm")` give it a head."""
    return partial(models.tiny, "bert")


@pytest.fixture(scope="session")
def tiny_gpt2() -> MakeModel:
    return partial(models.tiny, "gpt2")


@pytest.fixture(scope="session")
def tiny_llama() -> MakeModel:
    """4 query heads on 2 key-value heads."""
    return partial(models.tiny, "llama")


@pytest.fixture(scope="session")
def tiny_t5() -> MakeModel:
    return partial(models.tiny, "t5")


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return models.tiny_tokenizer()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local folder with a tiny BERT and its tokenizer, as `from_pretrained` reads it. Read only."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    models.tiny("bert").save_pretrained(folder)
    models.tiny_tokenizer().save_pretrained(folder)
    return folder
