"""Cells of the table of neighbours (docs/neighbours.md): what a user of another program does with a hosted model.

A file of tests/neighbours/ is a row: NAME, PACKAGES, up to five tests, and a reason for each of them that it lacks.
"""

import ast
import hashlib
import importlib.util
import inspect
import math
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import deltatune
from deltatune.core.errors import DeltatuneError
from support import models

FOLDER = Path(__file__).parents[1] / "neighbours"
STEPS = ("attach", "train", "save", "reload", "serve")
ONLY_SERVES = {
    "attach": "it serves what was trained",
    "train": "it serves what was trained",
    "reload": "it writes no adapters",
}
"""Cells of a server of many adapters."""
NO_LORA = ("what no LoRA equals", "has no change of a weight")
"""What alone a server of LoRAs refuses, and in which words."""
TEXTS = [f"the cat sat on the mat and the dog {word} it" for word in ("saw", "bit", "ate", "had")] * 4


# ---- cells


@dataclass(frozen=True)
class Cell:
    """What the table says of one step."""

    works: bool
    line: str = ""
    """The line of the user after which it works."""
    words: str = ""
    """The words in which it is refused."""
    what: str = ""
    """What alone is refused, where the rest works."""
    reason: str = ""
    """Why there is nothing to show."""
    tests: tuple[str, ...] = ()
    """Ids of the tests that show it, from the root of the repository."""

    def __str__(self):
        if self.reason:
            return f"– ({self.reason})"
        refusal = f"{self.what} refused: “{self.words}”".strip() if self.words else ""
        does = (f"works after `{self.line}`" if self.line else "works") if self.works else ""
        return "; ".join(filter(None, (does, refusal)))


def works(line="", but=()):
    """Declare the cell of a test that shows that a step works, after one line of the user where that is given.

    but: what alone is refused, and in which words: the test shows that too, `with refusal(): ...`.
    """

    def declare(test):
        assert line in inspect.getsource(test), f"{test.__name__} does not run the line that makes it work: {line}"
        what, words = but or ("", "")
        return _declared(test, Cell(True, line, words, what))

    return declare


def refused(words):
    """Declare the cell of a test that shows that a step is refused in these words: `with refusal(): ...`."""
    return lambda test: _declared(test, Cell(False, words=words))


def _declared(test, cell):
    asks = "refusal" in inspect.signature(test).parameters
    assert asks == bool(cell.words), f"{test.__name__}: the fixture refusal goes with words, and words with it"
    test.cell = cell
    return test


@contextmanager
def refusal_of(cell):
    """A block that must be refused with an error that has the words of its cell."""
    with pytest.raises((DeltatuneError, ValueError, OSError, RuntimeError, TypeError)) as caught:
        yield
    said = " ".join(str(caught.value).split())
    assert cell.words in said, f"the refusal says {said!r}, the table {cell.words!r}"


# ---- rows


@dataclass
class Row:
    """A row of the table, read from its file."""

    name: str
    packages: tuple[str, ...]
    cells: dict[str, Cell]
    path: Path
    digest: str
    """Of the file's source and of the tests elsewhere that it names."""

    @property
    def missing(self):
        """Packages that are not installed."""
        return [name for name in self.packages if not _installed(name)]

    @property
    def tests(self):
        """Ids of all tests that show a cell."""
        return {test for cell in self.cells.values() for test in cell.tests}


