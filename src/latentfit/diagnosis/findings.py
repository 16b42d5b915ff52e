"""A finding: a code, how grave it is, and the numbers its sentence needs. Sentences are in the catalogue."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "know", "small", "improve", "fix"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding of a diagnosis.

    Attributes:
        code: "LF-PRIOR-02", the same in every language.
        status: ok; know (a fact to know); small; improve (a remedy pays); fix (something is wrong).
        parameters: the numbers the catalogue's sentence is filled with.
    """

    code: str
    status: Status
    parameters: dict[str, Any] = field(default_factory=dict)
