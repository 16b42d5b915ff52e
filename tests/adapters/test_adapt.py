"""`adapt`: every form a foreign VAE comes in, what is said of it, and what is refused."""

from __future__ import annotations

import copy
import functools
import importlib
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, Laplace, MultivariateNormal, Normal
from torch.utils.data import DataLoader, TensorDataset

import latentfit as lf
from latentfit.adapters import Loss, adapt
from latentfit.adapters.encoding import understand
from latentfit.errors import CapabilityError, DataWarning, InputError
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.rows import frozen

N, D, K = 24, 6, 2


class Net(nn.Module):
    """A VAE with BatchNorm and Dropout, whose encode and decode return what they are told to."""

    def __init__(self, give=lambda mean, logvar: (mean, logvar), wrap=lambda x: x, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Tanh())
        self.mean, self.logvar = nn.Linear(8, K), nn.Linear(8, K)
        self.out = nn.Sequential(nn.Linear(K, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, D))
        self.give, self.wrap = give, wrap
        self.to(dtype)

    def moments(self, x):
        h = self.body(x)
        return self.mean(h), self.logvar(h) - 1

    def encode(self, x):
        return self.give(*self.moments(x))

    def decode(self, z):
        return self.wrap(self.out(z))


def rows(n: int = N) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(1))


