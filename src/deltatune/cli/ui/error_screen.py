"""Errors of a command: a message on stderr and an exit code, never a traceback except with --debug."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import typer

from deltatune.cli.ui.output_mode import CURRENT, result_stream
from deltatune.core.errors import DeltatuneError, is_out_of_memory, nearest
from deltatune.core.input_validation.strict_json import dumps

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""Typer's class of wrong options and arguments, wherever this version of it keeps the class."""
RENAMED_COMMANDS = {"grow": "self-instruct"}
"""Commands that have a new name."""
OTHER_NAMES = {
    "--learning-rate": {
        "--lr": ", did you mean '--lr'?",
        "--rates": "; the learning rates are searched, and --rates is their number",
    },
    "--num-beams": {"--beams": ", did you mean '--beams'?"},
    "--max-new-tokens": {"--new-tokens": ", did you mean '--new-tokens'?"},
    "--rank": {"--method": "; the rank is an option of the method: --method 'LoRA(r=8)'"},
}
"""Names of options in other libraries: the hint for a command that has the option on the left."""
EVERYWHERE = ("--json", "--quiet", "-q")
"""Options of every command, which the program before the command does not have."""
NO_NUMBER = re.compile(r"^Invalid value for '(--?[\w-]+)'.*(?:valid (integer|number)|not a valid (?:int|float))")
"""Typer's words for a text where a number is read."""
INTERRUPTED = 130
"""Exit code of Ctrl-C, as in shells."""
CLOSED_PIPE = 141
"""Exit code of a command that stopped because nobody reads its output, as in shells (128 + SIGPIPE)."""
INTERRUPTED_TEXT = "interrupted; nothing is saved"
FULL_DISK = {errno.ENOSPC, errno.EDQUOT}
NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}


class Interrupted(Exception):
    """Ctrl-C; the message says what is saved."""


def run_guarded(command: Callable[[], Any], debug: bool, as_json: bool = False) -> int:
    """Run a command; turn every exception into a message and an exit code.

    `as_json`: stdout gets `{"error": MESSAGE, "exit_code": CODE}` too, unless it has the result already.
    """
    CURRENT.answered = False
    code, message = _guarded(command, debug)
    if message is not None:
        _print(message, code)
        if as_json and not CURRENT.answered:
            with contextlib.suppress(BrokenPipeError):
                print(dumps({"error": message, "exit_code": code}), flush=True)
    return code


def _guarded(command: Callable[[], Any], debug: bool) -> tuple[int, str | None]:
    """The exit code of a command, and the message of what stopped it."""
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")  # warnings of libraries do not help the user of a command
            result = command()
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED, INTERRUPTED_TEXT
    except Interrupted as error:
        return INTERRUPTED, f"interrupted; {error}"
    except BrokenPipeError:  # `deltatune ... | head`: the reader has closed the pipe, and the command has stopped
        silence_stdout()
        return CLOSED_PIPE, None
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _message(error)
    if result == INTERRUPTED:  # newer versions of typer turn Ctrl-C into this code themselves
        return INTERRUPTED, INTERRUPTED_TEXT
    return (result if isinstance(result, int) else 0), None


def silence_stdout() -> None:
    """Discard buffered output, so that Python's exit does not report the closed pipe."""
    with contextlib.suppress(OSError, ValueError):  # a stdout without a descriptor cannot be redirected
        os.dup2(os.open(os.devnull, os.O_WRONLY), result_stream().fileno())


def _print(text: str, code: int) -> None:
    """Print a message; control characters, which a terminal obeys, are written out."""
    text = "".join(sign if sign.isprintable() or sign in "\n\t" else repr(sign)[1:-1] for sign in text)
    print(text if code == INTERRUPTED else f"error: {text}", file=sys.stderr)


def _message(error: Exception) -> tuple[int, str]:
    """Return the exit code, 2 if the user can fix it, 1 if it is a bug, and the message."""
    if isinstance(error, DeltatuneError):
        return 2, str(error)
    if isinstance(error, USAGE_ERROR):
        return 2, _usage_message(error)
    if isinstance(error, OSError) and error.errno in FULL_DISK | NO_ACCESS:
        if error.errno in FULL_DISK:
            return 2, f"cannot write {error.filename or 'the output'}: {error.strerror}"
        where = f": {error.filename}" if error.filename else ""
        return 2, f"{error.strerror}{where}"
    if is_out_of_memory(error):
        return 2, "out of memory; use a smaller model, --batch-size or --max-length"
    text = str(error).strip() or "no message"
    return 1, (
        f"{type(error).__name__}: {text}\n"
        f"This should not happen (Python {platform.python_version()}). `--debug` shows where it comes from; "
        "please report that with the output of `deltatune env`."
    )


def _usage_message(error: Exception) -> str:
    """Describe a wrong option, argument or command: the nearest name, and where to find the valid ones."""
    context: Any = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "deltatune"
    text = error.format_message().rstrip(".")  # type: ignore[attr-defined]
    if type(error).__name__ == "NoSuchOption":
        option = str(error.option_name)  # type: ignore[attr-defined]
        options = _options(context)
        hint = next((hint for name, hint in OTHER_NAMES.get(option, {}).items() if name in options), "")
        if option in EVERYWHERE and hasattr(context.command, "commands"):
            hint = f"; it stands after the command: {path} COMMAND {option}"
        text = f"no option {option}{hint or nearest(option, options)}"
    elif text.startswith("No such command"):
        command = text.split("'")[1]
        if command in RENAMED_COMMANDS:
            text = f"the command {command!r} is now {RENAMED_COMMANDS[command]!r}"
        else:
            text = f"no command {command!r}{nearest(command, context.command.commands)}"
    elif text.startswith("Got unexpected extra argument"):
        text = _unexpected(text, _options(context))
    elif wrong := NO_NUMBER.search(text):
        text = f"{wrong[1]} needs a {'whole ' if wrong[2] == 'integer' else ''}number"
    return f"{text[0].lower()}{text[1:]}; see `{path} --help`"


def _unexpected(text: str, options: list[str]) -> str:
    """Words that no option takes, with the option that takes data where the command reads them."""
    words = text.partition("(")[2].removesuffix(")").split("(")[-1] or text
    hint = f"; data are named by an option: --data {words.split()[0]}" if "--data" in options and words.strip() else ""
    return f"unexpected argument {words}{hint}"


def _options(context: Any) -> list[str]:
    if context is None:
        return []
    return [name for parameter in context.command.params for name in (*parameter.opts, *parameter.secondary_opts)]
