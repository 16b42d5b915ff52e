"""What Latentfit raises and warns with. The command line prints these in one line and exits with 2."""

from __future__ import annotations


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
