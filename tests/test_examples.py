"""The examples on tiny models and data."""

import importlib.util
import sys
from pathlib import Path

import pytest

from deltatune import Full, LoRA

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data_files(tmp_path):
    """Two files with one task each."""
    words = {"first": {"yes": "good", "no": "bad"}, "second": {"film": "plot", "person": "actor"}}
    paths = []
    for name, classes in words.items():
        rows = [f"{label},the {word} is {extra} it" for label, word in classes.items() for extra in "abcdefghijklmnop"]
        paths.append(tmp_path / f"{name}.csv")
        paths[-1].write_text("label,text\n" + "\n".join(rows) + "\n")
    return [str(path) for path in paths]


def test_adapters_keep_earlier_tasks_bit_for_bit_and_full_tuning_does_not(data_files, tiny_folder, monkeypatch):
    continual = example("continual")
    tasks = continual.read_tasks(data_files, 100)
    separate = continual.learn(str(tiny_folder), LoRA(), tasks, 2, separate=True)
    assert [change for *_, change in separate] == [0.0, 0.0]
    assert all(before == after for _, before, after, _ in separate)
    shared = continual.learn(str(tiny_folder), Full(), tasks, 2, separate=False)
    assert shared[0][3] > 0
    assert shared[1][3] == 0


def test_the_example_prints_a_table(data_files, tiny_folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["continual.py", *data_files, "--model", str(tiny_folder), "--epochs", "1"])
    example("continual").main()
    printed = capsys.readouterr().out
    assert "one adapter per task: LoRA(r=8)" in printed
    assert "full fine-tuning: Full()" in printed
    assert printed.count("first") == printed.count("second") == 2
