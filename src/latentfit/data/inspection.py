"""What kind of numbers these are, and which likelihood scores them honestly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from latentfit.errors import InputError

Kind = Literal["binary", "bounded_counts", "counts", "grey", "unit", "integers", "real"]

#: above this, a shared maximum is taken for accident rather than a scale of n steps
MAX_BOUNDED = 64
#: whole numbers beyond it are not all told apart in float32, in which rows are kept
MAX_WHOLE = 2**24
#: the largest value, at least, of data that fill [0, 1]
REACHES = 0.5
#: share of entries at 0 or 1 from which a table in [0, 1] is taken for pixels or probabilities with mass at the ends
AT_ENDS = 0.1
#: images whose literature scores binarised pixels
BINARISED = ("mnist", "fashion-mnist")


@dataclass(frozen=True, slots=True)
class DataKind:
    """What was seen in the data.

    Attributes:
        kind: "binary" 0/1; "bounded_counts" integers 0..n; "counts" integers from 0 without a ceiling;
            "grey" 8-bit 0..255; "unit" reals that fill [0, 1]; "integers" with negative ones;
            "real" anything else.
        minimum: smallest value.
        maximum: largest value.
        integral: whether all values are whole numbers that float32 tells apart.
        is_image: whether a row has two or more axes.
        zero_share, one_share: share of entries that are 0, and 1.
    """

    kind: Kind
    minimum: float
    maximum: float
    integral: bool
    is_image: bool
    zero_share: float
    one_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A likelihood chosen from the data.

    Attributes:
        likelihood: its registered name.
        args: its arguments.
        binarise: whether grey values are to be drawn as 0/1 first.
        reason: what was seen, in a few words.
        alternatives: other names that accept these data.
    """

    likelihood: str
    args: dict[str, Any] = field(default_factory=dict)
    binarise: bool = False
    reason: str = ""
    alternatives: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        values = ", ".join(str(value) for value in self.args.values())
        return f"{self.likelihood}({values})" if values else self.likelihood


def inspect(x: np.ndarray) -> DataKind:
    """Look at numbers: x (N, *data_shape).

    Raises:
        InputError: empty, not numeric, or not finite.

    Example:
        >>> inspect(np.array([[0, 1], [1, 1]])).kind
        'binary'
    """
    x = np.asarray(x)
    if x.size == 0 or x.dtype.kind not in "biuf":
        raise InputError(f"Expected an array of numbers, got {x.dtype} of shape {x.shape}.")
    minimum, maximum = float(x.min()), float(x.max())
    if not (np.isfinite(minimum) and np.isfinite(maximum)):
        raise InputError("The data have NaN or infinite entries; remove them, or mark them with Batch.mask.")
    integral = max(-minimum, maximum) <= MAX_WHOLE and (x.dtype.kind in "biu" or bool((x == np.rint(x)).all()))
    return DataKind(
        kind=_kind(x, minimum, maximum, integral),
        minimum=minimum,
        maximum=maximum,
        integral=integral,
        is_image=x.ndim >= 3,
        zero_share=float((x == 0).mean()),
        one_share=float((x == 1).mean()),
    )


def suggest_likelihood(x: np.ndarray, source_name: str | None = None) -> Suggestion:
    """The likelihood that data of this kind get unless the user names one.

    Args:
        x: (N, *data_shape).
        source_name: the data set's name; MNIST and Fashion-MNIST are binarised, as their literature does.

    Raises:
        InputError: empty, not numeric, or not finite.

    Example:
        >>> print(suggest_likelihood(np.random.default_rng(0).binomial(16, 0.9, (100, 4))))
        binomial(16)
    """
    seen = inspect(x)
    low, high = seen.minimum, seen.maximum
    match seen.kind:
        case "binary":
            return Suggestion("bernoulli", reason="0 and 1 only", alternatives=["normal"])
        case "grey" if source_name in BINARISED:
            return Suggestion(
                "bernoulli",
                binarise=True,
                reason="grey values, binarised: dynamically in training, once and stored for scoring",
                alternatives=["discretised_logistic", "continuous_bernoulli", "normal"],
            )
        case "grey":
            return Suggestion(
                "discretised_logistic",
                {"levels": 256},
                reason="8-bit values 0..255",
                alternatives=["continuous_bernoulli", "normal"],
            )
        case "bounded_counts":
            return Suggestion(
                "binomial",
                {"n": int(high)},
                reason=f"counts of 0..{int(high)}",
                alternatives=["discretised_logistic", "categorical", "normal"],
            )
        case "counts":
            return Suggestion(
                "negative_binomial",
                reason=f"counts without a ceiling (largest {int(high):,}, {seen.zero_share:.0%} zeros)",
                alternatives=["zinb", "poisson", "normal"],
            )
        case "unit" if not seen.is_image and seen.zero_share + seen.one_share < AT_ENDS:
            # a scale of its own for each column tells more than the two ends, on three tables of four:
            # benchmarks/unit_tables.py
            return Suggestion("normal", reason="reals in [0, 1]", alternatives=["continuous_bernoulli"])
        case "unit":
            return Suggestion("continuous_bernoulli", reason="reals in [0, 1]", alternatives=["normal"])
        case "integers":
            reason = f"integers {int(low):,}..{int(high):,} with negative ones, dequantised"
            return Suggestion("normal", reason=reason, alternatives=[])
        case _:
            return Suggestion("normal", reason=f"reals from {low:.3g} to {high:.3g}", alternatives=[])


def _kind(x: np.ndarray, minimum: float, maximum: float, integral: bool) -> Kind:
    if integral and minimum >= 0 and maximum <= 1:
        return "binary"
    if integral and minimum < 0:
        return "integers"
    if integral and maximum <= MAX_BOUNDED and _has_ceiling(x, maximum):
        return "bounded_counts"
    # one dark 8-bit image set need not reach 255: the storage type says it
    if integral and (maximum == 255 or (x.dtype == np.uint8 and maximum > MAX_BOUNDED)):
        return "grey"
    if integral:
        return "counts"
    # what stays far below 1 is small by its units
    return "unit" if minimum >= 0 and REACHES <= maximum <= 1 else "real"


def _has_ceiling(x: np.ndarray, maximum: float) -> bool:
    """Whether `maximum` looks like the end of a scale, not the largest of a thinning tail.

    Values pile up at the end of a scale, or most columns reach the same one; the tail of a count
    distribution is reached a few times, in a few columns.
    """
    at_top = x == maximum
    top, below = int(at_top.sum()), int((x == maximum - 1).sum())
    piled_up = top >= 5 and top >= 1e-3 * x.size and 2 * top >= below
    columns = at_top.reshape(len(x), -1)
    shared = columns.shape[1] > 1 and bool(columns.any(axis=0).mean() >= 0.5) and top >= 0.01 * x.size
    return piled_up or shared
