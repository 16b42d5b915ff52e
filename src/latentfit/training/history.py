"""What is written down of a run: averages of the loss's terms, in memory and in metrics.jsonl, and a short record."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from latentfit.errors import SavedFileError
from latentfit.saving import write_atomic

Record = dict[str, Any]

#: validations before the last fifth of a run that it takes to speak of convergence
MIN_VALIDATIONS = 8
#: nats per row still won in the last fifth of a run that count as converged
SETTLED = 0.5
#: validations that a short record keeps
MOST_POINTS = 200


class Averages:
    """Running means of named scalars since they were last taken.

    On an accelerator the sums stay there, because reading a number would wait for it; on the CPU plain floats
    are faster and add in double precision.
    """

    def __init__(self, *, on_cpu: bool) -> None:
        self._on_cpu = on_cpu
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, int] = {}

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Take in one step's terms, each ()."""
        sums, counts = self._sums, self._counts
        for name, value in terms.items():
            number = value.item() if self._on_cpu else value.detach()
            if name in sums:
                sums[name] = sums[name] + number
                counts[name] += 1
            else:
                sums[name], counts[name] = number, 1

    def take(self) -> dict[str, float]:
        """The means, and start anew."""
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


class History:
    """The records of a run, and their file.

    Args:
        path: metrics.jsonl, or None to keep the records in memory only.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.records: list[Record] = []
        self._written = 0

    def start(self, tail: list[Record]) -> None:
        """Begin with what is on disk before `tail`, then `tail`; what is done again is dropped.

        Raises:
            SavedFileError: the file cannot be written.
        """
        if self.path is None:
            return
        first = tail[0]["step"] if tail else 0
        self.records = [record for record in _read(self.path) if record["step"] < first] + tail
        write_atomic(self.path, _lines(self.records))
        self._written = len(self.records)

    def flush(self) -> None:
        """Append what is new to the file.

        Raises:
            SavedFileError: the file cannot be written.
        """
        if self.path is None or self._written == len(self.records):
            return
        try:
            with open(self.path, "a", encoding="utf-8", newline="\n") as file:
                file.write(_lines(self.records[self._written :]))
        except OSError as error:
            raise SavedFileError(f"Cannot write {self.path}: {error.strerror or error}.") from error
        self._written = len(self.records)


def _lines(records: list[Record]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _read(path: Path) -> list[Record]:
    """The records of a file whose last line a crash may have cut."""
    records: list[Record] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
    return records


def late_slope(history: Sequence[Mapping[str, Any]], max_steps: int) -> float | None:
    """Nats that the validation still won in the last fifth of the run; None where it was validated too rarely."""
    points = [(h["step"], h["validation"]) for h in history if h.get("validation") is not None]
    earlier = [value for step, value in points if step <= 0.8 * max_steps]
    if len(earlier) < MIN_VALIDATIONS:
        return None
    return max(0.0, min(earlier) - min(value for _, value in points))


def short_record(
    history: Sequence[Mapping[str, Any]], steps: int, max_steps: int, stopped: str, kl_weight: float
) -> Record:
    """What a trained model carries of its run, as JSON: how long, to which KL weight, and the validation curve.

    Args:
        history: of the run.
        steps, max_steps: done, and planned.
        stopped: "max_steps" or "early".
        kl_weight: what the KL weight ended at.

    Example:
        >>> short_record([{"step": 50, "validation": 9.5}], 50, 50, "max_steps", 1.0)["validation"]
        [[50, 9.5]]
    """
    points = [[int(h["step"]), float(h["validation"])] for h in history if h.get("validation") is not None]
    thin = -(-len(points) // MOST_POINTS) if points else 1
    kept = points[::thin] + points[-1:] * bool((len(points) - 1) % thin)
    return {
        "steps": steps,
        "max_steps": max_steps,
        "stopped": stopped,
        "kl_weight": kl_weight,
        "validation": [point for point in kept if math.isfinite(point[1])],
    }
