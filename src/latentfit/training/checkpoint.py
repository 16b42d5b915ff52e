"""A run's state on disk: two generations, each verified before it is believed."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentfit.errors import InputError, ReliabilityWarning, SavedFileError
from latentfit.saving import load_tensors, save_tensors
from latentfit.training.state import Counters, Snapshot, TrainingState, counters_to_json

_PATTERN = "checkpoint-*.safetensors"
_KEPT = 2
_TAIL = 400


class Checkpoints:
    """The checkpoints of one run in its folder.

    Args:
        run_dir: the folder.
        fingerprint: what the run is; a checkpoint of anything else is refused.
    """

    def __init__(self, run_dir: Path, fingerprint: Mapping[str, Any]) -> None:
        self.run_dir, self.fingerprint = run_dir, dict(fingerprint)

    def write(self, snapshot: Snapshot, history: list[dict[str, Any]]) -> None:
        """Write a snapshot with the last records of the history, and drop all but the last two.

        Raises:
            SavedFileError: it cannot be written; the earlier ones are untouched.
        """
        meta = {
            "fingerprint": self.fingerprint,
            **counters_to_json(snapshot),
            "history": [record for record in history if record["step"] <= snapshot.counters.step][-_TAIL:],
        }
        save_tensors(self.run_dir / f"checkpoint-{snapshot.counters.step}.safetensors", snapshot.tensors, meta)
        for path in self.paths()[_KEPT:]:
            with contextlib.suppress(OSError):
                path.unlink()

    def paths(self) -> list[Path]:
        """The checkpoints there are, newest first."""
        numbered = [(path.stem.rpartition("-")[2], path) for path in self.run_dir.glob(_PATTERN)]
        return [path for number, path in sorted(((int(n), p) for n, p in numbered if n.isdigit()), reverse=True)]

    def newest(self) -> tuple[Snapshot, list[dict[str, Any]]] | None:
        """The newest undamaged checkpoint and its tail of the history; None where there is none.

        A damaged one is named in a `ReliabilityWarning`, and the one before is taken.

        Raises:
            InputError: the folder holds another run.
        """
        paths = self.paths()
        for path, before in zip(paths, [*paths, None][1:], strict=True):
            try:
                tensors, meta = load_tensors(path)
                snapshot = Snapshot(tensors, Counters(**meta["counters"]), meta["position"])
                fingerprint, history = meta["fingerprint"], meta["history"]
            except (SavedFileError, KeyError, TypeError) as error:
                damage = "checksum" if "checksum" in str(error) else "truncated or foreign"
                then = f"going back to {before.stem}" if before else "starting from the beginning"
                warnings.warn(
                    f"{path.with_suffix('')} is damaged ({damage}), {then}.", ReliabilityWarning, stacklevel=4
                )
                continue
            self._refuse_other(fingerprint)
            return snapshot, history
        return None

    def _refuse_other(self, stored: Mapping[str, Any]) -> None:
        keys = [*self.fingerprint, *(key for key in stored if key not in self.fingerprint)]
        differs = [
            f"{key} {stored.get(key)} -> {self.fingerprint.get(key)}"
            for key in keys
            if stored.get(key) != self.fingerprint.get(key)
        ]
        if differs:
            raise InputError(
                f"{self.run_dir} holds another training run (differs in: {', '.join(differs)}). Use another "
                "run_dir, or delete this one to start over; nothing was changed."
            )


def layout(state: TrainingState) -> str:
    """A short digest of the trained parameters' names, shapes and dtypes."""
    text = "\n".join(
        f"{name} {tuple(p.shape)} {p.dtype}" for name, p in zip(state.names, state.parameters, strict=True)
    )
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]
