"""`deltatune latency`: tables, JSON and a file, on a tiny model."""

import json

import pytest

from deltatune.testing.tiny_models import POSITIONS, tiny
from support.command_line import ran
from support.models import tiny_tokenizer

QUICK = ("--batch-size", "2", "--batch-size", "1", "--max-length", "4", "--max-length", "9", "--repeats", "6")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny("bert").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_tables_have_a_column_for_each_cell(model):
    done = ran("latency", "--model", model, "--method", "LoRA()", "--method", "Houlsby()@5%", *QUICK)
    assert done.code == 0, done.err
    assert "about" in done.out
    header = next(line for line in done.out.splitlines() if line.startswith("milliseconds"))
    assert header.split() == ["milliseconds", "1×4", "1×9", "2×4", "2×9"]
    times = done.out[done.out.index("milliseconds") :]
    for name in ("bare model", "LoRA()", "LoRA(), merged", "Houlsby()@5%"):
        assert sum(line.startswith(name + "  ") for line in times.splitlines()) == (1 if name == "bare model" else 2)
    assert "Houlsby()@5%, merged" not in done.out


def test_a_narrow_terminal_gets_a_row_for_each_cell(model, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    done = ran("latency", "--model", model, "--method", "LoRA()", *QUICK, "--batch-size", "3", "--batch-size", "4")
    assert done.code == 0, done.err
    assert max(map(len, done.out.splitlines())) <= 60
    assert sum(line.startswith("LoRA(), merged") for line in done.out.splitlines()) == 8


def test_too_few_repeats_for_an_interval_are_not_said_to_have_one(model):
    words = ("latency", "--model", model, "--method", "LoRA()", "--batch-size", "1", "--max-length", "4", "--repeats")
    few, enough = " ".join(ran(*words, "5").out.split()), " ".join(ran(*words, "6").out.split())
    assert "medians of 5; (..): a median of so few repeats has no 95 % interval; give --repeats 6 or more" in few
    assert "the 95 % interval of the median holds 0" not in few
    assert "(..): the 95 % interval of the median holds 0, so no difference was shown" in enough


def test_json_and_the_file_hold_the_same(model, tmp_path):
    out = tmp_path / "new" / "folder"
    done = ran("latency", "--model", model, "--method", "LoRA()", *QUICK, "--json", "--out", out)
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    assert printed == json.loads((out / "latency.json").read_text())
    assert printed["kind"] == "latency"
    assert [(row["method"], row["form"], row["batch"], row["length"]) for row in printed["rows"][:4]] == [
        ("", "bare", 1, 4),
        ("LoRA(r=8)", "unmerged", 1, 4),
        ("LoRA(r=8)", "merged", 1, 4),
        ("", "bare", 1, 9),
    ]
    assert "time" in done.err  # the estimate


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--max-length", str(POSITIONS + 1)), f"has positions for {POSITIONS} tokens"),
        (("--method", "LoRA()@"), "no size behind the @"),
        (("--method", "LoRAX()"), "did you mean"),
        (("--repeats", "1"), "repeats must be from 3"),
        (("--batch-size", "0"), "batch must be at least 1"),
        (("--task", "tag"), "task must be one of 'classify', 'lm'"),
        (("--precision", "float8"), "precision must be one of"),
        (("--budget", "lots"), "cannot read the budget"),
    ],
)
def test_mistakes_are_one_plain_error(model, options, words):
    done = ran("latency", "--model", model, *options)
    assert done.code == 2
    assert words in done.err
    assert "Traceback" not in done.err


def test_a_file_where_the_folder_should_be_is_found_before_the_model_is_loaded(tmp_path):
    (tmp_path / "taken").write_text("")
    done = ran("latency", "--model", "no-such-model", "--out", tmp_path / "taken")
    assert done.code == 2
    assert "taken" in done.err
