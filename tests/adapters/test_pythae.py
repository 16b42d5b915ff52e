"""pythae's models and samplers, against pythae's own numbers. Run where pythae is installed; tested with 0.1.2."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch

from latentfit.adapters import adapt
from latentfit.adapters.pythae import KL_WEIGHTS, REFUSED, adapt_model, matches, prior_of
from latentfit.errors import CapabilityError, InputError
from latentfit.evaluation import elbo_terms
from latentfit.priors import MixturePrior, StandardNormalPrior

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the package's own, of the libraries below it
    pythae = pytest.importorskip("pythae.models", reason="needs pythae in an environment of its own")
    samplers = pytest.importorskip("pythae.samplers")

pytestmark = pytest.mark.filterwarnings("default")  # what the package itself does with torch is its own affair

SHAPE = (1, 4, 4)


def pixels(n: int = 64) -> torch.Tensor:
    torch.manual_seed(1)
    centre = torch.rand(4, *SHAPE)
    return (torch.rand(n, *SHAPE) < centre[torch.arange(n) % 4]).float()


def built(kind: str, config: str | None = None, **arguments: object):
    """A model whose codes depend on x: the default initialisation, its heads widened."""
    torch.manual_seed(0)
    made = getattr(pythae, kind)(getattr(pythae, config or f"{kind}Config")(SHAPE, 3, **arguments))
    with torch.no_grad():
        for parameter in made.encoder.parameters():
            parameter.mul_(2.0)
    return made


MODELS = {
    "VAE bce": lambda: built("VAE", reconstruction_loss="bce"),
    "VAE mse": lambda: built("VAE", reconstruction_loss="mse"),
    "BetaVAE": lambda: built("BetaVAE", reconstruction_loss="bce", beta=3.0),
    "VAMP": lambda: built("VAMP", reconstruction_loss="bce", number_components=7),
    "INFOVAE_MMD": lambda: built("INFOVAE_MMD", "INFOVAE_MMD_Config", reconstruction_loss="bce", alpha=0.25),
    "IWAE": lambda: built("IWAE", reconstruction_loss="bce", number_samples=3),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_gain_is_real(name: str, gain_is_real) -> None:
    gain_is_real(adapt(MODELS[name](), example=pixels()), pixels())


@pytest.mark.parametrize("name", ["VAE bce", "VAE mse", "VAMP"])
def test_elbo_is_pythaes_own(name: str) -> None:
    model, x = MODELS[name](), pixels(200)
    adapted = adapt(model)
    assert matches(model)
    assert adapted.conditional is False
    ours = elbo_terms(adapted, x, n_draws=200)
    model.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        theirs = [model({"data": x}) for _ in range(200)]
    reconstruction = np.mean([output.recon_loss.item() for output in theirs])
    # their squared error has no normaliser
    constant = 0.5 * np.log(2 * np.pi) * 16 if name == "VAE mse" else 0.0
    np.testing.assert_allclose(float(ours.log_likelihood), -reconstruction - constant, rtol=1e-3)
    np.testing.assert_allclose(float(ours.kl), np.mean([output.reg_loss.item() for output in theirs]), rtol=1e-2)


def test_the_vamp_prior_is_the_trained_one() -> None:
    model = MODELS["VAMP"]().eval()
    prior = adapt(model).prior
    z = 2 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = model._log_p_z(z) - 1.5 * np.log(2 * np.pi)  # the constant that they leave out
        torch.testing.assert_close(prior.log_prob(z), theirs, rtol=1e-5, atol=1e-4)
    assert prior.n_components == 7
    assert isinstance(prior_of(model), MixturePrior)


def test_what_it_was_trained_with() -> None:
    beta = adapt(MODELS["BetaVAE"]())
    assert beta.loss is not None
    assert beta.loss.effective_beta(16) == 3.0
    squared = adapt(built("BetaVAE", beta=3.0))
    assert squared.loss is not None
    assert squared.sigma == 1.0
    assert squared.loss.effective_beta(16, 1.0) == 3.0  # pythae halves the squared error
    measured = adapt(built("BetaVAE", beta=3.0), example=pixels())
    assert measured.sigma is not None
    assert 0.3 < measured.sigma < 0.8  # pixels of variance near 1/4 under a decoder that knows nothing
    assert adapt(built("VAE"), scale=0.1).sigma == 0.1
    assert adapt(MODELS["INFOVAE_MMD"]()).loss.kl_weight == 0.75
    assert adapt(built("FactorVAE")).loss is None
    assert not adapt(built("VAEGAN")).can_score
    assert adapt(built("VAEGAN"), likelihood="normal", example=pixels()).can_score


def test_grey_pixels_are_said() -> None:
    model = MODELS["VAE bce"]()
    assert adapt(model, example=0.5 * pixels()).grey
    assert "grey" in repr(adapt(model, example=0.5 * pixels()))
    assert not adapt(model, example=pixels()).grey


def test_flat_rows_keep_their_shape() -> None:
    adapted = adapt(MODELS["VAE bce"](), example=pixels().flatten(1))
    assert adapted.reconstruct(pixels().flatten(1)).shape == (64, 16)


def test_a_copy_has_its_own_weights() -> None:
    adapted = adapt(MODELS["VAE bce"]())
    other = copy.deepcopy(adapted)
    with torch.no_grad():
        other.foreign[0].encoder.embedding.weight.add_(1.0)
    x = pixels()
    with torch.no_grad():
        assert not torch.equal(other.encode(x).moments()[0], adapted.encode(x).moments()[0])
    assert other.weights_sha256() != adapted.weights_sha256()


@pytest.mark.parametrize(("kind", "reason"), [("RAE_L2", "deterministic"), ("VAE_IAF", "a flow"), ("SVAE", "sphere")])
def test_other_posteriors_are_refused(kind: str, reason: str) -> None:
    config = f"{kind}_Config" if kind == "VAE_IAF" or kind == "RAE_L2" else f"{kind}Config"
    config = config if hasattr(pythae, config) else f"{kind}Config"
    model = getattr(pythae, kind)(getattr(pythae, config)(SHAPE, 3))
    with pytest.raises(CapabilityError, match=f"{kind} is not adapted: .*{reason}"):
        adapt(model)


def test_every_model_of_the_package_is_known() -> None:
    classes = {
        name
        for name, thing in vars(pythae).items()
        if isinstance(thing, type) and issubclass(thing, pythae.BaseAE) and name not in ("BaseAE", "AutoModel")
    }
    assert classes <= set(KL_WEIGHTS) | set(REFUSED)


def test_arguments_are_judged() -> None:
    model = MODELS["VAE bce"]()
    with pytest.raises(InputError, match="leave out kl_weight, spread"):
        adapt(model, kl_weight=1.0, spread="logvar")
    with pytest.raises(InputError, match="sigma of a Normal"):
        adapt(model, scale=0.1)
    with pytest.raises(InputError, match=r"\(9,\), the model's input_dim is \(1, 4, 4\)"):
        adapt_model(model, example=torch.zeros(5, 9))


def drawn(sampler, n: int) -> torch.Tensor:
    """What the sampler itself feeds to the decoder."""
    seen: list[torch.Tensor] = []
    hook = sampler.model.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    torch.manual_seed(0)
    np.random.seed(0)  # the generator that scikit-learn's sample falls back on
    sampler.sample(n)
    hook.remove()
    return torch.cat(seen)


def test_a_fitted_mixture_has_its_density() -> None:
    model = MODELS["VAE bce"]()
    sampler = samplers.GaussianMixtureSampler(model, samplers.GaussianMixtureSamplerConfig(n_components=4))
    with pytest.raises(InputError, match="not fitted yet"):
        prior_of(sampler)
    sampler.fit(pixels(400))
    prior = prior_of(sampler)
    z = drawn(sampler, 4_000)
    with torch.no_grad():
        theirs = sampler.gmm.score_samples(z.double().numpy())
        np.testing.assert_allclose(prior.log_prob(z).numpy(), theirs, rtol=1e-4, atol=1e-3)
    ours = prior.sample(4_000, generator=torch.Generator().manual_seed(0))
    # one law by both samplers: mean and covariance within 5 standard errors of a few thousand draws
    scale = z.std(0)
    assert float(((ours.mean(0) - z.mean(0)) / scale).abs().max()) < 5 * (2 / 4_000) ** 0.5
    assert float(((ours.T.cov() - z.T.cov()) / torch.outer(scale, scale)).abs().max()) < 5 * (2 * 3 / 4_000) ** 0.5
    own = sampler.gmm.score_samples(ours.double().numpy())
    error = (own.var() / 4_000 + theirs.var() / 4_000) ** 0.5
    assert abs(own.mean() - theirs.mean()) < 5 * error


@pytest.mark.parametrize("name", ["MAF", "IAF"])
def test_a_flow_sampler_is_a_prior(name: str) -> None:
    """The flow as it is at its start, moved off the identity: the trainer is pythae's, and slow."""
    model = MODELS["VAE bce"]()
    sampler = getattr(samplers, f"{name}Sampler")(model)
    with pytest.raises(InputError, match="not fitted yet"):
        prior_of(sampler)
    setattr(sampler, f"{name.lower()}_model", sampler.flow_contained_model.flow)
    prior = prior_of(sampler)
    assert prior.density == "exact"
    z = prior.sample(20_000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_p = prior.log_prob(z.view(2, 10_000, 3))
        assert log_p.shape == (2, 10_000)
        # E_p[q / p] = 1 for any density q: normalised, and sampled as scored
        q = torch.distributions.MultivariateNormal(z.mean(0), 0.5 * z.T.cov())
        ratio = (q.log_prob(z) - log_p.flatten()).exp()
    assert abs(ratio.mean().item() - 1) < 5 * (ratio.std().item() / 20_000**0.5)
    assert ratio.std() < 5


def test_the_other_samplers() -> None:
    model = MODELS["VAMP"]()
    assert isinstance(prior_of(samplers.NormalSampler(model)), StandardNormalPrior)
    assert prior_of(samplers.VAMPSampler(model)).n_components == 7
    with pytest.raises(CapabilityError, match="TwoStageVAESampler has no density"):
        prior_of(samplers.TwoStageVAESampler(model))
