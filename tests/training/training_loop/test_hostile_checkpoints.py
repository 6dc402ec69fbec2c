"""Checkpoints with content that no run writes: of an incomplete one the one before is used, other faults are named."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltatune.core.errors import DeltatuneError
from deltatune.store.atomic_files import MANIFEST, digest, read_json, write_json
from deltatune.training import train
from support import models
from support.runs import PLAIN, ROWS, TASK, assert_same, host_with, tensors


@pytest.fixture(scope="module")
def tokenizer():
    return models.tiny_tokenizer()


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory):
    """The adapter of a run that was never interrupted, and the folder of its checkpoints."""
    host, folder = host_with(), tmp_path_factory.mktemp("whole")
    train(host, "a", TASK, ROWS, None, tokenizer, PLAIN, folder)
    return tensors(host), folder


@pytest.fixture
def out(whole, tmp_path):
    """Checkpoints after steps 5 and 10 of 10."""
    return Path(shutil.copytree(whole[1], tmp_path / "out"))


def resumed(out, tokenizer):
    host = host_with()
    return train(host, "a", TASK, ROWS, None, tokenizer, PLAIN, out).resumed, tensors(host)


def replaced(path, kind):
    """Put something else in the place of a file."""
    content = path.read_bytes()
    path.unlink()
    match kind:
        case "half":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "deep":
            path.write_text("[" * 100_000)
        case "other":
            path.write_text('{"files": [1], "progress": 3}')
        case "number":
            path.write_text('{"files": {"run.json": 5, "/etc/passwd": "", "../x": ""}}')
        case "nothing":
            path.write_text('{"files": {}}')
        case "bytes":
            path.write_bytes(b"\xff\xfe" * 50)
        case "fifo":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
        case "folder":
            path.mkdir()


FILES = (MANIFEST, "run.json", "optimizer.safetensors", "random.safetensors", "adapter/adapter.safetensors")


KINDS = ("half", "empty", "deep", "other", "number", "nothing", "bytes", "fifo", "loop", "folder")
QUICK = [(kind, FILES[i % len(FILES)]) for i, kind in enumerate(KINDS)]
REST = [(kind, name) for kind in KINDS for name in FILES if (kind, name) not in QUICK]


@pytest.mark.parametrize(("kind", "name"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in REST)])
def test_of_an_incomplete_checkpoint_the_one_before_is_used(kind, name, out, tokenizer, whole):
    replaced(out / "checkpoint-10" / name, kind)
    step, values = resumed(out, tokenizer)
    assert step == 5
    assert_same(values, whole[0])


@pytest.mark.parametrize("link", ["loop", "elsewhere", "fifo", "file"])
def test_what_is_only_named_like_a_checkpoint_is_passed_over(link, out, tokenizer):
    for name in ("checkpoint-12", "checkpoint-²", "checkpoint-" + "9" * 200, ".checkpoint-4.ab"):
        path = out / name
        match link:
            case "loop":
                path.symlink_to(path)
            case "elsewhere":
                path.symlink_to(out.parent)
            case "fifo":
                os.mkfifo(path)
            case "file":
                path.write_text("")
    assert resumed(out, tokenizer)[0] == 10
    assert out.parent.is_dir()


def rewritten(out, name, change):
    """Change a file of the newest checkpoint, with the manifest that fits: as somebody does who knows the format."""
    folder = out / "checkpoint-10"
    path = folder / name
    if name.endswith(".json"):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        content = load_file(path)
        change(content)
        save_file(content, path)
    manifest = read_json(folder / MANIFEST)
    manifest["files"][name] = digest(path)
    write_json(folder / MANIFEST, manifest)


def put(*keys, value):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def of(suffix, value):
    """Replace the first tensor with this end of its name by what `value` makes of it, or remove it."""

    def change(content):
        name = next(key for key in content if key.endswith(suffix))
        made = value(content.pop(name))
        if made is not None:
            content[name] = made

    return change


NAN = float("nan")
CASES = [
    ("run.json", put("identity", value=3), "does not say which run it is of"),
    ("run.json", lambda content: content.pop("identity"), "does not say which run it is of"),
    ("run.json", put("progress", value=None), "progress is missing"),
    ("run.json", lambda content: content.pop("progress"), "progress is missing"),
    ("run.json", put("progress", "history", value=[]), "does not have a loss for each step from 1 to 10"),
    ("run.json", put("progress", "history", value={"a": 1}), "does not have a loss for each step"),
    ("run.json", put("progress", "history", 3, value=[9, "x"]), "does not have a loss for each step"),
    ("run.json", put("progress", "evaluations", value=[[1, 2, 3]]), "not a list of steps and scores"),
    ("run.json", put("progress", "seconds", value="long"), "progress.seconds is not a number"),
    ("run.json", put("progress", "rows", value=None), "progress.rows is not a number"),
    ("run.json", put("progress", "moved", value="yes"), "progress.moved is not true or false"),
    ("run.json", put("random", value=7), "random is not a list"),
    ("run.json", put("random", 0, value={}), "states of the random generators"),
    ("run.json", put("random", 0, "python", value=[3, [1, 2], None]), "states of the random generators"),
    ("run.json", put("random", 0, "numpy", value=["MT19937", [-1], 0, 0, 0.0]), "states of the random generators"),
    ("random.safetensors", of("cpu", lambda state: state[:100].clone()), "states of the random generators"),
    ("random.safetensors", of("cpu", lambda state: state.float()), "states of the random generators"),
    ("optimizer.safetensors", of("|exp_avg", lambda t: torch.full_like(t, NAN)), r"exp_avg has .* not finite: NaN"),
    ("optimizer.safetensors", of("|exp_avg_sq", lambda t: t - 1), "values below 0"),
    ("optimizer.safetensors", of("|exp_avg", lambda t: t[:1].clone()), r"exp_avg has shape \(1, .*not \("),
    ("optimizer.safetensors", of("|step", lambda t: None), r"\|step is missing"),
    (
        "optimizer.safetensors",
        lambda content: [content.pop(name) for name in list(content) if ".B|" in name],
        r"\.B\|exp_avg is missing",
    ),
    ("optimizer.safetensors", put("x|exp_avg", value=torch.ones(2)), r"x\|exp_avg belongs to no tensor"),
    ("adapter/adapter.safetensors", of(".B", lambda t: torch.full_like(t, NAN)), r"\.B has .* not finite: NaN"),
    ("adapter/adapter.safetensors", of(".B", lambda t: t[:1].clone()), r"\.B has shape \(1, .*, not \("),
    ("adapter/adapter.safetensors", of(".B", lambda t: None), r"\.B is missing"),
    ("adapter/adapter.safetensors", put("y", value=torch.ones(1)), "tensor y is not one of this adapter's"),
]


@pytest.mark.parametrize(("name", "change", "message"), CASES)
def test_a_changed_checkpoint_is_refused_with_what_is_wrong(name, change, message, out, tokenizer):
    rewritten(out, name, change)
    host = host_with()
    before = tensors(host)
    with pytest.raises(
        DeltatuneError, match=rf"(?s)checkpoint-10.*delete this checkpoint.*{message}|{message}.*delete"
    ):
        train(host, "a", TASK, ROWS, None, tokenizer, PLAIN, out)
    assert_same(tensors(host), before)
