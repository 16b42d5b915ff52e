"""The flow posteriors against a change of variables by brute force, and what is special to each flow."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from latentfit.errors import CapabilityError, InputError
from latentfit.flows.planar import Planar
from latentfit.flows.sylvester import Sylvester
from latentfit.posteriors.iaf import GatedAutoregressive
from latentfit.registry import registry

FLOWS = {
    "planar": ("planar", {}),
    "sylvester": ("sylvester", {}),
    "householder": ("sylvester", {"kind": "householder"}),
    "iaf": ("iaf", {"hidden_features": (16,)}),
    "realnvp_posterior": ("realnvp_posterior", {"hidden_features": (16,)}),
}


def make(name, dim, scale=0.3):
    kind, arguments = FLOWS[name]
    posterior = registry.create("posterior", kind, latent_dim=dim, context_features=4, **arguments).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in posterior.parameters():
            weight.add_(scale * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return posterior, torch.randn(3, posterior.n_parameters, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("name", FLOWS)
def test_log_q_is_the_change_of_variables(name, dim):
    """log q(z) = log N(u) - log |det dz/du|, the Jacobian by autograd, to 1e-10 in float64."""
    posterior, parameters = make(name, dim)
    for row in parameters:
        mean, std = row[:dim], (0.5 * row[dim : 2 * dim]).exp()
        q = posterior(row[None])
        z, log_q = q.rsample_with_log_prob(1, torch.Generator().manual_seed(2))
        noise = torch.randn(1, 1, dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)[0, 0]

        def draw(u, features=row[2 * dim :]):
            return posterior.flow(u[None], features[None])[0][0]

        u = mean + std * noise
        _, log_det = torch.linalg.slogdet(torch.autograd.functional.jacobian(draw, u))
        torch.testing.assert_close(z[0, 0], draw(u), rtol=0, atol=1e-12)
        wanted = Normal(mean, std).log_prob(u).sum() - log_det
        torch.testing.assert_close(log_q[0, 0], wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", FLOWS)
def test_the_log_scale_is_bounded(name):
    """Whatever was learned and wherever u is: |log |det|| <= D max_log_scale, and all is finite in float32."""
    posterior, parameters = make(name, 3, scale=30.0)
    posterior, features = posterior.float(), 100 * parameters[:, 6:].float()
    for scale in (1.0, 1e6):
        u = scale * torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(3))
        u.requires_grad_()
        z, log_det = posterior.flow(u, features)
        (z.sum() + log_det.sum()).backward()
        assert (log_det.abs() <= 3 * 12.0 + 1e-3).all()
        assert all(torch.isfinite(t).all() for t in (z, log_det, u.grad))


def test_a_frame_is_orthonormal_and_any_frame():
    flow = Sylvester(5, columns=3, reflections=3)
    axes = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(4))
    frame = flow._frame(axes)  # (2, 4, 5, 3)
    torch.testing.assert_close(frame.mT @ frame, torch.eye(3).expand(2, 4, 3, 3), rtol=0, atol=1e-6)
    # column by column, a - b reflects a onto b: any orthonormal frame is reached
    wanted = torch.linalg.qr(torch.randn(5, 3, generator=torch.Generator().manual_seed(5))).Q
    rest, found = wanted, []
    for i in range(3):
        axis = torch.eye(5)[i] - rest[:, i]
        found.append(axis)
        rest = rest - 2 * axis[:, None] * (axis @ rest) / axis.square().sum()
    torch.testing.assert_close(flow._frame(torch.stack(found)), wanted, rtol=0, atol=1e-5)


def test_iaf_is_the_papers_gate_over_its_start():
    layer = GatedAutoregressive(3, (8,)).double()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    z = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    u, log_det = layer(z)
    s, m = layer.conditioner(z).unbind(-2)
    gate, start = torch.sigmoid(4 * torch.tanh(s / 4) + 2), torch.sigmoid(torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(u, (gate * z + (1 - gate) * m) / start, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_det, (gate / start).log().sum(-1), rtol=1e-12, atol=1e-12)
    back, same = layer.inverse(u)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-10)
    torch.testing.assert_close(same, log_det, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [Planar, Sylvester])
def test_no_inverse_no_context(kind):
    flow = kind(8, context_features=2)
    with pytest.raises(CapabilityError, match="only its own draws"):
        flow.inverse(torch.zeros(1, 8), torch.zeros(1, 2))
    with pytest.raises(InputError, match="needs a context"):
        flow(torch.zeros(1, 8))
    with pytest.raises(InputError, match="transforms"):
        kind(8, transforms=0)
