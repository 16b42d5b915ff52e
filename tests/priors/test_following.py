"""Priors made of the encoder: their density is that of the encoder's outputs, in training, frozen and saved."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

import latentfit as lf
from latentfit import methods, priors
from latentfit.data import Batch, Rows, Standardise
from latentfit.errors import CapabilityError, InputError
from latentfit.model import ELBO, VAEModule
from latentfit.model.contracts import LatentDistribution, Posterior
from latentfit.priors import exemplar
from latentfit.priors.gaussians import log_sum_exp_of_product

N, COLUMNS, DIM = 60, 5, 2


def data(seed=0):
    return torch.rand(N, COLUMNS, generator=torch.Generator().manual_seed(seed))


def model(prior, *, posterior="diagonal", encoder=None, **arguments):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        width = 2 * DIM if posterior == "diagonal" else DIM * (DIM + 3) // 2
        encoder = encoder or nn.Sequential(nn.Linear(COLUMNS, 8), nn.Tanh(), nn.Linear(8, width))
        return VAEModule(encoder, nn.Linear(DIM, COLUMNS), prior, posterior=posterior, likelihood="normal", **arguments)


def bound(name="vamp", x=None, **arguments):
    settings = {"n_components": 7} if name == "vamp" else {}
    vae = model(priors.create(name, latent_dim=DIM, **settings), **arguments)
    vae.prior.bind(vae, Batch(data()) if x is None else x)
    return vae


def some_z(n=9):
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(3))


class WithContext(nn.Module):
    """An encoder or decoder that reads a context of one number."""

    def __init__(self, into, out):
        super().__init__()
        self.linear = nn.Linear(into + 1, out)

    def forward(self, x, context):
        return self.linear(torch.cat((x, context), -1))


# vamp


@pytest.mark.parametrize("posterior", ["diagonal", "full"])
@pytest.mark.parametrize("weights", ["equal", "learned"])
def test_vamp_is_the_mixture_of_the_encoders_outputs(posterior, weights):
    vae = model(priors.create("vamp", latent_dim=DIM, n_components=7, weights=weights), posterior=posterior)
    vae.prior.bind(vae, Batch(data()))
    if weights == "learned":
        with torch.no_grad():
            vae.prior.logits.copy_(torch.arange(7.0))
    q = vae.encode(Batch(vae.prior.pseudo_inputs))
    parts = (
        Independent(Normal(q.mean, q.std), 1)
        if posterior == "diagonal"
        else MultivariateNormal(q.mean, scale_tril=q.scale_tril)
    )
    logits = vae.prior.logits if weights == "learned" else torch.zeros(7)
    oracle = MixtureSameFamily(Categorical(logits=logits), parts)
    z = some_z()
    torch.testing.assert_close(vae.prior.log_prob(z), oracle.log_prob(z), rtol=1e-4, atol=1e-4)


def test_vamp_starts_at_rows_of_the_data():
    vae = bound()
    rows = {tuple(row) for row in data().tolist()}
    assert all(tuple(row) in rows for row in vae.prior.pseudo_inputs.tolist())
    few = model(priors.create("vamp", latent_dim=DIM))
    few.prior.bind(few, Batch(data()))
    assert len(few.prior.pseudo_inputs) == N  # 500 components of 60 rows are 60


def test_pseudo_inputs_are_in_the_units_the_encoder_reads():
    x = 100 + 7 * data()
    transform = Standardise(COLUMNS).fit(x)
    vae = bound(x=Batch(x), preprocess=transform)
    q = vae.encode(Batch(transform.inverse(vae.prior.pseudo_inputs.detach())))
    mean, factor = vae.prior.gaussians()
    torch.testing.assert_close(mean, q.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(1 / factor, q.std, rtol=1e-3, atol=1e-3)


def test_gradient_reaches_pseudo_inputs_and_encoder():
    vae = bound()
    (-vae.prior.training_log_prob(some_z()[None], Batch(data()[:9])).sum()).backward()
    assert vae.prior.pseudo_inputs.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in vae.encoder.parameters())


def test_pseudo_inputs_stay_in_the_datas_range_and_come_back():
    vae = bound()
    low, high = data().amin(0), data().amax(0)
    optimiser = torch.optim.Adam([vae.prior.pseudo_inputs], lr=0.2)

    def inputs():
        seen = []
        handle = vae.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        vae.prior.gaussians()
        handle.remove()
        return seen[0]

    for sign in (1, -1):
        for _ in range(60):
            optimiser.zero_grad()
            (sign * inputs().sum()).backward()
            optimiser.step()
        edge = low if sign == 1 else high
        torch.testing.assert_close(inputs(), edge.expand(7, -1))


def test_weights_of_the_encoder_are_saved_once():
    vae = bound()
    assert not any(name.startswith("prior.") and "encoder" in name for name in vae.state_dict())
    plain = sum(p.numel() for p in vae.encoder.parameters()) + sum(p.numel() for p in vae.decoder.parameters())
    assert sum(p.numel() for p in vae.parameters()) == plain + 7 * COLUMNS + 1  # and the Normal's scale


@pytest.mark.parametrize("name", ["vamp", "exemplar"])
def test_frozen_saved_and_alone_it_is_the_same_density(name, tmp_path):
    vae = bound(name).eval()
    z = some_z()
    before = vae.prior.log_prob(z)
    draws = vae.prior.sample(5, generator=torch.Generator().manual_seed(0))
    lf.save(vae.prior, tmp_path / "prior")  # while it follows the encoder
    vae.prior.freeze()
    lf.save(vae, tmp_path / "vae")
    own = {"encoder": copy.deepcopy(vae.encoder), "decoder": copy.deepcopy(vae.decoder)}
    back = lf.load(tmp_path / "vae", **own)
    alone = priors.load(tmp_path / "prior")
    for prior in (vae.prior, back.prior, alone):
        assert torch.equal(prior.log_prob(z), before)
        assert torch.equal(prior.sample(5, generator=torch.Generator().manual_seed(0)), draws)
    with torch.no_grad():
        for parameter in vae.encoder.parameters():
            parameter.add_(1.0)
    assert torch.equal(vae.prior.log_prob(z), before)  # frozen: the encoder no longer matters


def test_a_frozen_vamp_can_be_trained_on():
    vae = bound()
    vae.prior.freeze()
    kept = vae.prior.pseudo_inputs.detach().clone()
    vae.prior.bind(vae, Batch(data(1)))
    assert torch.equal(vae.prior.pseudo_inputs, kept)
    vae.prior.training_log_prob(some_z()[None]).sum().backward()
    assert vae.prior.pseudo_inputs.grad.abs().sum() > 0


def test_a_copy_follows_its_own_encoder():
    vae = bound()
    other = copy.deepcopy(vae)
    with torch.no_grad():
        for parameter in other.encoder.parameters():
            parameter.add_(0.3)
    z = some_z()
    assert not torch.equal(other.prior.log_prob(z), vae.prior.log_prob(z))


@pytest.mark.parametrize("name", ["vamp", "exemplar"])
def test_what_is_frozen_depends_on_no_batch(name):
    """Batch statistics and dropout in the encoder: frozen in eval mode, whatever mode the model is in."""
    encoder = nn.Sequential(nn.Linear(COLUMNS, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2 * DIM))
    vae = bound(name, encoder=encoder)
    vae.train()
    statistics = encoder[1].running_mean.clone()
    vae.prior.freeze()
    assert torch.equal(encoder[1].running_mean, statistics)
    z = some_z()
    once = vae.prior.log_prob(z)
    torch.testing.assert_close(vae.prior.log_prob(z[:3]), once[:3])
    assert torch.equal(vae.eval().prior.log_prob(z), once)


@pytest.mark.parametrize("name", ["vamp", "exemplar"])
def test_a_conditional_model_keeps_the_contexts_of_its_rows(name):
    x = Batch(data(), torch.arange(N, dtype=torch.float32)[:, None] / N)
    vae = VAEModule(
        WithContext(COLUMNS, 2 * DIM),
        WithContext(DIM, COLUMNS),
        priors.create(name, latent_dim=DIM),
        likelihood="normal",
        conditional=True,
    )
    result = lf.fit(vae, x, max_steps=5, batch_size=20)
    assert math.isfinite(result.best_value)
    assert torch.isfinite(vae.prior.log_prob(some_z(), x.context[:9])).all()


class _Uniform(LatentDistribution):
    can_score = False

    def __init__(self, mean):
        self.mean = mean

    def rsample_with_log_prob(self, n=1, generator=None):
        return self.mean + torch.rand(n, *self.mean.shape), torch.zeros(n, len(self.mean))

    def moments(self):
        return self.mean, torch.ones_like(self.mean)

    def cache(self):
        return {"mean": self.mean}


class UniformPosterior(Posterior):
    """No Gaussian."""

    def __init__(self, latent_dim):
        super().__init__(latent_dim)
        self.n_parameters = self.event_shape.numel()

    def forward(self, parameters, batch=None):
        return _Uniform(parameters)


@pytest.mark.parametrize("name", ["vamp", "exemplar"])
def test_a_posterior_that_is_no_gaussian_is_refused_before_training(name):
    vae = model(priors.create(name, latent_dim=DIM), posterior=UniformPosterior(DIM), encoder=nn.Linear(COLUMNS, DIM))
    with pytest.raises(CapabilityError, match=f"{name} is a mixture over the encoder's Gaussians"):
        lf.fit(vae, data(), max_steps=2)


def test_vamp_alone_says_what_it_needs():
    prior = priors.create("vamp", latent_dim=DIM)
    with pytest.raises(InputError, match="made of an encoder"):
        prior.log_prob(some_z())
    with pytest.raises(CapabilityError, match="trained with the VAE"):
        prior.fit(some_z(), std=torch.ones(9, DIM))


@pytest.mark.parametrize("name", ["vamp", "exemplar", "hierarchical", "dp_mixture"])
def test_joint_training_gains_on_the_untrained_and_ends_frozen(name):
    vae = methods.build(name, data_shape=(COLUMNS,), latent_dim=DIM, likelihood="normal")
    x = data() + torch.arange(N)[:, None] % 3
    with torch.no_grad():
        start = ELBO()
        start.n_train = N
        vae.prior.bind(vae, Batch(x))
        before = start(vae.eval(), x)["elbo"].item()
    result = lf.fit(vae, x, max_steps=150, batch_size=20, learning_rate=5e-3)
    assert -result.best_value > before + 1
    assert getattr(vae.prior, "_followed", None) is None
    assert torch.isfinite(vae.prior.log_prob(vae.prior.sample(20))).all()


# exemplar


def exemplar_step(**arguments):
    """A model in training, a batch with its rows' numbers, draws of its codes."""
    vae = model(priors.create("exemplar", latent_dim=DIM, **arguments)).train()
    vae.prior.bind(vae, Batch(data()))
    batch = Rows(Batch(data())).batch(torch.arange(3, 21))
    z, _ = vae.encode(batch).rsample_with_log_prob(2, torch.Generator().manual_seed(0))
    return vae, batch, z.detach()


