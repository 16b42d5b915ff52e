"""A finding: a code, how grave it is, and the numbers its sentence needs. Sentences are in the catalogue."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from latentfit.evaluation.estimate import Estimate

Status = Literal["ok", "know", "small", "improve", "fix"]

#: what asks for something to be done
GRAVE: tuple[Status, ...] = ("improve", "fix")


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding of a diagnosis.

    Attributes:
        code: "LF-PRIOR-02", the same in every language.
        status: ok; know (a fact to know); small; improve (a remedy pays); fix (something is wrong).
        parameters: the numbers the catalogue's sentences are filled with: the evidence.
        gain: what the remedy is expected to win, nats per row; None where that was not measured.
    """

    code: str
    status: Status
    parameters: dict[str, Any] = field(default_factory=dict)
    gain: Estimate | None = None

    @property
    def grave(self) -> bool:
        """Whether something should be done about it."""
        return self.status in GRAVE

    def to_dict(self) -> dict[str, Any]:
        """JSON: numbers as numbers, estimates with their errors, everything else as text."""
        return {
            "code": self.code,
            "status": self.status,
            "parameters": {key: plain(value) for key, value in self.parameters.items()},
            "gain": plain(self.gain),
        }


def plain(value: Any) -> Any:
    """A value as JSON can hold it; what is not finite is null."""
    if isinstance(value, Estimate):
        return {key: plain(part) for key, part in value.to_dict().items()}
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, bool | str | int) or value is None:
        return value
    number = float(value) if hasattr(value, "__float__") else None
    if number is None:
        return str(value)
    return number if number - number == 0 else None
