"""Numbers with standard errors."""

from latentfit.divergences import (
    PRDC,
    TwoSampleTest,
    classifier_test,
    energy_distance,
    frechet_distance,
    mmd2,
    mmd_test,
    precision_recall_density_coverage,
    sliced_wasserstein,
)
from latentfit.evaluation.ais import AIS, ais_log_likelihood
from latentfit.evaluation.bdmc import BDMC, bdmc
from latentfit.evaluation.calibration import Calibration, decoder_calibration
from latentfit.evaluation.clusters import Clusters, clusters_of, on_single_rows
from latentfit.evaluation.codes import Codes, encode_rows
from latentfit.evaluation.collapse import ActiveUnits, active_units
from latentfit.evaluation.dimension import intrinsic_dimension
from latentfit.evaluation.embedding import AgainstPCA, against_pca, knn_accuracy, neighbourhood_overlap, pca_baseline
from latentfit.evaluation.escalation import Scored, escalate
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.gap import (
    PlugIn,
    defensive_weight,
    gap_by_group,
    plug_in_mismatch,
    prior_gap,
    prior_gap_per_row,
)
from latentfit.evaluation.guards import (
    FiniteGradients,
    InverseError,
    Memorisation,
    Strays,
    bridges,
    check_prior,
    finite_gradients,
    inverse_error,
    memorisation,
    uncovered,
)
from latentfit.evaluation.holes import Holes, prior_holes
from latentfit.evaluation.ladder import Ladder, Rung, climb, cross_fit
from latentfit.evaluation.likelihood import LogLikelihood, log_likelihood
from latentfit.evaluation.ood import OODScores, score_ood
from latentfit.evaluation.proposal import Proposal, encoder_proposal, fit_proposal
from latentfit.evaluation.psis import pareto_k
from latentfit.evaluation.samples import (
    FunctionalHole,
    SampleQuality,
    encoder_features,
    functional_hole,
    sample_quality,
)
from latentfit.evaluation.terms import ELBOTerms, elbo_terms, inference_gap
from latentfit.evaluation.two_phase import TwoPhase, annealed_where_needed
from latentfit.evaluation.uncertainty import (
    LatentDistribution,
    LatentInvariants,
    latent_distribution,
    latent_invariants,
)

__all__ = [
    "AIS",
    "BDMC",
    "PRDC",
    "ActiveUnits",
    "AgainstPCA",
    "Calibration",
    "Clusters",
    "Codes",
    "ELBOTerms",
    "Estimate",
    "FiniteGradients",
    "FunctionalHole",
    "Holes",
    "InverseError",
    "Ladder",
    "LatentDistribution",
    "LatentInvariants",
    "LogLikelihood",
    "Memorisation",
    "OODScores",
    "PlugIn",
    "Proposal",
    "Rung",
    "SampleQuality",
    "Scored",
    "Strays",
    "TwoPhase",
    "TwoSampleTest",
    "active_units",
    "against_pca",
    "ais_log_likelihood",
    "annealed_where_needed",
    "bdmc",
    "bridges",
    "check_prior",
    "classifier_test",
    "climb",
    "clusters_of",
    "cross_fit",
    "decoder_calibration",
    "defensive_weight",
    "elbo_terms",
    "encode_rows",
    "encoder_features",
    "encoder_proposal",
    "energy_distance",
    "escalate",
    "finite_gradients",
    "fit_proposal",
    "frechet_distance",
    "functional_hole",
    "gap_by_group",
    "inference_gap",
    "intrinsic_dimension",
    "inverse_error",
    "knn_accuracy",
    "latent_distribution",
    "latent_invariants",
    "log_likelihood",
    "memorisation",
    "mmd2",
    "mmd_test",
    "neighbourhood_overlap",
    "on_single_rows",
    "pareto_k",
    "pca_baseline",
    "plug_in_mismatch",
    "precision_recall_density_coverage",
    "prior_gap",
    "prior_gap_per_row",
    "prior_holes",
    "sample_quality",
    "score_ood",
    "sliced_wasserstein",
    "uncovered",
]
