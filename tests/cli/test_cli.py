import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console

from deltatune.cli import input_rows as lines
from deltatune.cli.app import app
from deltatune.cli.commands.predict import joined
from deltatune.cli.ui.comparison_live import ComparisonProgress, results
from deltatune.cli.ui.help_screen import fields_in
from deltatune.cli.ui.live import TrainingProgress, time_left
from deltatune.cli.ui.screen import long_texts
from deltatune.comparison.works.cells import Event
from deltatune.store import run_folder
from deltatune.tasks.classification import Classify
from support import models
from support.command_line import QUICK, Ran, put_over, ran, review_folder, reviews, write_csv
from support.comparison_sample import sample_summary

PARTS = typer.main.get_command(app).commands
COMMANDS = sorted(PARTS)
SUBCOMMANDS = [f"{name} {part}" for name in COMMANDS for part in getattr(PARTS[name], "commands", {})]


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return review_folder(tmp_path_factory.mktemp("data") / "reviews")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, data: Path) -> Path:
    """The folder of a finished run. Read only."""
    out = tmp_path_factory.mktemp("runs") / "reviews"
    done = ran("train", "--model", tiny_folder, "--data", data, "--lr", "1e-2", *QUICK, "--out", out)
    assert done.code == 0, done.err
    return out


def objects(done: Ran) -> list[dict]:
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


# --- help ---


def test_without_a_command_it_prints_help():
    done = ran()
    assert done.code == 0
    assert done.out == ran("--help").out
    assert all(f"\n  {name} " in done.out for name in COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, *SUBCOMMANDS])
def test_help_reads_well_on_80_columns(command):
    done = ran(*command.split(), "--help")
    assert done.code == 0
    assert re.match(
        rf"Usage: deltatune {command}( \[OPTIONS\])?( \[?[A-Z=]+(\.\.\.)?\]?)*( COMMAND \[ARGS\]\.\.\.)?\n", done.out
    )
    examples = [line for line in done.out.splitlines() if line.startswith(("  deltatune ", "    --"))]
    assert all(len(line) <= 80 or line in examples for line in done.out.splitlines())
    assert not [line for line in done.out.splitlines() if line != line.rstrip()]
    wrapped = [line for line in done.out.splitlines() if line.startswith(f"deltatune {command} ")]
    assert not wrapped, "examples are indented, or they are filled as a paragraph"


def test_every_option_says_what_it_does():
    for name, command in typer.main.get_command(app).commands.items():
        for parameter in command.params:
            assert len(getattr(parameter, "help", "") or "") > 5, f"{name} {parameter.name}"


def test_help_needs_neither_torch_nor_numpy_nor_rich_tables():
    code = "import sys; from deltatune.cli import main; main(['train', '--help'])"
    code += "; print(bool({'torch', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


def test_version():
    assert ran("--version").out.startswith("deltatune 0.")


def test_help_texts_are_attribute_docstrings():
    source = 'class A:\n    x: int = 3\n    """How\n    many."""\n    y: ClassVar[int] = 1\n    z: str = make()\n'
    found = fields_in(source, "A")
    assert {name: (field.help, field.default) for name, field in found.items()} == {
        "x": ("How many", 3),
        "z": ("", None),
    }


# --- looking up ---


def test_methods_are_the_unified_view():
    found = {entry["method"]: entry for entry in json.loads(ran("methods", "--json").out)}
    assert found["LoRA"]["view"] == {
        "form": "B A x",
        "insertion": "parallel",
        "modifies": "output of each chosen matrix",
        "composition": "scaled",
    }
    assert found["LoRA"]["size_field"] == "r"
    assert found["LoRA"]["learning_rate"] > 0
    assert found["Full"]["short_for"] == "Unfreeze()"
    assert all(option["help"] for entry in found.values() for option in entry["options"]), "an option without docstring"
    table = ran("methods").out
    assert all(name in table for name in found)
    assert max(map(len, table.splitlines())) <= 80


