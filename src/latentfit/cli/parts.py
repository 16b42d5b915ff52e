"""Which part of a diagnosis or a retrofit is under way, on stderr: its name, how far it is, how long it took."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

_NAME, _STATE = 20, 20


class Parts:
    """Told `(part, done, of)`; a part's line is finished when another begins.

    Args:
        stream: where the lines go; on a terminal the part under way is shown too.
        lang: "en" or "vi".
    """

    def __init__(self, stream: TextIO | None = None, lang: str = "en") -> None:
        self.stream = sys.stderr if stream is None else stream
        self.live = self.stream.isatty()
        self.lang = lang
        self._part, self._name, self._since, self._shown = "", "", 0.0, 0.0

    def __call__(self, part: str, done: int, of: int) -> None:
        """Called between two steps: it returns at once."""
        now = time.perf_counter()
        if part != self._part:
            from latentfit.diagnosis.catalogue import clause  # torch: only once something runs that has it

            self._end()
            self._part, self._name, self._since, self._shown = part, clause(part, self.lang), now, 0.0
        if self.live and now - self._shown > 0.2:
            self._shown = now
            state = f"{done:,} of {of:,}" if of else "..."
            print(f"\r  {self._name:<{_NAME}}{state:<{_STATE}}", end="", file=self.stream, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._end()
        elif self.live and self._part:
            print(file=self.stream)  # the error gets a line of its own

    def _end(self) -> None:
        if self._part:
            took = f"{time.perf_counter() - self._since:.1f} s"
            line = f"  {self._name:<{_NAME}}{took:>10}"
            print(f"\r{line:<{2 + _NAME + _STATE}}" if self.live else line, file=self.stream, flush=True)
        self._part = ""
