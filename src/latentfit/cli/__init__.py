"""The command line: `latentfit compare digits`. Light to import; each command imports what it needs."""

from latentfit.cli import comparison, diagnosis, listings, models, retrofit
from latentfit.cli.program import app, main

__all__ = ["app", "comparison", "diagnosis", "listings", "main", "models", "retrofit"]
