"""What every distribution over weights must do, on networks of ours and of a user's."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import latentfit as lf
from latentfit import bayes
from latentfit.data import Binarise
from latentfit.errors import CapabilityError, InputError
from latentfit.evaluation import elbo_terms, log_likelihood
from latentfit.model import fit
from latentfit.networks import MLP

TRAINED = ("bnn", "mc_dropout", "swag", "ensemble", "sgld")
SMALL = {
    "mc_dropout": {"rate": 0.5},
    "swag": {"rank": 4, "every": 2},
    "sgld": {"n_draws": 3, "burn_in": 5, "thinning": 2},
    "ensemble": {"n_members": 3},
}


class OwnDecoder(nn.Module):
    """A convolutional decoder such as a user brings."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 16)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.last = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.first(z).view(-1, 4, 2, 2)).relu()
        return self.last(self.up(h).relu()).squeeze(1)


def vae(name: str, decoder: nn.Module | None = None, data_shape=(4, 4), **parts) -> lf.VAEModule:
    torch.manual_seed(0)
    decoder = decoder or MLP(2, list(data_shape), hidden=[16])
    network = bayes.create(name, decoder, **SMALL.get(name, {}))
    encoder = MLP(list(data_shape), 4, hidden=[16])
    return lf.VAEModule(encoder, network, latent_dim=2, **{"prior": "standard", **parts})


@pytest.fixture(scope="module")
def binary():
    g = torch.Generator().manual_seed(0)
    return (torch.rand(90, 4, 4, generator=g) < torch.rand(90, 1, 1, generator=g)).float()