def truth(net: Net, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The net's own mean and standard deviation, in eval mode."""
    with frozen(net), torch.no_grad():
        mean, logvar = net.moments(x)
    return mean, (0.5 * logvar).exp()


def std_of(logvar):
    return (0.5 * logvar).exp()


Named = namedtuple("Named", ["mu", "sigma"])
Triple = namedtuple("Triple", ["z", "loc", "var"])

#: what encode returns, and the spread that must be said where it cannot be told
ENCODERS = {
    "tuple": (lambda m, v: (m, v), "auto"),
    "list": (lambda m, v: [m, v], "auto"),
    "std": (lambda m, v: (m, std_of(v)), "std"),
    "var": (lambda m, v: (m, v.exp()), "var"),
    "logvar, positive": (lambda m, v: (m, v), "logvar"),
    "three": (lambda m, v: (m, v, torch.zeros(len(m), 7)), "auto"),
    "draw first": (lambda m, v: (m + std_of(v) * torch.randn_like(m), m, v), "auto"),
    "draw that is the mean": (lambda m, v: (m, m, v), "auto"),
    "draw last": (lambda m, v: (m, v, m + std_of(v) * torch.randn_like(m)), "auto"),
    "named tuple": (lambda m, v: Named(m, std_of(v)), "auto"),
    "named triple": (lambda m, v: Triple(torch.randn_like(m), m, v.exp()), "auto"),
    "mapping": (lambda m, v: {"mu": m, "log_var": v, "h": None}, "auto"),
    "object": (lambda m, v: SimpleNamespace(loc=m, scale=std_of(v)), "auto"),
    "Normal": (lambda m, v: Normal(m, std_of(v)), "auto"),
    "Independent": (lambda m, v: Independent(Normal(m, std_of(v)), 1), "auto"),
    "in a tuple": (lambda m, v: (torch.randn_like(m), Normal(m, std_of(v))), "auto"),
    "latent_dist": (lambda m, v: SimpleNamespace(latent_dist=Normal(m, std_of(v))), "auto"),
    "in a tuple, latent_dist": (lambda m, v: (SimpleNamespace(latent_dist=Normal(m, std_of(v))),), "auto"),
    "MultivariateNormal": (lambda m, v: MultivariateNormal(m, scale_tril=torch.diag_embed(std_of(v))), "auto"),
    "shared spread": (lambda m, v: (m, torch.full((1, K), -1.5)), "auto"),
}


@pytest.mark.parametrize("form", ENCODERS)
def test_every_form_of_encoder(form: str, gain_is_real) -> None:
    give, spread = ENCODERS[form]
    net, x = Net(give).train(), rows()
    net.body[2].eval()  # a flag of its own, to be kept
    state = torch.get_rng_state()
    adapted = adapt(net, example=x, likelihood="normal", spread=spread)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert not net.body[2].training
    codes = encode_rows(adapted, x)
    mean, std = truth(net, x)
    if form == "shared spread":
        std = torch.full_like(mean, -1.5).mul(0.5).exp()
    assert torch.equal(codes.mean, mean)
    torch.testing.assert_close(codes.std, std, rtol=3e-7, atol=0)
    assert adapted.event_shape == (K,)
    gain_is_real(adapted, x)
    assert net.training
    assert not net.body[2].training


DECODERS = {
    "tensor": lambda x: x,
    "tuple": lambda x: (x, None),
    "sample": lambda x: SimpleNamespace(sample=x),
    "Normal": lambda x: Normal(x, torch.full_like(x, 0.7)),
    "Independent": lambda x: Independent(Normal(x, 0.7), 1),
}


@pytest.mark.parametrize("form", DECODERS)
def test_every_form_of_decoder(form: str, gain_is_real) -> None:
    net, x = Net(wrap=DECODERS[form]), rows()
    distribution = "N" in form or "I" in form
    adapted = adapt(
        net, example=x, likelihood=None if distribution else "normal", scale="auto" if distribution else 0.7
    )
    z = torch.randn(3, N, K)
    with frozen(net), torch.no_grad():
        expected = Normal(net.out(z.view(-1, K)).view(3, N, D), 0.7).log_prob(x).sum(-1)
        torch.testing.assert_close(adapted.log_likelihood(x, z), expected)
    gain_is_real(adapted, x)


class LightningLike(Net):
    """What a LightningModule adds: attributes, hooks, and a training_step that must not be called."""

    def __init__(self) -> None:
        super().__init__()
        self.trainer, self.device_stubs = None, {}

    @property
    def device(self):
        return next(self.parameters()).device

    def training_step(self, batch, index):
        raise AssertionError

    def log(self, *args):
        raise AssertionError


class Parts(nn.Module):
    """encoder and decoder as attributes, no methods."""

    def __init__(self) -> None:
        super().__init__()
        net = Net()
        self.encoder, self.decoder = Heads(net), net.out


class Heads(nn.Module):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = nn.ModuleList([net.body, net.mean, net.logvar])

    def forward(self, x):
        body, mean, logvar = self.net
        h = body(x)
        return mean(h), logvar(h) - 1


def pairs(net: Net) -> dict:
    def encode(x):
        return net.encode(x)

    return {
        "bound methods": {"encode": net.encode, "decode": net.decode},
        "functions": {"encode": encode, "decode": lambda z: net.decode(z)},
        "partial": {"encode": functools.partial(Net.encode, net), "decode": net.out},
        "model and one": {"model": net, "decode": lambda z: net.out(z)},
        "wrapped": {"model": nn.DataParallel(net)},
        "an object": {"model": SimpleNamespace(encode=net.encode, decode=net.decode, net=net)},
    }


@pytest.mark.parametrize("form", pairs(Net()))
def test_callables(form: str, gain_is_real) -> None:
    net, x = Net().train(), rows()
    adapted = adapt(**pairs(net)[form], example=x, likelihood="normal")
    assert adapted.weights_sha256()
    codes, (mean, _) = encode_rows(adapted, x), truth(net, x)
    assert torch.equal(codes.mean, mean)
    gain_is_real(adapted, x)
    assert all(part.training for part in net.modules())


@pytest.mark.parametrize("kind", [LightningLike, Parts])
def test_other_modules(kind: type[nn.Module], gain_is_real) -> None:
    adapted = adapt(kind(), example=rows(), likelihood="normal")
    assert adapted.model_name == kind.__name__
    gain_is_real(adapted, rows())


def test_functions_without_modules(gain_is_real) -> None:
    a = torch.randn(D, K, generator=torch.Generator().manual_seed(0))
    adapted = adapt(
        encode=lambda x: (x @ a, -torch.ones(len(x), K)), decode=lambda z: z @ a.T, example=rows(), likelihood="normal"
    )
    assert adapted.weights_sha256() == ""
    assert "put the model in eval mode yourself" in " ".join(str(adapted).split())
    gain_is_real(adapted, rows())


def test_a_copy_calls_its_own_weights() -> None:
    net = Net()
    adapted = adapt(net, example=rows(), likelihood="normal")
    copied = copy.deepcopy(adapted)
    with torch.no_grad():
        for p in copied.parameters():
            p.add_(0.1)
    assert not torch.equal(encode_rows(copied, rows()).mean, encode_rows(adapted, rows()).mean)
    assert copied.weights_sha256() != adapted.weights_sha256()
    assert torch.equal(encode_rows(adapted, rows()).mean, truth(net, rows())[0])
    with pytest.raises(CapabilityError, match="a plain function cannot be copied"):
        copy.deepcopy(adapt(encode=lambda x: net.encode(x), decode=net.decode, example=rows(), likelihood="normal"))


def test_train_means_train() -> None:
    """A copy that is fine-tuned trains in train mode; without being told so it works in eval mode."""
    adapted = adapt(Net().train(), example=rows(), likelihood="normal")
    assert torch.equal(adapted.encode(rows()).moments()[0], adapted.encode(rows()).moments()[0])
    adapted.train()
    assert not torch.equal(adapted.encode(rows()).moments()[0], adapted.encode(rows()).moments()[0])


def test_spatial_latents(gain_is_real) -> None:
    class Conv(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.down, self.up = nn.Conv2d(3, 4, 4, 4), nn.ConvTranspose2d(2, 3, 4, 4)

        def encode(self, x):
            return self.down(x).chunk(2, dim=1)

        def decode(self, z):
            return self.up(z)

    x = torch.randn(N, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    adapted = adapt(Conv(), example=x, likelihood="normal", spread="logvar")
    assert adapted.event_shape == (2, 2, 2)
    assert adapted.sample(4).shape == (4, 3, 8, 8)
    gain_is_real(adapted, x)
    one_tensor = adapt(encode=Conv().down, example=x, latent_shape=(2, 2, 2))
    assert torch.equal(encode_rows(one_tensor, x).mean, encode_rows(adapted, x).mean)
    assert torch.equal(encode_rows(one_tensor, x).std, encode_rows(adapted, x).std)


def test_images_that_the_model_flattens() -> None:
    net = Net()
    x = rows().reshape(N, 1, 2, 3)
    adapted = adapt(encode=lambda x: net.encode(x.flatten(1)), decode=net.decode, example=x, likelihood="normal")
    assert adapted.decode(torch.zeros(5, N, K)).shape == (5, N, 1, 2, 3)
    assert adapted.log_likelihood(x, torch.zeros(5, N, K)).shape == (5, N)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_models_own_dtype(dtype: torch.dtype) -> None:
    adapted = adapt(Net(dtype=dtype), example=rows().double(), likelihood="normal")
    codes = encode_rows(adapted, rows())
    assert codes.mean.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(lf.evaluation.elbo_terms(adapted, rows()).elbo.value * torch.ones(()))


def test_narrow_posteriors_are_not_clamped() -> None:
    """Latent image models reach log-variances of -30, beyond what our own encoders give."""
    net = Net(lambda m, v: (m, v - 27))
    adapted = adapt(net, example=rows(), likelihood="normal")
    std = encode_rows(adapted, rows()).std
    torch.testing.assert_close(std, truth(net, rows())[1] * torch.tensor(-13.5).exp(), rtol=1e-5, atol=0)


EXAMPLES = {
    "tensor": lambda x: x,
    "array": lambda x: x.numpy(),
    "x and y": lambda x: (x, torch.zeros(len(x))),
    "list batch": lambda x: [x, torch.zeros(len(x))],
    "Dataset": lambda x: TensorDataset(x, torch.zeros(len(x))),
    "DataLoader": lambda x: DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=N, shuffle=True),
    "Batch": lf.Batch,
    "nested list": lambda x: x.tolist(),
}


@pytest.mark.parametrize("form", EXAMPLES)
def test_every_form_of_example(form: str) -> None:
    state = torch.get_rng_state()
    example = EXAMPLES[form](rows())
    adapted = adapt(Net(), example=example, likelihood="normal")
    torch.set_rng_state(state)
    assert adapted.data_shape == (D,)
    assert adapted.sigma == pytest.approx(adapt(Net(), example=rows(), likelihood="normal").sigma, rel=0.05)


def test_a_shuffling_loader_leaves_the_random_state() -> None:
    loader = DataLoader(TensorDataset(rows()), batch_size=N, shuffle=True)
    net = Net()
    state = torch.get_rng_state()
    adapt(net, example=loader, likelihood="normal")
    assert torch.equal(torch.get_rng_state(), state)


# likelihoods, scale and loss


def test_sigma_is_the_error_at_draws_and_beta_follows() -> None:
    net, x = Net(), rows(256)
    adapted = adapt(net, example=x, likelihood="normal", kl_weight=0.01, reconstruction="mse_mean")
    mean, std = truth(net, x)
    with frozen(net), torch.no_grad():
        z = mean + std * torch.randn(400, *mean.shape, generator=torch.Generator().manual_seed(5))
        error = (net.out(z.view(-1, K)).view(400, -1, D) - x).square().mean().sqrt().item()
    assert adapted.sigma == pytest.approx(error, rel=0.01)
    assert adapted.loss == Loss(0.01, "mse_mean")
    assert adapted.loss.effective_beta(D, adapted.sigma) == pytest.approx(0.01 * D / (2 * adapted.sigma**2))
    assert f"beta = {adapted.loss.formula(D, adapted.sigma)}" in " ".join(str(adapted).split())


@pytest.mark.parametrize(
    ("reconstruction", "beta"),
    [("nll", 2), ("sum", 2), ("bce_sum", 2), ("bce_mean", 20), ("mse_sum", 4), ("mse_mean", 40)],
)
def test_effective_beta(reconstruction: str, beta: float) -> None:
    """By hand, at w = 2, D = 10, sigma = 1/2; and that the gradient of the loss is that of beta's ELBO."""
    loss = Loss(2.0, reconstruction)
    assert loss.effective_beta(10, 0.5) == pytest.approx(beta)
    assert loss.formula(10, 0.5).split(" = ")[-1] == str(beta)
    if reconstruction.startswith("mse"):
        output = torch.zeros(10, requires_grad=True)
        square = (output - 1).square()
        term = square.sum() if reconstruction == "mse_sum" else square.mean()
        (own,) = torch.autograd.grad(term, output)
        (nll,) = torch.autograd.grad(-Normal(output, 0.5).log_prob(torch.ones(10)).sum(), output)
        torch.testing.assert_close(own / 2.0, nll / beta)  # the same ratio of reconstruction to KL
        with pytest.raises(InputError, match="depends on sigma"):
            loss.effective_beta(10)


def binary(n: int = N) -> torch.Tensor:
    return (rows(n) > 0).float()


def test_probabilities_and_logits() -> None:
    as_logits = adapt(Net(), example=binary(), likelihood="bernoulli")
    as_probs = adapt(Net(wrap=torch.sigmoid), example=binary(), likelihood="bernoulli")
    z = torch.randn(2, N, K)
    with torch.no_grad():
        torch.testing.assert_close(
            as_probs.log_likelihood(binary(), z), as_logits.log_likelihood(binary(), z), rtol=1e-4, atol=1e-4
        )
    assert "read as logits: values outside [0, 1]" in " ".join(str(as_logits).split())
    assert "clamped to [1e-6, 1 - 1e-6]" in " ".join(str(as_probs).split())
    hard = adapt(
        encode=Net().encode,
        decode=lambda z: (z @ torch.ones(K, D) > 0).float(),
        example=binary(),
        likelihood="bernoulli",
    )
    assert torch.isfinite(hard.log_likelihood(binary(), z)).all()
    returned = adapt(Net(wrap=lambda x: Bernoulli(logits=x)), example=binary())
    torch.testing.assert_close(returned.log_likelihood(binary(), z), as_logits.log_likelihood(binary(), z))
    with pytest.raises(InputError, match=r"must lie in \[0, 1\], but decode"):
        adapt(Net(), example=binary(), likelihood="bernoulli", output="probs")


def test_grey_pixels_are_noticed() -> None:
    grey = adapt(Net(wrap=torch.sigmoid), example=torch.sigmoid(rows()), likelihood="bernoulli")
    assert grey.grey
    assert "Pixels are grey, Bernoulli needs 0/1" in " ".join(str(grey).split())
    assert not adapt(Net(wrap=torch.sigmoid), example=binary(), likelihood="bernoulli").grey


def test_without_a_likelihood_there_are_codes_only() -> None:
    adapted = adapt(Net(), example=rows())
    assert not adapted.can_score
    assert adapted.sample(3, observation_noise=False).shape == (3, D)
    for any_shape in (adapted, adapt(Net(wrap=lambda x: x[:, :2]), example=rows())):
        with pytest.raises(CapabilityError, match="Give it: adapt"):
            lf.evaluation.elbo_terms(any_shape, rows())
    with pytest.raises(CapabilityError, match="observation_noise=False"):
        adapted.sample(3)
    blind = adapt(encode=Net().encode, example=rows())
    assert encode_rows(blind, rows()).mean.shape == (N, K)
    with pytest.raises(CapabilityError, match="without a decoder"):
        blind.decode(torch.zeros(1, K))


def test_it_is_not_stored(tmp_path) -> None:
    with pytest.raises(CapabilityError, match="Save the prior"):
        lf.save(adapt(Net(), example=rows()), tmp_path / "run")


def test_what_is_printed() -> None:
    torch.manual_seed(0)
    lines = str(adapt(Net(), example=rows(), likelihood="normal", kl_weight=1.0, reconstruction="nll")).splitlines()
    assert lines[0] == "Adapted Net on cpu (eval mode while Latentfit works, restored after)"
    assert lines[1].startswith(" encode(x)  -> (mean, logvar), each (24, 2); output 2 read as log-variance")
    assert [line.split()[0] for line in lines if line[1] != " "][1:] == [
        "encode(x)", "decode(z)", "likelihood", "loss", "round",
    ]  # fmt: skip
    assert max(map(len, lines)) <= 80


# refusals


def net(give):
    return Net(give)


REFUSED = {
    "message 3": (lambda: {"model": net(lambda m, v: m)}, r"returned one tensor \(24, 2\); Latentfit needs a distr"),
    "message 3, in a tuple": (lambda: {"model": net(lambda m, v: (m,))}, r"returned one tensor \(24, 2\)"),
    "a draw and a number": (lambda: {"model": net(lambda m, v: (torch.randn_like(m), v))}, "1 change when it is call"),
    "random means": (lambda: {"model": net(lambda m, v: Normal(torch.randn_like(m), 1.0))}, "random even in eval mode"),
    "another distribution": (lambda: {"model": net(lambda m, v: Laplace(m, 1.0))}, "returned a Laplace; only Gaussian"),
    "something": (lambda: {"model": net(lambda m, v: "codes")}, "returned str; Latentfit needs"),
    "nothing named": (lambda: {"model": net(lambda m, v: {"a": m})}, "returned a; Latentfit needs"),
    "std that is logvar": (
        lambda: {"model": Net(), "spread": "std"},
        r"std has \d+% negative entries, so it is not a standard deviation; it looks like a log-variance",
    ),
    "var that is logvar": (lambda: {"model": Net(), "spread": "var"}, r"negative entries, so it is not a variance"),
    "spread of a distribution": (
        lambda: {"model": net(lambda m, v: MultivariateNormal(m, torch.eye(K))), "spread": "std"},
        "leave spread='auto'",
    ),
    "deterministic": (lambda: {"model": net(lambda m, v: (m, 0 * v)), "spread": "std"}, "standard deviation of 0"),
    "shapes": (lambda: {"model": net(lambda m, v: (m, v[:, :1].expand(-1, 3)))}, "they must agree"),
    "another latent_dim": (lambda: {"model": Net(), "latent_dim": 3}, r"means \(2,\), but you say that z is \(3,\)"),
    "no example": (lambda: {"model": Net(), "example": None}, "give rows as its training saw them"),
    "no encoder": (lambda: {"model": nn.Linear(2, 2)}, "Linear has neither encode nor encoder"),
    "nothing": (dict, "give a model, or encode="),
    "another example": (
        lambda: {"model": Net(), "example": torch.zeros(4, 1, 28, 28)},
        r"encode\(x\) failed on \(4, 1, 28, 28\): RuntimeError: .*as training saw it, perhaps flattened as x.flatten",
    ),
    "decoder's shape": (lambda: {"model": Net(wrap=lambda x: x[:, :4]), "likelihood": "normal"}, r"returned \(24, 4\)"),
    "decoder's kind": (lambda: {"model": Net(wrap=lambda x: "x"), "likelihood": "normal"}, "decode.* returned"),
    "likelihood without decoder": (lambda: {"encode": Net().encode, "likelihood": "normal"}, "needs a decoder"),
    "unknown likelihood": (lambda: {"model": Net(), "likelihood": "gauss"}, "Unknown likelihood 'gauss'"),
    "another likelihood": (
        lambda: {"model": Net(wrap=lambda x: Normal(x, 1.0)), "likelihood": "bernoulli", "example": binary()},
        "returned a distribution that is 'normal'",
    ),
    "unfit data": (lambda: {"model": Net(), "likelihood": "bernoulli"}, "needs 0 or 1"),
    "spread word": (lambda: {"model": Net(), "spread": "sd"}, "spread is one of auto, std, var, logvar"),
    "output word": (lambda: {"model": Net(), "output": "p"}, "output is one of auto, mean, probs, logits"),
    "probabilities": (
        lambda: {"model": Net(wrap=torch.sigmoid), "likelihood": "bernoulli", "output": "logits", "example": binary()},
        r"lies in \[0\.\d+, 0\.\d+\], as probabilities do; try output='probs'",
    ),
    "idle output": (lambda: {"model": Net(), "likelihood": "poisson", "output": "probs"}, "leave output"),
    "idle scale": (lambda: {"model": Net(), "likelihood": "bernoulli", "scale": 2.0, "example": binary()}, "scale= is"),
    "kl_weight alone": (lambda: {"model": Net(), "likelihood": "normal", "kl_weight": 1.0}, "needs reconstruction="),
    "another loss": (lambda: {"model": Net(), "likelihood": "normal", "reconstruction": "bce_sum"}, "goes with bernou"),
    "unknown loss": (lambda: {"model": Net(), "likelihood": "normal", "reconstruction": "l1"}, "is one of nll, sum"),
    "negative weight": (
        lambda: {"model": Net(), "likelihood": "normal", "reconstruction": "nll", "kl_weight": -1.0},
        "0 or more",
    ),
    "our own": (lambda: {"model": adapt(Net(), example=rows())}, "needs no adapting"),
    "two shapes": (lambda: {"model": Net(), "latent_dim": 2, "latent_shape": (2,)}, "not both"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        adapt(**{"example": rows(), **make()})


@pytest.mark.parametrize(
    ("wrap", "data", "advice"),
    [
        (torch.tanh, lambda x: (255 * torch.sigmoid(x)).round(), "x / 127.5 - 1"),
        (torch.sigmoid, lambda x: (255 * torch.sigmoid(x)).round(), "x / 255"),
        (lambda x: torch.tanh(x - 5), torch.sigmoid, "2 * x - 1"),
    ],
)
def test_different_scales_are_refused(wrap, data, advice: str) -> None:
    x = data(rows())
    with pytest.raises(InputError, match=r"different scales\. Give Latentfit the data as your training saw it") as seen:
        adapt(encode=lambda x: Net().encode(x / x.max()), decode=Net(wrap=wrap).decode, example=x, likelihood="normal")
    assert advice in str(seen.value)


def test_an_ambiguous_spread_is_warned_of() -> None:
    with pytest.warns(DataWarning, match="read as standard deviation: no negatives"):
        adapted = adapt(Net(lambda m, v: (m, std_of(v))), example=rows())
    assert "read as standard deviation: no negatives" in " ".join(str(adapted).split())


def test_a_log_variance_of_hundreds_is_no_log_variance() -> None:
    with pytest.raises(InputError, match="no finite standard deviation"):
        understand(
            (torch.zeros(2, 1), torch.full((2, 1), 900.0)),
            (torch.zeros(2, 1), torch.full((2, 1), 900.0)),
            "logvar",
            None,
        )


def test_numbers_do_not_depend_on_the_rest_of_the_batch() -> None:
    adapted = adapt(Net().train(), example=rows(), likelihood="normal")
    together = encode_rows(adapted, rows()).mean
    alone = torch.cat([encode_rows(adapted, rows()[i : i + 2]).mean for i in range(0, N, 2)])
    torch.testing.assert_close(together, alone)


def test_a_package_is_told_what_it_takes(monkeypatch) -> None:
    """Its adapter gets the options it has, an example only if it wants one, and nothing is silently ignored."""
    told = {}
    package = SimpleNamespace(
        matches=lambda model: model == "theirs", adapt_model=lambda model, *, scale="auto": told.update(scale=scale)
    )
    monkeypatch.setattr(importlib.import_module("latentfit.adapters.adapt"), "PACKAGES", (package,))
    adapt("theirs", example=rows(), scale=2.0)
    assert told == {"scale": 2.0}
    with pytest.raises(InputError, match="leave out likelihood, spread"):
        adapt("theirs", likelihood="normal", spread="std")
