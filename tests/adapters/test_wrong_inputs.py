"""What strangers get wrong: each mistake becomes one line that names it and what to do."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import latentfit as lf
from latentfit.adapters import adapt, subject
from latentfit.errors import DataWarning, InputError


class Linear(nn.Module):
    """A VAE that reconstructs: z is x, and `give` is what encode returns of (mean, log-variance)."""

    def __init__(self, give=lambda mean, logvar: (mean, logvar)):
        super().__init__()
        self.map, self.give = nn.Linear(3, 3), give
        with torch.no_grad():
            self.map.weight.copy_(torch.eye(3))
            self.map.bias.zero_()

    def encode(self, x):
        mean = self.map(x)
        return self.give(mean, torch.full_like(mean, -4.0) - 0.01 * mean)

    def decode(self, z):
        return self.map(z)


def rows(n: int = 200) -> torch.Tensor:
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(0))


def test_a_standard_deviation_called_a_log_variance_is_asked_about() -> None:
    wrong = Linear(lambda mean, logvar: (mean, (0.5 * logvar).exp()))
    with pytest.warns(DataWarning, match="wider than N\\(0, I\\). Is it a standard deviation"):
        adapt(wrong, example=rows(), spread="logvar")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt(wrong, example=rows(), spread="std")
        adapt(Linear(), example=rows(), spread="logvar")


def test_the_spread_before_the_mean_is_recognised_by_what_decodes() -> None:
    asked, x = "does encode(x) give the spread first?", rows() - 0.5
    with pytest.raises(InputError, match=r"different scales.*does encode\(x\) give the spread first\?"):
        adapt(Linear(lambda mean, logvar: (logvar, mean)), example=x, likelihood="normal")
    near = Linear(lambda mean, logvar: (-mean, mean))
    assert asked in " ".join(str(adapt(near, example=x, likelihood="normal")).split())
    assert asked not in " ".join(str(adapt(Linear(), example=x, likelihood="normal")).split())


def test_a_reconstruction_before_the_moments_is_told_how_to_be_left_out() -> None:
    wrong = Linear(lambda mean, logvar: (torch.zeros(len(mean), 7), mean, logvar))
    with pytest.raises(InputError, match=r"they must agree. Pick them: adapt\(..., encode=lambda x: model.encode"):
        adapt(wrong, example=rows() - 0.5)


def test_rows_on_another_scale_are_noticed_when_they_are_given() -> None:
    under = subject(adapt(Linear(), example=rows()))
    with pytest.warns(DataWarning, match=r"X lies in \[.*25\d\], the rows that the model was adapted on in \[.*\]"):
        under.rows(255 * rows(), "X")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        under.rows(3 * rows() - 1, "X")  # a heavy tail is not another scale


@pytest.mark.parametrize("given", ["X", "X_train"])
def test_rows_the_likelihood_cannot_score_are_refused_when_they_are_given(given) -> None:
    binary = (rows() > rows().mean()).float()
    model = adapt(Linear(), example=binary, likelihood="bernoulli")
    with pytest.raises(InputError, match=rf"^{given}: likelihood 'bernoulli' needs 0 or 1; column 1 reaches 16\.0"):
        lf.diagnose(model, 16 * binary) if given == "X" else lf.diagnose(model, binary, X_train=16 * binary)
    with pytest.raises(InputError, match=r"^X: likelihood 'bernoulli' needs 0 or 1"):
        lf.retrofit(model, 16 * binary)


@pytest.mark.parametrize("marks", [{"labels": np.zeros(200)}, {"groups": np.zeros(200)}])
def test_labels_of_a_loader_that_shuffles_are_refused(marks) -> None:
    model = adapt(Linear(), example=rows())
    with pytest.raises(InputError, match=r"a DataLoader that shuffles, so (labels|groups) cannot belong to its rows"):
        lf.diagnose(model, DataLoader(TensorDataset(rows()), batch_size=50, shuffle=True), **marks)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Linear, "Linear is a class; give the trained model"),
        (Linear().state_dict(), "a state_dict holds weights, not their code"),
        (torch.optim.SGD(Linear().parameters()), "SGD has neither encode nor encoder"),
    ],
)
def test_what_is_no_model_is_named(model, message: str) -> None:
    with pytest.raises(InputError, match=message):
        adapt(model, example=rows())


@pytest.mark.parametrize("verb", [lf.diagnose, lf.retrofit])
def test_a_model_without_rows_is_told_which_argument_takes_them(verb) -> None:
    with pytest.raises(InputError, match="X of diagnose, X_train of retrofit"):
        verb(Linear())


def test_a_spread_of_zero_asks_for_the_scale_first() -> None:
    with pytest.raises(InputError, match=r"standard deviation of 0\. Is the example scaled as in training"):
        adapt(Linear(lambda mean, logvar: (mean, logvar * 100)), example=rows())