def trained(name: str, X: torch.Tensor, **parts) -> lf.VAEModule:
    module = vae(name, **parts)
    fit(module, X, max_steps=12, batch_size=30, validation_fraction=0.1)
    return module


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("own", [False, True])
def test_training_goes_and_draws_are_ordinary_vaes(binary, name, own):
    module = trained(name, binary, decoder=OwnDecoder() if own else None)
    drawn = list(module.draws(3, torch.Generator().manual_seed(0)))
    assert len(drawn) == 3
    z = torch.randn(5, 2)
    outputs = [one.decode(z) for one in drawn]
    for one, output in zip(drawn, outputs, strict=True):
        assert not one.uncertain
        assert one.encoder is module.encoder
        assert one.prior is module.prior
        torch.testing.assert_close(one.decode(z), output, rtol=0, atol=0)  # a draw holds its weights
        assert all(torch.isfinite(p).all() for p in one.parameters())
    assert not torch.equal(outputs[0], outputs[1])
    again = list(module.draws(3, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(again[2].decode(z), outputs[2], rtol=0, atol=0)
    assert module.sample(7, generator=torch.Generator().manual_seed(0)).shape == (7, 4, 4)


@pytest.mark.parametrize("name", TRAINED)
def test_eval_mode_is_one_fixed_network(binary, name):
    module = trained(name, binary)
    z = torch.randn(5, 2)
    torch.testing.assert_close(module.decode(z), module.decode(z), rtol=0, atol=0)


def test_draws_of_a_deterministic_model_are_the_model(binary):
    module = lf.VAEModule(MLP([4, 4], 4), MLP(2, [4, 4]), latent_dim=2)
    assert all(one is module for one in module.draws(3))


@pytest.mark.parametrize("name", [*TRAINED, "laplace"])
def test_saved_and_loaded_to_the_bit(binary, name, tmp_path):
    module = trained("swag", binary).with_parts(decoder=MLP(2, [4, 4], hidden=[8]))
    module = bayes.laplace(module, binary) if name == "laplace" else trained(name, binary)
    lf.save(module, tmp_path / "saved")
    loaded = lf.load(tmp_path / "saved")
    z = torch.randn(5, 2)
    pairs = zip(*(m.draws(4, torch.Generator().manual_seed(1)) for m in (module, loaded)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a.decode(z), b.decode(z), rtol=0, atol=0)


@pytest.mark.parametrize("name", TRAINED)
def test_an_interrupted_training_resumes_to_the_same_distribution(binary, name, tmp_path):
    def run(folder, **more):
        module = vae(name)
        fit(module, binary, max_steps=12, batch_size=30, run_dir=folder, **more)
        return module

    class Stop(Exception):
        pass

    def stop(event) -> None:
        if event.step >= 6:
            raise Stop

    whole = run(tmp_path / "a")
    with pytest.raises(Stop):
        run(tmp_path / "b", progress=stop)
    resumed = run(tmp_path / "b")
    z = torch.randn(5, 2)
    for a, b in zip(*(m.draws(2, torch.Generator().manual_seed(1)) for m in (whole, resumed)), strict=True):
        torch.testing.assert_close(a.decode(z), b.decode(z), rtol=0, atol=0)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("prior", ["mixture", "realnvp"])
def test_priors_and_likelihoods_compose(name, prior):
    X = torch.randn(60, 5)
    module = vae(name, data_shape=(5,), prior=prior, likelihood="normal")
    fit(module, X, max_steps=6, batch_size=30)
    assert all(torch.isfinite(one.sample(4)).all() for one in module.draws(2))


@pytest.mark.parametrize("name", ["bnn", "mc_dropout", "ensemble"])
def test_an_encoder_may_be_uncertain_too(binary, name):
    torch.manual_seed(0)
    network = bayes.create(name, MLP([4, 4], 4, hidden=[16]), **SMALL.get(name, {}))
    module = lf.VAEModule(network, MLP(2, [4, 4], hidden=[16]), latent_dim=2)
    fit(module, binary, max_steps=8, batch_size=30)
    means = [one.encode(binary[:5]).moments()[0] for one in module.draws(2)]
    assert not torch.equal(*means)


@pytest.mark.parametrize("name", TRAINED)
def test_a_method_trains_scores_and_draws(name):
    from sklearn.datasets import load_digits

    X = load_digits().images[:150].astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = lf.VAE(latent_dim=2, method=name, max_steps=30, network_args={"hidden": [16]}).fit(X)
        assert np.isfinite(fitted.score_samples(X[:20])).all()
    assert fitted.module_.uncertain
    assert fitted.sample(3, random_state=0).shape == (3, 8, 8)
    np.testing.assert_array_equal(fitted.sample(3, random_state=0), fitted.sample(3, random_state=0))


@pytest.mark.parametrize("name", TRAINED)
def test_log_p_of_x_is_that_of_the_mixture_of_its_draws(binary, name):
    module = trained(name, binary)
    options = {"n_importance_samples": 50, "random_state": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = log_likelihood(module, binary[:6], **options)
        drawn = list(module.draws(module.n_draws, torch.Generator().manual_seed(3)))
        same = log_likelihood(drawn, binary[:6], **options)
    assert got.n_models == module.n_draws == {"ensemble": 3, "sgld": 3}.get(name, bayes.N_DRAWS)
    np.testing.assert_array_equal(got.values, same.values)
    bounds = [elbo_terms(one, binary[:6], random_state=3).elbo_per_row for one in drawn]
    np.testing.assert_allclose(elbo_terms(module, binary[:6], random_state=3).elbo_per_row, np.mean(bounds, 0))


def test_the_centre_is_an_ordinary_vae(binary):
    module = trained("bnn", binary)
    z = torch.randn(3, 2)
    assert not module.centre().uncertain
    torch.testing.assert_close(module.centre().decode(z), module.decode(z), rtol=0, atol=0)
    plain = lf.VAEModule(MLP([4, 4], 4), MLP(2, [4, 4]), latent_dim=2)
    assert plain.centre() is plain


def test_every_member_of_an_ensemble_sees_every_row_with_as_many_samples(binary):
    network = bayes.Ensemble(nn.Identity(), 2, start="shared")
    seen: list[torch.Tensor] = []
    for member in network.members:
        member.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    rows = torch.arange(6.0)[:, None]
    network.train()(torch.stack([rows, rows]).flatten(0, 1))
    assert all(torch.equal(part, rows) for part in seen)
    assert network(rows[:3]).shape == (3, 1)


def test_post_hoc_leaves_the_trained_model_as_it_was(binary):
    module = lf.VAEModule(MLP([4, 4], 4), MLP(2, [4, 4], hidden=[16]), latent_dim=2)
    fit(module, binary, max_steps=12, batch_size=30)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    for find in (bayes.swag, bayes.sgld, bayes.laplace):
        options = {} if find is bayes.laplace else {"max_steps": 40, "batch_size": 30}
        found = find(module, binary, prepare=Binarise(), **options)
        z = torch.randn(5, 2)
        first, second = (one.decode(z) for one in found.draws(2))
        assert not torch.equal(first, second)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson", "negative_binomial", "categorical"])
def test_laplace_knows_the_curvature_of_every_likelihood(likelihood):
    torch.manual_seed(0)
    X = (torch.rand(50, 3) < 0.5).float()
    p_x = {"name": "categorical", "args": {"n_classes": 2}} if likelihood == "categorical" else likelihood
    from latentfit.registry import registry

    p_x = registry.build("likelihood", p_x)
    out = [3, p_x.n_parameters] if p_x.n_parameters > 1 else [3]
    module = lf.VAEModule(MLP([3], 4), MLP(2, out, hidden=[8]), latent_dim=2, likelihood=p_x)
    found = bayes.laplace(module, X, covariance="full")
    assert all(torch.isfinite(one.decode(torch.randn(4, 2))).all() for one in found.draws(3))
    assert torch.isfinite(found.decoder.scale).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bayes.create("bnn", nn.ReLU()), CapabilityError, "no dense or convolutional layer"),
        (lambda: bayes.create("bnn", nn.Linear(2, 2), prior_scale=-1.0), InputError, "prior_scale must be positive"),
        (lambda: bayes.create("mc_dropout", nn.Linear(2, 2), rate=1.0), InputError, r"rate must be in \[0, 1\)"),
        (lambda: bayes.create("ensemble", nn.Linear(2, 2), n_members=1), InputError, "at least 2"),
        (lambda: bayes.create("ensemble", nn.ReLU()), CapabilityError, "start='shared'"),
        (lambda: bayes.create("laplace", OwnDecoder()), CapabilityError, "Try swag"),
        (lambda: bayes.create("laplace", nn.Linear(3000, 90), covariance="full"), InputError, "kron"),
        (lambda: bayes.create("sgld", nn.Linear(2, 2), step_size=5.0), InputError, "diverges"),
        (lambda: bayes.create("flipout", nn.Linear(2, 2)), InputError, "calls it 'bnn'"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(call, error, message):
    with pytest.raises(error, match=message):
        call()


class Attention(nn.Module):
    """Reads the weights of a dense layer without calling it, and has positions that share weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.each, self.last = nn.Linear(2, 12), nn.Linear(4, 4), nn.Linear(12, 16)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        h = self.each(self.first(z).view(-1, 3, 4))
        h = h + self.attention(h, h, h, need_weights=False)[0]
        return self.last(h.flatten(1)).view(-1, 4, 4)


@pytest.mark.parametrize("name", ["bnn", "mc_dropout"])
def test_what_is_uncertain_in_draws_is_so_in_training(name):
    """Output layers of attention are read, not called: hooks on them would train one law and draw another."""
    torch.manual_seed(0)
    options = {"initial_scale": 1.0} if name == "bnn" else {"rate": 0.3}
    network, z = bayes.create(name, Attention(), **options), torch.randn(1, 2)
    with torch.no_grad():
        trained = torch.stack([network.train()(z) for _ in range(4000)]).flatten(1)
        drawn = torch.stack([d(z) for d in network.draws(4000, torch.Generator().manual_seed(0))]).flatten(1)
    error = ((trained.var(0) + drawn.var(0)) / 4000).sqrt()
    assert ((trained.mean(0) - drawn.mean(0)).abs() < 4.5 * error).all()
    torch.testing.assert_close(trained.std(0), drawn.std(0), rtol=0.1, atol=0)


@pytest.mark.parametrize("name", ["bnn", "mc_dropout"])
def test_positions_of_a_row_share_their_noise_as_they_share_their_weights(name):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2))
    network = bayes.create(name, plain, **({"initial_scale": 1.0} if name == "bnn" else {"rate": 0.5})).train()
    x = torch.randn(1, 1, 3).expand(5, 2, 3)  # two equal positions in every row
    first, second = network(x).unbind(1)
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("name", [*TRAINED, "laplace"])
def test_ones_own_encoder_and_decoder_are_loaded_by_their_places(name, tmp_path):
    class OwnEncoder(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Flatten(), nn.Linear(16, 4))

    class Dense(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(2, 16), nn.Unflatten(1, (4, 4)))

    def both() -> tuple[nn.Module, nn.Module]:
        return OwnEncoder(), Dense()

    encoder, decoder = (bayes.create(name, part, **SMALL.get(name, {})) for part in both())
    module = lf.VAEModule(encoder, decoder, latent_dim=2)
    lf.save(module, tmp_path / "saved")
    with pytest.raises(InputError, match="encoder=your_module"):
        lf.load(tmp_path / "saved")
    encoder, decoder = both()
    loaded = lf.load(tmp_path / "saved", encoder=encoder, decoder=decoder)
    for key, value in module.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["bnn", "mc_dropout", "swag", "sgld"])
def test_weights_that_are_not_ones_own_are_refused(name):
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    with pytest.raises(CapabilityError, match="computed from other parameters"):
        bayes.create(name, nn.Sequential(normed, nn.Linear(2, 2)))
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    with pytest.raises(CapabilityError, match="share a parameter"):
        bayes.create(name, tied)


def normalised(*sizes: int, shape: tuple[int, ...] = ()) -> nn.Sequential:
    """Dense layers with a BatchNorm between."""
    first, hidden, last = sizes
    tail = [nn.Unflatten(1, shape)] if shape else []
    return nn.Sequential(
        nn.Flatten(), nn.Linear(first, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, last), *tail
    )


@pytest.mark.parametrize("find", [bayes.swag, bayes.sgld])
def test_running_statistics_of_the_parts_that_are_held_stay(binary, find):
    torch.manual_seed(0)
    module = lf.VAEModule(normalised(16, 8, 4), normalised(2, 8, 16, shape=(4, 4)), latent_dim=2)
    fit(module, binary, max_steps=12, batch_size=30)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    find(module, binary, max_steps=40, batch_size=30)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_a_draw_of_swag_has_the_batch_statistics_of_its_own_weights(binary, tmp_path):
    torch.manual_seed(0)
    module = lf.VAEModule(normalised(16, 8, 4), normalised(2, 8, 16, shape=(4, 4)), latent_dim=2)
    fit(module, binary, max_steps=12, batch_size=30)
    found = bayes.swag(module, binary, max_steps=40, batch_size=30, rate=2.0)
    z = next(value for key, value in found.decoder.named_buffers() if key.startswith("reference"))
    for network in (*found.decoder.draws(3, torch.Generator().manual_seed(0)), found.decoder.network):
        read = network[1](z)  # what the normalisation reads
        torch.testing.assert_close(network[2].running_mean, read.mean(0))
        torch.testing.assert_close(network[2].running_var, read.var(0))
    lf.save(found, tmp_path / "saved")
    own = {"encoder": normalised(16, 8, 4), "decoder": normalised(2, 8, 16, shape=(4, 4))}
    loaded = lf.load(tmp_path / "saved", **own)
    a, b = (next(m.draws(1, torch.Generator().manual_seed(1))).decode(z) for m in (found, loaded))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
