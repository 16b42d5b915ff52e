"""pythae's VAEs behind the contract, and its fitted samplers as priors with a density."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from latentfit.adapters.adapted import AdaptedVAE, Loss
from latentfit.adapters.calls import ForeignCall
from latentfit.adapters.decoding import ForeignDecoder
from latentfit.adapters.encoding import ForeignEncoder, Reading
from latentfit.adapters.example import between_0_and_1, first_rows
from latentfit.adapters.given import GivenGaussian
from latentfit.adapters.understood import Understood
from latentfit.errors import CapabilityError, InputError
from latentfit.evaluation.rows import frozen
from latentfit.flows.mixing import lower_index
from latentfit.likelihoods import Bernoulli, Normal
from latentfit.model.contracts import LOG_2PI, Likelihood, Prior
from latentfit.priors import MixturePrior, StandardNormalPrior, as_prior
from latentfit.registry import registry

#: the KL weight by pythae's class, of those whose encoder is a diagonal Gaussian; None where the loss has no single one
KL_WEIGHTS: dict[str, Callable[[Any], float] | None] = {
    "VAE": lambda config: 1.0,
    "BetaVAE": lambda config: float(config.beta),
    "VAMP": lambda config: 1.0,
    "INFOVAE_MMD": lambda config: 1.0 - float(config.alpha),
    "IWAE": lambda config: 1.0,
    "MIWAE": lambda config: 1.0,
    "PIWAE": lambda config: 1.0,
    "CIWAE": lambda config: 1.0,
    "DisentangledBetaVAE": None,
    "FactorVAE": None,
    "BetaTCVAE": None,
    "MSSSIM_VAE": None,
    "VAEGAN": None,
    "Adversarial_AE": None,
}
#: why the others are refused
REFUSED = {
    "AE": "its encoder is deterministic",
    "WAE_MMD": "its encoder is deterministic",
    "RAE_L2": "its encoder is deterministic",
    "RAE_GP": "its encoder is deterministic",
    "VQVAE": "its codes are discrete",
    "SVAE": "its codes lie on a sphere",
    "PoincareVAE": "its codes lie in a hyperbolic space",
    "HVAE": "its q(z given x) is made by Hamiltonian steps through the decoder",
    "RHVAE": "its q(z given x) is made by Hamiltonian steps through the decoder",
    "VAE_LinNF": "its q(z given x) is a flow, not the Gaussian its encoder gives",
    "VAE_IAF": "its q(z given x) is a flow, not the Gaussian its encoder gives",
}
#: images judged by a discriminator's features or by structural similarity, which is no density of x
PERCEPTUAL = ("VAEGAN", "MSSSIM_VAE")


def matches(model: Any) -> bool:
    """Whether this is one of pythae's models; pythae is not imported."""
    return any(base.__module__.startswith("pythae.models") for base in type(model).__mro__)


def adapt_model(
    model: Any,
    *,
    example: Any = None,
    likelihood: Likelihood | str | None = None,
    scale: float | None = None,
    device: torch.device | str | None = None,
) -> AdaptedVAE:
    r"""A pythae VAE with a Gaussian encoder as an `AdaptedVAE`; its `model_config` says how it was trained.

    "bce" is a Bernoulli on the decoder's probabilities. "mse" is half the squared error, summed: a Normal of sigma 1,
    which nobody measured, so with an example sigma is the root mean square error on it, at draws of z.

    Args:
        model: one of `KL_WEIGHTS`.
        example: rows (N, *data_shape), run once.
        likelihood: in place of the configuration's.
        scale: sigma of the Normal in place of the example's.
        device: where the model is moved; by default it stays.

    Returns:
        The adapted model. A VAMP brings the prior that it learned, as the mixture it is; the others have N(0, I).

    Raises:
        CapabilityError: a model whose q(z given x) is no Gaussian on flat latents, with the reason.
        InputError: rows of another shape, or a scale without a Normal.

    Source: Chadebec, Vincent & Allassonniere (2022), arXiv:2206.08309. Tested with pythae 0.1.2.
    """
    kind = _kind(model)
    if device is not None:
        model.to(device)
    config, where = model.model_config, next(model.parameters()).device
    encoder = ForeignEncoder(ForeignCall(model.encoder), Reading("embedding", "log_covariance", "logvar"))
    rows = None if example is None else first_rows(example, next(model.parameters()).dtype).x.to(where)
    data_shape = _data_shape(config, rows)
    trained_with = None if kind in PERCEPTUAL else config.reconstruction_loss
    name = {"bce": "bernoulli", "mse": "normal"}.get(trained_with or "") if likelihood is None else likelihood
    of_probabilities = trained_with == "bce" and getattr(name, "name", name) in ("bernoulli", "continuous_bernoulli")
    reconstruction = ForeignCall(Reconstruction(model.decoder))
    decoder = ForeignDecoder(reconstruction, data_shape, "logit" if of_probabilities else "as_is")
    p_x, said = _likelihood(name, scale, rows, encoder, decoder)
    loss = _loss(kind, config, trained_with)
    grey = isinstance(p_x, Bernoulli) and rows is not None and between_0_and_1(rows)
    lines = [
        Understood("head", {"name": f"pythae {kind}", "device": str(where), "mode": Understood("mode.eval")}),
        Understood("encode.pythae", {"units": config.latent_dim}),
        Understood("decode.pythae", {"shape": tuple(data_shape), "likelihood": said}),
        _said_of_loss(kind, loss, p_x, data_shape.numel()),
    ]
    if kind == "VAMP":
        lines.append(Understood("prior.vamp", {"n": config.number_components}))
    if grey:
        lines.append(Understood("pixels.grey"))
    return AdaptedVAE(
        encoder,
        decoder,
        prior=_vamp_prior(model) if kind == "VAMP" else StandardNormalPrior(config.latent_dim),
        posterior=GivenGaussian(config.latent_dim),
        likelihood=p_x,
        model_name=f"pythae {kind}",
        understood=lines,
        foreign=[model],
        data_shape=data_shape,
        loss=loss,
        grey=grey,
    )