def brute_force(vae, z, left_out, among):
    """log 1/M' sum over exemplars of `among`, each row's own left out."""
    means = vae.encode(Batch(data())).mean[among]
    normal = Independent(Normal(means, vae.prior.log_std.exp()), 1)
    joint = normal.log_prob(z.unsqueeze(-2))  # (S, N, M)
    own = among[None] == left_out[:, None]
    return joint.masked_fill(own, -math.inf).logsumexp(-1) - (len(among) - own.sum(-1).float()).log()


def test_leave_one_out_is_brute_force():
    vae, batch, z = exemplar_step(n_neighbours=N)
    wanted = brute_force(vae, z, batch.index, torch.arange(N))
    torch.testing.assert_close(vae.prior.training_log_prob(z, batch), wanted, rtol=1e-4, atol=1e-4)


def test_fewer_neighbours_are_a_lower_bound_that_is_nearly_tight(monkeypatch):
    monkeypatch.setattr(exemplar, "ROUND_NUMBER", 1)
    vae, batch, z = exemplar_step(n_neighbours=8)
    with torch.no_grad():
        vae.prior.log_std.fill_(math.log(0.1))
    lower, exact = vae.prior.training_log_prob(z, batch), brute_force(vae, z, batch.index, torch.arange(N))
    assert (lower <= exact + 1e-4).all()
    assert (exact - lower).mean() < 0.05


