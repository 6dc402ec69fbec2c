"""One word for one thing: an option has the same metavar, short name and meaning on every command that has it."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from deltatune.cli.app import app
from deltatune.cli.ui.help_screen import RENAMED_OPTIONS
from support.command_line import ran

ROOT = typer.main.get_command(app)
OTHER = {
    ("--adapter", "draw"): "several at once, each with its weight",
    ("--adapter", "serve"): "several at once, each with its name",
    ("--base", "store list"): "a filter of what a store holds",
    ("--batch-size", "self-instruct"): "prompts, which are no rows yet",
    ("--label", "predict"): "the words that are missing, of --task fill",
    ("--limit", "facts"): "rows of each relation",
    ("--limit", "store list"): "adapters, no rows",
    ("--limit", "store search"): "adapters, no rows",
    ("--method", "store list"): "a filter of what a store holds",
    ("--prompts", "facts"): "a folder of trained prompts",
    ("--task", "predict"): "fill alone",
    ("--task", "store add"): "what a store is told of an adapter",
    ("--task", "store list"): "a filter of what a store holds",
    ("--temperature", "self-instruct"): "of sampling, as in every other tool; of a mixture it is the sampler's",
    ("--text", "draw"): "what is drawn is a text itself",
    ("--top", "facts"): "k of P@k",
    ("--top", "inspect"): "directions",
    ("--force", "run"): "of all stages",
    ("--force", "draw"): "of pictures",
}
"""Options with another meaning on one command, and why they keep their name."""
FILES = {"self-instruct", "results", "predict", "facts"}
"""Commands whose --out is a file; that of the others is a folder."""
VARIED = {"--data", "--model", "--out", "--method"}
"""Options whose help says on each command what is done with them."""
FILLING = {"with", "that", "this", "default", "give", "again", "more", "other", "those", "only", "from", "such"}


def commands(command: Any = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for name, part in command.commands.items():
            yield from commands(part, (*path, name))
    else:
        yield " ".join(path), command


def options() -> dict[str, dict[str, Any]]:
    """Every long option by the commands that have it; those with a meaning of their own left out."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, command in commands():
        for parameter in command.params:
            for option in parameter.opts:
                if parameter.param_type_name == "option" and option.startswith("--") and (option, name) not in OTHER:
                    found[option][name] = parameter
    return found


SHARED = {option: by for option, by in options().items() if len(by) > 1}


@pytest.mark.parametrize("option", sorted(SHARED))
def test_an_option_is_the_same_on_every_command(option: str) -> None:
    by = SHARED[option]
    metavars = {name: parameter.metavar for name, parameter in by.items()}
    if option == "--out":
        assert metavars == {name: "FILE" if name in FILES else "FOLDER" for name in by}
    else:
        assert len(set(metavars.values())) == 1, metavars
    assert len({parameter.is_flag for parameter in by.values()}) == 1
    shorts = {name: [short for short in p.opts if not short.startswith("--")] for name, p in by.items()}
    if option != "--template":  # -t is that of facts, whose wordings are many
        assert len({tuple(short) for short in shorts.values()}) == 1, shorts
    if option not in VARIED:
        helps = {name: set(re.findall(r"[a-z]{4,}", (p.help or "").lower())) - FILLING for name, p in by.items()}
        assert set.intersection(*helps.values()), {name: p.help for name, p in by.items()}


def test_exceptions_exist() -> None:
    have = {(option, name) for name, command in commands() for p in command.params for option in p.opts}
    assert not {pair for pair in OTHER if pair not in have}


def test_what_reads_data_takes_the_same_files() -> None:
    for name in ("compare", "train", "dimension", "pretrain"):
        command = ROOT.commands[name]
        have = {option for parameter in command.params for option in parameter.opts}
        assert {"--data", "--validation", "--test", "--limit", "--model", "--out", "--precision"} <= have, name


def test_precision_where_a_model_runs() -> None:
    for name in ("train", "compare", "evaluate", "predict", "serve", "latency", "dimension", "continual", "pretrain"):
        assert any("--precision" in parameter.opts for parameter in ROOT.commands[name].params), name


@pytest.mark.parametrize(
    ("command", "old", "new"), [(c, old, new) for c, names in RENAMED_OPTIONS.items() for old, new in names.items()]
)
def test_earlier_names_are_taken_with_one_line(command: str, old: str, new: str) -> None:
    assert f"{old} " not in ran(command, "--help").out
    done = ran(command, "--model", "no-such-model", f"{old}=7")
    assert done.code == 2
    assert f"note: {old} is now {new}" in done.err
    assert "no option" not in done.err
    assert "note:" not in ran(command, "--model", "no-such-model", f"{old}=7", "-q").err
    assert "note:" not in ran(command, "--model", "no-such-model", f"{new}=7").err
