"""Tab completion: what is offered, without torch; the scripts, in a real bash; their installation."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from deltatune.cli import completion_words
from deltatune.cli.app import app
from deltatune.cli.completion_words import METRICS, SHELLS, complete, method_names
from deltatune.core.registry import prompting_registry, registry
from deltatune.data.dataset import TASKS
from deltatune.store.adapter_store import AdapterStore
from support.command_line import ran
from support.stored_adapters import make_adapter

ROOT = typer.main.get_command(app)


def words(*typed: str) -> list[str]:
    return [name for name, _ in complete(ROOT, typed)]


def test_commands_and_their_parts() -> None:
    assert words("tr") == ["train"]
    assert words("store", "") == ["add", "list", "search", "show", "remove", "export"]
    assert set(words("")) == set(ROOT.commands)


def test_every_option_of_every_command_is_offered() -> None:
    for name, command in ROOT.commands.items():
        if not hasattr(command, "commands"):
            offered = words(name, "--")
            names = {long for p in command.params if not p.hidden for long in (*p.opts, *p.secondary_opts)}
            assert {long for long in names if long.startswith("--")} <= set(offered)
            assert "--quiet" in offered
            assert "--help" in offered


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (("train", "--method", "LoRA"), ["LoRA", "LoRAPlus"]),
        (("train", "--method", "=", "LoRA"), ["LoRA", "LoRAPlus"]),  # as bash splits it
        (
            (
                "train",
                "--method=LoRA",
            ),
            ["--method=LoRA", "--method=LoRAPlus"],
        ),
        (("train", "--method", '"LoRA'), ["LoRA", "LoRAPlus"]),
        (("compare", "-d", "x.csv", "--precision", ""), ["auto", "float32", "bfloat16"]),
        (("train", "--metric", "roug"), ["rougeL", "rouge1", "rouge2"]),
        (("predict", "--task", ""), ["fill", "generate"]),
        (("fit", "--task", "l"), ["lm"]),
        (("train", "--quantize", "n"), ["nf4", "none"]),
        (("train", "--model", "b"), ["builtin"]),
        (("export", "--for", "s"), ["sglang"]),
        (("export", "--dtype", "q"), ["q8_0"]),
        (("merge", "--dtype", "q"), []),
        (("train", "--metric", "reward"), ["reward_margin"]),
        (("train", "--loss", "i"), ["ipo"]),
        (("train", "--reference", ""), ["base", "start"]),
        (("train", "--data", "./"), []),  # files are the shell's
        (("methods", "Pref"), ["Prefix"]),
        (("completion", ""), list(SHELLS)),
        (("train", "--", "--met"), []),
        (("nonsense", "--no-such", ""), list(ROOT.commands)),
    ],
)
def test_values(typed: tuple[str, ...], offered: list[str]) -> None:
    assert words(*typed) == offered


def test_names_are_those_of_the_registries() -> None:
    assert method_names() == sorted({**registry(), **prompting_registry()})
    assert words("train", "--task", "") == list(TASKS)
    help_text = next(p.help for p in ROOT.commands["train"].params if p.name == "metric")
    assert all(name in help_text for name in METRICS)


def test_adapters_of_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DELTATUNE_STORE", raising=False)
    make_adapter(tmp_path / "runs" / "german", 1)
    make_adapter(tmp_path / "runs" / "greek", 2)
    store = AdapterStore(tmp_path / "my store")
    store.add_all(tmp_path / "runs")
    store.close()
    assert words("store", "show", "--store", str(tmp_path / "my store"), "ge") == ["german"]
    assert words("store", "remove", "g") == []
    monkeypatch.setenv("DELTATUNE_STORE", str(tmp_path / "my store"))
    assert words("store", "remove", "g") == ["german", "greek"]
    assert words("store", "export", "100%") == []
    monkeypatch.setenv("DELTATUNE_STORE", str(tmp_path / "none"))
    assert words("store", "remove", "g") == []
    assert not (tmp_path / "none").exists()


def test_a_long_help_is_one_short_line() -> None:
    for _, text in complete(ROOT, ("train", "--")):
        assert len(text) <= completion_words.LONGEST_HELP
        assert "\n" not in text
        assert "\t" not in text


def test_an_option_with_choices_offers_them() -> None:
    assert words("latency", "--task", "") == ["classify", "lm"]


def test_bash_completes_without_torch(tmp_path: Path) -> None:
    """The script as bash reads it; the program is one that also says whether torch was imported."""
    program = tmp_path / "deltatune"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom deltatune.cli import main\n"
        f"main()\nopen({str(tmp_path / 'torch')!r}, 'w').write(str('torch' in sys.modules))\n"
    )
    program.chmod(0o755)
    script = tmp_path / "completion.bash"
    script.write_text(ran("completion", "bash").out)
    test = (
        'source "$1"; complete -p deltatune; COMP_WORDS=("$2" train --method Ho); COMP_CWORD=3; _deltatune; '
        'echo "${COMPREPLY[@]}"; COMP_WORDS=("$2" "" extra); COMP_CWORD=1; _deltatune; echo "${#COMPREPLY[@]}"'
    )
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run([bash, "--norc", "-c", test, "-", script, program], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "complete -o default -F _deltatune deltatune", "Houlsby", str(len(ROOT.commands)),
    ]  # fmt: skip
    assert (tmp_path / "torch").read_text() == "False"


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_are_what_the_shell_reads(shell: str) -> None:
    script = ran("completion", shell).out
    assert f"_DELTATUNE_COMPLETE={shell} " in script
    assert {"bash": "complete -o default", "zsh": "compdef _deltatune deltatune", "fish": "complete -c"}[
        shell
    ] in script
    if checker := shutil.which(shell):
        done = subprocess.run([checker, "-n"], input=script, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(ran("completion", shell, "--json").out) == {"shell": shell, "script": script}


def test_installing_twice_is_installing_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".bashrc").write_text("alias ll='ls -l'")
    monkeypatch.setenv("SHELL", "/bin/bash")
    assert ran("completion", "--install").code == 0
    start = (tmp_path / ".bashrc").read_text()
    assert start.startswith("alias ll='ls -l'\n[ -f '")
    again = ran("completion", "--install", "--json")
    assert json.loads(again.out)["files"] == [str(tmp_path / ".local/share/deltatune/completion.bash")]
    assert (tmp_path / ".bashrc").read_text() == start
    done = subprocess.run(
        ["bash", "--norc", "-c", f". {tmp_path}/.bashrc; complete -p deltatune"], capture_output=True, text=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout == "complete -o default -F _deltatune deltatune\n"
    ran("completion", "zsh", "--install")
    assert "completion.zsh" in (tmp_path / ".zshrc").read_text()
    ran("completion", "fish", "--install")
    assert (tmp_path / ".config/fish/completions/deltatune.fish").exists()


def test_unknown_shells(monkeypatch: pytest.MonkeyPatch) -> None:
    done = ran("completion", "bsh")
    assert done.code == 2
    assert "did you mean 'bash'?; shells: bash, zsh, fish" in done.err
    monkeypatch.setenv("SHELL", "/bin/dash")
    assert "the login shell is 'dash'; name one of bash, zsh, fish" in ran("completion", "--install").err
    monkeypatch.delenv("SHELL")
    assert "deltatune completion bash --install" in ran("completion").err