def test_the_exemplars_of_a_step_are_the_nearest_and_others_up_to_a_round_number(monkeypatch):
    monkeypatch.setattr(exemplar, "ROUND_NUMBER", 16)
    monkeypatch.setattr(exemplar, "NEAR_AT_ONCE", 7)
    vae, batch, z = exemplar_step(n_neighbours=1)
    z = z[:1, :9]
    distance = torch.cdist(z[0], vae.prior.means)
    distance[torch.arange(9), batch.index[:9]] = math.inf
    needed = {*batch.index[:9].tolist(), *distance.argmin(1).tolist()}
    encoded = []
    monkeypatch.setattr(vae.prior, "_encoded", lambda which: encoded.append(which) or vae.prior.means[which])
    vae.prior.training_log_prob(z, batch[torch.arange(9)])
    used = encoded[0].tolist()
    assert needed <= set(used)
    assert used == sorted(set(used))
    assert len(used) == 16 * math.ceil(len(needed) / 16)


def test_rows_that_are_no_exemplars_leave_none_out():
    vae, batch, z = exemplar_step(n_exemplars=30, n_neighbours=30)
    among = vae.prior.rows
    assert len(among) == 30
    wanted = brute_force(vae, z, batch.index, among)
    torch.testing.assert_close(vae.prior.training_log_prob(z, batch), wanted, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_exemplars_reaches_the_encoder():
    vae, batch, z = exemplar_step(n_neighbours=3)
    vae.prior.training_log_prob(z, batch).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in vae.encoder.parameters())
    assert vae.prior.log_std.grad.abs() > 0


