"""The examples on tiny models and data."""

import importlib.util
import sys
from pathlib import Path

import pytest

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


def test_continual_learning_prints_a_table_for_each_method(data_files, tiny_folder, monkeypatch, capsys, tmp_path):
    arguments = [*data_files, "--model", str(tiny_folder), "--epochs", "1", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["continual.py", *arguments])
    example("continual").main()
    printed = capsys.readouterr().out
    assert "LoRA(r=8), " in printed
    assert "Full(), " in printed
    assert printed.count("one after another: after second") == 2
