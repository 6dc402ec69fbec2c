"""How a command ends: an error as one screen on stderr and an exit code, never a traceback unless asked for."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import typer

from deltatune.core.errors import DeltatuneError, nearest

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""Typer's class of wrong options and arguments, wherever this version of it keeps the class."""
INTERRUPTED = 130
"""Exit code of Ctrl-C, as shells have it."""
NOTHING = "interrupted; nothing is kept"
FULL_DISK = {errno.ENOSPC, errno.EDQUOT}
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}


class Interrupted(Exception):
    """Ctrl-C; the message says what is kept."""


def ended(command: Callable[[], Any], debug: bool) -> int:
    """Run a command and turn whatever it raises into a message and an exit code."""
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")  # what a library warns of is no news to the user of a command
            result = command()
    except (KeyboardInterrupt, typer.Abort):
        return _say(NOTHING, INTERRUPTED)
    except Interrupted as error:
        return _say(f"interrupted; {error}", INTERRUPTED)
    except BrokenPipeError:  # `deltatune ... | head`: the reader has enough
        silence_stdout()
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _say(*_message(error))
    if result == INTERRUPTED:  # newer versions of typer turn Ctrl-C into this code themselves
        return _say(NOTHING, INTERRUPTED)
    return result if isinstance(result, int) else 0


def silence_stdout() -> None:
    """Let what is still buffered go nowhere, so that Python's exit does not complain of the closed pipe."""
    with contextlib.suppress(OSError, ValueError):  # a stdout without a descriptor has nothing to flush into
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(text: str, code: int) -> int:
    print(text if code == INTERRUPTED else f"error: {text}", file=sys.stderr)
    return code


def _message(error: Exception) -> tuple[str, int]:
    """What to say, and the exit code: 2 where the user can mend it, 1 where something is wrong with us."""
    if isinstance(error, DeltatuneError):
        return str(error), 2
    if isinstance(error, USAGE_ERROR):
        return _usage(error), 2
    if isinstance(error, OSError) and error.errno in FULL_DISK | REFUSED:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}", 2
    if type(error).__name__ == "OutOfMemoryError":
        return "the device's memory is full; try a smaller --batch-size or --max-length", 2
    text = str(error).strip() or "no message"
    return (
        f"{type(error).__name__}: {text}\n"
        f"This should not happen (Python {platform.python_version()}). `--debug` shows where it comes from; "
        "please report that with the output of `deltatune env`.",
        1,
    )


def _usage(error: Exception) -> str:
    """A wrong option or argument: what was meant, and where the right ones are listed."""
    context: Any = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "deltatune"
    text = error.format_message().rstrip(".")  # type: ignore[attr-defined]
    if type(error).__name__ == "NoSuchOption":
        option = str(error.option_name)  # type: ignore[attr-defined]
        text = f"no option {option}{nearest(option, _options(context))}"
    elif text.startswith("No such command"):
        word = text.split("'")[1]
        text = f"no command {word!r}{nearest(word, context.command.commands)}"
    return f"{text[0].lower()}{text[1:]}\n`{path} --help` lists what there is"


def _options(context: Any) -> list[str]:
    if context is None:
        return []
    return [name for parameter in context.command.params for name in (*parameter.opts, *parameter.secondary_opts)]