def prior_of(sampler: Any) -> Prior:
    """The distribution that a fitted pythae sampler draws codes from, as a prior with an exact density.

    A `GaussianMixtureSampler` becomes our mixture, MAF- and IAFSampler's flow is wrapped as it is, a NormalSampler is
    N(0, I). A VAMPSampler (or the VAMP) gives the prior that was trained; what the sampler itself draws from is another
    one: it squashes the log-variances and takes the components in order.

    Raises:
        InputError: a sampler that is not fitted.
        CapabilityError: one that has no density.
    """
    kinds = {base.__name__ for base in type(sampler).__mro__}
    if "VAMP" in kinds:
        return _vamp_prior(sampler)
    if "VAMPSampler" in kinds:
        return _vamp_prior(sampler.model)
    if "NormalSampler" in kinds:
        return StandardNormalPrior(sampler.model.model_config.latent_dim)
    fitted = {"GaussianMixtureSampler": "gmm", "MAFSampler": "maf_model", "IAFSampler": "iaf_model"}
    attribute = next((fitted[name] for name in fitted if name in kinds), None)
    if attribute is None:
        raise CapabilityError(
            f"{type(sampler).__name__} has no density of z that could be evaluated, so it cannot be a prior here. "
            "Those of NormalSampler, GaussianMixtureSampler, MAFSampler, IAFSampler and VAMPSampler can; or fit one: "
            "lf.retrofit(model, X)."
        )
    found = getattr(sampler, attribute, None)
    if found is None:
        raise InputError(f"This {type(sampler).__name__} is not fitted yet: call sampler.fit(train_data) first.")
    if attribute == "gmm":
        return _mixture_of(found)
    return as_prior(FlowDensity(found), sampler.model.model_config.latent_dim, external_name="pythae_flow")


class Reconstruction(nn.Module):
    """What a pythae decoder means: z (B, D) -> its `reconstruction`."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> Tensor:
        reconstruction: Tensor = self.decoder(z)["reconstruction"]
        return reconstruction


class FlowDensity(nn.Module):
    r"""A pythae flow f from z to N(0, I): log p(z) = log N(f(z); 0, I) + log |det df/dz|."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow: Any = flow.eval()

    def log_prob(self, z: Tensor) -> Tensor:
        """z (..., D) -> (...), nats."""
        out = self.flow(z.reshape(-1, z.shape[-1]))
        log_base = -0.5 * (out.out.square().sum(-1) + z.shape[-1] * LOG_2PI)
        return (log_base + out.log_abs_det_jac).view(z.shape[:-1])

    def sample(self, shape: torch.Size) -> Tensor:
        """(*shape, D)."""
        like = next(self.flow.parameters())
        dim = int(self.flow.input_dim)
        noise = torch.randn((shape.numel(), dim), device=like.device, dtype=like.dtype)
        return self.flow.inverse(noise).out.view(*shape, dim)


def _kind(model: Any) -> str:
    """The name of pythae's own class: users subclass."""
    kind = next(base.__name__ for base in type(model).__mro__ if base.__module__.startswith("pythae.models"))
    reason = REFUSED.get(kind, None if kind in KL_WEIGHTS else "it is not known here")
    if kind == "Adversarial_AE" and model.model_config.deterministic_posterior:
        reason = "its encoder is deterministic (deterministic_posterior=True)"
    if reason is not None:
        raise CapabilityError(
            f"pythae's {kind} is not adapted: {reason}. Gaussian encoders are: {', '.join(KL_WEIGHTS)}."
        )
    return kind