def _installed(name):
    """Whether a module could be imported; `optimum.quanto` is none without optimum."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def rows():
    """All rows, by their names."""
    found = [row_of(path) for path in FOLDER.glob("test_*.py") if path.stem != "test_table"]
    return sorted(found, key=lambda row: row.name.strip("`").lower())


def row_of(path):
    """The row of one file; AssertionError where a step is neither shown nor given a reason."""
    spec = importlib.util.spec_from_file_location(f"neighbour_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    elsewhere, without = getattr(module, "SHOWN_BY", {}), getattr(module, "NOT_APPLICABLE", {})
    cells, hashed = {}, [path.read_text(encoding="utf-8")]
    for step in STEPS:
        test = getattr(module, f"test_{step}", None)
        declared = [step in elsewhere, step in without, test is not None]
        assert sum(declared) == 1, f"{path.name}: {step} needs one of a test, SHOWN_BY and NOT_APPLICABLE"
        if test is not None:
            assert hasattr(test, "cell"), f"{path.name}: test_{step} declares no cell (@works, @refused)"
            cells[step] = replace(test.cell, tests=(f"tests/neighbours/{path.name}::test_{step}",))
        elif step in elsewhere:
            tests = elsewhere[step] if isinstance(elsewhere[step], tuple) else (elsewhere[step],)
            hashed += [source_of(node) for node in tests]
            cells[step] = Cell(True, tests=tests)
        else:
            cells[step] = Cell(False, reason=without[step])
    digest = hashlib.sha256("\n".join(hashed).encode()).hexdigest()[:16]
    return Row(module.NAME, tuple(module.PACKAGES), cells, path, digest)


def source_of(node):
    """The source of a test that is named as path::name; AssertionError if it is not there."""
    path, _, name = node.partition("::")
    text = (FOLDER.parents[1] / path).read_text(encoding="utf-8")
    for item in ast.parse(text).body:
        if isinstance(item, ast.FunctionDef) and item.name == name.partition("[")[0]:
            return ast.get_source_segment(text, item)
    raise AssertionError(f"there is no test {node}")


# ---- what the tests of the rows share


def randomize_(host, name="mine", seed=0):
    """Give the adapter random values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in host.trainable(name):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


@torch.no_grad()
def logits(model, kind="llama"):
    """Outputs in evaluation mode."""
    return model.eval()(**models.inputs(kind)).logits


def hosted(kind="llama", head="lm", method="LoRA(r=2)", random=True):
    """A host of a tiny model without dropout, with an adapter `mine`."""
    host = deltatune.Host(models.tiny(kind, head, dropout=False))
    host.attach("mine", deltatune.parse(method))
    if random:
        randomize_(host)
    return host


def values(host, name="mine"):
    """Copies of what is trained."""
    return {key: parameter.detach().clone() for key, parameter in host.trainable(name)}


def assert_only_the_adapter_moved(host, base, before):
    """The base has its own bits; each trained tensor has others than before."""
    assert all(torch.equal(tensor, base[name]) for name, tensor in host.base.tensors())
    after = values(host)
    assert after.keys() == before.keys()
    assert not [name for name in after if torch.equal(after[name], before[name])]


def base_of(host):
    """Copies of the base's tensors."""
    return {name: tensor.detach().clone() for name, tensor in host.base.tensors()}


def assert_optimizes_the_adapter(trainer, host):
    """The optimizer that a trainer makes has what is trained, and nothing else."""
    trained = {id(parameter) for group in trainer.create_optimizer().param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for _, parameter in host.trainable("mine")}


def assert_learns(trainer, host, below=1.0):
    """Training moves the adapter alone; the last five losses are below this share of the first five."""
    base, before = base_of(host), values(host)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < below * sum(losses[:5])
    assert all(map(math.isfinite, losses))
    assert_only_the_adapter_moved(host, base, before)


def assert_holds_the_adapter_alone(folder):
    """A folder that a trainer has saved has the adapter, and is no model."""
    assert (folder / "mine" / "adapter.safetensors").is_file()
    assert not (folder / "config.json").exists(), "it would be taken for a model"


def assert_peft_reads(folder, host):
    """PEFT gives the host's outputs with an exported folder."""
    import peft

    again = peft.PeftModel.from_pretrained(models.tiny("llama", "lm", dropout=False), folder)
    torch.testing.assert_close(logits(again), logits(host.model), rtol=1e-4, atol=1e-4)


def token_rows(**more):
    """Rows for a language model."""
    encoded = [models.tiny_tokenizer()(text) for text in TEXTS]
    return [{"input_ids": row["input_ids"], "labels": row["input_ids"], **more} for row in encoded]


def training_arguments(folder, cls, **more):
    """Arguments of a trainer of transformers or of one that is built on it."""
    return cls(
        str(folder),
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **{"max_steps": 4, "save_steps": 2, "logging_steps": 1, **more},
    )


def run_processes(folder, ways):
    """Two processes of neighbour_processes.py, one way after another."""
    script = str(Path(__file__).parent / "neighbour_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*command, str(folder), *ways], capture_output=True, text=True, timeout=300, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]


def stepped_alone(rows):
    """An adapter after the steps of neighbour_processes.py in one process with all rows."""
    host = hosted()
    optimizer = torch.optim.SGD([parameter for _, parameter in host.trainable("mine")], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        host.model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
    return host
