"""Data: their sources, their kind, their splits and preparation, and sets whose truth is known."""

from latentfit.data.batch import Batch
from latentfit.data.inspection import DataKind, Suggestion, inspect, suggest_likelihood
from latentfit.data.noise import Binarise, Dequantise, binarise_once, dequantise_once, grey_to_unit
from latentfit.data.rows import Rows, RowSource, as_batch
from latentfit.data.sources import Source, datasets, load
from latentfit.data.splits import FRACTIONS, MNIST_FRACTIONS, Splits, cross_fit, split_rows
from latentfit.data.synthetic import (
    KnownLatents,
    LinearGaussian,
    gaussian_mixture_latents,
    zero_mismatch_latents,
)
from latentfit.data.transforms import (
    Identity,
    LogStandardise,
    Standardise,
    Transform,
    drop_constant_columns,
    resolution,
)
from latentfit.registry import registry

registry.register("transform", "identity", Identity)
registry.register("transform", "standardise", Standardise, aliases=("standardize", "standard", "zscore"))
registry.register("transform", "log_standardise", LogStandardise, aliases=("log1p",))

__all__ = [
    "FRACTIONS",
    "MNIST_FRACTIONS",
    "Batch",
    "Binarise",
    "DataKind",
    "Dequantise",
    "Identity",
    "KnownLatents",
    "LinearGaussian",
    "LogStandardise",
    "RowSource",
    "Rows",
    "Source",
    "Splits",
    "Standardise",
    "Suggestion",
    "Transform",
    "as_batch",
    "binarise_once",
    "cross_fit",
    "datasets",
    "dequantise_once",
    "drop_constant_columns",
    "gaussian_mixture_latents",
    "grey_to_unit",
    "inspect",
    "load",
    "resolution",
    "split_rows",
    "suggest_likelihood",
    "zero_mismatch_latents",
]
