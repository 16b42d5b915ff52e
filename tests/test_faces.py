"""The library's other faces: a module of one's own parts, `latentfit.fit`, and a loop of one's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import latentfit as lf
from latentfit.errors import InputError


class TutorialEncoder(nn.Module):
    """(mean, log-variance), as most tutorials have it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.logvar = nn.Linear(6, 8), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x).relu()
        return self.mean(h), self.logvar(h)


def parts(seed: int = 0) -> dict[str, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {
            "encoder": TutorialEncoder(),
            "decoder": nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 6)),
        }


@pytest.fixture(scope="module")
def X() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    cluster = torch.randint(0, 2, (200, 1), generator=generator).float()
    return ((cluster - 0.5).abs() > torch.rand((200, 6), generator=generator) - 0.4 * cluster).float()


@pytest.fixture(params=["standard", "mixture", "realnvp"])
def module(request) -> lf.VAEModule:
    prior = lf.priors.create(request.param, latent_dim=2)
    return lf.VAEModule(**parts(), prior=prior, likelihood="bernoulli")


def test_own_parts_train_save_and_load(module, X, tmp_path) -> None:
    start = copy.deepcopy(module.state_dict())
    objective = lf.ELBO(kl_weight=lf.schedules.linear(steps=50))
    before = lf.ELBO()(module, X)["loss"].item()
    result = lf.fit(module, X, objective=objective, max_steps=100, learning_rate=1e-2)
    assert result.steps == 100
    assert lf.ELBO()(module, X)["loss"].item() < before
    moved = [name for name, p in module.named_parameters() if not torch.equal(p, start[name])]
    assert {name.split(".")[0] for name in moved} >= {"encoder", "decoder"}

    folder = lf.save(module, tmp_path / "mine")
    back = lf.load(folder, **parts(seed=1))
    assert torch.equal(back.reconstruct(X), module.reconstruct(X))
    draws = [m.sample(9, generator=torch.Generator().manual_seed(0)) for m in (back, module)]
    assert torch.equal(*draws)
    elbos = [lf.ELBO()(m, X, generator=torch.Generator().manual_seed(0))["elbo"] for m in (back, module)]
    assert torch.equal(*elbos)


def test_a_loop_of_ones_own(module, X) -> None:
    objective = lf.ELBO(kl_weight=lf.schedules.linear(steps=20))
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module.prior.bind(module, lf.Batch(X))
        for step in range(60):
            optimiser.zero_grad()
            terms = objective(module, lf.Batch(X) if step % 2 else X, step)
            terms["loss"].backward()
            optimiser.step()
            losses.append(float(-terms["elbo"].detach()))
            assert float(terms["kl_weight"]) == pytest.approx(min(1.0, step / 20))
    assert all(p.grad is not None for p in module.parameters())
    assert sum(losses[-10:]) < sum(losses[:10])


def test_a_warm_up_longer_than_the_run_is_refused_with_the_arithmetic(module, X) -> None:
    with pytest.raises(InputError, match=r"KL warm-up \(500 steps\) is longer than the run: 100 steps"):
        lf.fit(module, X, objective=lf.ELBO(kl_weight=lf.schedules.linear(steps=500)), max_steps=100)


def test_an_encoder_of_the_wrong_width_is_named(X) -> None:
    module = lf.VAEModule(nn.Linear(6, 3), parts()["decoder"], latent_dim=2)
    with pytest.raises(InputError, match=r"returned \(200, 3\).*needs \(200, 4\)"):
        module.encode(X)


def test_a_setting_that_fit_does_not_know_is_named(module, X) -> None:
    with pytest.raises(InputError, match="takes no setting 'steps'"):
        lf.fit(module, X, steps=100)
