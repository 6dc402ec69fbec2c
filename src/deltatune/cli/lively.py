"""What moves in a terminal for as long as something runs; elsewhere nothing does."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from deltatune.cli.screen import console


class Lively:
    """A context: what is live starts with it and ends with it."""

    def __init__(self) -> None:
        self.console = console(stderr=True)
        self.live: Live | Progress | None = None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()


class Bar(Lively):
    """One bar with a name before it, a count and words behind it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        if self.console.is_terminal:
            columns = TextColumn(name), BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[words]}")
            self.live = Progress(*columns, console=self.console, transient=True)
            self.only = self.live.add_task(name, total=None, words="")

    def moved(self, done: int, total: int, words: str) -> bool:
        """Show how far it is; False where there is no terminal to show it in."""
        if not isinstance(self.live, Progress):
            return False
        self.live.update(self.only, completed=done, total=total, words=words)
        return True
