"""What the likelihoods share: precision, densities of counts, the wording of `check`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from latentfit.errors import InputError

#: log-rates above this are treated as this: e^30 is past every count, and its square still fits in float32
MAX_LOG_RATE = 30.0


def full_precision(params: Tensor) -> Tensor:
    """params in at least float32: a sum of hundreds of terms in bfloat16 would lose whole nats."""
    return params.float() if params.dtype in (torch.bfloat16, torch.float16) else params


def drawn(draw: Callable[..., Tensor], *parameters: Tensor, generator: Generator | None) -> Tensor:
    """`draw(*parameters, generator=generator)`, drawn where the generator is and then moved back.

    So a CPU generator gives the same draws on every machine.
    """
    if generator is None:
        return draw(*parameters, generator=None)
    there = [p.to(generator.device) for p in parameters]
    return draw(*there, generator=generator).to(parameters[0].device)


def uniform(like: Tensor, generator: Generator | None) -> Tensor:
    """U(0, 1) of the shape, dtype and device of `like`."""
    return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def widest(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in float64, where their device has it.

    Log-gammas of counts cancel: float32 knows log Gamma(10^6) to about 1, so a large count
    or a large dispersion would cost whole nats.
    """
    return tuple(t if t.device.type == "mps" else t.double() for t in tensors)


def poisson_log_prob(x: Tensor, log_rate: Tensor) -> Tensor:
    r"""log Poisson(x; e^{log_rate}), x and log_rate broadcast against each other; computed in float64.

    $$\log p = x \log\lambda - \lambda - \log x!$$
    """
    count, a = widest(x, log_rate.clamp(max=MAX_LOG_RATE))
    return (count * a - a.exp() - torch.lgamma(count + 1)).to(log_rate.dtype)


def negative_binomial_log_prob(x: Tensor, log_mean: Tensor, log_dispersion: Tensor) -> Tensor:
    r"""log NB(x; mean mu, inverse dispersion theta), of variance mu + mu^2 / theta; computed in float64.

    $$\log p = \log\frac{\Gamma(x+\theta)}{\Gamma(\theta)\,x!}
      + x \log\frac{\mu}{\theta+\mu} + \theta \log\frac{\theta}{\theta+\mu}$$
    """
    count, a, b = widest(x, log_mean.clamp(max=MAX_LOG_RATE), log_dispersion)
    theta, logit = b.exp(), a - b
    ways = torch.lgamma(count + theta) - torch.lgamma(theta) - torch.lgamma(count + 1)
    return (ways + count * F.logsigmoid(logit) + theta * F.logsigmoid(-logit)).to(log_mean.dtype)


def log_exponential_mean(a: Tensor) -> Tensor:
    r"""The logarithm of the mean of e^{-a t} over t in [0, 1], for a >= 0.

    $$\log\frac{1 - e^{-a}}{a} = \log\frac{\sinh(a/2)}{a/2} - \frac{a}{2}$$

    The even part has a series, used below a = 1/2, where the gradient of the closed form would cancel.
    """
    near = a < 0.5
    h2 = torch.where(near, a, 0.0).square() / 4
    series = h2 * (1 / 6 - h2 * (1 / 180 - h2 * (1 / 2835 - h2 / 37800)))
    far = torch.where(near, 1.0, a)
    return torch.where(near, series - 0.5 * a, torch.log(-torch.expm1(-far)) - far.log())


def log_difference_of_sigmoids(upper: Tensor, width: Tensor) -> Tensor:
    r"""log(sigmoid(u) - sigmoid(u - w)) for w > 0.

    $$\log\sigma(u) + \log\sigma(w - u) + \log(1 - e^{-w})$$
    """
    return F.logsigmoid(upper) + F.logsigmoid(width - upper) + torch.log(-torch.expm1(-width))


def refuse(name: str, needs: str, x: Tensor, bad: Tensor, limits: tuple[float, float], hint: str) -> None:
    """Raise `InputError` if any entry is bad: the worst column, its value, the share, and what to try.

    Args:
        name: the likelihood's name.
        needs: what it accepts, after "needs".
        x: (N, *data_shape).
        bad: like x, True for an entry that cannot be scored.
        limits: the range that is accepted; an entry outside is said to "reach" its value.
        hint: what to try.
    """
    if not bool(bad.any()):
        return
    low, high = limits
    x, bad = x.detach().cpu(), bad.cpu()
    values = torch.where(bad, x.double(), math.nan)
    finite = values.isfinite()
    # the entry farthest outside the range says most; nan is named only where there is nothing else
    excess = torch.where(finite, torch.maximum(values - high, low - values).clamp(min=0), -1.0)
    excess = torch.where(bad, excess, -2.0)
    worst = int(excess.argmax())
    value = x.reshape(-1)[worst].item()
    place = torch.unravel_index(torch.tensor(worst), x.shape)[1:]
    where = "column " + ", ".join(str(int(i)) for i in place) if place else "an entry"
    outside = math.isfinite(value) and not low <= value <= high
    if outside:
        verb, out = "reaches", (x < low) | (x > high)
        what = f"outside [{low:g}, {high:g}]" if math.isfinite(high) else f"below {low:g}"
    else:
        verb, out = ("holds", bad)
        what = "that do not fit"
    share, count = out.double().mean().item(), int(out.sum())
    amount = f"{100 * share:.0f} % of entries" if share >= 0.01 else f"{count} of {out.numel()} entries"
    shown = repr(round(float(value), 6))
    raise InputError(f"likelihood {name!r} needs {needs}; {where} {verb} {shown} ({amount} {what}). {hint}")


def not_integer(x: Tensor) -> Tensor:
    """True where an entry is no whole number (nan and infinities included)."""
    return (x != x.round()) | ~torch.isfinite(x)


def check_columns(name: str, x: Tensor, n_columns: int | None) -> None:
    """A scale or dispersion per column must have x's columns."""
    if n_columns is not None and x.shape[-1] != n_columns:
        raise InputError(
            f"likelihood {name!r} was made for {n_columns} columns, the data has {x.shape[-1]}: set n_columns"
        )
