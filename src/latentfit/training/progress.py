"""How far a run is: the event the loop sends, a live bar for terminals, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import TaskID


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """The state of a run, sent at most ten times a second and once at the end.

    Attributes:
        what: the run's name.
        step: steps done.
        max_steps: steps planned.
        terms: averages of the loss's terms at the last record; with "validation" where there was one.
        seconds: since the run began, resumed parts included.
        seconds_left: expected, without early stopping; None before there is a speed to go by.
        finished: whether this is the last event; a run may finish before `max_steps`.
    """

    what: str
    step: int
    max_steps: int
    terms: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    seconds_left: float | None = None
    finished: bool = False


class Progress(Protocol):
    """Something that shows progress."""

    def __call__(self, event: ProgressEvent) -> None:
        """Show one event; called between two steps, so it should return at once."""
        ...


class PlainProgress:
    """One line per 10 % of a run, for logs and pipes.

    Args:
        stream: where the lines go.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self._shown: dict[str, int] = {}

    def __call__(self, event: ProgressEvent) -> None:
        tenth = 10 * event.step // event.max_steps
        if tenth <= self._shown.get(event.what, 0) and not event.finished:
            return
        self._shown[event.what] = 0 if event.finished else tenth
        self.stream.write(f"{event.what}  {event.step:,}/{event.max_steps:,}  {_tail(event)}\n")
        self.stream.flush()


class LiveProgress:
    """A bar per run with the time left, drawn by rich; use it as a context manager.

    Args:
        console: rich's console, on stderr by default.
    """

    def __init__(self, console: Any = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars

        # the loop already sends at most ten events a second; a refresh thread would take time from the steps
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[tail]}"),
            console=console if console is not None else Console(stderr=True),
            auto_refresh=False,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> LiveProgress:
        self.bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bars.stop()

    def __call__(self, event: ProgressEvent) -> None:
        if event.what not in self._tasks:
            self._tasks[event.what] = self.bars.add_task(event.what, total=event.max_steps, tail="")
        total = event.step if event.finished else event.max_steps
        self.bars.update(self._tasks[event.what], completed=event.step, total=total, tail=_tail(event))
        self.bars.refresh()


@contextmanager
def show_progress(stream: TextIO | None = None) -> Iterator[Progress]:
    """The progress that suits a stream: a live bar on a terminal, plain lines elsewhere.

    Args:
        stream: stderr by default.
    """
    stream = stream if stream is not None else sys.stderr
    if not stream.isatty():
        yield PlainProgress(stream)
        return
    from rich.console import Console

    with LiveProgress(Console(file=stream)) as live:
        yield live


def _tail(event: ProgressEvent) -> str:
    parts = [f"{name} {event.terms[name]:.4g}" for name in ("loss", "validation") if name in event.terms]
    if event.finished:
        parts.append(f"{clock(event.seconds)} in all")
    elif event.seconds_left is not None:
        parts.append(f"{clock(event.seconds_left)} left")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss.

    Example:
        >>> clock(83.4), clock(3671)
        ('1:23', '1:01:11')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
