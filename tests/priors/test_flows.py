"""What is special to flow priors: collapsed units, warnings, contexts, old folders, zuko's families."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch

from latentfit import priors, saving
from latentfit.data import Batch
from latentfit.errors import CapabilityError, InputError, LatentfitWarning, OutOfBoxWarning, ReliabilityWarning
from latentfit.model import CodeRows, FitOptions
from latentfit.priors import as_prior, flow_for
from latentfit.priors import flow as flow_module

FLOWS = ["realnvp", "nsf", "maf"]


def small(name, dim, **arguments):
    torch.manual_seed(0)
    return priors.create(name, latent_dim=dim, transforms=2, hidden_features=16, **arguments)


def codes(dim, collapsed=(), n=400):
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(n, dim, generator=generator).sign() + 0.2 * torch.randn(n, dim, generator=generator)
    std = torch.full_like(mean, 0.3)
    mean[:, list(collapsed)], std[:, list(collapsed)] = 0.0, 1.0
    return mean, std


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("dim", [1, 2])
def test_integrates_to_one_given_a_context(name, dim):
    prior = small(name, dim, context_features=2).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    edge, n = (14.0, 8001) if dim == 1 else (9.0, 401)
    line = torch.linspace(-edge, edge, n, dtype=torch.float64)
    points = torch.cartesian_prod(*[line] * dim).view(-1, dim)
    for context in torch.tensor([[0.0, 0.0], [1.0, -2.0]], dtype=torch.float64):
        with torch.no_grad():
            total = prior.log_prob(points, context).exp().sum() * (2 * edge / (n - 1)) ** dim
        assert total.item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("base", ["normal", "mixture"])
def test_collapsed_units_keep_their_law(name, base):
    """They are N(0, 1) to the bit of the formula, the flow sees the others alone, and all of it is saved."""
    if base == "mixture":
        base = priors.create("mixture", latent_dim=4, n_components=2)
    mean, std = codes(4, collapsed=(1, 3))
    prior = small(name, 4, base=base).fit(mean, std=std, max_steps=20)
    assert prior.active == (0, 2)
    assert prior.flow.features == prior.whitening.features == 2
    z = torch.randn(50, 4, generator=torch.Generator().manual_seed(2))
    moved = z.clone()
    moved[:, [1, 3]] = 0.0
    with torch.no_grad():
        difference = prior.log_prob(z) - prior.log_prob(moved)
    torch.testing.assert_close(difference, -0.5 * z[:, [1, 3]].square().sum(-1), rtol=1e-5, atol=1e-5)
    draws = prior.sample(4000, generator=torch.Generator().manual_seed(3))
    assert draws[:, 1].std().item() == pytest.approx(1.0, abs=5 / math.sqrt(8000))
    assert prior.inverse_error(z) < 1e-4
    config = json.loads(json.dumps(prior.config()))
    again = priors.create(prior.name, **_arguments(config))
    again.load_state_dict(prior.state_dict())
    assert again.active == (0, 2)
    with torch.no_grad():
        assert torch.equal(again.log_prob(z), prior.log_prob(z))


def test_leaving_units_out_costs_no_more_than_said():
    """Units that are a little off N(0, 1) are kept once they could cost 0.01 nats together."""
    mean, std = codes(3)
    mean[:, 1], std[:, 1] = 0.0, 1.05  # 0.0025 nats
    mean[:, 2], std[:, 2] = 0.2, 1.0  # 0.02 nats
    assert small("realnvp", 3).fit(mean, std=std, max_steps=2).active == (0, 2)
    everything = torch.zeros(100, 3)
    assert small("realnvp", 3).fit(everything, std=torch.ones(100, 3), max_steps=2).active is None


def test_refitting_chooses_again():
    prior = small("nsf", 4)
    mean, std = codes(4, collapsed=(1,))
    prior.fit(mean, std=std, max_steps=2)
    assert prior.active == (0, 2, 3)
    mean, std = codes(4)
    prior.fit(mean, std=std, max_steps=2)
    assert prior.active is None
    assert prior.sample(3).shape == (3, 4)


def test_bad_units_are_named():
    for active in [(), (2, 1), (0, 7), (0, 0)]:
        with pytest.raises(InputError, match="active must be rising"):
            small("realnvp", 3, active=active)


def test_a_fit_says_what_lies_outside_the_box():
    mean, std = codes(2)
    with pytest.warns(OutOfBoxWarning, match="outside the splines' box"):
        small("nsf", 2, box=1.0).fit(mean, std=std, max_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LatentfitWarning)
        prior = small("nsf", 2).fit(mean, std=std, max_steps=2)
    assert prior.outside_box(torch.full((10, 2), 100.0)) == 1


def test_a_fit_says_where_the_inverse_fails():
    prior = small("realnvp", 2)
    rows = torch.zeros(50, 2)
    prior.round_trip = lambda z, context=None: z + 0.01  # what a flow that lost its digits would do
    with pytest.warns(ReliabilityWarning, match="inverts its own samples to 0.02"):
        prior.fit(rows, std=torch.ones(50, 2) * 0.5, max_steps=2)


def test_folders_of_the_first_version_still_load(tmp_path):
    """They do not name the active units."""
    old = small("realnvp", 3)
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.add_(0.1)
    z = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    folder = saving.save_component(old, tmp_path / "prior")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["args"]["active"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    again = priors.load(folder)
    with torch.no_grad():
        assert torch.equal(again.log_prob(z), old.log_prob(z))
    assert again.config() == old.config()
    assert set(again.state_dict()) >= {"flow.layers.1.lower", "flow.layers.1.order", "whitening.weight"}


def test_a_flow_by_dimension():
    assert priors.create("flow", latent_dim=8).name == flow_for(8) == "nsf"
    assert priors.create("flow", latent_dim=(4, 8, 8), transforms=1, hidden_features=8).name == "realnvp"
    assert priors.create("rqs", latent_dim=2, transforms=1, hidden_features=8).name == "nsf"


@pytest.mark.parametrize("name", FLOWS)
def test_log_prob_is_one_graph(name):
    prior = small(name, 4)
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*should not be instantiated", DeprecationWarning)  # torch's own tracing
        found = torch.compile(prior.log_prob, backend="eager", fullgraph=True)(z)
    torch.testing.assert_close(found, prior.log_prob(z))


def zuko_flows(context):
    import zuko

    small = {"transforms": 1, "hidden_features": (8,)}
    return {
        "GMM": lambda: zuko.flows.GMM(2, context, components=3),
        "NICE": lambda: zuko.flows.NICE(2, context, **small),
        "RealNVP": lambda: zuko.flows.RealNVP(2, context, **small),
        "MAF": lambda: zuko.flows.MAF(2, context, **small),
        "NSF": lambda: zuko.flows.NSF(2, context, **small),
        "NCSF": lambda: zuko.flows.NCSF(2, context, **small),
        "SOSPF": lambda: zuko.flows.SOSPF(2, context, **small),
        "NAF": lambda: zuko.flows.NAF(2, context, transforms=1, network={"hidden_features": (8,)}),
        "UNAF": lambda: zuko.flows.UNAF(2, context, transforms=1, network={"hidden_features": (8,)}),
        "CNF": lambda: zuko.flows.CNF(2, context, hidden_features=(8,)),
        "GF": lambda: zuko.flows.GF(2, context, transforms=1, components=2, hidden_features=(8,)),
        "BPF": lambda: zuko.flows.BPF(2, context, degree=4, **small),
    }


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("name", sorted(zuko_flows(0)))
def test_every_family_of_zuko_is_a_prior(name, context):
    torch.manual_seed(0)
    prior = as_prior(zuko_flows(context)[name](), latent_dim=2, context_features=context)
    given = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) if context else None
    z = prior.sample(4, given, generator=torch.Generator().manual_seed(1))
    assert z.shape == (4, 2)
    assert torch.equal(z, prior.sample(4, given, generator=torch.Generator().manual_seed(1)))
    log_prob = prior.log_prob(z, given)
    assert log_prob.shape == (4,)
    assert torch.isfinite(log_prob).all()
    log_prob.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in prior.parameters())
    if prior.invertible:
        torch.testing.assert_close(prior.round_trip(z, given), z, rtol=0, atol=1e-3)
    else:
        assert name == "GMM"
        with pytest.raises(CapabilityError, match="no transform with an inverse"):
            prior.round_trip(z, given)


def _arguments(config):
    from latentfit.registry import registry

    return {key: registry.from_json(value) for key, value in config["args"].items()}


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_a_flow_can_start_at_a_mixture(monkeypatch, name, covariance):
    """Before its first step it is that mixture, whatever the whitening and the permutations do."""
    monkeypatch.setattr(flow_module, "fit_by_gradient", lambda *args, **kwargs: None)
    mean, std = codes(5)
    mean[:, 1] = 300.0 + 20.0 * mean[:, 0] + mean[:, 1]
    mixture = priors.create("mixture", latent_dim=5, n_components=4, covariance=covariance).fit(mean, std=std)
    prior = small(name, 5, base=priors.create("mixture", latent_dim=5, n_components=4))
    prior.fit_rows(CodeRows(mean, std), FitOptions(), start=(mixture, CodeRows(mean, std)))
    z = mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(prior.log_prob(z), mixture.log_prob(z), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(
        prior.double().log_prob(z.double()), mixture.double().log_prob(z.double()), atol=1e-4, rtol=1e-5
    )


def test_a_start_keeps_the_law_of_the_active_units(monkeypatch):
    monkeypatch.setattr(flow_module, "fit_by_gradient", lambda *args, **kwargs: None)
    mean, std = codes(4, collapsed=(1,))
    mixture = priors.create("mixture", latent_dim=4, n_components=1).fit(mean, std=std)
    prior = small("realnvp", 4, base=priors.create("mixture", latent_dim=4, n_components=1))
    prior.fit_rows(CodeRows(mean, std), FitOptions(), start=(mixture, CodeRows(mean, std)))
    assert prior.active == (0, 2, 3)
    z = prior.double().sample(200_000, generator=torch.Generator().manual_seed(0))[:, [0, 2, 3]]
    own = mixture.double().sample(200_000, generator=torch.Generator().manual_seed(1))[:, [0, 2, 3]]
    torch.testing.assert_close(z.mean(0), own.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(z.T.cov(), own.T.cov(), atol=0.03, rtol=0)


def test_a_start_that_cannot_be_is_named():
    mean, std = codes(2)
    mixture = priors.create("mixture", latent_dim=2, n_components=3).fit(mean, std=std, max_steps=2)
    with pytest.raises(InputError, match="the base must be a mixture"):
        small("realnvp", 2).fit_rows(CodeRows(mean, std), FitOptions(), start=(mixture, CodeRows(mean, std)))
    base = priors.create("mixture", latent_dim=2, n_components=2)
    with pytest.raises(InputError, match="A mixture of 3 components cannot start one of 2"):
        small("realnvp", 2, base=base).fit_rows(CodeRows(mean, std), FitOptions(), start=(mixture, CodeRows(mean, std)))


def test_a_base_counts_rows_not_draws():
    """Several draws of a row on both sides of the base's own held-out split would let it learn the rows by heart."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(60, 2, generator=generator)
    base = priors.create("hierarchical", latent_dim=2)
    small("realnvp", 2, base=base).fit(mean, std=0.1 * torch.ones(60, 2), max_steps=5)
    assert int(base.n_rows) == 54  # and one row in ten held out
    many = priors.create("mixture", latent_dim=2, n_components="auto")
    small("realnvp", 2, base=many).fit(mean, std=0.01 * torch.ones(60, 2), max_steps=5)
    assert many.n_components <= 3


def test_a_base_with_a_distribution_over_its_parameters_is_trained_as_one():
    """It knows the number of rows, and the ELBO has its own training density and its KL."""
    base = priors.create("hierarchical", latent_dim=2)
    prior = small("realnvp", 2, base=base)
    prior.bind(None, Batch(torch.zeros(300, 5)))
    assert int(base.n_rows) == 300
    z = torch.randn(1, 20, 2, generator=torch.Generator().manual_seed(0))
    u, log_det = prior._to_base(z, None)
    torch.testing.assert_close(prior.training_log_prob(z), base.training_log_prob(u) + log_det)
    assert (prior.training_log_prob(z) < prior.log_prob(z)).all()


def test_a_flow_over_a_flow_is_fitted():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(300, 2, generator=generator)
    prior = small("realnvp", 2, base=small("realnvp", 2)).fit(mean, std=0.1 * torch.ones(300, 2), max_steps=20)
    assert torch.isfinite(prior.log_prob(mean)).all()


def test_a_temperature_is_of_a_normal_base():
    prior = small("realnvp", 2, base=priors.create("mixture", latent_dim=2, n_components=2))
    with pytest.raises(CapabilityError, match="a temperature is for a normal base"):
        prior.sample(3, temperature=0.5)
