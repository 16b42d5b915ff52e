"""The scikit-learn estimator, and saving and loading of whatever was fitted."""

from latentfit.estimator.saved import load, save
from latentfit.estimator.vae import VAE

__all__ = ["VAE", "load", "save"]
