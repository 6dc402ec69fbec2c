"""Options in the words of whoever reads a message: `--lr 2` is `settings.learning_rate=2` in a recipe.

Messages of code that several doors share name what the user gave as the command line does. Where the user came in by
another door, that door puts its own names in their place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from deltatune.core.errors import DeltatuneError

_END = r"(?=:|$|\)|,? --|,? and --| or --|; or |\n| chooses| instead)"
OPTION = re.compile(
    rf"(?<![\w`-])--([a-z][a-z-]*)(?: ([A-Z][A-Z=|]+\b|[^\s:,;()]+(?:,[^\s:,;()]+)*{_END}))?",
    re.MULTILINE,
)
"""An option, and its value where what follows the value shows that it is one."""
SET = re.compile(r"(?<![\w`-])--set (\w+)=")
WORDS = {"out", "it", "names", "takes", "them", "alone", "too", "again", "and", "or"}
"""What follows an option without being its value: leave --label out."""


def reworded(text: str, names: Mapping[str, str]) -> str:
    """The text with these options by other names, such as {"lr": "settings.learning_rate"}; others stay."""

    def replaced(match: re.Match[str]) -> str:
        option, value = match[1], match[2]
        if option not in names:
            return match[0]
        if value is None:
            return names[option]
        return f"{names[option]} {value}" if value in WORDS else f"{names[option]}={value}"

    if "set" in names:
        text = SET.sub(lambda match: f"{names['set']}{match[1]}=", text)
    return OPTION.sub(replaced, text)


@contextmanager
def rewording(names: Mapping[str, str]) -> Iterator[None]:
    """Errors that leave this block name these options so."""
    try:
        yield
    except DeltatuneError as error:
        error.args = (reworded(str(error), names), *error.args[1:])
        raise
