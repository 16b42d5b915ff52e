"""Bijections with a tractable log-determinant, used by priors and posteriors."""

from latentfit.flows.actnorm import ActNorm
from latentfit.flows.autoregressive import AutoregressiveAffine, MaskedNetwork, autoregressive_flow
from latentfit.flows.bijection import Bijection, soft_bound
from latentfit.flows.coupling import AffineCoupling, Coupling, SplineCoupling
from latentfit.flows.mixing import LUMixing, Permutation, Rotation, unpack_lower
from latentfit.flows.sequence import Sequence, coupling_flow, outside_box, spline_flow
from latentfit.flows.spline import rational_quadratic_spline
from latentfit.flows.whitening import Whitening

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "AutoregressiveAffine",
    "Bijection",
    "Coupling",
    "LUMixing",
    "MaskedNetwork",
    "Permutation",
    "Rotation",
    "Sequence",
    "SplineCoupling",
    "Whitening",
    "autoregressive_flow",
    "coupling_flow",
    "outside_box",
    "rational_quadratic_spline",
    "soft_bound",
    "spline_flow",
    "unpack_lower",
]
