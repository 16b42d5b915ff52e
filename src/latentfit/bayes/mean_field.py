"""Mean-field Gaussian weights: variational inference over a network."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from latentfit.bayes.layers import (
    DENSE,
    called_layers_of,
    fan_in,
    key_of,
    layers_of,
    normal_like,
    weights_of,
    with_weights,
)
from latentfit.errors import InputError
from latentfit.model.uncertain import UncertainNetwork
from latentfit.networks.products import dense


class MeanField(UncertainNetwork):
    r"""Independent Gaussian weights, learned by the ELBO over them.

        q(w) = prod_i N(w_i; mu_i, sigma_i^2),   p(w) = prod_i N(w_i; 0, s^2)
        KL(q || p) = sum_i log(s / sigma_i) + (sigma_i^2 + mu_i^2) / (2 s^2) - 1/2

    mu are the network's own parameters. Dense layers draw their outputs, not their weights (local reparameterisation):
    y ~ N(x mu^T, x^2 (sigma^2)^T) for each row, the same law with far less noise in the gradient. Other layers, and
    dense ones at several positions of a row, which share their weights, draw one set of weights a call. Uncertain are
    weights and biases of dense and convolutional layers; everything else stays as it is, normalisations, embeddings,
    recurrent cells and the input projections of attention among it. A dense layer that a network calls several times in
    one pass has noise of its own each time.

    `prior_scale="learned"` puts s^2 = mean of mu^2 + sigma^2 in each tensor, where the KL is smallest (empirical
    Bayes); the KL is then sum_i log(s / sigma_i).

    The standard deviations are those of the best *independent* approximation, H_ii^(-1/2) for a Gaussian posterior of
    precision H: too small where weights are correlated.

    Args:
        network: the network.
        prior_scale: s, or "learned".
        initial_scale: sigma at the start, times 1 / sqrt(fan-in).
        temperature: of the posterior: what the KL is multiplied by. 1 is Bayes. Below it the posterior is cold: with
            fewer rows than weights it predicts better (Wenzel et al. 2020, arXiv 2002.02405), and is no bound any more.

    Raises:
        InputError: a scale that is not positive.
        CapabilityError: a network without dense or convolutional layers.

    Sources: Blundell et al. 2015 (arXiv 1505.05424); local reparameterisation: Kingma, Salimans and Welling 2015
    (arXiv 1506.02557).

    Example:
        >>> import torch
        >>> from latentfit.bayes import MeanField
        >>> decoder = MeanField(torch.nn.Linear(2, 3)).eval()
        >>> decoder(torch.zeros(4, 2)).shape, decoder.draw()(torch.zeros(4, 2)).shape
        (torch.Size([4, 3]), torch.Size([4, 3]))
    """

    def __init__(
        self,
        network: nn.Module,
        prior_scale: float | Literal["learned"] = "learned",
        initial_scale: float = 0.1,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(network)
        numbers = {"prior_scale": prior_scale, "initial_scale": initial_scale, "temperature": temperature}
        for name, value in numbers.items():
            if value != "learned" and not (isinstance(value, int | float) and value > 0):
                raise InputError(f"MeanField: {name} must be positive, got {value!r}.")
        self.prior_scale, self.temperature = prior_scale, temperature
        self.log_variance = nn.ParameterDict()
        layers = layers_of(network)
        for name, parameter in weights_of(network).items():
            layer = layers[name.rpartition(".")[0]]
            start = 2 * math.log(initial_scale / math.sqrt(fan_in(_weight(layer), layer)))
            self.log_variance[key_of(name)] = nn.Parameter(torch.full_like(parameter, start))

    def forward(self, *inputs: Tensor) -> Any:
        if not self.training:
            return self.network(*inputs)
        parameters = dict(self.network.named_parameters())
        sampled: dict[str, Tensor] = {}
        handles = []
        called = called_layers_of(self.network)
        for name, layer in layers_of(self.network).items():
            names = {kind: f"{name}.{kind}" if name else kind for kind, _ in layer.named_parameters(recurse=False)}
            spreads = {kind: self.log_variance[key_of(full)] for kind, full in names.items()}
            if isinstance(layer, DENSE) and name in called:
                handles.append(layer.register_forward_hook(_Local(spreads)))
                continue
            for kind, full in names.items():
                scale = (0.5 * spreads[kind]).exp()
                sampled[full] = torch.addcmul(parameters[full], scale, torch.randn_like(scale))
        try:
            return functional_call(self.network, sampled, inputs) if sampled else self.network(*inputs)
        finally:
            for handle in handles:
                handle.remove()

    def draw(self, generator: Generator | None = None) -> nn.Module:
        with torch.no_grad():
            values = {
                name: mean + (0.5 * self.log_variance[key_of(name)]).exp() * normal_like(mean, generator)
                for name, mean in weights_of(self.network).items()
            }
        return with_weights(self.network, values).eval()

    def parameter_kl(self) -> Tensor:
        """KL(q(w) || p(w)) in nats, of all weights together, times the temperature: ()."""
        terms = [_kl(mean, self.log_variance[key_of(name)], self.prior_scale) for name, mean in self._means()]
        return self.temperature * torch.stack(terms).sum()

    def _means(self) -> list[tuple[str, nn.Parameter]]:
        return list(weights_of(self.network).items())


class _Local:
    """Adds to a dense layer's output the noise that its uncertain weights make there."""

    def __init__(self, log_variances: dict[str, Tensor]) -> None:
        self.log_variances = log_variances

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if inputs[0].dim() > 2:  # positions of a row share their weights, so their noise is not independent
            drawn = {kind: torch.randn_like(v) * (0.5 * v).exp() for kind, v in self.log_variances.items()}
            return output + dense(inputs[0], drawn["weight"], drawn.get("bias"))
        variances = {kind: log_variance.exp() for kind, log_variance in self.log_variances.items()}
        variance = dense(inputs[0].square(), variances["weight"], variances.get("bias"))
        # a row of zeros through a layer without bias has no noise, and the root of 0 no gradient
        return torch.addcmul(output, (variance + 1e-20).sqrt(), torch.randn_like(output))


def _kl(mean: Tensor, log_variance: Tensor, prior_scale: float | str) -> Tensor:
    flat, n = mean.flatten(), mean.numel()
    square = torch.dot(flat, flat) + log_variance.exp().sum()
    entropy = 0.5 * log_variance.sum()
    if isinstance(prior_scale, str):
        return 0.5 * n * (square / n).log() - entropy
    return 0.5 * square / prior_scale**2 - entropy + n * (math.log(prior_scale) - 0.5)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)  # of every layer that `layers_of` finds
    return weight
