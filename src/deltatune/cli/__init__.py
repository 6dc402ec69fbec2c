"""The command line, one file per command. Importing it does not import torch; commands do when they run."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence

COMPLETE = "_DELTATUNE_COMPLETE"
"""The environment variable with which the scripts of `deltatune completion` ask for words instead of a command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `deltatune` with these arguments (by default the process's own) and return its exit code.

    0 success, 1 unexpected failure, 2 a mistake that the user can fix, 130 interrupted, 141 stopped because
    the reader of its output has closed the pipe.
    """
    missing = [name for name in ("typer", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"error: the command line needs {' and '.join(missing)}.\n"
            'Install what is missing: pip install "deltatune[cli]"',
            file=sys.stderr,
        )
        return 2
    words = sys.argv[1:] if argv is None else list(argv)
    if os.environ.get(COMPLETE):  # a shell asks what may stand next
        from deltatune.cli.completion_words import print_completions

        return print_completions(words)
    from deltatune.cli.app import run

    return run(words)