def test_the_cache_takes_in_what_was_encoded():
    vae, batch, z = exemplar_step(n_neighbours=2)
    with torch.no_grad():
        for parameter in vae.encoder.parameters():
            parameter.mul_(1.5)
    wanted = vae.encode(Batch(data())).mean.detach()
    vae.prior.training_log_prob(z, batch)
    torch.testing.assert_close(vae.prior.means[batch.index], wanted[batch.index])
    vae.eval()
    vae.prior.log_prob(z)
    torch.testing.assert_close(vae.prior.means, wanted)


def test_a_batch_without_numbers_is_refused_in_training():
    vae, batch, z = exemplar_step()
    with pytest.raises(InputError, match=r"give Batch\.index"):
        vae.prior.training_log_prob(z, Batch(batch.x))
    vae.eval()
    assert vae.prior.training_log_prob(z, Batch(batch.x)).shape == (2, 18)


def test_post_hoc_width_maximises_leave_one_out():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(400, DIM, generator=generator)
    std = torch.full_like(mean, 0.2)
    prior = priors.create("exemplar", latent_dim=DIM).fit(mean, std=std)
    assert torch.equal(prior.means.sort(0).values, mean.sort(0).values)
    z = mean + std * torch.randn(mean.shape, generator=generator)

    def leave_one_out(log_std):
        joint = Independent(Normal(mean, math.exp(log_std)), 1).log_prob(z.unsqueeze(1))
        return joint.fill_diagonal_(-math.inf).logsumexp(-1).mean().item()

    own = prior.log_std.item()
    best = max(leave_one_out(own + step) for step in torch.linspace(-1, 1, 41).tolist())
    assert leave_one_out(own) > best - 0.01


def test_exemplars_count_as_numbers_of_the_prior():
    """A prior that stores every code is not the smallest, alone or mixed with another."""
    prior = priors.create("exemplar", latent_dim=DIM).fit(some_z(), std=torch.ones(9, DIM))
    assert prior.n_parameters == 9 * DIM + 1
    mixed = priors.create("defensive", base=prior, anchor=priors.create("standard", latent_dim=DIM), weight=0.5)
    assert mixed.n_parameters == prior.n_parameters


def test_exemplars_without_any_say_so():
    with pytest.raises(InputError, match="no exemplars yet"):
        priors.create("exemplar", latent_dim=DIM).sample(3)


@pytest.mark.parametrize(("rows", "terms"), [(1, 1), (300, 2_500), (257, 1_000)])
def test_a_log_sum_in_tiles_is_that_of_whole_rows(rows, terms):
    """Terms that grow from tile to tile, and fall again, down to ones that would underflow."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    right = torch.randn(5, terms, generator=generator, dtype=torch.float64) * torch.linspace(1, 400, terms)
    right[0] -= 300 * (torch.arange(terms) > terms / 2)
    with torch.no_grad():
        found = log_sum_exp_of_product(left, right)
    torch.testing.assert_close(found, (left @ right).logsumexp(-1))
    left.requires_grad_()
    by_tiles = log_sum_exp_of_product(left, right)
    torch.testing.assert_close(by_tiles, found)
    weight = torch.randn(rows, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weight * by_tiles).sum(), left)
    (wanted,) = torch.autograd.grad((weight * (left @ right).logsumexp(-1)).sum(), left)
    torch.testing.assert_close(gradient, wanted)
    right.requires_grad_()
    (by_right,) = torch.autograd.grad(log_sum_exp_of_product(left, right).sum(), right)
    torch.testing.assert_close(by_right, torch.autograd.grad((left @ right).logsumexp(-1).sum(), right)[0])


def test_narrow_exemplars_keep_their_distances():
    """3 beside 3e-4: in float32 |z|^2 / s^2 is 1e8, and the distances of neighbours are lost in it."""
    generator = torch.Generator().manual_seed(0)
    mean = 3 * torch.randn(300, 2, generator=generator)
    prior = priors.create("exemplar", latent_dim=2).fit(mean, std=torch.full_like(mean, 3e-4))
    with torch.no_grad():
        prior.log_std.fill_(torch.tensor(3e-4).log())
    z = mean[:50] + 3e-4 * torch.randn(50, 2, generator=generator)
    found = prior.log_prob(z)
    assert found.dtype == torch.float32
    exact = prior.double().log_prob(z.double())
    torch.testing.assert_close(found.double(), exact, atol=1e-3, rtol=0)
