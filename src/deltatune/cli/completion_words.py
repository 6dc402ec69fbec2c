"""Tab completion: the words that may stand next on a command line, found without importing torch.

The scripts of `deltatune completion` call the program with a variable set and the words typed so far. It prints a
candidate a line, with its help after a tab; no line leaves the word to the shell, which knows files.
"""

from __future__ import annotations

import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltatune.cli.ui.help_screen import ROOT

LONGEST_HELP = 100
"""Characters of a candidate's help."""
MOST_ADAPTERS = 200
"""Names of adapters that are offered."""
METRICS = (
    *("accuracy", "f1", "precision", "recall", "f1_macro", "f1_micro", "matthews", "hamming", "pearson", "spearman"),
    *("mse", "em", "rougeL", "bleu", "rouge1", "rouge2", "meteor", "chrf", "nist", "cider", "ter", "perplexity"),
    *("loss", "bits_per_char", "bits_per_byte", "logical_form", "final_answer", "bertscore", "mover", "bleurt"),
    *("reward_margin", "preference_loss"),
)
CLASS = re.compile(r"^class (\w+)\(([^()]*)\):", re.MULTILINE)
SHORT_FORM = re.compile(r"^@short_form\ndef (\w+)\(", re.MULTILINE)

Candidates = list[tuple[str, str]]
"""Words with their help."""


def complete(root: Any, words: Sequence[str]) -> Candidates:
    """What the last of these words may become; the others stand before it, without the program's name."""
    typed = _typed(root, words)
    if typed.option is not None:
        found = _values(typed.command, typed.option, typed)
        return [(typed.prefix + word, help_text) for word, help_text in _matching(found, typed.word)]
    if typed.word.startswith("-") and not typed.only_arguments:
        return _matching(_options(typed.command), typed.word)
    if hasattr(typed.command, "commands"):
        parts = typed.command.commands.items()
        return _matching([(name, _short(part.help)) for name, part in parts if not part.hidden], typed.word)
    return _matching(_arguments(typed), typed.word)


@dataclass
class _Typed:
    """A command line up to the word that is completed."""

    command: Any
    word: str
    given: dict[str, str]
    """Values of options that stand before it."""
    option: Any = None
    """The option whose value the word is."""
    prefix: str = ""
    """What stands before the value in the same word: `--method=`."""
    only_arguments: bool = False
    """Whether `--` has ended the options."""


def _typed(root: Any, words: Sequence[str]) -> _Typed:
    words = [word.strip("\"'") for word in words]  # as typed, quotes and all
    typed = _Typed(root, words[-1] if words else "", {})
    before = words[:-1]
    if typed.word == "=":  # bash makes a word of each =
        before, typed.word = [*before, "="], ""
    waiting = None
    for word in before:
        if word == "=":
            continue
        if waiting is not None:
            typed.given[waiting.name], waiting = word, None
        elif word == "--":
            typed.only_arguments = True
        elif word.startswith("-") and not typed.only_arguments:
            name, sign, value = word.partition("=")
            option = _option(typed.command, name)
            if option is not None and sign:
                typed.given[option.name] = value
            elif option is not None and not option.is_flag:
                waiting = option
        elif hasattr(typed.command, "commands"):
            typed.command = typed.command.commands.get(word, typed.command)
    typed.option = waiting
    name, sign, value = typed.word.partition("=")
    if waiting is None and sign and name.startswith("--") and not typed.only_arguments:
        option = _option(typed.command, name)
        if option is not None and not option.is_flag:
            typed.option, typed.prefix, typed.word = option, f"{name}=", value
    return typed


def _option(command: Any, name: str) -> Any:
    return next((p for p in command.params if p.param_type_name == "option" and name in p.opts), None)


def _options(command: Any) -> Candidates:
    """Long names of options, and -h and --help."""
    shown = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    names = [(name, _short(p.help)) for p in shown for name in (*p.opts, *p.secondary_opts) if name.startswith("--")]
    return [*names, ("--help", "Show this message and exit.")]


def _matching(candidates: Candidates, word: str) -> Candidates:
    return [(name, text) for name, text in candidates if name.startswith(word)]


def _short(text: str | None) -> str:
    line = " ".join((text or "").partition("\n\n")[0].split())
    return line if len(line) <= LONGEST_HELP else line[: LONGEST_HELP - 1] + "…"


def _plain(words: Iterable[str]) -> Candidates:
    return [(word, "") for word in words]


def _values(command: Any, option: Any, typed: _Typed) -> Candidates:
    """What an option may be: its choices, or names that are known without loading anything."""
    choices = getattr(option.callback, "choices", None)
    if choices:
        return _plain(choices)
    finder = next((VALUES[name] for name in option.opts if name in VALUES), None)
    return finder(typed) if finder is not None else []


