"""Plan, run and rank a comparison."""

from latentfit.comparison.result import Comparison
from latentfit.comparison.run import compare

__all__ = ["Comparison", "compare"]