def test_one_method_has_its_options():
    done = ran("methods", "LoRA")
    assert "Rank" in done.out
    assert "arxiv.org" in done.out
    assert json.loads(ran("methods", "LoRA", "--json").out)["options"][0] == {
        "name": "r",
        "default": 8,
        "written": "8",
        "help": "Rank",
    }


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_sites_need_the_config_alone(tmp_path, kind):
    models.tiny(kind).config.save_pretrained(tmp_path)
    found = json.loads(ran("sites", tmp_path, "--json").out)
    sites = {entry["site"]: entry for entry in found["sites"]}
    query = sites["encoder.layers.*.attn.q" if kind == "t5" else "layers.*.attn.q"]
    assert (query["count"], query["width_in"], query["width_out"]) == (2, [32], [32])
    total = sum(sum(p.numel() for p in model.parameters()) for model in [models.tiny(kind)])
    pooler = 32 * 33 if kind == "bert" else 0
    assert found["params"] == total - pooler
    assert 0.7 < found["coverage"] <= 1
    assert round(found["coverage"] * found["params"]) + sum(found["elsewhere"].values()) == found["params"]
    assert found["unnamed"] == []
    assert "layers.*.attn.q" in ran("sites", tmp_path).out


def test_env_for_bug_reports():
    found = json.loads(ran("env", "--json").out)
    assert found["packages"]["torch"]
    assert found["device"]["threads"] >= 1
    assert "transformers" in ran("env").out


# --- training ---


