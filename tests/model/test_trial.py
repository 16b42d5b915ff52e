"""Parts of a VAE that do not meet are refused, and a sigmoid too many is told of, before the first step."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import latentfit as lf
from latentfit.data.batch import Batch
from latentfit.errors import InputError, ReliabilityWarning
from latentfit.model.trial import try_out
from latentfit.training.rng import isolated_rng

X = (torch.rand(100, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float()
FAST = {"max_steps": 2, "batch_size": 20}


def vae(encoder=None, decoder=None, likelihood="bernoulli", latent=2) -> lf.VAEModule:
    return lf.VAEModule(
        encoder or nn.Linear(6, 2 * latent), decoder or nn.Linear(latent, 6), latent_dim=latent, likelihood=likelihood
    )


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        (nn.Linear(5, 4), None, r"encoder failed on rows \(64, 6\): mat1 and mat2.*take \(N, 6\) and return \(N, 4\)"),
        (nn.Linear(6, 3), None, r"encoder returned \(64, 3\).*needs \(64, 4\): change its last layer"),
        (None, nn.Linear(3, 6), r"decoder failed on codes \(64, 2\): mat1 and mat2.*take \(N, 2\): .*latent_dim"),
        (None, nn.Linear(2, 5), r"decoder returned \(64, 5\) for rows of \(64, 6\).*needs \(64, 6\): change"),
        (None, nn.Linear(2, 1), r"decoder returned \(64, 1\) for rows of \(64, 6\).*needs \(64, 6\): change"),
    ],
)
def test_another_width_is_one_line_with_both_shapes(encoder, decoder, message):
    with pytest.raises(InputError, match=message) as error:
        lf.fit(vae(encoder, decoder), X, **FAST)
    assert "\n" not in str(error.value)


def test_a_likelihood_of_several_parameters_says_how_many():
    with pytest.raises(InputError, match=r"likelihood 'zinb' needs \(64, 6, 2\)"):
        lf.fit(vae(likelihood="zinb"), X, **FAST)


def test_scoring_refuses_another_width_too():
    with pytest.raises(InputError, match=r"decoder returned \(100, 1\) for rows of \(100, 6\)"):
        vae(decoder=nn.Linear(2, 1)).log_likelihood(X, torch.zeros(3, 100, 2))


class Functional(nn.Module):
    """A sigmoid that no structure shows."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(2, 32), nn.Linear(32, 6)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.out(self.hidden(z).tanh()).sigmoid()


@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous_bernoulli", lf.likelihoods.create("binomial", n=3)])
@pytest.mark.parametrize(
    "decoder", [Functional, lambda: nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 6), nn.Sigmoid())]
)
def test_a_sigmoid_under_logits_is_told_of_once_at_the_call_of_fit(decoder, likelihood):
    with isolated_rng(0), warnings.catch_warnings(record=True, action="always") as told:
        lf.fit(vae(decoder=decoder(), likelihood=likelihood), X, **FAST)
    ours = [each for each in told if issubclass(each.category, ReliabilityWarning)]
    assert len(ours) == 1
    assert "reads logits" in str(ours[0].message)
    assert "Leave the decoder's sigmoid out" in str(ours[0].message)
    assert ours[0].filename == __file__


class HiddenSigmoid(nn.Module):
    """The last child is a sigmoid, the last function is not; all outputs lie in [0, 1] at first."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out, self.act = nn.Linear(2, 32), nn.Linear(32, 6), nn.Sigmoid()
        nn.init.constant_(self.out.bias, 0.5)
        nn.init.normal_(self.out.weight, std=1e-3)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.out(self.act(self.hidden(z)))


def small() -> nn.Module:
    """Logits that begin next to 0.5."""
    layer = nn.Linear(2, 6)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.constant_(layer.bias, 0.5)
    return layer


def constant() -> nn.Module:
    """Logits that begin at the data's mean, which z does not move yet."""
    layer = nn.Linear(2, 6)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(torch.linspace(0.1, 0.9, 6))
    return layer


class Bounded(nn.Module):
    """Refuses codes that training will never show it."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(2, 6)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        if z.abs().max() > 20:
            raise ValueError("too far")
        return self.out(z)


@pytest.mark.parametrize("decoder", [HiddenSigmoid, small, constant, Bounded])
def test_logits_that_begin_in_0_to_1_raise_no_alarm(decoder):
    with isolated_rng(0):
        lf.fit(vae(decoder=decoder()), X, **FAST)  # warnings are errors


def test_a_normal_may_end_in_a_sigmoid():
    with isolated_rng(0):
        lf.fit(vae(decoder=nn.Sequential(nn.Linear(2, 6), nn.Sigmoid()), likelihood="normal"), X, **FAST)


def test_the_trial_leaves_weights_modes_and_random_state():
    model = vae(decoder=nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6)))
    model.decoder[1].eval()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    try_out(model, Batch(X), None, 0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.decoder[1].training
