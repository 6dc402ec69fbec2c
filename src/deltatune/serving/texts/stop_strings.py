"""Stop strings: they end a text where they begin, also across token borders, and no part of them is given out."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Lets a text through piece by piece, up to the first stop string.

    What may be the beginning of a stop string is held back until it is known not to be.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.matched: str | None = None
        """The stop string that has ended the text."""
        self._held = ""

    def push(self, text: str) -> str:
        """More text; returns what can be given out. After a match nothing more is."""
        if self.matched is not None or not self.stops:
            return "" if self.matched is not None else text
        self._held += text
        places = [(self._held.find(stop), -len(stop), stop) for stop in self.stops if stop in self._held]
        if places:
            at, _, self.matched = min(places)
            given, self._held = self._held[:at], ""
            return given
        kept = self._beginning()
        given = self._held[: len(self._held) - kept]
        self._held = self._held[len(self._held) - kept :]
        return given

    def finish(self) -> str:
        """The text has ended: what was held back is text after all."""
        given, self._held = self._held, ""
        return given

    def _beginning(self) -> int:
        """Characters at the end of the text that begin a stop string."""
        longest = min(len(self._held), max(map(len, self.stops)) - 1)
        return next((n for n in range(longest, 0, -1) if any(s.startswith(self._held[-n:]) for s in self.stops)), 0)