def test_train_writes_an_adapter_and_its_scores(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert set(metrics["test"]) == set(metrics["validation"])
    assert 0 <= metrics["test"]["accuracy"] <= 1
    assert sorted(path.name for path in trained.iterdir()) == ["adapter", "metrics.json", "metrics.jsonl", "run.json"]
    extra = json.loads((trained / "adapter" / "adapter.json").read_text())["extra"]
    assert extra["task"]["labels"] == ["bad", "good"]
    assert {"tokenizer", "settings", "data", "model"} <= set(extra)


def test_a_finished_run_is_not_trained_again(trained, tiny_folder, data):
    same = ("train", "--model", tiny_folder, "--data", data, "--lr", "1e-2", *QUICK, "--out", trained)
    before = (trained / "adapter" / "adapter.safetensors").stat().st_mtime_ns
    done = ran(*same)
    assert done.code == 0
    assert "finished before" in done.out
    assert (trained / "adapter" / "adapter.safetensors").stat().st_mtime_ns == before


def test_another_run_is_not_overwritten_unless_forced(tmp_path, trained, tiny_folder, data):
    out = tmp_path / "copy"
    shutil.copytree(trained, out)
    other = ("train", "--model", tiny_folder, "--data", data, "--lr", "1e-3", *QUICK, "--out", out)
    done = ran(*other)
    assert done.code == 2
    assert "settings.learning_rate: it was 0.01, now it is 0.001" in done.err
    assert "--force" in done.err
    assert ran(*other, "--force").code == 0
    assert json.loads((out / "run.json").read_text())["settings"]["learning_rate"] == 1e-3


def test_foreign_files_are_left_alone(tmp_path, tiny_folder, data):
    (tmp_path / "thesis.tex").write_text("x")
    done = ran("train", "--model", tiny_folder, "--data", data, *QUICK, "--out", tmp_path, "--force")
    assert done.code == 2
    assert "not a run of deltatune" in done.err
    assert (tmp_path / "thesis.tex").exists()


def test_an_interrupted_run_goes_on(tmp_path, tiny_folder, data, monkeypatch):
    command = ("train", "--model", tiny_folder, "--data", data, *put_over(QUICK, "--epochs", "2"), "--out")
    assert ran(*command, tmp_path / "whole").code == 0

    def stop(self, step, total, loss, rate):
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "__call__", stop)
        done = ran(*command, tmp_path / "cut")
    assert done.code == 130
    assert done.err.count("\n") == 1
    assert "step 2 is kept" in done.err
    assert ran(*command, tmp_path / "cut").code == 0
    whole, cut = (tmp_path / name / "adapter" / "adapter.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


def test_budget_sets_the_size_and_the_head_is_chosen(tmp_path, tiny_folder, data):
    out = tmp_path / "out"
    done = ran(
        *("train", "--model", tiny_folder, "--data", data, *QUICK, "--out", out),
        *("--method", "LoRA()", "--budget", "5%", "--pooling", "pooler", "--dense"),
    )
    assert done.code == 0, done.err
    record = json.loads((out / "run.json").read_text())
    assert record["method"] == "LoRA(r=4)"
    assert (record["head"]["pooling"], record["head"]["dense"]) == ("pooler", True)
    assert len(objects(ran("predict", "--adapter", out, stdin="good film\n"))) == 1


def test_cut_texts_are_reported(tmp_path, tiny_folder, data):
    options = put_over(QUICK, "--max-length", "6")
    done = ran("train", "--model", tiny_folder, "--data", data, *options, "--out", tmp_path / "out")
    assert "truncated to 6 tokens: 64 of 64 train" in done.out


def test_the_default_folder_is_named_after_data_and_method():
    assert run_folder.default_folder("reviews", "LoRA(r=8, sites='*.attn.{q,v}')") == Path(
        "runs/train-reviews-lora-r-8-sites-.attn.-q-v"
    )


def test_the_first_step_has_no_speed_yet(capsys):
    with TrainingProgress(64, 32) as progress:
        for step in (1, 2):
            progress(step, 2, 0.5, 1e-3)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "step 1/2  loss 0.500  lr 1e-3"
    assert "rows/s  scoring" in last


def test_time_left_is_as_exact_as_an_estimate():
    assert [time_left(s) for s in (9.4, 80, 5000)] == ["9 s", "1:20 min", "1:23 h"]


# --- evaluation and prediction ---


def test_evaluate_repeats_the_test_score(trained, data):
    found = json.loads(ran("evaluate", "--adapter", trained, "--data", data, "--json").out)
    assert found["scores"] == json.loads((trained / "metrics.json").read_text())["test"]
    assert found["rows"] == 20
    table = ran("evaluate", "--adapter", trained / "adapter", "--data", data, "--split", "train")
    assert "accuracy" in table.out
    assert "64 from" in table.out


def test_a_new_file_is_scored_whole(trained, tmp_path):
    more = write_csv(tmp_path / "more.csv", reviews(30, seed=9))
    assert json.loads(ran("evaluate", "--adapter", trained, "--data", more, "--json").out)["rows"] == 30


def test_predict_keeps_the_order(trained):
    texts = [row["text"] for row in reviews(11)]
    found = objects(ran("predict", "--adapter", trained, "--batch-size", "4", stdin="\n".join(texts)))
    assert [row["text"] for row in found] == texts
    alone = objects(ran("predict", "--adapter", trained, stdin=texts[7]))
    assert alone[0]["label"] == found[7]["label"]
    assert alone[0]["score"] == pytest.approx(max(found[7]["scores"].values()), abs=1e-4)


def test_predict_says_how_many_texts_were_cut(trained):
    done = ran("predict", "--adapter", trained, stdin="good " * 40 + "\ngood\n")
    assert len(objects(done)) == 2
    assert done.err.startswith("1 text truncated")


def test_predict_reads_tables(trained, tmp_path):
    rows = [{"id": str(i), **row} for i, row in enumerate(reviews(5))]
    expected = [(row["id"], row["label"]) for row in rows]
    table = write_csv(tmp_path / "rows.csv", rows)
    jsonl = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "rows.jsonl").write_text(jsonl)
    for done in (
        ran("predict", "--adapter", trained, table),
        ran("predict", "--adapter", trained, tmp_path / "rows.json"),
        ran("predict", "--adapter", trained, tmp_path / "rows.jsonl"),
        ran("predict", "--adapter", trained, stdin=jsonl),
        ran("predict", "--adapter", trained, stdin=table.read_text()),
    ):
        assert [(row["id"], row["given_label"]) for row in objects(done)] == expected


