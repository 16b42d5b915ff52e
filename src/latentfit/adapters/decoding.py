"""What a foreign decoder returns, as the parameters of a likelihood."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, ContinuousBernoulli, Distribution, Independent, Normal

from latentfit.adapters.calls import ForeignCall
from latentfit.adapters.understood import Understood
from latentfit.errors import CapabilityError, InputError

ToParameters = Literal["as_is", "logit", "sigmoid"]

#: likelihoods whose parameters are logits
OF_LOGITS = ("bernoulli", "continuous_bernoulli", "binomial")
#: probabilities this close to 0 and 1 count as this, so that their logits are finite
PROBABILITY_FLOOR = 1e-6


class ForeignDecoder(nn.Module):
    """A foreign decoder that gives a likelihood's parameters: z (B, *event_shape) -> (B, *data_shape[, P]).

    Args:
        call: z -> a tensor, a tuple that begins with one, an object with a tensor `.sample`, or a distribution.
        data_shape: of a row.
        to_parameters: "as_is"; "logit", of probabilities; "sigmoid", of logits, where a mean is needed.
        n_parameters: numbers for each entry of x; 2 for a Normal with its own scales.
    """

    def __init__(
        self,
        call: ForeignCall,
        data_shape: torch.Size,
        to_parameters: ToParameters = "as_is",
        n_parameters: int = 1,
    ) -> None:
        super().__init__()
        self.call, self.data_shape = call, data_shape
        self.to_parameters, self.n_parameters = to_parameters, n_parameters

    def forward(self, z: Tensor) -> Tensor:
        raw = raw_output(self.call(z), with_scale=self.n_parameters == 2)
        if self.to_parameters == "logit":
            raw = raw.clamp(PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR).logit()
        elif self.to_parameters == "sigmoid":
            raw = raw.sigmoid()
        shape = self.data_shape if self.n_parameters == 1 else (*self.data_shape, self.n_parameters)
        return raw.reshape(len(z), *shape)


class NoDecoder(nn.Module):
    """In place of a decoder that was not given."""

    def forward(self, z: Tensor) -> Tensor:
        """Refused."""
        raise CapabilityError("This model was adapted without a decoder. Give it: adapt(encode=..., decode=...).")


def raw_output(output: Any, with_scale: bool = False) -> Tensor:
    """The tensor in what a decoder returned, in float32 at least.

    A Normal gives its mean (with its log-scale beside it, `with_scale`), a Bernoulli its logits.

    Raises:
        InputError: nothing that is known.
    """
    distribution = _base(output)
    if isinstance(distribution, Normal):
        mean = distribution.loc
        output = torch.stack([mean, distribution.scale.log().expand_as(mean)], dim=-1) if with_scale else mean
    elif isinstance(distribution, Bernoulli | ContinuousBernoulli):
        output = distribution.logits
    elif isinstance(distribution, Distribution):
        raise InputError(f"decode(z) returned a {type(distribution).__name__}; Normal and Bernoulli are understood.")
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    elif not isinstance(output, Tensor):
        output = getattr(output, "sample", None)
    if not isinstance(output, Tensor):
        raise InputError(
            f"decode(z) returned {type(output).__name__}; expected a tensor, a tuple that begins with one, an object "
            "with a tensor .sample, or a torch Distribution."
        )
    return output.float() if output.dtype in (torch.float16, torch.bfloat16) else output


def likelihood_of(output: Any) -> str | None:
    """The name of the likelihood that a decoder's distribution is, None where it returns no distribution."""
    distribution = _base(output)
    names = {Normal: "normal", Bernoulli: "bernoulli", ContinuousBernoulli: "continuous_bernoulli"}
    return next((name for kind, name in names.items() if isinstance(distribution, kind)), None)


def to_parameters(name: str, output: str, raw: Tensor, distribution: bool) -> tuple[ToParameters, Understood | None]:
    """How the decoder's tensor becomes parameters of the likelihood `name`, and what says so where it was guessed.

    Raises:
        InputError: an output that this likelihood cannot take, or that is not what it is said to be.
    """
    low, high = raw.min().item(), raw.max().item()
    inside = low >= 0 and high <= 1
    if output == "logits" and inside:
        raise InputError(
            f"output='logits', but decode(z) lies in [{low:.2f}, {high:.2f}], as probabilities do; try output='probs'."
        )
    if distribution:
        if output != "auto":
            raise InputError(f"decode(z) returned a distribution; leave output='auto', got {output!r}.")
        return "as_is", None
    if name in OF_LOGITS:
        if output == "logits" or (output == "auto" and not inside):
            return "as_is", Understood("output.logits" + ".told" * (output != "auto"))
        if not inside:
            raise InputError(
                f"output={output!r} must lie in [0, 1], but decode(z) reaches {low:.3g} to {high:.3g}; "
                "try output='logits'."
            )
        return "logit", Understood("output.probs" + ".told" * (output != "auto"))
    if name == "normal" and output == "logits":
        return "sigmoid", Understood("output.sigmoid")
    if output == "auto" or (name == "normal" and output in ("mean", "probs")):
        return "as_is", None
    raise InputError(f"output={output!r} says nothing to the likelihood {name!r}; leave output='auto'.")


def _base(output: Any) -> Any:
    while isinstance(output, Independent):
        output = output.base_dist
    return output
