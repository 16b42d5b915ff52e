"""A Laplace approximation of a decoder's last layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from latentfit.bayes.layers import DENSE, layers_of, normal_like, with_weights
from latentfit.data.batch import Batch
from latentfit.data.rows import Rows
from latentfit.errors import CapabilityError, InputError
from latentfit.model.uncertain import Loss, UncertainNetwork
from latentfit.training import Recipe, isolated_rng
from latentfit.training.modes import in_eval

Covariance = Literal["full", "kron", "diagonal"]
#: numbers of a full covariance at most, 400 MB
MOST_NUMBERS = 100_000_000
#: draws of x per code where the likelihood's curvature is estimated
FISHER_DRAWS = 8


class Laplace(UncertainNetwork):
    r"""A Gaussian over the last dense layer, with the curvature of log p(x given z) at the trained weights.

        A_j = sum_n L_nj phi_n phi_n^T + I / s^2,   w_j ~ N(trained w_j, A_j^-1)   for each output j

    phi_n is what the layer reads, with a 1 for its bias, at one draw z ~ q(z given x_n) for each training row; L_nj is
    minus the second derivative of log p(x_n given z) in output j (generalised Gauss-Newton: exact in this layer). Where
    a likelihood has one parameter for each entry, as Bernoulli, binomial, Poisson and Normal do, outputs do not
    interact and the rows w_j are independent, so `covariance="full"` is the full covariance of the layer. Where it has
    several, L is the diagonal of the Fisher information, estimated with draws of x, and their interaction is ignored.

    `covariance`: "full" keeps A_j^-1 for every output; "kron" puts A_j = mean_n L_nj sum_n phi_n phi_n^T + I / s^2,
    exact where L is the same for all rows; "diagonal" keeps the diagonal of A_j.

    Args:
        network: a decoder whose last layer is dense.
        covariance: what is kept of A.
        prior_scale: s; None: the root mean square of the layer's weights.

    Raises:
        CapabilityError: a last layer that is not dense.
        InputError: a full covariance of more than 100 million numbers.

    Sources: MacKay 1992; Ritter, Botev and Barber 2018 (Kronecker factors); Daxberger et al. 2021 (arXiv 2106.14806).
    """

    scale: Tensor
    spectrum: Tensor
    curvature: Tensor
    precision: Tensor

    def __init__(self, network: nn.Module, covariance: Covariance = "kron", prior_scale: float | None = None) -> None:
        super().__init__(network)
        self.layer_name, layer = list(layers_of(network).items())[-1]
        if not isinstance(layer, DENSE):
            raise CapabilityError(
                f"Laplace: the last layer of {type(network).__name__} is {type(layer).__name__}; only a dense one has "
                "this approximation. Try swag."
            )
        if prior_scale is not None and not prior_scale > 0:
            raise InputError(f"Laplace: prior_scale must be positive, got {prior_scale!r}.")
        self.covariance, self.prior_scale = covariance, prior_scale
        n_out, n_in = layer.out_features, layer.in_features + (layer.bias is not None)
        if covariance == "full" and n_out * n_in**2 > MOST_NUMBERS:
            raise InputError(
                f"Laplace: a full covariance of {n_out} outputs of {n_in} weights has {n_out * n_in**2:,} numbers. "
                'Take covariance="kron".'
            )
        # the covariance's root: (J, H, H), (H, H) the eigenvectors, or (J, H) standard deviations
        shape = {"full": (n_out, n_in, n_in), "kron": (n_in, n_in), "diagonal": (n_out, n_in)}[covariance]
        self.register_buffer("scale", torch.zeros(shape))
        self.register_buffer("spectrum", torch.zeros(n_in))  # of sum phi phi^T, with "kron"
        self.register_buffer("curvature", torch.zeros(n_out))  # mean L, with "kron"
        self.register_buffer("precision", torch.ones(()))  # 1 / s^2

    def forward(self, *inputs: Tensor) -> Any:
        return self.network(*inputs)

    def draw(self, generator: Generator | None = None) -> nn.Module:
        layer = self._layer(self.network)
        mean = self._joined(layer)  # (J, H)
        noise = normal_like(mean, generator)
        if self.covariance == "full":
            moved = torch.einsum("jhk,jk->jh", self.scale, noise)
        elif self.covariance == "kron":
            variance = 1 / (self.curvature[:, None] * self.spectrum + self.precision)  # (J, H)
            moved = (noise * variance.sqrt()) @ self.scale.T
        else:
            moved = noise * self.scale
        drawn = mean + moved
        prefix = f"{self.layer_name}." if self.layer_name else ""
        values = {f"{prefix}weight": drawn[:, : layer.in_features]}
        if layer.bias is not None:
            values[f"{prefix}bias"] = drawn[:, -1]
        return with_weights(self.network, values).eval()

    def explore(self, model: nn.Module, loss: Loss, rows: Rows, recipe: Recipe, random_state: int) -> None:
        layer = self._layer(self.network)
        dtype = torch.float64  # sums over many rows, then an inverse
        n_out, n_in = self._joined(layer).shape
        device = layer.weight.device
        products = torch.zeros((n_out if self.covariance == "full" else 1, n_in, n_in), dtype=dtype, device=device)
        squares = torch.zeros((n_out, n_in), dtype=dtype, device=device)
        curvature = torch.zeros(n_out, dtype=dtype, device=device)
        with in_eval(model), isolated_rng(random_state, device):
            for part in torch.arange(len(rows)).split(min(256, recipe.batch_size)):
                inputs, curved = self._curvature(model, rows.batch(part).to(device))
                phi, hessian = inputs.to(dtype), curved.to(dtype)
                curvature += hessian.sum(0)
                if self.covariance == "diagonal":
                    squares += hessian.T @ phi.square()
                    continue
                outer = (phi[:, :, None] * phi[:, None, :]).flatten(1)  # (n, H H)
                weights = hessian.T if self.covariance == "full" else phi.new_ones(1, len(phi))
                products += (weights @ outer).view_as(products)
        scale = self.prior_scale or float(layer.weight.detach().square().mean().sqrt()) or 1.0
        precision = scale**-2
        self.precision.fill_(precision)
        if self.covariance == "full":
            # A = L L^T, so L^-T is a root of the covariance
            lower = torch.linalg.cholesky(products + precision * torch.eye(n_in, dtype=dtype, device=device))
            eye = torch.eye(n_in, dtype=dtype, device=device).expand_as(lower)
            self.scale.copy_(torch.linalg.solve_triangular(lower, eye, upper=False).mT)
        elif self.covariance == "kron":
            spectrum, vectors = torch.linalg.eigh(products[0])
            self.scale.copy_(vectors)
            self.spectrum.copy_(spectrum.clamp(min=0))
            self.curvature.copy_(curvature / len(rows))
        else:
            self.scale.copy_((squares + precision).rsqrt())

    def _curvature(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the layer reads (n, H), and minus the second derivative of log p(x given z) in each output (n, J)."""
        with torch.no_grad():
            z, _ = model.encode(batch).rsample_with_log_prob(1)
        with _watched(self._layer(self.network)) as seen:
            if model.likelihood.n_parameters == 1:
                log_p = model.log_likelihood(batch, z).sum()
                output = seen["output"]
                (slope,) = torch.autograd.grad(log_p, output, create_graph=True)
                curved = torch.zeros_like(output)
                if slope.requires_grad:
                    (change,) = torch.autograd.grad(slope.sum(), output)
                    curved = (-change).clamp(min=0)
            else:
                params = model.decode(z[0], batch.context)
                output = seen["output"]
                curved = torch.zeros_like(output)
                for _ in range(FISHER_DRAWS):
                    x = model.likelihood.sample(params.detach(), batch.context)
                    log_p = model.likelihood.log_prob(x, params, context=batch.context, mask=batch.mask).sum()
                    (slope,) = torch.autograd.grad(log_p, output, retain_graph=True)
                    curved += slope.square() / FISHER_DRAWS
            phi = seen["input"].detach().flatten(0, -2)
        layer = self._layer(self.network)
        if layer.bias is not None:
            phi = torch.cat([phi, phi.new_ones(len(phi), 1)], -1)
        return phi, curved.detach().flatten(0, -2)

    def _layer(self, network: nn.Module) -> Any:
        return network.get_submodule(self.layer_name)

    @staticmethod
    def _joined(layer: Any) -> Tensor:
        weight = layer.weight.detach()
        return weight if layer.bias is None else torch.cat([weight, layer.bias.detach()[:, None]], 1)


@contextmanager
def _watched(layer: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What the layer read and gave last; its output begins a graph of its own."""
    seen: dict[str, Tensor] = {}

    def watch(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen["input"], seen["output"] = inputs[0], output.detach().requires_grad_()
        return seen["output"]

    handle = layer.register_forward_hook(watch)
    try:
        yield seen
    finally:
        handle.remove()