def _data_shape(config: Any, rows: Tensor | None) -> torch.Size:
    """The shape of a row: the example's, which may be flat where the networks flatten anyway."""
    if rows is None and config.input_dim is None:
        raise InputError("This model has no input_dim: give example=, a batch of rows as its training saw them.")
    if rows is None:
        return torch.Size(config.input_dim)
    if config.input_dim is not None and rows[0].numel() != torch.Size(config.input_dim).numel():
        raise InputError(
            f"adapt: the example has rows of shape {tuple(rows.shape[1:])}, the model's input_dim is "
            f"{tuple(config.input_dim)}."
        )
    return rows.shape[1:]


def _likelihood(
    name: Likelihood | str | None, scale: float | None, rows: Tensor | None, encoder: nn.Module, decoder: nn.Module
) -> tuple[Likelihood | None, Understood]:
    """The likelihood, and what is said of it."""
    if name is None:
        return None, Understood("likelihood.perceptual")
    if name == "normal":
        sigma, source = (scale, "told") if scale is not None else (1.0, "own")
        if scale is None and rows is not None:
            sigma, source = _rms_error(rows, encoder, decoder), "error"
        said = {"sigma": sigma, "n": 0 if rows is None else len(rows)}
        return Normal(scale=sigma), Understood(f"likelihood.normal.{source}", said)
    if scale is not None:
        raise InputError(f"adapt: scale is the sigma of a Normal; the likelihood here is {name!r}.")
    if not isinstance(name, str):
        return name, Understood("likelihood.told", {"name": name.name or type(name).__name__})
    p_x: Likelihood = registry.create("likelihood", name)
    return p_x, Understood("likelihood.name", {"name": name})


def _rms_error(rows: Tensor, encoder: nn.Module, decoder: nn.Module) -> float:
    """Root mean square error at one draw of z per row."""
    with torch.no_grad(), frozen(encoder, decoder):
        mean, std = encoder(rows)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0)).to(mean)
        error: Tensor = (decoder(mean + std * noise) - rows).square().mean().sqrt()
    return max(error.item(), 1e-6)


def _loss(kind: str, config: Any, trained_with: str | None) -> Loss | None:
    weight = KL_WEIGHTS[kind]
    if weight is None or trained_with is None:
        return None
    # pythae halves the squared error, `Loss` does not: twice the weight beside the whole of it
    return Loss(weight(config), "bce_sum") if trained_with == "bce" else Loss(2 * weight(config), "mse_sum")


def _said_of_loss(kind: str, loss: Loss | None, p_x: Likelihood | None, n_entries: int) -> Understood:
    if loss is None:
        return Understood("loss.own", {"name": kind})
    fixed = isinstance(p_x, Normal) and not isinstance(p_x.scale, str)
    sigma = float(p_x.scale) if fixed else None  # type: ignore[union-attr, arg-type]  # fixed: a Normal's number
    said = {"reconstruction": loss.reconstruction, "kl_weight": loss.kl_weight}
    if loss.reconstruction == "mse_sum" and sigma is None:
        return Understood("loss.weight", said)
    formula = loss.formula(n_entries, sigma)
    return Understood("loss.beta" + ".sigma" * (sigma is not None), {**said, "formula": formula, "sigma": sigma})


@torch.no_grad()
def _vamp_prior(model: Any) -> MixturePrior:
    """A VAMP's prior, the mean of q(z given pseudo-input), as the mixture it is: it no longer follows the encoder."""
    with frozen(model):
        pixels = model.pseudo_inputs(model.idle_input.to(next(model.parameters())))
        q = model.encoder(pixels.reshape(-1, *model.model_config.input_dim))
    mean, log_std = q.embedding.detach(), 0.5 * q.log_covariance.detach()
    prior = MixturePrior(mean.shape[1], n_components=len(mean), covariance="diagonal").to(mean)
    return _filled(prior, torch.zeros(len(mean)), mean, -log_std)


@torch.no_grad()
def _mixture_of(gmm: Any) -> MixturePrior:
    """A fitted scikit-learn mixture with full covariances, C^-1 = P P^T, as ours, C^-1 = W^T W: W = P^T."""
    factor = torch.as_tensor(gmm.precisions_cholesky_).mT  # (K, D, D), lower triangular
    n_components, dim = factor.shape[:2]
    prior = MixturePrior(dim, n_components=n_components, covariance="full")
    prior.lower.copy_(factor.flatten(1)[:, lower_index(dim)])
    log_weight = torch.as_tensor(gmm.weights_).log()
    return _filled(prior, log_weight, torch.as_tensor(gmm.means_), factor.diagonal(dim1=-2, dim2=-1).log())


def _filled(prior: MixturePrior, log_weight: Tensor, mean: Tensor, log_diagonal: Tensor) -> MixturePrior:
    prior.logits.copy_(log_weight)
    prior.mean.copy_(mean)
    prior.log_diagonal.copy_(log_diagonal)
    # the floor is meant for joint training: these components are as narrow as they are
    prior.min_std.fill_(min(1e-3, 0.1 / log_diagonal.exp().max().item()))
    return prior
