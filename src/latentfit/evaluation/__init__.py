"""Numbers with standard errors."""

from latentfit.evaluation.codes import Codes, encode_rows
from latentfit.evaluation.collapse import ActiveUnits, active_units
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.gap import (
    PlugIn,
    defensive_weight,
    plug_in_mismatch,
    prior_gap,
    prior_gap_per_row,
)
from latentfit.evaluation.holes import Holes, prior_holes
from latentfit.evaluation.ladder import Ladder, Rung, climb, cross_fit
from latentfit.evaluation.likelihood import LogLikelihood, log_likelihood
from latentfit.evaluation.proposal import Proposal, encoder_proposal, fit_proposal
from latentfit.evaluation.psis import pareto_k
from latentfit.evaluation.samples import SampleQuality, encoder_features, knn_accuracy, sample_quality
from latentfit.evaluation.terms import ELBOTerms, elbo_terms, inference_gap

__all__ = [
    "ActiveUnits",
    "Codes",
    "ELBOTerms",
    "Estimate",
    "Holes",
    "Ladder",
    "LogLikelihood",
    "PlugIn",
    "Proposal",
    "Rung",
    "SampleQuality",
    "active_units",
    "climb",
    "cross_fit",
    "defensive_weight",
    "elbo_terms",
    "encode_rows",
    "encoder_features",
    "encoder_proposal",
    "fit_proposal",
    "inference_gap",
    "knn_accuracy",
    "log_likelihood",
    "pareto_k",
    "plug_in_mismatch",
    "prior_gap",
    "prior_gap_per_row",
    "prior_holes",
    "sample_quality",
]
