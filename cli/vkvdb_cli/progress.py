"""A progress bar with rate and remaining time on stderr; nothing at all where stderr is not a terminal.

with progress("capturing", total=80) as advance:
    advance(8)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Task
    from rich.text import Text


class Advance(Protocol):
    """Says that so many more steps are done."""

    def __call__(self, steps: int = 1) -> None: ...


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Advance]:
    """Show how far a loop is, for as long as the block runs; the total may be unknown."""
    if not sys.stderr.isatty():
        yield _silent
        return

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

    class Rate(ProgressColumn):
        """Steps a second."""

        def render(self, task: Task) -> Text:
            from rich.text import Text

            return Text(f"{task.speed:.1f}/s" if task.speed else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)

        def advance(steps: int = 1) -> None:
            bar.advance(task, steps)

        yield advance


def _silent(steps: int = 1) -> None:
    pass
