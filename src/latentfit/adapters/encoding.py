"""What a foreign encoder returns, read as a mean and a spread."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

from latentfit.adapters.calls import ForeignCall
from latentfit.adapters.understood import Understood
from latentfit.errors import CapabilityError, DataWarning, InputError
from latentfit.model.rows import as_std

Spread = Literal["std", "var", "logvar", "scale_tril"]

#: the words by which objects and mappings give their mean, and their spread, the exact one first
MEANS = ("mean", "loc", "mu", "z_mean")
SPREADS: dict[str, Spread] = {
    "std": "std",
    "stddev": "std",
    "scale": "std",
    "sigma": "std",
    "logvar": "logvar",
    "log_var": "logvar",
    "log_variance": "logvar",
    "z_log_var": "logvar",
    "var": "var",
    "variance": "var",
}
#: what a user may call a spread
KINDS: dict[str, Spread] = {"std": "std", "var": "var", "logvar": "logvar"}
WORDS = {"std": "standard deviation", "var": "variance", "logvar": "log-variance", "scale_tril": "Cholesky factor"}
#: above which a log-variance is refused elsewhere
LARGEST_LOGVAR = 80.0


@dataclass(frozen=True)
class Reading:
    """How mean and spread are found in what an encoder returns.

    Attributes:
        mean, spread: names or positions among the parts, see `parts_of`.
        kind: what the spread is.
        said: how they were found, and why they are read so.
    """

    mean: str | int
    spread: str | int
    kind: Spread
    said: Understood = field(default_factory=lambda: Understood("spread.full"))

    def __call__(self, output: Any) -> tuple[Tensor, Tensor]:
        """Mean (N, *event_shape) and standard deviation like it, or L (N, D, D); in float32 at least."""
        parts = parts_of(output, split=self.spread == "split")
        mean, spread = _full(parts[self.mean]), _full(parts[self.spread])
        if self.kind == "scale_tril":
            return mean, spread
        spread = spread.expand_as(mean)
        if self.kind == "logvar":
            return mean, (0.5 * spread).exp()
        return mean, spread.sqrt() if self.kind == "var" else spread


class ForeignEncoder(nn.Module):
    """A foreign encoder that gives what `GivenGaussian` takes: x (N, *data_shape) -> mean and spread, flat."""

    def __init__(self, call: ForeignCall, reading: Reading) -> None:
        super().__init__()
        self.call, self.reading = call, reading

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.reading(self.call(x))
        return mean.flatten(1), spread.flatten(1)


def understand(first: Any, second: Any, spread: str, latent: torch.Size | None) -> Reading:
    """How to read an encoder, from what it returned twice for the same rows.

    Args:
        first, second: its output under two random seeds; parts that differ are draws of z, not its moments.
        spread: "auto", or what the user says that it is.
        latent: the shape of z where the user says it; a single tensor is then cut in two along dimension 1.

    Raises:
        InputError: no mean and spread, a spread that is not what it is said to be, shapes that do not meet.
        CapabilityError: another distribution than a Gaussian.

    Warns:
        DataWarning: a spread without a name and without negatives, read as a standard deviation.
    """
    _refuse_one_tensor(first, latent)
    split = isinstance(first, Tensor)
    parts, again = parts_of(first, split=split), parts_of(second, split=split)
    if split or all(isinstance(key, str) for key in parts):
        reading = _by_name(parts, spread, named=not split)
    else:
        reading = _by_position(parts, again, spread)
    if not torch.equal(_full(parts[reading.mean]), _full(again[reading.mean])):
        raise InputError(
            "encode(x) gives another mean when it is called again: it is random even in eval mode. Latentfit needs "
            "the moments of q(z given x), not a draw from it."
        )
    reading = _with_kind(reading, parts, spread)
    _check(reading, first, latent)
    return reading


def parts_of(output: Any, split: bool = False) -> dict[Any, Any]:
    """What an encoder returned as named or numbered parts.

    `.latent_dist` is followed; a distribution, an object or a mapping gives names, a tuple positions. With `split` a
    tensor is cut in two along dimension 1.
    """
    output = getattr(output, "latent_dist", output)
    if isinstance(output, Distribution):
        return _of_distribution(output)
    if isinstance(output, Tensor):
        return dict(zip(("mean", "split"), output.chunk(2, dim=1), strict=True)) if split else {0: output}
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, tuple | list):
        for part in output:  # (z, distribution), or (distribution,)
            if isinstance(part, Distribution) or hasattr(part, "latent_dist") or _is_named(part):
                return parts_of(part)
        if hasattr(output, "_fields"):
            named = dict(zip(output._fields, output, strict=True))
            if _first_of(named, MEANS) and _first_of(named, SPREADS):
                return named
        return dict(enumerate(output))
    if _is_named(output):
        return {name: value for name in (*MEANS, *SPREADS) if isinstance(value := getattr(output, name, None), Tensor)}
    raise InputError(f"encode(x) returned {type(output).__name__}; {_NEEDED}")


_NEEDED = "Latentfit needs a distribution: (mean, std | var | logvar), a torch Distribution, or .latent_dist."


def _of_distribution(q: Distribution) -> dict[str, Tensor]:
    while isinstance(q, Independent):
        q = q.base_dist
    if isinstance(q, Normal):
        return {"mean": q.loc, "scale": q.scale}
    if isinstance(q, MultivariateNormal | LowRankMultivariateNormal):
        return {"mean": q.loc, "scale_tril": q.scale_tril}
    raise CapabilityError(
        f"encode(x) returned a {type(q).__name__}; only Gaussian encoders are adapted (Normal, MultivariateNormal)."
    )


def _refuse_one_tensor(output: Any, latent: torch.Size | None) -> None:
    single = isinstance(output, tuple | list) and len(output) == 1 and isinstance(output[0], Tensor)
    tensor = output[0] if single else output
    if not isinstance(tensor, Tensor):
        return
    if latent is not None and not single and tensor.dim() > 1 and tensor.shape[1] == 2 * latent[0]:
        return
    raise InputError(
        f"encode(x) returned one tensor {tuple(tensor.shape)}; {_NEEDED} If it is both, concatenated along dimension "
        "1, give latent_dim= or latent_shape=. A deterministic autoencoder has no KL: for its codes: "
        "lf.priors.create('mixture', latent_dim=D).fit(codes, std=noise), see docs/autoencoders.md."
    )


def _by_name(parts: dict[Any, Any], spread: str, named: bool) -> Reading:
    if not named:
        return Reading("mean", "split", "logvar", Understood("spread.half"))
    mean = _first_of(parts, MEANS)
    if "scale_tril" in parts:
        if spread != "auto":
            raise InputError(f"encode(x) returned a full Gaussian; leave spread='auto', got {spread!r}.")
        return Reading("mean", "scale_tril", "scale_tril", Understood("spread.full"))
    found = _first_of(parts, SPREADS)
    if mean is None or found is None:
        raise InputError(f"encode(x) returned {', '.join(map(str, parts)) or 'nothing'}; {_NEEDED}")
    return Reading(mean, found, SPREADS[found], Understood("spread.named", {"name": found}))


def _by_position(parts: dict[Any, Any], again: dict[Any, Any], spread: str) -> Reading:
    tensors = {i: part for i, part in parts.items() if isinstance(part, Tensor) and part.is_floating_point()}
    draws = [i for i, part in tensors.items() if not torch.equal(part, again[i])]
    # a draw that is the mean itself in eval mode, as in (z, mean, logvar)
    draws += [i for i in tensors if i + 1 in tensors and i not in draws and torch.equal(tensors[i], tensors[i + 1])]
    kept = [i for i in tensors if i not in draws and tensors[i].dim() > 0]
    if len(kept) < 2:
        words = f"of which {len(draws)} change when it is called again" if draws else "not two of them tensors"
        raise InputError(f"encode(x) returned {len(parts)} items, {words}; {_NEEDED}")
    mean, second = kept[:2]
    code = "spread.output" + (".drawn" if draws else ".more" if len(parts) > 2 else "")
    numbers = {"n": second + 1, "mean": mean + 1, "drawn": ", ".join(str(i + 1) for i in draws), "total": len(parts)}
    return Reading(mean, second, "std", Understood(code, numbers))


def _with_kind(reading: Reading, parts: dict[Any, Any], spread: str) -> Reading:
    if reading.kind == "scale_tril":
        return reading
    value = _full(parts[reading.spread])
    named = isinstance(reading.spread, str) and reading.spread != "split"
    if spread != "auto":
        if spread == "logvar" and bool((value >= 0).all()) and 0 < float(value.max()) < LARGEST_LOGVAR:
            warnings.warn(
                f"spread='logvar', but no entry is negative ({value.min().item():.3g} to {value.max().item():.3g}): "
                "every q(z given x) would be wider than N(0, I). Is it a standard deviation (spread='std')?",
                DataWarning,
                stacklevel=4,
            )
        return _read(reading, KINDS[spread], "told")
    if named:
        return _read(reading, reading.kind, "called")
    if bool((value < 0).any()):
        return _read(reading, "logvar", "negative")
    warnings.warn(
        f"The spread that encode(x) returns ({value.min().item():.3g} to {value.max().item():.3g}) is read as standard "
        "deviation: no negatives (override: spread='std' | 'var' | 'logvar').",
        DataWarning,
        stacklevel=4,
    )
    return _read(reading, "std", "positive")


def _read(reading: Reading, kind: Spread, why: str) -> Reading:
    said = {"spread": reading.said, "word": Understood(f"word.{kind}")}
    return replace(reading, kind=kind, said=Understood(f"read.{why}", said))


def _check(reading: Reading, output: Any, latent: torch.Size | None) -> None:
    parts = parts_of(output, split=reading.spread == "split")
    mean, given = _full(parts[reading.mean]), _full(parts[reading.spread])
    if mean.dim() < 2:
        raise InputError(f"encode(x) returned a mean of shape {tuple(mean.shape)}; expected (N, D) or (N, C, H, W).")
    if latent is not None and mean.shape[1:] != latent:
        raise InputError(f"encode(x) returned means {tuple(mean.shape[1:])}, but you say that z is {tuple(latent)}.")
    if reading.kind != "scale_tril":
        try:
            given = given.expand_as(mean)
        except RuntimeError:
            several = len(parts) > 2 and not isinstance(reading.mean, str)
            hint = " Pick them: adapt(..., encode=lambda x: model.encode(x)[1:])." if several else ""
            raise InputError(
                f"encode(x): the mean is {tuple(mean.shape)}, the spread {tuple(given.shape)}; they must agree.{hint}"
            ) from None
        as_std("encode(x)", mean, **{reading.kind: given})
    elif mean.dim() != 2:
        raise InputError(f"A full Gaussian needs means (N, D), got {tuple(mean.shape)}.")
    _, std = reading(output)
    diagonal = std.diagonal(dim1=-2, dim2=-1) if reading.kind == "scale_tril" else std
    if not bool(torch.isfinite(diagonal).all()):
        raise InputError(f"The {WORDS[reading.kind]} reaches {given.max().item():.3g}: no finite standard deviation.")
    if not bool((diagonal > 0).all()):
        raise InputError(
            "encode(x) gives a standard deviation of 0. Is the example scaled as in training? If it is, a "
            "deterministic autoencoder has no KL: for its codes: "
            "lf.priors.create('mixture', latent_dim=D).fit(codes, std=noise), see docs/autoencoders.md."
        )


def _is_named(thing: Any) -> bool:
    if isinstance(thing, Tensor | tuple | list):
        return False
    look = thing.get if isinstance(thing, Mapping) else lambda name: getattr(thing, name, None)
    return any(isinstance(look(m), Tensor) for m in MEANS) and any(isinstance(look(s), Tensor) for s in SPREADS)


def _first_of(parts: Mapping[Any, Any], names: Any) -> str | None:
    return next((name for name in names if isinstance(parts.get(name), Tensor)), None)


def _full(value: Tensor) -> Tensor:
    """In float32 at least: in half precision mean + std * noise would lose the noise."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
