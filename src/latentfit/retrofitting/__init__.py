"""The verb: a better prior for a VAE that is already trained."""

from latentfit.retrofitting.finetune import FineTuning
from latentfit.retrofitting.result import Retrofit, RetrofitSetting, RungRow
from latentfit.retrofitting.retrofit import retrofit

__all__ = ["FineTuning", "Retrofit", "RetrofitSetting", "RungRow", "retrofit"]
