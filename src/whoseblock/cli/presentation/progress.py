"""A progress bar on standard error."""

import sys
import time
from typing import TYPE_CHECKING

from whoseblock.closing import Closing

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["ProgressBar"]


class ProgressBar(Closing):
    """A `whoseblock.fs.base.Progress` that shows itself on a terminal.

    Work that ends within `delay_s` seconds shows nothing, and does not import rich.
    """

    def __init__(self, *, delay_s: float = 1.0) -> None:
        self._shown_from = time.monotonic() + delay_s
        self.shown = sys.stderr.isatty()
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Show that ``done`` of ``total`` (None if unknown) of the task ``what`` is done."""
        if not self.shown or time.monotonic() < self._shown_from:
            return
        if self._bar is None:
            self._bar = _start_bar()
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total)
        self._bar.update(self._tasks[what], completed=done)

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self._bar is not None:
            self._bar.stop()


def _start_bar() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    bar.start()
    return bar
