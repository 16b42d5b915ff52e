"""Bijections with a tractable log-determinant, used by priors and posteriors."""

from latentfit.flows.actnorm import ActNorm
from latentfit.flows.autoregressive import AutoregressiveAffine, MaskedNetwork, autoregressive_flow
from latentfit.flows.bijection import Bijection, soft_bound
from latentfit.flows.coupling import AffineCoupling
from latentfit.flows.mixing import LUMixing, Permutation, unpack_lower
from latentfit.flows.sequence import Sequence, coupling_flow
from latentfit.flows.whitening import Whitening

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "AutoregressiveAffine",
    "Bijection",
    "LUMixing",
    "MaskedNetwork",
    "Permutation",
    "Sequence",
    "Whitening",
    "autoregressive_flow",
    "coupling_flow",
    "soft_bound",
    "unpack_lower",
]
