"""Progress on a terminal (one live line) or in a pipe (one plain line per stage)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from mate_plugin.demo.counts import KernelCount


class Display:
    """Where the demonstration writes; ``stages()`` shows what is being waited for."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)

    def line(self, text: str) -> None:
        """One line of plain text."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def stages(self, first: str) -> Iterator[Stages]:
        """Show ``first`` and then whatever the yielded object is told, with the time each took."""
        if self.console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                TimeElapsedColumn(),
            )
            with Progress(*columns, console=self.console, transient=True) as progress:
                yield Stages(self, first, progress)
        else:
            yield Stages(self, first, None)

    def kernels(self, counts: Sequence[KernelCount]) -> None:
        """A table of kernel, implementation, calls and time."""
        table = Table(title=None)
        table.add_column("kernel")
        table.add_column("implementation")
        table.add_column("calls", justify="right")
        table.add_column("time (ms)", justify="right")
        for count in counts:
            table.add_row(
                count.kernel, count.implementation, str(count.calls), f"{count.seconds * 1e3:.1f}"
            )
        self.console.print(table)


class Stages:
    """The stages of one wait; calling it names the next."""

    def __init__(self, display: Display, first: str, progress: Progress | None) -> None:
        self._display = display
        self._progress = progress
        self._start = self._since = time.monotonic()
        self._now = first
        self._task = progress.add_task(first, total=None) if progress else None
        if progress is None:
            display.line(f"  {first} ...")

    def __call__(self, stage: str) -> None:
        """Say that ``stage`` has begun."""
        now = time.monotonic()
        if self._progress is not None and self._task is not None:
            self._display.line(f"  {self._now} ({now - self._since:.1f} s)")
            self._progress.update(self._task, description=stage)
        else:
            self._display.line(f"  {stage} ... ({now - self._start:.0f} s)")
        self._now, self._since = stage, now