def test_predict_writes_a_file_once_all_is_done(trained, tmp_path):
    out = tmp_path / "found.jsonl"
    done = ran("predict", "--adapter", trained, "--out", out, stdin="good\nbad\n")
    assert (done.code, done.out) == (0, "")
    assert len(out.read_text().splitlines()) == 2
    failed = ran(
        "predict", "--adapter", trained, "--batch-size", "1", "--out", tmp_path / "x.jsonl", stdin='{"text": "a"}\n{]\n'
    )
    assert failed.code == 2
    assert "line 2 is not JSON" in failed.err
    assert [path.name for path in tmp_path.iterdir()] == ["found.jsonl"]


def test_python_runs_the_package_as_a_module():
    done = subprocess.run([sys.executable, "-m", "deltatune", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[0]) == (0, "deltatune"), done.stderr


def test_a_closed_pipe_ends_quietly(trained, monkeypatch):
    def closed(*args):
        raise BrokenPipeError

    monkeypatch.setattr("deltatune.cli.commands.predict.write", closed)
    done = ran("predict", "--adapter", trained, stdin="good\n")
    assert (done.code, done.err) == (0, "")


def test_lines_are_texts_pairs_or_rows(capsys):
    assert list(lines.parsed(iter(["a\n", "\n", "b"]), "stdin", None, ["text"])) == [{"text": "a"}, {"text": "b"}]
    assert "1 blank line was skipped" in capsys.readouterr().err
    assert list(lines.parsed(iter(["x\ty\n"]), "stdin", None, ["a", "b"])) == [{"a": "x", "b": "y"}]
    quoted = iter(["text,n\n", '"one,\n', 'two",3\n'])
    assert list(lines.parsed(quoted, "stdin", None, ["text"])) == [{"text": "one,\ntwo", "n": "3"}]


def test_regression_answers_with_a_number():
    assert joined({"text": "a", "score": 1.0}, {"value": 0.5}) == {"text": "a", "given_score": 1.0, "score": 0.5}


def test_pairs_and_numbers_from_end_to_end(tmp_path, tiny_folder):
    rows = [{"a": row["text"], "b": "the film", "score": f"{i % 7}.5"} for i, row in enumerate(reviews(60))]
    table = write_csv(tmp_path / "pairs.csv", rows)
    out = tmp_path / "out"
    done = ran("train", "--model", tiny_folder, "--data", table, "--text", "a", "--text", "b", *QUICK, "--out", out)
    assert done.code == 0, done.err
    assert "pearson" in done.out
    found = objects(ran("predict", "--adapter", out, stdin="good film\tthe plot\n"))
    assert list(found[0]) == ["a", "b", "score"]


# --- comparison ---


@pytest.mark.parametrize(
    "words",
    [
        ("--method", "A", "--method", "B", "--method", "C", "--seeds", "2"),
        ("--methods", "A", "B", "C", "--seeds", "2"),
        ("--methods", "A", "--seeds", "2", "--methods", "B", "--methods", "C"),
        ("--methods", "A", "--methods", "B", "C", "--seeds", "2"),
    ],
)
def test_several_methods(words, data, monkeypatch):
    plans = []
    monkeypatch.setattr(
        "deltatune.comparison.plans.make_plan.make_plan", lambda *a, **options: plans.append(options) or 1 / 0
    )
    assert ran("compare", "--data", data, *words).code == 1
    assert sorted(plans[0]["methods"]) == ["A", "B", "C"]
    assert plans[0]["seeds"] == 2


def test_a_method_without_its_option(data):
    done = ran("compare", "--data", data, "LoRA(r=8)")
    assert done.code == 2
    assert "unexpected argument 'LoRA(r=8)'" in done.err
    assert "--method" in done.err


def test_compare_ends_with_a_table_and_a_report(tmp_path, tiny_folder, data, monkeypatch):
    out = tmp_path / "mine"
    command = ("compare", "--model", tiny_folder, "--data", data, *QUICK, "--seeds", "1", "--rates", "1", "--out", out)
    command = (*command, "--methods", "LoRA(r=2)", "Probe()")
    done = ran(*command)
    assert done.code == 0, done.err
    assert "2/2  Probe()" in done.err, "one line a finished run"
    assert done.out.endswith(f"report: {out / 'report.html'}\n")
    assert (out / "report.html").is_file()
    summary = json.loads(ran(*command, "--json").out)
    assert {row["method"] for row in summary["methods"]} == {"LoRA(r=2)", "Probe()"}
    assert summary["recommendation"]["sentence"].split()[0] in done.out

    def stop(self, event):
        self.done = event.done
        raise KeyboardInterrupt

    monkeypatch.setattr(ComparisonProgress, "__call__", stop)
    done = ran(*command)
    assert done.code == 130
    assert f"runs are kept in {out}" in done.err


@pytest.mark.parametrize("width", [80, 120])
def test_the_results_table_fits(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    screen = Console(width=width, record=True, file=io.StringIO())
    screen.print(results(sample_summary(), width))
    rows = screen.export_text().splitlines()
    assert rows[1].startswith("Full")
    assert rows[1].split()[1:4] == ["0.783", "±0.041", "best"]
    assert sum(" failed " in row for row in rows) == 1
    assert max(map(len, rows)) <= width
    assert len(rows) <= (13 if width == 120 else 14), "rows were broken in two"


@pytest.mark.parametrize("width", [40, 60, 70])
def test_a_narrow_results_table_names_every_method(width):
    summary = sample_summary()
    for row in summary["methods"]:
        row["tokens"] = 12.0
    screen = Console(width=width, record=True, file=io.StringIO())
    screen.print(results(summary, width))
    rows = screen.export_text().splitlines()
    assert max(map(len, rows)) <= width
    assert rows[0].startswith("method")
    assert rows[1].startswith("Full")
    assert rows[1].split()[1:4] == ["0.783", "±0.041", "best"]
    assert sum(row.startswith(("LoRA", "BitFit", "Probe")) for row in rows) >= 3
    assert ("trained" in rows[0]) == (width >= 60), rows[0]


def test_one_of_several_long_texts_is_still_of_texts():
    task = Classify(text=("text",), label="label", labels=("bad", "good"))
    assert long_texts(task, 1, 7).startswith("1 of 7 texts truncated")
    assert long_texts(task, 1).startswith("1 text truncated")
    assert long_texts(task, 1, 1).startswith("1 of 1 text truncated")


def test_the_live_display_shows_what_runs(capsys):
    watching = ComparisonProgress("accuracy")
    record = {"method": "LoRA(r=2)", "learning_rate": 2e-3, "scores": {"validation": {"accuracy": 0.7}, "test": None}}
    watching(Event("cell_done", "LoRA(r=2), lr 0.002, learning-rate search", 1, 4, 12.0, {"record": record}))
    watching(Event("cell_start", "LoRA(r=2), seed 1", 1, 4, 12.0, {"next": "BitFit(), seed 0"}))
    watching(Event("step", "LoRA(r=2), seed 1", 1, 4, 11.0, {"step": 3, "steps": 9, "loss": 0.5}))
    screen = Console(width=80, record=True, file=sys.stderr)
    screen.print(watching.picture())
    text = screen.export_text()
    for part in (
        "1 of 4 runs",
        "11 s left",
        "step 3/9   loss 0.500",
        "BitFit(), seed 0",
        "0.700 validation",
    ):
        assert part in text