def _arguments(typed: _Typed) -> Candidates:
    """What an argument may be; a command's arguments are of one kind, or files."""
    kinds = {p.metavar for p in typed.command.params if p.param_type_name == "argument"}
    if kinds == {"METHOD"}:
        return _methods(typed)
    if kinds & {"NAME", "NAME..."} and any(p.name == "store" for p in typed.command.params):
        return _adapters(typed)
    if kinds == {"SHELL"}:
        return _plain(SHELLS)
    if kinds == {"MODEL"}:
        return _model(typed)
    return []


def _methods(typed: _Typed) -> Candidates:
    return _plain(method_names())


def method_names() -> list[str]:
    """Names of the built-in methods, read from their files: importing them takes seconds."""
    parents: dict[str, set[str]] = {}
    names = set()
    for folder in ("methods", "prompting"):
        for file in (ROOT / folder).rglob("*.py"):
            source = file.read_text(encoding="utf-8")
            names |= set(SHORT_FORM.findall(source))
            parents |= {name: set(re.findall(r"\w+", bases)) for name, bases in CLASS.findall(source)}
    methods = {"Method", "Compound"}
    while more := {name for name, bases in parents.items() if bases & methods} - methods:
        methods |= more
    registered = {name for name in methods & parents.keys() if "registry" not in parents[name]}
    return sorted(names | {name for name in registered if not name.startswith("_")})


def _adapters(typed: _Typed) -> Candidates:
    """Names of the adapters of a store in a folder, from its index."""
    from deltatune.cli.commands.store import VARIABLE as STORE

    place = typed.given.get("store") or os.environ.get(STORE)
    if not place:
        return []
    index = Path(place).expanduser() / "index.sqlite"
    try:
        with closing(sqlite3.connect(f"{index.absolute().as_uri()}?mode=ro", uri=True, timeout=0.2)) as database:
            query = "SELECT name, task FROM entries WHERE substr(name, 1, ?) = ? ORDER BY name LIMIT ?"
            rows = database.execute(query, (len(typed.word), typed.word, MOST_ADAPTERS)).fetchall()
    except sqlite3.Error:
        return []
    return [(str(name), str(task)) for name, task in rows]


def _tasks(typed: _Typed) -> Candidates:
    from deltatune.data.dataset import TASKS

    option = _option(typed.command, "--task")
    named = (option.metavar or "").split("|") if option is not None else []
    return _plain(named if "fill" in named else TASKS)


def _model(typed: _Typed) -> Candidates:
    """The model that needs no name of a file, once its first letter is there: models are folders otherwise."""
    return _plain(["builtin"] if typed.word else [])


def _data(typed: _Typed) -> Candidates:
    return _plain(["python-docs"] if typed.word else [])


def _dtypes(typed: _Typed) -> Candidates:
    whole_gguf = ["q8_0"] if typed.command.name == "export" else []
    return _plain(["float32", "bfloat16", "float16", *whole_gguf])


def _constant(*words: str) -> Callable[[_Typed], Candidates]:
    return lambda typed: _plain(words)


SHELLS = ("bash", "zsh", "fish")
VALUES: dict[str, Callable[[_Typed], Candidates]] = {
    "--method": _methods,
    "--task": _tasks,
    "--metric": _constant(*METRICS),
    "--quantize": _constant("nf4", "fp4", "int8", "none"),
    "--model": _model,
    "--data": _data,
    "--dtype": _dtypes,
    "--for": _constant("vllm", "sglang", "tgi", "gguf", "onnx"),
    "--loss": _constant("sigmoid", "ipo", "hinge"),
    "--reference": _constant("base", "start"),
    "--how": _constant("linear", "svd", "ties", "dare", "dare_ties"),
    "--scope": _constant("model", "tensor"),
    "--to": _constant("csv", "latex", "markdown", "json"),
    "--form": _constant("chat", "plain"),
    "--split": _constant("train", "validation", "test", "all"),
    "--export-for": _constant("peft"),
    "--of": _constant("full", "gain"),
    "--sort": _constant("name", "task", "method", "base", "score", "size", "parameters", "date"),
}
"""Known values of options that have no callback with choices."""


def print_completions(words: Sequence[str]) -> int:
    """Print the candidates for the last word, the program's answer to a shell; what goes wrong offers nothing."""
    with suppress(Exception):
        import typer

        from deltatune.cli.app import app

        for name, text in complete(typer.main.get_command(app), words):
            print(f"{name}\t{text}" if text else name)
        sys.stdout.flush()
    return 0
