"""One run of a foreign VAE on the example: what it gives, how that is read, and what was understood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentfit.adapters.adapted import Loss
from latentfit.adapters.calls import ForeignCall
from latentfit.adapters.decoding import ForeignDecoder, NoDecoder, likelihood_of, raw_output, to_parameters
from latentfit.adapters.encoding import Reading, understand
from latentfit.adapters.example import EXAMPLE_ROWS, between_0_and_1
from latentfit.adapters.given import GivenGaussian
from latentfit.adapters.understood import Understood
from latentfit.errors import InputError
from latentfit.likelihoods import Normal
from latentfit.likelihoods import create as create_likelihood
from latentfit.model.contracts import Likelihood
from latentfit.registry import registry
from latentfit.training.rng import isolated_rng

#: decoded values on another scale: their width as a share of the data's, or how far they lie outside
NARROW, OUTSIDE = 0.05, 0.25
#: a share of the variance that decoding does not explain by chance
CLEARLY = 0.1


@dataclass(frozen=True)
class Options:
    """What the user says, see `adapt`."""

    likelihood: str | Likelihood | None
    kl_weight: float | None
    reconstruction: str | None
    spread: str
    output: str
    scale: float | str
    latent: torch.Size | None


class Run:
    """One run of the model on the example: what it gives, and what was understood of it."""

    def __init__(self, x: Tensor, to_z: ForeignCall, to_x: ForeignCall | None, options: Options) -> None:
        self.x, self.to_z, self.to_x, self.options = x, to_z, to_x, options
        self.lines: list[Understood] = []
        self.likelihood: Likelihood | None = None
        self.decoder_module: nn.Module = NoDecoder()
        self.loss: Loss | None = None
        self.grey = False
        self.reading: Reading
        self.mean: Tensor
        self.spread: Tensor

    def encoder(self) -> None:
        """encode(x), twice: what it gives, and how it is read."""
        outputs = []
        for seed in (0, 1):
            with isolated_rng(seed, self.x.device):
                outputs.append(_called("encode", "x", self.to_z, self.x))
        self.reading = understand(outputs[0], outputs[1], self.options.spread, self.options.latent)
        self.mean, self.spread = self.reading(outputs[0])
        if len(self.mean) != len(self.x):
            raise InputError(f"encode(x) gave {len(self.mean)} codes for {len(self.x)} rows; expected one for each.")
        kind = self.reading.kind
        self._say("encode.moments", kind=kind, shape=tuple(self.mean.shape), reading=self.reading.said)

    def decoder(self) -> None:
        """decode(mean): shape, range, likelihood, loss and round trip."""
        if self.to_x is None:
            if self.options.likelihood is not None:
                raise InputError("adapt: a likelihood needs a decoder; give decode=, or leave likelihood out.")
            self._say("decode.none")
            self._say("likelihood.none")
            return
        with isolated_rng(0, self.x.device):
            output = _called("decode", "z", self.to_x, self.mean)
        returned = likelihood_of(output)
        name, template = self._likelihood_name(returned)
        own_scale = name == "normal" and returned is not None and self._is_free
        n_parameters = 2 if own_scale else 1 if template is None else template.n_parameters
        raw = raw_output(output, with_scale=n_parameters == 2)
        if name is None:
            self.decoder_module = ForeignDecoder(self.to_x, raw.shape[1:])
            self._say_range(raw, None)
            self._say("likelihood.none")
            return
        self._check_shape(raw, n_parameters)
        how, said = to_parameters(name, self.options.output, raw, returned is not None)
        self.decoder_module = ForeignDecoder(self.to_x, self.x.shape[1:], how, n_parameters)
        params = self.decoder_module(self.mean)
        error = self._error() if name == "normal" and self._is_free and not own_scale else None
        self.likelihood = self._likelihood(name, template, error, own_scale).to(self.x.device).eval()
        decoded = self.likelihood.mean(params)
        explained = self._explained(decoded)
        self._check_scales(decoded, explained)
        self._say_range(raw, said)
        self._check_rows(name)
        self._say_loss(name, error)
        self._say_round_trip(explained)

    @property
    def _is_free(self) -> bool:
        """Whether the Normal's sigma is to be found from the example."""
        return self.options.scale == "auto" and not isinstance(self.options.likelihood, Likelihood)

    def _likelihood_name(self, returned: str | None) -> tuple[str | None, Likelihood | None]:
        given = self.options.likelihood
        if isinstance(given, Likelihood):
            return given.name or type(given).__name__, given
        if given is None and returned is None:
            return None, None
        name = returned if given is None else registry.canonical("likelihood", given)
        if returned is not None and returned != name:
            raise InputError(f"decode(z) returned a distribution that is {returned!r}; likelihood is {given!r}.")
        return name, None if name == "normal" else create_likelihood(str(name))

    def _likelihood(self, name: str, template: Likelihood | None, error: float | None, own_scale: bool) -> Likelihood:
        scale = self.options.scale
        if scale != "auto" and (name != "normal" or template is not None):
            raise InputError(f"adapt: scale= is the sigma of likelihood='normal', named so; got {name!r}.")
        if template is not None:
            return template
        return Normal(scale="row", floor=0.0) if own_scale else Normal(scale=float(scale) if error is None else error)

    def _error(self) -> float:
        """Root mean square error at draws of z: at the means it would be too small."""
        repeats = -(-EXAMPLE_ROWS // len(self.x))
        generator = torch.Generator(device=self.x.device).manual_seed(0)
        squares = 0.0
        q = GivenGaussian(tuple(self.mean.shape[1:]), full=self.reading.kind == "scale_tril")
        q_z = q(torch.cat([self.mean.flatten(1), self.spread.flatten(1)], -1))
        for _ in range(repeats):
            z, _ = q_z.rsample_with_log_prob(1, generator)
            squares += (self.decoder_module(z[0]).double() - self.x).square().mean().item()
        return max((squares / repeats) ** 0.5, 1e-6)

    def _explained(self, decoded: Tensor) -> float:
        x = self.x.double()
        total = (x - x.mean(0)).square().mean().item()
        return 1 - (x - decoded).square().mean().item() / max(total, 1e-300)

    def _check_shape(self, raw: Tensor, n_parameters: int) -> None:
        if raw.numel() != self.x.numel() * n_parameters or len(raw) != len(self.x):
            each = "" if n_parameters == 1 else f", {n_parameters} numbers for each entry"
            raise InputError(
                f"decode(z) returned {tuple(raw.shape)} for rows of {tuple(self.x.shape)}{each}; they must agree. "
                "Crop or reshape in decode=, or give the example as training saw it."
            )

    def _check_scales(self, decoded: Tensor, explained: float) -> None:
        low, high = decoded.min().item(), decoded.max().item()
        least, most = self.x.min().item(), self.x.max().item()
        advice = _rescaling((low, high), (least, most))
        # without two well-known scales it takes more to tell another one from a decoder that learned nothing
        narrow = high - low < NARROW * (most - least) and explained < (0 if advice else -1)
        margin = OUTSIDE * max(most - least, high - low)
        outside = (low < least - margin or high > most + margin) and explained < -1 and bool(advice)
        if narrow or outside:
            swapped = self._swapped()
            raise InputError(
                f"decode(z) lies in [{low:.2f}, {high:.2f}] but the data in [{least:g}, {most:g}]: different scales. "
                f"Give Latentfit the data as your training saw it{advice}.{f' {swapped}' if swapped else ''}"
            )

    def _check_rows(self, name: str) -> None:
        assert self.likelihood is not None
        self.grey = name == "bernoulli" and between_0_and_1(self.x)
        if not self.grey:
            self.likelihood.check(self.x)

    def _say(self, code: str, **evidence: Any) -> None:
        self.lines.append(Understood(code, evidence))

    def _say_range(self, raw: Tensor, reading: Understood | None) -> None:
        low, high, least, most = (value.item() for value in (raw.min(), raw.max(), self.x.min(), self.x.max()))
        numbers = {"shape": tuple(raw.shape), "low": low, "high": high, "least": least, "most": most}
        self._say("decode.range" + ".read" * (reading is not None), **numbers, reading=reading)

    def _say_loss(self, name: str, error: float | None) -> None:
        likelihood, options = self.likelihood, self.options
        assert likelihood is not None
        sigma = float(likelihood.scale) if name == "normal" and isinstance(likelihood.scale, int | float) else None
        code = "grey" if self.grey else "name" if sigma is None else "normal" + ".error" * (error is not None)
        self._say(f"likelihood.{code}", name=name, sigma=sigma, n=len(self.x))
        self.loss = _loss(name, options.kl_weight, options.reconstruction)
        if self.loss is None:
            self._say("loss.none")
            return
        unknown = sigma is None and self.loss.reconstruction.startswith("mse")
        code = "several" if unknown else "sigma" if sigma is not None else ""
        self._say(
            f"loss.beta.{code}".rstrip("."),
            reconstruction=self.loss.reconstruction,
            kl_weight=self.loss.kl_weight,
            formula="" if unknown else self.loss.formula(self.x[0].numel(), sigma),
            sigma=sigma,
        )

    def _say_round_trip(self, explained: float) -> None:
        if explained > 0:
            self._say("trip.pixels" if self.x.dim() > 2 else "trip.rows", percent=100 * explained)
            return
        swapped = self._swapped()
        self._say("trip.none" if swapped is None else "trip.swapped", swapped=swapped)

    def _swapped(self) -> Understood | None:
        """A question, where decoding the spread explains what decoding the mean does not."""
        assert self.likelihood is not None
        if self.reading.kind == "scale_tril":
            return None
        given = 2 * self.spread.log() if self.reading.kind == "logvar" else self.spread
        explained = self._explained(self.likelihood.mean(self.decoder_module(given)))
        return Understood("swapped", {"percent": 100 * explained}) if explained > CLEARLY else None


def _called(name: str, argument: str, function: nn.Module, value: Tensor) -> Any:
    try:
        return function(value)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        flat = f", perhaps flattened as {argument}.flatten(1)" if argument == "x" and value.dim() > 2 else ""
        raise InputError(
            f"{name}({argument}) failed on {tuple(value.shape)}: {type(error).__name__}: {reason}. "
            f"Give the example as training saw it{flat}, or your own {name}=lambda {argument}: ..."
        ) from error


def _loss(name: str, kl_weight: float | None, reconstruction: str | None) -> Loss | None:
    if kl_weight is None and reconstruction is None:
        return None
    if reconstruction is None:
        if name == "normal":
            raise InputError("kl_weight= needs reconstruction=: 'nll', 'mse_sum' or 'mse_mean' for a Normal.")
        reconstruction = "nll"
    loss = Loss(1.0 if kl_weight is None else float(kl_weight), reconstruction)  # type: ignore[arg-type]  # Loss refuses other words
    of = {"mse": ("normal",), "bce": ("bernoulli", "continuous_bernoulli")}.get(reconstruction[:3])
    if of is not None and name not in of:
        raise InputError(f"reconstruction={reconstruction!r} goes with {' or '.join(of)}, not with {name!r}.")
    return loss


def _rescaling(decoded: tuple[float, float], data: tuple[float, float]) -> str:
    """What brings data to the scale of the decoder, where both have a well-known one; else nothing."""
    signed, unit = -1 <= decoded[0] < 0 and decoded[1] <= 1, decoded[0] >= 0 and decoded[1] <= 1
    if data[0] >= 0 and 200 < data[1] <= 255 and (signed or unit):  # below that 255 is a guess
        return ", e.g. x / 127.5 - 1" if signed else ", e.g. x / 255"
    if signed and data[0] >= 0 and data[1] <= 1:
        return ", e.g. 2 * x - 1"
    return ", e.g. (x + 1) / 2" if unit and data[0] >= -1 and data[1] <= 1 else ""
