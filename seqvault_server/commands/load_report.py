"""What a load tells the person who waits for it: a bar on a terminal, a line every few seconds anywhere else."""

import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S: Final = 5.0


class Report:
    """Entered while the load runs."""

    def __init__(self, console: Console, *, noun: str, total: int, done: int) -> None:
        self._console = console
        self._noun = noun
        self._total = total
        self._first = self.done = done
        self._began = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{noun}, {{task.fields[rate]}}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("loading", total=total, completed=done, rate="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def rate(self) -> str:
        rows_per_s = (self.done - self._first) / max(1e-3, time.monotonic() - self._began)
        return f"{rows_per_s:,.0f} {self._noun}/s"

    def advance(self, rows: int) -> None:
        """`rows` more are stored."""
        self.done += rows
        self._bar.update(self._task, completed=self.done, rate=self.rate, description="loading")
        self._line("")

    def waiting(self, reason: str) -> None:
        """The server takes nothing for now."""
        self._bar.update(self._task, description=f"waiting: {reason}")
        self._line(f", waiting: {reason}")

    def summary(self) -> str:
        loaded = f"{self.done - self._first:,} {self._noun} in {time.monotonic() - self._began:,.1f} s, {self.rate}"
        return loaded if not self._first else f"{loaded}; {self.done:,} in all"

    def _line(self, note: str) -> None:
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            self.say(f"{self.done:,} of {self._total:,} {self._noun}, {self.rate}{note}")

    def say(self, text: str) -> None:
        """One line, however long, as it stands."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)
