"""The contract of a network whose weights have a distribution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Generator, Tensor, nn

from latentfit.data.batch import Batch
from latentfit.data.rows import Rows
from latentfit.registry import Component
from latentfit.training import Recipe

#: terms of the objective by name, of a batch
Loss = Callable[[Batch], Mapping[str, Tensor]]
#: draws that stand for the whole distribution where nobody says how many
N_DRAWS = 10


class UncertainNetwork(Component, nn.Module, ABC):
    """A network with a distribution over its weights; it takes the network's place as encoder or decoder.

    To implement: `forward`, which is the training's noise in training mode and one fixed network, the distribution's
    centre, in eval mode; and `draw`. A class whose objective has a KL over the weights defines `parameter_kl()`, one
    with a decay of the weights `weight_decay()`; both are nats of the whole data set, and the objective divides them by
    its number of rows. A class that finds its distribution around trained weights does so in `explore`.

    As the decoder it makes p(x) = E_w[p(x given w)] a mixture of ordinary VAEs. As the encoder its weights are
    auxiliary variables of the posterior, q(z given x) = E_w[q(z given x, w)]: each draw has a bound of its own, and the
    mean of these is lower than that of the mixture. p(x) does not know of them.

    Args:
        network: whose weights are uncertain; a user's own module too.
    """

    #: `lf.load(..., decoder=mine)` finds the user's network, as without a distribution
    stands_for = "network"
    #: how many draws stand for the distribution; all there are, where they are finite
    n_draws: int = N_DRAWS
    #: whether draws as an encoder share the coordinates of z
    shares_coordinates: bool = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Any:
        """As of the network: with the training's noise in training mode, the centre's in eval mode."""

    @abstractmethod
    def draw(self, generator: Generator | None = None) -> nn.Module:
        """An ordinary network with weights drawn from the distribution; it shares none with this one."""

    def draws(self, n: int, generator: Generator | None = None) -> Iterator[nn.Module]:
        """n draws; from a finite set, without repetition while there are others."""
        for _ in range(n):
            yield self.draw(generator)

    def explore(self, model: nn.Module, loss: Loss, rows: Rows, recipe: Recipe, random_state: int) -> None:
        """Find the distribution around trained weights; nothing where training has found it.

        Args:
            model: the VAE that this network is part of.
            loss: the objective at its settled strength, mean over the batch, nats per row.
            rows: training rows.
            recipe: how the model was trained.
            random_state: seed.
        """
