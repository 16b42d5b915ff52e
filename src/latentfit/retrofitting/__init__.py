"""The verb: a better prior for a VAE that is already trained."""

from latentfit.retrofitting.result import Retrofit, RetrofitSetting, RungRow
from latentfit.retrofitting.retrofit import retrofit

__all__ = ["Retrofit", "RetrofitSetting", "RungRow", "retrofit"]
