"""What Latentfit raises and warns with. The command line prints these in one line and exits with 2."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class LatentfitError(Exception):
    """Anything Latentfit raises on purpose."""


class InputError(LatentfitError, ValueError):
    """An argument, a file or data that cannot be used: what was got, what was expected, what to try."""


class CapabilityError(InputError):
    """Components that cannot work together, with the reason."""


class TrainingError(LatentfitError, RuntimeError):
    """Training could not go on; the last good state is kept."""


class SavedFileError(LatentfitError, OSError):
    """A file that Latentfit wrote is damaged, foreign, or cannot be written."""


class MissingExtraError(LatentfitError, ImportError):
    """An optional package is needed; the message says which extra installs it."""


class LatentfitWarning(UserWarning):
    """Base of all warnings."""


class ReliabilityWarning(LatentfitWarning):
    """A number was computed but should not be trusted as it stands."""


class DataWarning(LatentfitWarning):
    """Something was done to the data that the user should know of."""


class OutOfBoxWarning(ReliabilityWarning):
    """Latents lie outside the range that a spline flow transforms."""


@contextmanager
def overheard() -> Iterator[list[str]]:
    """Latentfit's own warnings of the code inside, each once, as texts; they are shown as they would be.

    >>> import warnings
    >>> with warnings.catch_warnings(record=True, action="always"), overheard() as told:
    ...     warnings.warn("12 rows are left out", DataWarning)
    >>> told
    ['12 rows are left out']
    """
    told: list[str] = []
    with warnings.catch_warnings():  # what was shown before is shown, and heard, again
        show = warnings.showwarning

        def hear(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, LatentfitWarning) and str(message) not in told:
                told.append(str(message))
            show(message, category, *where, **more)

        warnings.showwarning = hear
        yield told
